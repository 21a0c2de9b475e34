"""Sites: which parameter of which module each adapter tensor speaks of, and which base tensor that is.

Joint floor: names and specs only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from wiseft_core import guards
from wiseft_core.config import AdapterConfig
from wiseft_core.errors import (
    AmbiguousName,
    BindingError,
    DtypeMismatch,
    ShapeMismatch,
    UnclaimedKey,
    Unsupported,
    WiseftError,
    listed,
)
from wiseft_core.naming.peft import UNUSED, PeftKey
from wiseft_core.naming.prefix import EXACT, Rule, nearest_rule, rules, suggestions
from wiseft_core.types import TensorSpec

TASK_HEADS: Final[Mapping[str, tuple[str, ...]]] = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}
"""Heads that PEFT saves for these task types without listing them in modules_to_save."""


@dataclass(frozen=True, slots=True)
class Site:
    """All adapter tensors of one parameter: factors by role, as adapter keys.

    Attributes:
        method: PEFT's word for the method whose keys they have; "" for LoRA and for what comes with every method.
        companion: Whether the parameter has no key of its own, and changes with the factors of another one.
    """

    module: str
    parameter: str
    factors: Mapping[str, str]
    method: str = ""
    companion: bool = False

    @property
    def target(self) -> str:
        """The parameter's name as the adapter sees the model."""
        return f"{self.module}.{self.parameter}" if self.module else self.parameter


@dataclass(frozen=True, slots=True)
class Placement:
    """Where every site lands: base names, new names, integer tensors to compare, and the prefix rule."""

    sites: Mapping[str, Site]
    new: Mapping[str, str] = field(default_factory=dict)
    same: Mapping[str, str] = field(default_factory=dict)
    rule: Rule = EXACT


def collect(parsed: Mapping[str, PeftKey]) -> tuple[Site, ...]:
    """Group parsed adapter keys by module and parameter, in the adapter's order; shared factors belong to every group.

    Raises:
        UnclaimedKey: A factor is shared by no module.
    """
    shared = _shared(parsed)
    copied = copies(parsed)
    groups: dict[tuple[str, str], dict[str, str]] = {}
    methods: dict[tuple[str, str], str] = {}
    within: dict[tuple[str, str], str] = {}
    for key, part in parsed.items():
        if part.role not in UNUSED and not part.shared and key not in copied:
            groups.setdefault(part[:2], {})[part.role] = key
            methods[part[:2]] = part.method or methods.get(part[:2], "")
            within[part[:2]] = part.group or within.get(part[:2], "")
    there = {(methods[at], group) for at in groups for group in ("", within[at])}
    lonely = [key for (method, _, group), key in shared.items() if (method, group) not in there]
    if lonely:
        raise UnclaimedKey(
            f"{listed(lonely)} — a factor that all modules share, and there is no module",
            expected="factors of at least one module beside it",
            got="none",
            hint="the adapter file is damaged",
        )
    for at, factors in groups.items():
        factors |= {
            role: key
            for (method, role, group), key in shared.items()
            if method == methods[at] and group in ("", within[at])
        }
    return tuple(Site(*at, factors, methods[at]) for at, factors in groups.items())


def _shared(parsed: Mapping[str, PeftKey]) -> dict[tuple[str, str, str], str]:
    """The keys of what many modules share, by method, role and group of modules."""
    return {
        (said.method, said.role, said.group): key
        for key, said in parsed.items()
        if said.shared and said.role != "ignored"
    }


def copies(parsed: Mapping[str, PeftKey]) -> dict[str, str]:
    """Keys of a module's own copies of what the whole model shares, each with the key of that."""
    shared = _shared(parsed)
    return {
        key: shared[at]
        for key, said in parsed.items()
        if not said.shared and (at := (said.method, said.role, said.group)) in shared
    }


def place(
    sites: Sequence[Site],
    base: Mapping[str, TensorSpec],
    adapter: Mapping[str, TensorSpec],
    *,
    config: AdapterConfig | None,
    base_config: Mapping[str, object] | None,
    complete: bool,
) -> Placement:
    """Find the base tensor of every site under one prefix rule for the whole adapter.

    Raises:
        AmbiguousName: Several rules fit, and lead to different tensors.
        UnclaimedKey: Some site has no base tensor under the best rule.
        BindingError: A full checkpoint does not cover the base.
    """
    required = [site for site in sites if not _may_be_new(site, config)]
    rule = _choose(required, base, adapter, base_config)
    placed = {rule(site.target): site for site in sites if rule(site.target) in base}
    new = {site.target: site.factors["value"] for site in sites if rule(site.target) not in base}
    same = {name: site.factors["value"] for name, site in placed.items() if _is_counter(site, adapter)}
    if len(placed) + len(new) != len(sites):
        raise AmbiguousName(
            f"{listed(placed)} — several adapter tensors land on one base tensor",
            expected="one site for each base tensor",
            got=f"{len(sites)} sites on {len(placed)} base tensors under the rule {rule}",
            hint="the adapter mixes names with and without a prefix",
        )
    problems: list[WiseftError] = [
        _new_problem(name, adapter[key]) for name, key in new.items() if not adapter[key].is_float
    ]
    problems += [
        _counter_problem(name, base[name], adapter[key]) for name, key in same.items() if base[name] != adapter[key]
    ]
    if complete:
        problems += _uncovered(base, placed)
    WiseftError.raise_all(problems)
    return Placement(placed, new, same, rule)


