"""save_adapter: a folder that PEFT loads, complete or absent, sound to verify, whatever the config left out."""

from __future__ import annotations

import copy
import errno
import json
import os
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from folders import low_rank, read_all, same_bits, tree, weights, write_adapter, write_base
from jsonschema import Draft202012Validator
from peft import PeftModel
from safetensors import safe_open
from store.publish_job import Seam
from test_against_peft import gpt2, toy, tune

import wiseft_core
from wiseft_core import (
    Adapter,
    AdapterConfig,
    adapters,
    errors,
    interpolate,
    open_adapter,
    rescale,
    save_adapter,
    verify,
)
from wiseft_core.store.faults import faults

MODULES = ["model.layers.0.q_proj", "model.layers.1.q_proj"]
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def made(folder: Path, dora: bool = True, **config: object) -> tuple[Path, Path]:
    """A base and an adapter on disk."""
    base = write_base(folder / "base", weights())
    adapter = write_adapter(folder / "adapter", low_rank(weights(), MODULES, dora=dora), use_dora=dora, **config)
    return base, adapter


def test_a_folder_of_named_adapters_says_what_to_give(tmp_path):
    """What the hint says can be given in the folder's place."""
    base = weights()
    for name in ("one", "two"):
        write_adapter(tmp_path / name, low_rank(base, ["model.layers.0.q_proj"]))
    with pytest.raises(errors.CheckpointError) as caught:
        open_adapter(tmp_path)
    assert "one, two" in caught.value.got
    words, _, place = caught.value.hint.partition(": ")
    assert words == "give one of them" and place == str(tmp_path / "one")
    assert open_adapter(place).tensors.keys() == open_adapter(tmp_path, name="one").tensors.keys()


def test_the_folder_is_what_peft_writes(tmp_path: Path) -> None:
    """The same files, keys, metadata and config bytes as PEFT's own, with other values; and our manifest."""
    (tmp_path / "in").mkdir()
    base, _, _, folder, _ = tune("dora", tmp_path / "in")
    report = save_adapter(rescale(folder, 0.5, base=base), tmp_path / "out")
    ours, theirs = tree(tmp_path / "out"), tree(folder)
    assert ours.keys() == {*theirs, "wiseft.json"} and set(report.files) == theirs.keys()
    assert ours[CONFIG] == theirs[CONFIG].rstrip() + b"\n"
    assert ours["README.md"] == theirs["README.md"]
    with safe_open(tmp_path / "out" / WEIGHTS, "pt") as one, safe_open(folder / WEIGHTS, "pt") as two:
        assert list(one.keys()) == list(two.keys())
        assert one.metadata() == two.metadata()
    kept = read_all(folder)
    for key, tensor in read_all(tmp_path / "out").items():
        assert same_bits(tensor, kept[key]) == ("lora_A" in key), key
    assert report.touched == 6 and report.tensors == 18 and report.bytes == sum(len(ours[name]) for name in theirs)


def test_tokenizer_and_template_go_along_and_weights_do_not(tmp_path: Path) -> None:
    """Files beside the adapter are copied; pickles, code and another manifest are left out, and listed."""
    base, adapter = made(tmp_path)
    for name in ("tokenizer.json", "chat_template.jinja", "README.md", "training_args.bin", "run.py", "wiseft.json"):
        (adapter / name).write_text(name)
    report = save_adapter(rescale(adapter, 0.5, base=base), tmp_path / "out", sync=False)
    assert {name for name, _ in report.left_out} == {"training_args.bin", "run.py", "wiseft.json"}
    assert tree(tmp_path / "out").keys() == {
        WEIGHTS, CONFIG, "wiseft.json", "tokenizer.json", "chat_template.jinja", "README.md"
    }  # fmt: skip


COMPLETED = (
    "linear", "patterns", "embedding", "conv", "lora_bias", "bias_all", "bias_lora_only", "modules_to_save", "tokens",
    "dora", "dora_conv", "dora_everything", "gpt2_dora",
)  # fmt: skip


