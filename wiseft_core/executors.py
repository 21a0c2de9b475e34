"""Who runs the tasks: anything with the interface of concurrent.futures' Executor, a few tasks at a time.

Room of its own: it knows neither tensors nor files. Tasks are taken from an iterator as threads come free, so that what
a task holds (factors of a tensor, buffers) exists for the tasks at hand only.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from threading import Lock, get_ident
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


def run(lanes: Iterable[Iterator[Task]], executor: Executor, *, window: int) -> None:
    """Run every task of every lane in threads, which keep out of each other's lanes while there are enough of them.

    Args:
        lanes: Tasks that get in each other's way, as those that write into one file do, each lane in its order.
        executor: Its threads; a task is only taken by the one that runs it.
        window: How many calls are handed out at a time.
    Raises:
        Exception: The first one that a task raises; tasks not yet begun are dropped, running ones are waited for.
    """
    desk = _Desk(lanes)
    spread(iter(lambda: None if desk.is_empty else Sent(desk.serve, _nothing), None), executor, window=window)


class _Desk:
    """Where threads ask for work: each gets the tasks of a lane of its own, and helps with another's at the end."""

    def __init__(self, lanes: Iterable[Iterator[Task]]) -> None:
        self._fresh, self._lock, self.is_empty = iter(lanes), Lock(), False
        self._at = dict[int, Iterator[Task]]()  # each thread's lane

    def serve(self) -> None:
        """Run the next task for this thread, if there is one."""
        task = self._next()
        if task is not None:
            task()

    def _next(self) -> Task | None:
        """A task of this thread's lane, of one that nobody is at, or of the one where the fewest are."""
        me = get_ident()
        with self._lock:
            while True:
                if me not in self._at:
                    taken = list(self._at.values())
                    lane = next(self._fresh, None) or min(taken, key=taken.count, default=None)
                    if lane is None:
                        self.is_empty = True
                        return None
                    self._at[me] = lane
                lane = self._at[me]
                task = next(lane, None)
                if task is not None:
                    return task
                self._at = {thread: other for thread, other in self._at.items() if other is not lane}


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
