"""Alpha as a function of depth: the early layers stay near the base, the late ones near the tuned model.

Schedules room. Standard library only.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from operator import itemgetter
from typing import Final

from wiseft_core.errors import ConfigError
from wiseft_core.schedules.number import check_alpha, shown

DIGITS: Final = 9
"""A longer number in a name is no layer's: names come from files, and int() of a very long one fails."""


@dataclass(frozen=True, slots=True)
class ByDepth:
    """What `by_depth` gives: a function from a tensor's name to its alpha, and a plain value.

    Attributes:
        points: Layer number and alpha, by ascending layer.
        other: Alpha of the names without a layer number.
        within: The components that the layer number stands behind; "": any.
    """

    points: tuple[tuple[int, float], ...]
    other: float
    within: str

    def __call__(self, name: str) -> float:
        """The alpha of the tensor called `name`."""
        layer = next(self._numbers(name), None)
        if layer is None:
            return self.other
        reached = bisect(self.points, layer, key=itemgetter(0))
        left, low = self.points[max(reached - 1, 0)]
        right, high = self.points[min(reached, len(self.points) - 1)]
        if left == right:
            return low
        return float(Fraction(low) + (Fraction(high) - Fraction(low)) * Fraction(layer - left, right - left))

    def reaches(self, names: Iterable[str]) -> bool:
        """Whether any of `names` has a layer number here, so that `within` is not a misspelt path."""
        return any(True for name in names for _ in self._numbers(name))

    def _numbers(self, name: str) -> Iterator[int]:
        """The numeric components of a name, those behind `within` alone if it is given."""
        parts, before = name.split("."), self.within.split(".") if self.within else []
        for at in range(len(before), len(parts)):
            number = layer_number(parts[at])
            if number is not None and parts[at - len(before) : at] == before:
                yield number


def by_depth(points: Mapping[int, float], *, other: float, within: str = "") -> ByDepth:
    """Alpha by layer number: piecewise linear between the given points, constant before the first and after the last.

        alpha(l) = a + (b - a)·(l - i) / (j - i)        for neighbouring points i: a and j: b, i <= l <= j

    Computed in fractions and rounded once: exactly a at i and b at j, and monotone between them. Two points, the first
    and the last layer, are the linear form of LiNeS. Wherever an alpha is taken, the result is: alone, or as a value of
    a mapping, {"*": by_depth({0: 0.2, 31: 0.8}, other=0.5), "lm_head.weight": 1.0}. It can be compared and pickled.

    Args:
        points: Alpha by layer number, as the names count: mostly from 0. At least one.
        other: Alpha of the names without a layer number: embeddings, the last norm, the head.
        within: Dotted components, such as "vision_tower.encoder.layers": the layer number is the numeric component
            right behind them, and all other names get `other`. "": the first numeric component of a name.

    Raises:
        BadAlpha: A value is not a finite number. Its range is checked when names are resolved, as for any alpha.
        ConfigError: There is no point, a layer is not a whole number, or `within` is not a dotted path.
    Source: Wang et al. 2024, LiNeS, arXiv:2410.17146. The first numeric component is PEFT's rule for
        `layers_to_transform`, but for the components that PEFT wants around it.
    """
    if not isinstance(points, Mapping) or not points:
        raise ConfigError(
            "by_depth.points",
            expected="a mapping of layer numbers to alphas, with one point or more",
            got=shown(points),
            hint="give {0: 0.2, 31: 0.8}, say, for a model of 32 layers",
        )
    for layer in points:
        if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < 10**DIGITS:
            raise not_a_layer("by_depth.points", layer)
    if not isinstance(within, str) or (within and not all(within.split("."))):
        raise ConfigError(
            "by_depth.within",
            expected="the components before the layer number, with a dot between each two",
            got=shown(within),
            hint='give "model.layers", say, or leave it out for the first number of each name',
        )
    alphas = {
        layer: check_alpha(points[layer], f"by_depth.points[{layer}]", extrapolate=True) for layer in sorted(points)
    }
    return ByDepth(tuple(alphas.items()), check_alpha(other, "by_depth.other", extrapolate=True), within)


def layer_number(text: str) -> int | None:
    """The number that a component of a name spells, None if it spells none."""
    return int(text) if len(text) <= DIGITS and text.isascii() and text.isdecimal() else None


def not_a_layer(where: str, layer: object) -> ConfigError:
    """The refusal of a point's key."""
    return ConfigError(
        where,
        expected=f"layer numbers: whole, not negative, of at most {DIGITS} digits",
        got=f"{shown(layer)} ({type(layer).__name__})",
        hint="count the layers as the tensors' names do",
    )
