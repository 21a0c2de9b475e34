"""One view of a base under one prefix rule: the place that each site has there, and why one has none.

Joint floor: names, specs and configs only.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from wiseft_core.errors import AmbiguousName, UnclaimedKey, Unsupported, WiseftError, listed
from wiseft_core.landings import Astray, Landed, land
from wiseft_core.layouts import Shape
from wiseft_core.naming.links import Link
from wiseft_core.naming.prefix import EXACT, Rule, suggestions
from wiseft_core.sites import Site
from wiseft_core.types import TensorSpec
from wiseft_core.views import View

PARAMETERS: Final = 6
"""Of how many parameters of one module it is tried which of them its keys mean."""
IN_PROJ: Final = "in_proj_weight"
"""The one matrix that torch's attention has for queries, keys and values."""


class Placed(NamedTuple):
    """A site with its place.

    Attributes:
        site: The site.
        landed: The shape of the weight that its factors change, and the runs that hold it.
        packed: Whether its factors pack the matrices of a stack.
        leaf: The parameter's own name, where the site's keys name its module alone.
    """

    site: Site
    landed: Landed
    packed: bool = False
    leaf: str = ""

    @property
    def name(self) -> str:
        """The base tensor that it lands on, the first of them."""
        return self.landed.landings[0].name

    @property
    def path(self) -> str:
        """What the patterns of a config are matched against: the module's path, or the parameter's.

        PEFT wraps torch's attention as one module: its output projection has no path of its own.
        """
        if self.site.twice:
            return self.site.module.rpartition(".")[0]
        return f"{self.site.module}.{self.leaf}" if self.leaf else self.site.module

    def unpacked(self, role: str, shape: Shape) -> Shape:
        """The shape that a factor has for one matrix of the stack."""
        experts = self.landed.landings[0].cut.experts
        if not self.packed or not experts or not shape:
            return shape
        if role == "value":
            return shape[1:] if shape[0] == experts else shape
        first, *rest = shape
        if role == "A":
            return (first // experts, *rest) if first % experts == 0 else shape
        return (first, *(size // experts for size in rest)) if rest and rest[0] % experts == 0 else shape


@dataclass(frozen=True, slots=True)
class Placement:
    """Where every site lands, new names, and the rule: how names of the adapter became those of the base."""

    placed: tuple[Placed, ...]
    new: Mapping[str, str] = field(default_factory=dict)
    rule: str = str(EXACT)


def is_unnamed(site: Site) -> bool:
    """Whether a site's keys may name its module alone, and not the parameter: PEFT's wrapper of parameters."""
    return not site.method and site.factors.keys() <= {"A", "B"}


def plausible(placed: Placed, adapter: Mapping[str, TensorSpec]) -> bool:
    """Whether a site's factors could belong to a weight of this shape, either way round."""
    site, landed, packed, _ = placed
    shapes = {role: adapter[key].shape for role, key in site.factors.items()}
    experts = landed.landings[0].cut.experts
    if "value" in shapes and shapes["value"] != ((experts, *landed.shape) if packed else landed.shape):
        return False
    first = shapes.get("A") or shapes.get("embedding_A")
    second = shapes.get("B") or shapes.get("embedding_B")
    if site.method or not first or not second or not landed.shape:
        return True
    if packed and (first[0] % experts or first[:1] != second[1:]):
        return False
    return sorted((math.prod(first[1:]), second[0])) == sorted((landed.shape[0], math.prod(landed.shape[1:])))


class Ruled(NamedTuple):
    """One view under one prefix rule; `wanted` are the ends of the parameters that were tuned without their module."""

    rule: Rule
    view: View
    links: Mapping[str, tuple[Link, ...]]
    adapter: Mapping[str, TensorSpec]
    wanted: tuple[str, ...]

    def place(self, sites: Sequence[Site], optional: Collection[str]) -> Placement:
        """The place of every site; `optional` are the targets that the base may lack.

        Raises:
            Unsupported: The base cannot be followed at one of them.
            AmbiguousName: Several sites land on the same bytes, or one has several parameters that fit.
        """
        placed: list[Placed] = []
        new: dict[str, str] = {}
        grouped: defaultdict[str, list[Site]] = defaultdict(list)
        deep = {site.module for site in sites if site.depth or (is_unnamed(site) and self._is_wanted(site.target))}
        problems: list[WiseftError] = []
        for site in sites:
            links = self._links(site.target)
            if site.module not in deep and all(link.parameter in self.view.parameters for link in links):
                placed += self._landed(site, links, problems)
            elif is_unnamed(site):
                grouped[site.module].append(site)
            elif site.target not in optional:
                problems.append(no_place(site, links[0].parameter, self.view, str(self.rule)))
            elif not site.companion:
                new[site.target] = site.factors["value"]
        for group in grouped.values():
            try:
                placed += self._unwrapped(group)
            except WiseftError as error:
                problems.append(error)
        WiseftError.raise_all([*problems, *_overlaps(placed)])
        rule = str(self.rule) if self.view.name == "disk" else f"{self.view.name} {self.rule}"
        return Placement(tuple(placed), new, rule)

    def _links(self, target: str) -> tuple[Link, ...]:
        """What a site's name is in this view, under the rule."""
        links, names = self.links[target], [self.rule(link.parameter) for link in self.links[target]]
        if all(link.parameter == name for link, name in zip(links, names, strict=True)):
            return links
        return tuple(link._replace(parameter=name) for link, name in zip(links, names, strict=True))

    def _landed(self, site: Site, links: Sequence[Link], problems: list[WiseftError]) -> list[Placed]:
        """A site that has its parameters, placed; none, and a problem, where these cannot be followed."""
        packed = "value" in site.factors and len(links) == 1 and links[0].expert is None
        packed = packed and any(held.expert is not None for held in self.view.parameters[links[0].parameter].held)
        try:
            return [Placed(site, land(links, self.view.parameters, packed=packed), packed)]
        except Astray as astray:
            problems.append(_astray(site, astray))
            return []

    def _is_wanted(self, name: str) -> bool:
        """Whether the config lists a parameter among those that were tuned without their module."""
        return f".{name}".endswith(self.wanted)

    def _unwrapped(self, group: Sequence[Site]) -> list[Placed]:
        """Sites whose keys name a module alone: the shapes say which of its parameters each of them changes."""
        (link,) = self._links(group[0].target)[:1]
        module = link.parameter.rpartition(".")[0]
        held = self.view.modules.get(module, ())
        said = {name for name in held if self._is_wanted(name)}
        names = [name for name in held if name in said or name.rpartition(".")[2] == IN_PROJ]
        options: list[list[Placed]] = []
        for site in group:
            options.append([])
            for name in names:
                packed = len(self.view.parameters[name].shape) == 3
                try:
                    landed = land([Link(name)], self.view.parameters, packed=packed)
                except Astray as astray:
                    raise _astray(site, astray) from astray
                placed = Placed(site, landed, packed, name.rpartition(".")[2] if name in said else "")
                if plausible(placed, self.adapter):
                    options[-1].append(placed)
        possible = len(group) <= len(names) <= PARAMETERS
        chosen = [one for one in itertools.product(*options) if _are_apart(one)] if possible else []
        if len(chosen) != 1:
            raise _unwrapped_problem(group, names, len(chosen), self)
        return list(chosen[0])


def _are_apart(placed: Sequence[Placed]) -> bool:
    """Whether each of the sites has another parameter."""
    runs = [(one.landed.landings[0].name, one.landed.landings[0].start) for one in placed]
    return len(set(runs)) == len(runs)


def _overlaps(placed: Sequence[Placed]) -> list[WiseftError]:
    """A refusal for each base tensor of which two sites claim the same bytes."""
    runs: defaultdict[str, list[tuple[int, int, str]]] = defaultdict(list)
    for one in placed:
        for landing in one.landed.landings:
            end = landing.start + math.prod(landing.shape)
            runs[landing.name].append((landing.start, end, one.site.target))
    problems: list[WiseftError] = []
    for name, claims in runs.items():
        claims.sort()
        twice = [(left[2], right[2]) for left, right in itertools.pairwise(claims) if right[0] < left[1]]
        if twice:
            problems.append(
                AmbiguousName(
                    f"{name} — several adapter tensors land on one base tensor",
                    expected="one site for each base tensor, or each its own part of it",
                    got=f"{listed(set(itertools.chain(*twice)))}",
                    hint="the adapter mixes names with and without a prefix, or old names and new ones",
                )
            )
    return problems


def _astray(site: Site, why: Astray) -> Unsupported:
    """The refusal of a site whose parameter cannot be followed to the base's bytes."""
    return Unsupported(
        f"{site.target} — the base stores this in a form that is not supported",
        expected="a parameter whose parts lie in the base as they are",
        got=f"{why}",
        hint="load the base with transformers and save it with save_original_format=False, then use that as base",
    )


def _unwrapped_problem(group: Sequence[Site], names: Sequence[str], count: int, ruled: Ruled) -> WiseftError:
    """The refusal of keys that name a module alone, and have no one parameter that they fit."""
    keys = [key for site in group for key in site.factors.values()]
    shapes = [f"{name} {list(ruled.view.parameters[name].shape)}" for name in names]
    got = f"{len(group)} pair(s) of factors for {listed(shapes, most=9) or 'no parameter of it'}"
    if count:
        return AmbiguousName(
            f"{group[0].module} — the keys do not say which parameter they change, and {count} ways fit",
            expected="shapes of which only one way fits",
            got=got,
            hint="merge this adapter with PEFT, which knows the order of the module's parameters",
        )
    listed_ones = [entry.removeprefix(".") for entry in ruled.wanted]
    return UnclaimedKey(
        f"{listed(keys)} — the base has no tensor for them",
        expected=f"{group[0].target}, or parameters of the module that target_parameters lists and that fit",
        got=f"{got}; target_parameters: {listed(listed_ones, most=9) or 'none'}",
        hint=hint_of(group[0].target, ruled.view.parameters),
    )


def no_place(site: Site, name: str, view: View, rule: str, *, suggest: bool = True) -> UnclaimedKey:
    """The refusal of a site whose name the base does not have."""
    return UnclaimedKey(
        f"{next(iter(site.factors.values()))} — the base has no tensor {name}",
        expected="a base tensor for every adapter tensor",
        got=f"nothing of that name (prefix rule {rule}{', names as in memory' * (view.name == 'memory')})",
        hint=hint_of(name, view.parameters, suggest=suggest),
    )


def hint_of(name: str, known: Mapping[str, object], *, suggest: bool = True) -> str:
    """What to look at: the nearest names, where there are any."""
    near = suggestions(name, known) if suggest else []
    return f"nearest names: {listed(near)}" if near else "is this the base that the adapter was trained on?"
