"""The verb `rescale`: what it writes, what it says, and how it says no."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import jsonschema
import pytest
import torch
from safetensors.torch import load_file

import wiseft_core
from wiseft_core.cli import main


def words(model, *more, alpha="0.5"):
    """A `rescale` command line."""
    return ["rescale", str(model.adapter), str(model.out), "--alpha", alpha, *more]


@pytest.mark.parametrize("based", [False, True])
def test_it_folds_alpha_into_b(model, capsys, based):
    """B is multiplied, A and the config stay; what is said leads to a command that checks it."""
    assert main(words(model, *(["--base", str(model.base)] if based else []))) == 0
    said = capsys.readouterr()
    assert "alpha    0.5" in said.out and "for 2 of the base" in said.out and said.err == ""
    given, found = (load_file(folder / "adapter_model.safetensors") for folder in (model.adapter, model.out))
    assert given.keys() == found.keys()
    for key, tensor in found.items():
        assert torch.equal(tensor, given[key] * (0.5 if "lora_B" in key else 1))
    command = shlex.split(said.out.splitlines()[-1])
    assert command[:2] == ["wiseft", "verify"] and ("--base" in command) == based
    assert main(command[1:]) == 0


@pytest.mark.parametrize("verb", ["interpolate", "plan", "sweep", "inspect", "rescale"])
def test_help_speaks_of_a_checkpoint_where_one_may_be_given(verb, capsys):
    """`inspect` and `rescale` take adapters alone; `rescale` says what the base is for."""
    assert main([verb, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "ADAPTER" in text
    assert ("or a full fine-tuned checkpoint" in text) is (verb not in ("inspect", "rescale"))
    assert ("do not tell the weight's shape" in text) is (verb == "rescale")


def test_alpha_is_given_once(model, capsys):
    """Two of them are refused, of which the first would be ignored; nothing is written."""
    for line in (words(model), model.args()):
        assert main([*line, "--alpha", "0.6"]) == 2
        assert "more than once" in capsys.readouterr().err
        assert not model.out.exists()


def test_json_is_one_report(model, capsys):
    """With --json a report on stdout, an error too; with --quiet nothing."""
    assert main(words(model, "--json", "--no-sync")) == 0
    schemas = Path(wiseft_core.__file__).parent / "schemas"
    said = capsys.readouterr()
    report = json.loads(said.out)
    jsonschema.validate(report, json.loads((schemas / "report.schema.json").read_text()))
    assert report["touched"] == 2 and said.err == ""
    assert main(words(model, "--json")) == 3
    jsonschema.validate(json.loads(capsys.readouterr().out), json.loads((schemas / "error.schema.json").read_text()))
    model = type(model)(model.base, model.adapter, model.out.with_name("other"))
    assert main(words(model, "--quiet")) == 0
    assert capsys.readouterr() == ("", "")


def test_refusals(model, capsys):
    """Alpha beyond the tuned model, tensors that need the base, and a full checkpoint; nothing is written."""
    assert main(words(model, alpha="1.5")) == 3
    assert main(words(model, "--extrapolate", "--json", alpha="1.5")) == 0
    model = type(model)(model.base, model.adapter, model.out.with_name("other"))
    model.edit_adapter(base_model__model__model__norm__weight=torch.ones(4))
    capsys.readouterr()
    assert main(words(model)) == 3
    said = capsys.readouterr().err
    assert "model.norm.weight" in said and "--base" in said and len(said.splitlines()) == 4
    assert main(["rescale", str(model.base), str(model.out), "--alpha", "0.5"]) == 3
    assert not model.out.exists()
    assert main(words(model, "--base", str(model.base))) == 0


def test_alpha_by_tensor(model, capsys):
    """--alpha-for names base tensors; the folder is what Python gives for that mapping, and `verify` knows it."""
    name = "model.layers.0.self_attn.q_proj.weight"
    given = ["--base", str(model.base), "--alpha", "0.5", "--alpha-for", f"{name}=0.25"]
    assert main(["rescale", str(model.adapter), str(model.out), *given]) == 0
    assert "by tensor" in capsys.readouterr().out
    read = load_file(model.out / "adapter_model.safetensors")
    before = load_file(model.adapter / "adapter_model.safetensors")
    for key, value in before.items():
        alpha = 0.25 if "q_proj" in key else 0.5
        assert torch.equal(read[key], value * alpha if "lora_B" in key else value)
    told = ["--base", str(model.base), "--adapter", str(model.adapter), "--quiet"]
    assert main(["verify", str(model.out), *told]) == 0
    assert main(["rescale", str(model.adapter), str(model.out.parent / "x"), *given[:-1], "nothing=0.25"]) == 3
    assert "UnusedPattern" in capsys.readouterr().err
