"""Low-rank methods: their cases against PEFT, their naive oracles, and their samples for the contract."""

from __future__ import annotations

from typing import Any

import peft
from contract import Maker
from toys import gpt2, toy

LINEAR = ["q_proj", "up"]
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
}
"""The arguments of `Case` by name."""
NAIVE: dict[str, Any] = {}
"""W_tuned in numpy, where PEFT's own code cannot be run in float64."""
MAKERS = [
    Maker("delora", "linear", (6, 5), {"A": (3, 5), "B": (6, 3), "lambda": (1,), "w_norm": (5,)}),
    Maker("gralora", "linear", (6, 9), {"A": (3, 3, 6), "B": (3, 6, 2)}),
    Maker("gralora", "transposed", (6, 9), {"A": (3, 2, 6), "B": (3, 6, 3)}),
    *(
        Maker("gralora", layout, shape, {"A": (2, 2, 4), "B": (2, 4, 3), "A_general": (3, 4), "B_general": (6, 3)})
        for layout, shape in (("linear", (6, 4)), ("transposed", (4, 6)))
    ),
    Maker("beft", "whole", (6,), {"bias": (1, 6)}, "bias"),
]
