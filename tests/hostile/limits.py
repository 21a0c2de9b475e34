"""What every case is held to: a time after which it is stopped, and a picture of all files before and after."""

from __future__ import annotations

import faulthandler
import os
import signal
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Endless(BaseException):
    """A case ran longer than anything may. No Exception, so that nothing in between takes it for one of its own."""


@contextmanager
def bounded(seconds: float) -> Iterator[None]:
    """Stop what runs inside after `seconds` of this process's own time, or ten times that on the clock.

    Own time, because a busy machine is no fault of the case; the clock, because what waits for a pipe uses no time of
    its own. Where neither signal can stop it, the process ends with a traceback.
    """

    def stop(number: int, frame: object) -> None:
        raise Endless(f"still running after {seconds} s")

    timers = ((signal.SIGPROF, signal.ITIMER_PROF, seconds), (signal.SIGALRM, signal.ITIMER_REAL, 10 * seconds))
    before = [signal.signal(number, stop) for number, _, _ in timers]
    faulthandler.dump_traceback_later(30 * seconds, exit=True, file=sys.__stderr__)
    for _, timer, limit in timers:
        signal.setitimer(timer, limit)
    try:
        yield
    finally:
        for _, timer, _ in timers:
            signal.setitimer(timer, 0)
        faulthandler.cancel_dump_traceback_later()
        for (number, _, _), handler in zip(timers, before, strict=True):
            signal.signal(number, handler)


def picture(root: Path) -> dict[str, tuple[object, ...]]:
    """Everything below `root` as it is on disk: kind, mode, size, time of the last change, target of a link."""
    found: dict[str, tuple[object, ...]] = {}
    todo = [os.fsencode(root)]
    while todo:
        folder = todo.pop()
        for entry in os.scandir(folder):
            name = os.fsdecode(os.path.relpath(entry.path, os.fsencode(root)))
            seen = entry.stat(follow_symlinks=False)
            link = os.readlink(entry.path) if stat.S_ISLNK(seen.st_mode) else b""
            is_folder = stat.S_ISDIR(seen.st_mode)
            # A folder's time moves when the output appears in it; its entries are all in the picture.
            found[name] = (seen.st_mode, link) if is_folder else (seen.st_mode, seen.st_size, seen.st_mtime_ns, link)
            if is_folder:
                todo.append(entry.path)
    return found
