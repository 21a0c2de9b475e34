"""Low-rank methods: their cases against PEFT, their naive oracles, and their samples for the contract."""

from __future__ import annotations

from typing import Any

import numpy as np
import peft
import torch
from contract import Maker
from peft.tuners.lora.config import BdLoraConfig, KasaConfig, MontecloraConfig, VeloraConfig
from toys import gpt2, toy

LINEAR = ["q_proj", "up"]
LORA = {"target_modules": LINEAR, "r": 4, "lora_alpha": 7}
CASES: dict[str, tuple[Any, ...]] = {
    "delora": (peft.DeloraConfig, {"target_modules": LINEAR, "r": 3, "rank_pattern": {"up": 2}, "delora_lambda": 4}),
    "delora_short": (peft.DeloraConfig, {"target_modules": LINEAR, "r": 3}, toy, 8, 1e-5),  # norms below the least
    "gralora": (peft.GraloraConfig, {"target_modules": LINEAR, "r": 4, "gralora_k": 2, "alpha": 7}),
    "gralora_hybrid": (
        peft.GraloraConfig,
        {"target_modules": LINEAR, "r": 4, "gralora_k": 4, "alpha": 7, "hybrid_r": 3},
    ),
    "gralora_gpt2": (
        peft.GraloraConfig,
        {"target_modules": ["c_attn", "c_fc", "c_proj"], "r": 6, "gralora_k": 2, "alpha": 7, "hybrid_r": 3},
        gpt2,
    ),
    "beft": (peft.BeftConfig, {"target_modules": LINEAR}),
    "tinylora": (peft.TinyLoraConfig, {"target_modules": [*LINEAR, "emb"], "r": 3, "u": 5, "weight_tying": 1.0}),
    "tinylora_gpt2": (
        peft.TinyLoraConfig,
        {"target_modules": ["c_attn", "c_fc", "c_proj", "wte"], "r": 3, "u": 5, "weight_tying": 1.0},
        gpt2,
    ),
    "unilora": (
        peft.UniLoraConfig,
        {"target_modules": LINEAR, "r": 3, "theta_d_length": 50, "save_indices": True},
    ),
    "unilora_gpt2": (
        peft.UniLoraConfig,
        {"target_modules": ["c_attn", "c_fc", "c_proj"], "r": 3, "theta_d_length": 50, "save_indices": True},
        gpt2,
    ),
    "supertuning": (peft.SupertuningConfig, {"target_modules": LINEAR, "sparsity": 0.8}),
    "supertuning_smallest": (peft.SupertuningConfig, {"target_modules": LINEAR, "sparsity": 0.8, "select_top": False}),
    "supra": (peft.SupertuningConfig, {"target_modules": LINEAR, "sparsity": 0.8, "r": 3, "lora_alpha": 7.0}),
    "bdlora": (
        peft.LoraConfig,
        {
            **LORA,
            "use_bdlora": BdLoraConfig(
                target_modules_bd_a=["0.q_proj", "0.up"],
                target_modules_bd_b=["1.q_proj", "1.up"],
                nblocks=2,
                match_strict=False,
            ),
        },
    ),
    "bdlora_bias": (
        peft.LoraConfig,
        {**LORA, "lora_bias": True, "use_rslora": True, "use_bdlora": BdLoraConfig(LINEAR, nblocks=4)},
    ),
    "bdlora_gpt2": (
        peft.LoraConfig,
        {**LORA, "target_modules": ["c_attn", "c_fc"], "use_bdlora": BdLoraConfig(["none"], match_strict=False)},
        gpt2,
    ),
    "velora_gpt2": (
        peft.LoraConfig,
        {**LORA, "target_modules": ["c_attn", "c_fc"], "velora_config": VeloraConfig(num_groups=4)},
        gpt2,
    ),
    "monteclora_gpt2": (
        peft.LoraConfig,
        {**LORA, "target_modules": ["c_attn", "c_fc"], "monteclora_config": MontecloraConfig()},
        gpt2,
    ),
    "velora": (peft.LoraConfig, {**LORA, "velora_config": VeloraConfig(num_groups=4, init_type="random")}),
    "monteclora": (peft.LoraConfig, {**LORA, "monteclora_config": MontecloraConfig()}),
    "mica": (peft.LoraConfig, {**LORA, "target_modules": [*LINEAR, "emb"], "init_lora_weights": "mica"}),
    "mica_gpt2": (
        peft.LoraConfig,
        {**LORA, "target_modules": ["c_attn", "c_fc", "wte"], "init_lora_weights": "mica"},
        gpt2,
    ),
    "kasa": (peft.LoraConfig, {**LORA, "kasa_config": KasaConfig()}, toy, 18),
}
"""The arguments of `Case` by name."""


