"""Who runs the tasks: anything with the interface of concurrent.futures' Executor, a few tasks at a time.

Room of its own: it knows neither tensors nor files. Tasks are taken from an iterator as places come free, so that what
a task holds (factors of a tensor, buffers) exists for the tasks at hand only.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait

Task = Callable[[], None]


def default_threads() -> int:
    """The number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(tasks: Iterable[Task], executor: Executor, *, window: int) -> None:
    """Run every task, at most `window` of them handed out at a time.

    A task may be made by what an earlier one did: the iterator is only advanced when there is a place.

    Raises:
        Exception: The first one that a task raises; tasks not yet begun are dropped, running ones are waited for.
    """
    pending: set[Future[None]] = set()
    try:
        for task in tasks:
            pending.add(executor.submit(task))
            while len(pending) >= window:
                pending = _collect(pending)
        while pending:
            pending = _collect(pending)
    except BaseException:
        for future in pending:
            future.cancel()
        wait(pending)
        raise


def _collect(pending: set[Future[None]]) -> set[Future[None]]:
    """Wait for a task to end, and raise what it raised."""
    done, rest = wait(pending, return_when=FIRST_COMPLETED)
    for future in done:
        future.result()
    return rest
