"""PVeRA: VeRA with a random rank space, of which a mean and a variance are trained; merging takes the mean.

    W_tuned = W + diag(lambda_b)·B·diag(mean of lambda_d)·(mean of A)

The first halves of lambda_d and A belong to the mean, the others to the logarithm of the variance, which acts where
values are drawn: in training, and with `sample_at_inference`. The projections are read from the file, as VeRA's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wiseft_core.families import vera
from wiseft_core.families._family import Change, Factors, Family, Hyper, Option

if TYPE_CHECKING:
    from torch import Tensor


def delta(factors: Factors, hyper: Hyper) -> Tensor:
    """The difference, at the mean.

        D = diag(lambda_b)·B·diag(lambda_d[:rank])·A[:rank]

    Shapes:
        A (double, in) and lambda_d (double), where double is 2·rank; B (out, rank); lambda_b (out). Returns (out, in).
    Exactness: That of VeRA.
    Closed: linear in lambda_b.
    Source: Fillioux et al. 2025, arXiv:2512.07703; that the mean is merged: PEFT 0.21.
    """
    rank = hyper.sizes["rank"]
    return vera.delta({**factors, "A": factors["A"][:rank], "lambda_d": factors["lambda_d"][:rank]}, hyper)


PVERA = Family(
    name="pvera",
    parameters={
        "weight": Change(
            factors={"A": "double in+", "B": "out+ rank", "lambda_d": "double", "lambda_b": "out"},
            delta=delta,
            fits=lambda sizes: sizes["double"] == 2 * sizes["rank"],
            linear="lambda_b",
        ),
    },
    source="Fillioux et al. 2025, PVeRA: Probabilistic Vector-Based Random Matrix Adaptation, arXiv:2512.07703",
    peft="PVERA",
    keys={
        "base_model.pvera_A": "A",
        "base_model.pvera_B": "B",
        "pvera_lambda_d": "lambda_d",
        "pvera_lambda_b": "lambda_b",
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
        "pvera_dropout": "active in training only",
        "d_initial": "the first values, before training",
        "sample_at_inference": "the mean is merged, as PEFT does",
        "generator_seed": "the mean is merged, as PEFT does",
    },
)