@pytest.mark.parametrize("name", COMPLETED)
def test_a_minimal_config_is_completed_so_that_peft_loads_it(tmp_path: Path, name: str) -> None:
    """From what scales and lists rows alone, the rest is read off the tensors: PEFT merges what it did before."""
    (tmp_path / "in").mkdir()
    base, live, merged, _, options = tune(name, tmp_path / "in")
    config = live.peft_config["default"].to_dict()
    kept = ("lora_alpha", "alpha_pattern", "use_rslora", "trainable_token_indices", "fan_in_fan_out")
    minimal = {field: config[field] for field in kept if config.get(field)}
    found = rescale(read_all(tmp_path / "in"), 1.0, config=minimal, base=base, **options)
    report = save_adapter(found, tmp_path / "out", sync=False)
    assert "target_modules" in report.notes[-1] and "peft_type" in report.notes[-1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained((gpt2 if "gpt2" in name else toy)(), tmp_path / "out")
        again = copy.deepcopy(model).merge_and_unload().state_dict()
    for key in base:
        assert torch.allclose(again[key], merged[key], rtol=0, atol=2e-6), key
        assert name != "linear" or torch.equal(again[key], merged[key])
    saved = json.loads((tmp_path / "out" / CONFIG).read_text())
    assert minimal.items() <= saved.items()
    assert rescale(tmp_path / "out", 0.5, base=base, **options).config == open_adapter(tmp_path / "out").config


def test_fields_that_are_there_are_never_changed(tmp_path: Path) -> None:
    """Every field comes back as it was, null and unknown harmless ones too; what was changed by hand is written."""
    fields = {"revision": None, "target_modules": "all-linear", "r": 2, "lora_dropout": 0.1, "modules_to_save": None}
    base, adapter = made(tmp_path, **fields)
    report = save_adapter(rescale(adapter, 0.5, base=base), tmp_path / "out", sync=False)
    assert json.loads((tmp_path / "out" / CONFIG).read_text()) == json.loads((adapter / CONFIG).read_text())
    assert report.notes == ()
    given = open_adapter(adapter)
    for number, config in enumerate((replace(given.config, lora_alpha=9.0), AdapterConfig(lora_alpha=9.0, r=2))):
        save_adapter(Adapter(given.tensors, config), tmp_path / f"out-{number}", sync=False)
        saved = json.loads((tmp_path / f"out-{number}" / CONFIG).read_text())
        assert saved["lora_alpha"] == 9 and saved["peft_type"] == "LORA"
        assert (saved.get("revision", "") is None) == (number == 0)
        assert open_adapter(tmp_path / f"out-{number}").config.lora_alpha == 9


def test_any_adapter_can_be_saved(tmp_path: Path) -> None:
    """Opened and saved, or with a live model's names: the same tensors under the names that PEFT saves."""
    _, adapter = made(tmp_path)
    given = open_adapter(adapter)
    save_adapter(given, tmp_path / "one", sync=False)
    live = {
        key.replace("lora_A.", "lora_A.default.").replace("lora_B.", "lora_B.default."): value
        for key, value in given.tensors.items()
    }
    live = {key + ".default.weight" if key.endswith("vector") else key: value for key, value in live.items()}
    save_adapter(Adapter(live, given.config), tmp_path / "two", sync=False)
    kept = read_all(adapter)
    for out in ("one", "two"):
        found = read_all(tmp_path / out)
        assert found.keys() == kept.keys() and all(same_bits(found[key], kept[key]) for key in kept)
        assert verify(tmp_path / out).ok and verify(tmp_path / out, adapter=adapter).ok
    empty = {"m.lora_A.weight": torch.ones(2, 0), "m.lora_B.weight": torch.ones(3, 2)}
    save_adapter(Adapter(empty, given.config), tmp_path / "three", sync=False)
    assert read_all(tmp_path / "three")["base_model.model.m.lora_A.weight"].shape == (2, 0)


def test_what_cannot_be_saved_is_refused(tmp_path: Path) -> None:
    """No config, a config that JSON cannot spell, an output that is there, and one inside an input; nothing is left."""
    base, adapter = made(tmp_path)
    found = rescale(adapter, 0.5, base=base)
    with pytest.raises(errors.ConfigNeeded, match="no config"):
        save_adapter(Adapter(found.tensors), tmp_path / "out")
    odd = AdapterConfig.from_mapping({"lora_alpha": 4, "revision": object()})
    with pytest.raises(errors.ConfigError, match="JSON"):
        save_adapter(Adapter(found.tensors, odd), tmp_path / "out")
    for place in (adapter, adapter / "out", base / "out", base):
        with pytest.raises(errors.CheckpointError):
            save_adapter(found, place)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]
    assert not (adapter / "out").exists() and not (base / "out").exists()