def _may_be_new(site: Site, config: AdapterConfig | None) -> bool:
    """Whether the base may lack this tensor: a whole tensor of a module that was saved with the adapter."""
    if config is None or set(site.factors) != {"value"}:
        return False
    saved = (*config.modules_to_save, *TASK_HEADS.get(config.task_type or "", ()))
    # PEFT's own test for modules_to_save has no dot boundary in front: ["head"] saves lm_head and all below it.
    here = f"{site.module}."
    return any(entry in here and f"{entry}." in here for entry in saved)


def _choose(
    required: Sequence[Site],
    base: Mapping[str, TensorSpec],
    adapter: Mapping[str, TensorSpec],
    base_config: Mapping[str, object] | None,
) -> Rule:
    """The one prefix rule that places every required site."""
    targets = {site.target for site in required}
    found = rules(targets, base)
    if len(found) > 1:
        fitting = [
            rule for rule in found if all(_plausible(site, base[rule(site.target)], adapter) for site in required)
        ]
        found = tuple(fitting) or found
    if len(found) == 1:
        return found[0]
    if found:
        raise AmbiguousName(
            f"{listed(targets)} — {len(found)} prefixes lead to different tensors of the base",
            expected="one prefix under which every adapter tensor has its base tensor",
            got=f"the rules {listed(found, most=5)}",
            hint="the base holds several towers with these names: give the adapter full names, or one tower as base",
        )
    rule = nearest_rule(targets, base)
    missing = [site for site in required if rule(site.target) not in base]
    guards.tied([rule(site.target) for site in missing], base, base_config)
    WiseftError.raise_all([_unclaimed(site, rule, base, position < 5) for position, site in enumerate(missing)])
    return rule


def _plausible(site: Site, spec: TensorSpec, adapter: Mapping[str, TensorSpec]) -> bool:
    """Whether a site's factors could belong to a weight of this shape, either way round."""
    shapes = {role: adapter[key].shape for role, key in site.factors.items()}
    if "value" in shapes and shapes["value"] != spec.shape:
        return False
    first = shapes.get("A") or shapes.get("embedding_A")
    second = shapes.get("B") or shapes.get("embedding_B")
    if site.method or not first or not second or not spec.shape:
        return True
    return sorted((math.prod(first[1:]), second[0])) == sorted((spec.shape[0], math.prod(spec.shape[1:])))


def _unclaimed(site: Site, rule: Rule, base: Mapping[str, TensorSpec], suggest: bool) -> WiseftError:
    """The refusal of a site without a base tensor, with the nearest names."""
    name, key = rule(site.target), next(iter(site.factors.values()))
    if rule(f"{site.module}.in_proj_weight") in base:
        return Unsupported(
            f"{name} — nn.MultiheadAttention is not supported yet",
            expected="an adapter on Linear, Embedding, Conv1d/2d/3d or transformers' Conv1D modules",
            got=f"adapter key {key}; the base has {rule(site.module)}.in_proj_weight",
            hint="merge this adapter with PEFT, or train it without that module",
        )
    near = suggestions(name, base) if suggest else []
    return UnclaimedKey(
        f"{key} — the base has no tensor {name}",
        expected="a base tensor for every adapter tensor",
        got=f"nothing of that name (prefix rule {rule})",
        hint=f"nearest names: {listed(near)}" if near else "is this the base that the adapter was trained on?",
    )


def _is_counter(site: Site, adapter: Mapping[str, TensorSpec]) -> bool:
    """Whether a site is a whole tensor of integers or codes: nothing to interpolate, so both sides must agree."""
    return set(site.factors) == {"value"} and not adapter[site.factors["value"]].is_float


def _counter_problem(name: str, base: TensorSpec, tuned: TensorSpec) -> WiseftError:
    return ShapeMismatch(
        f"{name} — an integer tensor differs in dtype or shape",
        expected=f"{base} as in the base",
        got=f"{tuned}",
        hint="integers cannot be interpolated: both sides must hold the same",
    )


def _new_problem(name: str, spec: TensorSpec) -> WiseftError:
    return DtypeMismatch(
        f"{name} — a new tensor that is not a float",
        expected="new tensors of a float dtype",
        got=f"{spec}",
        hint="the base does not have this tensor: is this the base that the adapter was trained on?",
    )


def _uncovered(base: Iterable[str], placed: Mapping[str, Site]) -> list[WiseftError]:
    """Base tensors that a full checkpoint does not have."""
    missing = [name for name in base if name not in placed]
    if not missing:
        return []
    return [
        BindingError(
            f"{listed(missing)} — the tuned checkpoint lacks {len(missing)} tensor(s) of the base",
            expected="a full fine-tuned checkpoint with every tensor of the base",
            got=f"{len(placed)} of {len(placed) + len(missing)}",
            hint="is this the checkpoint that was tuned from this base? An adapter needs its adapter_config.json",
        )
    ]
