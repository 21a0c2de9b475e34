"""From float64 to a narrow dtype by one rounding, where torch would take two.

Ground floor: torch and numpy. `numerics.round_once` chooses.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

_FEW = 16
_HALF = -(2**15)
_LOW_38 = 2**38 - 1


def to_odd(values: Tensor) -> Tensor:
    """float64 cut to 15 significant bits, the last one sticky: never a number of a target dtype, nor a midpoint.

    So the casts through float32 that follow cannot be misled. Boldo & Melquiond 2008, "Emulation of FMA and correctly
    rounded sums: proved algorithms using rounding to odd"; 38 bits suit all four narrow dtypes.
    """
    bits = values.view(torch.int64)
    odd = bits & _LOW_38
    odd += _LOW_38
    odd |= bits
    odd &= ~_LOW_38
    return odd.view(torch.float64)


def to_bfloat16(values: Tensor) -> Tensor:
    """float64 to bfloat16 through float32, repaired where the float32 lies on a midpoint and the float64 beside it.

    A midpoint's low half word is 0x8000, the least int16. Random values have one in 65536, so those are repaired one by
    one; where there are many, all are rounded again. numpy, because its small calls are cheap and its argmin is fast.
    """
    flat = values.reshape(-1)
    single = flat.float()
    rounded = single.bfloat16()
    exact, through, bits = flat.numpy(), single.numpy(), rounded.view(torch.int16).numpy()
    halves = through.view(np.int16)
    at = 0
    for _ in range(_FEW):
        if at == len(halves):
            return rounded.view(values.shape)
        at += int(halves[at:].argmin())
        if halves[at] != _HALF:
            return rounded.view(values.shape)
        element = at // 2
        distance = abs(float(exact[element])) - abs(float(through[element]))
        if at % 2 == 0 and distance != 0 and not math.isnan(distance):
            bits[element] = halves[at + 1] + (distance > 0)
        at += 1
    return to_odd(values).bfloat16()
