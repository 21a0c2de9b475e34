"""Tiles: how a stored matrix is cut, and what a family makes of one tile.

Joint floor, between the rooms: it knows layouts, families and numerics, and no names or files. A tile is a contiguous
run of a stored tensor's elements, some whole rows or a part of one very long row. The grid is a function of the shape
alone, every tile is computed by the same calls on the same sizes wherever it is needed, and so the bits of a result do
not depend on who asks for it, in what pieces, or on how many threads there are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple, Protocol

from wiseft_core import kits
from wiseft_core.errors import NotFinite
from wiseft_core.families import Change, Hyper
from wiseft_core.kits import Numbers, Values, kit
from wiseft_core.layouts import Layout, matrix_shape

TILE: Final = 1 << 19
"""Elements of a tile: few enough for the processor's cache, many enough that threads seldom meet between calls."""


class Tile(NamedTuple):
    """Elements [start, stop) of a stored matrix: rows [top, bottom), columns [left, right)."""

    start: int
    stop: int
    top: int
    bottom: int
    left: int
    right: int

    @property
    def shape(self) -> tuple[int, int]:
        """Its rows and columns."""
        return self.bottom - self.top, self.right - self.left


def grid(shape: tuple[int, ...], rows: Sequence[int] | None = None) -> Iterator[Tile]:
    """The tiles of a stored tensor in order, or of its listed `rows` only, one row at a time."""
    height, width = matrix_shape(shape)
    if height * width == 0:
        return
    if rows is not None:
        for row in rows:
            for tile in grid((1, width)):
                offset = row * width
                yield Tile(offset + tile.start, offset + tile.stop, row, row + 1, tile.left, tile.right)
    elif width > TILE:
        for row in range(height):
            for left in range(0, width, TILE):
                right = min(left + TILE, width)
                yield Tile(row * width + left, row * width + right, row, row + 1, left, right)
    else:
        step = TILE // width
        for top in range(0, height, step):
            bottom = min(top + step, height)
            yield Tile(top * width, bottom * width, top, bottom, 0, width)


class Read(Protocol):
    """Gives elements [start, stop) of one flattened tensor, in its stored dtype."""

    def __call__(self, start: int, stop: int) -> Values:
        """Elements [start, stop) as a tensor of one axis."""


@dataclass(frozen=True, slots=True)
class Step:
    """One change to a tensor: the family's functions, where it lands, and its factors.

    Attributes:
        change: What the family does to this parameter.
        layout: How the stored tensor is a matrix (out, in).
        hyper: What the family's formula reads besides.
        factors: Factors by role with the axes of `change.factors`, in the compute dtype; integers as int64.
        streams: Readers of the factors that have both axes; these are cut from the file, tile by tile.
        lines: Readers of large factors `out rank`, by rows, where a tile's rows run along `out`.
        total: What `change.measure` found over whole rows; None where a tile holds whole rows.
        result: What a change that needs the whole matrix made of it, flat in stored order: its D, or tuned values.
        part: For such a change, the rows `out` and `in` of its matrix that the stored tensor is; None: all.
    """

    change: Change
    layout: Layout
    hyper: Hyper
    factors: Mapping[str, Values]
    streams: Mapping[str, Read]
    lines: Mapping[str, Read] = field(default_factory=dict)
    total: Values | None = None
    result: Values | None = None
    part: tuple[slice, slice] | None = None


def factor_matrix(stored: Values, axes: str, name: str, numbers: Numbers, *, integer: bool = False) -> Values:
    """A whole factor with one axis per name in `axes`, widened; a value that is not finite is refused."""
    if not kit(stored).is_all_finite(stored):
        raise not_finite(name)
    count, shape = len(axes.split()), tuple(stored.shape)
    if count == 1 or len(shape) >= count:
        stored = stored.reshape(*shape[: count - 1], math.prod(shape[count - 1 :]))
    return kits.widen(stored, numbers, integer=integer)


def not_finite(name: str) -> NotFinite:
    """The refusal of an adapter tensor that holds NaN or infinity."""
    return NotFinite(
        f"{name} — the adapter holds a value that is not finite",
        expected="finite values",
        got="NaN or infinity",
        hint="the training run diverged or the file is damaged: use another checkpoint of the adapter",
    )


def tuned_values(weight: Values, tile: Tile, steps: Sequence[Step], numbers: Numbers, entry: int = 0) -> Values:
    """The tuned values of a tile, every step applied to the result of the one before."""
    for step in steps:
        weight = _apply(step, weight, tile, numbers, entry)
    return weight


def _apply(step: Step, weight: Values, tile: Tile, numbers: Numbers, entry: int = 0) -> Values:
    """One step on one tile, in the family's orientation and back again, contiguous."""
    if step.change.delta is not None:
        return kit(weight).moved(weight, delta_values(step, tile, numbers, entry), step.hyper.scale)
    if step.result is not None:
        return step.result[tile.start : tile.stop].reshape(weight.shape)
    across = is_across(step)
    total = step.total
    if total is not None:
        total = total[tile.left : tile.right] if across else total[tile.top : tile.bottom]
    matrix, factors = weight.T if across else weight, cut(step, tile, numbers, entry)
    if step.change.tuned is None:
        raise TypeError("a family's change sets neither `delta` nor `tuned`")
    tuned = step.change.tuned(matrix, factors, step.hyper, total)
    return kits.contiguous(tuned.T if across else tuned)


