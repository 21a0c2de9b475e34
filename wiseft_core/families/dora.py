"""DoRA: a low-rank difference whose rows are then rescaled to trained magnitudes.

    V = W + s·B·A        W_tuned = diag(m / ‖V‖) · V        norms per `out`, over `in`

W_tuned is not linear in the factors: scaling s alone, as for LoRA, does not even give the base back at zero. WiSE-FT
mixes W_tuned with W, tensor by tensor: W(alpha) = (1 - alpha)·W + alpha·W_tuned. For a convolution `in` runs over the
input channels and the kernel; for an embedding `out` is the embedding dimension and `in` the vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wiseft_core.errors import NotFinite
from wiseft_core.families._family import Change, Factors, Family, Hyper, Total
from wiseft_core.families.lora import OPTIONS, scale

if TYPE_CHECKING:
    from torch import Tensor


def measure(weight: Tensor, factors: Factors, hyper: Hyper) -> Tensor:
    """Squared norms of the rows of V, as far as this tile knows them.

        sum over the tile's `in` of (W + s·B·A)²

    Shapes:
        weight (out, in); A (rank, in); B (out, rank). Returns (out).
    """
    from wiseft_core.kits import kit  # numpy comes with arithmetic, not with a plan

    squares: Tensor = kit(weight).square_sum(_direction(weight, factors, hyper))
    return squares


def tuned(weight: Tensor, factors: Factors, hyper: Hyper, total: Tensor | None) -> Tensor:
    """The tuned weight.

        V = W + s·B·A        W_tuned = diag(magnitude / ‖V‖) · V

    Shapes:
        weight (out, in); A (rank, in); B (out, rank); magnitude (out); total (out). Returns (out, in).
    Args:
        weight: A tile of the weight.
        factors: Roles "A", "B" and "magnitude".
        hyper: Its scale s, that is lora_alpha / rank, or lora_alpha / √rank for rsLoRA.
        total: Squared norms of whole rows of V, or None if the tile holds whole rows.
    Raises:
        NotFinite: A row of V has norm zero, or one that is not a finite float64: its direction is not defined.
    Exactness: before the caller's one rounding, 1e-6 ulp of an output of 32 bits or less, plus what float64 itself
        leaves where (1 - alpha)·W and alpha·W_tuned cancel: 2^-50·(rank + in + 8)·(|W| + g·S + g·|V|·‖S‖/‖V‖), with
        S = |W| + |s|·|B||A| and g = |magnitude|/‖V‖.
    Closed: see `rescaled`.
    Source: Liu et al. 2024, arXiv:2402.09353, eq. 5. The norm has no epsilon, as in PEFT.
    """
    from wiseft_core.kits import kit  # numpy comes with arithmetic, not with a plan

    direction = _direction(weight, factors, hyper)
    norm = _norm(kit(weight).square_sum(direction) if total is None else total)
    direction *= (factors["magnitude"] / norm)[:, None]
    return direction


def rescaled(factors: Factors, alpha: float, total: Total) -> Factors:
    """The factors of the interpolated weight, which is again a DoRA of the same rank.

        g = m / ‖V‖        h = (1 - alpha) + alpha·g        B' = diag(alpha·g / h)·B        m' = h·‖W + s·B'·A‖

    because (1 - alpha)·W + alpha·g·V = h·(W + s·B'·A), whose norm is |m'|. h < 0 is allowed, and makes m' negative. At
    alpha = 1 it is h = g, and the factors stay, those with m = 0 too.

    Shapes:
        As for `tuned`.
    Raises:
        NotFinite: h is zero at another alpha, so that W has no part in the row; or ‖V‖ or ‖W + s·B'·A‖ is zero or not
            finite.
    """
    gain = factors["magnitude"] / _norm(total({}))
    share = (1 - alpha) + alpha * gain
    if alpha != 1 and not bool((share != 0).all()):
        raise NotFinite(
            f"at alpha {alpha:g} the base has no part in a row, and no DoRA is the interpolated weight",
            expected="(1 - alpha) + alpha·magnitude/‖W + s·B·A‖ other than zero in every row",
            got="zero in some",
            hint="choose an alpha beside this one, or interpolate the whole model instead",
        )
    scaled = factors["B"] if alpha == 1 else factors["B"] * (alpha * gain / share)[:, None]
    return {"B": scaled, "magnitude": share * _norm(total({"B": scaled}))}


def _direction(weight: Tensor, factors: Factors, hyper: Hyper) -> Tensor:
    """V = W + s·B·A."""
    from wiseft_core.kits import kit

    maths = kit(weight)
    direction: Tensor = maths.moved(weight, maths.product(factors["B"], factors["A"]), hyper.scale)
    return direction


def _norm(total: Tensor) -> Tensor:
    """The norms of rows from their squares; a row that has no direction is refused."""
    from wiseft_core.kits import kit

    norm: Tensor = kit(total).root(total)
    if not bool(((norm > 0) & (norm < float("inf"))).all()):
        raise NotFinite(
            "a row of W + s·B·A has no direction",
            expected="norms above zero and finite, to divide by",
            got=f"norms from {norm.min().item():g} to {norm.max().item():g}",
            hint="DoRA is not defined there: look for zero, NaN or inf rows in the base, or leave this module out",
        )
    return norm


DORA = Family(
    name="dora",
    parameters={
        "weight": Change(
            factors={"A": "rank in", "B": "out rank", "magnitude": "out"},
            tuned=tuned,
            measure=measure,
            arrays=True,
            layouts=("linear", "transposed", "convolution", "embedding"),
            rescaled=rescaled,
        ),
    },
    source="Liu et al. 2024, DoRA: Weight-Decomposed Low-Rank Adaptation, arXiv:2402.09353, eq. 5",
    peft="LORA",
    options=OPTIONS,
    scale=scale,
    variant={"use_dora": True},
)
