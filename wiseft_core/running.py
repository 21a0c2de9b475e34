"""How a job is run: by whom, through which files, and who is told.

Verb floor, below `offline`.
"""

from __future__ import annotations

from concurrent.futures import Executor, ThreadPoolExecutor
from typing import NamedTuple

from wiseft_core import executors
from wiseft_core.budget import threads_within
from wiseft_core.errors import ConfigError
from wiseft_core.jobs import Job
from wiseft_core.statedict import StateDict
from wiseft_core.store.files import Files
from wiseft_core.tasks import Progress


class Run(NamedTuple):
    """How a job is run: none of this changes a byte, but for the manifest's word that all was synced."""

    files: Files
    threads: int
    progress: Progress | None
    sync: bool
    executor: Executor | None = None

    @classmethod
    def of(
        cls,
        files: Files,
        threads: int | None,
        progress: Progress | None,
        sync: bool,
        executor: Executor | None = None,
        memory: int | str | None = None,
    ) -> Run:
        """With as many threads as there are processors, where none are given.

        Raises:
            ConfigError: A number of threads, or a budget, for an executor that has its own; what is no such number, and
                no executor.
        """
        if executor is not None and (threads is not None or memory is not None):
            raise ConfigError(
                "executor",
                expected="an executor, or a number of threads and a budget of memory",
                got="threads or memory as well",
                hint="make the executor with as many workers as there is memory for",
            )
        if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
            raise ConfigError(
                "threads", expected="a number of threads, 1 or more", got=f"{threads!r}", hint="None: one per processor"
            )
        if executor is not None and not callable(getattr(executor, "submit", None)):
            raise ConfigError(
                "executor",
                expected="an object with the interface of concurrent.futures.Executor",
                got=f"{executor!r}",
                hint='words such as "processes:4" are for the command; here give ProcessPoolExecutor(4) and the like',
            )
        return cls(files, threads or executors.default_threads(), progress, sync, executor)

    @property
    def is_sent(self) -> bool:
        """Whether other processes do the work, or may."""
        return self.executor is not None and not isinstance(self.executor, ThreadPoolExecutor)

    def within(self, memory: int | str | None, job: Job) -> Run:
        """With no more threads than a budget of memory allows.

        Raises:
            ConfigError: It is too small for one.
        """
        if memory is None:
            return self
        bounds = [view.bound for view in job.views.values() if isinstance(view, StateDict)]
        return self._replace(threads=threads_within(memory, self.threads, bounds[:1], len(job.views)))
