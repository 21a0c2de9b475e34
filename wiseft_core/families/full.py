"""A tensor that was trained as a whole: the original WiSE-FT.

    W_tuned = value

PEFT writes such tensors for `modules_to_save`, for trained biases (`bias="all"`, `"lora_only"`) and for embeddings that
were targeted or resized; a full fine-tuned checkpoint consists of nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wiseft_core.families._family import Change, Factors, Family, Hyper

if TYPE_CHECKING:
    from torch import Tensor


def tuned(weight: Tensor, factors: Factors, hyper: Hyper, total: Tensor | None) -> Tensor:
    """The trained value itself.

        W_tuned = value

    Shapes:
        weight (out, in); value (out, in). Returns (out, in).
    Exactness: exact; the interpolation W + alpha·(value - W) is rounded once by the caller, and alpha = 1 is value.
    Closed: the interpolated value is such a value.
    Source: Wortsman et al. 2022, arXiv:2109.01903, section 3.
    """
    return factors["value"]


FULL = Family(
    name="full",
    parameters={"*": Change(factors={"value": "out in"}, tuned=tuned, layouts=("whole",), arrays=True, value="value")},
    source="Wortsman et al. 2022, Robust fine-tuning of zero-shot models, arXiv:2109.01903, section 3",
)
