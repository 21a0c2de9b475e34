"""What the operating system, other processes and the user may do to a run: its exit code, its message, what is left.

Faults are put below the package, into the calls of `os`, or are real: a full disk, a signal, a file that changes.
"""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from faults import seam
from folders import tree

import wiseft_core
from wiseft_core import bound, offline
from wiseft_core.cli import main


@pytest.fixture
def place(tmp_path):
    """A small job, whose inputs no test may change."""
    place = seam.small(tmp_path)
    before = place.inputs()
    yield place
    assert place.inputs() == before


@pytest.fixture
def loose(tmp_path):
    """A small job whose inputs a test changes."""
    return seam.small(tmp_path)


@pytest.fixture
def whole(tmp_path):
    """The tree of an undisturbed run."""
    (tmp_path / "other").mkdir()
    place = seam.small(tmp_path / "other")
    place.save(resume=False)
    content = tree(place.out)
    shutil.rmtree(tmp_path / "other")
    return content


def run(capsys, place, *more):
    """Run the command; its exit code and the lines of its error."""
    code = main(place.args("--threads", "1", "--quiet", *more))
    said = capsys.readouterr()
    assert said.out == ""
    return code, said.err.splitlines()


def failed(place, result, code, *words):
    """The exit code, four lines with these words, no OUT and nothing beside it."""
    got, lines = result
    assert got == code, lines
    assert len(lines) == 4, lines
    assert [line.split()[0] for line in lines[1:]] == ["expected", "got", "hint"]
    assert all(word in "\n".join(lines) for word in words), lines
    assert not place.out.exists() and place.beside() == []


def path_of(value):
    """The path that an argument of a call of `os` is about."""
    return os.readlink(f"/proc/self/fd/{value}") if isinstance(value, int) else os.fspath(value)


def break_call(patch, name, at, number, code, about, *, after=False):
    """Let the call of `os` number `number` whose argument `at` satisfies `about` fail; how many there were."""
    real, calls = getattr(os, name), []

    def broken(*arguments, **options):
        if about(arguments[at]):
            calls.append(arguments)
            if len(calls) == number:
                if after:
                    real(*arguments, **options)
                raise OSError(code, os.strerror(code))
        return real(*arguments, **options)

    patch.setattr(os, name, broken)
    return calls


def below(*parents):
    """Whether an argument is about something below one of some folders."""
    return lambda value: path_of(value).startswith(tuple(f"{parent}/" for parent in parents))


def in_staging(value):
    """Whether an argument is about something in a staging folder, or that itself."""
    return ".wiseft-staging" in path_of(value)


def in_new_staging(value):
    """The same, where nothing is yet: `makedirs` does not mind a folder that cannot be made and is there."""
    return in_staging(value) and not os.path.exists(value)


WRITES = {
    "allocate, no space": ("posix_fallocate", 0, errno.ENOSPC),
    "allocate, quota": ("posix_fallocate", 0, errno.EDQUOT),
    "write, no space": ("pwrite", 0, errno.ENOSPC),
    "write, error": ("pwrite", 0, errno.EIO),
    "copy, no space": ("copy_file_range", 1, errno.ENOSPC),
    "copy, error": ("copy_file_range", 1, errno.EIO),
    "sync": ("fsync", 0, errno.EIO),
    "rename": ("rename", 0, errno.EIO),
    "mkdir": ("mkdir", 0, errno.ENOSPC),
    "read back": ("preadv", 0, errno.EIO),
}


@pytest.mark.parametrize("row", WRITES, ids=str)
def test_a_failing_call_on_the_output(place, capsys, row):
    """Whichever call of a kind fails: exit code 5, errno and path named, no OUT, no staging."""
    name, at, code = WRITES[row]
    number, ends = 0, []
    while True:
        number += 1
        with pytest.MonkeyPatch.context() as patch:
            about = in_new_staging if name == "mkdir" else in_staging
            calls = break_call(patch, name, at, number, code, about)
            result = run(capsys, place)
        if len(calls) < number:
            break
        failed(place, result, 5, errno.errorcode[code], str(place.out.parent))
        ends.append(result)
    assert result[0] == 0 and ends


