"""The verbs as functions: each reads its flags, calls one function of the package, and says what came of it.

Imports of anything that needs torch stand inside the verbs: `--help`, `--version` and `inspect` do without.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wiseft_core.cli import flags, reports
from wiseft_core.cli.output import complain, say, say_json
from wiseft_core.cli.progress import progress
from wiseft_core.cli.schedule import combined
from wiseft_core.cli.session import Session, hired
from wiseft_core.errors import CheckpointError, listed
from wiseft_core.store.hub import found
from wiseft_core.store.locate import check_bare
from wiseft_core.types import Alpha
from wiseft_core.version import __version__

if TYPE_CHECKING:
    from wiseft_core.statedict import StateDict
    from wiseft_core.store.checkpoint import Checkpoint

app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None, no_args_is_help=True)


def _version(asked: bool) -> None:
    """Print the version and stop."""
    if asked:
        say(f"wiseft {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """WiSE-FT from files alone: W(alpha) = (1 - alpha)·W_base + alpha·W_tuned for every tensor that tuning changed.

    Start with `wiseft demo`, then `wiseft plan BASE ADAPTER` on your own files.
    """


@app.command()
def interpolate(
    context: typer.Context,
    base: flags.Base,
    adapter: flags.Adapter,
    out: flags.Out,
    alpha: flags.Alpha = None,
    alpha_for: flags.AlphaFor = None,
    schedule: flags.Schedule = None,
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
    """Write the interpolated weights to OUT."""
    given = alpha_of(context, alpha, alpha_for, schedule)

    session_of(context).settle()
    from wiseft_core.interpolation import interpolate as view_of

    chosen = flags.Chosen(weights, component, variant)
    source, tuned = checkpoint(base, chosen), named(adapter, adapter_name)
    view = view_of(source, tuned, given, **numbers(extrapolate, overflow, compute_dtype, output_dtype, device, tied))
    session_of(context).settle_for(view)
    written = write_as(max_shard_size, copy_code, threads, memory, executor, no_sync, resume, max_output)
    return write(view, out, written, reports.verify_command(out, base, [tuned], chosen), as_json=as_json, quiet=quiet)


@app.command()
def plan(
    base: flags.Base,
    adapter: flags.Adapter,
    output_dtype: flags.OutputDtype = None,
    tied: flags.Tied = "untie",
    weights: flags.Weights = None,
    component: flags.Component = None,
    variant: flags.Variant = None,
    adapter_name: flags.AdapterName = None,
    as_json: flags.Json = False,
    quiet: flags.Quiet = False,
) -> int:
    """Say what would be done, from headers alone.

    What goes where, by which rule, how many bytes; or everything that does not fit. A stored head that the adapter
    touches and config.json may tie is compared with its embedding.
    """
    from wiseft_core.planning import plan as plan_of

    tuned, chosen = named(adapter, adapter_name), flags.Chosen(weights, component, variant)
    seen = plan_of(checkpoint(base, chosen), tuned, tied=tied, output_dtype=output_dtype)
    if as_json:
        say_json(seen.as_dict())
    elif not quiet:
        say(reports.planned(seen, next_step=reports.interpolate_command(base, tuned, chosen)))
    return 0


@app.command()
def inspect(
    adapter: flags.AdapterOnly,
    adapter_name: flags.AdapterName = None,
    as_json: flags.Json = False,
    quiet: flags.Quiet = False,
) -> int:
    """Say what an adapter is, from headers alone.

    Method, ranks, effective scales and targets, and what would be refused.
    """
    from wiseft_core.cli.inspection import inspect_adapter

    seen = inspect_adapter(named(adapter, adapter_name))
    if as_json:
        say_json(seen.as_dict())
    else:
        if not quiet:
            say(seen.text())
        for refusal in seen.refusals:
            complain(refusal)
    return seen.exit_code


@app.command()
def verify(
    context: typer.Context,
    out: flags.Written,
    base: flags.AgainstBase = None,
    adapter: flags.AgainstAdapter = None,
    weights: flags.Weights = None,
    component: flags.Component = None,
    variant: flags.Variant = None,
    sample: flags.Sample = None,
    as_json: flags.Json = False,
    quiet: flags.Quiet = False,
) -> int:
    """Check what was written; exit 1 if it is not right.

    Against its manifest; with base and adapter, every tensor is computed again and compared.
    """
    session_of(context).settle_torch()
    from wiseft_core.verification import verify as check

    source = None if base is None else checkpoint(base, flags.Chosen(weights, component, variant))
    with progress(f"checking {out.name}", quiet=quiet) as told:
        report = check(out, base=source, adapter=adapter or None, sample=sample, progress=told)
    if as_json:
        say_json(report.as_dict())
    elif not (quiet and report.ok):
        say(reports.checked(report))
    return 0 if report.ok else 1


@app.command()
def demo(
    context: typer.Context,
    out: flags.DemoOut = Path("wiseft-demo"),
    as_json: flags.Json = False,
    quiet: flags.Quiet = False,
) -> int:
    """Try it all on a small model, made here.

    It gets a LoRA and a DoRA, is interpolated at 0, 0.5 and 1, and what is promised is checked.
    """
    session_of(context).settle_torch()
    from wiseft_core.cli.demo import run_demo

    shown = run_demo(out, quiet=quiet)
    if as_json:
        say_json(shown.as_dict())
    elif not (quiet and shown.ok):
        say(shown.text())
    return 0 if shown.ok else 1


def numbers(
    extrapolate: bool, overflow: str, compute_dtype: str, output_dtype: str | None, device: str | None, tied: str
) -> dict[str, Any]:
    """The options that say how numbers are treated, as the verbs of the package take them."""
    treated = {"extrapolate": extrapolate, "overflow": overflow, "compute_dtype": compute_dtype}
    return {**treated, "output_dtype": output_dtype, "device": device, "tied": tied}


def write_as(
    max_shard_size: str | None,
    copy_code: bool,
    threads: int | None,
    memory: str | None,
    executor: str | None,
    no_sync: bool,
    resume: bool,
    max_output: str | None,
) -> dict[str, Any]:
    """The options that say how outputs are written, as `save_checkpoint` and `save_sweep` take them."""
    layout = {"max_shard_size": max_shard_size, "copy_code": copy_code, "max_bytes": max_output}
    who = {"threads": threads, "memory": memory, "executor": executor}
    return {**layout, **who, "sync": not no_sync, "resume": resume}


def write(view: StateDict, out: Path, options: Mapping[str, Any], next_step: str, *, as_json: bool, quiet: bool) -> int:
    """Write a model, and say what came of it."""
    from wiseft_core.offline import save_checkpoint

    begun = time.perf_counter()
    with hired(options["executor"]) as executor, progress(f"writing {out.name}", quiet=quiet) as told:
        report = save_checkpoint(view, out, progress=told, **{**options, "executor": executor})
    if as_json:
        say_json(report.as_dict())
    elif not quiet:
        say(reports.written(report, view, time.perf_counter() - begun, next_step=next_step))
    return 0


def alpha_of(
    context: typer.Context, alpha: Sequence[float] | None, alpha_for: Sequence[str] | None, schedule: Path | None
) -> Alpha:
    """Alpha as the options say it together."""
    if len(alpha or ()) > 1:
        raise typer.BadParameter("given more than once: one output has one", ctx=context, param_hint="--alpha")
    if not alpha and schedule is None:
        raise typer.BadParameter("none is given, and no --schedule FILE", ctx=context, param_hint="--alpha")
    return combined(alpha[0] if alpha else None, alpha_for or [], schedule)


def session_of(context: typer.Context) -> Session:
    """The run that this verb is part of."""
    session = context.obj
    return session if isinstance(session, Session) else Session()


def named(adapter: Path, name: str | None) -> Path:
    """The folder of a named adapter.

    Raises:
        ConfigError: The name is not a bare one.
        CheckpointError: There is no such folder; its path may be spelled as a name on the hub, and must not be taken
            for one.
    """
    if name is None:
        return adapter
    check_bare("--adapter-name", name)
    folder = found(adapter) / name
    if not folder.is_dir():
        inside = sorted(entry.parent.name for entry in folder.parent.glob("*/adapter_config.json"))
        raise CheckpointError(
            f"{folder} — no adapter of this name",
            expected="a sub-folder that PEFT's save_pretrained wrote",
            got=f"adapters called {listed(inside, most=9)}" if inside else "no adapters in sub-folders",
            hint="check the name; an adapter called default is in the folder itself",
        )
    return folder


def checkpoint(base: Path, chosen: flags.Chosen) -> Checkpoint:
    """The base, opened."""
    from wiseft_core.store.checkpoint import open_checkpoint

    return open_checkpoint(base, **chosen._asdict())
