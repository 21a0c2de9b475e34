"""Publishing: complete or absent after every fault, kill and race, and never into an input.

Run as a program it is the child of its own tests; it imports neither torch nor pytest then.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

from wiseft_core.errors import CheckpointError, Fault, InputChanged, Locked
from wiseft_core.store.files import FILES, Files, faults
from wiseft_core.store.publish import Staging
from wiseft_core.store.shards import split_shards
from wiseft_core.store.sidecars import copy_sidecar
from wiseft_core.store.writer import ShardWriter, write_file
from wiseft_core.types import TensorSpec

SPECS = {"a": TensorSpec("U8", (300,)), "b": TensorSpec("U8", (300,)), "none": TensorSpec("F32", (0,))}
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
    """Kill a child ahead of every operation, and in the middle of every write; how it left things, and the next run."""
    base = make_base(work / "base")
    make(work / "whole", base, FILES)
    whole, results, number, half = tree(work / "whole"), [], 1, False

    def before(count, operation, arguments):
        if count == number:
            if half and operation == "write_at":
                descriptor, buffer, offset, _ = arguments
                os.pwrite(descriptor, bytes(memoryview(buffer)[: len(buffer) // 2]), offset)
            os.kill(os.getpid(), signal.SIGKILL)

    while True:
        child = os.fork()
        if child == 0:
            make(work / "out", base, Seam(before))
            os._exit(0)
        killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
        left = tree(work / "out")
        if left is None:
            make(work / "out", base, FILES)
        results.append((number, half, killed, left in (None, whole), tree(work / "out") == whole))
        shutil.rmtree(work / "out")
        shutil.rmtree(work / ".out.wiseft-staging", ignore_errors=True)
        if not killed:
            break
        number, half = (number, True) if not half else (number + 1, False)
    return results


def child(*arguments, **options):
    """Start this file as a program."""
    import wiseft_core

    path = str(Path(wiseft_core.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": path}
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
    sys.exit()

import pytest  # noqa: E402


@pytest.fixture
def base(tmp_path):
    return make_base(tmp_path / "base")


def count_operations(tmp_path, base):
    """The operations of a whole run, in order."""
    log = []
    make(tmp_path / "probe", base, Seam(lambda number, operation, arguments: log.append(operation)))
    whole = tree(tmp_path / "probe")
    shutil.rmtree(tmp_path / "probe")
    return log, whole


FAULTS = [
    ("allocate", errno.ENOSPC), ("write_at", errno.EIO), ("copy_range", errno.EIO), ("fsync", errno.EIO),
    ("fsync_folder", errno.EIO), ("rename", errno.EIO), ("create", errno.EACCES), ("mkdir", errno.EACCES),
    ("lock", errno.EIO), ("make_folders", errno.EDQUOT), ("read_into", errno.EIO), ("open_read", errno.EMFILE),
]  # fmt: skip


@pytest.mark.parametrize(("operation", "code"), FAULTS, ids=[name for name, _ in FAULTS])
def test_a_failing_call_leaves_nothing(tmp_path, base, operation, code):
    """Whichever call of a kind fails: exit code 5, its errno named, no OUT, no staging, the input as it was."""
    log, _ = count_operations(tmp_path, base)
    assert operation in log
    for number in [at for at, name in enumerate(log, 1) if name == operation]:

        def before(count, name, arguments, number=number):
            if count == number:
                with faults(f"do {name}", "the file"):
                    raise OSError(code, "injected")

        with pytest.raises(Fault) as caught:
            make(tmp_path / "out", base, Seam(before))
        assert caught.value.exit_code == 5 and errno.errorcode[code] in caught.value.got
        assert os.listdir(tmp_path) == ["base"]
    assert tree(base) == {"payload": bytes(range(200)) + bytes(100), "script.sh": b"echo\n"}


def test_an_interrupt_leaves_nothing_or_all(tmp_path, base):
    """Ctrl-C ahead of any operation: no OUT and no staging, or, once it is published, all of OUT."""
    log, whole = count_operations(tmp_path, base)
    renamed = log.index("rename") + 1
    for number in range(1, len(log) + 1):

        def before(count, name, arguments, number=number):
            if count == number:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            make(tmp_path / "out", base, Seam(before))
        left = tree(tmp_path / "out")
        assert left == (None if number <= renamed + 1 else whole), (number, log[number - 1])
        assert left is not None or os.listdir(tmp_path) == ["base"], (number, log[number - 1])
        shutil.rmtree(tmp_path / "out", ignore_errors=True)


def test_a_kill_anywhere_leaves_nothing_or_all(tmp_path):
    """SIGKILL ahead of every operation and in the middle of every write: OUT absent or whole; the next run works."""
    process = child("kill", tmp_path)
    results = json.loads(process.communicate()[0])
    assert len(results) > 60 and [killed for _, _, killed, _, _ in results].count(False) == 1
    assert [row for row in results if not (row[3] and row[4])] == []


def test_a_failing_cleanup_never_hides_the_first_error(tmp_path, base):
    """When removing the leftovers fails too, the error that stopped the run is the one that is raised."""

    def before(count, operation, arguments):
        if operation in ("write_at", "unlink"):
            raise Fault(operation)

    with pytest.raises(Fault) as caught:
        make(tmp_path / "out", base, Seam(before))
    assert caught.value.where == "write_at"
    make(tmp_path / "out", base, FILES)
    assert sorted(os.listdir(tmp_path)) == ["base", "out"]


def test_a_failing_cleanup_does_not_spoil_a_finished_output(tmp_path, base):
    """When only the empty staging folder cannot be removed, the run has succeeded; without publish it is an error."""

    def before(count, operation, arguments):
        if operation == "rmdir":
            raise Fault(operation)

    make(tmp_path / "out", base, Seam(before))
    assert tree(tmp_path / "out")
    with pytest.raises(Fault), Staging(tmp_path / "other", Seam(before), sync=True, inputs=[]):
        pass


def test_an_output_that_is_not_published_is_removed(tmp_path):
    """Leaving the context without `publish` leaves nothing."""
    with Staging(tmp_path / "out", FILES, sync=True, inputs=[]) as staging:
        (staging.folder / "file").write_bytes(b"x")
        assert os.listdir(tmp_path) == [".out.wiseft-staging"]
    assert os.listdir(tmp_path) == []


def test_the_second_writer_is_locked_out(tmp_path):
    """While another process writes OUT, in a private folder, a second one fails with exit 7; killed, it is no bar."""
    process = child("hold", tmp_path)
    assert process.stdout is not None and int(process.stdout.readline()) == 0o700
    with pytest.raises(Locked) as caught, Staging(tmp_path / "out", FILES, sync=True, inputs=[]):
        pass
    assert caught.value.exit_code == 7 and str(tmp_path / "out") in caught.value.where
    assert (tmp_path / ".out.wiseft-staging" / "out" / "half").exists()
    process.kill()
    process.communicate()
    with Staging(tmp_path / "out", FILES, sync=True, inputs=[]) as staging:
        assert os.listdir(staging.folder) == []
        staging.publish()
    assert os.listdir(tmp_path) == ["out"]


def test_a_shell_that_vanishes_is_made_again(tmp_path):
    """When its last owner removes the shell just before we lock it, or just after, we start over."""

    class Racy(Files):
        races = 2

        def lock(self, path):
            if self.races == 2:
                self.races = 1
                os.rmdir(path.parent)
            descriptor = super().lock(path)
            if self.races == 1 and descriptor is not None:
                self.races = 0
                shutil.rmtree(path.parent)
            return descriptor

    files = Racy()
    with Staging(tmp_path / "out", files, sync=False, inputs=[]) as staging:
        staging.publish()
    assert files.races == 0 and os.listdir(tmp_path) == ["out"]


def test_a_shell_taken_over_is_left_alone(tmp_path):
    """A run that makes its own lock in our shell while we clean up keeps it."""

    class Racy(Files):
        def rmdir(self, path):
            (path / "lock").touch()
            super().rmdir(path)

    with Staging(tmp_path / "out", Racy(), sync=False, inputs=[]) as staging:
        staging.publish()
    assert os.listdir(tmp_path / ".out.wiseft-staging") == ["lock"]


def test_a_shell_of_somebody_else_is_refused(tmp_path):
    """A link or a file placed at the predictable name of our staging folder is not used."""
    (tmp_path / "elsewhere").mkdir()
    shell = tmp_path / ".out.wiseft-staging"
    for place in (lambda: shell.symlink_to(tmp_path / "elsewhere"), shell.touch):
        place()
        with pytest.raises(CheckpointError, match="in the way"), Staging(tmp_path / "out", FILES, sync=True, inputs=[]):
            pass
        assert os.listdir(tmp_path / "elsewhere") == []
        shell.unlink()


@pytest.mark.parametrize("kind", ["full folder", "file", "link to an empty folder", "dangling link"])
def test_what_is_at_out_stays(tmp_path, base, kind):
    """Anything at OUT but an empty folder is refused and untouched, and no staging is made."""
    out, empty = tmp_path / "out", tmp_path / "empty"
    empty.mkdir()
    if kind == "full folder":
        out.mkdir()
        (out / "precious").touch()
    elif kind == "file":
        out.touch()
    else:
        out.symlink_to(empty if kind.startswith("link") else tmp_path / "nothing")
    with pytest.raises(CheckpointError) as caught:
        make(out, base, FILES)
    assert "choose another folder" in caught.value.hint
    assert sorted(os.listdir(tmp_path)) == ["base", "empty", "out"] and os.listdir(empty) == []
    assert kind != "full folder" or os.listdir(out) == ["precious"]


def test_an_empty_folder_is_filled(tmp_path, base):
    """An empty folder at OUT is as good as none."""
    (tmp_path / "out").mkdir()
    make(tmp_path / "out", base, FILES)
    assert "wiseft.json" in tree(tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["base", "out"]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_comes_to_out_meanwhile_stays(tmp_path, kind):
    """Content that appears at OUT while we write is not replaced, and nothing of ours is left."""
    out = tmp_path / "out"
    with pytest.raises(CheckpointError, match="came while"), Staging(out, FILES, sync=True, inputs=[]) as staging:
        (staging.folder / "ours").touch()
        if kind == "folder":
            out.mkdir()
            (out / "theirs").touch()
        else:
            out.touch()
        staging.publish()
    assert os.listdir(tmp_path) == ["out"] and (kind == "file" or os.listdir(out) == ["theirs"])


@pytest.mark.parametrize(
    "spelling",
    ["base", "base/new", "base/sub/new", "link/new", "link/sub/new", "aside/../base/new", "link", "link/../base/sub/new"],
)
def test_out_is_never_inside_an_input(tmp_path, base, spelling):
    """OUT that is or lies in an input is refused whatever it is called: by a link, by `..`, at any depth."""
    (base / "sub").mkdir()
    (tmp_path / "aside").mkdir()
    (tmp_path / "link").symlink_to(base)
    before = sorted(os.listdir(base))
    with pytest.raises(CheckpointError, match="into an input") as caught:
        make(tmp_path / spelling, base, FILES)
    assert caught.value.exit_code == 3
    assert sorted(os.listdir(base)) == before and sorted(os.listdir(tmp_path)) == ["aside", "base", "link"]


def test_out_around_an_input_is_refused(tmp_path, base):
    """A folder that contains an input is not empty, so it cannot be OUT."""
    with pytest.raises(CheckpointError, match="something is there already"):
        make(tmp_path, base, FILES)
    assert os.listdir(tmp_path) == ["base"]


def test_out_beside_an_input_by_a_link_is_fine(tmp_path, base):
    """A link on the way to OUT is followed, and the output and its staging are where it leads."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    make(tmp_path / "link" / "out", base, FILES)
    assert os.listdir(tmp_path / "real") == ["out"]


