"""Places: where each site lands, under one view of the base and one prefix for the whole adapter.

Joint floor: names, specs and configs only. Every view and prefix under which all sites have their place is tried; they
must agree on every byte. What merely looks alike is suggested in a refusal, and never taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from wiseft_core.config import AdapterConfig
from wiseft_core.errors import AmbiguousName, WiseftError, listed
from wiseft_core.naming.links import Link
from wiseft_core.naming.prefix import Rule, nearest_rule, rules
from wiseft_core.ruled import Placed, Placement, Ruled, is_unnamed, no_place, plausible
from wiseft_core.sites import Site, chain
from wiseft_core.types import TensorSpec
from wiseft_core.views import View

TASK_HEADS: Final[Mapping[str, tuple[str, ...]]] = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}
"""Heads that PEFT saves for these task types without listing them in modules_to_save."""
SUGGESTED: Final = 5
"""How many of the sites without a place are told the nearest names: it is slow where there are many."""


def place(
    sites: Sequence[Site], views: Sequence[View], adapter: Mapping[str, TensorSpec], config: AdapterConfig | None
) -> Placement:
    """Find the place of every site.

    Raises:
        AmbiguousName: Several rules place all sites, on different bytes.
        UnclaimedKey: Some site has no place under any rule.
    """
    required = [site for site in sites if not (_is_free(site) or may_be_new(site, config, views))]
    found: list[Placement] = []
    problems: list[WiseftError] = []
    for view in views:
        try:
            found += _under(view, sites, required, adapter, config)
        except WiseftError as error:
            problems.append(error)
    if not found:
        raise min(problems, key=lambda error: len(error.others))
    if len(found) > 1:
        found = [one for one in found if all(plausible(placed, adapter) for placed in one.placed)] or found
    effects = {tuple(map(_effect, one.placed)) for one in found}
    if len(effects) > 1:
        raise AmbiguousName(
            f"{listed(site.target for site in required)} — {len(effects)} prefixes lead to different base tensors",
            expected="one prefix under which every adapter tensor has its base tensor",
            got=f"the rules {listed({one.rule for one in found}, most=5)}",
            hint="the base holds several towers with these names: give the adapter full names, or one tower as base",
        )
    return found[0]


def _is_free(site: Site) -> bool:
    """Whether a site changes something only where the base has it."""
    return site.companion and "value" not in site.factors


def _effect(placed: Placed) -> tuple[object, ...]:
    """What a place comes to: which bytes, with which factors; for a square weight, which way round too."""
    turned = ((*one[:4], len(set(one.shape)) < 2 and one.across) for one in placed.landed.landings)
    return (placed.site.target, *turned)


def may_be_new(site: Site, config: AdapterConfig | None, views: Sequence[View]) -> bool:
    """Whether the base may lack this tensor: a whole tensor of a module that was saved with the adapter.

    Not if the base has a module of that name somewhere: then the name was meant to be found. With bias="all" PEFT saves
    the biases of what was made anew beside a head too, a pooler's for example: of those the base has nothing either.

    Args:
        site: The site.
        config: The adapter's config.
        views: The ways to see the base.
    """
    if config is None or set(site.factors) != {"value"}:
        return False
    parts, outer = site.module.split("."), chain(site.module)
    for entry in (*config.modules_to_save, *TASK_HEADS.get(config.task_type or "", ())):
        saved = [part for path, part in zip(outer, parts, strict=True) if path.endswith(entry)]
        if any(not any(part in view.words for view in views) for part in saved):
            return True
    if config.bias != "all" or site.parameter != "bias" or len(parts) < 2 or any(part.isdigit() for part in parts):
        return False
    return not any(view.holds(outer[-2]) for view in views)


def _under(
    view: View,
    sites: Sequence[Site],
    required: Sequence[Site],
    adapter: Mapping[str, TensorSpec],
    config: AdapterConfig | None,
) -> list[Placement]:
    """Every placement of all sites in one view, each under another prefix.

    Raises:
        UnclaimedKey: There is none.
        Unsupported, AmbiguousName: There is one, which cannot be followed.
    """
    links = {site.target: view.links(site.target) for site in sites}
    names = {link.parameter for site in required for link in links[site.target]}
    anchors = _Anchors(view, {link.parameter for site in required if is_unnamed(site) for link in links[site.target]})
    found = rules(names, anchors)
    if not found:
        raise _unclaimed(required, links, nearest_rule(names, anchors), anchors, view)
    optional = {site.target for site in sites} - {site.target for site in required}
    wanted = tuple(f".{entry}" for entry in config.target_parameters) if config is not None else ()
    placements, problems = [], list[WiseftError]()
    for rule in found:
        try:
            placements.append(Ruled(rule, view, links, adapter, wanted).place(sites, optional))
        except WiseftError as error:
            problems.append(error)
    if not placements:
        raise problems[0]
    return placements


class _Anchors:
    """The names that a view has, and those of weights whose module it has, where keys may name only the module."""

    def __init__(self, view: View, unnamed: set[str]) -> None:
        self._view = view
        self._leaves = {name.rpartition(".")[2] for name in unnamed}

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        if name in self._view.parameters:
            return True
        module, _, leaf = name.rpartition(".")
        return bool(module) and leaf in self._leaves and module in self._view.modules

    def __iter__(self) -> Iterator[str]:
        return iter(self._view.parameters)

    def __len__(self) -> int:
        return len(self._view.parameters)


def _unclaimed(
    required: Sequence[Site], links: Mapping[str, tuple[Link, ...]], rule: Rule, anchors: _Anchors, view: View
) -> WiseftError:
    """The refusal of the sites that have no place under a rule, the one that places the most."""
    missing = [
        (site, name)
        for site in required
        for name in [rule(link.parameter) for link in links[site.target]][:1]
        if any(rule(link.parameter) not in anchors for link in links[site.target])
    ]
    problems = [
        no_place(site, name, view, str(rule), suggest=at < SUGGESTED) for at, (site, name) in enumerate(missing)
    ]
    problems[0].others = (*problems[1:],)
    return problems[0]
