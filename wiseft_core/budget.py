"""How many threads a budget of memory allows.

Verb floor, below `offline`: from specs alone. What a run needs does not depend on the size of the model: what the
process has when it starts to compute, the headers and the plan included; compiled loops, where they will be used; and
for each thread the tiles at hand, and the factors of the tensor that it is at. A change that is of a whole matrix needs
that matrix too, some times over.
"""

from __future__ import annotations

import math
import os
import resource
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from wiseft_core import loops
from wiseft_core.bound import Bound, Part
from wiseft_core.cutting import is_in_lines
from wiseft_core.errors import ConfigError
from wiseft_core.landings import UNCUT
from wiseft_core.plans import Piece
from wiseft_core.store.shards import parse_size
from wiseft_core.tiles import TILE
from wiseft_core.types import BITS

_ONCE: Final = 16 << 20
"""Bytes that a run needs once: what libraries take with their first call, and the stacks of threads."""
_OUTPUT: Final = 4 << 20
"""Bytes that each output needs, for digests of the shards at hand."""
_MATRICES: Final = 4
"""How often a change that is of a whole matrix has it in memory."""


def threads_within(memory: int | str, threads: int, bounds: Iterable[Bound], outputs: int) -> int:
    """The most threads, up to `threads`, that a job may have so that the process stays within `memory`.

    Args:
        memory: Resident bytes of the whole process, or "512MB".
        threads: How many there would be.
        bounds: What is computed from.
        outputs: How many outputs are made at once.
    Raises:
        ConfigError: It is not a size, or too little for one thread.
    """
    budget, bounds = parse_size(memory), tuple(bounds)
    once = _resident() + _ONCE + outputs * _OUTPUT
    if loops.may_come() and outputs * sum(bound.work(loops.AFTER) for bound in bounds) > loops.AFTER:
        once += loops.MEMORY
    each = TILE * (64 + 16 * outputs) + max((_largest(bound) for bound in bounds), default=0)
    if budget < once + each:
        raise ConfigError(
            "the memory budget is too small",
            expected=f"at least {-(-(once + each) // 10**6)}MB, {each // 10**6} of them for a thread",
            got=f"{memory}",
            hint="raise the budget; for a sweep, write fewer alphas at once",
        )
    return min(threads, (budget - once) // each)


def _largest(bound: Bound) -> int:
    """The most bytes that the factors of one piece take, as stored and widened, with what a whole matrix needs."""
    most = 0
    for part in bound.parts:
        for binding in part.plan.bindings.values():
            by_lines = bound.in_arrays(binding.name)
            most = max(most, *(_bytes_of(bound, part, piece, by_lines) for piece in binding.pieces), 0)
    return most


def _bytes_of(bound: Bound, part: Part, piece: Piece, by_lines: bool) -> int:
    """`_largest` of one piece; `by_lines`: large factors are read as tiles need them."""
    total, wide = 0, BITS[bound.compute] // 8
    for spec in piece.steps:
        change = bound.change(spec)
        if change.whole:
            total += _MATRICES * math.prod(piece.shape) * wide
        for role, key in spec.factors.items():
            stored = part.adapter.specs[key]
            if by_lines and is_in_lines(spec, role, change, stored):
                continue
            if change.factors[role] != "out in" or spec.cut != UNCUT:  # else it is read tile by tile
                total += stored.nbytes + stored.numel * wide
        total += sum(bound.base.specs[name].numel * 2 * wide for name in spec.beside.values())
    return total


def _resident() -> int:
    """Bytes of this process that are in memory now."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
