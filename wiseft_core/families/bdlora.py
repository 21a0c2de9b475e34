"""BD-LoRA: a low-rank difference of which one factor is block-diagonal.

    W_tuned = W + s·B·A        A or B is blockdiag(...), of as many blocks as `nblocks` says

The blocks are saved as one narrow matrix, one below the other. Which factor has them, and how many there are, the
shapes tell. A module that has none in either is one of LoRA.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wiseft_core.families._family import Change, Factors, Family, Hyper, Sizes
from wiseft_core.families.lora import LORA
from wiseft_core.families.lora import delta as plain_delta

if TYPE_CHECKING:
    from torch import Tensor


def delta(factors: Factors, hyper: Hyper) -> Tensor:
    """The difference of one block after the other, before its scale.

        D = B·blockdiag(A_1, ...), or blockdiag(B_1, ...)·A        their blocks below each other in A, or in B

    Shapes:
        A (rank, in/blocks) and B (out, rank), or A (rank, in) and B (out, rank/blocks). Returns (out, in).
    Exactness: as for LoRA, with rank/blocks in the place of rank.
    Closed: linear in B.
    Source: Wang et al. 2025, arXiv:2510.23346.
    """
    import torch  # comes with arithmetic, not with a plan

    from wiseft_core.numerics import product

    first, second = factors["A"], factors["B"]
    across = first.shape[1] < hyper.sizes["in"]
    blocks = hyper.sizes["in"] // first.shape[1] if across else len(first) // second.shape[1]
    parts = zip(second.chunk(blocks, dim=int(across)), first.chunk(blocks), strict=True)
    return torch.cat([product(left, right) for left, right in parts], dim=int(across))


def _narrow_first(sizes: Sizes) -> bool:
    """Whether A is of several blocks."""
    blocks, rest = divmod(sizes["in"], max(sizes["narrow"], 1))
    return blocks > 1 and rest == 0 and sizes["rank"] % blocks == 0


def _narrow_second(sizes: Sizes) -> bool:
    """Whether B is of several blocks."""
    blocks, rest = divmod(sizes["rank"], max(sizes["narrow"], 1))
    return blocks > 1 and rest == 0 and sizes["out"] % blocks == 0


BDLORA = Family(
    name="bdlora",
    parameters={
        "weight": (
            Change({"A": "rank in", "B": "out rank"}, delta=plain_delta, linear="B"),
            Change(
                {"A": "rank narrow", "B": "out rank"},
                delta=delta,
                whole=True,
                layouts=("linear",),
                fits=_narrow_first,
                linear="B",
            ),
            Change(
                {"A": "rank in", "B": "out narrow"},
                delta=delta,
                whole=True,
                layouts=("linear",),
                fits=_narrow_second,
                linear="B",
            ),
        ),
    },
    source="Wang et al. 2025, Block-Diagonal LoRA for Eliminating Communication Overhead, arXiv:2510.23346",
    peft="LORA",
    options=LORA.options,
    scale=LORA.scale,
    variant={"use_bdlora": True},
)
