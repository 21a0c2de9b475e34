"""A small job that publishes, and the program that test_publish.py starts, kills and lets others compete with."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import wiseft_core
from wiseft_core.store.files import FILES, Files
from wiseft_core.store.publish import Staging
from wiseft_core.store.shards import split_shards
from wiseft_core.store.sidecars import copy_sidecar
from wiseft_core.store.writer import ShardWriter, write_file
from wiseft_core.types import TensorSpec

SPECS = {"a": TensorSpec("U8", (300,)), "b": TensorSpec("U8", (300,)), "none": TensorSpec("F32", (0,))}
READS = ("close", "identity", "is_changed", "list_folder", "open_read", "open_write", "read_into", "resolve", "status")
OPERATIONS = sorted(name for name in vars(Files) if not name.startswith("_"))


class Seam(Files):
    """The real file system, with `before(number, operation, arguments)` called ahead of every operation."""

    def __init__(self, before):
        self.before, self.count = before, 0

    def step(self, operation, arguments):
        self.count += 1
        self.before(self.count, operation, arguments)


def _wrapped(operation):
    def call(self, *arguments, **options):
        self.step(operation, arguments)
        return getattr(Files, operation)(self, *arguments, **options)

    return call


for _operation in OPERATIONS:
    setattr(Seam, _operation, _wrapped(_operation))


class Unsynced(Seam):
    """Syncs are counted and not done: a kill does not lose what the kernel has."""

    def fsync(self, descriptor, path):
        self.step("fsync", ())

    def fsync_folder(self, path):
        self.step("fsync_folder", ())


def make(out, base, files, sync=True):
    """A small job that uses all of the store's ways to write: two shards, a copy, a nested sidecar, a last file."""
    seen = os.stat(base)
    with Staging(out, files, sync=sync, inputs=[(seen.st_dev, seen.st_ino)]) as staging:
        shards = split_shards(SPECS, max_shard_size=400, metadata={})
        writers = [ShardWriter(staging.folder / shard.name, shard.header, files) for shard in shards]
        try:
            source = files.open_read(base / "payload")
            writers[0].copy("a", source, 0, 300)
            files.close(source)
            for start in (0, 100, 200):
                writers[1].write("b", start, bytes([start]) * 100)
            for writer in writers:
                writer.finish(sync)
        finally:
            for writer in writers:
                writer.abort()
        copy_sidecar(base / "script.sh", staging.folder / "sub" / "deep" / "script.sh", files, sync)
        write_file(staging.folder / "wiseft.json", b"{}\n", files, sync)
        staging.publish()


def make_base(folder):
    """The input of `make`, with a mode that no output may inherit."""
    folder.mkdir()
    (folder / "payload").write_bytes(bytes(range(200)) + bytes(100))
    (folder / "script.sh").write_bytes(b"echo\n")
    (folder / "script.sh").chmod(0o4777)
    return folder


def tree(folder):
    """Content of every file by relative name, or None where there is no folder."""
    if not folder.exists():
        return None
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def kill_everywhere(work):
    """Kill a child ahead of every change to the disk, and in the middle of every write; then run again.

    Gives, for each kill: the operation, whether it was cut in half, whether the child died of it, whether OUT was
    absent or whole then, and whether it was whole after the next run.
    """
    base, log = make_base(work / "base"), []
    make(work / "whole", base, Unsynced(lambda count, operation, arguments: log.append(operation)))
    whole, results = tree(work / "whole"), []
    points = [(number, operation, False) for number, operation in enumerate(log, 1) if operation not in READS]
    points += [(number, operation, True) for number, operation in enumerate(log, 1) if operation == "write_at"]
    for number, operation, half in points:

        def before(count, operation, arguments, number=number, half=half):
            if count == number:
                if half:
                    descriptor, buffer, offset, _ = arguments
                    os.pwrite(descriptor, bytes(memoryview(buffer)[: len(buffer) // 2]), offset)
                os.kill(os.getpid(), signal.SIGKILL)

        child = os.fork()
        if child == 0:
            make(work / "out", base, Unsynced(before))
            os._exit(0)
        killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
        left = tree(work / "out")
        if left is None:
            make(work / "out", base, FILES, sync=False)
        results.append((operation, half, killed, left in (None, whole), tree(work / "out") == whole))
        shutil.rmtree(work / "out")
    return results


def start(*arguments, **options):
    """Start this file as a program."""
    environment = {**os.environ, "PYTHONPATH": str(Path(wiseft_core.__file__).parents[1])}
    command = [sys.executable, __file__, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, **options)


def main(verb, work):
    if verb == "kill":
        print(json.dumps(kill_everywhere(work)))
    elif verb == "modes":
        make(work / "out", make_base(work / "base"), FILES)
    elif verb == "hold":
        with Staging(work / "out", FILES, sync=True, inputs=[]) as staging:
            (staging.folder / "half").write_bytes(b"half")
            print(stat.S_IMODE(os.stat(staging.folder.parent).st_mode), flush=True)
            time.sleep(60)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
