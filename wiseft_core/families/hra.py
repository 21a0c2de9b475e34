"""HRA: the inputs of a module, reflected at a chain of hyperplanes.

    W_tuned = W·H        H = (I - 2·u_1·u_1ᵀ)·...·(I - 2·u_r·u_rᵀ), each u of length 1

With `apply_GS` the vectors are made orthogonal first, one after the other. A convolution's weight is the matrix
(out, in·kernel).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wiseft_core.errors import NotFinite
from wiseft_core.families._family import Change, Factors, Family, Hyper, Option

if TYPE_CHECKING:
    from torch import Tensor


def tuned(weight: Tensor, factors: Factors, hyper: Hyper, total: Tensor | None) -> Tensor:
    """The reflected weight.

        W_tuned = W·(I - 2·u_1·u_1ᵀ)·...·(I - 2·u_r·u_rᵀ)

    Shapes:
        weight (out, in); u (in, rank), its columns of any length. Returns (out, in).
    Raises:
        NotFinite: A vector to be made orthogonal lies in the span of those before it.
    Exactness: rank · float64 roundings of the lengths of W's rows.
    Closed: no: (1 - alpha)·I + alpha·H is no reflection.
    Source: Yuan et al. 2024, arXiv:2405.17484; which of the two orders, and `apply_GS`: PEFT 0.21.
    """
    from wiseft_core.numerics import product  # torch comes with arithmetic, not with a plan

    vectors = orthogonal(factors["u"]) if hyper.options["apply_GS"] else factors["u"]
    turned = weight
    for vector in (vectors / vectors.norm(dim=0)).T:
        turned = turned - 2 * product(product(turned, vector[:, None]), vector[None, :])
    return turned


def orthogonal(vectors: Tensor) -> Tensor:
    """Gram and Schmidt's columns, of length 1, up to their signs."""
    import torch  # comes with arithmetic, not with a plan

    found: Tensor
    found, rest = torch.linalg.qr(vectors)
    noise = vectors.norm(dim=0) * len(vectors) * torch.finfo(torch.float32).eps
    if found.shape != vectors.shape or bool((rest.diagonal().abs() <= noise).any()):
        raise NotFinite(
            "a vector lies in the span of those before it",
            expected="vectors that are independent, because apply_GS makes them orthogonal",
            got=f"{vectors.shape[1]} dependent vectors of length {vectors.shape[0]}",
            hint="was this adapter trained at all? PEFT starts with pairs of equal vectors",
        )
    return found


HRA = Family(
    name="hra",
    parameters={"weight": Change({"u": "in rank"}, tuned=tuned, whole=True, layouts=("linear", "flat"))},
    source="Yuan et al. 2024, Bridging LoRA and Orthogonal Fine-tuning by Householder Reflection, arXiv:2405.17484",
    peft="HRA",
    keys={"hra_u": "u"},
    options={"apply_GS": Option(bool, default=False)},
    harmless={"r": "the shapes of the factors tell it"},
)
