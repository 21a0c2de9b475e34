"""Alpha by tensor on the command line: what flags and files say, and that they say what Python says."""

from __future__ import annotations

import json
import re

import pytest

from wiseft_core import interpolate, save_checkpoint
from wiseft_core.cli import main
from wiseft_core.cli.reports import alphas
from wiseft_core.cli.schedule import combined, read_schedule
from wiseft_core.errors import BadAlpha, CheckpointError, ConfigError
from wiseft_core.schedules import by_depth

Q_PROJ, UP_PROJ = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight"
LINE = by_depth({0: 0.25, 2: 0.75}, other=0.5)
TOML = """
[for]
"*.mlp.*" = 0.125

[by_depth]
points = { 0 = 0.25, 2 = 0.75 }
other = 0.5
"""


def write(folder, text, name="schedule.toml"):
    """A file of that content."""
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def tree(folder):
    """Name and bytes of every file."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def run(model, out, *flags):
    """`interpolate` into `out`; the bytes of all files."""
    assert main(["interpolate", str(model.base), str(model.adapter), str(model.out / out), "--quiet", *flags]) == 0
    return tree(model.out / out)


def test_file_flags_and_python_write_the_same_bytes(model):
    """One schedule as TOML, as JSON, as flags and as a mapping: the same files, the manifest included."""
    model.out.mkdir()
    toml = write(model.base.parent, 'alpha = 0.25\n[for]\n"*.mlp.*" = 0.75\n')
    text = write(model.base.parent, json.dumps({"alpha": 0.25, "for": {"*.mlp.*": 0.75}}), "schedule.json")
    rest = write(model.base.parent, '[for]\n"*.mlp.*" = 0.75\n', "rest.toml")
    save_checkpoint(interpolate(model.base, model.adapter, {"*": 0.25, "*.mlp.*": 0.75}), model.out / "python")
    python = tree(model.out / "python")
    flags = ["--alpha", "0.25", "--alpha-for", "*.mlp.*=0.75"]

    assert run(model, "toml", "--schedule", str(toml)) == python
    assert run(model, "json", "--schedule", str(text)) == python
    assert run(model, "flags", *flags) == python
    assert run(model, "both", "--alpha", "0.25", "--schedule", str(rest)) == python
    assert run(model, "added", "--schedule", str(rest), "--alpha-for", "*=0.25") == python
    assert run(model, "other", "--alpha", "0.25") != python


def test_one_number_in_a_file_is_that_number(model):
    """`alpha = 0.25` alone is `--alpha 0.25`, in every byte."""
    model.out.mkdir()
    file = write(model.base.parent, "alpha = 0.25")
    assert run(model, "file", "--schedule", str(file)) == run(model, "flag", "--alpha", "0.25")


def test_the_manifest_has_what_each_tensor_got_and_verify_agrees(model, capsys):
    """Resolved decimals of the touched tensors; `verify` computes the output again from them."""
    model.out.mkdir()
    file = write(model.base.parent, TOML.replace('"*.mlp.*" = 0.125', ""))
    run(model, "out", "--schedule", str(file))
    manifest = json.loads((model.out / "out" / "wiseft.json").read_text())
    assert manifest["alpha"] == {Q_PROJ: "0.25", UP_PROJ: "0.5"}
    against = ["--base", str(model.base), "--adapter", str(model.adapter)]
    assert main(["verify", str(model.out / "out"), *against]) == 0
    assert re.search(r"^tensors computed +2$", capsys.readouterr().out, re.MULTILINE)


def test_the_report_counts_the_alphas(model, capsys):
    """A few alphas are counted, of many the range is told."""
    assert main(model.args("--alpha-for", "*.mlp.*=0.75", alpha="0.25")) == 0
    assert re.search(r"^alpha +0\.25 ×1, 0\.75 ×1$", capsys.readouterr().out, re.MULTILINE)
    assert alphas({"a": 0.5, "b": 0.25, "c": 0.5}, None) == "0.5 ×2, 0.25 ×1"
    assert alphas({str(at): at // 2 / 10 for at in range(20)}, None) == "0 to 0.9: 10 values for 20 tensors"


def test_read_schedule(tmp_path):
    """Both spellings of one tree give one schedule."""
    text = {"for": {"*.mlp.*": 0.125}, "by_depth": {"points": {"0": 0.25, "2": 0.75}, "other": 0.5}}
    wanted = {"*": LINE, "*.mlp.*": 0.125}
    assert read_schedule(write(tmp_path, TOML)) == wanted
    assert read_schedule(write(tmp_path, json.dumps(text), "schedule.json")) == wanted


def test_combined(tmp_path):
    """What flags add to a file, and to each other; an entry is split at its last `=`."""
    file = write(tmp_path, TOML)
    assert combined(0.5, [], None) == 0.5
    assert combined(0.5, ["a=1", "b=c=0", "d*=-1.5"], None) == {"*": 0.5, "a": 1.0, "b=c": 0.0, "d*": -1.5}
    assert combined(None, [], file) == {"*": LINE, "*.mlp.*": 0.125}
    assert combined(None, ["a=1"], file) == {"*": LINE, "*.mlp.*": 0.125, "a": 1.0}
    assert combined(None, ["a=1"], write(tmp_path, "alpha = 0.5")) == {"*": 0.5, "a": 1.0}
    assert combined(0.5, [], write(tmp_path, "[for]\na = 1")) == {"*": 0.5, "a": 1.0}


@pytest.mark.parametrize(
    ("alpha", "alpha_for", "file", "said"),
    [
        (None, [], None, "neither"), (None, ["a=1"], None, "alone"), (0.5, ["a"], None, "no ="),
        (0.5, ["a="], None, "value ''"), (0.5, ["=1"], None, "pattern ''"), (0.5, ["a=b"], None, "value 'b'"),
        (0.5, ["a=nan"], None, "nan"), (0.5, ["a=1e999"], None, "inf"), (0.5, ["a=1", "a=1"], None, "'a'"),
        (0.5, ["*=1"], None, "'*'"), (0.5, [], TOML, "'*'"), (0.5, [], "alpha = 0.5", "'*'"),
        (0.5, [], '[for]\n"*" = 1', "'*'"), (None, ["*=1"], TOML, "'*'"), (None, ["*.mlp.*=1"], TOML, "'*.mlp.*'"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(alpha, alpha_for, file, said, tmp_path):
    """Nothing given, entries that cannot be read, and two alphas for the same: four lines that name the culprit."""
    with pytest.raises(ConfigError) as caught:
        combined(alpha, alpha_for, None if file is None else write(tmp_path, file))
    assert said in str(caught.value)
    assert all((caught.value.expected, caught.value.got, caught.value.hint))


@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        ("a.toml", "alpha = ", CheckpointError), ("a.toml", b"alpha = 0.5 # \xff", CheckpointError),
        ("a.toml", "alpha = 0.5\nalpha = 0.5", CheckpointError), ("a.toml", f"a = {'[' * 9999}", CheckpointError),
        ("a.toml", f"{'a.' * 300_000}a = 1", CheckpointError), ("a.toml", f"alpha = {'9' * 5000}", CheckpointError),
        ("a.toml", f"alpha = 0x{'f' * 5000}", BadAlpha), ("a.toml", "alpha = inf", BadAlpha),
        ("a.toml", "[for]\nmodel.norm = 0.5", BadAlpha), ("a.toml", "", ConfigError),
        ("a.toml", "#" * (1 << 20) + "\n", CheckpointError), ("a.json", '{"alpha": 1, "alpha": 1}', CheckpointError),
        ("a.json", "[]", CheckpointError), ("a.json", '{"alpha": NaN}', CheckpointError),
        ("a.json", "", CheckpointError), ("a.yaml", "alpha: 0.5", ConfigError), ("a", "alpha = 0.5", ConfigError),
    ],
    ids=range(17),
)  # fmt: skip
def test_a_file_that_cannot_be_meant_is_refused(name, text, error, tmp_path):
    """Malformed, too large, too deep or of another kind: four lines that name the file, quickly."""
    with pytest.raises(error) as caught:
        read_schedule(write(tmp_path, text, name))
    assert name in caught.value.where
    assert all((caught.value.expected, caught.value.got, caught.value.hint))
