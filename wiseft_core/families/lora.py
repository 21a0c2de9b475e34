"""LoRA: a low-rank difference added to a weight.

    W_tuned = W + s·B·A        s = lora_alpha / rank, or lora_alpha / √rank for rsLoRA

The difference does not depend on W, so W(alpha) = W + (alpha·s)·B·A, with one product and one rounding. Convolutions
and embeddings are the same product on the weight seen as a matrix. `lora_bias` adds s·b to the module's bias.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wiseft_core.families._family import Change, Factors, Family, Total

if TYPE_CHECKING:
    from torch import Tensor


def delta(factors: Factors) -> Tensor:
    """The low-rank difference, before its scale.

        D = B·A

    Shapes:
        A (rank, in); B (out, rank). Returns (out, in).
    Args:
        factors: Roles "A" and "B".
    Exactness: W + c·D has an error of at most 2^-48·(rank + 4)·(|W| + |c|·sum |B||A|) before the caller's one rounding,
        in float64.
    Closed: see `rescaled`.
    Source: Hu et al. 2021, arXiv:2106.09685, eq. 3; scale of rsLoRA: Kalajdzievski 2023, arXiv:2312.03732.
    """
    from wiseft_core.numerics import product  # torch comes with arithmetic, not with a plan

    return product(factors["B"], factors["A"])


def delta_of_bias(factors: Factors) -> Tensor:
    """The bias that was trained with B (`lora_bias=True`), before its scale.

        D = bias

    Shapes:
        bias (out). Returns (out, 1), as the base's bias is a column.
    Exactness: two float64 roundings before the caller's one.
    Closed: see `rescaled_bias`.
    Source: PEFT 0.21 `LoraConfig.lora_bias`: B(A(x)) has the bias, so it is scaled like the product.
    """
    return factors["bias"].unsqueeze(1)


def rescaled(factors: Factors, alpha: float, total: Total) -> Factors:
    """The factors of the interpolated weight.

    B' = alpha·B        W + s·B'·A = W + alpha·(W_tuned - W)
    """
    return {"B": factors["B"] * alpha}


def rescaled_bias(factors: Factors, alpha: float, total: Total) -> Factors:
    """The factor of the interpolated bias.

    bias' = alpha·bias
    """
    return {"bias": factors["bias"] * alpha}


LORA = Family(
    name="lora",
    parameters={
        "weight": Change(factors={"A": "rank in", "B": "out rank"}, delta=delta, rescaled=rescaled),
        "bias": Change(factors={"bias": "out"}, delta=delta_of_bias, rescaled=rescaled_bias),
    },
    needs_scale=True,
    source="Hu et al. 2021, LoRA, arXiv:2106.09685, eq. 3; Kalajdzievski 2023, rsLoRA, arXiv:2312.03732",
)
