"""A method is one record: three that nobody has published, passed in as `families=`, go through every verb.

    outer   D = gain·u·vᵀ                       of its factors alone, closed: v'= alpha·v
    height  W_tuned[o] = h[o]·W[o] / ‖W[o]‖     depends on the base, through a sum over whole rows
    mirror  W_tuned = W + t·W reversed          depends on the base, and needs the whole of it

Their formulas are written a second time, in numpy, as the oracle.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from folders import read_all, same_bits, weights, write_adapter, write_base
from torch import Tensor

from wiseft_core import (
    Adapter,
    combine,
    combine_adapters,
    errors,
    interpolate,
    interpolate_tensor,
    open_adapter,
    plan,
    rescale,
    save_adapter,
    save_checkpoint,
    save_sweep,
    sweep,
    tiles,
    verify,
)
from wiseft_core.config import AdapterConfig
from wiseft_core.families import FAMILIES, Change, Factors, Family, Hyper, Option, Total

MODULES = [f"model.layers.{layer}.q_proj" for layer in range(2)]
OUT, IN = 8, 6


def outer(factors: Factors, hyper: Hyper) -> Tensor:
    """A product of two vectors."""
    return hyper.options["gain"] * factors["u"].reshape(-1, 1) * factors["v"].reshape(1, -1)


def height(weight: Tensor, factors: Factors, hyper: Hyper, total: Tensor | None) -> Tensor:
    """Rows of the lengths that were trained."""
    whole = squares(weight, factors, hyper) if total is None else total
    return weight * (factors["h"] / whole.sqrt()).reshape(-1, 1)


def squares(weight: Tensor, factors: Factors, hyper: Hyper) -> Tensor:
    """What a tile has of the squared lengths of its rows."""
    return (weight * weight).sum(1)


def stretched(factors: Factors, alpha: float, total: Total) -> Factors:
    """The lengths of the interpolated rows."""
    return {"h": (1 - alpha) * total({}).sqrt() + alpha * factors["h"]}


def mirror(weight: Tensor, factors: Factors, hyper: Hyper, total: Tensor | None) -> Tensor:
    """The weight and its own reverse."""
    return weight + factors["t"].reshape(()) * weight.flip(0, 1)


RECORDS = {
    "outer": Family(
        name="outer",
        parameters={"weight": Change({"u": "out", "v": "in"}, delta=outer, linear="v")},
        source="this file",
        peft="OUTER",
        keys={"outer_u": "u", "outer_v": "v"},
        options={"gain": Option(float, pattern="gain_pattern")},
        harmless={"hurry": "how fast it was trained"},
    ),
    "height": Family(
        name="height",
        parameters={"weight": Change({"h": "out"}, tuned=height, measure=squares, rescaled=stretched)},
        source="this file",
        peft="HEIGHT",
        keys={"height.weight": "h"},
    ),
    "mirror": Family(
        name="mirror",
        parameters={"weight": Change({"t": "1"}, tuned=mirror, whole=True)},
        source="this file",
        peft="MIRROR",
        keys={"mirror_t": "t"},
    ),
}
KNOWN = FAMILIES | RECORDS


class Method(NamedTuple):
    """What a test knows of a method: shapes by key, fields of the config, and the formula once more."""

    shapes: dict[str, tuple[int, ...]]
    fields: dict[str, object]
    tuned: Callable[..., np.ndarray]


METHODS = {
    "outer": Method(
        {"outer_u": (OUT,), "outer_v": (IN,)},
        {"gain": 1.5, "gain_pattern": {"layers.1.q_proj": -0.5}, "hurry": 7},
        lambda w, module, outer_u, outer_v: w + (-0.5 if ".1." in module else 1.5) * np.outer(outer_u, outer_v),
    ),
    "height": Method(
        {"height.weight": (OUT,)},
        {},
        lambda w, module, height: w * (height / np.linalg.norm(w, axis=1))[:, None],
    ),
    "mirror": Method({"mirror_t": (1,)}, {}, lambda w, module, mirror_t: w + mirror_t * w[::-1, ::-1]),
}


class Scene(NamedTuple):
    """A base and an adapter of a method on disk, and what tuning made of each weight, in float64."""

    name: str
    base: Path
    adapter: Path
    before: dict[str, Tensor]
    tuned: dict[str, np.ndarray]

    def wanted(self, name: str, alpha: float) -> np.ndarray:
        """W(alpha)."""
        weight = self.before[name].double().numpy()
        return weight + alpha * (self.tuned[name] - weight)


@pytest.fixture(params=METHODS)
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Scene:
    """A base of two shards, and an adapter with its own `peft_type`."""
    before, method = weights(dtype=torch.float32), METHODS[request.param]
    names = list(before)
    base = write_base(tmp_path / "base", before, [names[:3], names[3:]])
    draw, tensors, tuned = torch.Generator().manual_seed(3), {}, {}
    for module in MODULES:
        values = {key: torch.randn(shape, generator=draw) for key, shape in method.shapes.items()}
        tensors |= {f"base_model.model.{module}.{key}": value for key, value in values.items()}
        parts = {key.removesuffix(".weight"): value.double().numpy() for key, value in values.items()}
        tuned[f"{module}.weight"] = method.tuned(before[f"{module}.weight"].double().numpy(), module, **parts)
    folder = tmp_path / "adapter"
    write_adapter(folder, tensors)
    fields = {"peft_type": request.param.upper(), "target_modules": ["q_proj"], "inference_mode": True}
    (folder / "adapter_config.json").write_text(json.dumps(fields | method.fields))
    return Scene(request.param, base, folder, before, tuned)


def check(found: dict[str, Tensor], scene: Scene, alpha: float) -> None:
    """The touched weights are the formula's, in float32; the others are untouched."""
    assert found.keys() == scene.before.keys()
    for name, before in scene.before.items():
        if name not in scene.tuned or alpha == 0:
            assert same_bits(found[name], before)
        else:
            assert found[name].dtype == torch.float32
            np.testing.assert_allclose(found[name].double().numpy(), scene.wanted(name, alpha), rtol=2**-23, atol=1e-12)


