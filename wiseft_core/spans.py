"""Runs of a flattened tensor: where the matrices that change it lie, and the tiles that suit all of them.

Joint floor, above `tiles`: numbers only. A tensor may be changed in several places, each a matrix of its own, and by
several adapters that see different matrices in it. The tiles are a function of these places and shapes alone.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from wiseft_core import tiles
from wiseft_core.layouts import matrix_shape
from wiseft_core.tiles import Tile


class Span(NamedTuple):
    """Elements [start, stop) of a flattened tensor."""

    start: int
    stop: int


class Place(NamedTuple):
    """Where a matrix lies in a flattened tensor: its first element, its rows and its columns."""

    start: int
    height: int
    width: int

    @classmethod
    def of(cls, start: int, shape: tuple[int, ...]) -> Place:
        """The place of a stored tensor of this shape."""
        return cls(start, *matrix_shape(shape))

    @property
    def stop(self) -> int:
        """The element behind its last."""
        return self.start + self.height * self.width

    def tile(self, span: Span) -> Tile:
        """A run in it, whole rows or a part of one, as the matrix sees it."""
        start, stop = span.start - self.start, span.stop - self.start
        top, left = divmod(start, self.width)
        if left or stop - start < self.width:
            return Tile(start, stop, top, top + 1, left, left + stop - start)
        return Tile(start, stop, top, stop // self.width, 0, self.width)

    def end(self, start: int, stop: int) -> int:
        """The furthest end, up to `stop`, of a run from `start` that is whole rows or a part of one."""
        past = (start - self.start) % self.width
        if past:
            return min(stop, start + self.width - past)
        rows = (stop - start) // self.width
        return start + rows * self.width if rows else stop


def index_at(places: Sequence[Place], element: int) -> int | None:
    """Which of some places, ascending and apart and none of them empty, an element lies in; None: in none."""
    at = bisect_right(places, element, key=lambda place: place.start) - 1
    return at if at >= 0 and element < places[at].stop else None


def runs(spans: Iterable[Span], matrices: Sequence[Sequence[Place]], own: Place) -> Iterator[Span]:
    """The tiles of some spans, in order: each is whole rows, or a part of one row, of every matrix that it meets.

    Args:
        spans: What is to be cut, ascending and apart.
        matrices: The places of each term, for `index_at`.
        own: The tensor's own place, whose rows count where no matrix lies.
    """
    edges = sorted({edge for places in matrices for place in places for edge in (place.start, place.stop)})
    for start, stop in spans:
        while start < stop:
            at = bisect_right(edges, start)
            end = min(stop, edges[at]) if at < len(edges) else stop
            here = [(places, index_at(places, start)) for places in matrices]
            found = [places[index] for places, index in here if index is not None] or [own]
            while start < end:
                tile = Span(start, _end(start, end, found))
                yield tile
                start = tile.stop


def _end(start: int, stop: int, places: Sequence[Place]) -> int:
    """Where the tile that starts here ends."""
    end, before = min(stop, start + tiles.TILE), None
    while end != before:
        before = end
        for place in places:
            end = place.end(start, end)
    return end


def united(spans: Iterable[Span], edge: int) -> tuple[Span, ...]:
    """The same elements, ascending and each once, in spans that do not lie across `edge`; neighbours stay apart."""
    found: list[Span] = []
    for span in sorted(spans):
        if found and span.start < found[-1].stop:
            found[-1] = Span(found[-1].start, max(found[-1].stop, span.stop))
        elif span.start < span.stop:
            found.append(span)
    halves = ((Span(start, min(stop, edge)), Span(max(start, edge), stop)) for start, stop in found)
    return tuple(half for pair in halves for half in pair if half.start < half.stop)
