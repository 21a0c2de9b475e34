"""Square weights: stored (out, in) or (in, out)? Shapes cannot tell, so something else must, or the weight is refused.

Joint floor: names, specs and configs only. Only transformers' Conv1D is stored (in, out); a handful of model types use
it, always for modules of the same few names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from wiseft_core.config import AdapterConfig
from wiseft_core.errors import UndecidableOrientation
from wiseft_core.layouts import LINEAR, TRANSPOSED, Layout
from wiseft_core.sites import Site
from wiseft_core.types import TensorSpec

CONV1D_TYPES: Final = frozenset(
    {"gpt2", "gpt-sw3", "openai-gpt", "imagegpt", "decision_transformer", "clvp", "clvp_decoder"}
)
"""`model_type`s that use transformers' Conv1D (read off transformers 5.23; a test holds them to the table)."""
CONV1D_MODULES: Final = frozenset({"c_attn", "q_attn", "c_proj", "c_fc"})
"""The names of their Conv1D modules; gpt_bigcode and others use the same names for Linear."""


class Orientation:
    """What is known of how this base stores its matrices: config.json first, then the adapter's other weights."""

    def __init__(self, model_type: str | None, seen: frozenset[tuple[bool, bool]], fan_in_fan_out: bool) -> None:
        self.model_type, self.seen, self.fan_in_fan_out = model_type, seen, fan_in_fan_out

    @classmethod
    def of(
        cls,
        sites: Mapping[str, Site],
        base: Mapping[str, TensorSpec],
        adapter: Mapping[str, TensorSpec],
        config: AdapterConfig | None,
        base_config: Mapping[str, object] | None,
    ) -> Orientation:
        """Gather the evidence: the model type, and which way round the adapter's non-square weights are."""
        seen = set()
        for name, site in sites.items():
            weight, key = base[name].shape, None if site.method else site.factors.get("A")
            if key is not None and len(weight) == 2 and weight[0] != weight[1]:
                seen.add((_leaf(site) in CONV1D_MODULES, adapter[key].shape[1:] == weight[:1]))
        said = (base_config or {}).get("model_type")
        return cls(
            said if isinstance(said, str) else None,
            frozenset(seen),
            bool(config is not None and config.fan_in_fan_out),
        )

    def choose(self, site: Site, name: str) -> Layout:
        """The layout of a square weight.

        Raises:
            UndecidableOrientation: Neither config.json nor the adapter's other weights settle it.
        """
        named = _leaf(site) in CONV1D_MODULES
        if self.model_type is not None:
            return TRANSPOSED if named and self.model_type in CONV1D_TYPES else LINEAR
        kin = {across for like, across in self.seen if like == named}
        if len(kin) == 1 and (named or not self.fan_in_fan_out):
            return TRANSPOSED if kin.pop() else LINEAR
        if not kin and not named and not self.fan_in_fan_out:
            return LINEAR
        raise UndecidableOrientation(
            f"{name} — a square weight that may be stored (out, in) or (in, out)",
            expected="a model type, or another weight of the adapter, that settles it",
            got=f"no config.json of the base, module {_leaf(site)!r}, fan_in_fan_out {self.fan_in_fan_out}",
            hint='pass base_config={"model_type": ...}, or give the base as a folder with its config.json',
        )


def _leaf(site: Site) -> str:
    """The module's own name, without its path."""
    return site.module.rpartition(".")[2]
