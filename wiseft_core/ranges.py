"""The work of a job for other processes: tasks that cross over whole, and may be run twice.

Verb floor, below `offline`. A `Range` carries all that it needs: where to write in files whose space is reserved, where
in which files to read, and the little of the plan that is about its tensors; nothing is planned again. Files are on a
file system that all processes share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version as installed
from pathlib import Path
from typing import Final

from wiseft_core import loops
from wiseft_core.errors import CheckpointError, ConfigError
from wiseft_core.excerpts import only
from wiseft_core.executors import Sent, spread
from wiseft_core.families import FAMILIES
from wiseft_core.store.checkpoint import Checkpoint
from wiseft_core.store.excerpt import Excerpt
from wiseft_core.store.files import FILES, Buffer, Files
from wiseft_core.store.writer import ShardWriter, digest_file
from wiseft_core.tasks import Computed, Copied, Counter, Once, Target, parts_of
from wiseft_core.version import __version__

RANGE: Final = 1 << 26
"""Bytes that one task writes, of all outputs together: a shard, or a range of a large one."""
BUILD: Final = (__version__, installed("numpy"), installed("torch"))
WORKERS: Final = 128
"""How many workers an executor may have that does not say."""


class RangeWriter:
    """A file in the making, for a process that writes a part of it.

    Args:
        path: The file.
        inode: Its number: a run that is over must not write into the file of another.
        starts: Where the payload of each tensor starts.
        files: The seam to write through.
    """

    def __init__(self, path: str, inode: int, starts: Mapping[str, int], files: Files) -> None:
        self._path, self._starts, self._files = Path(path), starts, files
        self._descriptor = files.open_write(self._path)
        if files.identity(self._descriptor)[1] != inode:
            self.close()
            raise CheckpointError(
                f"{path} — not the file that this task is to write to",
                expected="the file that the job has made",
                got="another one",
                hint="the job is over, or has been started again",
            )

    def write(self, name: str, start_byte: int, buffer: Buffer) -> None:
        """Put `buffer` at byte `start_byte` of the payload of a tensor."""
        self._files.write_at(self._descriptor, buffer, self._starts[name] + start_byte, self._path)

    def copy(
        self, name: str, source_descriptor: int, source_offset: int, nbytes: int, *, start: int = 0, origin: object = ""
    ) -> None:
        """Copy `nbytes` from the file `origin` at `source_offset` to byte `start` of the payload of a tensor."""
        offset = self._starts[name] + start
        self._files.copy_range(source_descriptor, source_offset, self._descriptor, offset, nbytes, self._path)

    def end(self, sync: bool) -> None:
        """Force what was written to disk, if `sync`."""
        if sync:
            self._files.fsync(self._descriptor, self._path)

    def close(self) -> None:
        """Give the descriptor back."""
        self._files.close(self._descriptor)


@dataclass(frozen=True, slots=True)
class Range:
    """A task: some parts of a shard, of every output that is made at the same time.

    Attributes:
        targets: Path and inode of each output's file.
        starts: Where the payload of each tensor starts in these.
        parts: What to write.
        sync: Force it to disk.
        build: The versions of this package, numpy and torch that the job is planned with: others may give other bits.
    """

    targets: tuple[tuple[str, int], ...]
    starts: Mapping[str, int]
    parts: tuple[Copied | Computed, ...]
    sync: bool
    build: tuple[str, str, str] = BUILD

    def __repr__(self) -> str:
        return f"{len(self.parts)} parts of {Path(self.targets[0][0]).name}"

    def __call__(self) -> None:
        """Write them; what a run before has written of them is written again, the same."""
        if self.build != BUILD:
            raise ConfigError(
                "executor — a worker has other software",
                expected="wiseft_core {} with numpy {} and torch {}, as where the job was started".format(*self.build),
                got="wiseft_core {} with numpy {} and torch {}".format(*BUILD),
                hint="install the same versions for every worker: then the bits are the same too",
            )
        if loops.expect(sum(part.nbytes // part.item for part in self.parts if isinstance(part, Computed))):
            loops.load()
        done, once = Counter(None, 0), dict[str, Once]()
        with ExitStack() as opened:
            writers = list[RangeWriter]()
            for path, inode in self.targets:
                writers.append(RangeWriter(path, inode, self.starts, FILES))
                opened.callback(writers[-1].close)
            for part in self.parts:
                if isinstance(part, Copied):
                    part.write(writers, done)
                else:
                    bound = replace(part.bound, families={**FAMILIES, **part.bound.families})
                    part.write(writers, done, once.setdefault(part.name, Once(bound, part.name, part.shares)))
            for writer in writers:
                writer.end(self.sync)


@dataclass(frozen=True, slots=True)
class Seal:
    """A task: the header of a shard whose payload is there, and the digest of it all."""

    target: tuple[str, int]
    header: bytes
    size: int
    sync: bool

    def __repr__(self) -> str:
        return f"seal of {Path(self.target[0]).name}"

    def __call__(self) -> str:
        """Write the header; the digest of the file."""
        writer, path = RangeWriter(*self.target, {"": 0}, FILES), Path(self.target[0])
        try:
            writer.write("", 0, self.header)
            writer.end(self.sync)
            descriptor = FILES.open_read(path)
            try:
                return digest_file(descriptor, self.size, FILES, path)
            finally:
                FILES.close(descriptor)
        finally:
            writer.close()


def fill(
    groups: Sequence[Sequence[Target]],
    executor: Executor,
    done: Counter,
    finish: Callable[[ShardWriter, str], None],
    *,
    sync: bool,
) -> None:
    """Have the shards filled by other processes, each by as many as there are ranges in it.

    Args:
        groups: Each shard once for every output that is made at the same time, with views over one binding.
        executor: Who runs the tasks.
        done: Told of bytes written.
        finish: Called here with each writer and the digest of its file.
        sync: Force everything to disk.
    """

    def seals(group: Sequence[Target]) -> Iterator[Sent]:
        for target in group:
            writer = target.writer
            writer.check_whole()
            task = Seal(_target(writer), writer.header.raw, writer.header.size, sync)

            def sealed(digest: str, writer: ShardWriter = writer) -> tuple[Sent, ...]:
                finish(writer, digest)
                return ()

            yield Sent(task, sealed)

    def ranges() -> Iterator[Sent]:
        for group in groups:
            yield from _sent(group, sync, done, seals)

    spread(ranges(), executor, window=2 * getattr(executor, "_max_workers", WORKERS))


def _sent(
    group: Sequence[Target], sync: bool, done: Counter, seals: Callable[[Sequence[Target]], Iterator[Sent]]
) -> Iterator[Sent]:
    """The ranges of one shard, and behind the last of them to end what seals it."""
    left, ended = set[int](), False

    def wrote(number: int, task: Range, _: None) -> Iterator[Sent]:
        left.discard(number)
        for part in task.parts:
            outputs = (part.output,) if isinstance(part, Copied) else part.outputs
            for output in outputs:
                group[output].writer.wrote(part.name, part.nbytes // len(outputs))
            done.add(part.nbytes)
        if ended and not left:
            yield from seals(group)

    number = -1
    for number, task in enumerate(ranges_of(group, sync) if not group[0].writer.is_whole else ()):
        left.add(number)
        yield Sent(task, partial(wrote, number, task))
    ended = True
    if not left:  # all are done already, or there are none
        yield from seals(group)


def ranges_of(group: Sequence[Target], sync: bool) -> Iterator[Range]:
    """The tasks that write one shard of every output."""
    header, gathered, size = group[0].writer.header, list[Copied | Computed](), 0
    views = [target.view for target in group]
    for name, spec in header.specs.items():
        for part in parts_of(views, name, spec):
            if gathered and size + part.nbytes > RANGE:
                yield _range(group, gathered, sync)
                gathered, size = [], 0
            gathered.append(part)
            size += part.nbytes
    if gathered:
        yield _range(group, gathered, sync)


def _range(group: Sequence[Target], parts: Sequence[Copied | Computed], sync: bool) -> Range:
    """One task, with all that it needs and nothing else."""
    header, names = group[0].writer.header, {part.name for part in parts}
    bounds = [part.bound for part in parts if isinstance(part, Computed)]
    bound = only(bounds[0], {part.name for part in parts if isinstance(part, Computed)}) if bounds else None
    excerpts = _excerpts([part for part in parts if isinstance(part, Copied)])
    sent = list[Copied | Computed]()
    for part in parts:
        if isinstance(part, Copied):
            sent.append(replace(part, source=excerpts[id(part.source)]))
        elif bound is not None:
            sent.append(replace(part, bound=bound))
    starts = {name: header.start + header.offsets[name] for name in names}
    return Range(tuple(_target(target.writer) for target in group), starts, tuple(sent), sync)


def _target(writer: ShardWriter) -> tuple[str, int]:
    """Where other processes find a file in the making."""
    return str(writer.path), writer.inode


def _excerpts(copies: Sequence[Copied]) -> dict[int, Excerpt]:
    """What is copied of each source."""
    found = dict[int, Excerpt]()
    for source in {id(part.source): part.source for part in copies}.values():
        if isinstance(source, Checkpoint):
            found[id(source)] = Excerpt.of(source, [part.key for part in copies if part.source is source])
    return found
