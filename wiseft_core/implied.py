"""The base as its adapter implies it: where none is given, as much of it as the factors tell.

Joint floor, on top of `sources`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wiseft_core.errors import ConfigError, listed
from wiseft_core.families import Change, Family
from wiseft_core.layouts import OF_WEIGHT, Shape
from wiseft_core.methods import family_of
from wiseft_core.naming.peft import PeftKey
from wiseft_core.sites import Site, collect
from wiseft_core.sources import Source, Tuned
from wiseft_core.types import TensorSpec

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class _Implied:
    """A base of which no more is known than its adapter says.

    Attributes:
        specs: The shapes that low-rank factors fit, and the adapter's own integer tensors.
        adapter: The adapter, which holds those.
        keys: Their adapter keys by name. Nothing else has values.
    """

    specs: Mapping[str, TensorSpec]
    adapter: Source
    keys: Mapping[str, str]

    def get_tensor(self, name: str) -> Tensor:
        """The adapter's own."""
        return self.adapter.get_tensor(self.keys[name])

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Elements [start, stop) of the adapter's own."""
        return self.adapter.read(self.keys[name], start, stop)


def implied_base(tuned: Tuned, parsed: Mapping[str, PeftKey], families: Mapping[str, Family]) -> Source:
    """The base as its adapter implies it.

    Raises:
        ConfigError: A tensor of the adapter means nothing without a base.
    """
    sites, specs = collect(parsed), tuned.source.specs
    shapes = {site.target: _implied_shape(site, forms_of(site, tuned, families)[1], specs) for site in sites}
    values = {site.target: site.factors["value"] for site in sites if set(site.factors) == {"value"}}
    same = {name: key for name, key in values.items() if not specs[key].is_float}
    stacks = {site.target for site in sites if tuned.config is not None and tuned.config.wraps(site.module)}
    needy = [name for name, shape in shapes.items() if (shape is None and name not in same) or name in stacks]
    if needy:
        raise ConfigError(
            f"{listed(needy, most=10)} — {len(needy)} tensor(s) cannot be rescaled without the base",
            expected="the base: the change depends on it, or its factors do not tell the shape of the weight",
            got="no base",
            hint="give it: base=, or --base on the command line",
        )
    told = {name: TensorSpec("F32", shape) for name, shape in shapes.items() if shape is not None}
    return _Implied(told | {name: specs[key] for name, key in same.items()}, tuned.source, same)


def forms_of(site: Site, tuned: Tuned, families: Mapping[str, Family]) -> tuple[str, list[Change]]:
    """The family of a site, and its forms with just these factors; where there are none, those with these and more."""
    roles = {role.removeprefix("embedding_") for role in site.factors}
    family = family_of(site, roles, tuned.config, families)
    record = families.get(family)
    if record is None:
        return family, []
    said = {} if tuned.config is None else tuned.config.said_at(site.module, record.options)
    forms = [form for form in record.forms(site.parameter) if form.when is None or form.when(said)]
    return family, [form for form in forms if roles == form.own] or [form for form in forms if roles < form.own]


def _implied_shape(site: Site, forms: Sequence[Change], specs: Mapping[str, TensorSpec]) -> Shape | None:
    """The shape of a weight that a site's factors would fit.

    None where they do not tell it, and where no factor times alpha is the interpolated change whatever the weight.
    """
    factors = {role.removeprefix("embedding_"): key for role, key in site.factors.items()}
    for form in forms:
        lacking = factors.keys() < form.own  # binding says what is missing
        if not lacking and (form.linear is None or form.beside):
            continue
        sizes: dict[str, Shape] = {}
        axes = [(axis, at, role) for role in factors for at, axis in enumerate(form.factors[role].split())]
        for axis, at, role in sorted(axes, key=lambda one: one[0].endswith("+")):  # what is cut says least
            shape = specs[factors[role]].shape
            sizes.setdefault(axis.rstrip("+"), shape[at:] if axis == "in" else shape[at : at + 1])
        told = [size for axis in OF_WEIGHT for size in sizes.get(axis, ())]
        is_told = {"out", "in"} <= sizes.keys() or {"out", "channel"} <= sizes.keys() or form.layouts == ("whole",)
        if is_told or lacking:
            return tuple(reversed(told) if "embedding_A" in site.factors else told)
    return None
