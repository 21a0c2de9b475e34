"""A pair that was made not to fit is refused with a reason and nothing is written: no silent no-op, no misplacement."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pairs import perturb
from pairs.build import base_folder, base_of, tuned_of
from pairs.pair import Pair, State
from pairs.table import PAIRS, ready
from safetensors.torch import load_file

from wiseft_core import WiseftError, interpolate, open_checkpoint, save_checkpoint

EVERY = ready()


def adapter_of(name: str) -> tuple[State, dict[str, Any]]:
    """The saved tensors and the config."""
    folder = tuned_of(PAIRS[name]).folder
    return load_file(folder / "adapter_model.safetensors"), json.loads((folder / "adapter_config.json").read_text())


def refusal(base: Path, adapter: State, config: dict[str, Any], out: Path, tied: str = "untie") -> WiseftError | None:
    """What is said to a pair that does not fit; None if it is taken, or if anything is written."""
    try:
        save_checkpoint(interpolate(base, adapter, 1.0, config=config, tied=tied), out, sync=False)
    except WiseftError as error:
        return error if not list(out.parent.iterdir()) else None
    return None


def is_same(base: Path, adapter: State, config: dict[str, Any], out: Path, pair: Pair) -> bool:
    """Whether what was written is what the adapter gives that was not changed."""
    right = interpolate(base, adapter, 1.0, config=config, tied=pair.tied)
    written = dict(open_checkpoint(out).items())
    return right.keys() == written.keys() and all(torch.equal(right[name], written[name]) for name in right)


@pytest.mark.parametrize(("name", "form"), EVERY, ids=map("/".join, EVERY))
def test_an_adapter_that_does_not_fit_is_refused(name: str, form: str, tmp_path: Path) -> None:
    """A renamed key, a dropped factor, a transposed tensor, a layer or a prefix that is not there, both spellings.

    A name that transformers itself takes for the same parameter (`visual.X` for `model.visual.X`) is no wrong name: it
    must then come to the very same bytes.
    """
    pair = PAIRS[name]
    folder, _ = base_of(pair, form)
    adapter, config = adapter_of(name)
    taken = []
    for number, (label, wrong) in enumerate([*perturb.adapters(adapter), *perturb.both_spellings(pair, adapter)]):
        (tmp_path / str(number)).mkdir()
        out = tmp_path / str(number) / "out"
        if not refusal(folder, wrong, config, out, pair.tied) and not is_same(folder, adapter, config, out, pair):
            taken.append(label)
    assert [label for label in taken if label not in pair.legal and label.partition("/")[0] not in pair.legal] == []


@pytest.mark.parametrize(("name", "form"), EVERY, ids=map("/".join, EVERY))
def test_the_base_of_another_architecture_is_refused(name: str, form: str, tmp_path: Path) -> None:
    """The model of the table that is nearest by names and shapes, but lacks something that the adapter changes."""
    model = perturb.nearest_wrong_base(PAIRS[name])
    adapter, config = adapter_of(name)
    said = refusal(base_folder(model, form), adapter, config, tmp_path / "out", PAIRS[name].tied)
    assert said or "wrong base" in PAIRS[name].legal, model


TWINS = {
    "towers of CLIP": ("clip_twins", "text_model.encoder.", "encoder."),
    "towers of CLIP without encoder": ("clip_twins", "text_model.encoder.", ""),
    "stacks of T5": ("t5", "encoder.", ""),
    "stacks of BART": ("bart", "model.encoder.", ""),
    "stacks of BART in model": ("bart", "model.encoder.", "model."),
    "stacks of Whisper": ("whisper", "model.decoder.", ""),
}


@pytest.mark.parametrize("form", ["original", "memory"])
@pytest.mark.parametrize("case", TWINS)
def test_an_adapter_that_fits_two_towers_is_refused(case: str, form: str, tmp_path: Path) -> None:
    """Without the tower's prefix nothing says which of two equal towers is meant."""
    model, tower, instead = TWINS[case]
    base = base_folder(model, form)
    names = [
        n for n in perturb.own_state(model).state if n.startswith(tower) and n.endswith(("q.weight", "q_proj.weight"))
    ]
    adapter = {}
    for name in names:
        module = "base_model.model." + instead + name.removeprefix(tower).removesuffix(".weight")
        adapter[f"{module}.lora_A.weight"] = torch.ones(4, 32)
        adapter[f"{module}.lora_B.weight"] = torch.ones(32, 4)
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q", "q_proj"]}
    assert refusal(base, adapter, config, tmp_path / "out")


def tensors_of(folder: Path) -> State:
    """All tensors of a base."""
    return {key: value for file in folder.glob("*.safetensors") for key, value in load_file(file).items()}


@pytest.mark.parametrize(("name", "form"), ready(), ids=map("/".join, ready()))
def test_without_the_config_of_the_base_it_is_right_or_refused(name: str, form: str) -> None:
    """Names and shapes alone place an adapter where the config would have it placed, or nowhere."""
    folder, _ = base_of(PAIRS[name], form)
    adapter, config = adapter_of(name)
    options = {"tied": PAIRS[name].tied, "config": config}
    with_config = interpolate(folder, adapter, 1.0, **options)
    try:
        without = interpolate(tensors_of(folder), adapter, 1.0, **options)
    except WiseftError:
        return
    assert set(without.touched) == set(with_config.touched)
    assert without.keys() == with_config.keys()
    assert all(torch.equal(without[key], with_config[key]) for key in with_config.touched)


HOLES = {
    "one expert's matrix": ("mixtral_parameters", ("layers.1.block_sparse_moe.experts.2.w3.weight",)),
    "one expert": ("olmoe", tuple(f"layers.0.mlp.experts.1.{part}_proj.weight" for part in ("gate", "up", "down"))),
    "the last expert": ("qwen3_moe_router", ("layers.0.mlp.experts.11.down_proj.weight",)),
    "the fused qkv": ("nomic_bert_qkv", ("layers.1.attn.Wqkv.weight",)),
    "a query": ("vit", ("encoder.layer.1.attention.attention.query.weight",)),
}


@pytest.mark.parametrize("case", HOLES)
def test_a_base_that_lacks_a_part_is_refused(case: str) -> None:
    """An adapter that changes a whole needs all of its parts: a stack with a hole would shift the experts behind it."""
    name, gone = HOLES[case]
    folder, _ = base_of(PAIRS[name], "original")
    adapter, config = adapter_of(name)
    tensors = tensors_of(folder)
    left = {key: value for key, value in tensors.items() if not key.endswith(gone)}
    assert len(left) == len(tensors) - len(gone)
    said = json.loads((folder / "config.json").read_text())
    interpolate(tensors, adapter, 1.0, config=config, base_config=said)
    with pytest.raises(WiseftError):
        interpolate(left, adapter, 1.0, config=config, base_config=said)
