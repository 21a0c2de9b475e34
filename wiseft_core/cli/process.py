"""The command as a process: one run, its signals, and the exit code of whatever ends it.

0 ok   1 a check failed   2 command line   3 value or file   4 unsupported   5 operating system, or a bug
6 input changed   7 locked   129, 130, 143 stopped by SIGHUP, SIGINT, SIGTERM   141 nobody reads stdout
"""

from __future__ import annotations

import errno
import gc
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import cast

from typer import Context
from typer.core import TyperGroup
from typer.exceptions import TyperException
from typer.main import get_command

from wiseft_core.aside import Aside
from wiseft_core.cli import output
from wiseft_core.cli.experiments import app
from wiseft_core.cli.session import Session
from wiseft_core.errors import Fault, WiseftError, show
from wiseft_core.signals import ENDING
from wiseft_core.store.faults import HINTS


class BadCommandLine(WiseftError):
    """The command line cannot be parsed."""

    exit_code = 2


class Bug(WiseftError):
    """An error that nobody foresaw: the fault is ours."""

    exit_code = 5


class Stopped(WiseftError):
    """A signal ended the run before it was done."""

    def __init__(self, number: int) -> None:
        super().__init__(
            f"stopped by {signal.Signals(number).name}",
            expected="to run to the end",
            got="a signal",
            hint="nothing half-written is left: run the same command again, with --resume if its outputs are there",
        )
        self.exit_code = 128 + number


class Signalled(BaseException):
    """Unwinds the run after a signal. Not a KeyboardInterrupt: typer would swallow that."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def run(args: Sequence[str], *, alone: bool) -> int:
    """Run the command line `args`, tell of every failure in four lines, and return the exit code."""
    if not alone:
        return _run(args, Session())
    # A plan makes millions of records that live until the end: the collector would go through them in vain.
    gc.set_threshold(200_000, 50, 100)
    _fill_descriptors()
    try:
        return _run(args, Session(alone=True))
    finally:
        _let_go()


def _run(args: Sequence[str], session: Session) -> int:
    """`run`, whoever the process belongs to."""
    streams = sys.stdout, sys.stderr
    try:
        with signals():
            code = app(list(args), prog_name="wiseft", standalone_mode=False, obj=session)
        return code if isinstance(code, int) else 0
    except output.Closed:
        return 128 + signal.SIGPIPE
    except SystemExit as end:
        if not isinstance(end.__context__, BrokenPipeError):
            raise
        sys.stdout, sys.stderr = streams  # typer, which prints the help, answers a closed pipe by wrapping both
        return 128 + signal.SIGPIPE
    except (Signalled, KeyboardInterrupt) as stop:
        problem: WiseftError = Stopped(getattr(stop, "number", signal.SIGINT))
    except TyperException as error:
        problem = _misused(error, args)
    except WiseftError as error:
        problem = error
    except (OSError, MemoryError) as error:
        problem = _stray(error)
    except Exception as error:
        problem = _unforeseen(error)
    output.complain(problem, as_json="--json" in args)
    return problem.exit_code


def _fill_descriptors() -> None:
    """Open /dev/null as whichever of 0, 1 and 2 is closed: else an output gets that number, and what is printed."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def _let_go() -> None:
    """Point a stream that takes no more at nothing: Python, which flushes it at its end, would exit with 120."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def signals() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP raise, so that everything unwinds; a second one ends the process at once.

    A signal that the process was started to ignore stays ignored. The handlers from before are put back.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        for other in ours:
            signal.signal(other, signal.SIG_DFL)
        raise Signalled(number)

    before = {number: signal.getsignal(number) for number in ENDING}
    ours = {number: handler for number, handler in before.items() if handler not in (None, signal.SIG_IGN)}
    try:
        for number in ours:
            signal.signal(number, stop)
        yield
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)


def _misused(error: TyperException, args: Sequence[str]) -> BadCommandLine:
    """A command line that cannot be parsed, with the usage of the verb that was meant."""
    context = getattr(error, "ctx", None) or _context(args)
    usage = " ".join(context.get_usage().split()).removeprefix("Usage: ")
    said = " ".join(error.format_message().split()) if args else "no verb"
    hint = f"`{context.command_path} --help` tells more"
    return BadCommandLine("the command line", expected=usage, got=said, hint=hint)


def _context(args: Sequence[str]) -> Context:
    """The verb that a command line begins with, else the command: typer does not say whose option lacks its value."""
    command = cast(TyperGroup, get_command(app))
    whole = Context(command, info_name="wiseft")
    verb = command.commands.get(args[0]) if args else None
    return whole if verb is None else Context(verb, info_name=args[0], parent=whole)


def _stray(error: OSError | MemoryError) -> Fault:
    """A failure of the operating system that nobody below has put into words."""
    code = getattr(error, "errno", None) or (errno.ENOMEM if isinstance(error, MemoryError) else 0)
    name = getattr(error, "filename", None)
    return Fault(
        f"{name or 'this run'} — the operating system failed a call",
        expected="calls that succeed",
        got=f"{errno.errorcode.get(code, type(error).__name__)}: {os.strerror(code) if code else error}",
        hint=HINTS.get(code, "free some memory or disk space, check the permissions, and run the same command again"),
    )


def _unforeseen(error: Exception) -> Bug:
    """An error that is no refusal of ours, after its traceback, which is what mends it."""
    lines = "".join(traceback.format_exception(error)).splitlines()
    Aside(sys.stderr).write("".join(f"{show(line, limit=1000)}\n" for line in lines))
    return Bug(
        "this run — an error that nobody foresaw",
        expected="a result, or a refusal that says what to do",
        got=f"{type(error).__name__}: {error}",
        hint="this is a fault of wiseft_core: please report it, with the traceback on stderr and the command line",
    )
