"""C3A: a difference of circulant blocks, each told by its first row.

W_tuned = W + D        D[(p, u), (q, v)] = kernel[p, q, (v - u) mod size] / in
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wiseft_core.families._family import Change, Factors, Family, Hyper, Sizes

if TYPE_CHECKING:
    from torch import Tensor


def delta(factors: Factors, hyper: Hyper) -> Tensor:
    """The difference, its elements picked instead of transformed to frequencies and back.

        D[(p, u), (q, v)] = kernel[p, q, (v - u) mod size] / in

    Shapes:
        kernel (bands, tiles, size), where `out` is bands·size and `in` tiles·size. Returns (out, in).
    Exactness: W + c·D is off by three float64 roundings.
    Closed: linear in kernel.
    Source: Chen et al. 2024, arXiv:2407.19342; the division by `in`: PEFT 0.21.
    """
    import torch  # comes with arithmetic, not with a plan

    kernel, size = factors["kernel"], hyper.sizes["in"]
    steps = torch.arange(kernel.shape[-1], device=kernel.device)
    blocks = kernel[:, :, (steps - steps[:, None]) % kernel.shape[-1]]
    return blocks.transpose(1, 2).reshape(-1, size) / size


def _blocks(sizes: Sizes) -> bool:
    """Whether the blocks fill the weight."""
    size = sizes["size"]
    return (sizes["bands"] * size, sizes["tiles"] * size) == (sizes["out"], sizes["in"])


C3A = Family(
    name="c3a",
    parameters={
        "weight": Change(
            factors={"kernel": "bands tiles size"},
            delta=delta,
            whole=True,
            layouts=("linear",),
            fits=_blocks,
            linear="kernel",
        ),
    },
    source="Chen et al. 2024, Parameter-Efficient Fine-Tuning via Circular Convolution, arXiv:2407.19342",
    peft="C3A",
    keys={"c3a_kernel": "kernel"},
    harmless={
        "block_size": "the shapes of the factors tell it",
        "block_size_pattern": "the shapes of the factors tell it",
    },
)
