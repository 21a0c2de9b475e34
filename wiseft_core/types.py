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

from wiseft_core.errors import ConfigError, show

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

TORCH_NAMES: Final[Mapping[str, str]] = {
    "F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}  # fmt: skip
"""torch's names, which config files have too, of the dtypes that interpolation reads and writes."""

FLOATS: Final = tuple(TORCH_NAMES)
"""The dtypes that interpolation reads and writes."""

_SPELLINGS: Final[Mapping[str, str]] = {
    "double": "F64", "fp64": "F64", "float": "F32", "fp32": "F32", "half": "F16", "fp16": "F16",
    "float8_e4m3": "F8_E4M3", "f8_e4m3fn": "F8_E4M3", "fp8_e4m3": "F8_E4M3", "fp8_e4m3fn": "F8_E4M3",
    "fp8_e5m2": "F8_E5M2", **{name.lower(): name for name in FLOATS},
    **{spelled: name for name, spelled in TORCH_NAMES.items()},
}  # fmt: skip


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


def parse_dtype(text: object) -> str | None:
    """safetensors' name for a float dtype as a user spells it: "bf16", "half", "float32", torch.bfloat16; None stays.

    Raises:
        ConfigError: Not a dtype that interpolation reads and writes.
    """
    if text is None:
        return None
    spelled = str(text).strip().lower().removeprefix("torch.").replace("-", "_")
    if spelled in _SPELLINGS:
        return _SPELLINGS[spelled]
    expected = f"one of {', '.join(FLOATS)}, or a usual spelling such as bf16, fp16, float32"
    hint = "leave the dtype out to keep each tensor's own"
    raise ConfigError(f"{show(text)} is not a dtype to compute with", expected=expected, got=str(text), hint=hint)
