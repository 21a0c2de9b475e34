"""Dtypes and arrays: what safetensors, torch, numpy and users call them, and how a value becomes a tensor.

Ground floor: torch and numpy, `errors` and `types`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import torch
from torch import Tensor

from wiseft_core.errors import ConfigError, DtypeMismatch, show
from wiseft_core.types import FLOATS

TORCH_DTYPES: Final[Mapping[str, torch.dtype]] = {
    "U64": torch.uint64, "I64": torch.int64, "F64": torch.float64, "C64": torch.complex64, "F32": torch.float32,
    "U32": torch.uint32, "I32": torch.int32, "BF16": torch.bfloat16, "F16": torch.float16, "U16": torch.uint16,
    "I16": torch.int16, "F8_E5M2FNUZ": torch.float8_e5m2fnuz, "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E8M0": torch.float8_e8m0fnu, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool, "F4": torch.float4_e2m1fn_x2,
}  # fmt: skip
"""torch's dtype for safetensors' name; F6 has none, and one element of F4's holds two numbers."""

_NAMES: Final = {dtype: name for name, dtype in TORCH_DTYPES.items()}
_SPELLINGS: Final[Mapping[str, str]] = {
    "double": "F64", "float64": "F64", "fp64": "F64", "float": "F32", "float32": "F32", "fp32": "F32",
    "bfloat16": "BF16", "half": "F16", "float16": "F16", "fp16": "F16", "float8_e4m3fn": "F8_E4M3",
    "float8_e4m3": "F8_E4M3", "f8_e4m3fn": "F8_E4M3", "fp8_e4m3": "F8_E4M3", "fp8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2", "fp8_e5m2": "F8_E5M2", **{name.lower(): name for name in FLOATS},
}  # fmt: skip
_ML_DTYPES: Final = {  # numpy knows these only by name, and torch's from_numpy not at all
    "bfloat16": (np.uint16, torch.bfloat16),
    "float8_e4m3fn": (np.uint8, torch.float8_e4m3fn),
    "float8_e5m2": (np.uint8, torch.float8_e5m2),
}


def dtype_name(dtype: torch.dtype) -> str:
    """safetensors' name of a torch dtype.

    Raises:
        DtypeMismatch: safetensors cannot store it.
    """
    if dtype in _NAMES:
        return _NAMES[dtype]
    hint = "convert the tensor to a dtype that safetensors can store"
    raise DtypeMismatch("a dtype cannot be stored", expected=", ".join(TORCH_DTYPES), got=str(dtype), hint=hint)


def parse_dtype(text: str | torch.dtype | None) -> str | None:
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


def as_tensor(value: object, name: str) -> Tensor:
    """A torch tensor or numpy array as a plain, dense tensor without grad.

    A tensor keeps its storage. An array shares its memory where torch can (writable, native byte order, no negative
    stride) and is copied elsewhere. The bfloat16, float8_e4m3fn and float8_e5m2 of `ml_dtypes` are understood.

    Raises:
        DtypeMismatch: Neither of the two, or a meta, sparse, nested or quantised tensor, or a dtype without numbers.
    """
    if isinstance(value, Tensor):
        dense = value.layout == torch.strided and not (value.is_meta or value.is_quantized or value.is_nested)
        if dense:
            return value.detach().resolve_conj().resolve_neg()
        kind = "a meta tensor" if value.is_meta else "a quantised tensor" if value.is_quantized else "a sparse tensor"
        raise _not_a_tensor(name, f"{kind} ({value.layout}, {value.dtype})")
    if not isinstance(value, np.ndarray) or isinstance(value, np.ma.MaskedArray):
        raise _not_a_tensor(name, f"{type(value).__module__}.{type(value).__qualname__}")
    array, dtype = value, None
    if value.dtype.name in _ML_DTYPES:
        carrier, dtype = _ML_DTYPES[value.dtype.name]
        array = value.view(carrier)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if not array.flags.writeable or any(stride < 0 or stride % array.itemsize for stride in array.strides):
        array = array.copy()
    try:
        tensor = torch.from_numpy(array)
    except TypeError:
        raise _not_a_tensor(name, f"a numpy array of {value.dtype}") from None
    return tensor if dtype is None else tensor.view(dtype)


def _not_a_tensor(name: str, got: str) -> DtypeMismatch:
    """The one refusal of `as_tensor`."""
    hint = "pass a materialised, dense, unquantised tensor for this name"
    expected = "a dense torch tensor with data, or a numpy array of numbers"
    return DtypeMismatch(f"{show(name)} cannot be computed with", expected=expected, got=got, hint=hint)


def raw_bytes(tensor: Tensor) -> Tensor:
    """The bytes of a tensor as one axis of uint8, on the processor; its own memory where that is possible."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