def delta_values(step: Step, tile: Tile, numbers: Numbers, entry: int = 0) -> Values:
    """D of a step on one tile, as it is stored, contiguous; it does not depend on the weight."""
    if step.change.delta is None:
        raise TypeError("a step without `delta` has no D")
    if step.result is not None:
        return step.result[tile.start : tile.stop].reshape(tile.shape)
    delta = step.change.delta(cut(step, tile, numbers, entry), step.hyper)
    return kits.contiguous(delta.T if is_across(step) else delta)


def is_across(step: Step) -> bool:
    """Whether the stored rows run along the family's `in`."""
    return step.layout.rows == "in"


def cut(step: Step, tile: Tile, numbers: Numbers, entry: int = 0) -> dict[str, Values]:
    """The parts of the factors that belong to a tile; `entry` is its place along the `row` axis."""
    rows, columns = slice(tile.top, tile.bottom), slice(tile.left, tile.right)
    across = is_across(step)
    cuts = {
        "out": columns if across else rows,
        "in": rows if across else columns,
        "row": slice(entry, entry + 1),
    }
    parts = {
        role: tensor[tuple(cuts.get(axis.rstrip("+"), slice(None)) for axis in step.change.factors[role].split())]
        for role, tensor in step.factors.items()
    }
    for role, read in step.streams.items():
        stored = read(tile.start, tile.stop)
        if not kit(stored).is_all_finite(stored):
            raise not_finite(f"the trained tensor, elements {tile.start} to {tile.stop},")
        value = kits.widen(stored, numbers).reshape(tile.shape)
        parts[role] = value.T if across else value
    for role, read in step.lines.items():
        name = f"factor {role}, rows {tile.top} to {tile.bottom},"
        parts[role] = factor_matrix(read(tile.top, tile.bottom), step.change.factors[role], name, numbers)
    return parts


def needs_measure(step: Step, shape: tuple[int, ...]) -> bool:
    """Whether a tile of its grid holds only a part of the family's rows, so that a first pass must sum them."""
    height, width = matrix_shape(shape)
    return TILE // max(width, 1) < height if is_across(step) else width > TILE


def measured(
    shape: tuple[int, ...], steps: Sequence[Step], read: Read, numbers: Numbers, *, gridded: bool = True
) -> tuple[Step, ...]:
    """The same steps, with the totals of those that need a pass over the tensor first.

    The tiles are summed in order by one thread, so that the totals do not depend on how many there are.

    Args:
        shape: The shape of the stored tensor.
        steps: Its changes.
        read: Reads the base's elements.
        numbers: How numbers are treated.
        gridded: Whether the tiles to be computed are those of the tensor's `grid`; others may hold less.
    """
    done: list[Step] = []
    for step in steps:
        if step.change.measure is not None and 0 not in shape and (not gridded or needs_measure(step, shape)):
            step = replace(step, total=total_of(step, shape, done, read, numbers))
        if step.change.whole:
            step = replace(step, result=_result_of(step, shape, done, read, numbers))
        done.append(step)
    return tuple(done)


def _result_of(step: Step, shape: tuple[int, ...], before: Sequence[Step], read: Read, numbers: Numbers) -> Values:
    """What a step that needs the whole matrix makes of it, flat in stored order; one weight is in memory, not more."""
    height, width = matrix_shape(shape)
    if step.part is not None:
        sizes = step.hyper.sizes["out"], step.hyper.sizes["in"]
        height, width = sizes[::-1] if is_across(step) else sizes
    whole = Tile(0, height * width, 0, height, 0, width)
    if step.change.delta is not None:
        delta = delta_values(step, whole, numbers)
        if step.part is not None:
            delta = delta[step.part[::-1] if is_across(step) else step.part]
        return delta.reshape(-1)
    weight = kits.zeros((height, width), numbers)
    for tile in grid(shape):
        weight[tile.top : tile.bottom, tile.left : tile.right] = _leave(tile, before, read, numbers)
    return _apply(step, weight, whole, numbers).reshape(-1)


def _leave(tile: Tile, before: Sequence[Step], read: Read, numbers: Numbers) -> Values:
    """A tile of the tensor as the steps before leave it."""
    flat = kits.widen(read(tile.start, tile.stop), numbers)
    return tuned_values(flat.reshape(tile.shape), tile, before, numbers)


def total_of(step: Step, shape: tuple[int, ...], before: Sequence[Step], read: Read, numbers: Numbers) -> Values:
    """What a step measures over whole rows, on the tensor as the steps before it leave it; one value per `out`."""
    height, width = matrix_shape(shape)
    across = is_across(step)
    total = kits.zeros((width if across else height,), numbers)
    for tile in grid(shape):
        weight = _leave(tile, before, read, numbers)
        if step.change.measure is None:
            raise TypeError("a step without `measure` needs no pass")
        part = step.change.measure(weight.T if across else weight, cut(step, tile, numbers), step.hyper)
        total[slice(tile.left, tile.right) if across else slice(tile.top, tile.bottom)] += part
    return total
