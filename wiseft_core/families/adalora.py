"""AdaLoRA: a low-rank difference in the form of a singular value decomposition, its rank shared out while training.

    W_tuned = W + s·B·diag(E)·A        s = lora_alpha / init_r, and 1 for a lora_alpha that is not above 0

The divisor is the rank at the start, never the rank that was left, which may be 0. PEFT adds 1e-5 to it, and keeps it
in a parameter (`ranknum`) that it does not save: with a base in 16 bits that is trained too, and its change is lost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wiseft_core.families._family import Change, Factors, Family, Hyper, Option, Options

if TYPE_CHECKING:
    from torch import Tensor


def delta(factors: Factors, hyper: Hyper) -> Tensor:
    """The difference, before its scale.

        D = B·diag(E)·A

    Shapes:
        A (rank, in); B (out, rank); E (rank, 1). Returns (out, in).
    Exactness: W + c·D is off by at most 2^-48·(rank + 5)·(|W| + |c|·|B|·|E|·|A|).
    Closed: linear in E.
    Source: Zhang et al. 2023, arXiv:2303.10512.
    """
    from wiseft_core.numerics import product  # torch comes with arithmetic, not with a plan

    return product(factors["B"], factors["A"] * factors["E"])


def scale(options: Options) -> float:
    """s from the config.

    lora_alpha / (init_r + 1e-5), and init_r for a lora_alpha that is not above 0
    """
    alpha, rank = options["lora_alpha"], options["init_r"]
    return float((alpha if alpha > 0 else rank) / (rank + 1e-5))


ADALORA = Family(
    name="adalora",
    parameters={
        "weight": Change(
            factors={"A": "rank in", "B": "out rank", "E": "rank 1"},
            delta=delta,
            layouts=("linear", "transposed", "flat"),
            linear="E",
        ),
    },
    source="Zhang et al. 2023, AdaLoRA: Adaptive Budget Allocation, arXiv:2303.10512; divisor: PEFT 0.21",
    peft="ADALORA",
    keys={"lora_A": "A", "lora_B": "B", "lora_E": "E", "ranknum": "ignored"},
    options={"lora_alpha": Option(float), "init_r": Option(int)},
    harmless={
        "r": "not read by PEFT: the divisor is init_r",
        "rank_pattern": "which ranks were left: the file has no others",
        "alpha_pattern": "not read by PEFT",
        "use_rslora": "not read by PEFT",
        "init_lora_weights": "the first values, before training",
        "megatron_core": "how layers are split over devices",
        "qalora_group_size": "read with use_qalora only, which is refused",
        "lora_dropout": "active in training only",
        **dict.fromkeys(
            ("target_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight", "total_step"),
            "how ranks are shared out in training",
        ),
    },
    scale=scale,
)
