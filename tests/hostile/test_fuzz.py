"""A bounded, coverage-guided fuzz of all that reads what a stranger wrote; `fuzz.py` runs longer by hand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import wiseft_core

RUNS = 8_000
SCRIPT = Path(__file__).with_name("fuzz.py")
SMALL = "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:]))"
"""Linux counts what a parent holds when it starts a child towards the child's peak, which the fuzzer limits to 2 GB."""
ROOT = str(Path(wiseft_core.__file__).parents[1])


def fuzz(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """The fuzzer in a child: it ends its process when it is done."""
    pytest.importorskip("atheris", reason="atheris has no wheel for this version of Python", exc_type=ImportError)
    command = [sys.executable, str(SCRIPT), str(folder / "inputs"), "-max_len=1000", "-timeout=20", "-seed=1", *flags]
    return subprocess.run(
        [sys.executable, "-c", SMALL, *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": ROOT},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_only_our_errors_escape(tmp_path):
    """Inputs that grow from sound ones towards new code raise `WiseftError` or nothing, and never stall."""
    done = fuzz(tmp_path, f"-runs={RUNS}")

    assert done.returncode == 0, done.stderr[-4000:]
    assert f"Done {RUNS} runs" in done.stderr
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(("crash-", "timeout-", "oom-"))]


def test_the_fuzz_can_fail(tmp_path):
    """Meta: an input on which something else escapes ends the run, and is kept."""
    broken = SCRIPT.read_text().replace("except WiseftError as problem:", "except ZeroDivisionError as problem:")
    (tmp_path / "fuzz.py").write_text(broken)
    pytest.importorskip("atheris", reason="atheris has no wheel for this version of Python", exc_type=ImportError)

    done = subprocess.run(
        [sys.executable, "-c", SMALL, sys.executable, "fuzz.py", "inputs", "-runs=2000", "-seed=1"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": ROOT},
        capture_output=True,
        text=True,
        timeout=300,
    )

    assert done.returncode != 0
    assert "Uncaught Python exception" in done.stdout + done.stderr
    assert [path for path in tmp_path.iterdir() if path.name.startswith("crash-")]
