"""The digest of a file in the making, taken as its bytes come.

Store room, no torch. Bytes that come in order are digested from the buffer that was just written, others are read back
once those before them are there: both while they are still in the processor's cache, and while other threads write.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Final

from blake3 import blake3

STEP: Final = 1 << 20
"""Bytes that must have come in a row before they are read back, and that are read at once."""


class Trail:
    """A BLAKE3 digest that follows the writers of a file. Any number of threads may tell it what they wrote.

    Args:
        head: The first bytes of the file, which may be written last.
        read: `read(buffer, offset)` fills a buffer with what was written at an offset of the file.
    """

    def __init__(self, head: bytes, read: Callable[[memoryview, int], None]) -> None:
        self._digest, self._read = blake3(head), read
        self._reached = self._done = len(head)
        self._ahead: dict[int, int] = {}
        self._lock, self._busy = Lock(), False
        self._buffer: memoryview | None = None

    def add(self, start: int, written: memoryview) -> None:
        """What is in `written` is in the file from byte `start` on; whoever completes a long enough run digests it."""
        stop = start + len(written)
        with self._lock:
            is_next = start == self._reached
            if start < stop:
                self._ahead[start] = stop
            while self._reached in self._ahead:
                self._reached = self._ahead.pop(self._reached)
            if self._busy:
                return
            self._busy = True
        if is_next:
            self._follow(start)
            self._digest.update(written)
            self._done = stop
        while (reached := self._next()) is not None:
            self._follow(reached)

    def _next(self) -> int | None:
        """Where the bytes end that can be digested now; None, and another thread's turn, if they are too few."""
        with self._lock:
            if self._reached - self._done >= STEP:
                return self._reached
            self._busy = False
            return None

    def _follow(self, stop: int) -> None:
        """Digest up to byte `stop`."""
        if self._buffer is None:
            self._buffer = memoryview(bytearray(STEP))
        while self._done < stop:
            piece = self._buffer[: min(STEP, stop - self._done)]
            self._read(piece, self._done)
            self._digest.update(piece)
            self._done += len(piece)

    def end(self, size: int) -> str:
        """The digest in hex of the first `size` bytes, which are all there."""
        self._follow(size)
        self._buffer = None
        return self._digest.hexdigest()
