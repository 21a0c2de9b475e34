"""The words that all floors share: what a tensor is before it is read, and what an axis is called.

Ground floor: no torch here, so that headers and configs can be checked before torch is imported.

Axis vocabulary, used in family records, docstrings and errors alike: `out`, `in` (a weight as a matrix maps `in` to
`out`), `rank` (the inner axis of a product), `row` (one entry per listed row of a table).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

Schedule = Callable[[str], float]
"""A WiSE-FT coefficient as a function of the tensor's name."""

Alpha = float | Mapping[str, float | Schedule] | Schedule
"""The WiSE-FT coefficient: a number, a function of the name, or a mapping of names or glob patterns to either."""

BITS: Final[Mapping[str, int]] = {
    "U64": 64, "I64": 64, "F64": 64, "C64": 64, "F32": 32, "U32": 32, "I32": 32, "BF16": 16, "F16": 16, "U16": 16,
    "I16": 16, "F8_E5M2FNUZ": 8, "F8_E4M3FNUZ": 8, "F8_E8M0": 8, "F8_E4M3": 8, "F8_E5M2": 8, "I8": 8, "U8": 8,
    "F6_E3M2": 6, "F6_E2M3": 6, "F4": 4, "BOOL": 8,
}  # fmt: skip
"""Bits per element of every dtype that safetensors 0.8 can store, by the format's own names and in its own order of
layout (descending width, BOOL last). Those not in `FLOATS` are copied, never computed with."""

FLOATS: Final = ("F64", "F32", "BF16", "F16", "F8_E4M3", "F8_E5M2")
"""The dtypes that interpolation reads and writes."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a header says of a tensor: `dtype` in safetensors' names, and `shape`."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of payload."""
        return self.numel * BITS[self.dtype] // 8

    @property
    def is_float(self) -> bool:
        """Whether interpolation can compute with it."""
        return self.dtype in FLOATS

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"
