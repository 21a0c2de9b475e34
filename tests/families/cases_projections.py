"""Rotations and projections: their cases against PEFT, their naive oracles, and their samples for the contract."""

from __future__ import annotations

from typing import Any

import peft
import torch
from contract import Maker
from peft.tuners.boft import layer as boft_layer

LINEAR, CONVS = ["q_proj", "up"], ["point", "square"]


class Extension:
    """What BOFT's CUDA extension does, in torch: with it PEFT trains as many rotations as it is asked for."""

    def forward(self, blocks: torch.Tensor) -> list[torch.Tensor]:
        """Block-diagonal matrices of (rotations, blocks, size, size)."""
        return [torch.stack([torch.block_diag(*level) for level in blocks])]


boft_layer._FBD_CUDA = Extension()
CASES: dict[str, tuple[Any, ...]] = {
    "boft": (peft.BOFTConfig, {"target_modules": [*LINEAR, *CONVS], "boft_block_size": 4}),
    "boft_butterfly": (
        peft.BOFTConfig,
        {"target_modules": LINEAR, "boft_block_size": 2, "boft_n_butterfly_factor": 3},
    ),
    "boft_butterfly_conv": (
        peft.BOFTConfig,
        {"target_modules": ["square"], "boft_block_size": 6, "boft_n_butterfly_factor": 2},
    ),
    "hra": (peft.HRAConfig, {"target_modules": [*LINEAR, *CONVS], "r": 3}),
    "hra_orthogonal": (peft.HRAConfig, {"target_modules": [*LINEAR, *CONVS], "r": 3, "apply_GS": True}),
    "miss": (peft.MissConfig, {"target_modules": LINEAR, "r": 3}),
    "miss_mini": (peft.MissConfig, {"target_modules": LINEAR, "r": 4, "mini_r": 2, "init_weights": "mini"}),
    "miss_bat": (peft.MissConfig, {"target_modules": LINEAR, "r": 2, "init_weights": "bat"}),
}
"""The arguments of `Case` by name."""
NAIVE: dict[str, Any] = {}
"""W_tuned in numpy, where PEFT's own code cannot be run in float64."""
MAKERS = [
    *(
        Maker("boft", layout, shape, {"R": (rotations, 2, size, size), "s": scales})
        for rotations, size in ((1, 3), (2, 4))
        for layout, shape, scales in (("linear", (5, 2 * size), (5, 1)), ("flat", (5, 2, size), (1, 5)))
    ),
    *(
        Maker("hra", layout, shape, {"u": (6, 3)}, settings={"apply_GS": orthogonal})
        for layout, shape in (("linear", (5, 6)), ("flat", (5, 3, 2)))
        for orthogonal in (False, True)
    ),
    Maker("miss", "linear", (6, 5), {"block": (3, 6)}, settings={"init_weights": True}),
    Maker("miss", "linear", (6, 5), {"block": (3, 2)}, settings={"init_weights": "mini"}),
    Maker("miss", "linear", (6, 4), {"block": (3, 2, 2)}, settings={"init_weights": "bat"}),
]
"""The strategies of the contract."""
