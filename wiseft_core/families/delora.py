"""DeLoRA: a low-rank difference whose components have length one, under one trained bound.

    W_tuned = W + (lambda / rank)·B·diag(1 / (‖A_j‖·‖B_j‖))·A·diag(w_norm)        norms of rows of A and columns of B

The bound is scaled by the norms of the columns of the weight that the adapter was trained on, which PEFT saves: the
difference does not depend on the base. A norm below 1e-4 counts as 1e-4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from wiseft_core.families._family import Change, Factors, Family, Hyper

if TYPE_CHECKING:
    from torch import Tensor

LEAST: Final = 1e-4
"""The least norm that is divided by."""


def delta(factors: Factors, hyper: Hyper) -> Tensor:
    """The bounded difference.

        D = (lambda / rank)·B·diag(1 / (‖A_j‖·‖B_j‖))·A·diag(w_norm)

    Shapes:
        A (rank, in); B (out, rank); lambda (1); w_norm (in). Returns (out, in).
    Exactness: W + c·D is off by at most 2^-48·(2·rank + in + out + 8)·(|W| + |c|·the same sum of absolute values).
    Closed: linear in lambda.
    Source: Bini et al. 2025, arXiv:2503.18225; norms and their least value: PEFT 0.21.
    """
    from wiseft_core.numerics import product, square_sum  # torch comes with arithmetic, not with a plan

    first, second = factors["A"], factors["B"]
    norms = square_sum(first).sqrt_().clamp_(min=LEAST) * square_sum(second.T).sqrt_().clamp_(min=LEAST)
    bound = factors["lambda"] / hyper.sizes["rank"]
    return product(second * (bound / norms), first * factors["w_norm"])


DELORA = Family(
    name="delora",
    parameters={
        "weight": Change(
            factors={"A": "rank in", "B": "out rank", "lambda": "1", "w_norm": "in"},
            delta=delta,
            whole=True,
            layouts=("linear",),
            linear="lambda",
        ),
    },
    source="Bini et al. 2025, DeLoRA: Decoupling Angles and Strength in Low-rank Adaptation, arXiv:2503.18225",
    peft="DELORA",
    keys={f"delora_{role}": role for role in ("A", "B", "lambda", "w_norm")},
    harmless={
        "r": "the shapes of the factors tell it",
        "rank_pattern": "the shapes of the factors tell it",
        "delora_lambda": "the first value, before training",
        "lambda_pattern": "the first values, before training",
        "module_dropout": "active in training only",
    },
)
