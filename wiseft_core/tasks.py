"""The tasks that fill the shards of an output: each writes a part of one tensor, and may run in any thread.

Verb floor, below `offline`: it knows where bytes come from and where they go, and nothing of staging or publishing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Final

import torch
from torch import Tensor

from wiseft_core.bound import Bound, Prepared
from wiseft_core.executors import Task, run
from wiseft_core.sources import Source
from wiseft_core.statedict import StateDict
from wiseft_core.store.checkpoint import Checkpoint
from wiseft_core.store.files import Files
from wiseft_core.store.shards import Shard
from wiseft_core.store.writer import ShardChecker, ShardWriter
from wiseft_core.tiles import Tile, grid
from wiseft_core.types import TensorSpec

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all, from the threads that do the work."""

CHUNK: Final = 1 << 22
"""Elements that one task computes: enough to make hand-over cheap, few enough to keep every thread busy."""


def fill(
    writers: Sequence[ShardWriter], view: StateDict | Source, done: Counter, finish: Callable[[ShardWriter], None]
) -> Iterator[Task]:
    """Everything that fills the shards, in the order in which the bytes lie on disk.

    Args:
        writers: The shards to fill.
        view: Where their tensors come from.
        done: Told of bytes written.
        finish: Called with each writer by the last of its tasks to end, in whichever thread that runs.
    """
    for writer in writers:
        last = _Last(partial(finish, writer))
        for name, spec in writer.header.specs.items():
            if isinstance(view, StateDict):
                yield from map(last.one_of, _tensor(writer, view, name, spec, done))
            else:
                yield last.one_of(_copy(writer, name, view, name, 0, spec.nbytes, done))
        yield last.end


def compare(
    shards: Sequence[Shard],
    folder: Path,
    view: StateDict | Source,
    files: Files,
    threads: int,
    progress: Progress | None,
) -> None:
    """Compare the shards in a folder with what would be written; nothing is.

    Raises:
        CheckpointError: One is missing, or has another byte.
        WiseftError: As for what would be written.
    """
    checkers: list[ShardChecker] = []
    done = Counter(progress, sum(shard.header.payload for shard in shards))
    try:
        for shard in shards:
            checkers.append(ShardChecker(folder / shard.name, shard.header, files))
        with ThreadPoolExecutor(threads) as pool:
            run(fill(checkers, view, done, lambda checker: None), pool, window=2 * threads)
    finally:
        for checker in checkers:
            checker.abort()


def _tensor(writer: ShardWriter, view: StateDict, name: str, spec: TensorSpec, done: Counter) -> Iterator[Task]:
    """The tasks that write one tensor of a view: one copy, or its tiles in chunks."""
    bound, alpha = view.bound, view.alphas.get(name, 0.0)
    source, key = bound.source(name)
    if bound.is_copy(name, alpha):
        yield _copy(writer, name, source, key, 0, spec.nbytes, done)
        return
    once = _Once(bound, name, alpha)
    binding = bound.plan.bindings.get(name)
    rows = binding.rows if binding is not None and alpha != 0 else None
    item, chunk, reached = spec.nbytes // max(spec.numel, 1), list[Tile](), 0
    for tile in grid(spec.shape, rows):
        if tile.start > reached:  # untouched rows between touched ones
            yield _copy(writer, name, source, key, reached * item, tile.start * item, done)
        chunk.append(tile)
        reached = tile.stop
        if rows is not None or tile.stop - chunk[0].start >= CHUNK:
            yield _compute(writer, once, chunk, item, done)
            chunk = []
    if chunk:
        yield _compute(writer, once, chunk, item, done)
    if reached < spec.numel:
        yield _copy(writer, name, source, key, reached * item, spec.nbytes, done)


def _copy(writer: ShardWriter, name: str, source: Source, key: str, start: int, stop: int, done: Counter) -> Task:
    """A task that copies bytes [start, stop) of a tensor as they are."""

    def task() -> None:
        if isinstance(source, Checkpoint):
            file = source.file_of(key)
            writer.copy(name, file.descriptor, file.offset_of(key) + start, stop - start, start=start)
        else:
            writer.write(name, start, _bytes(source.get_tensor(key))[start:stop])
        done.add(stop - start)

    return task


def _compute(writer: ShardWriter, once: _Once, tiles: Sequence[Tile], item: int, done: Counter) -> Task:
    """A task that computes some tiles of a tensor and writes each where it belongs."""

    def task() -> None:
        prepared = once()
        with torch.no_grad():
            for tile in tiles:
                writer.write(prepared.name, tile.start * item, _bytes(prepared.value(tile)))
                done.add((tile.stop - tile.start) * item)

    return task


def _bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, in its own memory where that is possible."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


class _Last:
    """Runs something after the last of a group of tasks, in the thread of whichever that is."""

    def __init__(self, then: Task) -> None:
        self._then, self._left, self._lock = then, 1, Lock()  # the one is for `end`

    def one_of(self, task: Task) -> Task:
        """The task as one of the group."""
        with self._lock:
            self._left += 1

        def counted() -> None:
            task()
            self.end()

        return counted

    def end(self) -> None:
        """Count one as ended; a task itself, once the group is complete."""
        with self._lock:
            self._left -= 1
            last = self._left == 0
        if last:
            self._then()


class _Once:
    """One tensor's factors, read by whichever of its tasks comes first, gone with the last."""

    def __init__(self, bound: Bound, name: str, alpha: float) -> None:
        self._bound, self._name, self._alpha = bound, name, alpha
        self._lock = Lock()
        self._prepared: Prepared | None = None

    def __call__(self) -> Prepared:
        """The prepared tensor."""
        with self._lock, torch.no_grad():
            if self._prepared is None:
                self._prepared = self._bound.prepare(self._name, self._alpha)
            return self._prepared


class Counter:
    """Bytes done, added up from many threads."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done, self._lock = progress, total, 0, Lock()

    def add(self, count: int) -> None:
        """Count bytes, and tell."""
        if self._progress is not None:
            with self._lock:
                self._done += count
                self._progress(self._done, self._total)
