"""Exact arithmetic on numpy arrays: what most adapters need, without torch, whose import lasts as long as a small job.

Ground floor: numpy and nothing else of the package. `numerics` computes on the processor by these functions too, so
that a tensor and an array get the same bits. All of it is float64. No global state is touched; the products are cut so
small that BLAS, whatever its settings, computes each in the calling thread.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from functools import cache, reduce
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from wiseft_core.rooms import room

Array = NDArray[Any]

CARRIERS: Final[Mapping[str, Any]] = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32, "F64": np.float64}
"""numpy's dtype for values as they are stored, by safetensors' name; numpy has no bfloat16, so these are its bits."""

quietly: Final = np.errstate(all="ignore")
"""Around arithmetic: what is not finite is judged where it is stored, whatever numpy was told to do about it."""

_BITS: Final = {2: np.int16, 4: np.int32, 8: np.int64}
_ODD: Final = {"BF16": 0x7F80, "F16": 0x7C00, "F32": 0x7F800000, "F64": 0x7FF0000000000000}
_CHUNK: Final = 128
_BLOCK: Final = 1024
_ALONE: Final = 2**18
"""Multiplications up to which OpenBLAS, Accelerate and MKL compute a product in the calling thread."""
_FEW: Final = 16
_HALF: Final = -(2**15)
_LOW_38: Final = 2**38 - 1


def flushes_denormals() -> bool:
    """Whether this thread flushes subnormal numbers to zero, which makes correct rounding impossible.

    It is computed, not asked: the mode is the processor's, and any library may set it.
    """
    least, half = sys.float_info.min, 0.5
    return (least * half) * 2.0 != least


@quietly
def widen(stored: Array) -> Array:
    """An owned copy of stored values in float64, exact."""
    if stored.dtype == np.uint16:
        stored = np.left_shift(stored, 16, out=room(stored.shape, np.uint32), dtype=np.uint32).view(np.float32)
    wide = room(stored.shape, np.float64)
    np.copyto(wide, stored)
    return wide


@quietly
def product(left: Array, right: Array) -> Array:
    """left @ right, its bits a function of the operands' values alone.

    It is summed alone, in chunks of 128 along `rank`. BLAS gives the edges of a matrix to kernels that shape and thread
    count choose: so the edges are padding. With 16-bit factors the product is exact.

    Shapes:
        left (out, rank); right (rank, in). Returns (out, in), contiguous but for what was padded.
    """
    (out, rank), width = left.shape, right.shape[1]
    if 0 in (out, rank, width):
        return np.zeros((out, width))
    left, right = _padded(left, -out % 8, 0), _padded(right, 0, -width % 16)
    total = _chunk(left[:, :_CHUNK], right[:_CHUNK])
    for start in range(_CHUNK, rank, _CHUNK):
        part = slice(start, start + _CHUNK)
        total += _chunk(left[:, part], right[part])
    return total[:out, :width]


def _chunk(left: Array, right: Array) -> Array:
    """One product of padded matrices, in this thread: cut into blocks that BLAS does not share out, if need be."""
    (out, rank), width = left.shape, right.shape[1]
    total = room((out, width), np.float64)
    if _BLAS.is_alone:
        return np.matmul(np.ascontiguousarray(left), np.ascontiguousarray(right), out=total)
    rows = math.gcd(out, 64)
    columns = _columns(width, _ALONE // (rows * rank))
    np.matmul(
        np.ascontiguousarray(left).reshape(out // rows, 1, rows, rank),
        np.ascontiguousarray(right).reshape(rank, -1, columns).swapaxes(0, 1),
        out=total.reshape(out // rows, rows, -1, columns).swapaxes(1, 2),
    )
    return total


class _Blas:
    """What is known of numpy's BLAS in this process."""

    is_alone = False


_BLAS: Final = _Blas()


def leave_blas_alone() -> None:
    """Cut no products: the caller has seen to it that BLAS starts no threads. The bits are the same, sooner."""
    _BLAS.is_alone = True


@cache
def _columns(width: int, most: int) -> int:
    """The largest multiple of 16 that divides a multiple of 16 and is at most `most`; 16 if none is."""
    return max((size for size in range(16, min(most, width) + 1, 16) if width % size == 0), default=16)


@quietly
def moved(base: Array, delta: Array, c: float) -> Array:
    """base + c · delta: scaled, then added, never in one fused step; neither is modified."""
    total = room(delta.shape, np.float64)
    if c == 1:
        return np.add(base, delta, out=total)
    np.multiply(delta, c, out=total)
    total += base
    return total


@quietly
def ordered_sum(parts: Sequence[Array]) -> Array:
    """The sum of `parts`, the same bits in whatever order they come: each element's terms are added by size."""
    ordered = list(np.sort(np.stack(parts), axis=0)) if len(parts) > 2 else parts
    total: Array = reduce(np.add, ordered)
    return total


@quietly
def square_sum(weight: Array) -> Array:
    """Sum of squares of each row: blocks of 1024 columns, then the blocks from left to right.

    Shapes:
        weight (rows, cols), any strides; not modified. Returns (rows,).
    Exactness: the bits depend on the row alone, not on strides or the rows beside it.
    """
    rows, columns = weight.shape
    if weight.size == 0:
        return np.zeros(rows)
    even, whole = np.ascontiguousarray(weight), columns - columns % _BLOCK
    blocks = even[:, :whole].reshape(rows, -1, _BLOCK)
    sums: Array = np.einsum("rbc,rbc->rb", blocks, blocks)
    if whole < columns:
        rest = np.ascontiguousarray(even[:, whole:])
        sums = np.concatenate([sums, np.einsum("rc,rc->r", rest, rest)[:, None]], axis=1)
    total: Array = sums.cumsum(axis=1)[:, -1]
    return total


