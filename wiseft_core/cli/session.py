"""What all verbs know of the run that they are part of."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from wiseft_core.statedict import StateDict

M_TRIM_THRESHOLD: Final = -1
M_MMAP_THRESHOLD: Final = -3


@dataclass(frozen=True, slots=True)
class Session:
    """One run of the command.

    Attributes:
        alone: The process belongs to the command, so that torch's global settings may be set.
    """

    alone: bool = False

    def settle(self) -> None:
        """Numpy as the tiles want it, in a process of our own: its BLAS starts no threads, which would wait busily."""
        if self.alone and "numpy" not in sys.modules and "OPENBLAS_NUM_THREADS" not in os.environ:
            os.environ["OPENBLAS_NUM_THREADS"] = "1"
            import_module("wiseft_core.arrays").leave_blas_alone()
            del os.environ["OPENBLAS_NUM_THREADS"]  # what this process starts is not to have it

    def settle_torch(self) -> None:
        """Torch and memory as the tiles want them, in a process of our own.

        One thread inside each torch call: tiles and shards are what runs in parallel. What torch makes while it is
        imported stays: the collector need not look at it then, nor ever after, the end of the process included, which
        makes a run a quarter of a second shorter. And freed tiles are kept: glibc would give each back to the system,
        and fault every page of the next one in again, which doubles the work.
        """
        self.settle()
        if not self.alone:
            return
        gc.disable()
        import torch

        gc.freeze()
        gc.enable()
        torch.set_num_threads(1)
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc has it, other C libraries need not
        if mallopt is not None:
            mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the largest that it accepts
            mallopt(M_TRIM_THRESHOLD, 256 << 20)

    def settle_for(self, view: StateDict) -> None:
        """`settle_torch` where a view needs it; most do not, and to import it takes as long as a small job."""
        if not all(map(view.bound.in_arrays, view.touched)):
            self.settle_torch()


@contextmanager
def hired(word: str | None) -> Iterator[Executor | None]:
    """The executor that --executor means, for as long as it is needed; None where it is not given."""
    if word is None:
        yield None
        return
    from wiseft_core.workers import opened

    with opened(word, _begin) as executor:
        yield executor


def _begin() -> None:
    """A process of ours that works for the command: its signals are the command's to answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread inside each torch call, should it be imported
    Session(alone=True).settle()