def test_unknown_without_its_record(scene):
    """Without `families=` the method is refused by its `peft_type`."""
    for act in (
        lambda: open_adapter(scene.adapter),
        lambda: plan(scene.base, scene.adapter),
        lambda: interpolate(scene.base, scene.adapter, 0.5),
        lambda: rescale(scene.adapter, 0.5, base=scene.base),
        lambda: combine(scene.base, [(scene.adapter, 0.5)]),
    ):
        with pytest.raises(errors.Unsupported, match=scene.name.upper()):
            act()


def test_open_and_plan(scene):
    """The config is read strictly by the record, every tensor is used, and the plan says which family it is."""
    opened = open_adapter(scene.adapter, families=KNOWN)
    assert opened.config.peft_type == scene.name.upper()
    seen = plan(scene.base, opened, families=KNOWN)
    assert seen.bindings.keys() == scene.tuned.keys()
    assert {step.family for bound in seen.bindings.values() for step in bound.steps} == {scene.name}
    assert seen == plan(scene.base, scene.adapter, families=KNOWN)


def test_strict_config():
    """A field that the record does not know is refused, and one that it needs is never guessed."""
    with pytest.raises(errors.Unsupported, match="other"):
        AdapterConfig.from_mapping({"peft_type": "OUTER", "gain": 1, "other": 3}, families=KNOWN)
    with pytest.raises(errors.ConfigError, match="gain"):
        AdapterConfig.from_mapping({"peft_type": "OUTER", "gain": "much"}, families=KNOWN)
    factors = {f"{MODULES[0]}.outer_u": torch.ones(OUT), f"{MODULES[0]}.outer_v": torch.ones(IN)}
    with pytest.raises(errors.ConfigNeeded, match="gain"):
        interpolate(weights(), factors, 0.5, config={"peft_type": "OUTER"}, families=KNOWN)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_interpolate_save_and_verify(scene, alpha, tmp_path):
    """In memory and on disk the weights are the formula's, and `verify` computes them again."""
    view = interpolate(scene.base, scene.adapter, alpha, families=KNOWN)
    check(dict(view), scene, alpha)
    save_checkpoint(view, tmp_path / "out", sync=False)
    assert all(same_bits(tensor, view[name]) for name, tensor in read_all(tmp_path / "out").items())
    report = verify(tmp_path / "out", base=scene.base, adapter=scene.adapter, families=KNOWN)
    assert report.ok, report.problems


