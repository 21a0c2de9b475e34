"""The scene: all that the steps of a site are decided from, besides the site itself.

Joint floor: specs and configs only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from wiseft_core.config import AdapterConfig
from wiseft_core.families import Family
from wiseft_core.layouts import Shape
from wiseft_core.methods import family_of
from wiseft_core.orientation import Orientation
from wiseft_core.ruled import Placed
from wiseft_core.sites import Site
from wiseft_core.types import TensorSpec
from wiseft_core.vocabulary import is_resized


@dataclass(frozen=True, slots=True)
class Scene:
    """All that steps are decided from, besides the site itself.

    A model has thousands of sites and a handful of kinds: what was found of one is `known` of all that are like it.
    `replaced` are the names that the adapter has copies of, `untied` those of one tensor that become two.
    """

    adapter: Mapping[str, TensorSpec]
    config: AdapterConfig | None
    orientation: Callable[[str], Orientation]
    ranks: Mapping[str, int]
    families: Mapping[str, Family]
    base: Mapping[str, TensorSpec]
    replaced: frozenset[str]
    untied: frozenset[str] = frozenset()
    known: dict[tuple[object, ...], Any] = field(default_factory=dict)

    def family(self, site: Site, factors: Mapping[str, str]) -> str:
        """`family_of`, worked out once for sites with the same factors."""
        key = (site.method, site.parameter, *site.factors)
        if key not in self.known:
            self.known[key] = family_of(site, factors.keys(), self.config, self.families)
        return str(self.known[key])

    def kind(self, placed: Placed, factors: Mapping[str, str]) -> tuple[object, ...]:
        """All that decides the step of a site besides its family and config, but for names."""
        site, cuts = placed.site, [landing.cut for landing in placed.landed.landings]
        parts = (
            len(cuts) > 1,
            any(cut.out for cut in cuts),
            any(cut.into for cut in cuts),
            placed.packed and cuts[0].experts,
        )
        shapes = [(role, self.adapter[key]) for role, key in factors.items()]
        weight, rank = self.weight(placed), self.ranks.get(site.module)
        return (site.parameter, site.companion, site.twice, *parts, weight, rank, *shapes)

    def weight(self, placed: Placed) -> Shape:
        """The shape of the weight that a site changes: of a resized vocabulary, that of the saved copy."""
        shape, key = placed.landed.shape, placed.site.factors.get("value")
        saved = self.adapter[key].shape if key is not None and not placed.packed else shape
        return saved if is_resized(placed.site.target, shape, saved) else shape
