"""GraLoRA: a low-rank difference for each block of a weight, out of factors that the blocks share.

    W_tuned = W + s·(D + B_general·A_general)        s = alpha / (rank + hybrid)

The weight is cut into k by k blocks. Each has rank/k components: block (m, n) takes those that A_n keeps for m, and
those that B_m keeps for n. The hybrid form adds a plain low-rank difference, of rank `hybrid`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wiseft_core.errors import ShapeMismatch
from wiseft_core.families._family import Change, Factors, Family, Hyper, Option, Options, Sizes, Total

if TYPE_CHECKING:
    from torch import Tensor


def delta(factors: Factors, hyper: Hyper) -> Tensor:
    """The difference of all blocks, and that of the hybrid form, before alpha.

        D[m, n] = (A[n][:, part m]·B[m][part n, :])ᵀ / (rank + hybrid)        parts of rank/k components

    Shapes:
        A (k, in/k, rank); B (k, rank, out/k); A_general (hybrid, in); B_general (out, hybrid). Returns (out, in).
    Raises:
        ShapeMismatch: The hybrid form has another rank than the config says.
    Exactness: W + c·D is off by at most 2^-48·(rank + hybrid + 5)·(|W| + |c|·the same sums of |B||A|).
    Closed: linear in B, and in B and B_general together.
    Source: Jung et al. 2025, arXiv:2505.20355; PEFT 0.21 for the hybrid form.
    """
    import torch  # comes with arithmetic, not with a plan

    from wiseft_core.numerics import product

    hybrid, first, second = hyper.sizes.get("hybrid", 0), factors["A"], factors["B"]
    if hyper.options["hybrid_r"] != hybrid:
        raise ShapeMismatch(
            "the rank of the hybrid form",
            expected=f"{hyper.options['hybrid_r']} (hybrid_r of the config)",
            got=f"{hybrid} (shape of the factors)",
            hint="config and tensors belong to different adapters",
        )
    count, _, rank = first.shape
    parts = [slice(at * rank // count, (at + 1) * rank // count) for at in range(count)]
    blocks = [[product(second[m][parts[n]].T, first[n][:, parts[m]].T) for n in range(count)] for m in range(count)]
    total = torch.cat([torch.cat(row, 1) for row in blocks])
    if "A_general" in factors:
        total += product(factors["B_general"], factors["A_general"])
    return total / (rank + hybrid)


def rescaled(factors: Factors, alpha: float, total: Total) -> Factors:
    """The factors of the interpolated weight in the hybrid form.

    B' = alpha·B        B_general' = alpha·B_general
    """
    return {role: factors[role] * alpha for role in ("B", "B_general")}


def scale(options: Options) -> float:
    """s from the config, but for the ranks, which the shapes tell.

    alpha
    """
    return float(options["alpha"])


def _blocks(sizes: Sizes) -> bool:
    """Whether the blocks fill the weight, and share the rank evenly."""
    count = sizes["k"]
    whole = sizes["inner"] * count == sizes["in"] and sizes["outer"] * count == sizes["out"]
    return whole and sizes["rank"] % count == 0


OWN = {"A": "k inner rank", "B": "k rank outer"}
GRALORA = Family(
    name="gralora",
    parameters={
        "weight": (
            Change(OWN, delta=delta, whole=True, fits=_blocks, linear="B"),
            Change(
                {**OWN, "A_general": "hybrid in", "B_general": "out hybrid"},
                delta=delta,
                whole=True,
                fits=_blocks,
                rescaled=rescaled,
            ),
        ),
    },
    source="Jung et al. 2025, GraLoRA: Granular Low-Rank Adaptation, arXiv:2505.20355",
    peft="GRALORA",
    keys={
        "gralora_A": "A",
        "gralora_B": "B",
        "gralora_A_general.weight": "A_general",
        "gralora_B_general.weight": "B_general",
    },
    options={"alpha": Option(float), "r": Option(int), "hybrid_r": Option(int, default=0)},
    harmless={
        "gralora_k": "the shapes of the factors tell it",
        "gralora_dropout": "active in training only",
    },
    scale=scale,
)
