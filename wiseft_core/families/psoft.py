"""PSOFT: the largest singular components of a weight, turned among themselves.

    W_tuned = W + U_r·S_r·(R - I)·V_r        R = diag(b)·C·diag(a)        U·S·V = W, its r largest singular values

C is Cayley's transform of a skew matrix, or its series (see `oft`), or any matrix (`psoft_orth=False`); a and b may be
missing. With `ab_svd_init="pissa_init"` S stands half on each side: √S_r·(R - I)·√S_r. PEFT's scale cancels.

A singular vector may be taken with either sign, and the paper does not say which; where R mixes components that decides
the result. PEFT saves none of them: it takes what LAPACK gives for W in float32, each time that it loads, and so do we,
with a note: torch on another device, or another LAPACK, gives other signs, and an adapter from there another change.
Its randomised decomposition (`psoft_svd="lowrank"`) is refused.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from wiseft_core.families._family import Change, Factors, Family, Hyper, Option, Options, Sizes, Total
from wiseft_core.families.oft import block_size, rotations

if TYPE_CHECKING:
    from torch import Tensor

VECTORS: tuple[tuple[str, ...], ...] = (("a", "b"), ("a",), ("b",), ())
"""Which of the two vectors there may be."""


def tuned(weight: Tensor, factors: Factors, hyper: Hyper, total: Tensor | None) -> Tensor:
    """The tuned weight.

        W_tuned = W + U_r·S_r·(diag(b)·C·diag(a) - I)·V_r

    Shapes:
        weight (out, in); C (pairs), the elements above the diagonal of a skew (rank, rank), row by row, or C itself,
        (rank, rank); a and b (rank). Returns (out, in).
    Exactness: as well as the singular vectors are known: float64 roundings of W over the least gap among its
        rank + 1 largest singular values, relatively.
    Closed: no: (1 - alpha)·I + alpha·R is no rotation. With `psoft_orth=False` see `rescaled`.
    Source: PSOFT, openreview.net/forum?id=FSHrinMArK.
    """
    import torch  # comes with arithmetic, not with a plan

    from wiseft_core.numerics import product

    turn = factors["C"] if factors["C"].dim() > 1 else rotation(factors["C"], hyper)
    rank = len(turn)
    for role, at in (("a", 0), ("b", 1)):
        turn = turn * factors[role].unsqueeze(at) if role in factors else turn
    left, sizes, right = largest(weight, rank)
    if hyper.options["ab_svd_init"] == "pissa_init":
        left, right = left * sizes.sqrt(), right * sizes.sqrt()[:, None]
    else:
        left = left * sizes
    turned = product(left, turn - torch.eye(rank, dtype=turn.dtype, device=turn.device))
    return product(turned, right).add_(weight)


def rotation(pairs: Tensor, hyper: Hyper) -> Tensor:
    """C of the elements above the diagonal of Q: (I + Q)·(I - Q)⁻¹ or its series, for a Q of at most the asked norm."""
    series = hyper.options["use_cayley_neumann"]
    norm, most = float(pairs.norm()) * 2**0.5, hyper.options["cayley_neumann_eps"]
    if series and norm > most:
        pairs = pairs * (most / (norm + 1e-12))
    return rotations((pairs if series else -pairs).unsqueeze(0), hyper)[0]


def largest(weight: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """U, S and V of the largest singular values, each pair of vectors with the signs that LAPACK gives in float32."""
    import torch  # comes with arithmetic, not with a plan

    left, sizes, right = torch.linalg.svd(weight, full_matrices=False)
    left, right = left[:, :rank], right[:rank]
    signs = (left * torch.linalg.svd(weight.float(), full_matrices=False)[0][:, :rank]).sum(0).sign()
    return left * signs, sizes[:rank], right * signs[:, None]


def rescaled(factors: Factors, alpha: float, total: Total) -> Factors:
    """The factor of the interpolated weight, where C is any matrix.

    C' = alpha·C + (1 - alpha)·diag(1 / (a ∘ b))
    """
    vectors = [factors[role] for role in ("a", "b") if role in factors]
    unit = math.prod(vectors, start=factors["C"].new_ones(len(factors["C"])))
    return {"C": alpha * factors["C"] + ((1 - alpha) / unit).diag()}


def _form(vectors: tuple[str, ...], *, turns: bool) -> Change:
    """The form with these vectors, whose C is a rotation or any matrix."""

    def meant(options: Options) -> bool:
        said = {role for role in ("a", "b") if options.get(f"psoft_mag_{role}", True)}
        return options.get("psoft_orth", True) is turns and said == set(vectors)

    axes = {"C": "pairs" if turns else "rank rank", **dict.fromkeys(vectors, "rank")}
    return Change(
        factors=axes,
        tuned=tuned,
        whole=True,
        layouts=("linear",),
        fits=_fits,
        when=meant,
        rescaled=None if turns else rescaled,
    )


def _fits(sizes: Sizes) -> bool:
    """Whether pairs and rank are of one matrix, no larger than the weight."""
    rank = sizes.get("rank", block_size(sizes.get("pairs", 0)))
    return sizes.get("pairs", rank * (rank - 1) // 2) * 2 == rank * (rank - 1) and rank <= min(
        sizes["out"], sizes["in"]
    )


PSOFT = Family(
    name="psoft",
    parameters={"weight": tuple(_form(vectors, turns=turns) for turns in (True, False) for vectors in VECTORS)},
    source="PSOFT: Efficient Orthogonal Fine-Tuning with Principal Subspace Adaptation, arXiv:2505.11235",
    peft="PSOFT",
    keys={"psoft_R.weight": "C", "psoft_R.vector_a": "a", "psoft_R.vector_b": "b"},
    options={
        "psoft_orth": Option(bool, default=True),
        "psoft_mag_a": Option(bool, default=True),
        "psoft_mag_b": Option(bool, default=True),
        "ab_svd_init": Option(("psoft_init", "pissa_init")),
        "psoft_svd": Option(
            ("full",), why="components that random projections find, in float32, anew each time that PEFT loads"
        ),
        "use_cayley_neumann": Option(bool),
        "num_cayley_neumann_terms": Option(int),
        "cayley_neumann_eps": Option(float, default=float("inf")),
    },
    harmless={
        "r": "the shapes of the factors tell it",
        "psoft_alpha": "it divides where it multiplies",
        "psoft_dropout": "active in training only",
        "psoft_svd_lowrank_niter": "read with psoft_svd='lowrank' only, which is refused",
        "random_seed": "read with psoft_svd='lowrank' only, which is refused",
    },
    note="PSOFT saves no singular vectors, and their signs are those of this device's linear algebra: an adapter that "
    "was trained on another kind of device may be another change here, with PEFT as with us",
)
