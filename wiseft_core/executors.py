"""Who runs the tasks: anything with the interface of concurrent.futures' Executor, a few tasks at a time.

Room of its own: it knows neither tensors nor files. Tasks are taken from an iterator as places come free, so that what
a task holds (factors of a tensor, buffers) exists for the tasks at hand only.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from typing import Any, NamedTuple

from wiseft_core.errors import Fault

Task = Callable[[], None]


def default_threads() -> int:
    """The number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Sent(NamedTuple):
    """A task that an executor gets, and what is done here with its result, which may be more to send."""

    task: Callable[[], Any]
    then: Callable[[Any], Iterable[Sent]]


def run(tasks: Iterable[Task], executor: Executor, *, window: int) -> None:
    """Run every task, at most `window` of them handed out at a time.

    Raises:
        Exception: The first one that a task raises; tasks not yet begun are dropped, running ones are waited for.
    """
    spread((Sent(task, _nothing) for task in tasks), executor, window=window)


def spread(work: Iterable[Sent], executor: Executor, *, window: int) -> None:
    """Run every task, and what comes of it, at most `window` of `work` handed out at a time.

    A task may be made by what an earlier one did: the iterator is only advanced when there is a place.

    Raises:
        Fault: The executor has lost its workers, and runs nothing any more.
        Exception: The first one that a task raises; tasks not yet begun are dropped, running ones are waited for.
    """
    pending: dict[Future[Any], Sent] = {}
    try:
        for sent in work:
            pending[executor.submit(sent.task)] = sent
            while len(pending) >= window:
                _collect(pending, executor)
        while pending:
            _collect(pending, executor)
    except BaseException as error:
        for future in pending:
            future.cancel()
        wait(pending)
        if isinstance(error, BrokenExecutor):
            raise _lost(error) from error
        raise


def _collect(pending: dict[Future[Any], Sent], executor: Executor) -> None:
    """Wait for a task to end, go on with what comes of it, and raise what it raised, of several the successes first."""
    done = wait(pending, return_when=FIRST_COMPLETED).done
    for future in sorted(done, key=lambda future: future.exception() is not None):
        sent = pending.pop(future)
        for more in sent.then(future.result()):
            pending[executor.submit(more.task)] = more


def _nothing(result: object) -> tuple[Sent, ...]:
    """Nothing comes of it."""
    return ()


def _lost(error: BrokenExecutor) -> Fault:
    """What to do where an executor is broken."""
    return Fault(
        "the executor — its workers are gone",
        expected="workers that live until their task is done",
        got=f"{type(error).__name__}: {error}",
        hint="did they run out of memory? Use fewer of them, and resume: what such a run has finished is kept",
    )
