"""Uni-LoRA: a low-rank difference whose factors are all drawn from one short vector.

    W_tuned = W + B·A        A = theta[indices_A] ∘ scales_A        B = theta[indices_B] ∘ scales_B

The indices are read from the file (`save_indices=True`). PEFT does not save them by default, and draws them anew for
all modules in the order in which the model has them: no file says that order, and such an adapter is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wiseft_core.errors import ShapeMismatch
from wiseft_core.families._family import Change, Factors, Family, Hyper, Option

if TYPE_CHECKING:
    from torch import Tensor


def delta(factors: Factors, hyper: Hyper) -> Tensor:
    """The difference.

        D = (theta[indices_B] ∘ scales_B)·(theta[indices_A] ∘ scales_A)

    Shapes:
        indices_A and scales_A (rank, in); indices_B and scales_B (out, rank); theta (length). Returns (out, in).
    Raises:
        ShapeMismatch: Theta is not as long as the config says, or an index lies outside of it.
    Exactness: W + c·D is off by at most 2^-48·(rank + 6)·(|W| + |c|·|B||A|).
    Closed: linear in scales_B; theta belongs to all modules.
    Source: Li et al. 2025, arXiv:2506.00799.
    """
    from wiseft_core.numerics import product  # torch comes with arithmetic, not with a plan

    length = hyper.options["theta_d_length"]
    if length not in (len(factors["theta"]), None):
        raise ShapeMismatch(
            "theta is not as long as the config says",
            expected=f"theta {[length]}",
            got=f"theta {list(factors['theta'].shape)}",
            hint="config and tensors belong to different adapters",
        )
    return product(_drawn(factors, "B"), _drawn(factors, "A"))


def _drawn(factors: Factors, side: str) -> Tensor:
    """One of the two factors."""
    theta, indices = factors["theta"], factors[f"indices_{side}"]
    if not bool(((indices >= 0) & (indices < len(theta))).all()):
        raise ShapeMismatch(
            "an index lies outside theta",
            expected=f"indices from 0 to {len(theta) - 1}",
            got=f"from {int(indices.min())} to {int(indices.max())}",
            hint="the adapter file is damaged",
        )
    return theta[indices] * factors[f"scales_{side}"]


UNILORA = Family(
    name="unilora",
    parameters={
        "weight": Change(
            factors={
                "indices_A": "rank in",
                "scales_A": "rank in",
                "indices_B": "out rank",
                "scales_B": "out rank",
                "theta": "length",
            },
            delta=delta,
            integers=frozenset({"indices_A", "indices_B"}),
            linear="scales_B",
        ),
    },
    source="Li et al. 2025, Uni-LoRA: One Vector Is All You Need, arXiv:2506.00799",
    peft="UNILORA",
    keys={
        **{f"unilora_{role}": role for role in ("indices_A", "scales_A", "indices_B", "scales_B")},
        "base_model.unilora_theta_d": "theta",
    },
    options={
        "theta_d_length": Option(int),
        "save_indices": Option(
            (True,), why="indices are drawn for all modules in the order in which the model has them: no file says it"
        ),
    },
    harmless={
        "r": "the shapes of the factors tell it",
        "proj_seed": "the indices are read from the file",
        "unilora_dropout": "active in training only",
        "init_theta_d_bound": "the first values, before training",
    },
)
