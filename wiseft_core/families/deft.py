"""DEFT: a part of a weight's output space, projected away and filled anew; PaRa, which does not fill it.

    W_tuned = W + Q·(s·R - Nᵀ·W)        s = alpha / rank, and 1 where alpha is not given

Q is P and N is relu(P) ("relu"), or both are the orthonormal columns of P's QR decomposition ("qr"). PaRa has no R. The
signs of Q's columns are LAPACK's, as in PEFT: with R they matter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wiseft_core.errors import Unsupported
from wiseft_core.families._family import Change, Factors, Family, Hyper, Option, Options, Total

if TYPE_CHECKING:
    from torch import Tensor


def tuned(weight: Tensor, factors: Factors, hyper: Hyper, total: Tensor | None) -> Tensor:
    """The tuned weight.

        W_tuned = W + Q·(s·R - Nᵀ·W)

    Shapes:
        weight (out, in); P (out, rank), not more columns than rows; R (rank, in), which PaRa does not have. Returns
        (out, in).
    Exactness: off by at most 2^-48·(out + rank + 6)·(|W| + |Q|·(|s|·|R| + |N|ᵀ·|W|)) before the interpolation; "qr"
        adds the condition of P.
    Closed: "relu", see `rescaled`; "qr" is not: its columns have norm 1.
    Source: Kumar et al. 2025, DEFT, NeurIPS 2025; PaRa for the form without R.
    """
    import torch  # comes with arithmetic, not with a plan

    from wiseft_core.numerics import product

    left = right = factors["P"]
    if hyper.options["decomposition_method"] == "qr":
        left = right = torch.linalg.qr(left)[0]
    else:
        right = torch.relu(right)
    filling = product(right.T, weight).neg_()
    if "R" in factors:
        filling += factors["R"] * scale(hyper)
    return product(left, filling).add_(weight)


def scale(hyper: Hyper) -> float:
    """s, from alpha and the columns that P has: PEFT makes no more than the weight has rows, whatever r says."""
    alpha = hyper.options["alpha"]
    return float(alpha / hyper.sizes["rank"]) if alpha else 1.0


def rescaled(factors: Factors, alpha: float, total: Total) -> Factors:
    """The factors of the interpolated weight.

        P' = √alpha·P        R' = √alpha·R

    because P stands in both terms twice, or once beside R.

    Raises:
        Unsupported: Alpha is below 0: no P has such a product with its own relu.
    """
    if alpha < 0:
        raise Unsupported(
            f"DEFT at alpha {alpha:g}",
            expected="alpha of 0 or more",
            got=f"{alpha:g}",
            hint="interpolate the whole model instead",
        )
    return {role: factor * alpha**0.5 for role, factor in factors.items()}


def _form(method: str, *, fills: bool) -> Change:
    """The form of a decomposition, with R or without."""

    def meant(options: Options) -> bool:
        return options.get("decomposition_method") == method and options.get("para", False) is not fills

    return Change(
        factors={"P": "out rank", "R": "rank in"} if fills else {"P": "out rank"},
        tuned=tuned,
        whole=True,
        fits=lambda sizes: sizes["rank"] <= sizes["out"],
        when=meant,
        rescaled=rescaled if method == "relu" else None,
    )


DEFT = Family(
    name="deft",
    parameters={"weight": tuple(_form(method, fills=fills) for method in ("relu", "qr") for fills in (True, False))},
    source="Kumar et al. 2025, DEFT: Decompositional Efficient Fine-Tuning for Text-to-Image Models, NeurIPS 2025",
    peft="DEFT",
    keys={"deft_P": "P", "deft_R": "R"},
    options={
        "decomposition_method": Option(("relu", "qr")),
        "alpha": Option(float, default=0.0),
        "para": Option(bool, default=False),
    },
    harmless={
        "r": "the shapes of the factors tell it",
        "init_scale": "the first values, before training",
        "deft_dropout": "active in training only",
    },
)
