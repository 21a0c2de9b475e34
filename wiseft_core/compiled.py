"""The innermost loops, compiled by numba: one pass over a tile where numpy takes ten.

Ground floor: numba, from the extra `fast`, and nothing of the package; only `loops` imports it. Each loop reads stored
bits, computes in float64 and rounds once, by the same operations as `arrays`, in the same order and never fused. A loop
returns False, and what it wrote is void, where anything is no plain number. The loops are written out: what numba
makes of functions that close over others is compiled anew in each process.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

_config: Any = numba.config
if _config.DISABLE_JIT:
    raise ImportError("numba is told to compile nothing, and these loops are of no use without")

_fast: Any = numba.njit(inline="always")


_WIDE: Any = numba.float64


def _array(item: Any, *, readonly: bool = True) -> Any:
    """The type of an array of one axis."""
    return numba.types.Array(item, 1, "C", readonly=readonly)


def _now(signature: Any) -> Any:
    """Compile a loop for one signature now, or take it from numba's cache on disk."""
    return numba.njit(signature, nogil=True, cache=True, error_model="numpy")


def _loop(stored: Any) -> Any:
    """Compile a loop from stored bits to stored bits."""
    return _now(numba.boolean(_array(stored), _array(_WIDE), _WIDE, _array(stored, readonly=False)))


@_fast
def _odd(value):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """float64 in float32 without an error that a second rounding could see: `arrays.to_odd`."""
    bits = np.float64(value).view(np.int64)
    cut = np.int64(((bits & 0x3FFFFFFFFF) + 0x3FFFFFFFFF | bits) & ~0x3FFFFFFFFF)
    return np.float32(cut.view(np.float64))


@_fast
def _mixed(base, tuned, alpha):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """`arrays.mix` of one element."""
    apart = tuned - base
    value = apart * alpha + base
    if np.isinf(apart):
        value = tuned * alpha + base * (1.0 - alpha)
    return tuned if alpha == 1.0 else value


@_fast
def _from_bf16(bits):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    return np.float64(np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32))


@_fast
def _to_bf16(value, bits):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    word = _odd(value).view(np.uint32)
    word = np.uint32(word + np.uint32(0x7FFF) + np.uint32((word >> np.uint32(16)) & np.uint32(1)))
    return np.uint16(0x8000) if value == 0.0 and bits == np.uint16(0x8000) else np.uint16(word >> np.uint32(16))


@_fast
def _from_f16(bits):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    size = np.uint32((np.uint32(bits) & np.uint32(0x7FFF)) << np.uint32(13)).view(np.float32)
    wide = np.float64(size) * 2.0**112  # which moves the exponent, and subnormals are right with it
    return -wide if bits & np.uint16(0x8000) else wide


@_fast
def _to_f16(value, bits):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    word = _odd(value).view(np.uint32)
    sign, size = np.uint32((word >> np.uint32(16)) & np.uint32(0x8000)), np.uint32(word & np.uint32(0x7FFFFFFF))
    # Below 2^-14 the sum with 1/2 rounds where a subnormal ends; above, the carry does, and moves the exponent.
    small = np.uint32(np.float32(size.view(np.float32) + np.float32(0.5)).view(np.uint32) - np.uint32(0x3F000000))
    large = np.uint32(size - np.uint32(0x37FFF001) + np.uint32((size >> np.uint32(13)) & np.uint32(1))) >> np.uint32(13)
    rounded = small if size < np.uint32(0x38800000) else min(np.uint32(large), np.uint32(0x7C00))
    return np.uint16(0x8000) if value == 0.0 and bits == np.uint16(0x8000) else np.uint16(np.uint32(rounded) | sign)


@_fast
def _from_f32(bits):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    return np.float64(np.uint32(bits).view(np.float32))


@_fast
def _to_f32(value, bits):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    word = np.float32(value).view(np.uint32)
    return np.uint32(0x80000000) if value == 0.0 and bits == np.uint32(0x80000000) else word


@_now(numba.void(_array(_WIDE), _array(_WIDE), _WIDE, _array(_WIDE, readonly=False)))
def moved(base, delta, c, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """base + c·delta, in float64."""
    for at in range(len(base)):
        out[at] = base[at] + delta[at] * c


@_now(numba.void(_array(numba.uint16), _array(_WIDE, readonly=False)))
def wide_bf16(stored, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """In float64."""
    for at in range(len(stored)):
        out[at] = _from_bf16(stored[at])


@_loop(numba.uint16)
def moved_bf16(stored, delta, c, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """stored + c·delta."""
    largest, size = np.uint16(0), np.uint16(0x7FFF)
    for at in range(len(stored)):
        bits = stored[at]
        done = _to_bf16(_from_bf16(bits) + delta[at] * c, bits)
        largest = max(largest, np.uint16(bits & size), np.uint16(done & size))
        out[at] = done
    return largest < np.uint16(0x7F80)


@_loop(numba.uint16)
def mixed_bf16(stored, tuned, alpha, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """stored + alpha·(tuned - stored)."""
    largest, size = np.uint16(0), np.uint16(0x7FFF)
    for at in range(len(stored)):
        bits = stored[at]
        done = _to_bf16(_mixed(_from_bf16(bits), tuned[at], alpha), bits)
        largest = max(largest, np.uint16(bits & size), np.uint16(done & size))
        out[at] = done
    return largest < np.uint16(0x7F80)


@_loop(numba.uint16)
def moved_f16(stored, delta, c, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """stored + c·delta."""
    largest, size = np.uint16(0), np.uint16(0x7FFF)
    for at in range(len(stored)):
        bits = stored[at]
        done = _to_f16(_from_f16(bits) + delta[at] * c, bits)
        largest = max(largest, np.uint16(bits & size), np.uint16(done & size))
        out[at] = done
    return largest < np.uint16(0x7C00)


@_loop(numba.uint16)
def mixed_f16(stored, tuned, alpha, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """stored + alpha·(tuned - stored)."""
    largest, size = np.uint16(0), np.uint16(0x7FFF)
    for at in range(len(stored)):
        bits = stored[at]
        done = _to_f16(_mixed(_from_f16(bits), tuned[at], alpha), bits)
        largest = max(largest, np.uint16(bits & size), np.uint16(done & size))
        out[at] = done
    return largest < np.uint16(0x7C00)


@_loop(numba.uint32)
def moved_f32(stored, delta, c, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """stored + c·delta."""
    largest, size = np.uint32(0), np.uint32(0x7FFFFFFF)
    for at in range(len(stored)):
        bits = stored[at]
        done = _to_f32(_from_f32(bits) + delta[at] * c, bits)
        largest = max(largest, np.uint32(bits & size), np.uint32(done & size))
        out[at] = done
    return largest < np.uint32(0x7F800000)


@_loop(numba.uint32)
def mixed_f32(stored, tuned, alpha, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """stored + alpha·(tuned - stored)."""
    largest, size = np.uint32(0), np.uint32(0x7FFFFFFF)
    for at in range(len(stored)):
        bits = stored[at]
        done = _to_f32(_mixed(_from_f32(bits), tuned[at], alpha), bits)
        largest = max(largest, np.uint32(bits & size), np.uint32(done & size))
        out[at] = done
    return largest < np.uint32(0x7F800000)
