"""A device that is not the processor, on any machine: "away", whose tensors the processor computes.

Importing this registers it for the whole process. An operation on tensors of two devices fails, as it does on a card,
and so does reading an array out of one that is away.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_setup_privateuseone_for_python_backend("away")
DEVICE = torch.device("away")
ATEN = torch.ops.aten
MOVES = (ATEN._to_copy.default, ATEN.copy_.default)
INDEXED = (ATEN.index.Tensor, ATEN.index_put.default, ATEN.index_put_.default)


class Away(Tensor):
    """A tensor that says it is away, around one that is not."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> Away:
        """Of the same shape, strides and dtype."""
        known = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        return Tensor._make_wrapper_subclass(cls, inner.shape, **known, device=DEVICE)

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(function, args, kwargs or {})


class Reachable(TorchDispatchMode):
    """Where this is active, in its thread, tensors can be made and moved away."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(function, args, kwargs or {})


def _computed(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """What an operation gives, away if its operands are or if it is told to make something there."""
    asked = (args[0], *args[2:]) if function in INDEXED else (args, kwargs)  # indices may be elsewhere, as on a card
    tensors = [leaf for leaf in tree_leaves(asked) if isinstance(leaf, Tensor)]
    is_away = any(isinstance(one, Away) for one in tensors)
    if is_away and function not in MOVES and any(one.dim() and not isinstance(one, Away) for one in tensors):
        raise RuntimeError(f"{function}: tensors on two devices")
    if kwargs.get("device") is not None:
        is_away = torch.device(kwargs["device"]).type == DEVICE.type
        kwargs = {**kwargs, "device": torch.device("cpu")}
    done = function(*tree_map(_inner, args), **tree_map(_inner, kwargs))
    if function._schema.name.endswith("_"):
        return args[0]
    return tree_map(lambda one: Away(one) if isinstance(one, Tensor) else one, done) if is_away else done


def _inner(value: Any) -> Any:
    """The tensor inside of one that is away."""
    return value.inner if isinstance(value, Away) else value
