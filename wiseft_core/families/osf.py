"""OSF: a weight whose smallest singular components are trained, as they are, in place of those that it had.

    W_tuned = W - U·S·V + U_low·diag(S_low)·V_low        U·S·V: the components of W that are not its largest

How many are trained, the shapes tell. PEFT decomposes W in float32, and keeps its parts in the base's dtype.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wiseft_core.families._family import Change, Factors, Family, Hyper

if TYPE_CHECKING:
    from torch import Tensor


def tuned(weight: Tensor, factors: Factors, hyper: Hyper, total: Tensor | None) -> Tensor:
    """The tuned weight.

        W_tuned = U_high·S_high·V_high + U_low·diag(S_low)·V_low

    Shapes:
        weight (out, in); U_low (out, low); S_low (low); V_low (low, in). Returns (out, in).
    Exactness: as well as the singular vectors are known: float64 roundings of W over the gap between the components
        that are kept and those that are trained, relatively.
    Closed: no: a part of the old components would remain, and more than `low` be needed.
    Source: Nayak et al. 2025, arXiv:2504.07097.
    """
    import torch  # comes with arithmetic, not with a plan

    from wiseft_core.numerics import product

    left, sizes, right = torch.linalg.svd(weight, full_matrices=False)
    first = len(sizes) - hyper.sizes["low"]
    change = product(factors["U_low"] * factors["S_low"], factors["V_low"])
    return change.sub_(product(left[:, first:] * sizes[first:], right[first:])).add_(weight)


OSF = Family(
    name="osf",
    parameters={
        "weight": Change(
            factors={"U_low": "out low", "S_low": "low", "V_low": "low in"},
            tuned=tuned,
            whole=True,
            layouts=("linear",),
            fits=lambda sizes: sizes["low"] <= min(sizes["out"], sizes["in"]),
        ),
    },
    source="Nayak et al. 2025, Sculpting Subspaces: Constrained Full Fine-Tuning, arXiv:2504.07097",
    peft="OSF",
    keys={f"osf_svd_params.{role}": role for role in ("U_low", "S_low", "V_low")},
    harmless={
        "effective_rank": "the shapes of the factors tell it",
        "rank_pattern": "the shapes of the factors tell it",
        "target_svd_config": "the shapes of the factors tell it",
    },
)
