"""Power loss at any moment, replayed from a log of operations: what was not synced may be lost, in any combination.

The model is that of POSIX, which promises less than file systems do: the content of a file is what it was at its last
fsync, plus any of the writes since, whole or torn; the entries of a folder are those at its last fsync, plus any of
the changes since.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from faults import seam
from folders import tree

from wiseft_core import errors, verify

RANDOM_STATES = 24
"""States drawn at random for each prefix of the log, beside those that are always taken."""


@dataclass
class File:
    """The content that is safe, and the writes since: None for the length, else offset and bytes."""

    safe: bytes = b""
    since: list = field(default_factory=list)


@dataclass
class Folder:
    """The entries that are safe, and the changes since: each a name with what it is from now on, None for nothing."""

    safe: dict = field(default_factory=dict)
    since: list = field(default_factory=list)
    now: dict = field(default_factory=dict)

    def put(self, name, node):
        """Change an entry."""
        self.since.append([(self, name, node)])
        self.now[name] = node


class Recorder(seam.Steps):
    """The real file system, with a log of every change and of what it carried."""

    def __init__(self, root):
        super().__init__(self.note)
        self.root, self.log = root, []

    def note(self, number, name, arguments):
        if name in seam.READS:
            return
        place = [self.relative(value) for value in arguments if isinstance(value, Path)]
        if name == "write_at":
            self.log.append((name, *place, arguments[2], bytes(memoryview(arguments[1]).cast("B"))))
        elif name == "copy_range":
            source, start, _, offset, count, _ = arguments
            self.log.append(("write_at", *place, offset, os.pread(source, count, start)))
        elif name == "allocate":
            self.log.append((name, *place, arguments[1]))
        elif name == "lock":
            self.log.append(("create", *place))
        else:
            self.log.append((name, *place))

    def relative(self, path):
        """The parts of a path below the root."""
        return path.relative_to(self.root).parts


class Disk:
    """What the log has done so far: what is safe, and what is not."""

    def __init__(self):
        self.root = Folder()

    def at(self, parts):
        """What is at a path now."""
        node = self.root
        for part in parts:
            node = node.now[part]
        return node

    def apply(self, operation, parts, *more):
        """One operation of the log."""
        if operation in ("create", "mkdir"):
            if parts[-1] not in self.at(parts[:-1]).now:
                self.at(parts[:-1]).put(parts[-1], File() if operation == "create" else Folder())
        elif operation == "allocate":
            self.at(parts).since.append((None, more[0]))
        elif operation == "write_at":
            self.at(parts).since.append(more)
        elif operation == "fsync":
            node = self.at(parts)
            node.safe, node.since = content(node.safe, node.since), []
        elif operation == "fsync_folder":
            node = self.at(parts)
            node.safe, node.since = dict(node.now), []
        elif operation == "rename":
            self.rename(parts, more[0])
        else:
            assert operation in ("unlink", "rmdir"), operation
            self.at(parts[:-1]).put(parts[-1], None)
            del self.at(parts[:-1]).now[parts[-1]]

    def rename(self, parts, target):
        """One change of two folders: on disk it is there as a whole, or not at all."""
        here, there, node = self.at(parts[:-1]), self.at(target[:-1]), self.at(parts)
        change = [(here, parts[-1], None), (there, target[-1], node)]
        here.since.append(change)
        there.since.append(change)
        del here.now[parts[-1]]
        there.now[target[-1]] = node


def content(safe, writes):
    """The bytes of a file after some writes."""
    data = bytearray(safe)
    for offset, piece in writes:
        end = piece if offset is None else offset + len(piece)
        data.extend(bytes(max(0, end - len(data))))
        if offset is not None:
            data[offset:end] = piece
    return bytes(data)


def lost(disk, keep_write, keep_change):
    """The tree after a power loss: `keep_write` gives what is left of a write, `keep_change` whether a change is."""
    decided = {}

    def entries(folder):
        found = dict(folder.safe)
        for change in folder.since:
            if decided.setdefault(id(change), keep_change()):
                found |= {name: node for owner, name, node in change if owner is folder}
        return {name: node for name, node in found.items() if node is not None}

    def walk(folder, prefix):
        for name, node in sorted(entries(folder).items()):
            if isinstance(node, Folder):
                yield f"{prefix}{name}/", None
                yield from walk(node, f"{prefix}{name}/")
            else:
                yield prefix + name, content(node.safe, filter(None, map(keep_write, node.since)))

    return dict(walk(disk.root, ""))


def states(disk, draw):
    """Trees that a power loss may leave now."""

    def torn(write):
        offset, piece = write
        if draw.random() > odds:
            return None
        if offset is None or draw.random() < odds:
            return write
        return offset, piece[: draw.randrange(len(piece) + 1)]

    yield lost(disk, lambda write: None, lambda: False)  # all is lost that was not synced
    yield lost(disk, lambda write: None, lambda: True)  # entries stay, contents are lost
    yield lost(disk, lambda write: write if write[0] is None else None, lambda: True)  # full length, all zeros
    yield lost(disk, lambda write: write, lambda: True)  # nothing is lost
    for _ in range(RANDOM_STATES):
        odds = draw.choice((0.3, 0.6, 0.9))
        yield lost(disk, torn, lambda odds=odds: draw.random() < odds)


def materialise(state, folder):
    """The tree of a state, on disk."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, data in state.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if data is None:
            path.mkdir(exist_ok=True)
        else:
            path.write_bytes(data)


