"""The verbs, in process: what they write, what they say, and how they say no."""

from __future__ import annotations

import json
import re
import shlex
from fractions import Fraction
from pathlib import Path

import jsonschema
import torch
from oracles import round_exact
from safetensors.torch import load_file, save_file

import wiseft_core
from wiseft_core.cli import main

SCHEMAS = Path(wiseft_core.__file__).parent / "schemas"
Q_PROJ = "model.layers.0.self_attn.q_proj"
Q_KEY = f"base_model.model.{Q_PROJ}"
FOUR_LINES = re.compile(r"\w+: .+\n  expected  .+\n  got       .+\n  hint      .+\n")


def tensors_of(folder):
    """All tensors of a folder, by the safetensors library."""
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


def only_json(capsys, schema=None):
    """The one JSON object that a run printed, with nothing else; it is what its schema says."""
    said = capsys.readouterr()
    assert said.err == ""
    value = json.loads(said.out)
    if schema is not None:
        jsonschema.validate(value, json.loads((SCHEMAS / f"{schema}.schema.json").read_text()))
    return value


def test_interpolate_writes_the_formula_rounded_once(model, capsys):
    """Every element of a tuned weight is (1 - alpha)·W + alpha·(W + s·B·A), exact and rounded once."""
    assert main(model.args(alpha="0.25")) == 0
    base, factors, out = tensors_of(model.base), tensors_of(model.adapter), tensors_of(model.out)
    weight, down, up = base[f"{Q_PROJ}.weight"], factors[f"{Q_KEY}.lora_A.weight"], factors[f"{Q_KEY}.lora_B.weight"]
    for i in range(6):
        for j in range(4):
            product = sum(Fraction(up[i, k].item()) * Fraction(down[k, j].item()) for k in range(2))
            exact = Fraction(weight[i, j].item()) + Fraction(1, 4) * Fraction(3, 2) * product
            assert out[f"{Q_PROJ}.weight"][i, j].item() == round_exact(exact, "F32")
    assert torch.equal(base["model.steps"], out["model.steps"])


def test_alpha_zero_copies_the_shards(model):
    """At alpha 0 every weight file has the base's bytes."""
    assert main(model.args("--quiet", alpha="0")) == 0
    shards = sorted(model.base.glob("*.safetensors"))
    assert len(shards) == 2
    for shard in shards:
        assert (model.out / shard.name).read_bytes() == shard.read_bytes()


def test_interpolate_tells_what_it_did_and_what_comes_next(model, capsys):
    """The report counts tensors and gives a `verify` command that works as it is printed."""
    assert main(model.args()) == 0
    said = capsys.readouterr()
    assert "2 interpolated, 2 copied, 0 new" in said.out
    assert re.search(r"^alpha +0\.5$", said.out, re.MULTILINE)
    command = shlex.split(said.out.strip().splitlines()[-1])
    assert command[:2] == ["wiseft", "verify"]
    assert main(command[1:]) == 0
    assert capsys.readouterr().out.endswith("All is as it should be.\n")


def test_quiet_says_nothing(model, capsys):
    """With --quiet a success prints nothing at all."""
    assert main(model.args("--quiet")) == 0
    assert main(["verify", str(model.out), "--quiet"]) == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "")


def test_reports_as_json(model, capsys):
    """With --json, interpolate and verify print one object each: their report."""
    assert main(model.args("--json")) == 0
    report = only_json(capsys, "report")
    assert (report["tensors"], report["touched"], report["new"]) == (4, 2, [])
    assert main(["verify", str(model.out), "--base", str(model.base), "--adapter", str(model.adapter), "--json"]) == 0
    assert only_json(capsys, "report")["ok"] is True


def test_plan_accounts_for_every_adapter_tensor(model, capsys):
    """`plan --json` names every adapter key exactly once, and the text counts them."""
    assert main(["plan", str(model.base), str(model.adapter), "--json"]) == 0
    touched = only_json(capsys, "plan")["touched"]
    keys = [key for tensor in touched.values() for step in tensor["steps"] for key in step["factors"].values()]
    assert sorted(keys) == sorted(tensors_of(model.adapter))
    assert main(["plan", str(model.base), str(model.adapter)]) == 0
    text = capsys.readouterr().out
    assert "4 used, 0 without meaning" in text
    assert re.search(r"^lora +linear +weight +2$", text, re.MULTILINE)
    assert not model.out.exists()


