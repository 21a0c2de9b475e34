"""Who runs the tasks: anything with the interface of concurrent.futures' Executor, a few tasks at a time.

Room of its own: it knows neither tensors nor files. Tasks are taken from an iterator as threads come free, so that what
a task holds (factors of a tensor, buffers) exists for the tasks at hand only.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future
from queue import SimpleQueue
from threading import Lock, get_ident
from typing import Any, NamedTuple

from wiseft_core.errors import Fault
from wiseft_core.signals import signals_held

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

    A task may be made by what an earlier one did: the iterator is only advanced when there is a place. A signal that
    asks to end is handled between two tasks; one that comes while the last ones are waited for, after that.

    Raises:
        Fault: The executor has lost its workers, and runs nothing any more.
        Exception: The first one that a task raises; tasks not yet begun are dropped, running ones are waited for.
    """
    outbox = _Outbox(executor)
    with signals_held(outbox.wake) as let_through:
        try:
            for sent in work:
                let_through()
                outbox.send(sent)
                while len(outbox.pending) >= window:
                    outbox.collect()
                    let_through()
            while outbox.pending:
                outbox.collect()
                let_through()
        except BaseException as error:
            outbox.drop()
            if isinstance(error, BrokenExecutor):
                raise _lost(error) from error
            raise


class _Outbox:
    """What an executor has been given, and hears of as it ends.

    A queue that is reentrant takes the place of `concurrent.futures.wait`, so that a signal can end the waiting.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor, self._ended = executor, SimpleQueue[Future[Any] | None]()
        self.pending: dict[Future[Any], Sent] = {}

    def wake(self) -> None:
        """Have `collect` return, whether a task has ended or not."""
        self._ended.put(None)

    def send(self, sent: Sent) -> None:
        """Give it a task."""
        future = self._executor.submit(sent.task)
        self.pending[future] = sent
        future.add_done_callback(self._ended.put)

    def collect(self) -> None:
        """Wait for a task to end, go on with what comes of it, raise what it raised, of several the successes first."""
        ended = [self._ended.get()]
        while not self._ended.empty():
            ended.append(self._ended.get())
        futures = [future for future in ended if future is not None]
        for future in sorted(futures, key=lambda future: future.exception() is not None):
            sent = self.pending.pop(future)
            for more in sent.then(future.result()):
                self.send(more)

    def drop(self) -> None:
        """Take back what has not begun, and wait for the rest."""
        for future in self.pending:
            future.cancel()
        while not all(future.done() for future in self.pending):
            self._ended.get()


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
