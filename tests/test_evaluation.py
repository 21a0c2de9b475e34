"""Metrics from a user's command: what is read, what is refused and how, and which outputs are best by them."""

from __future__ import annotations

import io
import json
import math
import re
import shlex
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wiseft_core.errors import ConfigError, EvaluationFailed
from wiseft_core.evaluation import (
    Evaluation,
    Metric,
    best,
    experiment_record,
    pareto,
    parse_command,
    parse_metric,
    parse_metrics,
    record_bytes,
    run_evaluation,
)

FOUR_LINES = re.compile(r"\w+: .+\n  expected  (?!-\n).+\n  got       (?!-\n).+\n  hint      (?!-$).+")
ACC, LOSS = Metric("acc", "max"), Metric("loss", "min")


def says(line, *, status=0, stderr=""):
    """A command that prints `line`."""
    code = f"import sys; sys.stderr.write({stderr!r}); sys.stdout.buffer.write({line!r}); sys.exit({status})"
    return (sys.executable, "-c", code, "{model}")


def evaluated(line, metrics=(ACC,), **more):
    """What is read of a command that prints `line`."""
    return run_evaluation(says(line, **more), Path("alpha-0.5"), metrics, stderr=None)


def refused(argv, *words, model=Path("alpha-0.5"), metrics=(ACC,)):
    """The error of a command, in four lines that hold `words` and name the output, the same wherever it lies."""
    with pytest.raises(EvaluationFailed) as caught:
        run_evaluation(argv, model, metrics, stderr=None)
    text = str(caught.value)
    assert FOUR_LINES.fullmatch(text), text
    assert caught.value.exit_code == 1
    assert model.name in caught.value.where
    assert str(model.absolute()) not in json.dumps(caught.value.as_dict())
    assert all(word in text for word in words), text
    return caught.value


def test_metrics_are_a_name_and_a_direction():
    """The last colon parts them, so that names may hold colons."""
    assert parse_metrics(["eval/acc:top1:max", "loss:min"]) == (Metric("eval/acc:top1", "max"), Metric("loss", "min"))
    assert parse_metrics([]) == ()


@pytest.mark.parametrize("text", ["acc", "acc:", ":max", " :min", "acc:up", "acc:MAX", "", "max"])
def test_anything_else_is_no_metric(text):
    """No name or no direction is refused with the form that is wanted."""
    with pytest.raises(ConfigError) as caught:
        parse_metric(text)
    assert FOUR_LINES.fullmatch(str(caught.value))
    assert "NAME:max" in caught.value.expected


def test_a_direction_that_is_none_is_told():
    """Another word than max and min is repeated; where there is no colon, nothing is."""
    for text, got in (
        ("acc:best", "the direction 'best'"),
        ("acc", "no direction"),
        ("acc:", "no direction"),
        (":max", "no name"),
    ):
        with pytest.raises(ConfigError) as caught:
            parse_metric(text)
        assert caught.value.got == got


def test_a_metric_is_named_once():
    """The same name twice is refused, whatever the directions."""
    with pytest.raises(ConfigError, match="got       acc") as caught:
        parse_metrics(["acc:max", "loss:min", "acc:min"])
    assert FOUR_LINES.fullmatch(str(caught.value))


@pytest.mark.parametrize(
    ("text", "word"),
    [("", "nothing"), ("  ", "nothing"), ("python e.py", "no {model}"), ("python 'e.py {model}", "quotation"),
     ("python { model }", "no {model}")],
)  # fmt: skip
def test_commands_that_cannot_be_meant(text, word):
    """No words, an open quotation and a command that would evaluate every output alike are refused."""
    with pytest.raises(ConfigError) as caught:
        parse_command(text)
    assert FOUR_LINES.fullmatch(str(caught.value))
    assert word in caught.value.got


def test_no_shell_sees_the_command(tmp_path):
    """Every word arrives as it was written; `{model}` becomes one absolute path inside its word, spaces and all."""
    words = ["--model={model}", "{model}/{model}", ";", "touch", "x", "$(touch y)", "`touch z`", "*", "a b", "&", "|"]
    code = "import json, sys; json.dump(sys.argv[1:], open('said', 'w')); print(1)"
    text = f"{shlex.join([sys.executable, '-c', code])} --model={{model}} {{model}}/{{model}} "
    text += "';' touch x '$(touch y)' '`touch z`' '*' 'a b' '&' '|'"
    model = tmp_path / "a folder; touch w" / "alpha-0.5"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert run_evaluation(parse_command(text), model, [ACC], stderr=None) == {"acc": 1.0}
    assert json.loads((tmp_path / "said").read_text()) == [word.replace("{model}", str(model)) for word in words]
    assert [path.name for path in tmp_path.iterdir()] == ["said"]


