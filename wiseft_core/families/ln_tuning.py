"""LN-tuning: the weights and biases of normalisation layers, trained as they are.

    W_tuned = trained

As for `full`; PEFT only spells the tensors in a way of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wiseft_core.families._family import Change, Factors, Family, Hyper

if TYPE_CHECKING:
    from torch import Tensor


def tuned(weight: Tensor, factors: Factors, hyper: Hyper, total: Tensor | None) -> Tensor:
    """The trained value itself.

        W_tuned = trained

    Shapes:
        weight (out, in); trained (out, in). Returns (out, in).
    Exactness: exact, as for `full`.
    Closed: the interpolated value is such a value.
    Source: Zhao et al. 2023, arXiv:2312.11420.
    """
    return factors["trained"]


STATISTICS = ("running_mean", "running_var")
"""What batch normalisation keeps of its inputs: PEFT trains and saves the whole module."""
CHANGE = Change(factors={"trained": "out in"}, tuned=tuned, layouts=("whole",), value="trained")
LN_TUNING = Family(
    name="ln_tuning",
    parameters=dict.fromkeys(("weight", "bias", *STATISTICS), CHANGE),
    source="Zhao et al. 2023, Tuning LayerNorm in Attention, arXiv:2312.11420",
    peft="LN_TUNING",
    keys={
        "ln_tuning_layers.weight": "trained",
        **{f"ln_tuning_layers.{name}": f"{name} trained" for name in ("bias", *STATISTICS)},
    },
)
