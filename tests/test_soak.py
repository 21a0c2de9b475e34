"""A thousand jobs in one process: nothing is left over, and every result is right."""

from __future__ import annotations

import gc
import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from folders import low_rank, read_all, weights, write_adapter, write_base

from wiseft_core import interpolate, save_checkpoint, verify

MODULES = ["model.layers.0.q_proj", "model.layers.1.q_proj"]
SHARDS = [list(weights())[:3], list(weights())[3:]]


def resident() -> int:
    """Bytes of this process in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def run(folder: Path, seed: int) -> None:
    """One job with random adapter, alpha and threads, checked against float64 by hand."""
    draw = random.Random(seed)
    base, alpha, rank = folder / "base", draw.random(), draw.randint(1, 4)
    tensors = low_rank(weights(), MODULES, rank=rank, seed=seed)
    adapter = write_adapter(folder / f"adapter{seed}", tensors, r=rank, lora_alpha=rank)
    out = folder / f"out{seed}"
    save_checkpoint(interpolate(base, adapter, alpha), out, threads=draw.randint(1, 3), sync=False)
    got = read_all(out)
    for module in MODULES:
        a, b = (tensors[f"base_model.model.{module}.lora_{role}.weight"].double() for role in "AB")
        exact = weights()[f"{module}.weight"].double() + alpha * (b @ a)
        error = (got[f"{module}.weight"].double() - exact).abs()
        assert (error <= torch.finfo(torch.bfloat16).eps / 2 * exact.abs() + 1e-12).all()
    if seed % 10 == 0:
        assert verify(out, base=base, adapter=adapter).ok
    for path in sorted([*out.rglob("*"), *adapter.rglob("*")], reverse=True):
        path.unlink()
    out.rmdir()
    adapter.rmdir()


def soak(folder: Path, jobs: int) -> None:
    """Run jobs on four threads; memory, descriptors and files are as before, once warm."""
    write_base(folder / "base", weights(), SHARDS)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda seed: run(folder, seed), range(40)))
        gc.collect()
        memory, descriptors = resident(), len(os.listdir("/proc/self/fd"))
        list(pool.map(lambda seed: run(folder, seed), range(40, 40 + jobs)))
        gc.collect()

        assert len(os.listdir("/proc/self/fd")) <= descriptors
        assert resident() - memory < 32 << 20
    assert [path.name for path in folder.iterdir()] == ["base"]


def test_sixty_jobs_leave_nothing_over(tmp_path: Path) -> None:
    """The short form, for every day."""
    soak(tmp_path, 60)


@pytest.mark.long
def test_a_thousand_jobs_leave_nothing_over(tmp_path: Path) -> None:
    """The long form."""
    soak(tmp_path, 1000)
