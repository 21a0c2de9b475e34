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
    **dict.fromkeys(("bdlora", "velora", "monteclora", "mica", "mica_gpt2")),
    "kasa": without_the_least,
}
"""W_tuned in numpy by case or method, where PEFT's own code cannot be run in float64; None: it can."""
MAKERS = [
    Maker("delora", "linear", (6, 5), {"A": (3, 5), "B": (6, 3), "lambda": (1,), "w_norm": (5,)}),
    Maker("gralora", "linear", (6, 9), {"A": (3, 3, 6), "B": (3, 6, 2)}),
    Maker("gralora", "transposed", (6, 9), {"A": (3, 2, 6), "B": (3, 6, 3)}),
    *(
        Maker("gralora", layout, shape, {"A": (2, 2, 4), "B": (2, 4, 3), "A_general": (3, 4), "B_general": (6, 3)})
        for layout, shape in (("linear", (6, 4)), ("transposed", (4, 6)))
    ),
    Maker("bdlora", "linear", (5, 8), {"A": (4, 8), "B": (5, 4)}),
    Maker("bdlora", "transposed", (6, 8), {"A": (4, 6), "B": (8, 4)}),
    Maker("bdlora", "linear", (6, 8), {"A": (4, 4), "B": (6, 4)}),
    Maker("bdlora", "linear", (6, 8), {"A": (4, 8), "B": (6, 2)}),
    Maker("kasa", "linear", (6, 5), {"A": (3, 5), "B": (6, 3), "diag": (3,)}),
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
