"""Precision and rounding: how numbers are widened, combined, and rounded once.

Ground floor: torch, numpy, and the words of `dtypes`, `errors` and `types`. It holds what every room needs to compute
exactly: a product, a norm and a mixture are formed so that their bits depend on their operands alone. It knows no
names, no files and no adapter methods.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Final

import numpy as np
import torch
from torch import Tensor

from wiseft_core import arrays
from wiseft_core.dtypes import TORCH_DTYPES, dtype_name
from wiseft_core.errors import ConfigError, NotFinite, show
from wiseft_core.types import FLOATS

LARGEST: Final[Mapping[torch.dtype, float]] = {
    TORCH_DTYPES[name]: torch.finfo(TORCH_DTYPES[name]).max for name in FLOATS
}
"""The largest finite number of each dtype in `FLOATS`."""

_BITS: Final = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_POLICIES: Final = ("error", "saturate")
_BLOCK = 1024
_CHUNK = 128
_TIE_E4M3 = 464.0  # halfway from the largest, 448, which is even, to where the next number would be


def widen(stored: Tensor, compute: torch.dtype) -> Tensor:
    """An owned, contiguous copy of `stored` in the compute dtype, float64 or float32.

    Exactness: exact, but for float64 into float32, which rounds once.
    """
    return stored.to(compute, copy=True, memory_format=torch.contiguous_format)


def is_all_finite(values: Tensor) -> bool:
    """Whether no element is inf or NaN, for every float dtype."""
    return not _may_be_odd(values) or bool(_measurable(values).isfinite().all())


def round_once(values: Tensor, dtype: torch.dtype) -> Tensor:
    """The nearest number of `dtype` to each of `values`, ties to even, by one rounding.

    torch rounds float64 to the narrow dtypes by way of float32, that is, twice; this does not. Subnormals, signed zeros
    and NaN are right. Beyond the largest finite number the result is inf, as IEEE 754 has it; F8_E4M3 has no inf, and
    gets its largest number, with the sign. `finish` is where overflow is judged.

    Args:
        values: float64 or float32, any shape and strides, without grad; not modified, returned as it is if of `dtype`.
        dtype: One of `FLOATS`.
    """
    if dtype in (values.dtype, torch.float32, torch.float64):
        return values.to(dtype)
    if values.dtype == torch.float64:
        if dtype == torch.bfloat16 and values.is_cpu:
            rounded = arrays.to_bfloat16(values.reshape(-1).numpy())
            return torch.from_numpy(rounded.view(np.int16)).view(dtype).view(values.shape)
        values = arrays.to_odd(values.view(torch.int64)).view(torch.float64)
    if dtype == torch.float8_e4m3fn:  # torch's own answer to overflow has changed between releases
        values = values.float().clamp(-LARGEST[dtype], LARGEST[dtype])
    return values.to(dtype)


def overflows(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Which of `values` round beyond the largest finite number of `dtype`; F8_E4M3 has no infinity to show it.

    Args:
        values: float64 or float32; not modified. NaN is no overflow, infinity is.
        dtype: One of `FLOATS`.
    """
    if dtype == torch.float8_e4m3fn:
        return values.abs() > _TIE_E4M3
    return _measurable(round_once(values, dtype)).isinf()


def finish(values: Tensor, stored: Tensor, dtype: torch.dtype, *, overflow: str, name: str) -> Tensor:
    """Round a computed tile once, and settle what is not a plain number.

    Where the base is inf or NaN it passes through, with its own bits if the dtypes are equal. Where it is -0.0 and the
    value is zero, it stays -0.0. So an element that nothing was added to keeps its bits.

    Args:
        values: What was computed, float64 or float32; owned by this call.
        stored: The base's tile that it was computed from, any of `FLOATS`, same shape; not modified.
        dtype: The dtype to store.
        overflow: For a finite value beyond the dtype: "error", or "saturate" to store the largest number.
        name: The tensor's name, for errors.
    Raises:
        NotFinite: A value does not fit and `overflow` is "error", or it is inf or NaN where the base is not.
        ConfigError: `overflow` is another word.
    """
    if overflow not in _POLICIES:
        hint = "choose error to stop at a value that does not fit, saturate to store the largest that does"
        raise ConfigError("overflow is not a policy", expected=" or ".join(_POLICIES), got=overflow, hint=hint)
    rounded = round_once(values, dtype)
    if not (_may_be_odd(rounded) or _may_be_odd(stored) or _has_negative_zero(stored)):
        return rounded
    return _settle(values, stored, dtype, overflow=overflow, name=name)