def test_a_relative_output_is_made_absolute(tmp_path, monkeypatch):
    """A command that changes its directory still finds the output."""
    monkeypatch.chdir(tmp_path)
    code = "import sys; print(len(sys.argv[1]))"
    found = run_evaluation((sys.executable, "-c", code, "{model}"), Path("out"), [ACC], stderr=None)
    assert found == {"acc": len(str(tmp_path / "out"))}


def test_all_numbers_of_the_object_are_kept():
    """Asked for or not, numbers are metrics; text, truth values and what is inside other values are none."""
    line = (
        b'progress 1\n{"acc": 1, "loss": 2.5e-3, "n": -7, "name": "x", "ok": true, "null": null, "deep": {"a": 1}}\n\n'
    )
    found = evaluated(line, (ACC, LOSS))
    assert found == {"acc": 1.0, "loss": 0.0025, "n": -7.0}
    assert {type(value) for value in found.values()} == {float}
    assert evaluated(b'{"acc": 0, "huge": 1e999, "wide": 1%s}' % (b"0" * 400)) == {"acc": 0.0}


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_come_back_exactly(value):
    """A number alone, and one in an object, is the very float that Python's repr spells. (The command is `echo`.)"""
    for line in (repr(value), json.dumps({"acc": value})):
        assert run_evaluation(("echo", line), Path("x"), [ACC], stderr=None) == {"acc": value}


def test_stderr_reaches_the_user():
    """What the command says on stderr is passed on, and is no result."""
    heard = io.StringIO()
    assert run_evaluation(says(b"0.5", stderr="10%\r20%\n"), Path("x"), [ACC], stderr=heard) == {"acc": 0.5}
    assert heard.getvalue() == "10%\r20%\n"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"", ["nothing", "no output"]),
        (b" \n \n", ["nothing", "no output"]),
        (b"acc = 0.5", ["acc = 0.5", "a number alone"]),
        (b"{'acc': 0.5}", ["{'acc': 0.5}"]),
        (b"0.5\nbye", ["bye"]),
        (b"true", ["true"]), (b"null", ["null"]), (b'"0.5"', ['"0.5"']), (b"[0.5]", ["[0.5]"]),
        (b"NaN", ["NaN is not JSON"]), (b'{"acc": 1, "x": -Infinity}', ["-Infinity is not JSON"]),
        (b'{"acc": 1, "acc": 2}', ["said twice: acc"]), (b'{"acc": 1, "x": {"b": 1, "b": 1}}', ["said twice: b"]),
        (b'{"acc": 1} x', ["Extra data"]), (b"\xff", ["utf-8"]), ("1".encode("utf-16"), ["utf-8"]),
        (b"[" * 100_000, ["[[["]), (b"1" * 5000, ["111"]),
        (b'{"accuracy": 1, "loss": 2}', ["'acc'", "the nearest: accuracy"]),
        (b'{"zzz": 1}', ["'acc'", "it has zzz"]), (b"{}", ["'acc'", "no names"]),
        (b'{"acc": "0.5"}', ["not a finite number", '"0.5"']), (b'{"acc": true}', ["true"]),
        (b'{"acc": null}', ["null"]), (b'{"acc": [1]}', ["[1]"]), (b'{"acc": 1e999}', ["got       inf"]),
        (b"1e999", ["acc"]),
        (b'{"\x1b[31m": 1}', ["\\x1b"]),
    ],
)  # fmt: skip
def test_what_is_no_result_is_refused(line, words):
    """Anything but one strict JSON object with every metric, or one number, is refused with what was said instead."""
    refused(says(line), *words)


def test_a_line_without_end_is_refused():
    """Of a last line above a MiB only the start is kept, so it is no result, even if that start is one."""
    code = "print('1' + ' ' * (1 << 20) + '2')"
    refused((sys.executable, "-c", code, "{model}"), "more than 1048576 bytes: 1")


def test_a_number_alone_is_one_metric():
    """With two metrics asked for, or none, a number alone could be any of them."""
    error = refused(says(b"0.5"), "a JSON object with acc, loss", "0.5", metrics=(ACC, LOSS))
    assert "alone" not in error.expected
    refused(says(b"0.5"), "a JSON object", metrics=())
    assert evaluated(b'{"x": 1}', ()) == {"x": 1.0}


