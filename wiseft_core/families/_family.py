"""The record of a family: what an adapter method does to the parameters that it changes.

Family room. A family knows matrices of shape (out, in), the factors of its paper, how PEFT spells them and which fields
of PEFT's config its formula reads: no files, no dtypes, no devices, no layouts. The joint (`tiles.py`) gives it any
part of a matrix and the matching parts of the factors, widened already, and rounds what comes back. So a family file
says its formula, its keys, its options, and its source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

Factors = Mapping[str, "Tensor"]
"""Factors by role, each cut to the tile at hand, in the compute dtype."""
Total = Callable[[Factors], "Tensor"]
"""The sum of a measure over a whole weight, with some factors in the place of their own; one value per `out`."""
Sizes = Mapping[str, int]
"""Sizes by axis: "out" and "in" of the whole weight, and what the factors fix ("rank" and any other name)."""
Options = Mapping[str, Any]
"""The fields of a method's config that its formula reads, by PEFT's names, as they are at one module."""


class Nothing(Mapping[str, Any]):
    """A mapping of nothing that cannot come to hold something, and crosses process boundaries."""

    def __getitem__(self, key: str) -> Any:
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


NOTHING: Final[Mapping[str, Any]] = Nothing()


class Hyper(NamedTuple):
    """What a formula reads besides weight and factors.

    Attributes:
        scale: s of the formula; 1 where it has none.
        options: The fields of the method's config, as they are at this module.
        sizes: Sizes of the whole weight, "out" and "in", and of the axes that the factors fix.
    """

    scale: float = 1.0
    options: Options = NOTHING
    sizes: Sizes = NOTHING


MODULES: Final = "modules"
"""The kind of an option that lists modules, or a pattern of them: at each module it is true or false."""


class Option(NamedTuple):
    """One field of a method's config that changes numbers.

    Attributes:
        kind: `bool`, `int`, `float`, `MODULES`, or the values that it can have; any other value is refused.
        default: PEFT's value for a config that does not say; None where it must be said, because it is never guessed.
            An option called "r" is the size of the axis `rank` where the factors have one, and must agree with it.
        pattern: The field that gives other values to some modules: "rank_pattern", "alpha_pattern", ...
        why: Why the values that `kind` leaves out are refused, where they are values that PEFT knows.
    """

    kind: Any
    default: object = None
    pattern: str | None = None
    why: str = ""


class Change(NamedTuple):
    """What a family does to one parameter, as pure functions over a tile of it.

    Attributes:
        factors: Axes of each factor by role, e.g. {"A": "rank in", "B": "out rank"}. Every one is needed. The joint
            cuts `out` and `in` to the tile. A factor with exactly both is read tile by tile and never whole. See
            `layouts.py` for the other names.
        delta: `delta(factors, hyper)` gives D, where W_tuned = W + s·D and D does not depend on W. For these the
            interpolated value is W + (alpha·s)·D, computed without forming the tuned weight.
        tuned: `tuned(weight, factors, hyper, total)` gives the tuned value, where it is not of that form.
        measure: `measure(weight, factors, hyper)`, what `tuned` needs to know of whole rows: summed over the tiles
            that share their rows, it comes back as `total`, one value per `out`; as None where the tile has whole rows,
            and `tuned` measures itself. None: rows need nothing.
        whole: The functions need the whole matrix at once: it is computed once per tensor, and tiles are cut from it.
        layouts: How the weight may be stored, by names of `LAYOUTS`.
        fits: Whether sizes that each have their place belong together, e.g. blocks·size = in.
        when: Whether this form is the one that the options mean, where the roles do not tell.
        integers: The roles whose values are integers.
        beside: The roles that are no factors of the adapter but parameters of the same module, as the base has them,
            each with the parameter's name. A change of a bias may need the weight.
        arrays: The functions take numpy's arrays as well as tensors.
        linear: A role in which `delta` is linear: alpha times that factor is the interpolated change.
        rescaled: `rescaled(factors, alpha, total)` gives factors in the place of some, of the same shapes, whose tuned
            value is W + alpha·(W_tuned - W). `total(changed)` is the sum of `measure` over the whole weight with the
            changed factors, as they will be stored, in the place of theirs.
        value: The role of a factor that is the tuned value itself: the interpolated value can stand in its place.

    The functions modify nothing that they are given. Exactly one of `delta` and `tuned` is set. A change with none of
    `linear`, `rescaled` and `value` is not closed: no factors of its kind give the interpolated value.
    """

    factors: Mapping[str, str]
    delta: Callable[[Factors, Hyper], Tensor] | None = None
    tuned: Callable[[Tensor, Factors, Hyper, Tensor | None], Tensor] | None = None
    measure: Callable[[Tensor, Factors, Hyper], Tensor] | None = None
    whole: bool = False
    layouts: tuple[str, ...] = ("linear", "transposed")
    fits: Callable[[Sizes], bool] | None = None
    when: Callable[[Options], bool] | None = None
    integers: frozenset[str] = frozenset()
    beside: Mapping[str, str] = NOTHING
    arrays: bool = False
    linear: str | None = None
    rescaled: Callable[[Factors, float, Total], Factors] | None = None
    value: str | None = None

    @property
    def own(self) -> frozenset[str]:
        """The roles of the adapter's own factors."""
        return frozenset(self.factors.keys() - self.beside.keys())

    @property
    def closed(self) -> bool:
        """Whether factors of its kind can give the interpolated value."""
        return not (self.linear is None and self.rescaled is None and self.value is None)


class Family(NamedTuple):
    """One method: its name, the parameters that it changes, how PEFT writes it, and where its formula comes from.

    Attributes:
        name: The field's name for it, in lower case.
        parameters: A `Change` for each parameter, by the parameter's name in its module ("weight", "bias"), or "*"
            for any. Where a method has several forms, a tuple of them: the one whose factors are there is meant. A
            parameter whose factors belong to another one's keys changes along with it, where the base has it.
        source: Paper with number, and equation.
        peft: PEFT's word for the method, its `peft_type`; "" for what comes with every method.
        keys: The ends of the keys that PEFT saves, each with the role that it means: {"hada_w1_a": "w1_a"}. A role
            that is not of the weight is said with its parameter: "bias trained". A key with "base_model." in front is
            one of the whole model: a factor of every module that the method changes. With ".*" behind it there are
            several, each of one group of modules, with the group's name there.
        options: The fields of the config that change numbers, by name.
        harmless: The fields of the config that do not, by name, each with the reason.
        scale: s of the formula from the options; None: there is none.
        group: The group that a module is in, by its path, for keys with ".*".
        note: What a human should know who trusts the result; it is said with every plan.
        variant: Options and the value of each that makes this the family that is meant.
    """

    name: str
    parameters: Mapping[str, Change | tuple[Change, ...]]
    source: str
    peft: str = ""
    keys: Mapping[str, str] = NOTHING
    options: Mapping[str, Option] = NOTHING
    harmless: Mapping[str, str] = NOTHING
    scale: Callable[[Options], float] | None = None
    variant: Mapping[str, object] = NOTHING
    group: Callable[[str], str] | None = None
    note: str = ""

    def forms(self, parameter: str) -> tuple[Change, ...]:
        """The forms in which it changes a parameter; none if it does not."""
        found = self.parameters.get(parameter) or self.parameters.get("*") or ()
        return (found,) if isinstance(found, Change) else found