def _settle(values: Tensor, stored: Tensor, dtype: torch.dtype, *, overflow: str, name: str) -> Tensor:
    """`finish`, element by element: what it does where the tile holds anything but plain numbers."""
    base = _measurable(stored)
    passed = ~base.isfinite()
    value = torch.where(passed, base.to(values.dtype), values)
    value = torch.where((base == 0) & base.signbit() & (value == 0), -0.0, value)
    where = f"{show(name)}: a computed value is not finite where the base is"
    expected = "finite values in the adapter, and results within the range of the compute dtype"
    hint = "look for inf or NaN in the adapter's tensors of this module"
    _refuse(~value.isfinite() & ~passed, value, where, expected=expected, hint=hint)
    lost = overflows(value, dtype)
    if dtype != torch.float8_e4m3fn:  # which has no infinity that the base's could pass through as
        lost &= ~passed
    if overflow == "error":
        where = f"{show(name)}: a result does not fit {dtype_name(dtype)}"
        hint = 'choose a wider output dtype, or overflow="saturate" to store the largest finite number instead'
        _refuse(lost, value, where, expected=f"magnitudes up to {LARGEST[dtype]:.9g}", hint=hint)
    elif lost.any():
        value = torch.where(lost, torch.full_like(value, LARGEST[dtype]).copysign(value), value)
    rounded = round_once(value, dtype)
    if dtype != stored.dtype:
        return rounded
    bits = _BITS[dtype.itemsize]
    return torch.where(passed, stored.view(bits), rounded.view(bits)).view(dtype)


def _measurable(values: Tensor) -> Tensor:
    """The same numbers in a dtype for which torch has every question: float8 has hardly any."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def _may_be_odd(values: Tensor) -> bool:
    """Whether an inf, a NaN or the largest float8 may be among `values`: one fast pass, right when it says no.

    A sum is not finite if one term is not; it may overflow without, which costs time and nothing else.
    """
    if values.dtype.itemsize > 1:
        return not math.isfinite(values.sum().item())
    if values.numel() == 0:
        return False
    most = 0x7B if values.dtype == torch.float8_e5m2 else 0x7D
    if values.view(torch.int8).amax().item() > most:
        return True
    return values.view(torch.uint8).amax().item() > (0x80 | most)


def _has_negative_zero(values: Tensor) -> bool:
    """Whether -0.0 is among `values`: its bits are the least integer."""
    bits = values.view(_BITS[values.dtype.itemsize])
    return values.numel() > 0 and bits.amin().item() == torch.iinfo(bits.dtype).min


def _refuse(bad: Tensor, values: Tensor, where: str, *, expected: str, hint: str) -> None:
    """Raise if any element is `bad`, with their number and the largest of them."""
    if bad.any():
        worst = values[bad].abs().max().item()
        got = f"{int(bad.sum())} of {bad.numel()} elements of a tile, the largest magnitude is {worst:.9g}"
        raise NotFinite(where, expected=expected, got=got, hint=hint)


def product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right, its bits a function of the operands' values alone.

    In float64 on the processor it is `arrays.product`, and elsewhere the same with torch: summed alone, in chunks of
    128 along `rank`. So an element's bits depend on neither threads, nor the rows and columns beside it, nor strides;
    and with 16-bit factors the product is exact.

    Shapes:
        left (out, rank); right (rank, in). Both of one dtype, float64 or float32. Returns (out, in).
    """
    if _is_plain(left):
        return torch.from_numpy(arrays.product(left.numpy(), right.numpy()))
    (out, rank), width = left.shape, right.shape[1]
    if rank == 0:
        return left.new_zeros(out, width)
    # BLAS gives the edges of a matrix to kernels that thread count and shape choose: let the edges be padding.
    left, right = _pad(left, -out % 8, 0), _pad(right, 0, -width % 16)
    total = left.new_empty(len(left), right.shape[1])
    for start in range(0, rank, _CHUNK):
        part = slice(start, start + _CHUNK)
        total.addmm_(left[:, part].contiguous(), right[part].contiguous(), beta=int(start > 0))
    return total[:out, :width]


