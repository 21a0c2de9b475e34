"""`wiseft combine`: a sum of adapters as a model, or as an adapter; and how it says no."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import torch
from cli.conftest import MODULES
from folders import tree
from safetensors.torch import load_file, save_file

import wiseft_core
from wiseft_core import combine, combine_adapters, interpolate, save_checkpoint
from wiseft_core.cli import main

SCHEMAS = Path(wiseft_core.__file__).parent / "schemas"


@pytest.fixture
def second(model) -> Path:
    """Another LoRA over the same base, of rank 3, on one of the modules; its folder's name has an "=" in it."""
    random = torch.Generator().manual_seed(7)
    module, (rows, columns) = next(iter(MODULES.items()))
    key, folder = f"base_model.model.{module}", model.adapter.parent / "lr=1e-3"
    folder.mkdir()
    factors = {
        f"{key}.lora_A.weight": torch.randn(3, columns, generator=random),
        f"{key}.lora_B.weight": torch.randn(rows, 3, generator=random),
    }
    save_file(factors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "base_model_name_or_path": "org/\x1b]0;x"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def args(model, *adapters, out=None):
    """A `combine` command line."""
    pairs = [word for folder, alpha in adapters for word in ("--adapter", f"{folder}={alpha}")]
    return ["combine", str(model.base), str(out or model.out), *pairs]


def test_it_writes_what_python_writes(model, second, capsys):
    """The whole folder, in either order; the path is split from its alpha at the last "="; `verify` says yes."""
    assert main(args(model, (model.adapter, 0.5), (second, 0.25))) == 0
    said = capsys.readouterr().out
    assert "0.5, 0.25" in said
    next_line = said.rstrip().splitlines()[-1]
    assert next_line.count("--adapter") == 2
    save_checkpoint(combine(model.base, [(second, 0.25), (model.adapter, 0.5)]), model.out.parent / "python")
    assert tree(model.out) == tree(model.out.parent / "python")
    for order in ((model.adapter, second), (second, model.adapter)):
        given = [word for folder in order for word in ("--adapter", str(folder))]
        assert main(["verify", str(model.out), "--base", str(model.base), *given, "--quiet"]) == 0
    assert main(["verify", str(model.out), "--base", str(model.base), "--adapter", str(second), "--quiet"]) == 3


def test_one_adapter_is_interpolate(model):
    """The same files, manifest and all."""
    assert main([*args(model, (model.adapter, 0.5)), "--quiet"]) == 0
    save_checkpoint(interpolate(model.base, model.adapter, 0.5), model.out.parent / "python")
    assert tree(model.out) == tree(model.out.parent / "python")


@pytest.mark.parametrize("method", ["cat", "svd"])
def test_as_an_adapter(method, model, second, capsys):
    """The factors and errors that Python gives, in a folder that is complete and verifies; --json has every error."""
    rank = [] if method == "cat" else ["--rank", "2"]
    pairs = [(model.adapter, 0.5), (second, 0.25)]
    assert main([*args(model, *pairs), "--as-adapter", method, *rank, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    jsonschema.validate(told, json.loads((SCHEMAS / "report.schema.json").read_text()))
    joined = combine_adapters(model.base, pairs, method=method, rank=2 if rank else None)
    read = load_file(model.out / "adapter_model.safetensors")
    assert read.keys() == joined.adapter.tensors.keys()
    assert all(torch.equal(read[key], joined.adapter.tensors[key]) for key in read)
    assert told["errors"] == dict(joined.errors)
    assert told["norms"] == dict(joined.norms)
    assert told["touched"] == 2
    given = ["--base", str(model.base), "--adapter", str(second), "--adapter", str(model.adapter), "--quiet"]
    assert main(["verify", str(model.out), *given]) == 0
    assert main(["verify", str(model.out), "--quiet"]) == 0
    assert main(["verify", str(model.out), *given[:4], "--quiet"]) == 3  # one of the two
    manifest = json.loads((model.out / "wiseft.json").read_text())
    assert sorted(manifest["alpha"]) == ["0.25", "0.5"]
    assert manifest["policy"]["method"] == method
    capsys.readouterr()
    assert main([*args(model, *pairs, out=model.out.parent / "again"), "--as-adapter", method, *rank]) == 0
    assert "error (Frobenius)" in capsys.readouterr().out
    assert tree(model.out.parent / "again") == tree(model.out)


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        ([], 2, "PATH=ALPHA"),
        (["--adapter", "x"], 2, "PATH=ALPHA"),
        (["--adapter", "=0.5"], 2, "PATH=ALPHA"),
        (["--adapter", "x=y"], 2, "PATH=ALPHA"),
        (["--adapter", "nowhere=0.5"], 3, "nowhere"),
        (["--adapter", "ADAPTER=1.5"], 3, "from 0 to 1"),
        (["--adapter", "ADAPTER=0.5", "--rank", "2"], 2, "--as-adapter svd"),
        (["--adapter", "ADAPTER=0.5", "--as-adapter", "cat", "--max-output", "1kB"], 2, "--max-output"),
        (["--adapter", "ADAPTER=0.5", "--as-adapter", "cat", "--copy-code"], 2, "--copy-code"),
        (["--adapter", "ADAPTER=0.5", "--as-adapter", "sum"], 3, "cat or svd"),
        (["--adapter", "ADAPTER=0.5", "--as-adapter", "svd"], 3, "rank"),
        (["--adapter", "ADAPTER=0.5", "--as-adapter", "cat", "--rank", "2"], 3, "rank"),
    ],
)
def test_refusals(more, code, words, model, capsys):
    """Four lines, the exit code, and nothing written."""
    before = sorted(model.out.parent.rglob("*"))
    given = [word.replace("ADAPTER", str(model.adapter)) for word in more]
    assert main(["combine", str(model.base), str(model.out), *given]) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert words in said.err
    assert [line.split()[0] for line in said.err.splitlines()[1:4]] == ["expected", "got", "hint"]
    assert sorted(model.out.parent.rglob("*")) == before


def test_adapters_of_different_bases_are_refused(model, second, capsys):
    """The configs name two bases: exit 3, both are told, nothing is written."""
    path = second / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "org/another"}))
    assert main(args(model, (model.adapter, 0.5), (second, 0.5))) == 3
    said = capsys.readouterr().err
    assert "different bases" in said and "org/another" in said
    assert not model.out.exists()


@pytest.mark.parametrize("place", ["base", "adapter"])
def test_an_adapter_is_not_written_into_an_input(place, model, capsys):
    """A joined adapter has inputs too: an OUT inside the base or an adapter is refused, and nothing is written."""
    out = model.out.parent / place / "inside"
    before = sorted(model.out.parent.rglob("*"))
    assert main([*args(model, (model.adapter, 0.5), out=out), "--as-adapter", "cat"]) == 3
    assert "into an input" in capsys.readouterr().err
    assert sorted(model.out.parent.rglob("*")) == before


def test_one_adapter_cut_verifies_and_a_changed_one_does_not(model):
    """`verify` joins again, with the rank that the manifest has; a flipped bit of the factors is found."""
    assert main([*args(model, (model.adapter, 1)), "--as-adapter", "svd", "--rank", "1", "--quiet"]) == 0
    given = ["verify", str(model.out), "--base", str(model.base), "--adapter", str(model.adapter), "--quiet"]
    assert main(given) == 0
    file = model.out / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert main(given) == 1
