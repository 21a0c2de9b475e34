"""The command as a process: signals, strays, imports, and what it may not run."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from folders import tree

import wiseft_core
from wiseft_core.cli import commands, inspection, main

ROOT = str(Path(wiseft_core.__file__).parents[1])


def python(*args, cwd=None):
    """A fresh interpreter that finds this package."""
    environment = {**os.environ, "PYTHONPATH": ROOT}
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, cwd=cwd, env=environment)


@pytest.mark.parametrize("verb", ["--help", "--version", "inspect", "plan"])
def test_what_needs_no_torch_imports_none(verb, model):
    """Help, version, inspect and plan work from headers: torch is not imported."""
    args = {"inspect": ["inspect", str(model.adapter)], "plan": ["plan", str(model.base), str(model.adapter)]}
    code = f"import sys; from wiseft_core.cli import main; code = main({args.get(verb, [verb])!r})"
    done = python("-c", f"{code}; print(code, 'torch' in sys.modules)")
    assert done.stdout.splitlines()[-1] == "0 False", done.stderr


def test_the_shell_completes_without_torch():
    """bash's completion, asked for as bash does: verbs and options come, and torch does not."""
    tell = "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules))"  # completion exits by itself
    code = f"{tell}; sys.argv[1:] = []; from wiseft_core.cli import main; main()"
    for words, wanted in (("wiseft int", "interpolate"), ("wiseft sweep --keep", "--keep")):
        shell = {"_WISEFT_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        environment = {**os.environ, "PYTHONPATH": ROOT, **shell}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
        assert done.stdout.split() == [wanted, "False"], done.stderr


def test_a_low_rank_adapter_is_computed_without_torch(model):
    """Files in, files out: numpy does it all, and torch, which takes as long as a small job, is not imported."""
    code = f"import sys; from wiseft_core.cli import main; code = main({model.args('--quiet')!r})"
    done = python("-c", f"{code}; print(code, 'torch' in sys.modules)")
    assert done.stdout.splitlines()[-1] == "0 False", done.stderr


def test_the_import_check_can_fail(model):
    """The meta-test: a verb that computes in float32 is seen to import torch."""
    args = model.args("--quiet", "--compute-dtype", "fp32")
    code = f"import sys; from wiseft_core.cli import main; code = main({args!r})"
    done = python("-c", f"{code}; print(code, 'torch' in sys.modules)")
    assert done.stdout.splitlines()[-1] == "0 True", done.stderr


def test_without_the_extra_the_pip_line_is_printed(monkeypatch, capsys):
    """Without typer the command says what to install and returns 2."""
    monkeypatch.setitem(sys.modules, "typer", None)
    assert main(["--version"]) == 2
    assert "pip install 'wiseft_core[cli]'" in capsys.readouterr().err


def test_in_process_calls_leave_torch_alone(model):
    """main([...]) does not touch torch's threads, random state or default dtype."""
    before = torch.get_num_threads(), torch.get_rng_state(), torch.get_default_dtype(), torch.is_grad_enabled()
    assert main(model.args("--quiet")) == 0
    after = torch.get_num_threads(), torch.get_rng_state(), torch.get_default_dtype(), torch.is_grad_enabled()
    assert before[0] == after[0]
    assert torch.equal(before[1], after[1])
    assert before[2:] == after[2:]


def test_the_command_alone_uses_one_torch_thread(model):
    """In a process of its own the command tells torch to use one thread."""
    args = model.args("--quiet", "--compute-dtype", "fp32")
    code = f"import sys; sys.argv[1:] = {args!r}; import torch; torch.set_num_threads(2)"
    done = python("-c", f"{code}; from wiseft_core.cli import main; print(main(), torch.get_num_threads())")
    assert done.stdout.split() == ["0", "1"], done.stderr


@pytest.mark.parametrize("as_json", [False, True])
def test_a_bug_is_shown_and_not_hidden(as_json, model, monkeypatch, capsys):
    """An error that nobody foresaw: its traceback, then four lines or one JSON object that ask to report it; exit 5."""

    def fail(path):
        raise ZeroDivisionError("a\x1b]0;title")

    monkeypatch.setattr(inspection, "inspect_adapter", fail)
    assert main(["inspect", str(model.adapter), *(["--json"] if as_json else [])]) == 5
    said = capsys.readouterr()
    assert said.err.startswith("Traceback (most recent call last):\n") and "in fail" in said.err
    assert "\x1b" not in said.err
    told = json.loads(said.out) if as_json else said.err.splitlines()[-4:]
    assert ("report it" in told["hint"]) if as_json else (told[0].startswith("Bug: ") and "report it" in told[3])


def in_shell(redirections, *args):
    """The command as a shell starts it, with redirections; what it says otherwise is caught."""
    words = ["sh", "-c", f'exec "$0" -m wiseft_core "$@" {redirections}', sys.executable, *args]
    return subprocess.run(words, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ROOT})


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_failure(closed, model):
    """Nobody listens, and the output is what it always is."""
    assert main(model.args("--quiet")) == 0
    elsewhere = replace(model, out=model.out.with_name("closed"))
    done = in_shell(closed, *elsewhere.args())
    assert (done.returncode, done.stderr) == (0, "")
    assert tree(elsewhere.out) == tree(model.out)


