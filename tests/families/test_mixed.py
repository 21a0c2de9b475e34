"""Adapters of several methods over one base: PEFT's mixed model is the sum of what each adds.

PEFT cannot save a mixed model: each adapter is saved by a model of its own, as `folder/<name>/`, and loaded into one.
"""

from __future__ import annotations

import copy
import itertools
import json
import warnings
from pathlib import Path
from typing import NamedTuple

import peft
import pytest
import torch
from exact import same_bits
from safetensors.torch import load_file, save_file
from toys import toy

from wiseft_core import (
    combine,
    combine_adapters,
    errors,
    interpolate,
    open_adapter,
    plan,
    save_adapter,
    save_checkpoint,
    verify,
)
from wiseft_core.cli import main

TARGETS = ["q_proj", "up", "conv2"]
CONFIGS = {
    # SHiRA first: PEFT wraps in this order, and it takes no wrapped layer.
    "shira": peft.ShiraConfig(target_modules=["q_proj", "up"], r=2),
    "lora": peft.LoraConfig(target_modules=TARGETS, r=3, lora_alpha=5),
    "loha": peft.LoHaConfig(target_modules=TARGETS, r=2, alpha=3),
    "lokr": peft.LoKrConfig(target_modules=["q_proj", "conv2"], r=1, alpha=2),
    "adalora": peft.AdaLoraConfig(target_modules=["up"], init_r=3, target_r=2, total_step=9, lora_alpha=5),
    "oft": peft.OFTConfig(target_modules=["q_proj", "up"], oft_block_size=4, r=0),
    "vera": peft.VeraConfig(target_modules=["q_proj", "up"], r=4),
    "ia3": peft.IA3Config(target_modules=["q_proj", "up", "conv2"], feedforward_modules=["up"]),
}
ADDITIVE = ["shira", "lora", "loha", "lokr", "adalora"]
"""Those that PEFT's mixed model takes, and that add to the weight."""
UNITS = 5
"""The error of PEFT's float32 sums, in 2^-24 of the largest number: about twice what was seen."""


class Mixed(NamedTuple):
    """A base and the folder with one adapter per method."""

    base: dict[str, torch.Tensor]
    folder: Path


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Mixed:
    """An adapter of each method, trained and saved by PEFT under its name."""
    folder, base = tmp_path_factory.mktemp("adapters"), copy.deepcopy(toy().state_dict())
    for seed, (name, config) in enumerate(CONFIGS.items()):
        draw = torch.Generator().manual_seed(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = peft.get_peft_model(toy(), copy.deepcopy(config), adapter_name=name)
            with torch.no_grad():
                for key, value in model.named_parameters():
                    if value.requires_grad and "ranknum" not in key:
                        value.add_(torch.randn(value.shape, generator=draw) * 0.3)
            model.save_pretrained(folder, save_embedding_layers=False)
    save_file(base, tmp_path_factory.mktemp("base") / "model.safetensors")
    assert sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) == sorted(CONFIGS)
    return Mixed(base, folder)


def merged_by_peft(mixed: Mixed, names: list[str]) -> dict[str, torch.Tensor]:
    """What PEFT's mixed model of these adapters is merged to."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.PeftMixedModel.from_pretrained(toy(), mixed.folder / names[0], adapter_name=names[0])
        for name in names[1:]:
            model.load_adapter(mixed.folder / name, adapter_name=name)
        model.set_adapter(names)
        return model.merge_and_unload().state_dict()


def check(found, wanted, base, units: float = UNITS) -> None:
    """Equal to the last few bits of float32, and nothing else is touched."""
    assert found.keys() == wanted.keys() == base.keys()
    for key, before in base.items():
        if torch.equal(wanted[key], before):
            assert same_bits(found[key], before)
            continue
        off = (found[key].double() - wanted[key].double()).abs().max()
        assert off <= units * 2**-24 * max(before.abs().max(), wanted[key].abs().max()), key


@pytest.mark.parametrize("names", [*itertools.combinations(ADDITIVE, 2), ADDITIVE], ids="-".join)
def test_a_mixed_model_is_the_sum(mixed, names):
    """Where each method adds to the weight, combining them is PEFT's merged mixed model, in any order."""
    pairs = [(mixed.folder / name, 1.0) for name in names]
    found = combine(mixed.base, pairs)
    check(dict(found), merged_by_peft(mixed, list(names)), mixed.base)
    assert all(same_bits(combine(mixed.base, pairs[::-1])[key], found[key]) for key in found)


def test_what_multiplies_is_not_merged_one_after_the_other(mixed):
    """OFT turns what it finds: PEFT turns the LoRA too, while a combination adds what each makes of the base."""
    found = dict(combine(mixed.base, [(mixed.folder / "lora", 1.0), (mixed.folder / "oft", 1.0)]))
    parts = [interpolate(mixed.base, mixed.folder / name, 1.0, output_dtype="fp64") for name in ("lora", "oft")]
    wanted = {key: sum(part[key] for part in parts) - value.double() for key, value in mixed.base.items()}
    check(found, {key: value.float() for key, value in wanted.items()}, mixed.base)
    theirs = merged_by_peft(mixed, ["lora", "oft"])
    assert not torch.allclose(found["layers.0.up.weight"], theirs["layers.0.up.weight"], atol=1e-3)


