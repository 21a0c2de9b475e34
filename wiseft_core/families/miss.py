"""MiSS: a small matrix, repeated over the inputs of a weight and added to it.

    W_tuned = W + D        D[o, i] = block[i mod rank, o]

`init_weights` says which of three variants it is, after training too: with "mini" the matrix is repeated over the
outputs as well; with "bat" (once called Bone) each block of the weight is multiplied before it is added to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wiseft_core.families._family import Change, Factors, Family, Hyper, Option, Options, Sizes, Total

if TYPE_CHECKING:
    from torch import Tensor


def delta(factors: Factors, hyper: Hyper) -> Tensor:
    """The repeated matrix.

        D[o, i] = block[i mod rank, o mod mini]

    Shapes:
        block (rank, out), or (rank, mini) for the variant "mini". Returns (out, in).
    Exactness: W + c·D is off by two float64 roundings.
    Closed: linear in block.
    Source: Kang and Yin 2024, arXiv:2409.15371; "mini" and a width that rank does not divide: PEFT 0.21.
    """
    block, out, size = factors["block"].T, hyper.sizes["out"], hyper.sizes["in"]
    mini, rank = block.shape
    return block.repeat(out // mini, -(-size // rank))[:, :size].contiguous()


def tuned(weight: Tensor, factors: Factors, hyper: Hyper, total: Tensor | None) -> Tensor:
    """The weight with each of its square blocks changed, for the variant "bat".

        W_tuned[p, q] = W[p, q]·(I + block[p]) + block[p]        W[p, q]: rank by rank elements of W

    Shapes:
        weight (out, in); block (blocks, rank, rank), where out is blocks·rank. Returns (out, in).
    Exactness: float64 roundings of |W|·|I + block| + |block|.
    Closed: see `rescaled`.
    Source: Kang and Yin 2024, arXiv:2409.15371, on Bat; PEFT 0.21.
    """
    import torch  # comes with arithmetic, not with a plan

    from wiseft_core.numerics import product

    block = factors["block"]
    rank = block.shape[-1]
    parts = weight.view(len(block), rank, -1, rank)
    moved = [product(rows, one) for rows, one in zip(parts.view(len(block), -1, rank), block, strict=True)]
    return (parts + (torch.stack(moved).view(parts.shape) + block[:, :, None])).reshape(weight.shape)


def rescaled(factors: Factors, alpha: float, total: Total) -> Factors:
    """The block of the interpolated weight, for the variant "bat".

    block' = alpha·block
    """
    return {"block": factors["block"] * alpha}


def _is_plain(options: Options) -> bool:
    return options.get("init_weights") not in ("bat", "mini")


def _is_mini(options: Options) -> bool:
    return options.get("init_weights") == "mini"


def _is_bat(options: Options) -> bool:
    return options.get("init_weights") == "bat"


def _repeats(sizes: Sizes) -> bool:
    """Whether the matrix is no wider than the inputs, and goes into the outputs a whole number of times."""
    mini = sizes.get("mini", 1)
    return 0 < sizes["rank"] <= sizes["in"] and mini > 0 and sizes["out"] % mini == 0


def _blocks(sizes: Sizes) -> bool:
    """Whether the blocks fill the weight."""
    rank = sizes["rank"]
    return rank > 0 and sizes["blocks"] * rank == sizes["out"] and sizes["in"] % rank == 0


MISS = Family(
    name="miss",
    parameters={
        "weight": (
            *(
                Change(
                    {"block": axes},
                    delta=delta,
                    whole=True,
                    layouts=("linear",),
                    fits=_repeats,
                    when=when,
                    linear="block",
                )
                for axes, when in (("rank out", _is_plain), ("rank mini", _is_mini))
            ),
            Change(
                {"block": "blocks rank rank"},
                tuned=tuned,
                whole=True,
                layouts=("linear",),
                fits=_blocks,
                when=_is_bat,
                rescaled=rescaled,
            ),
        ),
    },
    source="Kang and Yin 2024, MiSS: Revisiting the Trade-off in LoRA, arXiv:2409.15371",
    peft="MISS",
    keys={"miss_block": "block"},
    options={"init_weights": Option((True, False, "bat", "mini"), default=True)},
    harmless={
        "r": "the shapes of the factors tell it",
        "mini_r": "the shapes of the factors tell it",
        "miss_dropout": "active in training only",
    },
)