def every_state(log, draw):
    """Each distinct tree that a power loss may leave after a prefix of the log, with the length of that prefix."""
    disk, seen = Disk(), set()
    for length in range(len(log) + 1):
        for state in states(disk, draw):
            key = hash(tuple(state.items()))
            if key not in seen:
                seen.add(key)
                yield length, state
        if length < len(log):
            disk.apply(*log[length])


@pytest.fixture
def place(tmp_path):
    """A small job whose output goes to a folder of its own."""
    place = seam.small(tmp_path)
    (tmp_path / "run").mkdir()
    return seam.Place(place.base, place.adapter, tmp_path / "run" / "out")


def record(place, **options):
    """The log of an undisturbed run, and the tree that it leaves."""
    recorder = Recorder(place.out.parent)
    place.save(recorder, **options)
    assert verify(place.out, base=place.base, adapter=place.adapter).ok
    return recorder.log, tree(place.out)


def out_of(state):
    """The files of OUT in a state, None where it is not there."""
    there = {name.removeprefix("out/"): data for name, data in state.items() if name.startswith("out/")}
    return {name: data for name, data in there.items() if data is not None} if there else None


def test_the_log_replays_to_what_is_there(place):
    """With nothing lost, the whole log gives the very tree that the run left."""
    log, whole = record(place)
    assert {entry[0] for entry in log} == {
        "allocate", "create", "fsync", "fsync_folder", "mkdir", "rename", "rmdir", "unlink", "write_at",
    }  # fmt: skip
    disk = Disk()
    for entry in log:
        disk.apply(*entry)
    assert out_of(lost(disk, lambda write: write, lambda: True)) == whole
    assert out_of(lost(disk, lambda write: None, lambda: False)) == whole  # all of it is safe at the end


@pytest.mark.parametrize("resume", [True, False], ids=["resume", "plain"])
def test_power_loss_leaves_nothing_or_all(place, resume):
    """After every prefix of a synced run, whatever was not synced is lost: OUT is absent, or complete."""
    log, whole = record(place, resume=resume)
    tally = {"absent": 0, "whole": 0}
    for length, state in every_state(log, random.Random("power")):
        left = out_of(state)
        assert left in (None, whole), (length, log[:length][-1:])
        tally["absent" if left is None else "whole"] += 1
    assert tally["absent"] > 150 and tally["whole"] > 0


def test_a_run_resumes_after_power_loss(place, tmp_path):
    """From what a power loss may leave, the run that resumes gives the very bytes of an undisturbed one."""
    log, whole = record(place)
    draw = random.Random("resume")
    left = [state for _, state in every_state(log, draw) if len(state) > 5]
    resumed = seam.Place(place.base, place.adapter, tmp_path / "crash" / "out")
    skipped = 0
    for state in draw.sample(left, 60):
        materialise(state, tmp_path / "crash")
        log.clear()
        resumed.save(seam.Unsynced(lambda number, name, arguments: log.append(name)))
        assert resumed.left() == whole
        assert resumed.beside() == []
        skipped += log.count("allocate") < 2
    assert skipped > 0  # some did go on where the run was


def test_the_model_finds_a_missing_sync(place):
    """The test can fail: the same log without its fsyncs of files leaves a wrong OUT in some state."""
    log, whole = record(place)
    careless = [entry for entry in log if entry[0] != "fsync"]
    assert any(out_of(state) not in (None, whole) for _, state in every_state(careless, random.Random("careless")))


def test_without_sync_nothing_is_claimed(place, tmp_path):
    """With --no-sync a power loss may leave a torn OUT; the manifest claims no sync, and verify tells every time."""
    log, whole = record(place, sync=False)
    assert json.loads(whole["wiseft.json"])["policy"]["synced"] is False
    assert not [entry for entry in log if entry[0].startswith("fsync")]
    torn = {}
    for _, state in every_state(log, random.Random("careless")):
        left = out_of(state)
        if left not in (None, whole):
            torn[hash(tuple(left.items()))] = state
    assert len(torn) > 5
    for state in torn.values():
        materialise(state, tmp_path / "crash")
        try:
            assert not verify(tmp_path / "crash" / "out").ok
        except errors.CheckpointError as error:
            assert "wiseft.json" in str(error)
