"""GLoRA: a weight and a bias, each multiplied and moved, and a bias moved by the weight.

    W_tuned = W + W ∘ A + B        b_tuned = b + b ∘ D + E + W·C        W and b are those of the base

A and B are of low rank, or one number for each output, or one for all; C is of low rank or a vector over the inputs; D
and E are vectors or numbers. Those that are off PEFT saves as zeros, which are not read. A module without a bias has
none of C, D and E.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from wiseft_core.families._family import Change, Factors, Family, Hyper, Total

if TYPE_CHECKING:
    from torch import Tensor

LOW_RANK: Mapping[str, str] = {"A_Xd": "out rank", "A_Xu": "rank in", "B_Xd": "out rank", "B_Xu": "rank in"}
COUPLED: tuple[Mapping[str, str], ...] = (
    {"C_Xd": "inputs rank", "C_Xu": "rank 1", "W": "out inputs"},
    {"C_X": "inputs 1", "W": "out inputs"},
    {},
)
"""What C may be; with it the weight is needed."""
MOVED: tuple[Mapping[str, str], ...] = ({"D_X": "out", "E_X": "out"}, {"D_X": "1", "E_X": "1"}, {})
"""What D and E may be."""
FIRST = frozenset({"A_Xd", "B_Xd", "A_X", "B_X", "C_Xd", "C_X", "D_X", "E_X"})
"""In each of these alone the change is linear."""


def tuned(weight: Tensor, factors: Factors, hyper: Hyper, total: Tensor | None) -> Tensor:
    """The tuned weight.

        W_tuned = W + W ∘ A + B        A = A_Xd·A_Xu or A_X, and so B

    Shapes:
        weight (out, in); A_Xd and B_Xd (out, rank); A_Xu and B_Xu (rank, in); A_X and B_X (out, 1) or (1). Returns
        (out, in).
    Exactness: off by at most 2^-48·(rank + 4)·(|W| + |W| ∘ |A| + |B|), with the sizes of A's and B's own products.
    Closed: see `rescaled`.
    Source: Chavan et al. 2023, arXiv:2306.07967.
    """
    return weight * (1 + path(factors, "A")) + path(factors, "B")


def tuned_bias(weight: Tensor, factors: Factors, hyper: Hyper, total: Tensor | None) -> Tensor:
    """The tuned bias, in the place of `weight`.

        b_tuned = b + b ∘ D + E + W·C        C = C_Xd·C_Xu or C_X; D = D_X; E = E_X; 0 where there is none

    Shapes:
        weight (out, 1), the bias; W (out, inputs), the weight of the base; C_Xd (inputs, rank); C_Xu (rank, 1); C_X
        (inputs, 1); D_X and E_X (out) or (1). Returns (out, 1).
    Exactness: off by at most 2^-48·(inputs + rank + 4)·(|b| + |b| ∘ |D| + |E| + |W|·|C|).
    Closed: see `rescaled`.
    Source: Chavan et al. 2023, arXiv:2306.07967.
    """
    from wiseft_core.numerics import product  # torch comes with arithmetic, not with a plan

    found = weight
    if "D_X" in factors:
        found = found + weight * factors["D_X"].unsqueeze(1) + factors["E_X"].unsqueeze(1)
    return found + product(factors["W"], path(factors, "C")) if "W" in factors else found


def path(factors: Factors, name: str) -> Tensor:
    """One of A, B and C: its product, or what stands for it."""
    from wiseft_core.numerics import product  # torch comes with arithmetic, not with a plan

    whole = factors.get(f"{name}_X")
    return product(factors[f"{name}_Xd"], factors[f"{name}_Xu"]) if whole is None else whole


def rescaled(factors: Factors, alpha: float, total: Total) -> Factors:
    """The factors of the interpolated weight or bias.

    A' = alpha·A and so B, C, D and E: of a product its first factor
    """
    return {role: factor * alpha for role, factor in factors.items() if role in FIRST}


def _weight(**factors: str) -> Change:
    """A form of the weight."""
    return Change(factors=factors, tuned=tuned, layouts=("linear",), rescaled=rescaled)


def _bias(coupled: Mapping[str, str], moved: Mapping[str, str]) -> Change:
    """A form of the bias."""
    return Change(
        factors={**coupled, **moved},
        tuned=tuned_bias,
        layouts=("whole",),
        beside={"W": "weight"} if coupled else {},
        rescaled=rescaled,
    )


GLORA = Family(
    name="glora",
    parameters={
        "weight": (_weight(**LOW_RANK), _weight(A_X="out 1", B_X="out 1"), _weight(A_X="1", B_X="1")),
        "bias": tuple(_bias(coupled, moved) for coupled in COUPLED for moved in MOVED if coupled or moved),
    },
    source="Chavan et al. 2023, One-for-All: Generalized LoRA, arXiv:2306.07967",
    peft="GLORA",
    keys={
        **{f"glora_{name}.{part}": f"{name}_{part}" for name in "AB" for part in ("Xd", "Xu", "X")},
        **{f"glora_C.{part}": f"bias C_{part}" for part in ("Xd", "Xu", "X")},
        **{f"glora_{name}.X": f"bias {name}_X" for name in "DE"},
        **{f"glora_{name}.zeros": "ignored" for name in "ABCDE"},
    },
    harmless={
        "r": "the shapes of the factors tell it",
        "config_A_B": "the factors that are there tell it",
        "config_C": "the factors that are there tell it",
        "config_D_E": "the factors that are there tell it",
    },
)
