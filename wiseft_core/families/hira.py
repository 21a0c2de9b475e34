"""HiRA: a weight multiplied, element by element, by one plus a low-rank matrix.

    W_tuned = W ∘ (1 + B·A)

PEFT has no scale here. A convolution's A has its kernel, as for LoRA.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wiseft_core.families._family import Change, Factors, Family, Hyper, Total

if TYPE_CHECKING:
    from torch import Tensor


def tuned(weight: Tensor, factors: Factors, hyper: Hyper, total: Tensor | None) -> Tensor:
    """The multiplied weight.

        W_tuned = W ∘ (1 + B·A)

    Shapes:
        weight (out, in); A (rank, in); B (out, rank). Returns (out, in).
    Exactness: off by at most 2^-48·(rank + 4)·|W| ∘ (1 + |B|·|A|) before the interpolation.
    Closed: see `rescaled`.
    Source: Huang et al. 2025, HiRA, ICLR 2025.
    """
    from wiseft_core.numerics import product  # torch comes with arithmetic, not with a plan

    return product(factors["B"], factors["A"]).add_(1).mul_(weight)


def rescaled(factors: Factors, alpha: float, total: Total) -> Factors:
    """The factor of the interpolated weight.

    B' = alpha·B
    """
    return {"B": factors["B"] * alpha}


HIRA = Family(
    name="hira",
    parameters={
        "weight": Change(
            factors={"A": "rank in", "B": "out rank"},
            tuned=tuned,
            layouts=("linear", "transposed", "convolution", "embedding"),
            rescaled=rescaled,
        ),
    },
    source="Huang et al. 2025, HiRA: Parameter-Efficient Hadamard High-Rank Adaptation, ICLR 2025",
    peft="HIRA",
    keys={
        "hira_A": "A",
        "hira_B": "B",
        "hira_embedding_A": "embedding_A",
        "hira_embedding_B": "embedding_B",
    },
    harmless={
        "r": "the shapes of the factors tell it",
        "rank_pattern": "the shapes of the factors tell it",
        "hira_dropout": "active in training only",
    },
)
