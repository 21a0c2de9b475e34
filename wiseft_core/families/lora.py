"""LoRA: a low-rank difference added to a weight.

    W_tuned = W + s·B·A        s = lora_alpha / rank, or lora_alpha / √rank for rsLoRA

The difference does not depend on W, so W(alpha) = W + (alpha·s)·B·A, with one product and one rounding. Convolutions
and embeddings are the same product on the weight seen as a matrix. `lora_bias` adds s·b to the module's bias.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from wiseft_core.families._family import Change, Factors, Family, Hyper, Option, Options

if TYPE_CHECKING:
    from torch import Tensor


def delta(factors: Factors, hyper: Hyper) -> Tensor:
    """The low-rank difference, before its scale.

        D = B·A

    Shapes:
        A (rank, in); B (out, rank). Returns (out, in).
    Args:
        factors: Roles "A" and "B".
        hyper: Not read: the scale comes after.
    Exactness: W + c·D has an error of at most 2^-48·(rank + 4)·(|W| + |c|·sum |B||A|) before the caller's one rounding,
        in float64.
    Closed: linear in B.
    Source: Hu et al. 2021, arXiv:2106.09685, eq. 3; scale of rsLoRA: Kalajdzievski 2023, arXiv:2312.03732.
    """
    from wiseft_core.kits import kit  # numpy comes with arithmetic, not with a plan

    product: Tensor = kit(factors["B"]).product(factors["B"], factors["A"])
    return product


def delta_of_bias(factors: Factors, hyper: Hyper) -> Tensor:
    """The bias that was trained with B (`lora_bias=True`), before its scale.

        D = bias

    Shapes:
        bias (out). Returns (out, 1), as the base's bias is a column.
    Exactness: two float64 roundings before the caller's one.
    Closed: linear in bias.
    Source: PEFT 0.21 `LoraConfig.lora_bias`: B(A(x)) has the bias, so it is scaled like the product.
    """
    return factors["bias"][:, None]


def scale(options: Options) -> float:
    """s from the config.

    lora_alpha / r, or lora_alpha / √r with use_rslora
    """
    return float(options["lora_alpha"] / (math.sqrt(options["r"]) if options["use_rslora"] else options["r"]))


OPTIONS = {
    "lora_alpha": Option(float, pattern="alpha_pattern"),
    "r": Option(int, pattern="rank_pattern"),
    "use_rslora": Option(bool, default=False),
}
"""What s is read from."""
LORA = Family(
    name="lora",
    parameters={
        "weight": Change(
            factors={"A": "rank in", "B": "out rank"},
            delta=delta,
            layouts=("linear", "transposed", "convolution", "embedding"),
            arrays=True,
            linear="B",
        ),
        "bias": Change(factors={"bias": "out"}, delta=delta_of_bias, layouts=("whole",), arrays=True, linear="bias"),
    },
    source="Hu et al. 2021, LoRA, arXiv:2106.09685, eq. 3; Kalajdzievski 2023, rsLoRA, arXiv:2312.03732",
    peft="LORA",
    options=OPTIONS,
    scale=scale,
)
