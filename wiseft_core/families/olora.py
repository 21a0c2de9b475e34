"""OLoRA: a low-rank difference that starts as the first columns of a QR decomposition, which the base then lacks.

    W_tuned = W - s·Q_r·R_r + s·B·A        Q·R = W, the first r columns of Q and rows of R

W is the base as it is on disk, from which PEFT takes the product away each time that it loads: in float32, and rounded
to the base's dtype, where we do neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wiseft_core.families._family import Change, Factors, Family, Hyper
from wiseft_core.families.lora import LORA, delta

if TYPE_CHECKING:
    from torch import Tensor


def tuned(weight: Tensor, factors: Factors, hyper: Hyper, total: Tensor | None) -> Tensor:
    """The tuned weight.

        W_tuned = W - s·Q_r·R_r + s·B·A

    Shapes:
        weight (out, in); A (rank, in); B (out, rank). Returns (out, in).
    Exactness: float64 roundings of W times the condition of its first r columns, relatively. LAPACK's last bits depend
        on the number of threads, and so may one in a million of float32's.
    Closed: no: the factors of W(alpha) would have to take only a part of the product away.
    Source: Buyukakyuz 2024, arXiv:2406.01775, algorithm 1.
    """
    import torch  # comes with arithmetic, not with a plan

    from wiseft_core.numerics import moved, product

    rank = hyper.sizes["rank"]
    basis = torch.linalg.qr(weight[:, :rank]).Q  # Q_r; and R_r is what it makes of the whole weight
    return moved(weight, delta(factors, hyper) - product(basis, product(basis.T, weight)), hyper.scale)


OLORA = Family(
    name="olora",
    parameters={
        "weight": Change(factors={"A": "rank in", "B": "out rank"}, tuned=tuned, whole=True, layouts=("linear",))
    },
    source="Buyukakyuz 2024, OLoRA: Orthonormal Low-Rank Adaptation, arXiv:2406.01775, algorithm 1",
    peft="LORA",
    options=LORA.options,
    scale=LORA.scale,
    variant={"init_lora_weights": "olora"},
)
