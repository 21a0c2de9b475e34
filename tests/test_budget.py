"""The budget of memory: it decides on threads, is refused where one has no room, and holds for the whole process."""

from __future__ import annotations

import json
import os
import resource
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from folders import tree
from safetensors.torch import save_file

import wiseft_core
from wiseft_core import budget, interpolate, loops, save_checkpoint
from wiseft_core.errors import ConfigError

ROOT = Path(wiseft_core.__file__).parents[1]


def pair(folder: Path, shapes: dict[str, tuple[int, int]], rank: int = 4, **config: object) -> tuple[Path, Path]:
    """A base of bfloat16 zeros that takes no space on disk, and a LoRA for all of it."""
    base, adapter = folder / "base", folder / "adapter"
    base.mkdir(parents=True)
    adapter.mkdir()
    header, end = {}, 0
    for name, (rows, columns) in shapes.items():
        header[f"{name}.weight"] = {
            "dtype": "BF16",
            "shape": [rows, columns],
            "data_offsets": [end, end + 2 * rows * columns],
        }
        end += 2 * rows * columns
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with (base / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + end)
    (base / "config.json").write_text(json.dumps({"model_type": "llama"}))
    draw, factors = torch.Generator().manual_seed(0), {}
    for name, (rows, columns) in shapes.items():
        factors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(rank, columns, generator=draw)
        factors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(rows, rank, generator=draw)
    save_file(factors, adapter / "adapter_model.safetensors")
    said = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 8,
        "target_modules": sorted({n.split(".")[-1] for n in shapes}),
    }
    (adapter / "adapter_config.json").write_text(json.dumps({**said, **config}))
    return base, adapter


def layers(count: int, rows: int, columns: int) -> dict[str, tuple[int, int]]:
    """So many projections of one shape."""
    return {f"model.layers.{at}.mlp.up_proj": (rows, columns) for at in range(count)}


def command(
    place: tuple[Path, Path], out: Path, *flags: str, data: int | None = None, first: Sequence[Path] = ()
) -> tuple[int, int, str]:
    """Run `wiseft interpolate` in a small process: its exit code, peak resident bytes and what it said.

    `first` is in front of the import path.
    """
    words = [
        "-P",
        "-m",
        "wiseft_core",
        "interpolate",
        *map(str, place),
        str(out),
        "--alpha",
        "0.5",
        "--no-sync",
        *flags,
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (*first, ROOT))), "OMP_NUM_THREADS": "1"}
    limit = None if data is None else lambda: resource.setrlimit(resource.RLIMIT_DATA, (data, data))
    # Linux counts what a parent holds when it starts a child towards the child's peak: start it from a small one.
    script = "import os, subprocess, sys; c = subprocess.Popen(sys.argv[1:]); _, s, u = os.wait4(c.pid, 0); " \
        "print(u.ru_maxrss * 1024); sys.exit(os.waitstatus_to_exitcode(s))"  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", script, sys.executable, *words],
        capture_output=True, text=True, env=environment, preexec_fn=limit,
    )  # fmt: skip
    return done.returncode, int(done.stdout.split()[-1]), done.stderr


@pytest.fixture
def small(tmp_path):
    """Two tensors of several tiles."""
    return pair(tmp_path, layers(2, 96, 8192))


def test_any_budget_and_any_threads_give_the_same_tree(small, tmp_path, monkeypatch):
    """1, 2 and 4 threads, and budgets that allow for one, two and all: byte for byte one output, manifest included."""
    view = interpolate(*small, 0.3)
    save_checkpoint(view, tmp_path / "plain", sync=False)
    wanted = tree(tmp_path / "plain")
    monkeypatch.setattr(budget, "_resident", lambda: 100 << 20)
    allowed = set()
    for threads in (1, 2, 4):
        for memory in ("180MB", 220 << 20, "9GB"):
            allowed.add(budget.threads_within(memory, threads, [view.bound], 1))
            out = tmp_path / f"{threads}-{memory}"
            save_checkpoint(view, out, sync=False, threads=threads, memory=memory)
            assert tree(out) == wanted
    assert allowed >= {1, 2, 4}


def test_the_least_budget_is_told_and_holds(small, monkeypatch):
    """What the refusal asks for is enough, a megabyte less is not; more threads and more outputs ask for more."""
    view = interpolate(*small, 0.3)
    monkeypatch.setattr(budget, "_resident", lambda: 100 << 20)
    with pytest.raises(ConfigError) as refused:
        budget.threads_within("10MB", 8, [view.bound], 1)
    least = int(refused.value.expected.split("MB")[0].split()[-1])
    assert budget.threads_within(f"{least}MB", 8, [view.bound], 1) == 1
    with pytest.raises(ConfigError):
        budget.threads_within(f"{least - 1}MB", 8, [view.bound], 1)
    with pytest.raises(ConfigError):
        budget.threads_within(f"{least}MB", 8, [view.bound], 5)
    counts = [budget.threads_within((least + more) * 10**6, 8, [view.bound], 1) for more in range(0, 400, 20)]
    assert counts == sorted(counts) and counts[-1] == 8


