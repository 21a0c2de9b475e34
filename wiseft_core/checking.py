"""What only values can tell, looked at once before anything is computed.

Joint floor, above `bound`: adapter values that are not finite, integers that tuning changed, copies that are none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from wiseft_core import arrays
from wiseft_core.bound import Bound
from wiseft_core.cutting import whole
from wiseft_core.errors import DtypeMismatch, WiseftError
from wiseft_core.kits import kit
from wiseft_core.plans import new_twice
from wiseft_core.sources import Arrays, Source, has_bytes
from wiseft_core.tiles import not_finite

if TYPE_CHECKING:
    from torch import Tensor


def check_values(bound: Bound, complete: Sequence[bool]) -> None:
    """Refuse what only values can tell: adapter values that are not finite, integers that tuning changed.

    Args:
        bound: Base and adapters.
        complete: For each part, whether it is a full checkpoint: that is checked tile by tile instead of now.
    """
    problems: list[WiseftError] = []
    for part, is_complete in zip(bound.parts, complete, strict=True):
        for name, key in part.plan.same.items():
            count = bound.base.specs[name].numel
            ours, theirs = bound.base.read(name, 0, count), part.adapter.read(key, 0, count)
            if not same_bytes(ours, theirs):
                problems.append(_changed_integers(name, key))
        problems += [
            _other_copy(key, used)
            for key, used in part.plan.copies.items()
            if not are_copies(whole(part.adapter, key), whole(part.adapter, used))
        ]
        for key, name in () if is_complete else part.plan.consumed().items():
            if name and name not in part.plan.same and not _is_finite(part.adapter, key):
                problems.append(not_finite(key))
    WiseftError.raise_all(problems + _new_twice(bound))


def _new_twice(bound: Bound) -> list[WiseftError]:
    """What is wrong with tensors that the base does not have and several adapters bring: they must be the same."""
    problems: list[WiseftError] = []
    for name in bound.plan.new:
        first, *rest = [whole(part.adapter, part.plan.new[name]) for part in bound.parts if name in part.plan.new]
        if not all(same_bytes(first, other) for other in rest):
            problems.append(new_twice(name, "one tensor, the same values in each", "other values in one of them"))
    return problems


def _is_finite(source: Source, key: str) -> bool:
    """Whether a tensor holds no NaN or infinity."""
    if has_bytes(source) and source.specs[key].dtype in arrays.CARRIERS:
        source = Arrays(source)
    stored = whole(source, key)
    return bool(kit(stored).is_all_finite(stored))


def are_copies(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same, or one is the other's transpose: a head tied to an embedding is seen so."""
    return same_bytes(one, other) or (one.dim() == 2 == other.dim() and same_bytes(one, other.T.contiguous()))


def same_bytes(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have one shape and dtype, and hold the same bytes."""
    import torch

    return (
        one.shape == other.shape
        and one.dtype == other.dtype
        and torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))
    )


def _other_copy(key: str, used: str) -> DtypeMismatch:
    return DtypeMismatch(
        f"{key} — another value than what it is a copy of",
        expected=f"the values of {used}, which all modules share",
        got="others",
        hint="the file is damaged, or put together from several; tied modules that were trained apart: untie them "
        "here, and in the config.json of a full checkpoint",
    )


def _changed_integers(name: str, key: str) -> DtypeMismatch:
    return DtypeMismatch(
        f"{name} — tuning changed an integer tensor",
        expected="the same integers in base and adapter",
        got=f"other values in adapter key {key}",
        hint="integers cannot be interpolated; remove the tensor from the adapter if it does not matter",
    )
