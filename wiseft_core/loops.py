"""Compiled loops for tiles, loaded once there is so much to do that it pays: the same bits, with or without them.

Ground floor, above `arrays`. numba is an extra (`fast`) and takes a third of a second to start, which is as long as it
saves on some hundred million elements. What it compiles is checked against `arrays` before it is used.
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

MEMORY: Final = 100 << 20
"""Bytes that a process has more of, once the loops are there."""

AFTER: Final = 1 << 26
"""Elements from which on it pays to load them."""


class _Loops:
    """The module of compiled loops, once it is there."""

    def __init__(self) -> None:
        self.found: Any = None
        self.is_tried, self.expected, self.lock = False, 0, Lock()


_LOOPS: Final = _Loops()
_KINDS: Final = {"BF16": "bf16", "F16": "f16", "F32": "f32"}
_BITS: Final = {2: np.uint16, 4: np.uint32}


def moved(stored: Array, delta: Array, c: float, target: str) -> Array | None:
    """stored + c·delta, by `arrays.moved` and `arrays.finished`; None where no loop does it, or it holds odd values."""
    return _run("moved", stored, delta, c, target)


def mixed(stored: Array, tuned: Array, alpha: float, target: str) -> Array | None:
    """stored + alpha·(tuned - stored), by `arrays.mix` and `arrays.finished`; None as for `moved`."""
    return _run("mixed", stored, tuned, alpha, target)


def expect(count: int) -> None:
    """Load the loops, if with `count` elements more there is enough for them; called before threads begin."""
    with _LOOPS.lock:
        _LOOPS.expected += count
        if _LOOPS.expected > AFTER and not _LOOPS.is_tried:
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
    return found if all(_agrees(found, target) for target in _KINDS) else None


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