def test_a_changed_input_is_noticed(tmp_path: Path) -> None:
    """What was written to between rescaling and saving is not what the manifest would say; no output is left."""
    base, adapter = made(tmp_path)
    found = rescale(adapter, 0.5, base=base)
    os.utime(base / "model.safetensors", ns=(1, 1))
    with pytest.raises(errors.InputChanged, match=r"model\.safetensors"):
        save_adapter(found, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_complete_or_absent_whatever_call_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operating system fails at any one operation: no OUT and nothing beside it, or all of OUT."""
    base, adapter = made(tmp_path)
    (adapter / "README.md").write_text("read me")
    found, log = rescale(adapter, 0.5, base=base), list[str]()
    monkeypatch.setattr(adapters, "FILES", Seam(lambda number, operation, arguments: log.append(operation)))
    save_adapter(found, tmp_path / "out")
    whole, failed = tree(tmp_path / "out"), 0
    for number in range(1, len(log) + 1):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)

        def before(count: int, operation: str, arguments: object, number: int = number) -> None:
            if count == number:
                with faults(f"do {operation}", "the file"):
                    raise OSError(errno.EIO, "injected")

        monkeypatch.setattr(adapters, "FILES", Seam(before))
        try:
            save_adapter(found, tmp_path / "out")
        except errors.Fault:
            failed += 1
            assert not (tmp_path / "out").exists(), (number, log[number - 1])
        else:
            assert tree(tmp_path / "out") == whole
        assert not any(path.suffix == ".safetensors" for path in tmp_path.glob(".*/**/*"))
    assert failed > 20 and {"allocate", "write_at", "fsync", "rename", "create"} <= set(log)


def test_verify_rescales_again(tmp_path: Path) -> None:
    """Digests alone, or every byte computed again: with the base, and without one where none was needed."""
    base, adapter = made(tmp_path)
    plain = write_adapter(tmp_path / "plain", low_rank(weights(), MODULES))
    schedule = {"model.layers.0.*": 0.25, "*": 1.5}
    save_adapter(rescale(adapter, schedule, base=base, extrapolate=True), tmp_path / "dora", sync=False)
    save_adapter(rescale(plain, 0.3, output_dtype="fp16"), tmp_path / "lora", sync=False)
    told: list[tuple[int, int]] = []
    for out, count, options in (("dora", 6, {"base": base, "adapter": adapter}), ("lora", 4, {"adapter": plain})):
        assert verify(tmp_path / out).ok
        report = verify(tmp_path / out, progress=lambda *pair: told.append(pair), **options)
        assert report.ok and report.checks == {"files": 2, "headers": 1, "tensors computed": count}
        assert told[-1][0] == told[-1][1] > 0
        sampled = verify(tmp_path / out, sample=2, **options)
        assert sampled.ok and sampled.checks == {"headers": 1, "tensors computed": 2}
    manifest = json.loads((tmp_path / "dora" / "wiseft.json").read_text())
    schema = Path(wiseft_core.__file__).parent / "schemas" / "manifest.schema.json"
    Draft202012Validator(json.loads(schema.read_text())).validate(manifest)
    assert manifest["alpha"] == {f"{MODULES[0]}.weight": "0.25", f"{MODULES[1]}.weight": "1.5"}
    assert manifest["policy"]["output"] == "adapter"
    assert {entry["role"] for entry in manifest["inputs"]} == {"base", "adapter"}


def test_verify_finds_what_is_wrong(tmp_path: Path) -> None:
    """A flipped bit, another adapter, and questions that cannot be answered."""
    base, adapter = made(tmp_path)
    out = tmp_path / "out"
    save_adapter(rescale(adapter, 0.3, base=base), out, sync=False)
    other = write_adapter(tmp_path / "other", low_rank(weights(), MODULES, seed=5, dora=True), use_dora=True)
    report = verify(out, base=base, adapter=other)
    assert {problem.tensor for problem in report.problems} == read_all(out).keys()
    content = bytearray((out / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (out / WEIGHTS).write_bytes(content)
    problems = verify(out, base=base, adapter=adapter).problems
    assert [problem.file for problem in problems] == [WEIGHTS, WEIGHTS] and problems[1].offset == len(content) - 1
    for options in ({"base": base}, {"adapter": adapter}, {"base": base, "adapter": [adapter, adapter]}, {"sample": 1}):
        with pytest.raises(errors.ConfigError):
            verify(out, **options)
    (out / WEIGHTS).unlink()
    assert not verify(out, base=base, adapter=adapter).ok


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    """No time and no path: twice the same folder, byte for byte."""
    base, adapter = made(tmp_path)
    for out in ("one", "two"):
        save_adapter(rescale(adapter, 0.3, base=base), tmp_path / out, sync=False)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_what_was_saved_interpolates_as_the_given_adapter(tmp_path: Path) -> None:
    """Our own interpolation reads the folder as an adapter like any other, at any further alpha."""
    base, adapter = made(tmp_path)
    save_adapter(rescale(adapter, 0.5, base=base), tmp_path / "out", sync=False)
    whole = interpolate(base, adapter, 0.5, output_dtype="fp64")
    half = interpolate(base, adapter, 0.25, output_dtype="fp64")
    for view, alpha in ((whole, 1.0), (half, 0.5)):
        again = interpolate(base, tmp_path / "out", alpha, output_dtype="fp64")
        assert again.touched == view.touched
        assert all(torch.allclose(again[key], view[key], rtol=1e-6, atol=1e-6) for key in view)
