"""SHiRA: a difference in few places of a weight.

    W_tuned[indices[0, k], indices[1, k]] = W[...] + values[k]

PEFT saves the places, as integers (as float32 on Windows). Its scale is 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wiseft_core.errors import ShapeMismatch
from wiseft_core.families._family import Change, Factors, Family, Hyper

if TYPE_CHECKING:
    from torch import Tensor


def delta(factors: Factors, hyper: Hyper) -> Tensor:
    """The difference, zero but in these places.

        D[indices[0, k], indices[1, k]] = values[k]; values of one place are added up

    Shapes:
        values (count); indices (2, count). Returns (out, in).
    Raises:
        ShapeMismatch: A place lies outside the weight.
    Exactness: W + c·D is off by two float64 roundings.
    Closed: linear in values.
    Source: Bhardwaj et al. 2024, arXiv:2406.13175.
    """
    out, size = hyper.sizes["out"], hyper.sizes["in"]
    rows, columns = factors["indices"]
    if not bool(((rows >= 0) & (rows < out) & (columns >= 0) & (columns < size)).all()):
        raise ShapeMismatch(
            "a place lies outside the weight",
            expected=f"rows below {out} and columns below {size}",
            got=f"up to {int(rows.max())} and {int(columns.max())}, from {int(rows.min())} and {int(columns.min())}",
            hint="is this the base that the adapter was trained on?",
        )
    dense = factors["values"].new_zeros(out, size)
    return dense.index_put_((rows, columns), factors["values"], accumulate=True)


SHIRA = Family(
    name="shira",
    parameters={
        "weight": Change(
            factors={"values": "count", "indices": "2 count"},
            delta=delta,
            whole=True,
            layouts=("linear",),
            integers=frozenset({"indices"}),
            linear="values",
        ),
    },
    source="Bhardwaj et al. 2024, Sparse High Rank Adapters, arXiv:2406.13175",
    peft="SHIRA",
    keys={"shira_weight": "values", "shira_indices": "indices"},
    harmless={
        "r": "the shapes of the factors tell it",
        "mask_type": "the places are read from the file",
        "random_seed": "the places are read from the file",
    },
)