@pytest.mark.parametrize("elements", [1, 5, 14])
def test_tiles(scene, elements, monkeypatch):
    """Cut into tiles of any size, the weights are the same to the rounding of a row's length."""
    monkeypatch.setattr(tiles, "TILE", elements)
    check(dict(interpolate(scene.base, scene.adapter, 0.3, families=KNOWN)), scene, 0.3)


def test_sweep(scene, tmp_path):
    """A sweep writes each alpha."""
    save_sweep(sweep(scene.base, scene.adapter, [0, 0.3, 1], families=KNOWN), tmp_path / "outs", sync=False)
    for alpha in (0, 0.3, 1):
        check(read_all(tmp_path / "outs" / f"alpha-{alpha:g}"), scene, alpha)


def test_combine(scene, tmp_path):
    """Two of them add up, a LoRA too, and `verify` computes the sum again."""
    pairs = [(scene.adapter, 0.25), (scene.adapter, 0.5)]
    view = combine(scene.base, pairs, families=KNOWN)
    check(dict(view), scene, 0.75)
    save_checkpoint(view, tmp_path / "out", sync=False)
    adapters = [scene.adapter, scene.adapter]
    assert verify(tmp_path / "out", base=scene.base, adapter=adapters, families=KNOWN).ok


def test_combine_adapters(scene):
    """As one LoRA of full rank it is the same change, with the error that is reported."""
    joined = combine_adapters(scene.base, [(scene.adapter, 0.5)], method="svd", rank=6, families=KNOWN)
    assert joined.errors.keys() == scene.tuned.keys()
    for name in scene.tuned:
        key = f"base_model.model.{name.removesuffix('.weight')}.lora_"
        first, second = (joined.adapter.tensors[f"{key}{role}.weight"].double().numpy() for role in "AB")
        change = scene.wanted(name, 0.5) - scene.before[name].double().numpy()
        assert np.linalg.norm(second @ first - change) == pytest.approx(joined.errors[name], rel=1e-3, abs=1e-12)
        assert joined.errors[name] < 1e-6 * np.linalg.norm(change)


def test_rescale_and_save(scene, tmp_path):
    """Where it is closed, the rescaled adapter at alpha 1 is the interpolated model; else it is refused."""
    if scene.name == "mirror":
        with pytest.raises(errors.Unsupported, match="mirror"):
            rescale(scene.adapter, 0.3, base=scene.base, families=KNOWN)
        return
    half = rescale(scene.adapter, 0.3, base=scene.base, families=KNOWN)
    save_adapter(half, tmp_path / "half", sync=False)
    assert json.loads((tmp_path / "half" / "adapter_config.json").read_text())["peft_type"] == scene.name.upper()
    view = interpolate(scene.base, tmp_path / "half", 1.0, output_dtype="fp64", families=KNOWN)
    for name in scene.tuned:
        np.testing.assert_allclose(view[name].numpy(), scene.wanted(name, 0.3), rtol=0, atol=1e-6)
    assert verify(tmp_path / "half", base=scene.base, adapter=scene.adapter, families=KNOWN).ok


def test_save_as_it_is(scene, tmp_path):
    """An adapter that was only opened is saved with every field and the same tensors."""
    opened = open_adapter(scene.adapter, families=KNOWN)
    save_adapter(Adapter(dict(opened.tensors), opened.config), tmp_path / "again", sync=False, families=KNOWN)
    again = open_adapter(tmp_path / "again", families=KNOWN)
    assert again.config == opened.config
    assert again.config.fields == opened.config.fields
    assert all(same_bits(again.tensors[key], opened.tensors[key]) for key in opened.tensors)


def test_one_tensor(scene):
    """`interpolate_tensor` has the bits of `interpolate`."""
    module = MODULES[0]
    name = f"{module}.weight"
    keys = {key.removesuffix(".weight"): role for key, role in RECORDS[scene.name].keys.items()}
    read = open_adapter(scene.adapter, families=KNOWN).tensors
    factors = {
        role: next(value for key, value in read.items() if f"{module}.{tail}" in key) for tail, role in keys.items()
    }
    options = {"gain": 1.5} if scene.name == "outer" else {}
    found = interpolate_tensor(scene.before[name], factors, 0.3, family=scene.name, options=options, families=KNOWN)
    assert same_bits(found, interpolate(scene.base, scene.adapter, 0.3, families=KNOWN)[name])
