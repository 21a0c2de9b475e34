"""Cases and samples of the methods whose change depends on the base weight: rows of the tables of PEFT as the oracle.

`CASES` and `NAIVE` are for `test_against_peft.py`, `MAKERS` for `contract.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import peft
import torch
from contract import SHAPES, Maker
from toys import gpt2, toy

LINEAR, CONVS = ["q_proj", "up"], ["conv1", "conv2", "conv3", "point"]
"""Modules of `toys.Toy`."""


def toy_without_biases() -> torch.nn.Module:
    """The toy whose q_proj has no bias."""
    model = toy()
    for layer in model.layers:
        layer["q_proj"].bias = None
    return model


UNITS = 70
"""The error of PEFT's singular vectors, which are of float32: 2^-24 over the gaps between singular values."""
ROAD = {"target_modules": LINEAR, "group_size": 4}
CASES: dict[str, dict[str, Any]] = {
    "hira": {"config": peft.HiraConfig, "options": {"target_modules": LINEAR, "r": 3, "rank_pattern": {"up": 2}}},
    "hira_conv": {"config": peft.HiraConfig, "options": {"target_modules": CONVS, "r": 3}},
    "hira_embedding": {"config": peft.HiraConfig, "options": {"target_modules": ["emb"], "r": 3}},
    "hira_gpt2": {"config": peft.HiraConfig, "options": {"target_modules": ["c_attn", "c_proj"], "r": 3}, "make": gpt2},
    "road_1": {"config": peft.RoadConfig, "options": {**ROAD, "variant": "road_1"}},
    "road_2": {"config": peft.RoadConfig, "options": {**ROAD, "variant": "road_2"}},
    "road_4": {"config": peft.RoadConfig, "options": {**ROAD, "variant": "road_4"}},
    "deft": {"config": peft.DeftConfig, "options": {"target_modules": LINEAR, "r": 3, "alpha": 5}},
    "deft_qr": {
        "config": peft.DeftConfig,
        "options": {"target_modules": LINEAR, "r": 3, "decomposition_method": "qr", "alpha": 5},
    },
    "deft_para": {"config": peft.DeftConfig, "options": {"target_modules": LINEAR, "r": 3, "para": True}},
    "deft_para_qr": {
        "config": peft.DeftConfig,
        "options": {"target_modules": LINEAR, "r": 3, "para": True, "decomposition_method": "qr"},
    },
    "deft_capped": {"config": peft.DeftConfig, "options": {"target_modules": ["up"], "r": 20, "alpha": 5}},
    "deft_gpt2": {"config": peft.DeftConfig, "options": {"target_modules": ["c_attn", "c_proj"], "r": 3}, "make": gpt2},
    "peanut": {"config": peft.PeanutConfig, "options": {"target_modules": LINEAR, "r": 3, "scaling": 2.0}},
    "peanut_deep": {
        "config": peft.PeanutConfig,
        "options": {"target_modules": LINEAR, "r": 3, "depth": 2, "act_fn": "gelu"},
    },
    "osf": {"config": peft.OSFConfig, "options": {"target_modules": LINEAR, "effective_rank": 5}, "units": 20},
    "psoft": {"config": peft.PsoftConfig, "options": {"target_modules": LINEAR, "r": 4}, "units": UNITS},
    "psoft_pissa": {
        "config": peft.PsoftConfig,
        "options": {"target_modules": LINEAR, "r": 4, "ab_svd_init": "pissa_init", "psoft_mag_a": False},
        "units": UNITS,
    },
    "psoft_series": {
        "config": peft.PsoftConfig,
        "options": {"target_modules": LINEAR, "r": 4, "use_cayley_neumann": True, "cayley_neumann_eps": 0.4},
        "units": UNITS,
    },
    "psoft_free": {
        "config": peft.PsoftConfig,
        "options": {"target_modules": LINEAR, "r": 4, "psoft_orth": False},
        "units": UNITS,
    },
    "frod": {"config": peft.FrodConfig, "options": {"target_modules": LINEAR, "sparse_rate": 0.2}},
    "frod_gpt2": {
        "config": peft.FrodConfig,
        "options": {"target_modules": ["c_attn", "c_fc"], "sparse_rate": 0.2},
        "make": gpt2,
    },
    "glora_biasless": {
        "config": peft.GloraConfig,
        "options": {"target_modules": LINEAR, "r": 3},
        "make": toy_without_biases,
    },
    "road_biasless": {
        "config": peft.RoadConfig,
        "options": {**ROAD, "variant": "road_1"},
        "make": toy_without_biases,
    },
    **{
        f"glora_{ab}_{c}_{de}": {
            "config": peft.GloraConfig,
            "options": {"target_modules": LINEAR, "r": 3, "config_A_B": ab, "config_C": c, "config_D_E": de},
        }
        for ab, c, de in (
            ("lora", "lora", "constant"),
            ("vector", "vector", "vector"),
            ("constant", "none", "vector"),
            ("none", "lora", "none"),
        )
    },
}
"""The arguments of `Case`."""

