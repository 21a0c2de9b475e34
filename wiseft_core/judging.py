"""How the outputs of a sweep are judged, and what is kept of it: metrics, the best alpha, sweep.json, the picture.

Verb floor, below `sweeping`. Outputs are folders here; how they are made is not known.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TextIO, TypeVar

from wiseft_core.curve import check_plot, render_curve
from wiseft_core.errors import CheckpointError, ConfigError, EvaluationFailed, WiseftError
from wiseft_core.evaluation import (
    DIRECTIONS,
    Evaluation,
    Function,
    Metric,
    best,
    call_evaluation,
    experiment_record,
    pareto,
    parse_command,
    record_bytes,
    run_evaluation,
)
from wiseft_core.record import other_job
from wiseft_core.report import Report
from wiseft_core.store.files import FILES, Files
from wiseft_core.store.strict_json import as_mapping, read_json
from wiseft_core.store.writer import write_file

RECORD: Final = "sweep.json"
E = TypeVar("E", bound=WiseftError)


@dataclass(frozen=True, slots=True)
class SweepReport:
    """What a sweep wrote, and what the evaluation said.

    Attributes:
        path: The folder of the outputs.
        reports: What was written, one for each output that is there.
        evaluations: One for each alpha, in the order asked for.
        metrics: What was asked of the evaluation; the first chooses the best alpha, the first two the Pareto set.
        command: The command line that evaluated; None if it was a function, or there was none.
    """

    path: str
    reports: tuple[Report, ...]
    evaluations: tuple[Evaluation, ...]
    metrics: tuple[Metric, ...] = ()
    command: str | None = None

    @property
    def best(self) -> Evaluation | None:
        """The best by the first metric; None without an evaluation, or if all failed."""
        return best(self.evaluations, self.metrics[0]) if self.metrics else None

    @property
    def pareto(self) -> tuple[Evaluation, ...]:
        """Those that no other beats in both of the first two metrics."""
        return pareto(self.evaluations, *self.metrics[:2]) if len(self.metrics) > 1 else ()

    @property
    def ok(self) -> bool:
        """Whether no evaluation failed."""
        return all(evaluation.error is None for evaluation in self.evaluations)

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON sees it: what sweep.json says."""
        return experiment_record(self.evaluations, command=self.command, metrics=self.metrics)