def test_inspect_shows_method_ranks_and_scales(model, capsys):
    """`inspect` tells method, ranks, effective scales and targets, and escapes what the config says."""
    assert main(["inspect", str(model.adapter)]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^method +LoRA$", text, re.MULTILINE)
    assert re.search(r"^ranks +2 ×2$", text, re.MULTILINE)
    assert re.search(r"^scales +1\.5 ×2 +\(lora_alpha / r\)$", text, re.MULTILINE)
    assert re.search(r"^model\.layers\.\*\.self_attn\.q_proj +1$", text, re.MULTILINE)
    assert "\x1b" not in text
    assert "org/\\x1b]0;x" in text


def test_inspect_shows_patterns_rslora_and_dora(model, capsys):
    """Scales follow alpha_pattern and rsLoRA's root, and a magnitude makes it DoRA."""
    model.edit_config(use_rslora=True, alpha_pattern={"q_proj": 5}, use_dora=True)
    magnitudes = {f"{Q_KEY}.lora_magnitude_vector".replace(".", "__"): torch.ones(6)}
    up_proj = "base_model.model.model.layers.1.mlp.up_proj.lora_magnitude_vector".replace(".", "__")
    model.edit_adapter(**magnitudes, **{up_proj: torch.ones(8)})
    assert main(["inspect", str(model.adapter), "--json"]) == 0
    seen = only_json(capsys)
    assert seen["method"].startswith("DoRA")
    assert {float(scale) for scale in seen["scales"]} == {5 / 2**0.5, 3 / 2**0.5}


def test_inspect_shows_a_refusal_beside_the_rest(model, capsys):
    """An adapter that would be refused is still shown, with the refusal and its exit code."""
    model.edit_config(peft_type="LOHA")
    assert main(["inspect", str(model.adapter)]) == 4
    said = capsys.readouterr()
    assert re.search(r"^method +LOHA$", said.out, re.MULTILINE)
    assert FOUR_LINES.fullmatch(said.err)
    assert main(["inspect", str(model.adapter), "--json"]) == 4
    assert only_json(capsys)["refusals"][0]["error"] == "Unsupported"


def test_adapter_name_takes_a_sub_folder(model, capsys):
    """--adapter-name opens the adapter in the folder of that name, and the next command still works."""
    model.adapter.rename(model.base.parent / "first")
    model.adapter.mkdir()
    (model.base.parent / "first").rename(model.adapter / "first")
    assert main(["inspect", str(model.adapter)]) == 3
    assert "first" in capsys.readouterr().err
    assert main(model.args("--adapter-name", "first")) == 0
    command = shlex.split(capsys.readouterr().out.strip().splitlines()[-1])
    assert main(command[1:]) == 0


def test_weights_chooses_a_file(model, capsys):
    """Where a base holds several weights, --weights says which."""
    folder = model.base.parent / "two"
    folder.mkdir()
    for name in ("model.safetensors", "other.safetensors"):
        save_file(tensors_of(model.base), folder / name)
    (folder / "diffusion_pytorch_model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    assert main(["plan", str(folder), str(model.adapter)]) == 3
    assert "--weights" in capsys.readouterr().err
    assert main(["plan", str(folder), str(model.adapter), "--weights", "model.safetensors"]) == 0


def test_flags_reach_the_library(model):
    """Dtypes, extrapolation, shard size and threads do what they say."""
    flags = ["--output-dtype", "bf16", "--extrapolate", "--max-shard-size", "70", "--threads", "2", "--no-sync"]
    assert main(model.args(*flags, "--compute-dtype", "fp32", "--overflow", "saturate", "--quiet", alpha="-0.5")) == 0
    out = tensors_of(model.out)
    assert {out[name].dtype for name in out} == {torch.bfloat16, torch.int64}
    assert len(list(model.out.glob("*.safetensors"))) > 2


def test_verify_lists_what_is_wrong(model, capsys):
    """A changed byte makes `verify` return 1 and name the file."""
    assert main(model.args("--quiet")) == 0
    shard = sorted(model.out.glob("*.safetensors"))[0]
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(bytes(data))
    assert main(["verify", str(model.out)]) == 1
    assert shard.name in capsys.readouterr().out
    assert main(["verify", str(model.out), "--json"]) == 1
    assert only_json(capsys, "report")["problems"][0]["file"] == shard.name


def test_no_verb_points_to_help(capsys):
    """`wiseft` alone is exit 2 and says where help is."""
    assert main([]) == 2
    assert "wiseft --help" in capsys.readouterr().err


def test_version(capsys):
    """--version prints name and version."""
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"wiseft {wiseft_core.__version__}\n"