def test_a_failing_sync_of_the_parent_takes_the_output_back(place, capsys):
    """The rename is done, and cannot be made durable: exit code 5 and no OUT."""
    with pytest.MonkeyPatch.context() as patch:
        break_call(patch, "fsync", 0, 1, errno.EIO, lambda value: path_of(value) == str(place.out.parent))
        result = run(capsys, place)
    failed(place, result, 5, "EIO", "sync the folder")


def test_a_failed_sync_is_not_tried_again(place, capsys):
    """The kernel forgets what it could not write: after a failure the same file is never synced once more."""
    with pytest.MonkeyPatch.context() as patch:
        calls = break_call(patch, "fsync", 0, 1, errno.EIO, lambda value: ".safetensors" in path_of(value))
        failed(place, run(capsys, place), 5, "EIO")
    assert len({descriptor for (descriptor,) in calls}) == len(calls)


def test_a_failing_close(place, whole, capsys):
    """The descriptor of a written file cannot be closed: exit code 5, or the output was complete before."""
    number, codes = 0, []
    while True:
        number += 1
        with pytest.MonkeyPatch.context() as patch:
            calls = break_call(patch, "close", 0, number, errno.EIO, in_staging, after=True)
            result = run(capsys, place)
        codes.append(result[0])
        if result[0] == 0:
            assert place.left() == whole and place.beside() == []
            shutil.rmtree(place.out)
        else:
            failed(place, result, 5, "EIO")
        if len(calls) < number:
            break
    assert codes.count(5) > 5 and codes[-1] == 0


def test_no_tile_is_computed_on_a_full_disk(place, capsys):
    """No space for any of the shards is met before anything is computed or read for it."""
    count = []
    values, prepare = bound.Prepared.values, bound.Bound.prepare
    for number in (1, 2, 3):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bound.Prepared, "values", lambda self, tile: count.append(1) or values(self, tile))
            patch.setattr(
                bound.Bound, "prepare", lambda self, *given, **how: count.append(1) or prepare(self, *given, **how)
            )
            break_call(patch, "posix_fallocate", 0, number, errno.ENOSPC, lambda value: True)
            result = run(capsys, place)
        if number < 3:  # there are two shards
            failed(place, result, 5, "ENOSPC", "reserve space", "free some space")
            assert count == []
    assert result[0] == 0 and len(count) > 3


def test_a_disk_that_cannot_reserve_is_asked_for_its_free_space(place, capsys, monkeypatch):
    """Where fallocate is not supported, too little free space is met as early."""
    break_call(monkeypatch, "posix_fallocate", 0, 1, errno.EOPNOTSUPP, lambda value: True)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1 << 20, 1 << 20, 9))
    failed(place, run(capsys, place), 5, "ENOSPC")


@pytest.mark.parametrize("which", ["base", "adapter"])
def test_an_input_that_cannot_be_read(place, capsys, which):
    """EIO at any read of base or adapter: exit code 5, and the file that it is about."""
    folder = getattr(place, which)
    number = 0
    while True:
        number += 1
        with pytest.MonkeyPatch.context() as patch:
            calls = break_call(patch, "preadv", 0, number, errno.EIO, below(folder))
            result = run(capsys, place)
        if len(calls) < number:
            break
        failed(place, result, 5, "EIO", str(folder), "cannot read it")
    assert result[0] == 0 and number > 6


def test_an_input_that_cannot_be_opened(place, capsys, monkeypatch):
    """No more descriptors: exit code 5 with a hint at the limit."""
    break_call(monkeypatch, "open", 0, 1, errno.EMFILE, below(place.base))
    failed(place, run(capsys, place), 5, "EMFILE", "ulimit")


def test_short_reads_and_writes_make_the_same_bytes(place, whole, capsys, monkeypatch):
    """Calls that do a few bytes at a time, as signals and networks make them do: the output does not depend on it."""
    read, write, copy = os.preadv, os.pwrite, os.copy_file_range
    monkeypatch.setattr(os, "preadv", lambda fd, views, offset: read(fd, [views[0][:37]], offset))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: write(fd, data[:11], offset))
    monkeypatch.setattr(os, "copy_file_range", lambda a, b, count, *offsets: copy(a, b, min(count, 7), *offsets))
    assert run(capsys, place)[0] == 0
    assert place.left() == whole