@quietly
def root(squares: Array) -> Array:
    """The square root of each, correctly rounded."""
    roots: Array = np.sqrt(squares)
    return roots


@quietly
def mix(base: Array, tuned: Array, alpha: float) -> Array:
    """base + alpha · (tuned - base), as `numerics.mix` has it; None of the two is modified."""
    if alpha in (0, 1):
        return tuned if alpha else base
    difference = np.subtract(tuned, base, out=room(base.shape, np.float64))
    if math.isfinite(difference.sum()):
        difference *= alpha
        difference += base
        return difference
    apart = tuned * alpha + base * (1 - alpha)
    return np.where(np.isinf(difference), apart, difference * alpha + base)


def name_of(stored: Array) -> str:
    """safetensors' name of the dtype that an array of `CARRIERS` holds."""
    return next(name for name, carrier in CARRIERS.items() if carrier == stored.dtype)


def is_all_finite(values: Array) -> bool:
    """Whether no stored value is inf or NaN."""
    return values.size == 0 or _is_plain(values)


def _is_plain(stored: Array) -> bool:
    """`is_all_finite` by the bits: as integers these lie beyond all finite numbers of their sign."""
    signed = stored.view(_BITS[stored.itemsize])
    unsigned = signed.view(f"u{stored.itemsize}")
    odd, sign = _ODD[name_of(stored)], 1 << (8 * stored.itemsize - 1)
    return int(signed.max()) < odd and int(unsigned.max()) < odd | sign


def finished(values: Array, stored: Array, target: str) -> Array | None:
    """Values rounded once where all are plain numbers; None where that takes `numerics.finish`.

    Where the base is -0.0 and the value is zero, it stays -0.0.

    Args:
        values: What was computed, of one axis.
        stored: The base's values that it was computed from.
        target: The dtype to store.
    """
    if values.size == 0:
        return np.empty(0, CARRIERS[target])
    if not _is_plain(stored):
        return None
    rounded = round_once(values, target)
    if not _is_plain(rounded):
        return None
    bits = stored.view(_BITS[stored.itemsize])
    if int(bits.min()) == _least(stored):
        rounded.view(_BITS[rounded.itemsize])[(bits == _least(stored)) & (values == 0)] = _least(rounded)
    return rounded


def _least(values: Array) -> int:
    """The least integer of the width of these values, which is -0.0."""
    return -(1 << (8 * values.itemsize - 1))


@quietly
def round_once(values: Array, dtype: str) -> Array:
    """The nearest number of `dtype` to each of `values`, ties to even, by one rounding; beyond the largest it is inf.

    Args:
        values: float64, of one axis; not modified, but returned where that is the dtype.
        dtype: One of `CARRIERS`.
    """
    if dtype == "BF16":
        return to_bfloat16(values)
    if dtype == "F16":
        values = to_odd(values.view(np.int64)).view(np.float64).astype(np.float32)
    return values.astype(CARRIERS[dtype], copy=False)


def to_odd(bits: Any) -> Any:
    """float64, as int64, cut to 15 significant bits, the last one sticky: no number of a narrow dtype, nor a midpoint.

    So casts through float32 that follow cannot be misled. Boldo & Melquiond 2008, "Emulation of FMA and correctly
    rounded sums: proved algorithms using rounding to odd"; 38 bits suit all four narrow dtypes. For tensors as well.
    """
    odd = bits & _LOW_38
    odd += _LOW_38
    odd |= bits
    odd &= ~_LOW_38
    return odd


@quietly
def to_bfloat16(values: Array) -> Array:
    """float64 to the bits of bfloat16, rounded once; NaN stays NaN.

    Through float32, and up from the midpoint on. A float32 on a midpoint is first moved to the side where the float64
    is, or the even number.
    """
    single, rounded = room(values.shape, np.float32), room(values.shape, np.uint16)
    words = single.view(np.uint32)
    np.copyto(single, values, casting="same_kind")
    is_plain = _leave_midpoints(values, single)
    if not is_plain:  # then those that are left are exact
        np.copyto(single, to_odd(values.view(np.int64)).view(np.float64), casting="same_kind")
    if len(single) and math.isnan(single.max()):  # a carry would make something else of it
        odd = np.isnan(single)
        words[odd] = words[odd] & 0xFFFF0000 | 0x400000
    words += np.uint32(0x8000) if is_plain else np.uint32(0x7FFF) + (words >> 16 & 1)
    np.right_shift(words, 16, out=rounded, casting="unsafe")
    return rounded


def _leave_midpoints(values: Array, single: Array) -> bool:
    """Move float32s that are midpoints of bfloat16 down where they are to be rounded down; False if there are many.

    A midpoint's low half word is 0x8000, the least int16. Random values have one in 65536.
    """
    halves, at = single.view(np.int16), 0
    for _ in range(_FEW):
        if at == len(halves):
            return True
        at += int(halves[at:].argmin())
        if halves[at] != _HALF:
            return True
        if at % 2 == 0:
            distance = abs(float(values[at // 2])) - abs(float(single[at // 2]))
            if distance < 0 or (distance == 0 and not halves[at + 1] & 1):
                halves[at] = 0x7FFF
        at += 1
    return False


def _padded(matrix: Array, rows: int, columns: int) -> Array:
    """`matrix` with so many more rows and columns of zeros."""
    return np.pad(matrix, ((0, rows), (0, columns))) if rows or columns else matrix
