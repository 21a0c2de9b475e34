"""The tasks that fill the shards of an output: each writes a part of one tensor, and may run in any thread.

Verb floor, below `offline`: it knows where bytes come from and where they go, and nothing of staging or publishing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from threading import Lock
from typing import Final, NamedTuple, Protocol

import numpy as np

from wiseft_core.blending import Share
from wiseft_core.bound import Bound, Prepared
from wiseft_core.executors import Task
from wiseft_core.kits import Values
from wiseft_core.sources import Source
from wiseft_core.spans import Span
from wiseft_core.statedict import StateDict
from wiseft_core.store.checkpoint import Checkpoint
from wiseft_core.store.excerpt import Excerpt
from wiseft_core.store.files import Buffer
from wiseft_core.store.writer import ShardWriter
from wiseft_core.types import TensorSpec

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all, from the threads that do the work."""

CHUNK: Final = 1 << 22
"""Elements that one task computes: enough to make hand-over cheap, few enough to keep every thread busy."""

COMPUTED: Final = 4
"""How many times as long as to copy a byte it takes, about, to compute one."""

PIECE: Final = 1 << 25
"""Bytes that one task copies from a file."""


class Writer(Protocol):
    """Where the bytes of a shard go."""

    def write(self, name: str, start_byte: int, buffer: Buffer) -> None:
        """Put `buffer` at byte `start_byte` of the payload of a tensor."""

    def copy(
        self, name: str, source_descriptor: int, source_offset: int, nbytes: int, *, start: int = 0, origin: object = ""
    ) -> None:
        """Copy `nbytes` from the file `origin` at `source_offset` to byte `start` of the payload of a tensor."""


class Target(NamedTuple):
    """A shard of one output, and where its tensors come from."""

    writer: ShardWriter
    view: StateDict | Source


def fill(
    shards: Iterable[Sequence[Target]],
    done: Counter,
    finish: Callable[[ShardWriter], None],
    *,
    only: Set[str] | None = None,
    copies_first: bool = False,
) -> Iterator[Iterator[Task]]:
    """Everything that fills the shards: for each its tasks, in the order in which the bytes lie on disk.

    The shards with most to do come first: so threads end together, and hardly ever meet in the last one.

    Args:
        shards: Each shard once for every output that is made at the same time, with views over one binding: what they
            compute is computed for all of them together.
        done: Told of bytes written.
        finish: Called with each writer by the last of its tasks to end, in whichever thread that runs.
        only: The tensors to write, the others being there already; None: all.
        copies_first: Put in front what begins with bytes that are only copied: what computes is not ready yet.
    """

    def filled(targets: Sequence[Target]) -> Iterator[Task]:
        last = _Last(partial(_finish, targets, finish))
        for name, spec in targets[0].writer.header.specs.items():
            if only is None or name in only:
                yield from map(last.one_of, _tensor(targets, name, spec, done))
        yield last.end

    def order(targets: Sequence[Target]) -> tuple[int, int]:
        return _copied_first(targets) if copies_first else 0, _effort(targets)

    return map(filled, sorted(shards, key=order, reverse=True))


def _effort(targets: Sequence[Target]) -> int:
    """About how long a shard takes, in bytes that are copied."""
    return sum(nbytes * (COMPUTED if is_touched else 1) for nbytes, is_touched in _sizes(targets))


def _copied_first(targets: Sequence[Target]) -> int:
    """How many bytes a shard begins with that are only copied."""
    return sum(nbytes for nbytes, _ in takewhile(lambda size: not size[1], _sizes(targets)))


def _sizes(targets: Sequence[Target]) -> Iterator[tuple[int, bool]]:
    """Of each tensor of a shard, in its order, the bytes and whether tuning touches it."""
    view, specs = targets[0].view, targets[0].writer.header.specs
    touched = view.plan.bindings if isinstance(view, StateDict) else ()
    return ((spec.nbytes, name in touched) for name, spec in specs.items())


def _finish(targets: Sequence[Target], finish: Callable[[ShardWriter], None]) -> None:
    """Finish a shard of every output."""
    for target in targets:
        finish(target.writer)


@dataclass(frozen=True, slots=True)
class Copied:
    """Bytes [start, stop) of a tensor of one output, which are those of its source as they are."""

    output: int
    name: str
    source: Source | Excerpt
    key: str
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """Bytes to write."""
        return self.stop - self.start

    def write(self, writers: Sequence[Writer], done: Counter) -> None:
        """Copy them, from file to file where they are in one."""
        writer = writers[self.output]
        if isinstance(self.source, Checkpoint | Excerpt):
            descriptor, offset, origin = self.source.place_of(self.key)
            writer.copy(self.name, descriptor, offset + self.start, self.nbytes, start=self.start, origin=origin)
        else:
            writer.write(self.name, self.start, _bytes(self.source.get_tensor(self.key))[self.start : self.stop])
        done.add(self.nbytes)