MAKERS: list[Maker] = [
    *(
        Maker("hira", layout, SHAPES[layout], {"A": first, "B": second})
        for layout, first, second in (
            ("linear", (3, 5), (6, 3)),
            ("transposed", (3, 5), (6, 3)),
            ("embedding", (3, 7), (4, 3)),
            ("convolution", (3, 3, 2), (6, 3, 1)),
        )
    ),
    *(
        Maker("road", layout, shape, {"theta": (angles,), "alpha": (angles,)}, parameter, settings)
        for variant, angles in (("road_1", 4), ("road_2", 8), ("road_4", 16))
        for settings in ({"variant": variant, "group_size": 4},)
        for layout, shape, parameter in (("linear", (8, 5), "weight"), ("whole", (8,), "bias"))
    ),
    *(
        Maker("deft", layout, (6, 5), {"P": (out, 3), **({} if para else {"R": (3, 11 - out)})}, settings=settings)
        for layout, out in (("linear", 6), ("transposed", 5))
        for method in ("relu", "qr")
        for para in (False, True)
        for settings in ({"decomposition_method": method, "para": para},)
    ),
    *(
        Maker(
            "peanut",
            "linear",
            (6, 5),
            {"A": (3, 6), "B": (6, 3), **{f"{side}coder{at}": (3, 3) for side in ("en", "de") for at in range(depth)}},
            settings={"act_fn": "tanh"},
        )
        for depth in range(7)
    ),
    Maker("osf", "linear", (6, 5), {"U_low": (6, 2), "S_low": (2,), "V_low": (2, 5)}),
    *(
        Maker("psoft", "linear", (6, 5), {"C": shape, **dict.fromkeys(vectors, (2,))}, settings=settings)
        for orthogonal, shape in ((True, (1,)), (False, (2, 2)))
        for vectors in ((), ("a",), ("b",), ("a", "b"))
        for settings in (
            {"psoft_orth": orthogonal, "ab_svd_init": "psoft_init", "use_cayley_neumann": not vectors}
            | {"num_cayley_neumann_terms": 4, "psoft_mag_a": "a" in vectors, "psoft_mag_b": "b" in vectors},
        )
    ),
    *(
        Maker(
            "frod",
            layout,
            shape,
            {"V": (5, 5), "lambda_l": (5,), "indices": torch.tensor([[0, 4, 2, 1], [1, 0, 3, 2]]), "values": (4,)},
        )
        for layout, shape in (("linear", (6, 5)), ("transposed", (5, 6)))
    ),
    Maker("glora", "linear", (6, 5), {"A_Xd": (6, 3), "A_Xu": (3, 5), "B_Xd": (6, 3), "B_Xu": (3, 5)}),
    Maker("glora", "linear", (6, 5), {"A_X": (6, 1), "B_X": (6, 1)}),
    Maker("glora", "linear", (6, 5), {"A_X": (1,), "B_X": (1,)}),
    *(
        Maker("glora", "whole", (6,), {**coupled, **moved}, "bias")
        for coupled in ({"C_Xd": (5, 3), "C_Xu": (3, 1), "W": (6, 5)}, {"C_X": (5, 1), "W": (6, 5)}, {})
        for moved in ({"D_X": (6,), "E_X": (6,)}, {"D_X": (1,), "E_X": (1,)}, {})
        if coupled or moved
    ),
]


