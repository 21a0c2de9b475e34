"""A small job that can be stopped, failed or recorded at any operation, in this process or in a forked child.

As a program it is the `wiseft` command, held at its first write of a payload until a file is gone.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from folders import low_rank, tree, weights, write_adapter, write_base
from store.publish_job import READS, Seam

from wiseft_core import offline
from wiseft_core.cli import main
from wiseft_core.errors import Fault
from wiseft_core.interpolation import interpolate
from wiseft_core.offline import save_checkpoint
from wiseft_core.store.files import Files

MODULES = ["model.layers.0.q_proj", "model.layers.1.q_proj"]
SPLIT = [["model.embed_tokens.weight", "model.layers.0.q_proj.weight", "model.layers.0.q_proj.bias"]]
SPLIT.append([name for name in weights() if name not in SPLIT[0]])


class Steps(Seam):
    """Counts every single operation: also those inside the making and removing of whole trees of folders."""

    def make_folders(self, path):
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        for folder in reversed(missing):
            try:
                self.mkdir(folder)
            except Fault as error:
                if not isinstance(error.__cause__, FileExistsError):  # another thread may make it meanwhile
                    raise

    def remove_tree(self, path):
        if not path.is_dir():
            return
        for entry in sorted(path.iterdir()):
            if entry.is_dir() and not entry.is_symlink():
                self.remove_tree(entry)
            else:
                self.unlink(entry)
        self.rmdir(path)


class Unsynced(Steps):
    """Syncs are counted and not done: a kill does not lose what the kernel has."""

    def fsync(self, descriptor, path):
        self.step("fsync", (descriptor, path))

    def fsync_folder(self, path):
        self.step("fsync_folder", (path,))


@dataclass(frozen=True)
class Place:
    """Where a job's inputs are, and where its output goes."""

    base: Path
    adapter: Path
    out: Path

    @property
    def shell(self):
        """The hidden staging folder."""
        return self.out.parent / f".{self.out.name}.wiseft-staging"

    def view(self, alpha=0.5, **options):
        """What is to be written, with its inputs opened anew."""
        return interpolate(self.base, self.adapter, alpha, **options)

    def save(self, files=None, *, alpha=0.5, out=None, resume=True, sync=True, threads=1, **options):
        """Run the job, through `files` if given."""
        before = offline.FILES
        offline.FILES = before if files is None else files
        try:
            return save_checkpoint(
                self.view(alpha), out or self.out, resume=resume, sync=sync, threads=threads, **options
            )
        finally:
            offline.FILES = before

    def args(self, *more, alpha="0.5"):
        """The job as a command line."""
        return ["interpolate", str(self.base), str(self.adapter), str(self.out), "--alpha", alpha, *more]

    def inputs(self):
        """Content, mode and times of all input files."""
        seen = {}
        for folder in (self.base, self.adapter):
            for name, data in tree(folder).items():
                status = (folder / name).stat()
                seen[folder / name] = data, status.st_mode, status.st_mtime_ns
        return seen

    def left(self):
        """What is in the output, None where there is none."""
        return tree(self.out) if self.out.exists() else None

    def beside(self):
        """Names beside the output, its own and its inputs' aside."""
        known = {self.base.name, self.adapter.name, self.out.name}
        return sorted(set(os.listdir(self.out.parent)) - known)


def small(folder):
    """A job of two shards, an index, and sidecars in folders: copies, tiles and all other ways to write."""
    base = write_base(folder / "base", weights(), SPLIT)
    (base / "notes" / "deep").mkdir(parents=True)
    (base / "notes" / "deep" / "readme.txt").write_text("some words\n" * 9)
    (base / "run.sh").write_text("echo\n")
    (base / "run.sh").chmod(0o4777)
    tensors = low_rank(weights(), MODULES)
    tensors["base_model.model.model.norm.weight"] = torch.full((6,), 2.0)
    adapter = write_adapter(folder / "adapter", tensors, modules_to_save=["norm"])
    return Place(base, adapter, folder / "out")


def large(folder, rows=1024, shards=4):
    """A job of `shards` shards of 12 KiB a row: a few of its tensors are computed, most are copied."""
    make = torch.Generator().manual_seed(0)
    names = [f"model.layers.{layer}.{part}_proj.weight" for layer in range(shards) for part in ("q", "k", "v")]
    tensors = {name: torch.randn(rows, 2048, generator=make).to(torch.bfloat16) for name in names}
    base = write_base(folder / "base", tensors, [names[at : at + 3] for at in range(0, len(names), 3)])
    modules = [f"model.layers.{layer}.q_proj" for layer in range(shards)]
    return Place(base, write_adapter(folder / "adapter", low_rank(tensors, modules)), folder / "out")


def changing(log):
    """The numbers of the operations in a log that change the disk."""
    return [number for number, name in enumerate(log, 1) if name not in READS]


def operations(place, kind=Unsynced, **options):
    """The operations of an undisturbed run, in order, and the tree that it leaves; its output is moved away."""
    log = []
    place.save(kind(lambda number, name, arguments: log.append(name)), **options)
    whole = tree(place.out)
    os.rename(place.out, place.out.parent.parent / f"whole-{len(os.listdir(place.out.parent.parent))}")
    return log, whole


def killer(number, *, half=False):
    """What kills this process ahead of operation `number`, or in the middle of it."""

    def before(count, name, arguments):
        if count != number:
            return
        if half and name == "write_at":
            descriptor, buffer, offset, _ = arguments
            view = memoryview(buffer).cast("B")
            os.pwrite(descriptor, view[: len(view) // 2], offset)
        elif half and name == "copy_range":
            source, start, target, offset, length, _ = arguments
            os.pwrite(target, os.pread(source, length // 2, start), offset)
        os.kill(os.getpid(), signal.SIGKILL)

    return before


def fork(job: Callable[[], object]) -> int:
    """Run `job` in a forked child that ends with what it returns as exit code, 99 on an error; the child's id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # later Pythons warn of threads, and torch may have some
        child = os.fork()
    if child:
        return child
    code = 99
    faulthandler.dump_traceback_later(60, exit=True, file=sys.__stderr__)  # a child that hangs says where, and ends
    try:
        torch.set_num_threads(1)  # the parent's team of threads is not there in a child
        code = job() or 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code if isinstance(code, int) else 0)


def ended(child):
    """How a child ended: its exit code, or minus the number of the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Held(Files):
    """The real file system, except that the first write of a payload waits until a file is gone."""

    def __init__(self, gate):
        self.gate = gate

    def write_at(self, descriptor, buffer, offset, path):
        if str(path).endswith(".safetensors") and not os.path.exists(f"{self.gate}.reached"):
            Path(f"{self.gate}.reached").touch()
            while os.path.exists(self.gate):
                time.sleep(0.005)
        super().write_at(descriptor, buffer, offset, path)


def command(gate, args):
    """The command as it is run by a shell, held at `gate`."""
    offline.FILES = Held(gate)
    sys.argv[1:] = args
    return main()


def reach(gate, seconds=60):
    """Wait until a child is held at `gate`."""
    for _ in range(seconds * 200):
        if os.path.exists(f"{gate}.reached"):
            return
        time.sleep(0.005)
    raise TimeoutError(gate)


if __name__ == "__main__":
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run below nohup
    sys.exit(command(sys.argv[1], sys.argv[2:]))