def test_large_factors_need_more(tmp_path, monkeypatch):
    """The floor grows with the rank: by the factors as stored and widened."""
    monkeypatch.setattr(budget, "_resident", lambda: 0)
    floors = []
    for rank in (4, 64):
        view = interpolate(*pair(tmp_path / str(rank), layers(1, 4096, 512), rank), 0.3)
        with pytest.raises(ConfigError) as refused:
            budget.threads_within(1, 1, [view.bound], 1)
        floors.append(int(refused.value.expected.split("MB")[0].split()[-1]))
    assert floors[1] - floors[0] >= 60 * (4096 + 512) * 12 // 10**6


def test_a_factor_as_tall_as_a_large_tensor_is_not_held(tmp_path, monkeypatch):
    """B of a tensor with very many rows is read by these: the floor does not grow with their number."""
    monkeypatch.setattr(budget, "_resident", lambda: 0)
    monkeypatch.setattr(loops, "_LOOPS", loops._Loops())
    loops._LOOPS.is_tried = True
    floors = []
    for rows in (1 << 18, 1 << 21):
        view = interpolate(*pair(tmp_path / str(rows), layers(1, rows, 64), 16), 0.3)
        with pytest.raises(ConfigError) as refused:
            budget.threads_within(1, 1, [view.bound], 1)
        floors.append(refused.value.expected)
    assert floors[0] == floors[1]


def test_too_small_a_budget_is_exit_3_and_leaves_nothing(small, tmp_path):
    """Four lines with the number, and no output."""
    code, _, said = command(small, tmp_path / "out", "--memory", "64MB")
    assert code == 3 and "at least" in said and not (tmp_path / "out").exists()


def test_the_peak_is_within_the_budget_and_the_limit(tmp_path):
    """Told the least that it needs, the command keeps to it; with RLIMIT_DATA at 450 MB it finishes too."""
    place = pair(tmp_path, layers(6, 2048, 4096), 64)
    _, _, said = command(place, tmp_path / "none", "--memory", "1MB")
    least = int(said.split("at least ")[1].split("MB")[0]) + 8  # what is resident at first moves a little
    code, peak, said = command(place, tmp_path / "out", "--memory", f"{least}MB", "--threads", "8")
    assert code == 0, said
    assert peak <= least * 10**6
    code, peak, said = command(place, tmp_path / "limited", data=450 * 10**6)
    assert code == 0, said
    assert peak <= 450 * 10**6


def test_compiled_loops_are_counted_where_they_will_be_used(tmp_path, monkeypatch):
    """A large job asks for what they take, a small one does not, nor one of a process that has them already."""
    monkeypatch.setattr(budget, "_resident", lambda: 0)
    monkeypatch.setattr(loops, "_LOOPS", loops._Loops())

    def floor(count):
        view = interpolate(*pair(tmp_path / str(len(list(tmp_path.iterdir()))), layers(count, 1024, 4096)), 0.3)
        with pytest.raises(ConfigError) as refused:
            budget.threads_within(1, 1, [view.bound], 1)
        return int(refused.value.expected.split("MB")[0].split()[-1])

    small, large = floor(1), floor(loops.AFTER // (1024 * 4096) + 1)
    assert large - small == pytest.approx(loops.MEMORY / 10**6, abs=1)
    loops._LOOPS.is_tried = True
    assert floor(loops.AFTER // (1024 * 4096) + 1) == small


def test_the_peak_knows_neither_the_model_nor_its_largest_tensor(tmp_path):
    """A base of 170 MB, of 540 MB, and one tensor of 540 MB in a file of its own: the same peak within a tenth.

    The two large ones load the compiled loops besides; the same among them, and so much more at most.
    """
    loops.load()  # what is compiled now is in numba's cache for both: to compile takes memory of its own
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "numba.py").write_text("raise ImportError")
    shapes, peaks = (layers(20, 1024, 4096), layers(65, 1024, 4096), layers(1, 65 * 1024, 4096)), {}
    for at, each in enumerate(shapes):
        place = pair(tmp_path / str(at), each)
        for kind in ("without", "with"):
            first = (tmp_path / kind,) if kind == "without" else ()
            code, peak, said = command(place, tmp_path / f"out{at}-{kind}", "--threads", "2", first=first)
            assert code == 0, said
            peaks[kind, at] = peak
    plain, loaded = [peaks["without", at] for at in range(3)], [peaks["with", at] for at in (1, 2)]
    assert max(plain) <= 1.1 * min(plain), peaks
    assert max(loaded) <= 1.1 * min(loaded), peaks
    assert max(loaded) <= max(plain) + loops.MEMORY, peaks
    assert peaks["with", 0] <= 1.1 * min(plain), peaks
