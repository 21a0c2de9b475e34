"""Pairs of mixtures of experts: parameters that PEFT wraps whole, and adapters of one expert each, of older days."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from pairs.formulas import SCALE
from pairs.pair import Pair, State, lora

RANK = 4
MIXTRAL = {"w1": ("gate_up_proj", 0), "w3": ("gate_up_proj", 1), "w2": ("down_proj", None)}
QWEN = {"gate_proj": ("gate_up_proj", 0), "up_proj": ("gate_up_proj", 1), "down_proj": ("down_proj", None)}


def singles(
    base: State, *, old: str, sites: Mapping[str, tuple[str, int | None]], dense: tuple[str, ...] = ()
) -> tuple[State, State]:
    """Factors for every expert's own linear layers, and the fused parameters that they mean.

    `old` is the module of the experts in the older code; a site's home is a parameter of "mlp.experts" and which half
    of its rows. `dense` are further linear weights.
    """
    draw = torch.Generator().manual_seed(5)
    adapter: State = {}
    state = {name: value.clone() for name, value in base.items()}

    def factors(module: str, rows: int, columns: int) -> torch.Tensor:
        """Write the two factors, give the delta."""
        first = 0.2 * torch.randn(RANK, columns, generator=draw)
        second = 0.2 * torch.randn(rows, RANK, generator=draw)
        adapter[f"{module}.lora_A.weight"], adapter[f"{module}.lora_B.weight"] = first, second
        return SCALE * second @ first

    for name, value in state.items():
        if any(name.endswith(f"{module}.weight") for module in dense):
            value += factors(name.removesuffix(".weight"), *value.shape)
    for stem in [name.removesuffix(".down_proj") for name in base if name.endswith("experts.down_proj")]:
        for leaf, (home, half) in sites.items():
            for number, matrix in enumerate(state[f"{stem}.{home}"]):
                part = matrix if half is None else matrix.chunk(2)[half]
                module = stem.replace("mlp.experts", old)
                part += factors(f"{module}.{number}.{leaf}", *part.shape)
    return adapter, state


def per_expert(
    name: str, model: str, old: str, sites: Mapping[str, tuple[str, int | None]], *dense: str, **more: Any
) -> Pair:
    """A case of `singles`."""
    make: Callable[[State], tuple[State, State]] = partial(singles, old=old, sites=sites, dense=dense)
    return Pair(
        name,
        model,
        lora(*sites, *dense),
        by_hand=make,
        fault="PEFT 0.21 has no such modules any more; the adapter is of transformers 4",
        **more,
    )


def wrapped(base: State, *, first_is_out: bool) -> tuple[State, State]:
    """Factors for the square down_proj [E, a, b] as PEFT's wrapper packs them: expert-slowest in A, fastest in B."""
    draw = torch.Generator().manual_seed(6)
    adapter: State = {}
    state = {name: value.clone() for name, value in base.items()}
    for name in [name for name in base if name.endswith("experts.down_proj")]:
        experts, one, two = base[name].shape
        columns, rows = (two, one) if first_is_out else (one, two)
        first = 0.2 * torch.randn(experts * RANK, columns, generator=draw)
        second = 0.2 * torch.randn(rows, RANK * experts, generator=draw)
        module = name.removesuffix(".down_proj")
        adapter[f"{module}.lora_A.weight"], adapter[f"{module}.lora_B.weight"] = first, second
        for expert in range(experts):
            delta = SCALE * second[:, expert::experts] @ first[expert * RANK : (expert + 1) * RANK]
            state[name][expert] += delta if first_is_out else delta.T
    return adapter, state


def square(name: str, model: str, version: str, *, first_is_out: bool) -> Pair:
    """A case of `wrapped`: only the version of PEFT says which axis of the parameter its `in` is."""
    return Pair(
        name,
        model,
        {"r": RANK, "lora_alpha": 8, "target_parameters": ["mlp.experts.down_proj"], "peft_version": version},
        by_hand=partial(wrapped, first_is_out=first_is_out),
        fault="PEFT up to 0.18 took the first axis for `in`, 0.19.0 had its test the wrong way round (its tags)",
    )