@pytest.mark.parametrize("spelling", ["missing/out", "base/payload/out"])
def test_out_needs_a_folder_to_be_in(tmp_path, base, spelling):
    """OUT's parent is never made: a typing error would leave folders behind."""
    with pytest.raises(CheckpointError, match="no folder to write it in") as caught:
        make(tmp_path / spelling, base, FILES)
    assert "mkdir" in caught.value.hint and os.listdir(tmp_path) == ["base"]


def test_modes_follow_the_umask(tmp_path):
    """Under umask 027 folders are 0750 and files 0640, a sidecar with mode 4777 included."""
    process = child("modes", tmp_path, umask=0o027)
    process.communicate()
    assert process.returncode == 0
    paths = [tmp_path / "out", *(tmp_path / "out").rglob("*")]
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in paths}
    assert modes == {path.name: 0o750 if path.is_dir() else 0o640 for path in paths} and len(modes) == 7


def test_every_folder_is_synced_before_and_after_the_rename(tmp_path, base):
    """With sync: files, then folders inside out, then the rename, then its parent. Without: no sync at all."""
    log = []

    def before(count, operation, arguments):
        log.append((operation, str(arguments[-1]) if arguments else ""))

    make(tmp_path / "out", base, Seam(before))
    names = [(operation, Path(path).name) for operation, path in log if operation in ("fsync_folder", "rename")]
    parent = tmp_path.name
    assert names == [
        ("fsync_folder", "deep"), ("fsync_folder", "sub"), ("fsync_folder", "out"), ("rename", "out"),
        ("fsync_folder", parent),
    ]  # fmt: skip
    synced = {Path(path).name for operation, path in log if operation == "fsync"}
    assert synced == {Path(name).name for name in tree(tmp_path / "out")}
    log.clear()
    make(tmp_path / "again", base, Seam(before), sync=False)
    assert not [operation for operation, _ in log if operation.startswith("fsync")]
    assert tree(tmp_path / "again") == tree(tmp_path / "out")


def test_a_sidecar_that_changes_is_noticed(tmp_path, base):
    """A source that somebody writes to while it is copied stops the run with exit 6, and nothing is left."""

    class Busy(Files):
        def fsync(self, descriptor, path):
            if path.name == "script.sh":
                (base / "script.sh").write_bytes(b"other")
            super().fsync(descriptor, path)

    with pytest.raises(InputChanged) as caught:
        make(tmp_path / "out", base, Busy())
    assert caught.value.exit_code == 6 and os.listdir(tmp_path) == ["base"]