@dataclass(frozen=True, slots=True)
class Judge:
    """What is asked of every output.

    Attributes:
        evaluate: The command line or function; None: nothing is asked.
        metrics: What it reports.
        stderr: Gets what the command says on stderr.
        plot: Where to draw the curve.
    """

    evaluate: str | Function | None
    metrics: tuple[Metric, ...]
    stderr: TextIO | None = None
    plot: Path | None = None

    def check(self, out: Path) -> None:
        """Refuse what cannot work, before the first byte is written.

        Raises:
            ConfigError: An evaluation without metrics, or metrics or a picture without an evaluation; a metric or
                command that is none; a picture that cannot be drawn.
            Unsupported: matplotlib is not installed.
        """
        if (self.evaluate is None) != (not self.metrics) or (self.plot is not None and self.evaluate is None):
            raise ConfigError(
                "evaluation",
                expected="a command or function together with the metrics that it reports",
                got="metrics or a picture without it" if self.evaluate is None else "no metrics",
                hint="give --eval 'CMD {model}' and --metric NAME:max, both or neither",
            )
        for metric in self.metrics:
            if not isinstance(metric, Metric) or metric.direction not in DIRECTIONS:
                raise ConfigError(
                    f"metrics — {metric!r} is none",
                    expected='Metric(name, "max") or Metric(name, "min")',
                    got=f"the direction {metric.direction!r}" if isinstance(metric, Metric) else type(metric).__name__,
                    hint='for example Metric("accuracy", "max") of wiseft_core.evaluation',
                )
        if isinstance(self.evaluate, str):
            parse_command(self.evaluate)
        if self.plot is not None:
            inside = FILES.resolve(self.plot.parent) == FILES.resolve(out)  # a folder that is still to be made
            check_plot(out.absolute().parent / self.plot.name if inside else self.plot)

    def check_place(self, out: Path, inputs: Collection[tuple[int, int]], files: Files) -> None:
        """Refuse a picture in an input, which is never written to, or in an output, which would not verify any more.

        Raises:
            CheckpointError: It would be drawn there.
        """
        if self.plot is None:
            return
        folder, outputs = files.resolve(self.plot.parent), files.resolve(out)
        for place in (folder, *folder.parents):
            seen = files.status(place)
            if place.parent == outputs or (seen is not None and (seen.st_dev, seen.st_ino) in inputs):
                raise CheckpointError(
                    f"{self.plot} — the picture would be drawn into an input or an output",
                    expected="a place beside the outputs, or of its own",
                    got=f"{place} is one",
                    hint=f"draw it as {out / 'curve.png'}, or somewhere else",
                )

    @property
    def command(self) -> str | None:
        """The command line, for the record."""
        return self.evaluate if isinstance(self.evaluate, str) else None

    def judged(self, alpha: str, folder: Path, shards: Collection[str], files: Files) -> Evaluation:
        """One output evaluated; a failure is kept, not raised, and so is an evaluation that wrote to its shards."""
        if self.evaluate is None:
            return Evaluation(alpha, folder.name)
        before = state_of(folder, shards, files)
        try:
            if isinstance(self.evaluate, str):
                words = parse_command(self.evaluate)
                found = run_evaluation(words, folder, self.metrics, stderr=self.stderr)
            else:
                found = call_evaluation(self.evaluate, folder, self.metrics)
        except EvaluationFailed as error:
            return Evaluation(alpha, folder.name, None, error)
        if state_of(folder, shards, files) != before:
            return Evaluation(alpha, folder.name, None, changed(EvaluationFailed, folder))
        return Evaluation(alpha, folder.name, found)

    def write(self, folder: Path, evaluations: Sequence[Evaluation], files: Files, sync: bool) -> None:
        """Put sweep.json into a folder, at once, in the place of one that is there."""
        record = experiment_record(evaluations, command=self.command, metrics=self.metrics)
        _replace(folder / RECORD, record_bytes(record), files, sync)

    def draw(self, evaluations: Sequence[Evaluation], files: Files, sync: bool) -> None:
        """Draw the curve, if that is asked for."""
        if self.plot is not None:
            kind = self.plot.suffix.lower().removeprefix(".")
            _replace(self.plot, render_curve(evaluations, self.metrics, kind), files, sync)

    def remembered(self, out: Path, alphas: Sequence[str], files: Files) -> Mapping[str, Evaluation]:
        """What an earlier run of the same command with the same metrics found, by alpha; failures are tried again.

        Raises:
            ConfigError: The sweep at `out` is over other alphas.
        """
        if files.status(out / RECORD) is None:
            return {}
        record = as_mapping(read_json(out / RECORD, files), str(out / RECORD))
        outputs = [as_mapping(one, str(out / RECORD)) for one in _list(record.get("outputs"))]
        if [one.get("alpha") for one in outputs] != list(alphas):
            raise other_job(out, "a sweep over other alphas")
        asked = [metric._asdict() for metric in self.metrics]
        if self.command is None or record.get("eval") != self.command or record.get("metrics") != asked:
            return {}
        return {
            alpha: Evaluation(alpha, f"alpha-{alpha}", metrics)
            for alpha, one in zip(alphas, outputs, strict=True)
            if isinstance(metrics := one.get("metrics"), Mapping) and self._has_all(metrics)
        }

    def _has_all(self, metrics: Mapping[str, object]) -> bool:
        """Whether these are numbers, and those asked for are among them: the file may have been edited."""
        numbers = all(isinstance(value, int | float) for value in metrics.values())
        return numbers and all(metric.name in metrics for metric in self.metrics)


def state_of(folder: Path, shards: Collection[str], files: Files) -> dict[str, tuple[int, ...]]:
    """Inode, size and times of each shard; and the folders that they lie in, for which a link is no substitute."""
    seen = {name: files.status(folder / name) for name in shards}
    found = {
        name: (one.st_ino, one.st_size, one.st_mtime_ns, one.st_ctime_ns)
        for name, one in seen.items()
        if one is not None
    }
    places = {name.rpartition("/")[0] for name in shards}
    above = {name: files.status(folder / name, follow=False) for name in places}
    return found | {f"{name}/": (one.st_ino,) for name, one in above.items() if one is not None}


def changed(kind: type[E], folder: Path) -> E:
    """The error for an output whose shards are not as they were before it was evaluated."""
    return kind(
        f"{folder} — its weights were changed while it was evaluated",
        expected="an evaluation that reads the folder it is given, and writes elsewhere",
        got="a shard with another size, time or inode",
        hint="let the command write its results to a folder of its own; this output cannot be used any more",
    )


def _list(value: object) -> list[object]:
    """`value` if it is a list, else none."""
    return value if isinstance(value, list) else []


def _replace(path: Path, data: bytes, files: Files, sync: bool) -> None:
    """Put `data` at `path` at once: what was there before stays whole until then."""
    part = path.with_name(f".{path.name}.part")
    files.remove(part)  # what a run left that was killed
    try:
        write_file(part, data, files, sync)
        files.rename(part, path)
    except BaseException:
        with suppress(WiseftError, OSError):
            files.remove(part)
        raise
    if sync:
        files.fsync_folder(path.parent)
