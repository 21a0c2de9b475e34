"""`wiseft sweep`: what it writes, what it says, and how it says no."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

import wiseft_core
from wiseft_core import save_sweep, sweep
from wiseft_core.cli import main

SCHEMAS = Path(wiseft_core.__file__).parent / "schemas"
FOUR_LINES = re.compile(r"\w+: .+\n  expected  (?!-\n).+\n  got       (?!-\n).+\n  hint      (?!-\n).+\n")


def command(code):
    """An evaluation in a few words of Python, where `alpha` is the output's alpha and `path` its folder."""
    start = "import os, sys, json; path = sys.argv[1]; alpha = float(path.rpartition('alpha-')[2]); "
    return shlex.join([sys.executable, "-I", "-S", "-c", start + code, "{model}"])


BOTH = command("print(json.dumps({'acc': 1 - abs(alpha - 0.3), 'loss': 1 - alpha}))")
LONE = command("print('some words'); print(alpha)")
FAILING = command("print(alpha) if alpha != 0.5 else sys.exit('no luck with ' + path)")


def tree(folder):
    """Relative name and bytes of every file."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def args(model, *more, alphas=("0", "0.5", "1")):
    """A `sweep` command line."""
    asked = [word for alpha in alphas for word in ("--alpha", alpha)]
    return ["sweep", str(model.base), str(model.adapter), str(model.out), *asked, *more]


def refused(model, capsys, name, code, *more, **options):
    """Four lines on stderr, or one JSON object on stdout; nothing is written. The lines."""
    before = sorted(model.out.parent.rglob("*"))
    assert main(args(model, *more, **options)) == code
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith(f"{name}: ") and FOUR_LINES.match(said.err), said.err
    assert main(args(model, *more, "--json", **options)) == code
    told = capsys.readouterr()
    assert told.err == ""
    jsonschema.validate(json.loads(told.out), json.loads((SCHEMAS / "error.schema.json").read_text()))
    assert sorted(model.out.parent.rglob("*")) == before
    return said.err


def test_it_writes_what_python_writes(model, capsys):
    """Every file of every output, and sweep.json."""
    assert main(args(model, "--quiet", "--eval", BOTH, "--metric", "acc:max", "--metric", "loss:min")) == 0
    assert capsys.readouterr() == ("", "")
    from wiseft_core.evaluation import Metric

    views = sweep(model.base, model.adapter, [0, 0.5, 1])
    metrics = [Metric("acc", "max"), Metric("loss", "min")]
    save_sweep(views, model.out.parent / "python", evaluate=BOTH, metrics=metrics)
    assert tree(model.out) == tree(model.out.parent / "python")


@pytest.mark.parametrize(
    ("alphas", "folders"),
    [
        (["0:1:0.25"], ["alpha-0", "alpha-0.25", "alpha-0.5", "alpha-0.75", "alpha-1"]),
        (["1", "0.50", "1e-7"], ["alpha-1", "alpha-0.5", "alpha-1e-7"]), (["0.7:0.9:0.1", "0"],
        ["alpha-0.7", "alpha-0.8", "alpha-0.9", "alpha-0"]), (["-0.0"], ["alpha-0"]),
    ],
)  # fmt: skip
def test_alphas_name_the_folders(model, alphas, folders):
    """Given again, as a spread, or both: canonical names, in the order asked for."""
    assert main(args(model, "--quiet", "--no-sync", alphas=alphas)) == 0
    record = json.loads((model.out / "sweep.json").read_text())
    assert [one["folder"] for one in record["outputs"]] == folders
    assert sorted(os.listdir(model.out)) == sorted([*folders, "sweep.json"])


def test_each_output_verifies(model, capsys):
    """An output of a sweep is an output like any other, and verify passes what `interpolate` would have made."""
    assert main(args(model, "--quiet", "--alpha-for", "*.mlp.*=0.25")) == 0
    against = ["--base", str(model.base), "--adapter", str(model.adapter)]
    assert main(["verify", str(model.out / "alpha-0.5"), *against]) == 0
    assert main([*model.args("--quiet", "--alpha-for", "*.mlp.*=0.25")[:3], str(model.out.parent / "one"), "--alpha",
                 "0.5", "--alpha-for", "*.mlp.*=0.25", "--quiet"]) == 0  # fmt: skip
    assert tree(model.out.parent / "one") == tree(model.out / "alpha-0.5")


def test_the_table(model, capsys):
    """A row for each alpha, the best and the Pareto set marked, on stdout; progress is not."""
    metrics = ["--metric", "acc:max", "--metric", "loss:min"]
    assert main(args(model, "--eval", BOTH, *metrics, "--plot", str(model.out / "curve.png"))) == 0
    said = capsys.readouterr().out
    rows = [line.split() for line in said.splitlines() if line[:1].isdigit() or line.startswith("alpha  acc")]
    assert rows == [
        ["alpha", "acc:max", "loss:min"],
        ["0", "0.7", "1"],
        ["0.5", "0.8", "0.5", "best,", "Pareto"],
        ["1", "0.3", "0", "Pareto"],
    ]
    assert re.search(r"^wrote +\S+out: 3 outputs, ", said, re.MULTILINE)
    assert re.search(r"^best +alpha 0\.5$", said, re.MULTILINE)
    assert re.search(r"^Pareto +0\.5, 1$", said, re.MULTILINE)
    assert (model.out / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_a_failed_evaluation_is_exit_code_1(model, capsys):
    """The others are there, the failure is in the table with its reason, and what it said is on stderr."""
    assert main(args(model, "--eval", FAILING, "--metric", "acc:max")) == 1
    said = capsys.readouterr()
    assert re.search(r"^0\.5 +- +failed$", said.out, re.MULTILINE)
    assert re.search(r"^1 +1 +best$", said.out, re.MULTILINE)
    assert "EvaluationFailed: evaluation of alpha-0.5" in said.out and "no luck with {model}" in said.out
    assert f"no luck with {model.out / 'alpha-0.5'}" in said.err
    record = json.loads((model.out / "sweep.json").read_text())
    assert [one["error"] is None for one in record["outputs"]] == [True, False, True]
    assert main(args(model, "--resume", "--quiet", "--eval", FAILING, "--metric", "acc:max")) == 1


def test_a_metric_that_is_not_there_is_a_failure_of_each(model, capsys):
    """Unknown to the command, or nothing printed: exit 1, every output kept, the nearest name shown."""
    assert main(args(model, "--eval", BOTH, "--metric", "accu:max")) == 1
    said = capsys.readouterr().out
    assert said.count("no metric 'accu'") == 3 and "the nearest: acc" in said
    assert main(args(model, "--resume", "--eval", command("pass"), "--metric", "acc:max")) == 1
    assert capsys.readouterr().out.count("the command printed nothing") == 3
    assert len(os.listdir(model.out)) == 4


@pytest.mark.parametrize("keep", ["all", "best"])
def test_json_is_the_record(model, capsys, keep):
    """One object that fits its schema and is what sweep.json says; nothing on stderr, failures included."""
    more = ["--json", "--keep", keep, "--eval", FAILING, "--metric", "acc:max"]
    assert main(args(model, *more)) == 1
    said = capsys.readouterr()
    assert said.err == ""
    record = json.loads(said.out)
    jsonschema.validate(record, json.loads((SCHEMAS / "sweep.schema.json").read_text()))
    assert record == json.loads((model.out / "sweep.json").read_text())
    assert record["best"] == "1" and record["eval"] == FAILING


def test_keep_best(model, capsys):
    """The best alone is there, and said to be; where all fail there is nothing, and exit code 1."""
    assert main(args(model, "--keep", "best", "--eval", LONE, "--metric", "acc:min")) == 0
    assert re.search(r"^0 +0 +best$", capsys.readouterr().out, re.MULTILINE)
    assert sorted(os.listdir(model.out)) == ["alpha-0", "sweep.json"]
    model = type(model)(model.base, model.adapter, model.out.parent / "none")
    lines = refused(
        model,
        capsys,
        "EvaluationFailed",
        1,
        "--keep",
        "best",
        "--quiet",
        "--eval",
        "false {model}",
        "--metric",
        "a:max",
    )
    assert lines.count("EvaluationFailed: ") == 3


def test_without_an_evaluation(model, capsys):
    """Outputs alone: no table, no best."""
    assert main(args(model)) == 0
    said = capsys.readouterr().out
    assert "best" not in said and "acc" not in said
    assert re.search(r"^alpha +0, 0\.5, 1$", said, re.MULTILINE)


def test_a_finished_sweep_is_resumed(model, capsys):
    """Nothing is written again, and it says so; without --resume it is in the way."""
    assert main(args(model, "--quiet")) == 0
    before = tree(model.out)
    assert main(args(model, "--resume")) == 0
    assert "this output is finished already" in capsys.readouterr().out
    refused(model, capsys, "CheckpointError", 3)
    refused(model, capsys, "ConfigError", 3, "--resume", alphas=("0", "0.5"))
    assert tree(model.out) == before


METRIC = ("--metric", "acc:max")


@pytest.mark.parametrize(
    ("more", "alphas", "name", "said"),
    [
        ((), ("0.5", "0.50"), "ConfigError", "0.5"), ((), ("0:1:0.5", "1"), "ConfigError", "comes twice"),
        ((), ("0", "-0"), "ConfigError", "comes twice"), ((), ("0:1:0.0001",), "ConfigError", "more numbers"),
        ((), ("0:1:-1",), "ConfigError", "the other way"), ((), ("1.5",), "BadAlpha", "1.5"),
        ((), ("0:2:1",), "BadAlpha", "2"), ((), ("nan",), "BadAlpha", "nan"), ((), ("1e400",), "BadAlpha", "inf"),
        (("--alpha-for", "*.mpl.*=0.5"), ("0", "1"), "UnusedPattern", "*.mpl.*"),
        (("--alpha-for", "*q_proj*=1", "--alpha-for", "*_proj.*=0"), ("0",), "UnusedPattern", "q_proj"),
        (("--alpha-for", "x"), ("0",), "ConfigError", "x"), (("--eval", LONE), ("0",), "ConfigError", "no metrics"),
        (METRIC, ("0",), "ConfigError", "without it"), (("--eval", "x", *METRIC), ("0",), "ConfigError", "{model}"),
        (("--eval", LONE, "--metric", "acc"), ("0",), "ConfigError", "no direction"),
        (("--eval", LONE, *METRIC, *METRIC), ("0",), "ConfigError", "comes twice"),
        (("--eval", LONE, *METRIC, "--plot", "curve.pdf"), ("0",), "ConfigError", ".svg"),
        (("--eval", LONE, *METRIC, "--plot", "no/such/curve.png"), ("0",), "ConfigError", "folder"),
        (("--plot", "curve.png"), ("0",), "ConfigError", "picture"),
        (("--keep", "some"), ("0",), "ConfigError", "some"),
        (("--keep", "best"), ("0",), "ConfigError", "without an evaluation"),
        (("--keep", "best", "--resume", "--eval", LONE, *METRIC), ("0",), "ConfigError", "resume"),
        (("--max-output", "1KB"), ("0", "0.5", "1"), "ConfigError", "bytes"),
        (("--output-dtype", "int8"), ("0",), "ConfigError", "int8"),
    ],
    ids=range(25),
)  # fmt: skip
def test_a_bad_value_is_refused_before_anything_is_written(model, capsys, more, alphas, name, said):
    """Exit code 3 in four lines that name the culprit."""
    assert said in refused(model, capsys, name, 3, *more, alphas=alphas)


@pytest.mark.parametrize("alphas", [(), ("abc",), ("0:1",), ("0:1:0",), ("0:1:nan",), ("0:1:inf",), ("",)], ids=str)
def test_a_command_line_that_cannot_be_parsed(model, capsys, alphas):
    """Exit code 2, and the usage."""
    assert "wiseft sweep" in refused(model, capsys, "BadCommandLine", 2, alphas=alphas)


def test_a_base_that_does_not_fit_is_refused(model, capsys):
    """As for `interpolate`."""
    model.edit_config(peft_type="NOPE")
    refused(model, capsys, "Unsupported", 4)


def test_torch_is_not_imported_for_a_refusal(model):
    """A bad alpha, metric or adapter is told within the time that Python takes to start."""
    model.edit_config(lora_alpha=None)
    code = (
        "import sys; from wiseft_core.cli import main; code = main(sys.argv[1:]); print(code, 'torch' in sys.modules)"
    )
    for more, wanted in (([], "3 False"), (["--metric", "acc"], "3 False"), (["--alpha", "x"], "2 False")):
        done = subprocess.run([sys.executable, "-c", code, *args(model, *more)], capture_output=True, text=True)
        assert done.stdout.strip() == wanted, done.stderr


@pytest.mark.parametrize("place", ["base", "adapter", "out/alpha-0"])
def test_a_picture_in_an_input_or_output_is_refused(place, model, capsys):
    """Inputs are never written to, and an output with one file more would not verify; nothing is written."""
    picture = model.out.parent / place / "curve.png"
    assert main(args(model, "--resume", alphas=("0",))) == 0
    before = sorted(model.out.parent.rglob("*"))
    assert main(args(model, "--resume", "--eval", LONE, *METRIC, "--plot", str(picture), alphas=("0",))) == 3
    assert "picture would be drawn into" in capsys.readouterr().err
    assert sorted(model.out.parent.rglob("*")) == before


def test_a_schedule_holds_for_every_output(model, capsys):
    """A file with patterns stands beside --alpha; one with an alpha for all tensors is a second one: refused."""
    name, file = "model.layers.0.self_attn.q_proj.weight", model.out.parent / "alpha.toml"
    file.write_text(f'[for]\n"{name}" = 0.25\n')
    assert main(args(model, "--quiet", "--schedule", str(file), alphas=("0", "1"))) == 0
    for alpha in ("0", "1"):
        recorded = json.loads((model.out / f"alpha-{alpha}" / "wiseft.json").read_text())["alpha"]
        assert recorded.pop(name) == "0.25"
        assert set(recorded.values()) == {alpha}
    file.write_text("alpha = 0.5\n")
    assert main(args(model, "--schedule", str(file), alphas=("0", "1"))) == 3
    assert "one alpha for each name or glob" in capsys.readouterr().err


def test_failures_are_shown_in_quiet_runs(model, capsys):
    """--quiet is nothing but errors: a failed evaluation is one, and the outputs stay."""
    assert main(args(model, "--quiet", "--eval", FAILING, *METRIC)) == 1
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("EvaluationFailed: ") == 1
    assert (model.out / "alpha-0.5" / "wiseft.json").exists()


def test_a_second_one_is_locked_out_while_the_first_evaluates(model, capsys):
    """The lock that made the outputs is held until the last evaluation: a second run gets exit 7, inside it."""
    again = model.out.parent / "again.json"  # in a file: what stands for the folder is the inner run's own
    again.write_text(json.dumps([*args(model, "--resume", "--quiet", "--eval", LONE, *METRIC)]))
    run = f"import json, sys; from wiseft_core.cli import main; print(main(json.load(open({str(again)!r}))))"
    assert main(args(model, "--quiet", "--eval", shlex.join([sys.executable, "-c", run, "{model}"]), *METRIC)) == 0
    record = json.loads((model.out / "sweep.json").read_text())
    assert [output["metrics"] for output in record["outputs"]] == [{"acc": 7.0}] * 3
    assert not (model.out.parent / f".{model.out.name}.wiseft-staging").exists()


def test_verify_says_which_folder_is_an_output(model, capsys):
    """A sweep's folder has no manifest of its own: the hint names one that has."""
    assert main(args(model, "--quiet")) == 0
    assert main(["verify", str(model.out)]) == 3
    said = capsys.readouterr().err
    assert "alpha-0, alpha-0.5, alpha-1" in said and f"verify one of them: {model.out / 'alpha-0'}" in said