def test_a_disk_that_writes_nothing(place, capsys, monkeypatch):
    """A write of 0 bytes that is no error is one for us: it would never end."""
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: 0)
    failed(place, run(capsys, place), 5, "EIO")


def test_other_signals_do_not_disturb(place, whole, capsys):
    """A timer that interrupts system calls all the time changes nothing."""
    ticks = []
    before = signal.signal(signal.SIGALRM, lambda *_: ticks.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        assert run(capsys, place)[0] == 0
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert place.left() == whole and ticks


def in_child(tmp_path, place, prepare, *more):
    """Run the command in a forked child after `prepare()`; its exit code and the lines of its error."""

    def job():
        with open(tmp_path / "stderr", "w") as sys.stderr:
            prepare()
            return main(place.args("--threads", "1", "--quiet", *more))

    code = seam.ended(seam.fork(job))
    return code, (tmp_path / "stderr").read_text().splitlines()


@pytest.mark.parametrize("big", ["shard", "sidecar"])
def test_a_limit_on_the_size_of_files(place, tmp_path, big):
    """RLIMIT_FSIZE: EFBIG when a shard is reserved, or when a file beside the weights is copied; exit code 5."""
    (tmp_path / "own").mkdir()
    place = seam.small(tmp_path / "own")
    (place.base / "notes" / "big.txt").write_bytes(bytes(10_000))
    limit = 400 if big == "shard" else 5000
    result = in_child(tmp_path, place, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    failed(place, result, 5, "EFBIG", "file size limit", ".safetensors" if big == "shard" else "big.txt")


@contextmanager
def mounted(folder, options):
    """A file system in memory, of its own size and mode."""
    folder.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("there is no mount here")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("options", ["size=1m", "size=1m,nr_inodes=4"])
def test_a_full_disk(tmp_path, capsys, monkeypatch, options):
    """A real disk of 1 MB, or one without inodes: exit code 5, nothing computed, nothing left on it."""
    inputs = seam.large(tmp_path, rows=64 if "inodes" in options else 128, shards=1)
    count = []
    monkeypatch.setattr(bound.Bound, "prepare", lambda self, *given: count.append(1))
    with mounted(tmp_path / "disk", options) as disk:
        place = seam.Place(inputs.base, inputs.adapter, disk / "out")
        before = place.inputs()
        code, lines = run(capsys, place)
        assert code == 5 and "ENOSPC" in lines[2] and "free some space" in lines[3]
        assert os.listdir(disk) == [] and count == [] and place.inputs() == before


def test_a_disk_that_is_full_for_the_last_file(tmp_path, capsys):
    """The weights fit, a file beside them does not: exit code 5, nothing left; with --resume the weights are kept."""
    inputs = seam.large(tmp_path, rows=32, shards=1)
    (inputs.base / "big.txt").write_bytes(bytes(900_000))
    with mounted(tmp_path / "disk", "size=1m") as disk:
        place = seam.Place(inputs.base, inputs.adapter, disk / "out")
        before = place.inputs()
        code, lines = run(capsys, place)
        assert code == 5 and "ENOSPC" in lines[2] and "big.txt" in lines[0]
        assert os.listdir(disk) == []
        assert run(capsys, place, "--resume")[0] == 5
        assert os.listdir(disk) == [".out.wiseft-staging"]
        subprocess.run(["mount", "-o", "remount,size=8m", disk], check=True)
        assert run(capsys, place, "--resume")[0] == 0
        assert os.listdir(disk) == ["out"] and place.inputs() == before
        resumed = tree(place.out)
    inputs.save(resume=False)
    assert tree(inputs.out) == resumed


@pytest.mark.parametrize("more", [(), ("--resume",)], ids=["plain", "resume"])
def test_a_read_only_disk(place, tmp_path, capsys, more):
    """A disk that is mounted read-only: exit code 5, and where to write is the user's to choose."""
    with mounted(tmp_path / "disk", "ro") as disk:
        code, lines = run(capsys, seam.Place(place.base, place.adapter, disk / "out"), *more)
        assert code == 5 and len(lines) == 4 and "EROFS" in lines[2] and "write somewhere else" in lines[3]
        assert os.listdir(disk) == []


def test_two_writers_at_once(place, tmp_path, capsys):
    """The second one is turned away with exit code 7 and takes nothing from the first, with --resume too."""
    gate = tmp_path / "gate"
    gate.touch()
    child = seam.fork(lambda: seam.command(gate, place.args("--quiet", "--no-sync")))
    try:
        seam.reach(gate)
        for more in ((), ("--resume",)):
            code, lines = run(capsys, place, *more)
            assert code == 7 and len(lines) == 4 and lines[0].startswith("Locked: ") and "wait until" in lines[3]
            assert not place.out.exists() and place.shell.exists()
    finally:
        gate.unlink()
        ended = seam.ended(child)
    assert ended == 0
    place.save(out=tmp_path / "whole", sync=False)
    assert place.left() == tree(tmp_path / "whole") and not place.shell.exists()


def midway(monkeypatch, change, kind="write_at"):
    """Let `change` happen once, ahead of the first write of a payload."""
    done = []

    def before(number, name, arguments):
        if name == kind and not done:
            done.append(name)
            change()

    monkeypatch.setattr(offline, "FILES", seam.Steps(before))
    return done


@pytest.mark.parametrize("cut", [8, 300, -1], ids=["header", "payload", "last byte"])
@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("kind", ["copy_range", "write_at"])
def test_a_base_truncated_midway(loose, capsys, monkeypatch, number, cut, kind):
    """A shard of the base is cut while it is read: exit code 6, the file named, no OUT, and no dead process."""
    file = loose.base / f"model-{number:05}-of-00002.safetensors"
    size = file.stat().st_size
    done = midway(monkeypatch, lambda: os.truncate(file, size - 1 if cut < 0 else cut), kind)
    failed(loose, run(capsys, loose), 6, "InputChanged", str(file), "run again")
    assert done


def test_an_adapter_truncated_midway(loose, capsys, monkeypatch):
    """The same for the adapter."""
    file = loose.adapter / "adapter_model.safetensors"
    midway(monkeypatch, lambda: os.truncate(file, 400), "allocate")
    failed(loose, run(capsys, loose), 6, "InputChanged", str(file))


@pytest.mark.parametrize("change", ["truncated", "rewritten"])
def test_a_file_beside_the_weights_changed_midway(loose, capsys, monkeypatch, change):
    """A sidecar that changes while it is copied: exit code 6 and the file named."""
    file = loose.base / "notes" / "deep" / "readme.txt"
    done = []

    def before(number, name, arguments):
        if name == "copy_range" and arguments[-1].name == "readme.txt":
            done.append(name)
            file.write_text("x" * (3 if change == "truncated" else file.stat().st_size))

    monkeypatch.setattr(offline, "FILES", seam.Steps(before))
    failed(loose, run(capsys, loose), 6, "InputChanged", str(file))
    assert done


@pytest.mark.parametrize("which", ["base", "adapter"])
@pytest.mark.parametrize("back", [False, True], ids=["touched", "times put back"])
def test_an_input_rewritten_midway(loose, capsys, monkeypatch, which, back):
    """Other bytes of the same length, even under the old mtime: exit code 6, no OUT."""
    file = sorted(getattr(loose, which).glob("*.safetensors"))[-1]

    def change():
        seen = file.stat()
        with open(file, "r+b") as stream:
            stream.seek(-4, os.SEEK_END)
            stream.write(b"\x7f\x7f\x7f\x7f")
        if back:
            os.utime(file, ns=(seen.st_atime_ns, seen.st_mtime_ns))

    done = midway(monkeypatch, change)
    failed(loose, run(capsys, loose), 6, "InputChanged", str(file), "do not write to inputs")
    assert done


def test_values_that_are_not_finite_any_more(loose, capsys, monkeypatch):
    """A rewritten adapter that would be refused for its values: what is told is that it changed."""
    file = loose.adapter / "adapter_model.safetensors"

    def change():
        with open(file, "r+b") as stream:
            stream.seek(-400, os.SEEK_END)
            stream.write(b"\xff" * 400)

    midway(monkeypatch, change, "allocate")
    failed(loose, run(capsys, loose), 6, "InputChanged", str(file))


@pytest.mark.parametrize("which", ["base", "adapter"])
def test_an_input_replaced_by_rename_midway(loose, whole, capsys, monkeypatch, which):
    """Whoever replaces a file leaves the one that we hold as it was: the output is that of the old one."""
    files = sorted(getattr(loose, which).glob("*.safetensors"))

    def change():
        for file in files:
            new = file.with_name("new")
            new.write_bytes(file.read_bytes()[:-4] + b"\x7f\x7f\x7f\x7f")
            os.replace(new, file)

    done = midway(monkeypatch, change, "allocate")
    code, lines = run(capsys, loose)
    assert done and code == 0, lines
    assert loose.left() == whole


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"])
@pytest.mark.parametrize("more", [(), ("--resume",)], ids=["plain", "resume"])
def test_a_signal_midway(place, whole, tmp_path, number, code, more):
    """130 or 143, four lines, no OUT; nothing beside it, or with --resume what another run goes on from."""
    gate = tmp_path / "gate"
    gate.touch()

    def job():
        with open(tmp_path / "stderr", "w") as sys.stderr:
            return seam.command(gate, place.args("--quiet", *more))

    child = seam.fork(job)
    seam.reach(gate)
    os.kill(child, number)
    time.sleep(0.1)
    gate.unlink()
    assert seam.ended(child) == code
    lines = (tmp_path / "stderr").read_text().splitlines()
    assert len(lines) == 4 and number.name in lines[0] and "run the same command again" in lines[3]
    assert not place.out.exists()
    assert place.shell.exists() == bool(more)
    place.save(resume=bool(more))
    assert place.left() == whole and not place.shell.exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_to_a_process_of_its_own(place, tmp_path, number, code):
    """The same for the command in a process that a shell started."""
    gate = tmp_path / "gate"
    gate.touch()
    roots = [Path(wiseft_core.__file__).parents[1], Path(__file__).parents[1]]  # the package may be installed elsewhere
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, roots))}
    command = [sys.executable, seam.__file__, str(gate), *place.args()]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            seam.reach(gate)
            process.send_signal(number)
            time.sleep(0.1)
        finally:
            gate.unlink()
        said = process.communicate()[1]
    assert process.returncode == code
    assert f"stopped by {number.name}" in said and "Traceback" not in said
    assert not place.out.exists() and not place.shell.exists()