def _is_plain(values: Tensor) -> bool:
    """Whether numpy computes with these: `arrays` is for float64, on the processor."""
    return values.dtype == torch.float64 and values.is_cpu


def moved(base: Tensor, delta: Tensor, c: float) -> Tensor:
    """base + c · delta: scaled, then added, never in one fused step; neither is modified."""
    return base + delta if c == 1 else (delta * c).add_(base)


def ordered_sum(parts: Sequence[Tensor]) -> Tensor:
    """The sum of `parts`, the same bits in whatever order they come: each element's terms are added by size.

    Shapes:
        At least one, all alike; not modified.
    """
    ordered = torch.stack(tuple(parts)).sort(dim=0).values.unbind() if len(parts) > 2 else parts
    return reduce(torch.add, ordered)


def _pad(matrix: Tensor, rows: int, columns: int) -> Tensor:
    """`matrix` with so many more rows and columns of zeros."""
    return torch.nn.functional.pad(matrix, (0, columns, 0, rows)) if rows or columns else matrix


def square_sum(weight: Tensor) -> Tensor:
    """Sum of squares of each row: blocks of 1024 columns, then the blocks from left to right.

    Shapes:
        weight (rows, cols), float64 or float32, any strides; not modified. Returns (rows,), of weight's dtype.
    Exactness: summed in float64; the bits depend on the row alone, not on threads, strides or the rows beside it.
    """
    if _is_plain(weight):
        return torch.from_numpy(arrays.square_sum(weight.numpy()))
    rows, columns = weight.shape
    if weight.numel() == 0:
        return weight.new_zeros(rows)
    wide = weight if weight.device.type == "mps" else weight.double()
    blocks = _pad(wide.contiguous(), 0, -columns % _BLOCK).view(rows, -1, _BLOCK)
    # Twice as fast as squares and their sum; the root and its square cost one unit in the last place.
    norms: Tensor = torch.linalg.vector_norm(blocks, dim=2)
    return norms.square_().cumsum(1)[:, -1].to(weight.dtype)


def root(squares: Tensor) -> Tensor:
    """The square root of each; on the processor by numpy, because torch's is not correctly rounded everywhere."""
    return torch.from_numpy(arrays.root(squares.numpy())) if squares.is_cpu else squares.sqrt()


def mix(base: Tensor, tuned: Tensor, alpha: float) -> Tensor:
    """base + alpha · (tuned - base), exact at both ends; for alpha in [0, 1] monotone, and never outside of the two.

    No clamp is needed below 1: the difference is off by at most a factor 1 + 2⁻⁵³, the largest alpha below 1 undoes
    that, and rounding is monotone. Where the difference of two huge values overflows, (1 - alpha) · base + alpha ·
    tuned takes over, as in C++'s std::lerp (P0811); it is monotone for opposite signs.

    Shapes:
        base and tuned alike, float64 or float32; not modified, one of them returned at the ends. `alpha` is rounded to
        their dtype.
    """
    if base.dtype == torch.float32:
        alpha = float(np.float32(alpha))
    if alpha in (0, 1):
        return tuned if alpha else base
    difference = tuned - base
    if math.isfinite(difference.sum().item()):
        return difference.mul_(alpha).add_(base)
    apart = (tuned * alpha).add_(base * (1 - alpha))
    return torch.where(difference.isinf(), apart, (difference * alpha).add_(base))
