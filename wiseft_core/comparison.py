"""What an output holds against what it should hold, piece by piece.

Verb floor, below `verification`. Streams: nothing is mapped, and nothing is read before it is compared.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from random import Random
from typing import Final, NamedTuple

import torch
from torch import Tensor

from wiseft_core.bound import Prepared
from wiseft_core.dtypes import raw_bytes
from wiseft_core.report import Problem
from wiseft_core.sources import Memory, Source
from wiseft_core.spans import Span
from wiseft_core.statedict import StateDict
from wiseft_core.store.checkpoint import Checkpoint
from wiseft_core.types import TensorSpec

PIECE: Final = 1 << 20
"""Bytes of an untouched tensor that are compared at once."""
MOST: Final = 1000
"""Problems after which a comparison stops: the output is not what it claims to be."""


class Wanted(NamedTuple):
    """What an output should hold: specs, and for each name its pieces and what was done for it."""

    specs: Mapping[str, TensorSpec]
    pieces: Callable[[str], Iterator[_Piece]]
    kind: Callable[[str], str]


def wanted(tensors: Mapping[str, Tensor]) -> Wanted:
    """What an output of these tensors should hold."""
    if isinstance(tensors, StateDict):
        return Wanted(tensors.plan.outputs, partial(_pieces, tensors), partial(_kind, tensors))
    source = Memory(tensors)
    return Wanted(
        source.specs,
        lambda name: _copied(source, name, name, 0, source.specs[name].nbytes),
        lambda name: "tensors computed",
    )


class _Piece(NamedTuple):
    """Some bytes of a tensor of the output, and how to get what they should be."""

    name: str
    start: int
    size: int
    make: Callable[[], Tensor]


def compare(
    output: Checkpoint,
    wanted: Wanted,
    checks: dict[str, int],
    sample: int | None,
    progress: Callable[[int, int], None] | None,
) -> Iterator[Problem]:
    """Everything in which an output differs from what it should be."""
    specs = wanted.specs
    for name in specs.keys() - output.specs.keys():
        yield Problem("the output", "a tensor that should be there is missing", name)
    for name in output.specs.keys() - specs.keys():
        yield Problem(output.file_of(name).name, "a tensor that should not be there", name)
    fitting = [name for name, spec in specs.items() if output.specs.get(name) == spec]
    for name in specs.keys() & output.specs.keys() - set(fitting):
        yield Problem(output.file_of(name).name, f"is {output.specs[name]} and should be {specs[name]}", name)
    pieces: Iterator[_Piece] = (piece for name in fitting for piece in wanted.pieces(name))
    if sample is not None:
        draw = Random(0)
        pieces = iter(heapq.nsmallest(sample, pieces, key=lambda piece: draw.random()))
    done, total, seen = 0, sum(spec.nbytes for spec in specs.values()), set[str]()
    for piece in pieces:
        file = output.file_of(piece.name)
        mine, theirs = piece.make(), torch.empty(piece.size, dtype=torch.uint8, device="cpu")
        file.read_into(theirs.numpy().data, piece.name, piece.start)
        if not torch.equal(mine, theirs):
            apart = (mine != theirs).nonzero()
            what = f"{len(apart)} byte(s) differ from what base and adapter give"
            yield Problem(file.name, what, piece.name, file.offset_of(piece.name) + piece.start + int(apart[0]))
        if piece.name not in seen:
            seen.add(piece.name)
            kind = wanted.kind(piece.name)
            checks[kind] = checks.get(kind, 0) + 1
        done += piece.size
        if progress is not None:
            progress(done, total)


def _kind(view: StateDict, name: str) -> str:
    """What was done for a tensor, for the count of checks."""
    return "tensors copied" if view.is_copy(name) else "tensors computed"


def _pieces(view: StateDict, name: str) -> Iterator[_Piece]:
    """A tensor in pieces; nothing is read before a piece is made."""
    bound, shares, spec = view.bound, [view.share(name)], view.spec(name)
    source, key = bound.source(name)
    if view.is_copy(name):
        yield from _copied(source, key, name, 0, spec.nbytes)
        return
    item, reached = spec.nbytes // max(spec.numel, 1), 0
    prepared = cache(partial(bound.prepare, name, shares))
    for tile in bound.tiles(name, shares):
        yield from _copied(source, key, name, reached * item, tile.start * item)
        yield _Piece(name, tile.start * item, (tile.stop - tile.start) * item, partial(_value, prepared, tile))
        reached = tile.stop
    yield from _copied(source, key, name, reached * item, spec.nbytes)


def _value(prepared: Callable[[], Prepared], tile: Span) -> Tensor:
    """The bytes of a tile, computed again."""
    with torch.no_grad():
        return raw_bytes(prepared().value(tile))


def _copied(source: Source, key: str, name: str, start: int, stop: int) -> Iterator[_Piece]:
    """Bytes [start, stop) of a tensor that should be those of its source, whatever their dtype."""
    for low in range(start, stop, PIECE):
        high = min(low + PIECE, stop)
        yield _Piece(name, low, high - low, partial(_stored, source, key, low, high))


def _stored(source: Source, key: str, start: int, stop: int) -> Tensor:
    """Bytes [start, stop) of a tensor as its source has them."""
    if not isinstance(source, Checkpoint):
        return raw_bytes(source.get_tensor(key))[start:stop]
    piece = torch.empty(stop - start, dtype=torch.uint8, device="cpu")
    source.file_of(key).read_into(piece.numpy().data, key, start)
    return piece
