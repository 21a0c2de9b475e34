"""A command that is run to its end: its exit status and last words, in bounded memory, with nothing left running.

Near the ground: the standard library, signals, and what is said aside.
"""

from __future__ import annotations

import codecs
import os
import selectors
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Final, NamedTuple, TextIO

from wiseft_core.aside import Aside
from wiseft_core.signals import signals_held

LINE_LIMIT: Final = 1 << 20
CHUNK: Final = 1 << 16
POLL_SECONDS: Final = 0.2


class NotStarted(Exception):
    """There is no such program, it may not be run, or a word of its command line cannot be given to it."""


class Ended(NamedTuple):
    """Exit status (negative: the signal) and the last lines of stdout and stderr that are not blank."""

    status: int
    said: bytes
    complaint: bytes


def run_child(argv: Sequence[str], stderr: TextIO | None) -> Ended:
    """Run `argv` without a shell and without input, in a process group of its own that ends with it or with us.

    Args:
        argv: The program and its arguments.
        stderr: Gets what the command says on stderr, while it says it; one that cannot be written ends nothing.
    Raises:
        NotStarted: It cannot be started.
    """
    said, complaint, listener = _LastLine(), _LastLine(), Aside(stderr)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def complain(chunk: bytes) -> None:
        complaint.feed(chunk)
        listener.write(decoder.decode(chunk))

    with ExitStack() as running:
        with signals_held():  # a child that nobody knows of yet would be left running
            child = running.enter_context(_started(argv))
        _drain(child, {child.stdout: said.feed, child.stderr: complain})
        status = child.wait()
    return Ended(status, said.line(), complaint.line())


@contextmanager
def _started(argv: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A child in a session of its own, which is killed and waited for at the end."""
    pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    try:
        child = subprocess.Popen(argv, **pipes, start_new_session=True)
    except (OSError, ValueError) as error:  # ValueError: a NUL
        raise NotStarted(error.strerror if isinstance(error, OSError) else error) from None
    with child:
        try:
            yield child
        finally:
            _end(child)


def _has_ended(child: subprocess.Popen[bytes]) -> bool:
    """Whether it has; Popen takes a lock for that, and waits for it for ever where a signal came then."""
    with signals_held():
        return child.poll() is not None


class _LastLine:
    """The last line of a stream that is not blank; of a line longer than the limit only the start is kept."""

    def __init__(self) -> None:
        self._ended, self._open = b"", bytearray()

    def feed(self, chunk: bytes) -> None:
        """More of the stream. A carriage return ends a line too: progress bars go before what counts."""
        ended, newline, rest = chunk.replace(b"\r", b"\n").rpartition(b"\n")
        if newline:
            first, _, others = ended.partition(b"\n")
            self._more(first)
            self._ended = others.rstrip().rpartition(b"\n")[2].strip()[: LINE_LIMIT + 1] or self.line()
            self._open.clear()
        self._more(rest)

    def _more(self, part: bytes) -> None:
        """More of the line that has not ended."""
        start = part if self._open else part.lstrip()
        self._open += start[: LINE_LIMIT + 1 - len(self._open)]

    def line(self) -> bytes:
        """The line, without the white space around it unless it is too long; empty if there was none."""
        whole = len(self._open) <= LINE_LIMIT  # what was cut off a longer one may not have been white
        return bytes(self._open.strip() if whole else self._open) or self._ended


def _drain(child: subprocess.Popen[bytes], feeds: Mapping[Any, Callable[[bytes], None]]) -> None:
    """Feed on what comes through the pipes until all are closed, or the child has ended and they are empty."""
    ended = False
    with selectors.DefaultSelector() as pipes:
        for pipe, feed in feeds.items():
            pipes.register(pipe, selectors.EVENT_READ, feed)
        while pipes.get_map():
            if not ended and _has_ended(child):
                ended = True
                _end(child)  # what it has left running may hold the pipes open
            ready = pipes.select(POLL_SECONDS)
            if ended and not ready:
                return
            for key, _ in ready:
                if chunk := os.read(key.fd, CHUNK):
                    key.data(chunk)
                else:
                    pipes.unregister(key.fileobj)


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill the child, if it still runs, and all others of its group."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
