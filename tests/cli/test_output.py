"""What reaches a terminal, a log or a pipe: nothing raw, nothing torn, nothing when it must be quiet."""

from __future__ import annotations

import errno
import io
import json
import sys
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wiseft_core.aside import Aside
from wiseft_core.cli import main, output, progress
from wiseft_core.errors import CheckpointError

NASTY = "a\x1b]0;title\x07b\u202ec\nd\x9b"


def is_plain(text):
    """No control or bidirectional character other than line breaks."""
    return all(c == "\n" or (c.isprintable() and not "\u202a" <= c <= "\u202e") for c in text)


def test_nasty_names_are_escaped_everywhere(capsys):
    """Tables, fields and errors show control characters as escapes."""
    output.say(output.table(("name", "count"), [(NASTY, 1)]))
    output.say(output.fields({"name": NASTY}))
    output.complain(CheckpointError(NASTY, expected=NASTY, got=NASTY, hint=NASTY))
    output.complain(CheckpointError(NASTY, expected=NASTY), as_json=True)
    said = capsys.readouterr()
    assert is_plain(said.out)
    assert is_plain(said.err)
    assert "\\x1b" in said.out
    assert len(said.err.splitlines()) == 4


def test_json_keeps_names_exactly(capsys):
    """A reader of --json gets the very characters of a name back."""
    output.say_json({"name": NASTY, "half": "\udc80"})
    assert json.loads(capsys.readouterr().out) == {"name": NASTY, "half": "\udc80"}


def test_narrow_encodings_do_not_stop_a_report(monkeypatch):
    """A character that stdout cannot spell is escaped."""
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    output.say("‖W‖ ×2")
    assert raw.getvalue() == b"\\u2016W\\u2016 \\xd72\n"


class Gone(io.StringIO):
    """A pipe whose reader has left."""

    def flush(self):
        """Fail as a write to such a pipe does."""
        raise BrokenPipeError


def test_a_closed_pipe_ends_the_run_quietly(monkeypatch, capsys):
    """`wiseft --version | true` returns 141 and prints no error."""
    monkeypatch.setattr(sys, "stdout", Gone())
    assert main(["--version"]) == 141
    assert capsys.readouterr().err == ""


@given(st.integers(0, 10**18))
def test_sizes_read_back_within_their_last_digit(count):
    """A printed size is the number of bytes to its last printed digit, and never has four digits before the point."""
    number, unit = output.size(count).split()
    factor = 1000 ** output.UNITS.index(unit)
    digit = 1 if unit == "bytes" else Fraction(factor, 10)
    assert abs(Fraction(number) * factor - count) <= digit * Fraction(51, 100)
    assert Fraction(number) < 1000 or unit == output.UNITS[-1]


def test_tables_align():
    """Words to the left, numbers to the right, columns two blanks apart."""
    assert output.table(("name", "n"), [("a", 1), ("long", 100)]) == "name    n\na       1\nlong  100"


def test_tally_puts_the_frequent_first_and_counts_the_rest():
    """The most frequent values come first, and what is cut off is counted."""
    assert output.tally({8: 1, 16: 3}) == "16 ×3, 8 ×1"
    assert output.tally(dict.fromkeys(range(10), 1), most=2) == "0 ×1, 1 ×1 and 8 more"


def test_log_lines_come_now_and_then(capsys):
    """Off a terminal: one line per interval, with bytes, rate and time left."""
    now = iter([0.0, 1.0, 5.0, 6.0, 10.0])
    told = progress._lines("writing x", Aside(sys.stderr), every=5.0, clock=lambda: next(now))
    for done in (1_000_000, 5_000_000, 6_000_000, 10_000_000):
        told(done, 20_000_000)
    assert capsys.readouterr().err.splitlines() == [
        "writing x: 5.0 MB of 20.0 MB, 1.0 MB/s, 15 s left",
        "writing x: 10.0 MB of 20.0 MB, 1.0 MB/s, 10 s left",
    ]


class Deaf(io.StringIO):
    """A stream that cannot be written; it counts what is tried."""

    def __init__(self, error, *, terminal):
        super().__init__()
        self.error, self.terminal, self.tries = error, terminal, 0

    def isatty(self):
        """Whether it is a terminal."""
        return self.terminal

    def write(self, text):
        """Fail."""
        self.tries += 1
        raise self.error


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "gone"), BrokenPipeError(errno.EPIPE, "gone")])
def test_progress_that_nobody_hears_ends_nothing(terminal, error, model, monkeypatch):
    """Where stderr fails, in a log or on a terminal, it is left alone, and the output is written all the same."""
    screen = Deaf(error, terminal=terminal)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setitem(progress._lines.__kwdefaults__, "every", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    assert main(model.args()) == 0
    assert screen.tries == 1
    assert (model.out / "wiseft.json").exists()


class Terminal(io.StringIO):
    """Something that says that it is a terminal."""

    def isatty(self):
        """Yes."""
        return True


@pytest.mark.parametrize("quiet", [False, True])
def test_a_bar_on_a_terminal_unless_quiet(quiet, monkeypatch):
    """On a terminal a bar shows the title as it is, brackets too; with --quiet nothing is written."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with progress.progress("writing [bold]x", quiet=quiet) as told:
        if told is not None:
            told(5, 10)
    assert ("[bold]x" in screen.getvalue()) is not quiet
    assert (told is None) is quiet


@pytest.mark.parametrize("screen", [None, Terminal()])
def test_a_stream_that_is_none_takes_nothing(screen, model, monkeypatch):
    """Without stdout, with a bar or without stderr too, a run is as any other, and stdout is None after it."""
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    assert main(model.args()) == 0
    assert main(model.args("--json")) == 3
    assert main(["--help"]) == 0
    assert (sys.stdout, sys.stderr) == (None, screen)