def test_a_second_interrupt_is_immediate(place, whole, tmp_path):
    """While the first one waits for a write that hangs, the second one ends the process; the next run cleans up."""
    gate = tmp_path / "gate"
    gate.touch()
    child = seam.fork(lambda: seam.command(gate, place.args("--quiet")))
    seam.reach(gate)
    sent, ended = 0, (0, 0)
    while ended[0] == 0 and sent < 200:
        os.kill(child, signal.SIGINT)
        sent += 1
        time.sleep(0.05)
        ended = os.waitpid(child, os.WNOHANG)
    assert os.waitstatus_to_exitcode(ended[1]) == -signal.SIGINT and sent > 1
    assert gate.exists() and not place.out.exists()
    gate.unlink()
    place.save(resume=False)
    assert place.left() == whole and not place.shell.exists()


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077, 0o002], ids=oct)
def test_modes_follow_the_umask(place, tmp_path, umask):
    """Files are 0666 and folders 0777 less the umask, whatever the modes of the inputs."""
    assert in_child(tmp_path, place, lambda: os.umask(umask))[0] == 0
    for path in [place.out, *place.out.rglob("*")]:
        wanted = 0o777 if path.is_dir() else 0o666
        assert stat.S_IMODE(path.stat().st_mode) == wanted & ~umask, path
    assert place.beside() == ["stderr"]