def fused(experts: str, *more: str, **options: object) -> dict[str, object]:
    """Arguments that wrap both of a module's parameters."""
    names = [f"{experts}.gate_up_proj", f"{experts}.down_proj"]
    return lora(*(more or ("q_proj",)), target_parameters=names, **options)


TABLE = [
    Pair("mixtral_parameters", "mixtral", fused("mlp.experts")),
    Pair("mixtral_down_only", "mixtral", lora("q_proj", target_parameters=["mlp.experts.down_proj"])),
    Pair(
        "mixtral_up_only_rslora",
        "mixtral",
        lora("v_proj", target_parameters=["mlp.experts.gate_up_proj"], use_rslora=True),
    ),
    per_expert("mixtral_v4", "mixtral", "block_sparse_moe.experts", MIXTRAL, "q_proj"),
    per_expert("mixtral_v4_w1_alone", "mixtral", "block_sparse_moe.experts", {"w1": MIXTRAL["w1"]}),
    per_expert("mixtral_v4_w2", "mixtral", "block_sparse_moe.experts", {"w2": MIXTRAL["w2"]}, "v_proj"),
    Pair("qwen2_moe_parameters", "qwen2_moe", fused("mlp.experts", "shared_expert.gate_proj", "o_proj")),
    per_expert("qwen2_moe_v4", "qwen2_moe", "mlp.experts", QWEN, "o_proj"),
    Pair(
        "qwen3_moe_router",
        "qwen3_moe",
        lora("q_proj", target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.gate.weight"]),
    ),
    per_expert("qwen3_moe_v4", "qwen3_moe", "mlp.experts", QWEN, "mlp.gate"),
    Pair("gpt_oss_square", "gpt_oss", fused("mlp.experts")),
    Pair("gpt_oss_wide", "gpt_oss_wide", fused("mlp.experts", "q_proj", "k_proj")),
    Pair("llama4", "llama4", fused("feed_forward.experts")),
    Pair("granitemoe", "granitemoe", fused("block_sparse_moe.experts")),
    Pair("deepseek_v3", "deepseek_v3", fused("mlp.experts", "q_a_proj", "kv_b_proj", "o_proj")),
    Pair(
        "deepseek_v3_all",
        "deepseek_v3",
        lora("q_a_proj", "gate_proj", "up_proj", "down_proj"),
        fault="PEFT rewrites the targets to parameters, and leaves the dense layers without: the file is the truth",
    ),
    per_expert(
        "deepseek_v3_v4",
        "deepseek_v3",
        "mlp.experts",
        QWEN,
        "q_b_proj",
        "shared_experts.down_proj",
        "layers.0.mlp.down_proj",
    ),
    Pair("olmoe", "olmoe", fused("mlp.experts", "k_proj")),
    per_expert("olmoe_v4", "olmoe", "mlp.experts", QWEN, "k_proj"),
    Pair("mixtral_square", "mixtral_square", fused("mlp.experts")),
    square("mixtral_square_peft_0.18", "mixtral_square", "0.18.1", first_is_out=False),
    square("mixtral_square_peft_0.19.0", "mixtral_square", "0.19.0", first_is_out=False),
    square("mixtral_square_peft_0.19.1", "mixtral_square", "0.19.1", first_is_out=True),
    square("gpt_oss_square_peft_0.18", "gpt_oss", "0.18.1", first_is_out=False),
    square("gpt_oss_square_peft_0.19.0", "gpt_oss", "0.19.0", first_is_out=True),
    Pair(
        "qwen3_vl_moe_hub_base",
        "qwen3_vl_moe",
        fused("mlp.experts"),
        turn=("experts.gate_up_proj", "experts.down_proj"),
        formats=("original",),
    ),
    Pair("qwen3_vl_moe", "qwen3_vl_moe", fused("mlp.experts", "q_proj", "attn.qkv")),
]