def without_the_least(weight, factors, said, module):
    """KaSA from the base as it was: PEFT has rounded to float32 what it left of it."""
    left, sizes, right = np.linalg.svd(weight, full_matrices=False)
    sizes[-said["r"] :] = 0
    change = factors["lora_B"] @ np.diag(factors["lora_diag"]) @ factors["lora_A"]
    return left @ np.diag(sizes) @ right + said["lora_alpha"] / said["r"] * change


NAIVE: dict[str, Any] = {
    **{name: None for name, (config, *_) in CASES.items() if config is peft.LoraConfig},
    "kasa": without_the_least,
}
"""W_tuned in numpy by case or method, where PEFT's own code cannot be run in float64; None: it can."""
MAKERS = [
    Maker("delora", "linear", (6, 5), {"A": (3, 5), "B": (6, 3), "lambda": (1,), "w_norm": (5,)}),
    Maker("gralora", "linear", (6, 9), {"A": (3, 3, 6), "B": (3, 6, 2)}),
    Maker("gralora", "transposed", (6, 9), {"A": (3, 2, 6), "B": (3, 6, 3)}),
    *(
        Maker(
            "gralora",
            layout,
            shape,
            {"A": (2, 2, 4), "B": (2, 4, 3), "A_general": (3, 4), "B_general": (6, 3)},
            settings={"hybrid_r": 3},
        )
        for layout, shape in (("linear", (6, 4)), ("transposed", (4, 6)))
    ),
    Maker("bdlora", "linear", (5, 8), {"A": (4, 8), "B": (5, 4)}),
    Maker("bdlora", "transposed", (6, 8), {"A": (4, 6), "B": (8, 4)}),
    Maker("bdlora", "linear", (6, 8), {"A": (4, 4), "B": (6, 4)}),
    Maker("bdlora", "linear", (6, 8), {"A": (4, 8), "B": (6, 2)}),
    Maker("kasa", "linear", (6, 5), {"A": (3, 5), "B": (6, 3), "diag": (3,)}),
    Maker("tinylora", "linear", (6, 5), {"A": (3, 5), "B": (6, 3), "P": (2, 3, 3), "v": (2,)}),
    Maker("tinylora", "transposed", (6, 5), {"A": (3, 6), "B": (5, 3), "P": (2, 3, 3), "v": (2,)}),
    *(
        Maker(
            "unilora",
            layout,
            (6, 5),
            {
                "indices_A": torch.arange(2 * inner).view(2, inner) % 7,
                "scales_A": (2, inner),
                "indices_B": torch.arange(2 * outer).view(outer, 2) % 7,
                "scales_B": (outer, 2),
                "theta": (7,),
            },
            settings={"theta_d_length": 7},
        )
        for layout, outer, inner in (("linear", 6, 5), ("transposed", 5, 6))
    ),
    Maker("supertuning", "linear", (6, 5), {"values": (4,), "indices": torch.tensor([29, 0, 7, 12])}),
    Maker(
        "supra",
        "linear",
        (6, 5),
        {"values": (4,), "indices": torch.tensor([29, 0, 7, 12]), "A": (3, 5), "B": (6, 3)},
        settings={"lora_alpha": 6.0},
    ),
    Maker("beft", "whole", (6,), {"bias": (1, 6)}, "bias"),
]
