"""`wiseft demo`: the real pipeline on a small model, with every promise checked and every number measured."""

from __future__ import annotations

import shlex
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from wiseft_core.cli import demo_checks
from wiseft_core.cli.demo_model import read_tensors, write_adapter, write_base
from wiseft_core.cli.output import plural, size, table
from wiseft_core.cli.progress import progress
from wiseft_core.errors import CheckpointError, show
from wiseft_core.interpolation import sweep
from wiseft_core.offline import save_checkpoint
from wiseft_core.schedules import canonical
from wiseft_core.store.faults import faults
from wiseft_core.verification import verify

if TYPE_CHECKING:
    from torch import Tensor

    from wiseft_core.statedict import StateDict

ALPHAS: Final = (0.0, 0.5, 1.0)
READING: Final = """\
How to read it:
  tuned, kept  tensors that fine-tuning changed, and tensors copied as they are
  change       how far the tuned weights moved: ‖W(alpha) - W‖ / ‖W‖
  files = base weight files that are the base's byte for byte (promised at alpha 0)
  kept =       untouched tensors that are the base's byte for byte
  elements =   drawn elements that equal the formula, computed again in numpy and rounded once
  verify       `wiseft verify` with base and adapter
  MB/s         bytes written per second, not synced"""


@dataclass(frozen=True, slots=True)
class Trial:
    """One output of the demo: what was counted, measured and found wrong."""

    adapter: str
    alpha: float
    touched: int
    untouched: int
    relative_change: float
    files_equal: int
    untouched_equal: int
    elements_equal: int
    verified: bool
    bytes: int
    seconds: float
    problems: tuple[str, ...]

    def row(self) -> tuple[object, ...]:
        """Its line in the table."""
        change = f"{self.relative_change:.2%}"
        files = str(self.files_equal) if self.alpha == 0 else "-"
        rate = round(self.bytes / self.seconds / 1e6)
        counts = (self.touched, self.untouched, change, files, self.untouched_equal, self.elements_equal)
        return (self.adapter, canonical(self.alpha), *counts, "ok" if self.verified else "FAILED", rate)


@dataclass(frozen=True, slots=True)
class Demo:
    """What the demo did, and where its files are."""

    path: str
    base_bytes: int
    copy_seconds: float
    trials: tuple[Trial, ...]

    @property
    def problems(self) -> tuple[str, ...]:
        """Everything that was not as promised."""
        return tuple(
            f"{trial.adapter} at {canonical(trial.alpha)}: {what}" for trial in self.trials for what in trial.problems
        )

    @property
    def ok(self) -> bool:
        """Whether all was as promised."""
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        """The demo as JSON sees it."""
        return {
            "format": "wiseft-demo/1",
            "path": self.path,
            "ok": self.ok,
            "base_bytes": self.base_bytes,
            "copy_seconds": self.copy_seconds,
            "trials": [{**asdict(trial), "problems": list(trial.problems)} for trial in self.trials],
            "problems": list(self.problems),
        }

    def text(self) -> str:
        """The table, how to read it, and what to do next."""
        head = ("adapter", "alpha", "tuned", "kept", "change", "files =", "kept =", "elements =", "verify", "MB/s")
        where = shlex.quote(self.path)
        lines = [
            f"A model of {size(self.base_bytes)} in bf16, a LoRA and a DoRA for it, each interpolated at three alphas.",
            "",
            table(head, [trial.row() for trial in self.trials]),
            f"A plain copy of the base (shutil.copytree): {self.base_bytes / self.copy_seconds / 1e6:.0f} MB/s",
            "",
            READING,
            "",
            *self._verdict(),
            "",
            f"The files are in {where}; look at one, then take your own:",
            f"  wiseft inspect {shlex.quote(str(Path(self.path) / 'lora'))}",
            "  wiseft interpolate BASE ADAPTER OUT --alpha 0.5",
        ]
        return "\n".join(lines)

    def _verdict(self) -> list[str]:
        """That all is well, or what is not."""
        if self.ok:
            return ["Everything that is promised was checked and holds."]
        return [f"{plural(len(self.problems), 'promise')} broken:", *(f"  {show(what)}" for what in self.problems)]


def run_demo(out: Path, *, quiet: bool = False) -> Demo:
    """Make the model and its adapters in the new folder `out`, interpolate, and check. On a failure nothing is left.

    Raises:
        CheckpointError: `out` exists.
        Fault: The operating system failed a call.
    """
    if out.exists() or out.is_symlink():
        raise CheckpointError(
            f"{out}",
            expected="a folder that does not exist yet",
            got="something of that name",
            hint="name another folder, as in `wiseft demo my-demo`, or remove it",
        )
    with faults("write the demo to it", out):
        out.mkdir(parents=True)
        try:
            return _demonstrate(out, quiet=quiet)
        except BaseException:
            shutil.rmtree(out, ignore_errors=True)
            raise


def _demonstrate(out: Path, *, quiet: bool) -> Demo:
    """All of it, in an empty folder."""
    base = out / "base"
    write_base(base)
    copying = _time_copy(base, out)
    weights = read_tensors(base)
    trials: list[Trial] = []
    for name in ("lora", "dora"):
        write_adapter(out / name, base, dora=name == "dora")
        factors = read_tensors(out / name)
        for alpha, view in zip(ALPHAS, sweep(base, out / name, ALPHAS), strict=True):
            target = out / f"{name}-{canonical(alpha)}"
            trials.append(_try(view, alpha, target, weights=weights, factors=factors, quiet=quiet))
    return Demo(str(out), _weigh(base), copying, tuple(trials))


def _try(
    view: StateDict,
    alpha: float,
    target: Path,
    *,
    weights: Mapping[str, Tensor],
    factors: Mapping[str, Tensor],
    quiet: bool,
) -> Trial:
    """Write one output, and hold the definitions against it."""
    base, adapter = target.parent / "base", target.parent / target.name.partition("-")[0]
    begun = time.perf_counter()
    with progress(f"writing {target.name}", quiet=quiet) as told:
        report = save_checkpoint(view, target, progress=told, sync=False)
    seconds = time.perf_counter() - begun
    written = read_tensors(target)
    files, wrong_files = demo_checks.equal_files(base, target) if alpha == 0 else (0, [])
    kept, wrong_kept = demo_checks.equal_tensors(weights, written)
    elements, wrong_elements = demo_checks.sampled(weights, factors, written, alpha)
    with progress(f"checking {target.name}", quiet=quiet) as told:
        verdict = verify(target, base=base, adapter=adapter, progress=told)
    return Trial(
        adapter=adapter.name,
        alpha=alpha,
        touched=report.touched,
        untouched=report.tensors - report.touched,
        relative_change=demo_checks.relative_change(weights, written),
        files_equal=files,
        untouched_equal=kept,
        elements_equal=elements,
        verified=verdict.ok,
        bytes=report.bytes,
        seconds=seconds,
        problems=(*wrong_files, *wrong_kept, *wrong_elements, *map(str, verdict.problems)),
    )


def _weigh(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.iterdir())


def _time_copy(base: Path, beside: Path) -> float:
    """Seconds that a plain copy of the base takes here, on the same disk. The copy is removed again."""
    with tempfile.TemporaryDirectory(dir=beside) as folder:
        begun = time.perf_counter()
        shutil.copytree(base, Path(folder) / "copy")
        return time.perf_counter() - begun
