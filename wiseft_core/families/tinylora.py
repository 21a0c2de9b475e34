"""TinyLoRA: a difference between fixed factors of a weight, out of a few trained numbers.

    W_tuned = W + B·R·A        R = sum over i of v_i·P_i

A and B are made of the weight's largest singular components, P is random, and all three are read from the file. Only
adapters whose modules share one v (`weight_tying=1.0`) are known: else the order of the modules in the model decides
which v is whose, and no file says that order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wiseft_core.families._family import Change, Factors, Family, Hyper, Option

if TYPE_CHECKING:
    from torch import Tensor


def delta(factors: Factors, hyper: Hyper) -> Tensor:
    """The difference.

        D = B·R·A        R = sum over i of v_i·P_i

    Shapes:
        A (rank, in); B (out, rank); P (u, rank, rank); v (u). Returns (out, in).
    Exactness: W + c·D is off by at most 2^-48·(u + 2·rank + 5)·(|W| + |c|·|B|·(sum of |v_i||P_i|)·|A|).
    Closed: linear in B; v belongs to all modules.
    Source: TinyLoRA 2026, arXiv:2602.04118.
    """
    from wiseft_core.numerics import product  # torch comes with arithmetic, not with a plan

    middle = product(factors["v"].unsqueeze(0), factors["P"].flatten(1)).view(factors["P"].shape[1:])
    return product(product(factors["B"], middle), factors["A"])


TINYLORA = Family(
    name="tinylora",
    parameters={
        "weight": Change(
            factors={"A": "rank in", "B": "out rank", "P": "u rank rank", "v": "u"},
            delta=delta,
            linear="B",
        ),
    },
    source="TinyLoRA 2026, Learning to Reason in 13 Parameters, arXiv:2602.04118",
    peft="TINYLORA",
    keys={
        "tinylora_A": "A",
        "tinylora_B": "B",
        "tinylora_P": "P",
        "base_model.tinylora_v.0": "v",
    },
    options={
        "weight_tying": Option(
            (1.0,), why="the order of the modules in the model decides which vector is whose, and no file says it"
        ),
        "save_projection": Option(
            (True,), default=True, why="the order of the modules in the model decides their seeds, and no file says it"
        ),
    },
    harmless={
        "r": "the shapes of the factors tell it",
        "u": "the shapes of the factors tell it",
        "projection_seed": "the projections are read from the file",
        "init_v_bound": "the first values, before training",
        "tinylora_dropout": "active in training only",
    },
)
