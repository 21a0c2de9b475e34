"""Square weights: stored (out, in) or (in, out)? Shapes cannot tell, so something else must, or the weight is refused.

Joint floor: names, specs and configs only. Only transformers' Conv1D is stored (in, out); a handful of model types use
it, always for modules of the same few names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from wiseft_core.config import AdapterConfig
from wiseft_core.errors import UndecidableOrientation
from wiseft_core.layouts import LINEAR, TRANSPOSED, Layout
from wiseft_core.ruled import Placed
from wiseft_core.sites import Site
from wiseft_core.types import TensorSpec

CONV1D_TYPES: Final = frozenset(
    {"gpt2", "gpt-sw3", "openai-gpt", "imagegpt", "decision_transformer", "clvp", "clvp_decoder"}
)
"""`model_type`s that use transformers' Conv1D (read off transformers 5.23; a test holds them to the table)."""
CONV1D_MODULES: Final = frozenset({"c_attn", "q_attn", "c_proj", "c_fc"})
"""The names of their Conv1D modules; gpt_bigcode and others use the same names for Linear."""


TRANSPOSED_EXPERTS: Final = frozenset({"gpt_oss", "openai_privacy_filter", "aria"})
"""`model_type`s whose experts' module says that its stacks are (experts, in, out) (read off transformers 5.23)."""


class Orientation:
    """What is known of how this base stores its matrices: config.json first, then the adapter's other weights."""

    def __init__(
        self, model_type: str | None, seen: frozenset[tuple[bool, bool]], fan_in_fan_out: bool, version: str | None
    ) -> None:
        self.model_type, self.seen, self.fan_in_fan_out, self.version = model_type, seen, fan_in_fan_out, version

    @classmethod
    def of(
        cls,
        placed: Sequence[Placed],
        adapter: Mapping[str, TensorSpec],
        config: AdapterConfig | None,
        base_config: Mapping[str, object] | None,
    ) -> Orientation:
        """Gather the evidence: the model type, and which way round the adapter's non-square weights are."""
        seen = set()
        for one in placed:
            weight, key = one.landed.shape, None if one.site.method or one.packed else one.site.factors.get("A")
            if key is not None and len(weight) == 2 and weight[0] != weight[1]:
                seen.add((_leaf(one.site) in CONV1D_MODULES, adapter[key].shape[1:] == weight[:1]))
        said = (base_config or {}).get("model_type")
        return cls(
            said if isinstance(said, str) else None,
            frozenset(seen),
            bool(config is not None and config.fan_in_fan_out),
            config.peft_version if config is not None else None,
        )

    def choose(self, placed: Placed) -> Layout:
        """The layout of a square weight, as the model has it in memory.

        Raises:
            UndecidableOrientation: Neither config.json nor the adapter's other weights settle it.
        """
        site, named = placed.site, _leaf(placed.site) in CONV1D_MODULES
        if any(landing.across is None for landing in placed.landed.landings):
            raise self._undecided(placed, "a base that may store it either way round")
        if placed.packed:
            return self._of_experts(placed)
        if self.model_type is not None:
            return TRANSPOSED if named and self.model_type in CONV1D_TYPES else LINEAR
        kin = {across for like, across in self.seen if like == named}
        if len(kin) == 1 and (named or not self.fan_in_fan_out):
            return TRANSPOSED if kin.pop() else LINEAR
        if not kin and not named and not self.fan_in_fan_out:
            return LINEAR
        got = f"no config.json of the base, module {_leaf(site)!r}, fan_in_fan_out {self.fan_in_fan_out}"
        raise self._undecided(placed, got)

    def _of_experts(self, placed: Placed) -> Layout:
        """How PEFT of the adapter's version saw a stack of square matrices.

        Up to 0.18 it took the first axis of each for `in`; 0.19.0 had the test for `is_transposed` the wrong way
        round; since 0.19.1 the first is `out` unless the module says that its matrices are transposed.
        """
        numbers = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", self.version or "")
        if numbers is None or self.model_type is None:
            raise self._undecided(placed, f"peft_version {self.version}, model type {self.model_type}")
        version = tuple(int(number or 0) for number in numbers.groups())
        swapped = self.model_type in TRANSPOSED_EXPERTS
        if version < (0, 19, 0):
            return TRANSPOSED
        return LINEAR if swapped == (version == (0, 19, 0)) else TRANSPOSED

    def _undecided(self, placed: Placed, got: str) -> UndecidableOrientation:
        return UndecidableOrientation(
            f"{placed.name} — a square weight that may be stored (out, in) or (in, out)",
            expected="a model type, or another weight of the adapter, that settles it",
            got=got,
            hint='pass base_config={"model_type": ...}, or give the base as a folder with its config.json',
        )


def _leaf(site: Site) -> str:
    """The module's own name, without its path."""
    return site.module.rpartition(".")[2]
