"""KaSA: a low-rank difference with a trained diagonal, added to a weight without its smallest singular components.

    W_tuned = W - U_d·S_d·V_d + s·B·diag(diag)·A        U·S·V = W, its r smallest singular values

W is the base as it is on disk, from which PEFT takes the components away each time that it loads: in float32, and
rounded to the base's dtype, where we do neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wiseft_core.families._family import Change, Factors, Family, Hyper, Option
from wiseft_core.families.lora import LORA

if TYPE_CHECKING:
    from torch import Tensor


def tuned(weight: Tensor, factors: Factors, hyper: Hyper, total: Tensor | None) -> Tensor:
    """The tuned weight.

        W_tuned = W - U_d·S_d·V_d + s·B·diag(diag)·A

    Shapes:
        weight (out, in); A (rank, in); B (out, rank); diag (rank). Returns (out, in).
    Exactness: as well as the singular vectors are known: float64 roundings of W over the gap between the components
        that stay and those that go, relatively.
    Closed: no: the factors of W(alpha) would have to take only a part of the components away.
    Source: Wang et al. 2024, arXiv:2412.06071.
    """
    import torch  # comes with arithmetic, not with a plan

    from wiseft_core.numerics import moved, product

    left, sizes, right = torch.linalg.svd(weight, full_matrices=False)
    kept = len(sizes) - hyper.sizes["rank"]
    taken = product(left[:, kept:] * sizes[kept:], right[kept:])
    return moved(weight - taken, product(factors["B"] * factors["diag"], factors["A"]), hyper.scale)


KASA = Family(
    name="kasa",
    parameters={
        "weight": Change(
            factors={"A": "rank in", "B": "out rank", "diag": "rank"},
            tuned=tuned,
            whole=True,
            layouts=("linear",),
            fits=lambda sizes: sizes["rank"] < min(sizes["out"], sizes["in"]),
        ),
    },
    source="Wang et al. 2024, KaSA: Knowledge-Aware Singular-Value Adaptation, arXiv:2412.06071",
    peft="LORA",
    options={**LORA.options, "kasa_config": Option((True,))},
    scale=LORA.scale,
    variant={"kasa_config": True},
)
