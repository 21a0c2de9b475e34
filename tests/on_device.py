"""On a device: the processor's results, in tensors that are there. `test_device.py` runs this, once for each device.

The emulated device registers with torch for good: that is why it has a process of its own.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
import torch
from families.test_contract import SAMPLES
from folders import low_rank, tree, weights, write_adapter, write_base

from wiseft_core import interpolate, save_checkpoint, sweep

DEVICE = os.environ["WISEFT_TEST_DEVICE"]
EMULATED = DEVICE == "away"
MODULES = ["model.layers.0.q_proj", "model.layers.1.q_proj"]


@pytest.fixture(autouse=True)
def reachable():
    """The device, if it is emulated, in the thread of the test."""
    with _reach():
        yield


def _reach():
    """What makes the device known in a thread."""
    if not EMULATED:
        return nullcontext()
    from away import Reachable

    return Reachable()


def same(there, here):
    """Whether a tensor on the device has the values of one on the processor, but for the last bits of float64."""
    assert there.device.type == torch.device(DEVICE).type and there.dtype == here.dtype
    return torch.allclose(there.cpu().double(), here.double(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("moved", ["weight", "weight and factors"])
@pytest.mark.parametrize("sample", SAMPLES, ids=lambda s: "-".join([*s[:3], *s.factors]))
def test_every_form_of_every_family(sample, moved):
    """A weight that is there is interpolated there, wherever its factors are."""
    factors = {
        role: factor.to(DEVICE) if moved != "weight" else factor.clone() for role, factor in sample.factors.items()
    }
    there = sample._replace(weight=sample.weight.to(DEVICE))
    for dtype in ("fp64", "bf16"):
        wanted = sample.value(0.3, output_dtype=dtype)
        assert same(there.value(0.3, output_dtype=dtype, factors=factors), wanted)


@pytest.fixture
def place(tmp_path):
    """A base of bfloat16 in two shards, and an adapter with low ranks and a saved norm."""
    stored = weights(dtype=torch.bfloat16)
    names = list(stored)
    base = write_base(tmp_path / "base", stored, [names[::2], names[1::2]])
    tensors = low_rank(stored, MODULES)
    tensors["base_model.model.model.norm.weight"] = torch.full((6,), 2.0)
    return base, write_adapter(tmp_path / "adapter", tensors, modules_to_save=["norm"])


@pytest.mark.parametrize("dtype", [None, "float64", "float16"])
def test_files(place, dtype):
    """Touched tensors of files are there; a slice of one has its values; an untouched one is where the base is."""
    here = interpolate(*place, 0.3, output_dtype=dtype)
    there = interpolate(*place, 0.3, output_dtype=dtype, device=DEVICE)
    assert there.touched
    for name in there:
        if name in there.touched or dtype is not None:
            assert same(there[name], here[name])
        else:
            assert torch.equal(there[name].cpu(), here[name])
    name = "model.layers.0.q_proj.weight"
    assert same(there.get_slice(name)[1:3], here.get_slice(name)[1:3])


def test_memory(place):
    """A base that is there gives results there, unasked; an adapter may be elsewhere."""
    here = interpolate(*place, 0.3)
    stored = {name: tensor.to(DEVICE) for name, tensor in weights(dtype=torch.bfloat16).items()}
    there = interpolate(stored, place[1], 0.3)
    assert all(same(there[name], here[name]) for name in there)


@pytest.mark.parametrize("alphas", [(0.3,), (0.0, 0.3, 1.0)])
def test_what_is_written(place, tmp_path, alphas):
    """A checkpoint that was computed there is the processor's, to the byte."""
    for device in (None, DEVICE):
        for alpha, view in zip(alphas, sweep(*place, alphas, device=device), strict=True):
            with ThreadPoolExecutor(2, initializer=lambda: _reach().__enter__()) as pool:
                save_checkpoint(view, tmp_path / f"{device}-{alpha}", executor=pool, sync=False)
    for alpha in alphas:
        assert tree(tmp_path / f"{DEVICE}-{alpha}") == tree(tmp_path / f"None-{alpha}")


def test_it_is_another_device():
    """It does not mix with the processor: else these tests would show nothing."""
    there = torch.ones(2).to(DEVICE)
    with pytest.raises(RuntimeError, match="device"):
        there + torch.ones(2)
    with pytest.raises((RuntimeError, TypeError), match="numpy"):
        there.numpy()
    assert not there.is_cpu and torch.equal((there + there).cpu(), torch.full((2,), 2.0))
