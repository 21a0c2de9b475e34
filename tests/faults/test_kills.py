"""SIGKILL at any operation and at any moment: OUT is absent or complete, and resuming gives the very same bytes."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time

import pytest
from faults import seam
from folders import tree


@pytest.fixture
def place(tmp_path):
    """A small job in a folder of its own."""
    (tmp_path / "work").mkdir()
    return seam.small(tmp_path / "work")


def survive(place, whole, name):
    """After a kill: OUT absent or whole; the run that resumes makes it whole, and leaves nothing beside it."""
    left = place.left()
    assert left in (None, whole), name
    report = place.save(seam.Unsynced(lambda *_: None))
    assert place.left() == whole, name
    assert place.beside() == [], name
    assert (report.files == ()) == (left is not None), name
    shutil.rmtree(place.out)


def test_a_kill_at_every_operation(place):
    """Ahead of every operation that changes the disk, and half-way through every write and copy."""
    inputs = place.inputs()
    log, whole = seam.operations(place)
    assert {log[number - 1] for number in seam.changing(log)} == {
        "allocate", "copy_range", "create", "fsync", "fsync_folder", "lock", "mkdir", "rename", "rmdir", "unlink",
        "write_at",
    }  # fmt: skip
    points = [(number, False) for number in seam.changing(log)]
    points += [(number, True) for number, name in enumerate(log, 1) if name in ("write_at", "copy_range")]
    for number, half in points:
        before = seam.killer(number, half=half)
        child = seam.fork(lambda before=before: place.save(seam.Unsynced(before)))
        assert seam.ended(child) == -signal.SIGKILL
        survive(place, whole, (number, log[number - 1], half))
    assert place.inputs() == inputs


def test_a_kill_at_every_operation_of_a_resumed_run(place, tmp_path):
    """A run that goes on after a first kill is killed itself, at every operation: the third one makes it whole."""
    log, whole = seam.operations(place)
    first = seam.killer(log.index("rename"))  # all is written by then, and both shards are recorded
    assert seam.ended(seam.fork(lambda: place.save(seam.Unsynced(first)))) == -signal.SIGKILL
    shutil.copytree(place.shell, tmp_path / "stopped")
    resumed = []
    report = place.save(seam.Unsynced(lambda number, name, arguments: resumed.append(name)))
    assert place.left() == whole and report.files
    assert resumed.count("allocate") == 0
    for number in seam.changing(resumed):
        shutil.rmtree(place.out, ignore_errors=True)
        shutil.copytree(tmp_path / "stopped", place.shell)
        before = seam.killer(number)
        child = seam.fork(lambda before=before: place.save(seam.Unsynced(before)))
        assert seam.ended(child) == -signal.SIGKILL
        survive(place, whole, (number, resumed[number - 1]))


def test_a_kill_while_a_published_run_is_cleaned_up(place, tmp_path):
    """Killed right after the rename, and again at every step of ending that: OUT stays whole, in the end alone."""
    log, whole = seam.operations(place)
    first = seam.killer(log.index("rename") + 2)
    assert seam.ended(seam.fork(lambda: place.save(seam.Unsynced(first)))) == -signal.SIGKILL
    assert place.left() == whole and place.shell.exists()
    shutil.copytree(place.shell, tmp_path / "stopped")
    ending = []
    assert place.save(seam.Unsynced(lambda number, name, arguments: ending.append(name))).files == ()
    assert "fsync_folder" in ending and ending.count("unlink") > 2
    for number in seam.changing(ending):
        shutil.copytree(tmp_path / "stopped", place.shell)
        before = seam.killer(number)
        child = seam.fork(lambda before=before: place.save(seam.Unsynced(before)))
        assert seam.ended(child) == -signal.SIGKILL
        assert place.left() == whole
        place.save(seam.Unsynced(lambda *_: None))
        assert place.left() == whole and place.beside() == [], ending[number - 1]


def kill_at_random(place, kills, draw, *, sync):
    """Kill runs of a job at random moments, one to three in a row, until `kills` have been killed.

    It may be more until a run finds finished shards: on a busy machine the moments miss them for long. Gives how many
    chains there were, and how many runs found some.
    """
    place.save(sync=sync, threads=2)
    whole = tree(place.out)
    chains = found = done = 0
    span = measured(place, sync)
    while done < kills or (not found and done < 10 * kills):
        shutil.rmtree(place.out, ignore_errors=True)
        chains += 1
        for _ in range(draw.randint(1, 3)):
            found += bool(list(place.shell.glob("journal/done/*")))
            child = seam.fork(lambda: place.save(sync=sync, threads=2) and 0)
            time.sleep(draw.uniform(0, span))
            os.kill(child, signal.SIGKILL)
            code = seam.ended(child)
            assert code in (0, -signal.SIGKILL)
            done += code != 0
            assert place.left() in (None, whole)
        child = seam.fork(lambda: place.save(sync=sync, threads=2) and 0)
        assert seam.ended(child) == 0
        assert place.left() == whole
        assert place.beside() == []
    return chains, found


def measured(place, sync):
    """About how long a run takes, so that kills fall into it."""
    shutil.rmtree(place.out)
    begun = time.monotonic()
    assert seam.ended(seam.fork(lambda: place.save(sync=sync, threads=2) and 0)) == 0
    return time.monotonic() - begun


@pytest.mark.parametrize("sync", [True, False], ids=["sync", "no-sync"])
def test_kills_at_random_moments(tmp_path, sync):
    """20 random moments of a job of 24 MB, in chains: absent or whole after each, the same bytes at the end."""
    place = seam.large(tmp_path, rows=512)
    inputs = place.inputs()
    _, found = kill_at_random(place, 20, random.Random(f"kills {sync}"), sync=sync)
    assert found > 0  # some runs did go on where another was
    assert place.inputs() == inputs


@pytest.mark.long
@pytest.mark.parametrize("sync", [True, False], ids=["sync", "no-sync"])
def test_a_hundred_kills_at_random_moments(tmp_path, sync):
    """100 random moments of a job of 50 MB, with sync and without: 200 in all."""
    place = seam.large(tmp_path)
    inputs = place.inputs()
    chains, found = kill_at_random(place, 100, random.Random(f"many kills {sync}"), sync=sync)
    print(f"{chains} chains, {found} runs went on from finished shards")
    assert found > 10
    assert place.inputs() == inputs
