"""Publishing: complete or absent after a fault, an interrupt or a kill at any operation."""

from __future__ import annotations

import errno
import json
import os
import shutil

import pytest
from store.publish_job import Seam, make, make_base, start, tree

from wiseft_core.errors import Fault
from wiseft_core.store.faults import faults
from wiseft_core.store.files import FILES
from wiseft_core.store.publish import Staging


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
    process = start("kill", tmp_path)
    results = json.loads(process.communicate()[0])
    assert {operation for operation, *_ in results} >= {"lock", "mkdir", "write_at", "rename", "unlink", "rmdir"}
    assert sum(half for _, half, *_ in results) > 5
    assert [row for row in results if not all(row[2:])] == []


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
