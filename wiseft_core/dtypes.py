"""Dtypes and arrays: what safetensors, torch and numpy call them, and how a value becomes a tensor.

Ground floor: torch and numpy, and `errors`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import torch
from torch import Tensor

from wiseft_core.errors import DtypeMismatch, show

TORCH_DTYPES: Final[Mapping[str, torch.dtype]] = {
    "U64": torch.uint64, "I64": torch.int64, "F64": torch.float64, "C64": torch.complex64, "F32": torch.float32,
    "U32": torch.uint32, "I32": torch.int32, "BF16": torch.bfloat16, "F16": torch.float16, "U16": torch.uint16,
    "I16": torch.int16, "F8_E5M2FNUZ": torch.float8_e5m2fnuz, "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E8M0": torch.float8_e8m0fnu, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool, "F4": torch.float4_e2m1fn_x2,
}  # fmt: skip
"""torch's dtype for safetensors' name; F6 has none, and one element of F4's holds two numbers."""

_NAMES: Final = {dtype: name for name, dtype in TORCH_DTYPES.items()}
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


def place_of(value: object) -> object:
    """What two values have in common, while both live, if they are one array or one tensor."""
    if isinstance(value, np.ndarray):
        return value.__array_interface__["data"], value.shape, value.strides, value.dtype
    return id(value)


def _not_a_tensor(name: str, got: str) -> DtypeMismatch:
    """The one refusal of `as_tensor`."""
    hint = "pass a materialised, dense, unquantised tensor for this name"
    expected = "a dense torch tensor with data, or a numpy array of numbers"
    return DtypeMismatch(f"{show(name)} cannot be computed with", expected=expected, got=got, hint=hint)


def raw_bytes(tensor: Tensor) -> Tensor:
    """The bytes of a tensor as one axis of uint8, on the processor; its own memory where that is possible."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
