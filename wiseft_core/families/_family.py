"""The record of a family: what an adapter method does to the parameters that it changes.

Family room. A family knows matrices of shape (out, in), the factors of its paper and nothing else: no key names, no
files, no dtypes, no devices, no layouts. The joint (`tiles.py`) gives it any part of a matrix and the matching parts
of the factors, widened already, and rounds what comes back. So a family file says its formula, its factors with their
axes, and its source.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

Factors = Mapping[str, "Tensor"]
"""Factors by role, each cut to the tile at hand, in the compute dtype."""
Total = Callable[[Factors], "Tensor"]
"""The sum of a measure over a whole weight, with some factors in the place of their own; one value per `out`."""


class Change(NamedTuple):
    """What a family does to one parameter, as pure functions over a tile of it.

    Attributes:
        factors: Axes of each factor by role, e.g. {"A": "rank in", "B": "out rank"}. Every one is needed. The joint
            cuts `out` and `in` to the tile; a factor with both axes is read tile by tile and never whole.
        delta: `delta(factors)` gives D, where W_tuned = W + s·D and D does not depend on W. For these the interpolated
            value is W + (alpha·s)·D, computed without forming the tuned weight.
        tuned: `tuned(weight, factors, scale, total)` gives the tuned value, where it is not of that form.
        measure: `measure(weight, factors, scale)`, what `tuned` needs to know of whole rows: summed over the tiles
            that share their rows, it comes back as `total`, one value per `out`. None: rows need nothing.
        rescaled: `rescaled(factors, alpha, total)` gives factors in the place of some, of the same shapes, whose tuned
            value is W + alpha·(W_tuned - W). `total(changed)` is the sum of `measure` over the whole weight with the
            changed factors, as they will be stored, in the place of theirs.
        value: The role of a factor that is the tuned value itself: the interpolated value can stand in its place.

    The functions modify nothing that they are given. Exactly one of `delta` and `tuned` is set. A change with neither
    `rescaled` nor `value` is not closed: no factors of its kind give the interpolated value.
    """

    factors: Mapping[str, str]
    delta: Callable[[Factors], Tensor] | None = None
    tuned: Callable[[Tensor, Factors, float, Tensor | None], Tensor] | None = None
    measure: Callable[[Tensor, Factors, float], Tensor] | None = None
    rescaled: Callable[[Factors, float, Total], Factors] | None = None
    value: str | None = None


class Family(NamedTuple):
    """One method: its name, the parameters that it changes, and where its formula comes from.

    Attributes:
        name: The field's name for it, in lower case.
        parameters: A `Change` for each parameter, by the parameter's name in its module ("weight", "bias"), or "*"
            for any.
        needs_scale: Whether the formula has a scale that only the adapter's config knows.
        source: Paper with number, and equation.
    """

    name: str
    parameters: Mapping[str, Change]
    needs_scale: bool
    source: str
