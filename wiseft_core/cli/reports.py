"""What the verbs say when they are done, in lines for a human."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wiseft_core.cli.output import fields, plural, size, table, tally
from wiseft_core.errors import listed, show
from wiseft_core.schedules import canonical

if TYPE_CHECKING:
    from wiseft_core.cli.flags import Chosen
    from wiseft_core.joining import Joined
    from wiseft_core.judging import SweepReport
    from wiseft_core.plans import Plan
    from wiseft_core.report import Report
    from wiseft_core.statedict import StateDict
    from wiseft_core.types import Alpha

PROBLEMS_SHOWN = 20
ALPHAS_SHOWN = 8
ROWS_SHOWN = 6


def written(report: Report, view: StateDict, seconds: float, *, next_step: str) -> str:
    """What `interpolate` wrote."""
    copied = report.tensors - report.touched - len(report.new)
    values = {
        "wrote": f"{report.path}: {plural(len(report.files), 'file')}, {size(report.bytes)} in {seconds:.1f} s",
        "alpha": ", ".join(alphas(*each) for each in zip(view.alphas, view.given, strict=True)),
        "tensors": f"{report.touched} interpolated, {copied} copied, {len(report.new)} new",
        "names": "" if view.plan.rule == "exact" else names(view.plan.rule),
    }
    lines = _ended(report, fields(values), dict.fromkeys((*view.plan.notes, *report.notes)))
    return "\n".join([*lines, "", "Next:", f"  {next_step}"])


def rescaled(report: Report, alpha: Alpha, *, next_step: str) -> str:
    """What `rescale` wrote."""
    values = {
        "wrote": f"{report.path}: {plural(len(report.files), 'file')}, {size(report.bytes)}",
        "alpha": canonical(alpha) if isinstance(alpha, float) else "by tensor",
        "tensors": f"{report.tensors}, for {report.touched} of the base and {len(report.new)} new",
    }
    return "\n".join([*_ended(report, fields(values), report.notes), "", "Next:", f"  {next_step}"])


def joined(report: Report, found: Joined) -> str:
    """What `combine --as-adapter` wrote, and how far each weight is from the exact sum, the farthest first."""
    values = {
        "wrote": f"{report.path}: {plural(len(report.files), 'file')}, {size(report.bytes)}",
        "tensors": f"{report.tensors}, factors for {plural(len(found.errors), 'weight')} of the base",
    }
    rows = [(name, f"{error:.3g}", f"{error / (found.norms[name] or 1):.3g}") for name, error in found.errors.items()]
    rows.sort(key=lambda row: -float(row[2]))
    more = [f"and {len(rows) - ROWS_SHOWN} more; --json lists them all"] if len(rows) > ROWS_SHOWN else []
    head = ("weight", "error (Frobenius)", "relative")
    return "\n".join([*_ended(report, fields(values), report.notes), "", table(head, rows[:ROWS_SHOWN]), *more])


def _ended(report: Report, head: str, notes: Iterable[str]) -> list[str]:
    """The lines of a report on what was written: notes, and what was left out."""
    left_out = ["", "Left out of the copy:", table(("file", "reason"), report.left_out)] if report.left_out else []
    return [head, *_notes(notes), *left_out]


def swept(report: SweepReport, seconds: float, plot: Path | None) -> str:
    """What `sweep` wrote; its evaluations are told by `scores`."""
    first, count = report.reports[0], len(report.reports)
    values = {
        "wrote": f"{report.path}: {plural(count, 'output')}, {size(sum(one.bytes for one in report.reports))} "
        f"in {seconds:.1f} s{', evaluations included' if report.metrics else ''}",
        "alpha": ", ".join(one.alpha for one in report.evaluations if one.folder is not None),
        "tensors": f"{first.touched} interpolated, {first.tensors - first.touched - len(first.new)} copied, "
        f"{len(first.new)} new, in each",
        "best": "" if report.best is None else f"alpha {report.best.alpha}",
        "Pareto": ", ".join(one.alpha for one in report.pareto),
        "picture": "" if plot is None else str(plot),
    }
    notes = dict.fromkeys(note for one in report.reports for note in one.notes)
    return "\n".join([*_ended(first, fields(values), notes), ""])


def alphas(resolved: Mapping[str, float], given: object) -> str:
    """The coefficients that were used, as canonical decimals: a few are counted, of many the range is told."""
    values = Counter(resolved.values())
    if not values:
        return canonical(given) if isinstance(given, float) else ""
    if len(values) == 1:
        return canonical(*values)
    if len(values) <= ALPHAS_SHOWN:
        return tally({canonical(value): values[value] for value in sorted(values)})
    ends = f"{canonical(min(values))} to {canonical(max(values))}"
    return f"{ends}: {len(values)} values for {len(resolved)} tensors"


def planned(plan: Plan, *, next_step: str) -> str:
    """The accounting of a plan: every adapter tensor, every touched base tensor, and the bytes to write."""
    consumed = plan.consumed()
    copied = len(plan.outputs) - len(plan.bindings) - len(plan.new)
    pieces = sum(len(bound.pieces) for bound in plan.bindings.values())
    values = {
        "adapter": f"{plural(len(consumed), 'tensor')}, all accounted for: {len(consumed) - len(plan.ignored)} used, "
        f"{len(plan.ignored)} without meaning for the weights",
        "base": f"{len(plan.bindings)} tensors to interpolate, {copied} to copy, {len(plan.new)} new",
        "pieces": "" if pieces == len(plan.bindings) else f"{pieces}: experts, or parts of a tensor, each by itself",
        "names": names(plan.rule),
        "to write": size(plan.nbytes),
        "config": ", ".join(f"{path} = {value}" for path, value in plan.config.items()),
        "made from": _sources(plan),
        "new": listed(plan.new, most=10),
        "ignored": listed(plan.ignored, most=10),
    }
    kinds = Counter(
        (step.family, step.layout, step.parameter) for bound in plan.bindings.values() for step in bound.steps
    )
    rows = [(*kind, count) for kind, count in sorted(kinds.items())]
    lines = [fields(values), "", table(("family", "layout", "parameter", "tensors"), rows), *_notes(plan.notes)]
    return "\n".join([*lines, "", "Next:", f"  {next_step}"])


def names(rule: str) -> str:
    """How names of the adapter became names of the base."""
    view, _, prefix = rule.rpartition(" ")
    told = "as transformers has them in memory" if view else "as in the base"
    return told if prefix == "exact" else f"{told}, prefix rule {prefix}"


def _sources(plan: Plan) -> str:
    """The tensors that are made from a base tensor of another name."""
    return listed([f"{name} from {source}" for name, source in plan.sources.items()], most=4)


def checked(report: Report) -> str:
    """What `verify` checked, and what it found wrong."""
    values = {"checked": f"{report.path}: {plural(len(report.files), 'file')}, {size(report.bytes)}", **_counts(report)}
    lines = [fields(values), *_notes(report.notes)]
    if report.ok:
        return "\n".join([*lines, "", "All is as it should be."])
    problems = [f"  {show(problem, limit=1000)}" for problem in report.problems[:PROBLEMS_SHOWN]]
    more = len(report.problems) - PROBLEMS_SHOWN
    problems += [f"  and {more} more; --json lists them all"] if more > 0 else []
    return "\n".join([*lines, "", f"{plural(len(report.problems), 'problem')}:", *problems])


def _counts(report: Report) -> dict[str, str]:
    """How many of what were checked."""
    return {name: str(count) for name, count in report.checks.items()}


def _notes(notes: Iterable[str]) -> list[str]:
    """A line per note."""
    return [f"note: {show(note, limit=1000)}" for note in notes]


def verify_command(out: Path, base: Path | None, adapters: Sequence[Path], chosen: Chosen) -> str:
    """The command line that checks what was written."""
    made_from = [*(["--base", str(base)] if base is not None else [])]
    made_from += [word for adapter in adapters for word in ("--adapter", str(adapter))]
    return _line(["wiseft", "verify", str(out), *made_from, *chosen.words()])


def interpolate_command(base: Path, adapter: Path, chosen: Chosen) -> str:
    """The command line that does what was planned."""
    return _line(["wiseft", "interpolate", str(base), str(adapter), "OUT", "--alpha", "0.5", *chosen.words()])


def _line(words: list[str]) -> str:
    """Words as one line for a shell."""
    return show(shlex.join(words), limit=2000)
