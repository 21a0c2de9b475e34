"""The arithmetic of `arrays`, by compiled loops once there is so much to do that it pays: the same bits either way.

Ground floor, above `arrays`; `kits` gives this module for arrays. numba is an extra (`fast`) that takes a third of a
second to start, and keeps what it has compiled in a cache on disk. The loops are checked before they are used.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from threading import Lock
from typing import Any, Final

import numpy as np

from wiseft_core import arrays
from wiseft_core.arrays import Array
from wiseft_core.rooms import room

MEMORY: Final = 140 << 20
"""Bytes that a process has more of, once the loops are there, and once it has compiled them."""

AFTER: Final = 1 << 28
"""Elements from which on it pays to load them: the first time, numba compiles for two or three seconds."""


class _Loops:
    """The module of compiled loops, once it is there."""

    def __init__(self) -> None:
        self.found: Any = None
        self.is_tried, self.expected, self.lock = False, 0, Lock()


_LOOPS: Final = _Loops()
_KINDS: Final = {"BF16": "bf16", "F16": "f16", "F32": "f32"}
_BITS: Final = {2: np.uint16, 4: np.uint32}


is_all_finite = arrays.is_all_finite
mix, ordered_sum, product = arrays.mix, arrays.ordered_sum, arrays.product
root, square_sum = arrays.root, arrays.square_sum


def widen(stored: Array) -> Array:
    """`arrays.widen`."""
    found = _LOOPS.found
    if found is None or stored.dtype != np.uint16 or stored.ndim != 1 or not stored.flags.c_contiguous:
        return arrays.widen(stored)
    wide = room(stored.shape, np.float64)
    found.wide_bf16(stored, wide)
    return wide


def moved(base: Array, delta: Array, c: float) -> Array:
    """`arrays.moved`."""
    found = _LOOPS.found
    if found is None or not (base.flags.c_contiguous and delta.flags.c_contiguous) or base.shape != delta.shape:
        return arrays.moved(base, delta, c)
    total = room(base.shape, np.float64)
    found.moved(base.reshape(-1), delta.reshape(-1), c, total.reshape(-1))
    return total


def moved_once(stored: Array, delta: Array, c: float, target: str) -> Array | None:
    """stored + c·delta, by `arrays.moved` and `arrays.finished`; None where no loop does it, or it holds odd values."""
    return _run("moved", stored, delta, c, target)


def mixed_once(stored: Array, tuned: Array, alpha: float, target: str) -> Array | None:
    """stored + alpha·(tuned - stored), by `arrays.mix` and `arrays.finished`; None as for `moved_once`."""
    return _run("mixed", stored, tuned, alpha, target)


def expect(count: int) -> bool:
    """Count elements that will be computed; whether there are enough by now to `load` the loops, which are not yet."""
    with _LOOPS.lock:
        _LOOPS.expected += count
        return _LOOPS.expected > AFTER and not _LOOPS.is_tried


def load() -> None:
    """Load the loops, once: threads that compute meanwhile do without."""
    with _LOOPS.lock:
        if not _LOOPS.is_tried:
            _LOOPS.found, _LOOPS.is_tried = _loaded(), True


def may_come() -> bool:
    """Whether a process that has not loaded them may still do so."""
    return not _LOOPS.is_tried and find_spec("numba") is not None


def _run(what: str, stored: Array, values: Array, factor: float, target: str) -> Array | None:
    """One loop over a tile."""
    found = _LOOPS.found
    if found is None or target not in _KINDS or arrays.name_of(stored) != target:
        return None
    return _call(found, what, stored, values, factor, target)


def _call(found: Any, what: str, stored: Array, values: Array, factor: float, target: str) -> Array | None:
    """What a loop of the module `found` makes of a tile."""
    loop: Callable[..., bool] = getattr(found, f"{what}_{_KINDS[target]}")
    done, bits = room(stored.shape, stored.dtype), _BITS[stored.itemsize]
    is_plain = loop(stored.view(bits), np.ascontiguousarray(values), factor, done.view(bits))
    return done if is_plain else None


def _loaded() -> Any:
    """The module, if numba is installed, can compile it here, and what it computes is right."""
    try:
        found = import_module("wiseft_core.compiled")
    except Exception:  # no numba, no room for its cache, a processor that it does not know: numpy does it all
        return None
    return found if all(_agrees(found, target) for target in _KINDS) and _agrees_wide(found) else None


@arrays.quietly
def _agrees(found: Any, target: str) -> bool:
    """Whether the loops give the bits of `arrays` where rounding is hard: by midpoints, and where zeros have signs."""
    drawn, count = np.random.default_rng(0), 4096
    stored = arrays.round_once(drawn.standard_normal(count) * 2.0 ** drawn.integers(-9, 9, count), target)
    stored[::7] = arrays.round_once(np.copysign(np.zeros(count), drawn.standard_normal(count)), target)[::7]
    delta = arrays.widen(stored) * 2.0 ** drawn.integers(-30, 1, count) * drawn.choice([1.0, 1.0, 0.9], count)
    for what, whole in (("moved", arrays.moved), ("mixed", arrays.mix)):
        right = arrays.finished(whole(arrays.widen(stored), delta, 0.5), stored, target)
        got = _call(found, what, stored, delta, 0.5, target)
        if right is None or got is None or right.tobytes() != got.tobytes():
            return False
    return True


@arrays.quietly
def _agrees_wide(found: Any) -> bool:
    """The same of the loops that end in float64."""
    stored = np.arange(0, 1 << 16, 13, dtype=np.uint16)
    wide, got, total = arrays.widen(stored), np.empty(len(stored)), np.empty(len(stored))
    found.wide_bf16(stored, got)
    found.moved(wide, got, 0.3, total)
    return got.tobytes() == wide.tobytes() and total.tobytes() == arrays.moved(wide, wide, 0.3).tobytes()
