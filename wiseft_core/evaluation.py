"""Which alpha: the user's command is run on an output, its metrics are read, and outputs are compared by them.

Ground of the verbs: standard library only. What the command says is not trusted, and never held in memory whole.
"""

from __future__ import annotations

import json
import math
import shlex
import signal
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, Final, NamedTuple, TextIO

from wiseft_core.child import LINE_LIMIT, NotStarted, run_child
from wiseft_core.errors import ConfigError, EvaluationFailed, WiseftError, listed, nearest, show

MODEL: Final = "{model}"
DIRECTIONS: Final = ("max", "min")


Function = Callable[[Path], Mapping[str, float] | float]
"""An evaluation in Python: from an output's folder to its metrics, or to a lone one."""


class Metric(NamedTuple):
    """A number that the command reports, and whether the largest or the smallest is best."""

    name: str
    direction: str

    def cost(self, metrics: Mapping[str, float]) -> float:
        """This metric's value among `metrics`, turned so that less is better."""
        return metrics[self.name] if self.direction == "min" else -metrics[self.name]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What the command said of one output.

    Attributes:
        alpha: The output's coefficient, as the canonical decimal.
        folder: Name of the output's folder; None if there is none.
        metrics: Every number that the command reported; None if it failed or there was no command.
        error: Why there are no metrics; None if there was no command.
    """

    alpha: str
    folder: str | None = None
    metrics: Mapping[str, float] | None = None
    error: WiseftError | None = None


def parse_metric(text: str) -> Metric:
    """The metric that `NAME:max` or `NAME:min` means; the name may hold colons itself.

    Raises:
        ConfigError: There is no name, or no direction.
    """
    name, colon, direction = text.rpartition(":")
    if name.strip() and direction in DIRECTIONS:
        return Metric(name.strip(), direction)
    said = f"the direction {direction!r}" if colon and direction else "no direction"
    raise ConfigError(
        f"metric {text!r}",
        expected="NAME:max or NAME:min",
        got="no name" if direction in DIRECTIONS else said,
        hint="max where more is better (accuracy), min where less is (loss)",
    )


def parse_metrics(texts: Sequence[str]) -> tuple[Metric, ...]:
    """The metrics of `texts`. The first chooses the best alpha, the first two make the Pareto set.

    Raises:
        ConfigError: `parse_metric` refuses one, or a name comes twice.
    """
    found = tuple(map(parse_metric, texts))
    twice = [name for name, count in Counter(metric.name for metric in found).items() if count > 1]
    if twice:
        raise ConfigError(
            "metrics — a name comes twice", expected="each once", got=listed(twice), hint="name each metric once"
        )
    return found


def parse_command(text: str) -> tuple[str, ...]:
    """The words of a command line, as a shell would split it; no shell will ever see them.

    Raises:
        ConfigError: No words, a quotation mark without its partner, or no `{model}` in any word.
    """
    try:
        words = tuple(shlex.split(text))
        problem = "" if any(MODEL in word for word in words) else f"no {MODEL} in it" if words else "nothing"
    except ValueError as error:
        words, problem = (), str(error)
    if not problem:
        return words
    raise ConfigError(
        f"evaluation command {text!r}",
        expected=f"a command line that names the folder to evaluate as {MODEL}",
        got=problem,
        hint=f"for example: python evaluate.py {MODEL}",
    )


def run_evaluation(
    argv: Sequence[str], model: Path, metrics: Sequence[Metric], *, stderr: TextIO | None
) -> dict[str, float]:
    """Run a command on an output, and read the last line of its stdout that is not blank.

    That line is a JSON object of metrics, or, if one metric is asked for, a number alone. The command gets no shell, no
    input and a process group of its own, which ends with it: nothing that it started there outlives this call. Memory
    is bounded whatever it prints.

    Args:
        argv: The command's words; `{model}` in a word becomes the absolute path of `model`.
        model: The folder to evaluate.
        metrics: What the command must report.
        stderr: Gets what the command says on stderr, while it says it.
    Returns:
        All finite numbers of the object.
    Raises:
        EvaluationFailed: The command cannot be run, fails, or does not report every metric as a finite number.
    """
    folder = model.absolute()
    try:
        return _read(_last_words([word.replace(MODEL, str(folder)) for word in argv], stderr), metrics)
    except _Failed as failed:
        problem, expected, got, *hint = failed.args
    raise EvaluationFailed(
        f"evaluation of {model.name} — {problem}",
        expected=expected,
        got=_shown(got, folder),
        hint=hint[0] if hint else f"run it by hand: {shlex.join(argv).replace(shlex.quote(MODEL), MODEL)}",
    )


def call_evaluation(function: Function, model: Path, metrics: Sequence[Metric]) -> dict[str, float]:
    """Call a function with an output's absolute path; what it gives is judged as what a command prints.

    Raises:
        EvaluationFailed: It raises anything, or does not give every metric as a finite number.
    """
    where, wanted = f"evaluation of {model.name}", f"a mapping with {', '.join(metric.name for metric in metrics)}"
    folder = model.absolute()
    try:
        value = function(folder)
    except Exception as error:
        got = _shown(f"{type(error).__name__}: {error}", folder)
        raise EvaluationFailed(where, expected=wanted, got=got, hint="see the exception that caused this") from error
    try:
        given = value if isinstance(value, Mapping) else {metric.name: value for metric in metrics[:1]}
        return _chosen(given, metrics, wanted)
    except _Failed as failed:
        problem, expected, got, *hint = failed.args
    hint = hint or ["return numbers, by the names of the metrics"]
    raise EvaluationFailed(f"{where} — {problem}", expected=expected, got=_shown(got, folder), hint=hint[0])


def _shown(text: str, folder: Path) -> str:
    """What an evaluation said, in the same words wherever the output lies."""
    return show(text.replace(str(folder), MODEL), limit=500)


def best(evaluations: Sequence[Evaluation], metric: Metric) -> Evaluation | None:
    """The evaluation that is best by `metric`, of equals the one with the smallest alpha; None if all failed."""
    done = [(metric.cost(e.metrics), float(e.alpha), at) for at, e in enumerate(evaluations) if e.metrics is not None]
    return evaluations[min(done)[-1]] if done else None


def pareto(evaluations: Sequence[Evaluation], first: Metric, second: Metric) -> tuple[Evaluation, ...]:
    """Those of `evaluations`, in their order, that no other beats: at least as good in both metrics, better in one."""
    costs = [None if e.metrics is None else (first.cost(e.metrics), second.cost(e.metrics)) for e in evaluations]
    points = {cost for cost in costs if cost is not None}
    beaten = {mine for mine in points for x, y in points if x <= mine[0] and y <= mine[1] and (x, y) != mine}
    return tuple(e for e, cost in zip(evaluations, costs, strict=True) if cost is not None and cost not in beaten)


def experiment_record(
    evaluations: Sequence[Evaluation], *, command: str | None, metrics: Sequence[Metric]
) -> dict[str, Any]:
    """What sweep.json says: each output's metrics, the best alpha by the first, the Pareto set by the first two.

    Args:
        evaluations: One for each output, in order.
        command: The command line as it was given; None if there was none.
        metrics: What was asked for.
    """
    winner = best(evaluations, metrics[0]) if metrics else None
    front = pareto(evaluations, *metrics[:2]) if len(metrics) > 1 else ()
    outputs = [
        {
            "alpha": e.alpha,
            "folder": e.folder,
            "metrics": None if e.metrics is None else dict(e.metrics),
            "error": None if e.error is None else e.error.as_dict(),
        }
        for e in evaluations
    ]
    return {
        "format": "wiseft-sweep/1",
        "outputs": outputs,
        "eval": command,
        "metrics": [metric._asdict() for metric in metrics],
        "best": None if winner is None else winner.alpha,
        "pareto": [e.alpha for e in front],
    }


def record_bytes(record: Mapping[str, Any]) -> bytes:
    """The file that holds `record`: the same for the same record."""
    return (json.dumps(record, indent=2, sort_keys=True, allow_nan=False) + "\n").encode("ascii")


class _Failed(Exception):
    """Problem, expected, got and perhaps hint of a failed evaluation; `run_evaluation` says of what."""


def _last_words(argv: Sequence[str], stderr: TextIO | None) -> bytes:
    """The last line on the stdout of a command that ran and succeeded."""
    try:
        status, said, complaint = run_child(argv, stderr)
    except NotStarted as error:
        hint = "check the spelling, PATH and the file's permissions"
        raise _Failed("the command cannot be run", "a program that can be run", f"{argv[0]}: {error}", hint) from None
    if status:
        why = f"exit status {status}" if status > 0 else f"{signal.strsignal(-status)} (signal {-status})"
        last = complaint.decode("utf-8", "replace") or "nothing"
        raise _Failed("the command failed", "exit status 0", f"{why}; last on stderr: {last}")
    return said


def _read(line: bytes, metrics: Sequence[Metric]) -> dict[str, float]:
    """The numbers of the line that a command ended with."""
    one = len(metrics) == 1
    wanted = (
        f"a JSON object with {', '.join(metric.name for metric in metrics) or 'metrics'}" + " or a number alone" * one
    )
    problem = "the last line on stdout is not what was asked for"
    shown = line.decode("utf-8", "replace")
    if not line:
        raise _Failed("the command printed nothing", f"as the last line on stdout {wanted}", "no output")
    if len(line) > LINE_LIMIT:
        raise _Failed(problem, wanted, f"more than {LINE_LIMIT} bytes: {shown}")
    try:
        value = json.loads(line.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise _Failed(problem, wanted, f"{error}: {shown}") from None
    if one and _number(value) is not None:
        value = {metrics[0].name: value}
    if not isinstance(value, dict):
        raise _Failed(problem, wanted, shown)
    return _chosen(value, metrics, wanted)


def _chosen(value: Mapping[str, object], metrics: Sequence[Metric], wanted: str) -> dict[str, float]:
    """All finite numbers among what was reported, where every asked metric is one of them."""
    numbers = {name: number for name, given in value.items() if (number := _number(given)) is not None}
    for name, _ in metrics:
        if name not in value:
            near = nearest(name, value, cutoff=0.4)
            hint = f"the nearest: {', '.join(near)}" if near else f"it has {listed(value) or 'no names'}"
            raise _Failed(f"no metric {name!r}", wanted, f"{len(value)} other names", hint)
        if not math.isfinite(numbers.get(name, math.nan)):
            raise _Failed(f"metric {name!r} is not a finite number", wanted, f"{value[name]}")
    return {name: number for name, number in numbers.items() if isinstance(name, str) and math.isfinite(number)}


def _number(value: object) -> float | None:
    """`value` as a float, infinite if it is too large; None if it is no number."""
    if isinstance(value, bool) or not isinstance(value, Real):  # numpy's numbers are Real too
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """The object of `pairs`, each name once."""
    twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
    if twice:
        raise ValueError(f"said twice: {listed(twice)}")
    return dict(pairs)


def _refuse(name: str) -> float:
    """NaN and the infinities, which are not JSON."""
    raise ValueError(f"{name} is not JSON")
