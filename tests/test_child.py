"""A command run to its end: its last words, whatever it prints, and nothing left running, however the run ends."""

from __future__ import annotations

import io
import os
import signal
import sys
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wiseft_core.child import LINE_LIMIT, NotStarted, _LastLine, run_child

SLEEPER = "import time; time.sleep(600)"
STUBBORN = f"""
import os, signal, subprocess, sys, time
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
inner = subprocess.Popen([sys.executable, "-c", {SLEEPER!r}])
open(sys.argv[1], "w").write(f"{{os.getpid()}} {{inner.pid}}")
print("ready", file=sys.stderr, flush=True)
time.sleep(600)
"""


def python(code, *args):
    """The words that run `code`."""
    return [sys.executable, "-c", code, *map(str, args)]


def running(pid):
    """Whether a process is there and is no corpse that its parent has yet to bury."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone(pid):
    """Whether a process ends within a few seconds."""
    until = time.monotonic() + 10
    while running(pid) and time.monotonic() < until:
        time.sleep(0.01)
    return not running(pid)


class Stop(BaseException):
    """As unrelated to Exception as what a signal raises in the command."""


class Reader(io.StringIO):
    """A stderr that does something at the first word."""

    def __init__(self, act):
        super().__init__()
        self.act = act

    def write(self, text):
        """Act, then keep."""
        self.act()
        return super().write(text)


def test_last_words_and_status():
    """The last lines that are not blank, of each stream, the exit status, and the signal that ended it."""
    code = "import sys; print('a\\nb \\n\\n  '); print('c\\n', file=sys.stderr); sys.exit(int(sys.argv[1]))"
    assert run_child(python(code, 0), None) == (0, b"b", b"c")
    assert run_child(python(code, 3), None).status == 3
    assert run_child(python("import os; os.kill(os.getpid(), 9)"), None) == (-9, b"", b"")


@pytest.mark.parametrize(
    ("code", "last"),
    [
        ("for _ in range(1600): out.write(b'0123456789abcde\\n' * 4096)\nout.write(b'end')", b"end"),
        ("for _ in range(1600): out.write(b'0' * 65536)", b"0" * (LINE_LIMIT + 1)),
        ("for _ in range(1600): out.write(b' ' * 65536)\nout.write(b'end')", b"end"),
        ("out.write(b'end\\n')\nfor _ in range(1600): out.write(b' \\n' * 32768)", b"end"),
    ],
    ids=["lines", "one line", "an indented line", "blank lines"],
)
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_memory_stays_bounded_whatever_it_prints(stream, code, last):
    """100 MB in many lines, in one and in none: the last is found, and a few MB are enough."""
    tracemalloc.start()
    try:
        ended = run_child(python(f"import sys\nout = sys.{stream}.buffer\n{code}"), None)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (ended.said if stream == "stdout" else ended.complaint) == last
    assert ended.status == 0
    assert peak < 12 << 20


@given(st.lists(st.text("ab \n\r\t", max_size=6).map(str.encode), max_size=12))
def test_last_line_does_not_depend_on_the_pieces(chunks):
    """However a stream is cut, the line is what splitting the whole gives."""
    last = _LastLine()
    for chunk in chunks:
        last.feed(chunk)
    lines = [line.strip() for line in b"".join(chunks).replace(b"\r", b"\n").split(b"\n")]
    assert last.line() == next((line for line in reversed(lines) if line), b"")


@pytest.mark.parametrize("cut", [1, 2, LINE_LIMIT // 2, LINE_LIMIT, LINE_LIMIT + 1])
def test_a_line_that_is_too_long_is_known_as_such_in_any_pieces(cut):
    """White space at the limit is not the end of a line whose rest was cut off, wherever the pieces end."""
    text = b"1" + b" " * (LINE_LIMIT + 1) + b"2"
    for end in (b"", b"\n", b"\n  \n"):
        last = _LastLine()
        for piece in (text[:cut], text[cut:-1], text[-1:], end[:1], end[1:]):
            last.feed(piece)
        assert len(last.line()) > LINE_LIMIT
        last.feed(b"\n3\n")
        assert last.line() == b"3"


def test_stderr_is_passed_on_while_the_child_runs(tmp_path):
    """What it says is there before it ends: it waits for a file that is made when its first words arrive."""
    code = "import os, sys, time\nprint('hé', file=sys.stderr, flush=True)\n"
    code += "while not os.path.exists(sys.argv[1]): time.sleep(0.01)\nprint('done')"
    heard = Reader((tmp_path / "heard").touch)
    assert run_child(python(code, tmp_path / "heard"), heard).said == b"done"
    assert heard.getvalue() == "hé\n"


@pytest.mark.parametrize("kind", [BrokenPipeError, OSError, ValueError])
def test_a_listener_that_fails_ends_nothing(kind):
    """A stderr whose reader is gone, that is full or closed is written to once; the child runs on, and is heard."""
    said = []

    def fail():
        said.append(kind)
        raise kind

    code = "import sys\nfor word in 'abc': print(word, file=sys.stderr, flush=True)\nprint('done')"
    assert run_child(python(code), Reader(fail)) == (0, b"done", b"c")
    assert said == [kind]


def test_it_gets_no_input():
    """A command that reads its input finds the end of it, and does not wait for a terminal."""
    assert run_child(python("import sys; print(repr(sys.stdin.read()))"), None).said == b"''"


@pytest.mark.parametrize("kind", [KeyboardInterrupt, Stop, RuntimeError])
def test_whatever_unwinds_kills_all_of_it(kind, tmp_path):
    """A child that ignores every polite signal, and its own child, are dead before the exception leaves."""

    def stop():
        raise kind

    with pytest.raises(kind):
        run_child(python(STUBBORN, tmp_path / "pids"), Reader(stop))
    assert all(map(gone, (tmp_path / "pids").read_text().split()))


def test_a_signal_ends_the_wait_for_a_silent_child(tmp_path):
    """A handler that raises while nothing is printed, as SIGINT's and SIGTERM's do, ends the child at once."""

    def handler(number, frame):
        raise Stop

    before = signal.signal(signal.SIGALRM, handler)
    arm = Reader(lambda: signal.setitimer(signal.ITIMER_REAL, 0.3))
    begun = time.monotonic()
    try:
        with pytest.raises(Stop):
            run_child(python(STUBBORN, tmp_path / "pids"), arm)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - begun < 60
    assert all(map(gone, (tmp_path / "pids").read_text().split()))


def test_what_it_leaves_running_ends_with_it(tmp_path):
    """A background process that holds both pipes open neither delays the result nor outlives it."""
    code = f"import subprocess, sys\ninner = subprocess.Popen([sys.executable, '-c', {SLEEPER!r}])\nprint(inner.pid)"
    begun = time.monotonic()
    ended = run_child(python(code), None)
    assert ended.status == 0
    assert gone(int(ended.said))
    assert time.monotonic() - begun < 60


def test_one_that_got_away_delays_nothing():
    """A daemon in a session of its own that holds the pipes open is not waited for; what was said before is kept."""
    code = "import subprocess, sys\n"
    code += f"inner = subprocess.Popen([sys.executable, '-c', {SLEEPER!r}], start_new_session=True)\nprint(inner.pid)"
    begun = time.monotonic()
    ended = run_child(python(code), None)
    assert running(int(ended.said))
    assert time.monotonic() - begun < 60
    os.kill(int(ended.said), signal.SIGKILL)


@pytest.mark.parametrize(
    "words", [["no-such-program-here"], ["/"], [sys.executable, "a\0b"], [sys.executable, "\ud800"]]
)
def test_what_cannot_be_started_says_why(words):
    """No such program, a folder, a NUL and half a surrogate pair: one kind of error, with the reason."""
    with pytest.raises(NotStarted) as caught:
        run_child(words, None)
    assert str(caught.value)