def test_no_output_gets_the_number_of_a_closed_stream():
    """What is opened after the command has begun is none of 0, 1 and 2, and what is printed there is lost."""
    code = "import os, sys; from wiseft_core.cli import main; sys.argv[1:] = ['--version']; code = main()"
    code += "; os.write(1, b'x'); sys.exit(code or os.open('/dev/null', os.O_RDONLY) < 3 or not os.get_inheritable(1))"
    words = ["sh", "-c", 'exec "$0" -c "$1" <&- >&- 2>&-', sys.executable, code]
    assert subprocess.run(words, env={**os.environ, "PYTHONPATH": ROOT}).returncode == 0


def test_a_stderr_without_a_reader_takes_nothing_from_the_code(model):
    """An error that nobody can be told of still has its exit code."""
    for stderr in ("2>&-", "2>/dev/full"):
        assert in_shell(stderr, "inspect", str(model.out)).returncode == 3


@pytest.mark.parametrize("words", [["--help"], ["plan", "--json"], ["interpolate"], ["interpolate", "--json"]])
def test_a_report_that_cannot_be_printed_is_exit_5(words, model):
    """Stdout on a full disk: four lines on stderr, and nothing after them. An output is there, and is sound."""
    verb, *more = words
    args = {"plan": ["plan", str(model.base), str(model.adapter)], "interpolate": model.args()}.get(verb, [verb])
    done = in_shell(">/dev/full", *args, *more)
    assert done.returncode == 5
    assert done.stderr.startswith("Fault: ") and "ENOSPC" in done.stderr
    assert len(done.stderr.splitlines()) == 4
    assert verb != "interpolate" or main(["verify", str(model.out), "--quiet"]) == 0


def test_an_error_that_stdout_cannot_take_is_told_on_stderr(model):
    """With --json on a full disk an error keeps its exit code, and its four lines are on stderr."""
    done = in_shell(">/dev/full", "inspect", str(model.out), "--json")
    assert done.returncode == 3
    assert done.stderr.startswith("CheckpointError: ") and len(done.stderr.splitlines()) == 4


@pytest.mark.parametrize("verb", ["--help", "--version", "plan"])
def test_a_pipe_without_a_reader_is_exit_141(verb, model):
    """`wiseft --help | true` ends as any command does whose reader is gone: by SIGPIPE's number, without a word."""
    reading, writing = os.pipe()
    os.close(reading)
    args = ["plan", str(model.base), str(model.adapter)] if verb == "plan" else [verb]
    words = [sys.executable, "-m", "wiseft_core", *args]
    environment = {**os.environ, "PYTHONPATH": ROOT}
    done = subprocess.run(words, stdout=writing, stderr=subprocess.PIPE, text=True, env=environment)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize(
    ("error", "word"),
    [(OSError(errno.ENOSPC, "full", "disk"), "ENOSPC"), (MemoryError(), "ENOMEM"), (OSError("odd"), "odd")],
)
def test_strays_of_the_system_are_four_lines(error, word, model, monkeypatch, capsys):
    """An OSError or MemoryError that nobody caught is exit 5, in four lines, without a traceback."""

    def fail(path):
        raise error

    monkeypatch.setattr(inspection, "inspect_adapter", fail)
    assert main(["inspect", str(model.adapter)]) == 5
    said = capsys.readouterr().err
    assert said.startswith("Fault: ")
    assert word in said
    assert len(said.splitlines()) == 4


def kill_at_first_byte(number):
    """A stand-in for the progress display that sends this process a signal when work is under way."""
    sent = []

    @contextmanager
    def display(title, *, quiet):
        def told(done, whole):
            if not sent:
                sent.append(number)
                os.kill(os.getpid(), number)

        yield told

    return display


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_leaves_no_output_and_restores_the_handlers(number, code, model, monkeypatch, capsys):
    """A signal in the middle of writing: 130 or 143, four lines, no output, no staging, handlers as before."""
    monkeypatch.setattr(commands, "progress", kill_at_first_byte(number))
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    beside = sorted(model.out.parent.iterdir())
    assert main(model.args()) == code
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert sorted(model.out.parent.iterdir()) == beside
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 4


def test_an_ignored_signal_stays_ignored(model, monkeypatch):
    """A command started with SIGINT ignored, as `nohup` and `&` do, runs to its end."""
    monkeypatch.setattr(commands, "progress", kill_at_first_byte(signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert main(model.args("--quiet")) == 0
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
