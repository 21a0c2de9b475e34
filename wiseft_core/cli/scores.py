"""What `sweep` says of its evaluations, for a human who chooses an alpha."""

from __future__ import annotations

from collections.abc import Sequence

from wiseft_core.cli.output import table
from wiseft_core.evaluation import Evaluation, Metric, best, pareto


def scored(evaluations: Sequence[Evaluation], metrics: Sequence[Metric]) -> str:
    """A row for each alpha with its metrics and what it is best at, and below the reasons of what failed."""
    winner = best(evaluations, metrics[0]) if metrics else None
    front = pareto(evaluations, *metrics[:2]) if len(metrics) > 1 else ()
    rows = []
    for e in evaluations:
        marks = {"failed": e.error is not None, "best": e is winner, "Pareto": any(e is other for other in front)}
        values = ["-" if e.metrics is None else f"{e.metrics[metric.name]:.6g}" for metric in metrics]
        rows.append((e.alpha, *values, ", ".join(mark for mark, holds in marks.items() if holds)))
    head = ("alpha", *(f"{metric.name}:{metric.direction}" for metric in metrics), "")
    reasons = [f"\n{e.error}" for e in evaluations if e.error is not None]
    return "\n".join([table(head, rows), *reasons])
