"""RandLoRA: a difference of full rank, a sum of random low-rank products whose sizes alone are trained.

    W_tuned = W + s·Σ_j B_j·diag(lambda_j)·A·diag(gamma_j)        s = randlora_alpha / r

The bases A and B are shared and as large as the largest module needs. They are read from the file: PEFT draws them in
bf16 or fp16, as the machine at hand has it, so that they cannot be drawn again, and an adapter without them is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wiseft_core.families._family import Change, Factors, Family, Hyper, Option, Options

if TYPE_CHECKING:
    from torch import Tensor


def delta(factors: Factors, hyper: Hyper) -> Tensor:
    """The difference, before its scale.

        D = B·A', or its transpose where `out` is smaller        A'[i, j, :] = lambda[i, j]·A[i, :] ∘ gamma[j, :]

    Shapes:
        A (rank, 1, least); B (most, bases, rank); lambda (rank, bases); gamma (bases, least), where least and most are
        the smaller and the larger of `in` and `out`. Returns (out, in). B is seen as (most, bases·rank), and A' as
        (rank·bases, least): PEFT contracts these two axes as they lie, so that bases and ranks of the two do not meet
        as the paper has it, in training and merging alike.
    Exactness: W + c·D is off by at most 2^-48·(rank·bases + 6)·(|W| + |c|·|B|·|A'|).
    Closed: linear in lambda.
    Source: Albert et al. 2025, arXiv:2502.00987; PEFT 0.21 for the order of the axes.
    """
    from wiseft_core.numerics import product  # torch comes with arithmetic, not with a plan

    sizes, gamma = factors["lambda"], factors["gamma"]
    small = (factors["A"] * sizes[:, :, None] * gamma[None]).flatten(0, 1)
    large = factors["B"][:, : len(gamma)].flatten(1)
    found = product(large, small)
    return found if found.shape == (hyper.sizes["out"], hyper.sizes["in"]) else found.T


def scale(options: Options) -> float:
    """s from the config.

    randlora_alpha / r
    """
    return float(options["randlora_alpha"] / options["r"])


def _form(least: str, most: str) -> Change:
    """The form for modules whose smaller side is `least`; of two equal sides it is `in`."""
    return Change(
        {"A": f"rank 1 {least}+", "B": f"{most}+ bases+ rank", "lambda": "rank bases", "gamma": f"bases {least}"},
        delta=delta,
        whole=True,
        fits=lambda sizes: (sizes["in"] <= sizes["out"]) == (least == "in"),
        linear="lambda",
    )


RANDLORA = Family(
    name="randlora",
    parameters={"weight": (_form("in", "out"), _form("out", "in"))},
    source="Albert et al. 2025, RandLoRA: Full-Rank Parameter-Efficient Fine-Tuning, arXiv:2502.00987",
    peft="RANDLORA",
    keys={
        "base_model.randlora_A": "A",
        "base_model.randlora_B": "B",
        "randlora_lambda": "lambda",
        "randlora_gamma": "gamma",
    },
    options={
        "randlora_alpha": Option(float),
        "r": Option(int),
        "save_projection": Option(
            (True,),
            default=True,
            why="the random bases are not in the file, and PEFT draws them in bf16 or fp16, as the machine has it",
        ),
    },
    harmless={
        "projection_prng_key": "the bases are read from the file",
        "sparse": "the bases are read from the file",
        "very_sparse": "the bases are read from the file",
        "randlora_dropout": "active in training only",
    },
    scale=scale,
)
