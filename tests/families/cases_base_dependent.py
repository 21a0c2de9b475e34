"""Cases and samples of the methods whose change depends on the base weight: rows of the tables of PEFT as the oracle.

`CASES` and `NAIVE` are for `test_against_peft.py`, `MAKERS` for `contract.py`.
"""

from __future__ import annotations

from typing import Any

import peft
from contract import SHAPES, Maker
from toys import gpt2

LINEAR, CONVS = ["q_proj", "up"], ["conv1", "conv2", "conv3", "point"]
"""Modules of `toys.Toy`."""

ROAD = {"target_modules": LINEAR, "group_size": 4}
CASES: dict[str, dict[str, Any]] = {
    "hira": {"config": peft.HiraConfig, "options": {"target_modules": LINEAR, "r": 3, "rank_pattern": {"up": 2}}},
    "hira_conv": {"config": peft.HiraConfig, "options": {"target_modules": CONVS, "r": 3}},
    "hira_embedding": {"config": peft.HiraConfig, "options": {"target_modules": ["emb"], "r": 3}},
    "hira_gpt2": {"config": peft.HiraConfig, "options": {"target_modules": ["c_attn", "c_proj"], "r": 3}, "make": gpt2},
    "road_1": {"config": peft.RoadConfig, "options": {**ROAD, "variant": "road_1"}},
    "road_2": {"config": peft.RoadConfig, "options": {**ROAD, "variant": "road_2"}},
    "road_4": {"config": peft.RoadConfig, "options": {**ROAD, "variant": "road_4"}},
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
]
