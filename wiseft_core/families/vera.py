"""VeRA: a low-rank difference whose matrices are random and shared; only two vectors are trained.

    W_tuned = W + diag(lambda_b)·B·diag(lambda_d)·A

A and B are as large as the largest module needs, and each module uses their first columns and rows. They are read from
the file: an adapter that was saved without them (`save_projection=False`) is refused, because a base in 16 bits rounds
what PEFT draws for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wiseft_core.families._family import Change, Factors, Family, Hyper, Option

if TYPE_CHECKING:
    from torch import Tensor


def delta(factors: Factors, hyper: Hyper) -> Tensor:
    """The difference.

        D = diag(lambda_b)·B·diag(lambda_d)·A

    Shapes:
        A (rank, in); B (out, rank); lambda_d (rank); lambda_b (out). Returns (out, in).
    Exactness: W + c·D is off by at most 2^-48·(rank + 6)·(|W| + |c|·|lambda_b|·|B|·|lambda_d|·|A|).
    Closed: linear in lambda_b.
    Source: Kopiczko et al. 2023, arXiv:2310.11454.
    """
    from wiseft_core.numerics import product  # torch comes with arithmetic, not with a plan

    return product(factors["B"] * factors["lambda_b"][:, None], factors["A"] * factors["lambda_d"][:, None])


VERA = Family(
    name="vera",
    parameters={
        "weight": Change(
            factors={"A": "rank in+", "B": "out+ rank", "lambda_d": "rank", "lambda_b": "out"},
            delta=delta,
            linear="lambda_b",
        ),
    },
    source="Kopiczko et al. 2023, VeRA: Vector-based Random Matrix Adaptation, arXiv:2310.11454",
    peft="VERA",
    keys={
        "base_model.vera_A": "A",
        "base_model.vera_B": "B",
        "vera_lambda_d": "lambda_d",
        "vera_lambda_b": "lambda_b",
    },
    options={
        "save_projection": Option(
            (True,),
            default=True,
            why="the projections are not in the file, and a base in 16 bits rounds what PEFT draws for it",
        ),
    },
    harmless={
        "r": "the shapes of the factors tell it",
        "projection_prng_key": "the projections are read from the file",
        "vera_dropout": "active in training only",
        "d_initial": "the first values, before training",
    },
)