@dataclass(frozen=True, slots=True)
class Computed:
    """Tiles of a tensor that are computed, of all outputs that it differs in together; `item` is bytes per element."""

    outputs: tuple[int, ...]
    name: str
    bound: Bound
    shares: tuple[Share, ...]
    tiles: tuple[Span, ...]
    item: int

    @property
    def nbytes(self) -> int:
        """Bytes to write."""
        return sum(tile.stop - tile.start for tile in self.tiles) * self.item * len(self.outputs)

    def write(self, writers: Sequence[Writer], done: Counter, once: Callable[[], Prepared]) -> None:
        """Compute each tile and write it where it belongs."""
        prepared = once()
        for tile in self.tiles:
            for output, value in zip(self.outputs, prepared.values(tile), strict=True):
                writers[output].write(self.name, tile.start * self.item, _bytes(value))
                done.add((tile.stop - tile.start) * self.item)


def parts_of(views: Sequence[StateDict | Source], name: str, spec: TensorSpec) -> Iterator[Copied | Computed]:
    """What makes up one tensor of some outputs: copies for each, or its tiles in chunks for all of them."""
    shares = dict[int, Share]()
    for at, view in enumerate(views):
        if not isinstance(view, StateDict):
            yield from _copies(at, name, view, name, 0, spec.nbytes)
        elif view.is_copy(name):
            yield from _copies(at, name, *view.bound.source(name), 0, spec.nbytes)
        else:
            shares[at] = view.share(name)
            bound = view.bound
    if not shares:
        return
    whole = Computed(tuple(shares), name, bound, tuple(shares.values()), (), spec.nbytes // max(spec.numel, 1))
    source, item, chunk, reached = bound.source(name), whole.item, list[Span](), 0
    for tile in bound.tiles(name, whole.shares):
        if chunk and (tile.start > reached or (reached - chunk[0].start) * len(shares) >= CHUNK):
            yield replace(whole, tiles=tuple(chunk))
            chunk = []
        if tile.start > reached:  # what is untouched between touched parts
            for at in shares:
                yield from _copies(at, name, *source, reached * item, tile.start * item)
        chunk.append(tile)
        reached = tile.stop
    if chunk:
        yield replace(whole, tiles=tuple(chunk))
    if reached < spec.numel:
        for at in shares:
            yield from _copies(at, name, *source, reached * item, spec.nbytes)


def _copies(output: int, name: str, source: Source, key: str, start: int, stop: int) -> Iterator[Copied]:
    """Copies of bytes [start, stop) of a tensor as they are, for as many threads as there are."""
    piece = PIECE if isinstance(source, Checkpoint) else max(stop, 1)
    for at in range(start, max(stop, start + 1), piece):
        yield Copied(output, name, source, key, at, min(at + piece, stop))


def _tensor(targets: Sequence[Target], name: str, spec: TensorSpec, done: Counter) -> Iterator[Task]:
    """The tasks that write one tensor of some outputs."""
    writers, once = [target.writer for target in targets], None
    for part in parts_of([target.view for target in targets], name, spec):
        if isinstance(part, Copied):
            yield partial(part.write, writers, done)
        else:
            once = once or Once(part.bound, name, part.shares)
            yield partial(part.write, writers, done, once)


def _bytes(values: Values) -> memoryview:
    """The bytes of a tensor or array, in its own memory where that is possible."""
    if isinstance(values, np.ndarray):
        return values.view(np.uint8).data
    from wiseft_core.dtypes import raw_bytes

    return raw_bytes(values).numpy().data


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


class Once:
    """One tensor's factors, read by whichever of its tasks comes first, gone with the last."""

    def __init__(self, bound: Bound, name: str, shares: Sequence[Share]) -> None:
        self._bound, self._name, self._shares = bound, name, shares
        self._lock = Lock()
        self._prepared: Prepared | None = None

    def __call__(self) -> Prepared:
        """The prepared tensor."""
        with self._lock:
            if self._prepared is None:
                in_arrays = self._bound.in_arrays(self._name)
                self._prepared = self._bound.prepare(self._name, self._shares, in_arrays=in_arrays)
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
