"""The verbs that try alphas and adapters: `sweep`, `combine` and `rescale`.

As in `commands`: flags in, one function of the package, and what came of it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import typer

from wiseft_core.cli import flags, reports
from wiseft_core.cli.commands import alpha_of, app, checkpoint, named, numbers, session_of, write, write_as
from wiseft_core.cli.output import complain, say, say_json
from wiseft_core.cli.progress import progress
from wiseft_core.cli.schedule import combined
from wiseft_core.cli.scores import scored
from wiseft_core.cli.session import hired
from wiseft_core.errors import ConfigError
from wiseft_core.evaluation import parse_metrics
from wiseft_core.schedules import spread

if TYPE_CHECKING:
    from wiseft_core.store.checkpoint import Checkpoint

__all__ = ["app"]


@app.command()
def sweep(
    context: typer.Context,
    base: flags.Base,
    adapter: flags.Adapter,
    out: flags.Out,
    alpha: flags.Alphas = None,
    alpha_for: flags.AlphaFor = None,
    schedule: flags.Schedule = None,
    evaluate: flags.Eval = None,
    metric: flags.Metrics = None,
    keep: flags.Keep = "all",
    plot: flags.Plot = None,
    output_dtype: flags.OutputDtype = None,
    compute_dtype: flags.ComputeDtype = "fp64",
    overflow: flags.Overflow = "error",
    tied: flags.Tied = "untie",
    device: flags.Device = None,
    max_shard_size: flags.MaxShardSize = None,
    threads: flags.Threads = None,
    memory: flags.Memory = None,
    executor: flags.Executor = None,
    no_sync: flags.NoSync = False,
    resume: flags.Resume = False,
    max_output: flags.MaxOutput = None,
    extrapolate: flags.Extrapolate = False,
    copy_code: flags.CopyCode = False,
    weights: flags.Weights = None,
    component: flags.Component = None,
    variant: flags.Variant = None,
    adapter_name: flags.AdapterName = None,
    as_json: flags.Json = False,
    quiet: flags.Quiet = False,
) -> int:
    """Write an output for each alpha, evaluate them, and say which is best.

    OUT gets alpha-0, alpha-0.5, ... and sweep.json; the base is read once. Exit code 1 if an evaluation failed.
    """
    alphas = _alphas(context, alpha)
    asked = parse_metrics(metric or [])
    source, tuned = checkpoint(base, flags.Chosen(weights, component, variant)), named(adapter, adapter_name)

    session_of(context).settle()
    from wiseft_core.interpolation import sweep as views_of
    from wiseft_core.sweeping import save_sweep

    given = [combined(number, alpha_for or [], schedule) for number in alphas]
    views = views_of(source, tuned, given, **numbers(extrapolate, overflow, compute_dtype, output_dtype, device, tied))
    session_of(context).settle_for(views[0])
    written = write_as(max_shard_size, copy_code, threads, memory, executor, no_sync, resume, max_output)
    begun = time.perf_counter()
    with hired(executor) as pool, progress(f"writing {out.name}", quiet=quiet) as told:
        report = save_sweep(
            views,
            out,
            evaluate=evaluate,
            metrics=asked,
            keep=keep,
            plot=plot,
            stderr=None if quiet or as_json else sys.stderr,
            progress=told,
            **{**written, "executor": pool},
        )
    if as_json:
        say_json(report.as_dict())
    elif not quiet:
        say(reports.swept(report, time.perf_counter() - begun, plot))
        if report.metrics:
            say(scored(report.evaluations, report.metrics))
    else:
        for one in report.evaluations:
            if one.error is not None:
                complain(one.error)
    return 0 if report.ok else 1


@app.command()
def combine(
    context: typer.Context,
    base: flags.Base,
    out: flags.Out,
    adapter: flags.Weighted = None,
    output_dtype: flags.OutputDtype = None,
    compute_dtype: flags.ComputeDtype = "fp64",
    overflow: flags.Overflow = "error",
    tied: flags.Tied = "untie",
    device: flags.Device = None,
    max_shard_size: flags.MaxShardSize = None,
    threads: flags.Threads = None,
    memory: flags.Memory = None,
    executor: flags.Executor = None,
    no_sync: flags.NoSync = False,
    resume: flags.Resume = False,
    max_output: flags.MaxOutput = None,
    extrapolate: flags.Extrapolate = False,
    copy_code: flags.CopyCode = False,
    as_adapter: flags.AsAdapter = None,
    rank: flags.Rank = None,
    weights: flags.Weights = None,
    component: flags.Component = None,
    variant: flags.Variant = None,
    as_json: flags.Json = False,
    quiet: flags.Quiet = False,
) -> int:
    """Write the base with the changes of several adapters added up, in one rounding, or the sum as an adapter.

    W_base + the sum of alpha·(W_tuned - W_base) over the adapters, whose order does not matter to a byte.
    """
    pairs, chosen = _weighted(context, adapter), flags.Chosen(weights, component, variant)
    source = checkpoint(base, chosen)
    if as_adapter is not None or rank is not None:
        _check_join(context, as_adapter)
        session_of(context).settle_torch()
        return _join(
            source, pairs, out, str(as_adapter), rank, extrapolate, sync=not no_sync, as_json=as_json, quiet=quiet
        )

    session_of(context).settle()
    from wiseft_core.combination import combine as view_of

    view = view_of(source, pairs, **numbers(extrapolate, overflow, compute_dtype, output_dtype, device, tied))
    session_of(context).settle_for(view)
    written = write_as(max_shard_size, copy_code, threads, memory, executor, no_sync, resume, max_output)
    next_step = reports.verify_command(out, base, [path for path, _ in pairs], chosen)
    return write(view, out, written, next_step, as_json=as_json, quiet=quiet)


@app.command()
def rescale(
    context: typer.Context,
    adapter: flags.AdapterOnly,
    out: flags.Out,
    alpha: flags.Alpha = None,
    alpha_for: flags.AlphaFor = None,
    schedule: flags.Schedule = None,
    base: flags.BaseOfAdapter = None,
    extrapolate: flags.Extrapolate = False,
    weights: flags.Weights = None,
    component: flags.Component = None,
    variant: flags.Variant = None,
    adapter_name: flags.AdapterName = None,
    no_sync: flags.NoSync = False,
    as_json: flags.Json = False,
    quiet: flags.Quiet = False,
) -> int:
    """Write an adapter to OUT that PEFT loads as the interpolated model."""
    given = alpha_of(context, alpha, alpha_for, schedule)

    session_of(context).settle_torch()
    from wiseft_core.adapters import save_adapter
    from wiseft_core.rescaling import rescale as rescaled

    tuned, chosen = named(adapter, adapter_name), flags.Chosen(weights, component, variant)
    source = None if base is None else checkpoint(base, chosen)
    report = save_adapter(rescaled(tuned, given, base=source, extrapolate=extrapolate), out, sync=not no_sync)
    if as_json:
        say_json(report.as_dict())
    elif not quiet:
        say(reports.rescaled(report, given, next_step=reports.verify_command(out, base, [tuned], chosen)))
    return 0


OF_MODELS: Final = (
    "output_dtype", "compute_dtype", "overflow", "tied", "device", "max_shard_size", "threads", "executor", "resume",
    "max_output", "copy_code",
)  # fmt: skip
"""The options of `combine` that mean nothing where an adapter is written."""


def _check_join(context: typer.Context, as_adapter: str | None) -> None:
    """Refuse a rank without --as-adapter, and options that only a model has."""
    if as_adapter is None:
        raise typer.BadParameter("it goes with --as-adapter svd", ctx=context, param_hint="--rank")
    for name in OF_MODELS:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            flag = f"--{name.replace('_', '-')}"
            raise typer.BadParameter("it goes with a model, not with --as-adapter", ctx=context, param_hint=flag)


def _join(
    base: Checkpoint,
    pairs: Sequence[tuple[Path, float]],
    out: Path,
    method: str,
    rank: int | None,
    extrapolate: bool,
    *,
    sync: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """`combine` where an adapter is asked for instead of a model."""
    from wiseft_core.adapters import save_adapter
    from wiseft_core.joining import combine_adapters

    joined = combine_adapters(base, pairs, method=method, rank=rank, extrapolate=extrapolate)
    report = save_adapter(joined.adapter, out, sync=sync)
    if as_json:
        say_json({**report.as_dict(), "errors": dict(joined.errors), "norms": dict(joined.norms)})
    elif not quiet:
        say(reports.joined(report, joined))
    return 0


def _weighted(context: typer.Context, texts: Sequence[str] | None) -> list[tuple[Path, float]]:
    """Each adapter with its alpha, split at the last "="."""
    found = []
    for text in texts or ():
        path, _, alpha = text.rpartition("=")
        try:
            found.append((Path(path), float(alpha)))
        except ValueError:
            path = ""
        if not path:
            raise typer.BadParameter(f"{text!r} is not PATH=ALPHA", ctx=context, param_hint="--adapter")
    if not found:
        raise typer.BadParameter("give it once for each adapter: PATH=ALPHA", ctx=context, param_hint="--adapter")
    return found


def _alphas(context: typer.Context, texts: Sequence[str] | None) -> list[float]:
    """Every alpha that was asked for."""
    try:
        found = [number for text in texts or () for number in spread(text)]
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise typer.BadParameter(f"{error}", ctx=context, param_hint="--alpha") from None
    if not found:
        raise typer.BadParameter("give it once for each output, or 0:1:0.25", ctx=context, param_hint="--alpha")
    return found
