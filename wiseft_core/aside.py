"""What is said aside: to a stream that may be closed, gone or full, which is no reason to end a run.

Ground floor: standard library only.
"""

from __future__ import annotations

from typing import TextIO


class Aside:
    """A stream that is written to while it takes it, and after its first failure no more.

    Args:
        stream: None, which Python has for one that was closed before it began, takes nothing.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self.encoding = getattr(stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        """Write `text` at once."""
        if self._stream is not None:
            try:
                self._stream.write(text)
                self._stream.flush()
            except (OSError, ValueError):  # ValueError: it has been closed
                self._stream = None
        return len(text)

    def flush(self) -> None:
        """Nothing waits to be written."""

    def isatty(self) -> bool:
        """Whether somebody looks at it."""
        return self._stream is not None and self._stream.isatty()
