"""How far a run is, on stderr: a bar on a terminal, a line now and then in a log, nothing where quiet is asked for.

Nobody has to listen: a stderr that is closed, gone or full ends no run.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import TextIO, cast

from wiseft_core.aside import Aside
from wiseft_core.cli.output import size

Report = Callable[[int, int], None]
EVERY_SECONDS = 5.0


@contextmanager
def progress(title: str, *, quiet: bool) -> Iterator[Report | None]:
    """A function to call with (bytes done, bytes in all) from any thread; None if nothing is to be shown."""
    stderr = Aside(sys.stderr)
    if quiet:
        yield None
    elif stderr.isatty():
        with _bar(title, stderr) as report:
            yield report
    else:
        yield _lines(title, stderr)


@contextmanager
def _bar(title: str, stderr: Aside) -> Iterator[Report]:
    """A bar with bytes, rate and time left, which is gone when the work is done."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn())
    moving = (TransferSpeedColumn(), TimeRemainingColumn())
    console = Console(file=cast(TextIO, stderr))
    # Nothing is said on stdout meanwhile; where it is None, rich would not put that back.
    with Progress(*columns, *moving, console=console, transient=True, redirect_stdout=False) as bar:
        task = bar.add_task(title, total=None)

        def report(done: int, whole: int) -> None:
            bar.update(task, completed=done, total=whole)
            if done >= whole:
                bar.stop()  # what an evaluation says on stderr is not drawn over
            elif not bar.live.is_started:
                bar.start()

        yield report


def _lines(
    title: str, stderr: Aside, *, every: float = EVERY_SECONDS, clock: Callable[[], float] = time.monotonic
) -> Report:
    """A plain line with the same facts, not more often than `every` seconds."""
    lock, begun = Lock(), clock()
    last = begun

    def report(done: int, whole: int) -> None:
        nonlocal last
        with lock:
            now = clock()
            if now - last < every:
                return
            last = now
        rate = done / max(now - begun, 1e-9)
        left = f", {(whole - done) / rate:.0f} s left" if done else ""
        stderr.write(f"{title}: {size(done)} of {size(whole)}, {size(rate)}/s{left}\n")

    return report
