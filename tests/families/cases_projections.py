"""Rotations and projections: their cases against PEFT, their naive oracles, and their samples for the contract."""

from __future__ import annotations

from typing import Any

import numpy as np
import peft
import torch
from contract import Maker
from peft.tuners.boft import layer as boft_layer
from toys import gpt2, toy

LINEAR, CONVS = ["q_proj", "up"], ["point", "square"]


class Extension:
    """What BOFT's CUDA extension does, in torch: with it PEFT trains as many rotations as it is asked for."""

    def forward(self, blocks: torch.Tensor) -> list[torch.Tensor]:
        """Block-diagonal matrices of (rotations, blocks, size, size)."""
        return [torch.stack([torch.block_diag(*level) for level in blocks])]


VBLORA = {"r": 3, "num_vectors": 6, "vector_length": 4, "topk": 3}
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
    **{
        f"vblora{end}": (peft.VBLoRAConfig, {**VBLORA, "target_modules": names, **more}, *make)
        for end, names, more, make in (
            ("", LINEAR, {}, ()),
            ("_topk", LINEAR, {"save_only_topk_weights": True}, ()),
            ("_top1", LINEAR, {"save_only_topk_weights": True, "topk": 1}, ()),
            ("_wide", LINEAR, {"save_only_topk_weights": True, "num_vectors": 300}, ()),
            ("_gpt2", ["c_attn", "c_fc"], {}, (gpt2,)),
        )
    },
    "randlora": (peft.RandLoraConfig, {"target_modules": [*LINEAR, "head"], "r": 3, "randlora_alpha": 7}),
    "randlora_sparse": (
        peft.RandLoraConfig,
        {"target_modules": [*LINEAR, "head"], "r": 2, "randlora_alpha": 7, "sparse": True},
    ),
    "randlora_gpt2": (
        peft.RandLoraConfig,
        {"target_modules": ["c_attn", "c_proj"], "r": 3, "randlora_alpha": 7},
        gpt2,
    ),
    "pvera": (peft.PveraConfig, {"target_modules": LINEAR, "r": 4}),
    "pvera_gpt2": (peft.PveraConfig, {"target_modules": ["c_attn", "c_proj"], "r": 4}, gpt2),
    "c3a": (
        peft.C3AConfig,
        {"target_modules": LINEAR, "block_size": 4, "block_size_pattern": {"q_proj": 8}},
        toy,
        8,
        3,
    ),
    **{
        f"waveft{end}": (peft.WaveFTConfig, {"target_modules": names, "n_frequency": 20, "scaling": 3.0, **more}, *make)
        for end, names, more, make in (
            ("", LINEAR, {}, ()),
            ("_odd", ["head", "up"], {"proportional_parameters": True}, ()),
            ("_plain", ["head", "up"], {"use_idwt": False}, ()),
            ("_db4", ["head", "up"], {"wavelet_family": "db4"}, ()),
            ("_db10", LINEAR, {"wavelet_family": "db10"}, ()),
            ("_gpt2", ["c_attn", "c_fc"], {"wavelet_family": "db2"}, (gpt2,)),
        )
    },
}
"""The arguments of `Case` by name."""


def banked(weight, factors, said, module):
    """VB-LoRA run by run: what is saved of the weights is rounded to float32, and PEFT's model has more of them."""
    sides = {}
    for side in "AB":
        logits, places = factors.get(f"vblora_logits_{side}"), factors.get(f"vblora_logits_{side}_topk_indices")
        if places is None:
            places = np.argsort(-logits, axis=-1)[..., : said["topk"]]
            shares = np.exp(np.take_along_axis(logits, places, -1))
            shares /= shares.sum(-1, keepdims=True)
        else:
            most = factors[f"vblora_logits_{side}_topk_weights"]
            shares = np.concatenate([most, 1 - most.sum(-1, keepdims=True)], -1)
        sides[side] = np.einsum("abk,abkl->abl", shares, factors["vblora_vector_bank"][places.astype(int)])
    change = np.einsum("orl,rim->olim", sides["B"], sides["A"])
    return weight + change.reshape(weight.shape)


def circulant(weight, factors, said, module):
    """C3A with each row of each block turned by one more: PEFT's code makes the kernel float32."""
    kernel = factors["c3a_kernel"]
    rows = [[np.concatenate([np.roll(k, u) for k in row]) for u in range(kernel.shape[-1])] for row in kernel]
    return weight + np.concatenate(rows) / weight.shape[1]


NAIVE: dict[str, Any] = {"C3A": circulant, "VBLORA": banked}
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
    *(
        Maker("vblora", layout, shape, {**own, "bank": (5, 2)}, settings={"topk": 2, "num_vectors": 5})
        for layout, shape in (("linear", (6, 4)), ("transposed", (4, 6)))
        for own in (
            {"logits_A": (3, 2, 5), "logits_B": (3, 3, 5)},
            {
                "places_A": torch.tensor([[[0, 4], [1, 2]], [[3, 4], [2, 0]], [[1, 0], [4, 3]]]),
                "places_B": torch.tensor([[[0, 3], [1, 2], [2, 4]]] * 3),
                "weights_A": (3, 2, 1),
                "weights_B": (3, 3, 1),
            },
        )
    ),
    *(
        Maker("randlora", layout, shape, {"A": (3, 1, 7), "B": (9, 4, 3), "lambda": (3, 2), "gamma": (2, 5)})
        for layout, shape in (("linear", (6, 5)), ("linear", (5, 6)), ("transposed", (6, 5)), ("transposed", (5, 6)))
    ),
    *(
        Maker("pvera", layout, shape, {"A": (6, 7), "B": (9, 3), "lambda_d": (6,), "lambda_b": (6,)})
        for layout, shape in (("linear", (6, 5)), ("transposed", (5, 6)))
    ),
    Maker("c3a", "linear", (6, 9), {"kernel": (2, 3, 3)}),
    *(
        Maker("waveft", layout, (7, 5), {"spectrum": (19,)}, settings={"random_loc_seed": 777, **said})
        for layout in ("linear", "transposed")
        for said in ({"use_idwt": True, "wavelet_family": "db2"}, {"use_idwt": False})
    ),
]
"""The strategies of the contract."""
