"""Which arithmetic a value takes: numpy's for an array, torch's for a tensor. Torch is imported for tensors alone.

Ground floor, above `arrays` and `numerics`. On the processor both give the same bits, in float64: what can be an array
is one, because numpy is there in no time.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from wiseft_core import arrays, loops

Values = Any
"""A torch tensor; or a numpy array, of one of `arrays.CARRIERS` as stored, and of float64 to compute with."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """How numbers are treated: the dtypes of arithmetic and result, where it happens, and what overflow means.

    Attributes:
        compute: For tensors, torch's dtype to compute in; None for arrays.
        output: Torch's dtype of the result, or for arrays safetensors' name of it.
        overflow: "error" or "saturate".
        device: For tensors, where they are computed; None for arrays.
    """

    compute: Any
    output: Any
    overflow: str
    device: Any


def kit(values: Values) -> Any:
    """The module whose `product`, `moved`, `mix`, `ordered_sum`, `square_sum` and `root` are for such values."""
    return loops if isinstance(values, np.ndarray) else import_module("wiseft_core.numerics")


def placed(stored: Values, numbers: Numbers) -> Values:
    """Stored values where they are computed."""
    return stored if isinstance(stored, np.ndarray) else stored.to(numbers.device)


def widen(stored: Values, numbers: Numbers, *, integer: bool = False) -> Values:
    """An owned, contiguous copy of stored values to compute with, where they are computed; integers as int64."""
    if isinstance(stored, np.ndarray):
        return loops.widen(stored)
    import torch

    return kit(stored).widen(stored.to(numbers.device), torch.int64 if integer else numbers.compute)


def contiguous(values: Values) -> Values:
    """The same values in memory one after the other."""
    return np.ascontiguousarray(values) if isinstance(values, np.ndarray) else values.contiguous()


def copied(values: Values) -> Values:
    """The same values in memory of their own."""
    return values.copy() if isinstance(values, np.ndarray) else values.clone()


def zeros(shape: tuple[int, ...], numbers: Numbers) -> Values:
    """Zeros to compute with."""
    if numbers.compute is None:
        return np.zeros(shape)
    import torch

    return torch.zeros(shape, dtype=numbers.compute, device=numbers.device)


def finish(values: Values, stored: Values, numbers: Numbers, name: str) -> Values:
    """Computed values of one axis rounded once, and settled: see `numerics.finish`."""
    if not isinstance(values, np.ndarray):
        return kit(values).finish(values, stored, numbers.output, overflow=numbers.overflow, name=name)
    done = arrays.finished(values, stored, numbers.output)
    return _settled(values, stored, numbers, name) if done is None else done


def _settled(values: Values, stored: Values, numbers: Numbers, name: str) -> Values:
    """`finish` by torch, for arrays that hold what is no plain number."""
    import torch

    from wiseft_core import numerics
    from wiseft_core.dtypes import TORCH_DTYPES

    bits = {2: np.int16, 4: np.int32, 8: np.int64}
    known = TORCH_DTYPES[arrays.name_of(stored)]
    tensor, base = torch.from_numpy(values), torch.from_numpy(stored.view(bits[stored.itemsize])).view(known)
    output = TORCH_DTYPES[numbers.output]
    done = numerics.finish(tensor, base, output, overflow=numbers.overflow, name=name)
    carrier = np.dtype(arrays.CARRIERS[numbers.output])
    raw = getattr(torch, np.dtype(bits[carrier.itemsize]).name)
    return done.view(raw).numpy().view(carrier)
