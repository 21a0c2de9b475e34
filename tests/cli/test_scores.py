"""The table of a sweep's evaluations."""

from __future__ import annotations

from wiseft_core.cli.scores import scored
from wiseft_core.errors import EvaluationFailed
from wiseft_core.evaluation import Evaluation, Metric

ACC, LOSS = Metric("acc", "max"), Metric("loss", "min")


def test_table_marks_the_best_the_pareto_set_and_what_failed():
    """The exact table: six digits, marks, and the four lines of each failure below it."""
    why = EvaluationFailed("evaluation of alpha-1 — boo", expected="exit status 0", got="exit status 3", hint="look")
    outputs = [
        Evaluation("0", "alpha-0", {"acc": 0.5, "loss": 2, "other": 9}),
        Evaluation("0.25", "alpha-0.25", {"acc": 1234567.0, "loss": 1 / 3}),
        Evaluation("0.5", "alpha-0.5", {"acc": 0.25, "loss": 1e-9}),
        Evaluation("1", "alpha-1", None, why),
    ]
    assert scored(outputs, [ACC, LOSS]).splitlines() == [
        "alpha  acc:max      loss:min",
        "0      0.5          2",
        "0.25   1.23457e+06  0.333333  best, Pareto",
        "0.5    0.25         1e-09     Pareto",
        "1      -            -         failed",
        "",
        "EvaluationFailed: evaluation of alpha-1 — boo",
        "  expected  exit status 0",
        "  got       exit status 3",
        "  hint      look",
    ]


def test_one_metric_has_a_best_and_no_pareto_set():
    """Of equals the first alpha alone is marked."""
    outputs = [Evaluation("0.5", None, {"acc": 1.0}), Evaluation("0.25", None, {"acc": 1.0})]
    assert scored(outputs, [ACC]).splitlines() == ["alpha  acc:max", "0.5    1", "0.25   1        best"]


def test_nothing_evaluated_is_a_list_of_alphas():
    """Without metrics, and without any success, the table still stands."""
    assert scored([Evaluation("0.5", "alpha-0.5")], []).splitlines() == ["alpha", "0.5"]
    assert "best" not in scored([Evaluation("0.5", None, None, EvaluationFailed("x"))], [ACC, LOSS])


def test_names_are_safe_for_a_terminal():
    """Names of metrics are the user's, values of a command are anybody's: nothing raw gets through."""
    said = scored([Evaluation("0", None, {"\x1b[31m": 1.0})], [Metric("\x1b[31m", "max")])
    assert "\x1b" not in said
    assert "\\x1b[31m:max" in said
