"""Signals held until they do no harm.

Ground floor: standard library only.
"""

from __future__ import annotations

import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

ENDING: Final = tuple(signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""The signals that ask a process to end: Ctrl-C, `kill`, and a terminal that is gone."""


@contextmanager
def signals_held(wake: Callable[[], object] = lambda: None) -> Iterator[Callable[[], None]]:
    """Signals that ask to end are handled only when what this gives is called, or when this ends.

    Their handlers raise, as Python's own for SIGINT does, wherever the main thread is. Inside `threading.Condition` or
    `concurrent.futures` that may be with a lock taken that nobody gives back: every other thread waits for ever.

    Args:
        wake: Called as soon as a signal comes, in the middle of anything: it has to be as reentrant as the `put` of a
            `queue.SimpleQueue` is.
    """
    if threading.current_thread() is not threading.main_thread():  # the only one that handles signals
        yield lambda: None
        return
    handlers = {number: signal.getsignal(number) for number in ENDING}
    waiting, is_over = deque[int](), False

    def hold(number: int, frame: FrameType | None) -> None:
        waiting.append(number)
        if is_over:  # it came while the handlers were put back
            end()
        wake()

    def let_through() -> None:
        while waiting:
            number = waiting.popleft()
            handler = handlers[signal.Signals(number)]
            if callable(handler):
                handler(number, None)

    def end() -> None:
        for number, handler in handlers.items():
            if signal.getsignal(number) is hold:  # a handler may have put another in its place
                signal.signal(number, handler)
        let_through()

    try:
        for number, handler in handlers.items():
            if callable(handler):
                signal.signal(number, hold)
        yield let_through
    finally:
        is_over = True
        end()