def test_alphas_weigh_each_method(mixed):
    """Coefficients of their own, against sums in float64 of what each adapter alone makes of the base."""
    alphas = {"lora": 0.5, "loha": 0.25, "oft": 0.125}
    found = dict(combine(mixed.base, [(mixed.folder / name, alpha) for name, alpha in alphas.items()]))
    for key, before in mixed.base.items():
        wide = before.double()
        for name, alpha in alphas.items():
            alone = interpolate(mixed.base, mixed.folder / name, 1.0, output_dtype="fp64")[key]
            wide = wide + alpha * (alone - before.double())
        assert torch.allclose(found[key].double(), wide, rtol=2**-23, atol=1e-12), key


def test_from_files_to_files(mixed, tmp_path):
    """The command combines adapters of two methods, and `verify` computes the sum again."""
    (tmp_path / "base").mkdir()
    save_file(mixed.base, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    pairs = [(mixed.folder / "lora", 0.5), (mixed.folder / "loha", 0.25)]
    args = [f"--adapter={folder}={alpha}" for folder, alpha in pairs]
    assert main(["combine", str(tmp_path / "base"), str(tmp_path / "out"), *args, "--quiet"]) == 0
    view = combine(mixed.base, pairs)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert all(same_bits(tensor, view[key]) for key, tensor in written.items())
    assert verify(tmp_path / "out", base=tmp_path / "base", adapter=[folder for folder, _ in pairs]).ok


def test_named_folders(mixed, tmp_path, capsys):
    """An adapter is opened by its name; without one, or by a wrong one, the refusal lists those that are there."""
    for name in CONFIGS:
        opened = open_adapter(mixed.folder, name=name)
        assert opened.config.peft_type == CONFIGS[name].peft_type.value
        assert plan(mixed.base, opened).bindings
    for act in (lambda: open_adapter(mixed.folder), lambda: interpolate(mixed.base, mixed.folder, 0.5)):
        with pytest.raises(errors.CheckpointError) as refused:
            act()
        assert all(name in refused.value.got for name in CONFIGS)
    with pytest.raises(errors.CheckpointError, match="dora"):
        open_adapter(mixed.folder, name="dora")
    (tmp_path / "base").mkdir()
    save_file(mixed.base, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    command = ["interpolate", str(tmp_path / "base"), str(mixed.folder), str(tmp_path / "out"), "--alpha", "0.5"]
    assert main(command) == 3
    assert "loha" in capsys.readouterr().err
    assert main([*command, "--adapter-name", "loha", "--quiet"]) == 0
    written, view = (
        load_file(tmp_path / "out" / "model.safetensors"),
        interpolate(mixed.base, mixed.folder / "loha", 0.5),
    )
    assert all(same_bits(tensor, view[key]) for key, tensor in written.items())


@pytest.mark.parametrize(
    "names", [("loha", "lora"), ("lokr", "shira"), ("adalora", "oft"), ("vera", "ia3")], ids="-".join
)
@pytest.mark.parametrize("rank", [2, 8])
def test_as_one_adapter(mixed, names, rank, tmp_path):
    """Cut to a LoRA, flat convolutions included, PEFT merges it to the sum less the errors that are reported."""
    pairs = [(mixed.folder / name, 0.5) for name in names]
    joined = combine_adapters(mixed.base, pairs, method="svd", rank=rank)
    save_adapter(joined.adapter, tmp_path / "joined", sync=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged = peft.PeftModel.from_pretrained(toy(), tmp_path / "joined").merge_and_unload().state_dict()
    exact = combine(mixed.base, pairs, output_dtype="fp64")
    assert {key for key in exact.touched if key.endswith("weight")} == joined.errors.keys()
    for key, before in mixed.base.items():
        apart = float((merged[key].double() - exact[key]).norm())
        rounding = 8 * 2**-24 * float(exact[key].norm()) + 1e-12
        assert abs(apart - joined.errors.get(key, 0.0)) <= rounding, key  # biases are carried: no error
        if key in joined.errors:
            change = exact[key] - before.double()
            values = torch.linalg.svdvals(change.reshape(len(change), -1))
            assert joined.norms[key] == pytest.approx(float(values.norm()), rel=1e-9)
            # No product of this rank is nearer: what is left out are the other singular values.
            assert joined.errors[key] == pytest.approx(float(values[rank:].norm()), rel=1e-3, abs=1e-5)
    assert json.loads((tmp_path / "joined" / "adapter_config.json").read_text())["peft_type"] == "LORA"


def test_save_checkpoint_of_a_mixture_knows_every_input(mixed, tmp_path):
    """The manifest names the files of each adapter."""
    (tmp_path / "base").mkdir()
    save_file(mixed.base, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    pairs = [(mixed.folder / name, 0.25) for name in ADDITIVE]
    save_checkpoint(combine(tmp_path / "base", pairs), tmp_path / "out", sync=False)
    manifest = json.loads((tmp_path / "out" / "wiseft.json").read_text())
    assert len({entry["role"] for entry in manifest["inputs"]} - {"base"}) == len(pairs)
