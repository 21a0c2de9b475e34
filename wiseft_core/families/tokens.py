"""Rows of an embedding that were trained one by one (PEFT's trainable tokens).

    W_tuned[index[k], :] = rows[k, :]

PEFT calls the tensor `trainable_tokens_delta`, but it holds the rows' absolute values, not differences. Rows that are
not listed keep the base's bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wiseft_core.families._family import Change, Factors, Family, Hyper

if TYPE_CHECKING:
    from torch import Tensor


def tuned(weight: Tensor, factors: Factors, hyper: Hyper, total: Tensor | None) -> Tensor:
    """The trained values of the listed rows at hand.

        W_tuned[index[k], :] = rows[k, :]

    Shapes:
        weight (row, in), the listed rows of the table only; rows (row, in). Returns (row, in).
    Exactness: exact, as for `full`.
    Closed: the interpolated rows are such rows.
    Source: PEFT 0.21 `TrainableTokensLayer`: index_copy of the saved rows over the base's.
    """
    return factors["rows"]


TOKENS = Family(
    name="tokens",
    parameters={
        "weight": Change(factors={"rows": "row in"}, tuned=tuned, layouts=("whole",), arrays=True, value="rows")
    },
    source="PEFT 0.21, TrainableTokensLayer (trainable_token_indices, TRAINABLE_TOKENS)",
)