def test_a_command_that_fails_is_told_with_its_last_words():
    """Status or signal, the last line of stderr, and how to run it again; a result printed before counts nothing."""
    error = refused(says(b"0.5", status=3, stderr="Traceback\nValueError: boo\n\n"), "exit status 3", "ValueError: boo")
    assert "run it by hand" in error.hint
    refused(says(b"", status=1), "on stderr: nothing")
    killed = (sys.executable, "-c", "import os; os.kill(os.getpid(), 9)", "{model}")
    refused(killed, "(signal 9)")
    missing = (sys.executable, "-c", "import sys; sys.exit('no file ' + sys.argv[1])", "{model}")
    refused(missing, "no file {model}")
    far = Path("x" * 200) / ("y" * 200) / "alpha-0.5"
    refused((sys.executable, "-c", "import sys; sys.exit(sys.argv[1] + ' ' + sys.argv[1])", "{model}"), model=far)
    refused((sys.executable, "-c", "import sys; print([sys.argv[1]] * 9)", "{model}"), model=far)
    refused(says(b"", status=1, stderr="\x1b]0;x\x07" + "y" * 5000), "\\x1b]0;x\\x07yyy")


def test_a_command_that_cannot_run(tmp_path):
    """Not found, not executable, and a NUL: told with the reason, and the next evaluation can go on."""
    (tmp_path / "tool").write_text("")
    refused(("no-such-program-here", "{model}"), "no-such-program-here: No such file")
    refused((str(tmp_path / "tool"), "{model}"), "Permission denied")
    refused(("echo", "\0{model}"), "null byte")


values = st.sampled_from([-1.0, 0.0, -0.0, 0.5, 1.0])
lists = st.lists(st.none() | st.tuples(values, values), max_size=9)
directions = st.sampled_from(["max", "min"])


def evaluations(points):
    """One evaluation for each point, alphas falling; None is a failed one."""
    alphas = [str(len(points) - at) for at in range(len(points))]
    return [
        Evaluation(alpha, None, None, EvaluationFailed("x")) if point is None else
        Evaluation(alpha, None, {"a": point[0], "b": point[1]})
        for alpha, point in zip(alphas, points, strict=True)
    ]  # fmt: skip


@given(lists, directions, directions)
def test_pareto_set_against_brute_force(points, first, second):
    """Sweeping from the best first value down, each new best of the second joins with its equals, and nothing else."""
    done = [e for e in evaluations(points) if e.metrics]
    flip = {"max": 1, "min": -1}
    kept, front = -math.inf, set()
    for x in sorted({flip[first] * e.metrics["a"] for e in done}, reverse=True):
        y = max(flip[second] * e.metrics["b"] for e in done if flip[first] * e.metrics["a"] == x)
        if y > kept:
            kept = y
            front.add((flip[first] * x, flip[second] * y))
    expected = [e.alpha for e in done if (e.metrics["a"], e.metrics["b"]) in front]
    found = pareto(evaluations(points), Metric("a", first), Metric("b", second))
    assert [e.alpha for e in found] == expected


@given(lists, directions)
def test_best_is_first_of_a_sort_by_value_then_alpha(points, direction):
    """Failed ones are left out; of equals the smallest alpha is best, whatever the order."""
    done = [e for e in evaluations(points) if e.metrics]
    by_alpha = sorted(done, key=lambda e: float(e.alpha))
    ordered = sorted(by_alpha, key=lambda e: e.metrics["a"], reverse=direction == "max")
    for given_order in (evaluations(points), evaluations(points)[::-1]):
        assert best(given_order, Metric("a", direction)) == (ordered[0] if ordered else None)


def test_record_says_all_and_nothing_of_the_machine(tmp_path):
    """The record's exact bytes: every number, the failure whole, the choice; no path, no time."""
    failing = says(b"", status=1, stderr="cannot read it\n")
    failed = refused(failing, model=tmp_path / "alpha-1")
    outputs = [Evaluation("0", "alpha-0", {"loss": 2.0, "acc": 0.5}), Evaluation("1", "alpha-1", None, failed)]
    record = experiment_record(outputs, command="python e.py {model}", metrics=[ACC, LOSS])
    assert record == {
        "format": "wiseft-sweep/1",
        "outputs": [
            {"alpha": "0", "folder": "alpha-0", "metrics": {"acc": 0.5, "loss": 2.0}, "error": None},
            {"alpha": "1", "folder": "alpha-1", "metrics": None, "error": failed.as_dict()},
        ],
        "eval": "python e.py {model}",
        "metrics": [{"name": "acc", "direction": "max"}, {"name": "loss", "direction": "min"}],
        "best": "0",
        "pareto": ["0"],
    }
    text = record_bytes(record).decode()
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True) + "\n"
    assert str(tmp_path) not in text
    assert record_bytes(experiment_record(outputs, command="python e.py {model}", metrics=[ACC, LOSS])) == text.encode()


def test_record_without_a_command():
    """A sweep that evaluates nothing has a record too."""
    record = experiment_record([Evaluation("0.5", "alpha-0.5")], command=None, metrics=[])
    assert record["eval"] is None
    assert record["metrics"] == record["pareto"] == []
    assert record["best"] is None
    assert record["outputs"] == [{"alpha": "0.5", "folder": "alpha-0.5", "metrics": None, "error": None}]
