"""DoRA: a low-rank difference whose rows are then rescaled to trained magnitudes.

    V = W + s·B·A        W_tuned = diag(m / ‖V‖) · V        norms per `out`, over `in`

W_tuned is not linear in the factors: scaling s alone, as for LoRA, does not even give the base back at zero. WiSE-FT
mixes W_tuned with W, tensor by tensor: W(alpha) = (1 - alpha)·W + alpha·W_tuned. For a convolution `in` runs over the
input channels and the kernel; for an embedding `out` is the embedding dimension and `in` the vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wiseft_core.errors import NotFinite
from wiseft_core.families._family import Change, Factors, Family
from wiseft_core.families.lora import delta

if TYPE_CHECKING:
    from torch import Tensor


def measure(weight: Tensor, factors: Factors, scale: float) -> Tensor:
    """Squared norms of the rows of V, as far as this tile knows them.

        sum over the tile's `in` of (W + s·B·A)²

    Shapes:
        weight (out, in); A (rank, in); B (out, rank). Returns (out).
    """
    from wiseft_core.numerics import moved, square_sum  # torch comes with arithmetic, not with a plan

    return square_sum(moved(weight, delta(factors), scale))


def tuned(weight: Tensor, factors: Factors, scale: float, total: Tensor | None) -> Tensor:
    """The tuned weight.

        V = W + s·B·A        W_tuned = diag(magnitude / ‖V‖) · V

    Shapes:
        weight (out, in); A (rank, in); B (out, rank); magnitude (out); total (out). Returns (out, in).
    Args:
        weight: A tile of the weight.
        factors: Roles "A", "B" and "magnitude".
        scale: s, that is lora_alpha / rank, or lora_alpha / √rank for rsLoRA.
        total: Squared norms of whole rows of V, or None if the tile holds whole rows.
    Raises:
        NotFinite: A row of V has norm zero, or one that is not a finite float64: its direction is not defined.
    Exactness: before the caller's one rounding, 1e-6 ulp of an output of 32 bits or less, plus what float64 itself
        leaves where (1 - alpha)·W and alpha·W_tuned cancel: 2^-50·(rank + in + 8)·(|W| + g·S + g·|V|·‖S‖/‖V‖), with
        S = |W| + |s|·|B||A| and g = |magnitude|/‖V‖.
    Source: Liu et al. 2024, arXiv:2402.09353, eq. 5. The norm has no epsilon, as in PEFT.
    """
    from wiseft_core.numerics import moved, square_sum  # torch comes with arithmetic, not with a plan

    direction = moved(weight, delta(factors), scale)
    norm = (square_sum(direction) if total is None else total).sqrt()
    if not bool(((norm > 0) & (norm < float("inf"))).all()):
        raise NotFinite(
            "a row of W + s·B·A has no direction",
            expected="norms above zero and finite, to divide by",
            got=f"norms from {norm.min().item():g} to {norm.max().item():g}",
            hint="DoRA is not defined there: look for zero, NaN or inf rows in the base, or leave this module out",
        )
    return direction.mul_((factors["magnitude"] / norm).unsqueeze(1))


DORA = Family(
    name="dora",
    parameters={
        "weight": Change(factors={"A": "rank in", "B": "out rank", "magnitude": "out"}, tuned=tuned, measure=measure),
    },
    needs_scale=True,
    source="Liu et al. 2024, DoRA: Weight-Decomposed Low-Rank Adaptation, arXiv:2402.09353, eq. 5",
)
