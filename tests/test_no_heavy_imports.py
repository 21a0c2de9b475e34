"""The package needs torch, numpy, safetensors and a digest: it never imports what only some users have."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import wiseft_core

ROOT = Path(wiseft_core.__file__).parents[1]
HEAVY = ("transformers", "peft", "jax", "typer", "rich", "accelerate", "huggingface_hub", "pandas", "hypothesis",
         "matplotlib")  # fmt: skip
PROBE = """
import sys
for module in {modules!r}:
    __import__(module)
{more}
print(",".join(sorted({{name.partition(".")[0] for name in sys.modules}})))
"""
EVERYTHING = """
import pkgutil, wiseft_core
for found in pkgutil.walk_packages(wiseft_core.__path__, "wiseft_core."):
    if not found.name.startswith(("wiseft_core.cli", "wiseft_core.__main__")):
        __import__(found.name)
for name in wiseft_core.__all__:
    getattr(wiseft_core, name)
"""
USED = (
    EVERYTHING
    + """
import torch
base = {"m.weight": torch.ones(2, 3)}
adapter = {"m.lora_A.weight": torch.ones(1, 3), "m.lora_B.weight": torch.ones(2, 1)}
dict(wiseft_core.interpolate(base, adapter, 0.5, config={"lora_alpha": 2}))
"""
)


def imported(modules, more=""):
    """Top-level packages that a fresh interpreter holds after importing `modules` and running `more`."""
    code = PROBE.format(modules=list(modules), more=more)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.strip().split(","))


@pytest.mark.parametrize("more", ["", EVERYTHING, USED], ids=["door", "all modules", "one interpolation"])
def test_nothing_heavy_is_imported(more):
    """Neither the door, nor any module but the command's, nor a use of them imports a heavy package."""
    found = imported(["wiseft_core"], more)
    assert "wiseft_core" in found
    assert found.isdisjoint(HEAVY)


def test_the_door_does_not_import_torch():
    """`import wiseft_core` alone is light: torch comes with the first name that needs it."""
    assert imported(["wiseft_core"]).isdisjoint({"torch", "numpy", "safetensors"})


@pytest.mark.parametrize("heavy", ["typer", "rich", "transformers"])
def test_the_proof_can_fail(heavy, tmp_path):
    """Meta: a module beside the package that does import a heavy one is found out by the same probe."""
    (tmp_path / "careless.py").write_text(f"def use():\n    import {heavy}\n")
    more = f"sys.path.insert(0, {str(tmp_path)!r})\nimport careless\ncareless.use()"
    found = imported(["wiseft_core"], more)
    assert not found.isdisjoint(HEAVY)
    assert heavy in found