def projected(weight, factors, said, module):
    """DEFT as the paper has it, (I - Q·Nᵀ)·W + s·Q·R: PEFT's code makes the projection float32."""
    left = right = factors["deft_P"]
    if said["decomposition_method"] == "qr":
        left = right = np.linalg.qr(left)[0]
    else:
        right = np.where(right > 0, right, 0)
    tuned = weight - left @ (right.T @ weight)
    scale = said["alpha"] / left.shape[1] if said["alpha"] else 1
    return tuned if said["para"] else tuned + scale * (left @ factors["deft_R"])


def largest_kept(weight, factors, said, module):
    """OSF's sum of outer products, the largest components kept: PEFT's code decomposes in float32."""
    left, sizes, right = np.linalg.svd(weight)
    low = [factors[f"osf_svd_params.{part}"] for part in ("U_low", "S_low", "V_low")]
    kept = len(sizes) - len(low[1])
    parts = [*zip(left.T[:kept], sizes, right, strict=False), *zip(low[0].T, low[1], low[2], strict=True)]
    return sum(size * np.outer(column, row) for column, size, row in parts)


def turned(weight, factors, said, module):
    """PSOFT with the components of float64, in float32's signs: PEFT's code decomposes in float32."""
    rank, turn = said["r"], factors["psoft_R"]
    left, sizes, right = np.linalg.svd(weight)
    like = torch.linalg.svd(torch.from_numpy(weight).float()).U.double().numpy()
    signs = np.sign(np.einsum("oc,oc->c", left[:, :rank], like[:, :rank]))
    if said["psoft_orth"]:
        skew, unit = np.zeros((rank, rank)), np.eye(rank)
        skew[np.triu_indices(rank, 1)] = turn
        skew -= skew.T
        if said["use_cayley_neumann"]:
            most = said["cayley_neumann_eps"] or np.inf
            skew *= min(1, most / np.linalg.norm(skew))
            turn = unit + 2 * (skew + skew @ skew + skew @ skew @ skew) + skew @ skew @ skew @ skew
        else:
            turn = np.linalg.inv(unit - skew) @ (unit + skew)
    turn = factors.get("psoft_R.vector_b", np.ones(rank))[:, None] * turn * factors.get("psoft_R.vector_a", 1)
    roots = np.sqrt(sizes[:rank])
    both = (roots, roots) if said["ab_svd_init"] == "pissa_init" else (sizes[:rank], np.ones(rank))
    change = (left[:, :rank] * signs * both[0]) @ (turn - np.eye(rank)) @ ((signs * both[1])[:, None] * right[:rank])
    return weight + change


def rewritten(weight, factors, said, module):
    """FRoD with the inverse written out: PEFT's code makes U float32."""
    parts = module.split(".")
    name = parts[-1] if parts[-2].isdigit() else "_".join(parts[-2:])
    basis, places = factors[f"frod_V.{name}"], factors[f"frod_s_indices.{name}"].astype(int)
    columns = weight @ np.linalg.inv(basis).T
    middle = np.diag(factors["frod_lambda_l"])
    for row, column, value in zip(*places, factors["frod_lambda_s_values"], strict=True):
        middle[row, column] += value
    return columns / np.linalg.norm(columns, axis=0) @ middle @ basis.T


NAIVE = {"FROD": rewritten, "DEFT": projected, "OSF": largest_kept, "PSOFT": turned}
"""The formulas in numpy, where PEFT's own code insists on float32; arguments as for the others there."""
