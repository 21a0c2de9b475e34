"""OFT: the inputs of a module, rotated in blocks.

    W_tuned = W·blockdiag(R_1, ...)ᵀ        an embedding's vectors: W_tuned = W·blockdiag(R_1, ...)

Each block is Cayley's transform of a skew matrix Q, or five terms of its series (PEFT's default), whose last power has
the coefficient 1 and not 2, so that R is not exactly orthogonal. The size of a block is told by the number of its
elements above the diagonal. One block may be shared by all. PEFT's own forward pass of a convolution whose kernel is
larger than 1 is wrong, and its merge is what is reproduced here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from wiseft_core.families._family import Change, Factors, Family, Hyper, Option, Sizes

if TYPE_CHECKING:
    from torch import Tensor

    Tuned = Callable[[Tensor, Factors, Hyper, Tensor | None], Tensor]


def tuned(weight: Tensor, factors: Factors, hyper: Hyper, total: Tensor | None) -> Tensor:
    """The weight with its inputs rotated.

        W_tuned = W·blockdiag(R)ᵀ        R from R's upper triangles: Q - Qᵀ, then (I - Q)·(I + Q)⁻¹ or its series

    Shapes:
        weight (out, in); R (blocks, pairs), the elements above the diagonal of each Q, row by row. Returns (out, in).
    Exactness: float64 roundings of |W|·|R|; the inverse adds the condition of I + Q, which is at most 1 + ‖Q‖.
    Closed: no: (1 - alpha)·I + alpha·R is no rotation.
    Source: Qiu et al. 2023, arXiv:2306.07280; Qiu et al. 2025, arXiv:2506.19847, for the series.
    """
    import torch  # comes with arithmetic, not with a plan

    from wiseft_core.numerics import product

    blocks = rotations(factors["R"], hyper)
    parts = torch.split(weight, blocks.shape[-1], dim=1)
    return torch.cat([product(part, block.T) for part, block in zip(parts, _each(blocks, parts), strict=True)], dim=1)


def tuned_embedding(weight: Tensor, factors: Factors, hyper: Hyper, total: Tensor | None) -> Tensor:
    """The embedding with its vectors rotated.

        W_tuned = blockdiag(R)ᵀ·W, for W as (dimension, vocabulary)

    Shapes:
        weight (out, in); R (blocks, pairs), as for `tuned`. Returns (out, in).
    Exactness: As for `tuned`.
    Closed: no, as for `tuned`.
    Source: PEFT 0.21, `oft.layer.Embedding`.
    """
    import torch  # comes with arithmetic, not with a plan

    from wiseft_core.numerics import product

    blocks = rotations(factors["R"], hyper)
    parts = torch.split(weight, blocks.shape[-1])
    return torch.cat([product(block.T, part) for part, block in zip(parts, _each(blocks, parts), strict=True)])


def rotations(triangles: Tensor, hyper: Hyper) -> Tensor:
    """The blocks R of (blocks, pairs) elements above the diagonal, as (blocks, size, size)."""
    import torch  # comes with arithmetic, not with a plan

    from wiseft_core.numerics import product

    size = block_size(triangles.shape[1])
    skew = triangles.new_zeros(len(triangles), size, size)
    skew[:, *torch.triu_indices(size, size, 1, device="cpu")] = triangles
    skew = skew - skew.mT
    unit = torch.eye(size, dtype=skew.dtype, device=skew.device).expand_as(skew)
    if not hyper.options["use_cayley_neumann"]:
        solved: Tensor = torch.linalg.solve(unit + skew, unit - skew, left=False)
        return solved
    last = series_end(hyper.options["num_cayley_neumann_terms"])
    total, power = unit.clone(), unit
    for term in range(1, last + 1):
        power = torch.stack([product(one, other) for one, other in zip(power, skew, strict=True)])
        total += power * (1 if term == last >= 3 else 2)
    return total


def series_end(terms: int) -> int:
    """The highest power of PEFT's series of so many terms: there is none with 2, and from 3 on the last counts once."""
    return max(terms - 1, 3) if terms > 2 else max(terms - 1, 0)


def _each(blocks: Tensor, parts: Sequence[Tensor]) -> Iterable[Tensor]:
    """The block of each part: its own, or the one that all share."""
    return blocks if len(blocks) == len(parts) else [blocks[0]] * len(parts)


def block_size(pairs: int) -> int:
    """The size of a block with so many elements above the diagonal."""
    return (1 + math.isqrt(1 + 8 * pairs)) // 2


def _forms(axis: str, layouts: tuple[str, ...], formula: Tuned) -> tuple[Change, Change]:
    """Blocks that fill an axis, each its own or all the same."""

    def whole_blocks(sizes: Sizes) -> bool:
        size = block_size(sizes["pairs"])
        return size * (size - 1) // 2 == sizes["pairs"] and sizes[axis] % size == 0

    def each(sizes: Sizes) -> bool:
        return whole_blocks(sizes) and sizes["blocks"] * block_size(sizes["pairs"]) == sizes[axis]

    def shared(sizes: Sizes) -> bool:
        return whole_blocks(sizes) and sizes["blocks"] == 1

    own = Change({"R": "blocks pairs"}, tuned=formula, whole=True, layouts=layouts, fits=each)
    return (
        own._replace(when=lambda options: not options["block_share"]),
        own._replace(fits=shared, when=lambda options: bool(options["block_share"])),
    )


OFT = Family(
    name="oft",
    parameters={
        "weight": (
            *_forms("in", ("linear", "flat"), tuned),
            *_forms("out", ("embedding",), tuned_embedding),
        ),
    },
    source="Qiu et al. 2023, Controlling Text-to-Image Diffusion by Orthogonal Finetuning, arXiv:2306.07280",
    peft="OFT",
    keys={"oft_R.weight": "R", "oft_embedding_R.weight": "embedding_R"},
    options={
        "use_cayley_neumann": Option(bool),
        "num_cayley_neumann_terms": Option(int),
        "coft": Option((False,), default=False, why="PEFT shortens its rotations whenever it computes"),
        "block_share": Option(bool, default=False),
    },
    harmless={
        "r": "the shapes of the factors tell it",
        "oft_block_size": "the shapes of the factors tell it",
        "module_dropout": "active in training only",
        "eps": "read with coft only, which is refused",
    },
)
