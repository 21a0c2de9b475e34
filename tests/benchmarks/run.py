"""Time `wiseft interpolate` beside `cp -r`, PEFT and a plain loop, on the same bytes, and print a Markdown table.

    python tests/benchmarks/run.py [--scale 1|2] [--runs N] [--only NAME ...] [--work FOLDER] [--warm-memory]

Every contestant is a process of its own and the runs are in turns (A B C, A B C, ...), after one copy that nobody
times, so that the base is in the page cache. Between two runs the output is removed and the disk is synced, untimed.
Times are medians; ratios are to the medians of `cp -r`, without and with fsync, in the same run: compare like with
like. Memory is the largest peak of all runs.

`--warm-memory` uses all memory before each run, untimed, and frees twice the base's size. A virtual machine may give
what is free for two seconds back to its host, and fault it in again: who is slower than that pays, `cp` does not.

`--scale 2` doubles the layers and runs our command on both models, to show that its memory does not grow; then the exit
code is 1 if it does. It is also 1 if our command needs more than 450 MB.

This process imports neither torch nor our package: Linux counts what a parent holds when it starts a child towards the
child's peak, so that nothing smaller than the parent, about 15 MB, can be measured.
"""

from __future__ import annotations

import argparse
import compileall
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from contestants import CONTESTANTS, FIVE

BUILD = Path(__file__).with_name("build.py")
CHECKOUT = Path(__file__).resolve().parents[2]
LAYERS = 16
FIXED_BYTES = 2 * 128_256 * 2048 * 2
LAYER_BYTES = (2 * 2048 * 2048 + 2 * 512 * 2048 + 3 * 8192 * 2048) * 2
MEMORY_LIMIT = 450e6
GROWTH_LIMIT = 1.1
SEVERAL = ("-five", "-sweep")
"""Ends of the names of contestants that write five outputs."""
OURS = tuple(key for key in CONTESTANTS if key.startswith(("lora", "dora")) and not key.endswith("-five"))


class Run(NamedTuple):
    """One run of one contestant: wall time, processor time of all its threads, peak resident memory in bytes."""

    seconds: float
    processor: float
    peak: int


class Failure(Exception):
    """Something that ends the benchmark, told in one line."""


def main() -> int:
    """Build, run, print; 0 if memory is as promised."""
    asked = arguments()
    work = asked.work
    try:
        keys = chosen(asked.only, asked.scale)
        check_space(work, asked.scale, outputs=5 if any(key.endswith(SEVERAL) for key in keys) else 1)
        inputs = {scale: built(work, scale) for scale in range(1, asked.scale + 1)}
        compileall.compile_dir(CHECKOUT / "wiseft_core", quiet=2)  # as pip does where it installs
        filler = work / "filler" if asked.warm_memory else None
        runs = in_turns(inputs[asked.scale], work / "out", keys, asked.runs, filler)
        print(facts(inputs[asked.scale], asked.runs), table(runs), sep="\n\n")
        ok = all(peak(runs[key]) < MEMORY_LIMIT for key in keys if key in OURS)
        if asked.scale > 1:
            small = in_turns(inputs[1], work / "out", [key for key in keys if key in OURS], 1, filler)
            print("", memory_table(small, runs), sep="\n")
            ok = ok and all(peak(runs[key]) < GROWTH_LIMIT * peak(small[key]) for key in small)
    except Failure as failure:
        print(f"run.py: {failure}", file=sys.stderr)
        return 2
    if not ok:
        print("run.py: memory is not as promised, see the tables", file=sys.stderr)
    return 0 if ok else 1


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--scale", type=int, choices=(1, 2), default=1, help="2: twice the layers, and memory of both")
    parser.add_argument("--runs", type=int, default=5, help="runs of each contestant (%(default)s)")
    parser.add_argument(
        "--only", nargs="+", choices=CONTESTANTS, metavar="NAME", help=f"some of {', '.join(CONTESTANTS)}"
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=Path(tempfile.gettempdir()) / "wiseft-benchmark",
        help="folder for inputs and outputs, kept for the next time; needs 21 GB free, 38 GB at scale 2 (%(default)s)",
    )
    parser.add_argument("--warm-memory", action="store_true", help="use all memory before each run, and free some")
    asked = parser.parse_args()
    if asked.runs < 1:
        parser.error("--runs: at least 1")
    return asked


def chosen(only: Sequence[str] | None, scale: int) -> list[str]:
    """The contestants of this run, in order: the copy is always there; at scale 2 ours are the point."""
    wanted = set(only or (CONTESTANTS if scale == 1 else OURS)) | {"cp"}
    return [key for key in CONTESTANTS if key in wanted]


def base_bytes(scale: int) -> int:
    """Size of the base, to a few kilobytes."""
    return FIXED_BYTES + scale * LAYERS * LAYER_BYTES


def folder_of(work: Path, scale: int) -> Path:
    """Where the inputs of a scale are kept."""
    return work / f"llama-{scale * LAYERS}-layers"


def check_space(work: Path, scale: int, *, outputs: int) -> None:
    """Refuse to begin what the disk cannot hold: inputs not built yet, the outputs, and one more to spare."""
    work.mkdir(parents=True, exist_ok=True)
    missing = sum(base_bytes(each) for each in range(1, scale + 1) if not (folder_of(work, each) / "lora128").exists())
    need, free = missing + (outputs + 1) * base_bytes(scale), shutil.disk_usage(work).free
    if free < need:
        raise Failure(f"{work} has {free / 1e9:.1f} GB free and {need / 1e9:.1f} GB are needed: use --work FOLDER")


