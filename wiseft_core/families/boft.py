"""BOFT: the inputs of a module, rotated by a product of sparse rotations, and its outputs scaled.

    W_tuned = diag(s)·W·Mᵀ        M = M_n·...·M_1        M_i = P_i·blockdiag(C_i)·P_iᵀ

Each block C is Cayley's transform of a skew matrix. P_i exchanges half blocks, so that 2^n blocks meet; P_1 is none.
How many rotations there are the shape of R tells, and not `boft_n_butterfly_factor`: where PEFT cannot compile its CUDA
extension, it trains and saves one rotation whatever the config says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wiseft_core.families._family import Change, Factors, Family, Hyper, Sizes

if TYPE_CHECKING:
    from torch import Tensor


def tuned(weight: Tensor, factors: Factors, hyper: Hyper, total: Tensor | None) -> Tensor:
    """The rotated and scaled weight.

        W_tuned = diag(s)·W·(M_n·...·M_1)ᵀ        C = (I - Q)·(I + Q)⁻¹, Q = (R - Rᵀ)/2

    Shapes:
        weight (out, in); R (rotations, blocks, size, size); s (out, 1), of a convolution (1, out). Returns (out, in).
    Exactness: float64 roundings of |s|·|W|·|M|; the inverse adds the condition of I + Q, which is at most 1 + ‖Q‖.
    Closed: no: (1 - alpha)·I + alpha·M is no rotation.
    Source: Liu et al. 2023, arXiv:2311.06243; the scales and which blocks meet: PEFT 0.21.
    """
    import torch  # comes with arithmetic, not with a plan

    from wiseft_core.numerics import product

    turned = weight
    for level, blocks in enumerate(rotations(factors["R"])):
        half, meeting = blocks.shape[-1] // 2, 1 << level
        turned = exchanged(turned, 2, meeting, half) if level else turned
        parts = torch.split(turned, blocks.shape[-1], dim=1)
        turned = torch.cat([product(part, block.T) for part, block in zip(parts, blocks, strict=True)], dim=1)
        turned = exchanged(turned, meeting, 2, half) if level else turned
    return turned * factors["s"].reshape(-1, 1)


def rotations(stored: Tensor) -> Tensor:
    """The orthogonal blocks C of the trained ones."""
    import torch  # comes with arithmetic, not with a plan

    skew = (stored - stored.mT) * 0.5
    unit = torch.eye(skew.shape[-1], dtype=skew.dtype, device=skew.device).expand_as(skew)
    blocks: Tensor = torch.linalg.solve(unit + skew, unit - skew, left=False)
    return blocks


def exchanged(weight: Tensor, first: int, second: int, size: int) -> Tensor:
    """The columns, where those of each `first` by `second` runs of so many change places."""
    return weight.view(len(weight), -1, first, second, size).transpose(2, 3).reshape(weight.shape)


def _blocks(sizes: Sizes) -> bool:
    """Whether the blocks fill the inputs, and can be halved and paired as often as there are rotations."""
    rotations, blocks, size = sizes["rotations"], sizes["blocks"], sizes["size"]
    pairs = rotations == 1 or (
        size % 2 == 0 and rotations <= blocks.bit_length() and blocks % (1 << (rotations - 1)) == 0
    )
    return blocks * size == sizes["in"] and pairs


BOFT = Family(
    name="boft",
    parameters={
        "weight": tuple(
            Change(
                {"R": "rotations blocks size size", "s": scales},
                tuned=tuned,
                whole=True,
                layouts=(layout,),
                fits=_blocks,
            )
            for scales, layout in (("out 1", "linear"), ("1 out", "flat"))
        ),
    },
    source="Liu et al. 2023, Orthogonal Finetuning via Butterfly Factorization, arXiv:2311.06243",
    peft="BOFT",
    keys={"boft_R": "R", "boft_s": "s"},
    harmless={
        "boft_block_size": "the shapes of the factors tell it",
        "boft_block_num": "the shapes of the factors tell it",
        "boft_n_butterfly_factor": "the shapes of the factors tell it",
        "boft_dropout": "active in training only",
    },
)
