"""Square weights: stored (out, in) or (in, out)? Shapes cannot tell, so something else must, or the weight is refused.

Joint floor: names, specs and configs only. Only transformers' Conv1D is stored (in, out); a handful of model types use
it, always for modules of the same few names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from wiseft_core.config import AdapterConfig
from wiseft_core.errors import UndecidableOrientation, listed
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


EXPERTS: Final = frozenset({
    "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts", "ffn_config",
})  # fmt: skip
"""What a config says that has experts."""


class Orientation:
    """What is known of how a model stores its matrices: its config.json, and the adapter's other weights.

    The two must not contradict each other. A config holds others, of a tower or a decoder: what it does not say of the
    module at hand is taken only where all that could be meant agree.
    """

    def __init__(
        self,
        types: frozenset[str],
        expert_types: frozenset[str],
        seen: frozenset[tuple[str, bool]],
        config: AdapterConfig | None,
    ) -> None:
        self.types, self.expert_types, self.seen = types, expert_types, seen
        self.fan_in_fan_out = bool(config is not None and config.fan_in_fan_out)
        self.version = config.peft_version if config is not None else None
        self.trained_type = config.trained_type if config is not None else None

    @classmethod
    def of(
        cls,
        placed: Sequence[Placed],
        adapter: Mapping[str, TensorSpec],
        config: AdapterConfig | None,
        base_config: Mapping[str, object] | None,
    ) -> Orientation:
        """Gather the evidence: the model types, and which way round the adapter's non-square weights are."""
        seen = set()
        for one in placed:
            weight, key = one.landed.shape, None if one.site.method else one.site.factors.get("A")
            if key is not None and len(weight) == 2 and weight[0] != weight[1]:
                seen.add((_sort(one), adapter[key].shape[1:] == weight[:1]))
        configs = list(_configs(base_config or {}))
        with_experts = [each for each in configs if EXPERTS & each.keys()] or configs
        return cls(_types(configs), _types(with_experts), frozenset(seen), config)

    def choose(self, placed: Placed) -> Layout:
        """The layout of a square weight, as the model has it in memory.

        Raises:
            UndecidableOrientation: Neither config.json nor the adapter's other weights settle it, or they disagree.
        """
        if any(landing.across is None for landing in placed.landed.landings):
            raise self._undecided(placed, "a base that may store it either way round")
        sort = _sort(placed)
        told = self._told(sort)
        kin = {TRANSPOSED if across else LINEAR for like, across in self.seen if like == sort}
        settled = kin & told if kin and told else kin or told
        if len(settled) == 1 and (told or sort == CONV1D or not self.fan_in_fan_out):
            return settled.pop()
        if not kin and not told and sort == PLAIN and not self.fan_in_fan_out:
            return LINEAR
        raise self._undecided(
            placed,
            f"model types {listed(self.types, most=9) or 'not known'}, module {_leaf(placed.site)!r}, "
            f"fan_in_fan_out {self.fan_in_fan_out}, peft_version {self.version}",
        )

    def _told(self, sort: str) -> set[Layout]:
        """What the model types say of a sort of weights; nothing where they do not."""
        if sort != STACK:
            return {TRANSPOSED if sort == CONV1D and each in CONV1D_TYPES else LINEAR for each in self.types}
        if self.trained_type is not None and self.expert_types and self.trained_type not in self.types:
            return set()  # trained on another sort of model: its experts may lie the other way round
        return {layout for each in self.expert_types if (layout := self._of_experts(each)) is not None}

    def _of_experts(self, model_type: str) -> Layout | None:
        """How PEFT of the adapter's version saw a stack of square matrices; None where the version is not known.

        Up to 0.18 it took the first axis of each for `in`; 0.19.0 had the test for `is_transposed` the wrong way
        round; since 0.19.1 the first is `out` unless the module says that its matrices are transposed.
        """
        numbers = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", self.version or "")
        if numbers is None:
            return None
        version = tuple(int(number or 0) for number in numbers.groups())
        swapped = model_type in TRANSPOSED_EXPERTS
        if version < (0, 19, 0):
            return TRANSPOSED
        return LINEAR if swapped == (version == (0, 19, 0)) else TRANSPOSED

    def _undecided(self, placed: Placed, got: str) -> UndecidableOrientation:
        return UndecidableOrientation(
            f"{placed.name} — a square weight that may be stored (out, in) or (in, out)",
            expected="a model type, or another weight of the adapter, that settles it, and no two that disagree",
            got=got,
            hint='pass base_config={"model_type": ...}, or give the base as a folder with its config.json',
        )


PLAIN, CONV1D, STACK = "plain", "conv1d", "stack"
"""Sorts of weights that are stored one way in one model."""


def _sort(placed: Placed) -> str:
    """Which sort of weight a site changes."""
    if placed.packed:
        return STACK
    return CONV1D if _leaf(placed.site) in CONV1D_MODULES else PLAIN


def _configs(config: Mapping[str, object]) -> Iterator[Mapping[str, object]]:
    """A config, and all those inside it."""
    yield config
    for value in config.values():
        if isinstance(value, Mapping):
            yield from _configs(value)


def _types(configs: Iterable[Mapping[str, object]]) -> frozenset[str]:
    """The model types that they name; "" for one that says it has none."""
    return frozenset(said for each in configs if isinstance(said := each.get("model_type"), str))


def _leaf(site: Site) -> str:
    """The module's own name, without its path."""
    return site.module.rpartition(".")[2]