def built(work: Path, scale: int) -> Path:
    """The inputs of a scale, built if they are not there."""
    folder = folder_of(work, scale)
    if not (folder / "lora128").exists():
        tell(f"building {base_bytes(scale) / 1e9:.1f} GB in {folder}")
        run([sys.executable, "-P", str(BUILD), str(folder), str(scale * LAYERS)])
    return folder


def in_turns(inputs: Path, out: Path, keys: Sequence[str], count: int, filler: Path | None) -> dict[str, list[Run]]:
    """`count` runs of each contestant, in turns, with warm caches."""
    runs: dict[str, list[Run]] = {key: [] for key in keys}
    try:
        clear(out)
        run(CONTESTANTS["cp"].command(inputs, out))
        for turn in range(count):
            for key in keys:
                clear(out)
                if filler is not None:
                    warm(filler, inputs)
                runs[key].append(run(CONTESTANTS[key].command(inputs, out)))
                check_output(inputs, out, key)
                took = runs[key][-1]
                tell(f"turn {turn + 1} of {count}: {key:13} {took.seconds:7.2f} s {took.peak / 1e6:7.0f} MB")
    finally:
        clear(out)
    return runs


def clear(out: Path) -> None:
    """Remove an output, and let the disk come to rest."""
    shutil.rmtree(out, ignore_errors=True)
    os.sync()


def warm(filler: Path, inputs: Path) -> None:
    """Fill the page cache with an empty file, and behind it the inputs; then give back room for an output, and more."""
    filler.touch()
    os.truncate(filler, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    files = sorted(path for path in inputs.rglob("*") if path.is_file())
    buffer = bytearray(1 << 20)
    for file in (*files, *files, filler, *files, *files):  # what is read twice stays longest
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass
    with filler.open("rb") as stream:
        size = 2 * sum(path.stat().st_size for path in (inputs / "base").iterdir())
        os.posix_fadvise(stream.fileno(), filler.stat().st_size - size, size, os.POSIX_FADV_DONTNEED)


def run(command: Sequence[str]) -> Run:
    """Run a command to its end. What it says is shown only if it fails."""
    paths = [str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile() as said:
        begun = time.perf_counter()
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=environment)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - begun
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode != 0:
            said.seek(0)
            end = said.read()[-4000:].decode(errors="replace")
            raise Failure(f"exit code {child.returncode} from {' '.join(command)}\n{end}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit)


def check_output(inputs: Path, out: Path, key: str) -> None:
    """Refuse a run that wrote less than the base's weights, five times where it has five outputs to write."""
    folders = [path for path in out.iterdir() if path.is_dir()] if key.endswith(SEVERAL) else [out]
    wrote, read = sum(map(weight_bytes, folders)), weight_bytes(inputs / "base")
    if wrote < 0.999 * read * (len(FIVE) if key.endswith(SEVERAL) else 1):
        raise Failure(f"{key} wrote {wrote:,} bytes of weights, and the base has {read:,}")


def weight_bytes(folder: Path) -> int:
    """Bytes of all safetensors files in a folder."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def facts(inputs: Path, count: int) -> str:
    """What was measured, and on what machine."""
    files = len(list((inputs / "base").glob("*.safetensors")))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    packages = ", ".join(
        f"{name} {version(name)}" for name in ("numpy", "numba", "torch", "peft", "transformers", "safetensors")
    )
    return (
        f"Base: {weight_bytes(inputs / 'base') / 1e9:.2f} GB of bfloat16 in {files} shards; r = 16 (or 128) on all "
        f"seven projections; alpha = 0.5 (PEFT: 1). Medians of {count}, runs in turns, warm page cache.  \n"
        f"Machine: {processor()}, {cores} cores, {memory:.0f} GiB; {platform.system()} {platform.release()}; "
        f"Python {platform.python_version()}, {packages}."
    )


def processor() -> str:
    """The processor's model, as the system names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def table(runs: Mapping[str, Sequence[Run]]) -> str:
    """Times, ratios and peaks."""
    copies = [key for key in ("cp", "cp-sync") if key in runs]
    rows = []
    for key, each in runs.items():
        times = [one.seconds for one in each]
        ratios = [f"{median(each) / median(runs[copy]):.2f}" for copy in copies]
        spread = f"{min(times):.2f} to {max(times):.2f}"
        cpu = statistics.median(one.processor for one in each)
        rows.append(
            [CONTESTANTS[key].label, f"{median(each):.2f}", spread, *ratios, f"{cpu:.2f}", megabytes(peak(each))]
        )
    return markdown(
        ["", "seconds", "range", *(f"/ {CONTESTANTS[copy].label}" for copy in copies), "CPU s", "peak MB"], rows
    )


def memory_table(small: Mapping[str, Sequence[Run]], large: Mapping[str, Sequence[Run]]) -> str:
    """Peaks on the model and on the one with twice the layers."""
    rows = [
        [
            CONTESTANTS[key].label,
            megabytes(peak(each)),
            megabytes(peak(large[key])),
            f"{peak(large[key]) / peak(each):.2f}",
        ]
        for key, each in small.items()
    ]
    sizes = [f"peak MB, {LAYERS * scale} layers, {base_bytes(scale) / 1e9:.1f} GB" for scale in (1, 2)]
    return markdown(["", *sizes, "ratio"], rows)


def median(runs: Sequence[Run]) -> float:
    """The median time."""
    return statistics.median(one.seconds for one in runs)


def peak(runs: Sequence[Run]) -> int:
    """The largest resident memory, in bytes."""
    return max(one.peak for one in runs)


def megabytes(count: int) -> str:
    """Bytes in MB, for a table."""
    return f"{count / 1e6:,.0f}"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, all columns but the first to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def tell(text: str) -> None:
    """Progress, beside the table."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
