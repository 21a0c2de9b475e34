"""Who else may run the tasks, by a word: threads of this process, processes of this machine, or a Dask cluster.

On top of the rooms, for the command; and the only module that imports distributed: when it is called, never before.
"""

from __future__ import annotations

import multiprocessing
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock, Thread
from typing import Any, Final

from wiseft_core.errors import ConfigError, Fault
from wiseft_core.executors import default_threads

TRIES: Final = 3
"""How often a task is begun whose process dies: it may be what kills it."""
_WORD: Final = re.compile(r"(threads|processes)(?::([1-9][0-9]{0,4}))?|dask://([^/\s]+:[0-9]+)")


class Processes(Executor):
    """A pool of processes that outlives them: where one dies, a new pool does again what the old one was at.

    Args:
        count: How many.
        begin: Called in each of them before anything else.
    """

    def __init__(self, count: int, begin: Callable[[], None] | None = None) -> None:
        self._max_workers, self._begin, self._lock, self._ended = count, begin, Lock(), False
        self._pool = self._made()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run a call that may be run twice."""
        future: Future[Any] = Future()
        self._try(future, lambda pool: pool.submit(fn, *args, **kwargs), TRIES)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the processes."""
        with self._lock:
            self._ended = True
        self._pool.shutdown(wait, cancel_futures=cancel_futures)

    def _made(self) -> ProcessPoolExecutor:
        """A pool whose processes share no state with this one: forks would take its locks along as they are."""
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(self._max_workers, context, _begun, (self._begin,))

    def _try(self, future: Future[Any], send: Callable[[Executor], Future[Any]], tries: int) -> None:
        """Send a call to the pool that there is, and again to the next one."""
        with self._lock:
            pool = self._pool
        try:
            sent = send(pool)
        except BrokenExecutor as error:
            self._again(future, send, tries, pool, error)
            return

        def ended(done: Future[Any]) -> None:
            error = None if done.cancelled() else done.exception()
            if isinstance(error, BrokenExecutor):
                self._again(future, send, tries, pool, error)
            elif future.set_running_or_notify_cancel() and error is not None:
                future.set_exception(error)
            elif not future.cancelled():
                future.set_result(done.result())

        future.add_done_callback(lambda one: one.cancelled() and sent.cancel())
        sent.add_done_callback(ended)

    def _again(
        self,
        future: Future[Any],
        send: Callable[[Executor], Future[Any]],
        tries: int,
        pool: Executor,
        error: BrokenExecutor,
    ) -> None:
        """Try again in a new pool, where the old one has lost a process."""
        with self._lock:
            if self._ended or tries <= 1 or future.cancelled():
                if future.set_running_or_notify_cancel():
                    future.set_exception(error)
                return
            if self._pool is pool:
                self._pool = self._made()
        self._try(future, send, tries - 1)


def _begun(begin: Callable[[], None] | None) -> None:
    """What a process of ours begins with: it ends with the one that made it, however that ends."""
    Thread(target=_outlive_nobody, daemon=True).start()
    if begin is not None:
        begin()


def _outlive_nobody() -> None:
    """Wait for the parent's end, and end."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def opened(word: str, begin: Callable[[], None] | None = None) -> Iterator[Executor]:
    """The executor that a word means: "threads", "threads:4", "processes", "processes:4", "dask://host:port".

    Args:
        word: The word.
        begin: Called in each process that is made for it, before anything else.
    Raises:
        ConfigError: It means none, or distributed is not installed.
        Fault: There is no such cluster.
    """
    match = _WORD.fullmatch(word)
    if match is None:
        raise ConfigError(
            f"executor {word}",
            expected="threads[:N], processes[:N] or dask://HOST:PORT",
            got=f"{word!r}",
            hint="for example processes:4",
        )
    kind, count, address = match.groups()
    if address is not None:
        with _dask(address) as executor:
            yield executor
        return
    number = int(count) if count else default_threads()
    pool = ThreadPoolExecutor(number) if kind == "threads" else Processes(number, begin)
    try:
        yield pool
    finally:
        pool.shutdown()


@contextmanager
def _dask(address: str) -> Iterator[Executor]:
    """The executor of a Dask cluster."""
    try:
        import distributed
    except ImportError as error:
        raise ConfigError(
            f"executor dask://{address}",
            expected="Dask's distributed",
            got="it is not installed",
            hint="pip install 'wiseft_core[dask]'",
        ) from error
    library: Any = distributed  # it has no types
    try:
        client = library.Client(f"tcp://{address}", timeout="10s")
    except OSError as error:
        raise Fault(
            f"dask://{address} — no cluster answers",
            expected="the address that `dask scheduler` prints",
            got=f"{error}",
            hint="is the scheduler running, and can this machine reach it?",
        ) from error
    with client:
        try:
            yield client.get_executor()
        except library.KilledWorker as error:
            raise Fault(
                f"dask://{address} — a task was lost with every worker that was at it",
                expected="workers that live until their task is done",
                got=f"{error}",
                hint="do they have too little memory? Run again with --resume: what such a run has finished is kept",
            ) from error
