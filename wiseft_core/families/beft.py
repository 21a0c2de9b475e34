"""BEFT: a trained difference added to a module's bias, and to nothing else.

    b_tuned = b + bias

A module without a bias is refused: the base has no tensor to add to, and PEFT cannot merge it either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wiseft_core.families._family import Change, Factors, Family, Hyper

if TYPE_CHECKING:
    from torch import Tensor


def delta(factors: Factors, hyper: Hyper) -> Tensor:
    """The difference of the bias.

        D = biasᵀ

    Shapes:
        bias (1, out). Returns (out, 1), as the base's bias is a column.
    Exactness: two float64 roundings before the caller's one.
    Closed: linear in bias.
    Source: Huang et al. 2025, arXiv:2509.15974.
    """
    return factors["bias"].T


BEFT = Family(
    name="beft",
    parameters={"bias": Change(factors={"bias": "1 out"}, delta=delta, layouts=("whole",), linear="bias")},
    source="Huang et al. 2025, BEFT: Bias-Efficient Fine-Tuning of Language Models, arXiv:2509.15974",
    peft="BEFT",
    keys={"beft_bias": "bias bias"},
)
