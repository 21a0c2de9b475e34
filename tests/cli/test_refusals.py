"""How the command says no: four lines or one JSON object, the exit code, and nothing left behind."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest
import torch
from safetensors.torch import load_file, save_file

import wiseft_core
from wiseft_core.cli import main

SCHEMAS = Path(wiseft_core.__file__).parent / "schemas"
Q_PROJ = "model.layers.0.self_attn.q_proj"
UP_PROJ = "model.layers.1.mlp.up_proj"
Q_KEY = f"base_model.model.{Q_PROJ}"
FOUR_LINES = re.compile(r"\w+: .+\n  expected  .+\n  got       .+\n  hint      .+\n")


def tensors_of(folder):
    """All tensors of a folder, by the safetensors library."""
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


def wrong_base(model):
    """Shapes that differ."""
    tensors = tensors_of(model.base) | {f"{Q_PROJ}.weight": torch.zeros(6, 5)}
    for file in model.base.glob("model*"):
        file.unlink()
    save_file(tensors, model.base / "model.safetensors")


def truncated(model):
    """A shard that lacks its last byte."""
    shard = sorted(model.base.glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-1])


def pickled(model):
    """A checkpoint of the old kind."""
    for file in model.base.glob("model*"):
        file.unlink()
    (model.base / "pytorch_model.bin").write_bytes(b"\x80\x02.")


def quantized(model):
    """A base whose config says that it holds codes."""
    config = {"model_type": "llama", "quantization_config": {"quant_method": "gptq"}}
    (model.base / "config.json").write_text(json.dumps(config))


def key(name):
    """An adapter key as a keyword."""
    return f"{Q_KEY}.{name}".replace(".", "__")


BAD_INPUTS = {
    "wrong base": (wrong_base, "ShapeMismatch", 3),
    "missing factor": (lambda m: m.edit_adapter(**{key("lora_B.weight"): None}), "MissingFactor", 3),
    "extra factor": (lambda m: m.edit_adapter(**{key("lora_C.weight"): torch.ones(1)}), "UnclaimedKey", 3),
    "no base tensor": (lambda m: m.edit_adapter(base_model__model__x__lora_A__weight=torch.ones(2, 4)), "Unclai", 3),
    "no lora_alpha": (lambda m: m.edit_config(lora_alpha=None), "ConfigNeeded", 3),
    "unknown method": (lambda m: m.edit_config(peft_type="NOPE"), "Unsupported", 4),
    "truncated": (truncated, "CheckpointError", 3),
    "missing shard": (lambda m: sorted(m.base.glob("*.safetensors"))[0].unlink(), "CheckpointError", 3),
    "pickle": (pickled, "Unsupported", 4),
    "quantised": (quantized, "QuantizedBase", 4),
    "no such base": (lambda m: m.base.rename(m.base.parent / "moved"), "CheckpointError", 3),
    "no such adapter": (lambda m: m.adapter.rename(m.base.parent / "moved"), "CheckpointError", 3),
}


def assert_refused(args, name, code, capsys):
    """Four lines on stderr and nothing on stdout; with --json one object of the schema and nothing on stderr."""
    assert main(args) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(name)
    assert FOUR_LINES.match(said.err)
    assert main([*args, "--json"]) == code
    said = capsys.readouterr()
    assert said.err == ""
    error = json.loads(said.out)
    jsonschema.validate(error, json.loads((SCHEMAS / "error.schema.json").read_text()))
    assert error["error"].startswith(name)
    assert error["exit_code"] == code
    assert all(error[field] for field in ("where", "expected", "got", "hint"))


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_is_refused_in_four_lines(case, model, capsys):
    """Each bad input: its error, its exit code, and nothing left beside the inputs."""
    spoil, name, code = BAD_INPUTS[case]
    spoil(model)
    before = sorted(model.out.parent.iterdir())
    assert_refused(model.args(), name, code, capsys)
    assert sorted(model.out.parent.iterdir()) == before


@pytest.mark.parametrize("alpha", ["nan", "inf", "-inf", "1.5", "-0.1", "1e400"])
def test_bad_alpha_is_refused(alpha, model, capsys):
    """An alpha that is a number and cannot be meant is a bad value: exit 3."""
    assert_refused(model.args(alpha=alpha), "BadAlpha", 3, capsys)
    assert not model.out.exists()


@pytest.mark.parametrize("place", ["in base", "base", "in adapter", "not empty"])
def test_a_bad_place_for_the_output_is_refused(place, model, capsys):
    """An output in, at or around an input, or where something is already, is refused and changes nothing."""
    out = {"in base": model.base / "out", "base": model.base, "in adapter": model.adapter / "out"}.get(place, model.out)
    if place == "not empty":
        out.mkdir()
        (out / "mine").write_text("mine")
    before = sorted(model.out.parent.rglob("*"))
    args = ["interpolate", str(model.base), str(model.adapter), str(out), "--alpha", "0.5"]
    assert_refused(args, "CheckpointError", 3, capsys)
    assert sorted(model.out.parent.rglob("*")) == before


@pytest.mark.parametrize(
    "flags",
    [
        ["--output-dtype", "int8"],
        ["--compute-dtype", "bf16"],
        ["--overflow", "wrap"],
        ["--device", "abacus"],
        ["--max-shard-size", "5 apples"],
    ],
)
def test_a_bad_value_of_a_flag_is_refused(flags, model, capsys):
    """A value that parses and cannot be meant is exit 3."""
    assert_refused(model.args(*flags), "ConfigError", 3, capsys)
    assert not model.out.exists()


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (["--alpha", "0.5", "--alpha-for", "a"], "ConfigError"), (["--schedule", "missing.toml"], "CheckpointError"),
        (["--alpha", "0.5", "--alpha-for", "*.nlp.*=1"], "UnusedPattern"),
        (["--alpha", "0.5", "--alpha-for", "*.mlp.*=1.5"], "BadAlpha"),
    ],
)  # fmt: skip
def test_a_bad_schedule_is_refused(flags, error, model, capsys):
    """Exit 3 in four lines, or one JSON object, and nothing is written."""
    args = ["interpolate", str(model.base), str(model.adapter), str(model.out), *flags]
    assert_refused(args, error, 3, capsys)
    assert not model.out.exists()


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ('alpha = 0.5\n[for]\n"model.layers.1.*.up_prj.weight" = 1\n', "UnusedPattern", f"{UP_PROJ}.weight"),
        ('[for]\n"*.mlp.*" = 1\n', "ConfigError", f"{Q_PROJ}.weight"),
        ('[for]\n"*q_proj*" = 1\n"*_proj.*" = 0\n', "UnusedPattern", f"{Q_PROJ}.weight"),
        ("[by_depth]\npoints = { 0 = 0.5, 1 = 1.5 }\nother = 0.5\n", "BadAlpha", f"{UP_PROJ}.weight"),
    ],
)  # fmt: skip
def test_what_a_file_leaves_open_is_refused(text, error, said, model, capsys):
    """A pattern that is not used, a tensor without alpha, a tie, and a value out of range; extrapolating is said."""
    file = model.base.parent / "schedule.toml"
    file.write_text(text)
    args = ["interpolate", str(model.base), str(model.adapter), str(model.out), "--schedule", str(file)]
    assert_refused(args, error, 3, capsys)
    main(args)
    assert said in capsys.readouterr().err
    assert not model.out.exists()
    assert main([*args, "--extrapolate", "--quiet"]) == (0 if error == "BadAlpha" else 3)


@pytest.mark.parametrize(
    "args",
    [
        ["interpolate", "a", "b", "c", "--alpha", "abc"],
        ["interpolate", "a", "b", "c"],
        ["interpolate", "a", "b", "c", "--alpha-for", "*=0.5"],
        ["interpolate", "a", "b", "c", "--schedule", ""],
        ["interpolate", "a", "b", "--alpha", "0.5"],
        ["interpolate", "", "b", "c", "--alpha", "0.5"],
        ["interpolate", "a", "b", "c", "--alpha", "0.5", "--threads", "0"],
        ["verify", "a", "--base", ""],
        ["plan", "a", "b", "--nonsense"],
        ["merge", "a", "b"],
    ],
)
def test_a_command_line_that_cannot_be_parsed(args, capsys):
    """Exit 2, in the same four lines and the same JSON as any other error."""
    assert_refused(args, "BadCommandLine", 2, capsys)


@pytest.mark.parametrize("last", ["--alpha", "--quiet=1", "--nonsense"])
def test_an_option_that_is_used_wrongly_is_told_with_its_verb(last, capsys):
    """Also where its value is missing at the end of the line: the usage is the verb's, not that of the command."""
    assert main(["interpolate", "a", "b", "c", last]) == 2
    said = capsys.readouterr().err
    assert "expected  wiseft interpolate [OPTIONS]" in said
    assert "`wiseft interpolate --help`" in said


def test_verify_wants_base_and_adapter_together(model, capsys):
    """One of the two cannot settle anything: exit 3."""
    assert main(model.args("--quiet")) == 0
    assert_refused(["verify", str(model.out), "--base", str(model.base)], "ConfigError", 3, capsys)
