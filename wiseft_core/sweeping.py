"""From one binding to an output for each alpha, and to the alpha that is best.

Verb floor. The base is read once: a tile's change is computed once and written into every output. An evaluation, if
there is one, runs on the finished outputs.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Final, TextIO

from wiseft_core.errors import ConfigError, listed
from wiseft_core.evaluation import Evaluation, Function, Metric
from wiseft_core.jobs import Job, plan_job, report_of
from wiseft_core.judging import RECORD, Judge, SweepReport
from wiseft_core.keeping import keep_best
from wiseft_core.offline import check_job, is_finished, staging_for, write_outputs
from wiseft_core.record import places
from wiseft_core.report import Report
from wiseft_core.running import Run
from wiseft_core.schedules import canonical
from wiseft_core.sources import BaseLike
from wiseft_core.statedict import StateDict
from wiseft_core.store.files import FILES
from wiseft_core.store.publish import Staging
from wiseft_core.tasks import Progress

KEEP: Final = ("all", "best")


def save_sweep(
    views: Sequence[StateDict],
    path: str | os.PathLike[str],
    *,
    evaluate: str | Function | None = None,
    metrics: Sequence[Metric] = (),
    keep: str = "all",
    plot: str | os.PathLike[str] | None = None,
    stderr: TextIO | None = None,
    like: BaseLike | None = None,
    max_shard_size: int | str | None = None,
    copy_code: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
    sync: bool = True,
    resume: bool = False,
    max_bytes: int | str | None = None,
    memory: int | str | None = None,
    executor: Executor | None = None,
) -> SweepReport:
    """Write views over one binding as `path/alpha-0`, `path/alpha-0.25`, ..., in one pass over the base.

    Each folder is what `save_checkpoint` writes of that view alone, byte for byte. They appear together with
    `path/sweep.json`, or not at all; then they are evaluated one after the other, and sweep.json is brought up to date
    after each: what ends an evaluation leaves them, and `resume` goes on. An evaluation that fails is kept as such and
    stops nothing.

    Args:
        views: What `sweep` gave: the same adapter at different alphas, each a number, or a mapping whose "*" is one.
        path: The folder to make: absent or empty, and neither inside nor around an input.
        evaluate: How an output is evaluated: a command line in which `{model}` stands for the absolute path of its
            folder, run without a shell, the last line on its stdout a JSON object of metrics or a lone number; or a
            function of the path that returns them.
        metrics: What the evaluation reports: the first chooses the best alpha, the first two the Pareto set.
        keep: "all", or "best": one output at a time is made and evaluated, from one alpha to the next only touched
            tensors are written again, and the best alone is published. It is evaluated in the hidden staging folder,
            before it has its manifest.
        plot: Where to draw the metrics over alpha and against each other: a .png or .svg file. Needs matplotlib.
        stderr: Gets what the command says on stderr, while it says it.
        like: As for `save_checkpoint`, like all that follows.
        max_shard_size: See `save_checkpoint`.
        copy_code: See `save_checkpoint`.
        threads: See `save_checkpoint`.
        progress: Told of bytes done and bytes in all, of all outputs together.
        sync: See `save_checkpoint`.
        resume: See `save_checkpoint`; where the outputs are finished, what the same command has evaluated is not
            evaluated again. Not with keep="best".
        max_bytes: See `save_checkpoint`; of all outputs together.
        memory: See `save_checkpoint`.
        executor: See `save_checkpoint`; of threads alone with keep="best".
    Returns:
        What was written, what the evaluation said of each alpha, and which are the best.
    Raises:
        ConfigError: No views, views over different bindings, two of one alpha, an evaluation without metrics, ...
        EvaluationFailed: With keep="best", every evaluation failed. No output is left.
        WiseftError: As for `save_checkpoint`.
    Source: Wortsman et al. 2022, arXiv:2109.01903, figure 1: the curve over alpha, and choosing on it.
    """
    out, run = Path(path), Run.of(FILES, threads, progress, sync, executor, memory)
    judge = Judge(evaluate, tuple(metrics), stderr, None if plot is None else Path(plot))
    judge.check(out)
    if keep not in KEEP or (keep == "best" and (resume or evaluate is None or run.is_sent)):
        wrong = {" with resume": resume, " without an evaluation": not evaluate, " with other processes": run.is_sent}
        raise ConfigError(
            "keep",
            expected='"all", or "best" with an evaluation, in this process and without resume',
            got=f"{keep!r}" + "".join(word for word, said in wrong.items() if said),
            hint='choose "all" to keep every output; a sweep that keeps the best only starts over',
        )
    folders = _folders(views)
    job = plan_job(folders, like, max_shard_size, copy_code, run.files)
    judge.check_place(out, [place for source in job.inputs() for place in places(source)], run.files)
    check_job(job, run, max_bytes, outputs=1 if keep == "best" else len(folders))
    run = run.within(memory, job)
    if keep == "best":
        return keep_best(job, out, run, judge)
    known: Mapping[str, Evaluation] = {}
    alphas = [_decimal(view) for view in views]
    if is_finished(job, out, run, resume=resume):
        known = judge.remembered(out, alphas, run.files)
        reports = [report_of(job, out / folder, {}, "this output is finished already") for folder in folders]
        if run.files.status(out / RECORD) is None:
            judge.write(out, [Evaluation(*pair) for pair in zip(alphas, folders, strict=True)], run.files, sync)
    else:
        reports = _write(job, out, run, judge, alphas, resume=resume)
    evaluations = [known.get(alpha, Evaluation(alpha, folder)) for alpha, folder in zip(alphas, folders, strict=True)]
    if judge.evaluate is not None:
        shards = [shard.name for shard in job.shards]
        with Staging(out, run.files, sync=sync, inputs=()).held():
            for at, (alpha, folder) in enumerate(zip(alphas, folders, strict=True)):
                if alpha not in known:
                    evaluations[at] = judge.judged(alpha, out / folder, shards, run.files)
                    judge.write(out, evaluations, run.files, sync)
            judge.draw(evaluations, run.files, sync)
    return SweepReport(str(out), tuple(reports), tuple(evaluations), judge.metrics, judge.command)


def _write(job: Job, out: Path, run: Run, judge: Judge, alphas: Sequence[str], *, resume: bool) -> list[Report]:
    """Make every output, and sweep.json without a result in it; what was written."""
    with staging_for(job, out, run, resume=resume) as staging:
        written = write_outputs(job, staging, run)
        evaluations = [Evaluation(alpha, folder) for alpha, folder in zip(alphas, job.views, strict=True)]
        judge.write(staging.folder, evaluations, run.files, run.sync)
        staging.publish()
    return [
        report_of(job, out / folder, {name: size for name, (size, _) in files.items()})
        for folder, files in written.items()
    ]


def _folders(views: Sequence[StateDict]) -> dict[str, StateDict]:
    """The views by the name of their folder.

    Raises:
        ConfigError: There are none, they are not of one binding, or two have one alpha.
    """
    if not views or any(view.bound is not views[0].bound for view in views):
        raise ConfigError(
            "views",
            expected="at least one view, all over one binding, as `sweep` gives them",
            got=f"{len(views)} views" + (" over different bindings" if views else ""),
            hint="call sweep(base, adapter, alphas), or view.at(alpha) for each",
        )
    alphas = [_decimal(view) for view in views]
    twice = [alpha for alpha, count in Counter(alphas).items() if count > 1]
    if twice:
        raise ConfigError(
            "alphas — one comes twice",
            expected="different alphas, each the name of a folder",
            got=listed(twice),
            hint="0.5 and 0.50 are the same: give each once",
        )
    return {f"alpha-{alpha}": view for alpha, view in zip(alphas, views, strict=True)}


def _decimal(view: StateDict) -> str:
    """The canonical decimal that a view is known by: its alpha, or that of all tensors without one of their own."""
    alpha = view.given[0].get("*") if isinstance(view.given[0], Mapping) else view.given[0]
    if len(view.given) > 1 or callable(alpha) or alpha is None:
        raise ConfigError(
            "alphas",
            expected='views of one adapter, with a number as alpha, or a mapping whose "*" is one',
            got="a combination" if len(view.given) > 1 else f"{view.alpha!r}",
            hint="write this one with save_checkpoint, into a folder of your choice",
        )
    return canonical(alpha)
