"""Memory for tiles, used again by the thread that had it.

Ground floor: numpy and nothing else of the package.
"""

from __future__ import annotations

import math
import sys
from sys import getrefcount
from threading import local
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_SMALL: Final = 2**16
_LARGE: Final = 2**22
_MOST: Final = 16
"""Bytes of an array whose memory is used again, from and to, and how many of them a thread keeps."""


class _Rooms(local):
    """Each thread's memory for tiles, to be used again."""

    def __init__(self) -> None:
        self.kept: list[Array] = []


_ROOMS: Final = _Rooms()


def room(shape: tuple[int, ...], dtype: Any) -> Array:
    """An array to write to, not cleared. A tile's memory is used again once no array refers to it.

    The system would take the memory of a tile back and clear it page by page for the next one, which costs as much as
    what is computed in it.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if not _SMALL <= size <= _LARGE or not _counts():
        return np.empty(shape, dtype)
    kept = _ROOMS.kept
    for at in range(len(kept)):  # two refer to one that is free: the list, and the question
        if getrefcount(kept[at]) == 2 and len(kept[at]) >= size:
            break
    else:
        at = len(kept)
        kept.append(np.empty(size, np.uint8))
        if at == _MOST:
            del kept[0]
            at -= 1
    free: Array = kept[at][:size].view(dtype).reshape(shape)
    return free


def _counts() -> bool:
    """Whether this Python counts references at once, as all with a global lock do."""
    return bool(getattr(sys, "_is_gil_enabled", bool)()) or sys.version_info < (3, 13)
