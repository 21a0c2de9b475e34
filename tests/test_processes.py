"""Children: a view made here works in a forked child, and a spawned one makes its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from folders import low_rank, tree, weights, write_adapter, write_base

from wiseft_core import interpolate, save_checkpoint

MODULES = ["model.layers.0.q_proj", "model.layers.1.q_proj"]


def test_forked_and_spawned_children_write_the_same_bytes(tmp_path: Path) -> None:
    """Parent, forked child and new process give one tree; the child uses the parent's open view."""
    base = write_base(tmp_path / "base", weights())
    adapter = write_adapter(tmp_path / "adapter", low_rank(weights(), MODULES))
    view = interpolate(base, adapter, 0.3)
    child = os.fork()
    if child == 0:
        try:
            save_checkpoint(view, tmp_path / "forked", threads=2)
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    code = "import sys; from wiseft_core import *; _, base, adapter, out = sys.argv; "
    code += "save_checkpoint(interpolate(base, adapter, 0.3), out)"
    subprocess.run([sys.executable, "-c", code, base, adapter, tmp_path / "spawned"], check=True)
    save_checkpoint(view, tmp_path / "here")

    assert tree(tmp_path / "forked") == tree(tmp_path / "spawned") == tree(tmp_path / "here")
