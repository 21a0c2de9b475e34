"""PiSSA: a low-rank difference that starts as the weight's largest singular components, which the base then lacks.

    W_tuned = W - U_r·S_r·V_r + s·B·A        U·S·V = W, its r largest singular values

W is the base as it is on disk, from which PEFT takes the components away each time that it loads: in float32, and
rounded to the base's dtype, where we do neither. PEFT's randomised variant (`pissa_niter_*`) saves no seed: refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wiseft_core.families._family import Change, Factors, Family, Hyper
from wiseft_core.families.lora import LORA, delta

if TYPE_CHECKING:
    from torch import Tensor


def tuned(weight: Tensor, factors: Factors, hyper: Hyper, total: Tensor | None) -> Tensor:
    """The tuned weight.

        W_tuned = W - U_r·S_r·V_r + s·B·A

    Shapes:
        weight (out, in); A (rank, in); B (out, rank). Returns (out, in).
    Exactness: as well as the singular vectors are known: float64 roundings of W over the gap between S_r and S_r+1,
        relatively. LAPACK's last bits depend on the number of threads, and so may one in a million of float32's.
    Closed: no: the factors of W(alpha) would have to take only a part of the components away.
    Source: Meng et al. 2024, arXiv:2404.02948.
    """
    import torch  # comes with arithmetic, not with a plan

    from wiseft_core.numerics import moved, product

    rank = hyper.sizes["rank"]
    left, sizes, right = torch.linalg.svd(weight, full_matrices=False)
    taken = product(left[:, :rank] * sizes[:rank], right[:rank])
    return moved(weight - taken, delta(factors, hyper), hyper.scale)


PISSA = Family(
    name="pissa",
    parameters={"weight": Change(factors={"A": "rank in", "B": "out rank"}, tuned=tuned, whole=True)},
    source="Meng et al. 2024, PiSSA, arXiv:2404.02948",
    peft="LORA",
    options=LORA.options,
    scale=LORA.scale,
    variant={"init_lora_weights": "pissa"},
)
