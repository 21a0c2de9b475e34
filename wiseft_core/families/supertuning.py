"""Super-Tuning: a difference in the few places of a weight that are largest, or smallest, in size.

    W_tuned = W + D        D[indices // in, indices % in] = values
    W_tuned = W + D + (lora_alpha / rank)·B·A        its hybrid, Supra

The places are read from the file: an adapter that was saved without them (`save_precomputed_indices=False`) is refused,
because nothing fixes the order of places whose sizes are equal, and so which value belongs to which.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wiseft_core.errors import ShapeMismatch
from wiseft_core.families._family import Change, Factors, Family, Hyper, Option, Sizes, Total

if TYPE_CHECKING:
    from torch import Tensor


def delta(factors: Factors, hyper: Hyper) -> Tensor:
    """The difference, zero but in these places.

        D[indices[k] // in, indices[k] % in] = values[k]; values of one place are added up

    Shapes:
        values (count); indices (count). Returns (out, in).
    Raises:
        ShapeMismatch: A place lies outside the weight.
    Exactness: W + c·D is off by two float64 roundings.
    Closed: linear in values.
    Source: Super-Tuning 2026, arXiv:2607.09287.
    """
    out, size = hyper.sizes["out"], hyper.sizes["in"]
    places, values = factors["indices"], factors["values"]
    if not bool(((places >= 0) & (places < out * size)).all()):
        raise ShapeMismatch(
            "a place lies outside the weight",
            expected=f"places from 0 to {out * size - 1}",
            got=f"from {int(places.min())} to {int(places.max())}",
            hint="is this the base that the adapter was trained on?",
        )
    return values.new_zeros(out * size).index_put_((places,), values, accumulate=True).view(out, size)


def delta_of_hybrid(factors: Factors, hyper: Hyper) -> Tensor:
    """The difference in these places, and a low-rank one everywhere.

        D = D_places + (lora_alpha / rank)·B·A

    Shapes:
        values (count); indices (count); A (rank, in); B (out, rank). Returns (out, in).
    Raises:
        ShapeMismatch: As for `delta`.
    Exactness: W + c·D is off by at most 2^-48·(rank + 6)·(|W| + |c|·(|D_places| + |lora_alpha / rank|·|B||A|)).
    Closed: linear in values and B together.
    Source: Super-Tuning 2026, arXiv:2607.09287, its hybrid Supra.
    """
    from wiseft_core.numerics import moved, product  # torch comes with arithmetic, not with a plan

    scale = hyper.options["lora_alpha"] / hyper.sizes["rank"]
    return moved(delta(factors, hyper), product(factors["B"], factors["A"]), scale)


def rescaled(factors: Factors, alpha: float, total: Total) -> Factors:
    """The factors of the interpolated weight.

    values' = alpha·values        B' = alpha·B
    """
    return {role: factors[role] * alpha for role in ("values", "B")}


def _few(sizes: Sizes) -> bool:
    """Whether there are as many places in the weight."""
    return sizes["count"] <= sizes["out"] * sizes["in"]


OWN = {"values": "count", "indices": "count"}
SUPERTUNING = Family(
    name="supertuning",
    parameters={
        "weight": Change(
            OWN,
            delta=delta,
            whole=True,
            layouts=("linear",),
            fits=_few,
            integers=frozenset({"indices"}),
            linear="values",
        ),
    },
    source="Super-Tuning 2026, arXiv:2607.09287",
    peft="SUPERTUNING",
    keys={
        "supertuning_values": "values",
        "supertuning_indices": "indices",
        "supertuning_lora_A.weight": "A",
        "supertuning_lora_B.weight": "B",
    },
    harmless={
        "sparsity": "the shapes of the factors tell it",
        "select_top": "the places are read from the file",
        "save_precomputed_indices": "the places are in the file, or it is refused",
        "lora_dropout": "active in training only",
    },
)
SUPRA = SUPERTUNING._replace(
    name="supra",
    parameters={
        "weight": Change(
            {**OWN, "A": "rank in", "B": "out rank"},
            delta=delta_of_hybrid,
            whole=True,
            layouts=("linear",),
            fits=_few,
            integers=frozenset({"indices"}),
            rescaled=rescaled,
        ),
    },
    options={"lora_alpha": Option(float), "r": Option(int)},
)
