"""The values of one tile: what each adapter makes of it, mixed with the base, rounded once.

Joint floor, on top of `tiles`. One tile may serve several results at once: it is read and widened once, and each
adapter's change to it is computed once, whatever the number of alphas.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from threading import Lock, local
from typing import NamedTuple
from weakref import WeakValueDictionary

import numpy as np

from wiseft_core import kits, loops
from wiseft_core.arrays import Array, quietly
from wiseft_core.errors import NotFinite
from wiseft_core.kits import Numbers, Values, kit
from wiseft_core.spans import Place, Span, index_at
from wiseft_core.tiles import Step, Tile, delta_values, tuned_values


@dataclass(frozen=True, slots=True)
class Term:
    """What one adapter does to one tensor.

    Attributes:
        places: Where the matrices lie that it changes, ascending and apart, none of them empty.
        steps: The changes of one of them by its number, in the order in which they apply.
        rows: The rows that it touches, ascending, as the `row` axis of its factors has them; None: every row.
    """

    places: tuple[Place, ...]
    steps: Callable[[int], tuple[Step, ...]]
    rows: Sequence[int] | None = None

    @classmethod
    def of(cls, shape: tuple[int, ...], steps: tuple[Step, ...], rows: Sequence[int] | None = None) -> Term:
        """The changes of a whole tensor."""
        return cls((Place.of(0, shape),), lambda at: steps, rows)


class Each:
    """Makes the steps of each piece when it is first needed, by one thread for all, and keeps them while one is at it.

    A tensor may have hundreds of pieces, and their factors are not all to be in memory at once.
    """

    def __init__(self, make: Callable[[int], tuple[Step, ...]]) -> None:
        self._make = make
        self._made: WeakValueDictionary[int, _Held] = WeakValueDictionary()
        self._lock, self._mine = Lock(), local()

    def __call__(self, at: int) -> tuple[Step, ...]:
        """The steps of the piece of this number."""
        with self._lock:
            held = self._made.get(at)
            if held is None:
                self._made[at] = held = _Held()
            self._mine.held = held  # this thread lets go of the piece where it was before
        with held.lock:
            if held.steps is None:
                held.steps = self._make(at)
            return held.steps


class _Held:
    """The steps of one piece, once they are made."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.steps: tuple[Step, ...] | None = None


Share = tuple[float, ...]
"""The coefficients of one result: alpha of each term."""


@quietly
def tile_values(
    span: Span, stored: Values, terms: Sequence[Term], shares: Sequence[Share], numbers: Numbers, name: str
) -> list[Values]:
    """The interpolated values of one tile for each of `shares`, each rounded once.

        W + sum of alpha·(W_tuned - W) over the terms, where W_tuned - W is s·D for a single additive change

    One term is interpolated exactly at both ends; several are summed in an order of their values, so that the order of
    the terms does not matter to the bits. Where no coefficient is other than 0 it is the base, in the output dtype.

    Shapes:
        stored (stop - start), in the base's dtype. Returns one tensor of the same shape for each share.
    Raises:
        NotFinite: See `numerics.finish`; also when a streamed factor holds a value that is not finite.
    """
    stored = kits.placed(stored, numbers)
    try:
        weight = cache(partial(kits.widen, stored, numbers))
        moves = [
            _move(term, weight, span, numbers) if any(share[at] for share in shares) else None
            for at, term in enumerate(terms)
        ]
        return [_finished(stored, weight, moves, share, numbers, name) for share in shares]
    except NotFinite as error:
        if name not in error.where:
            error.where = f"{name} — {error.where}"
        raise


@quietly
def tile_change(span: Span, stored: Values, terms: Sequence[Term], share: Share, numbers: Numbers) -> Values:
    """What the terms add to a tile for one share, in the compute dtype.

        sum of alpha·(W_tuned - W)

    The order of the terms does not matter to the bits.

    Shapes:
        stored (stop - start), in the base's dtype. Returns the same.
    """
    weight = kits.widen(stored, numbers)
    pairs = [(_move(term, lambda: weight, span, numbers), alpha) for term, alpha in zip(terms, share, strict=True)]
    shifts = [move.shift(weight, alpha) for move, alpha in pairs if move is not None]
    return kit(weight).ordered_sum(shifts) if shifts else kits.zeros(tuple(weight.shape), numbers)


class _Tuned(NamedTuple):
    """What a term makes of a tile: tuned values."""

    values: Values

    def rounded(self, stored: Array, alpha: float, target: str) -> Array | None:
        """`onto` the stored weight, finished; None where no compiled loop does that."""
        return loops.mixed_once(stored, self.values, alpha, target)

    def onto(self, weight: Values, alpha: float) -> Values:
        """The weight with that share of it."""
        return kit(weight).mix(weight, self.values, alpha)

    def shift(self, weight: Values, alpha: float) -> Values:
        """alpha·(W_tuned - W)."""
        return (self.values - weight) * alpha


class _Delta(NamedTuple):
    """The same, for W_tuned = W + s·D."""

    values: Values
    scale: float

    def rounded(self, stored: Array, alpha: float, target: str) -> Array | None:
        """`onto` the stored weight, finished; None where no compiled loop does that."""
        return loops.moved_once(stored, self.values, self.scale * alpha, target)

    def onto(self, weight: Values, alpha: float) -> Values:
        """The weight with that share of it."""
        return kit(weight).moved(weight, self.values, self.scale * alpha)

    def shift(self, weight: Values, alpha: float) -> Values:
        """alpha·(W_tuned - W)."""
        return self.values * (self.scale * alpha)


_Move = _Tuned | _Delta


def _move(term: Term, flat: Callable[[], Values], span: Span, numbers: Numbers) -> _Move | None:
    """The effect of a term on a tile, whose weight is asked for if it counts; None where it touches none of it."""
    at = index_at(term.places, span.start)
    if at is None:
        return None
    tile, steps = term.places[at].tile(span), term.steps(at)
    if term.rows is not None:
        return _move_rows(steps, term.rows, flat().reshape(tile.shape), tile, numbers)
    if len(steps) > 1 or steps[0].change.delta is None:
        return _Tuned(tuned_values(flat().reshape(tile.shape), tile, steps, numbers).reshape(-1))
    return _Delta(delta_values(steps[0], tile, numbers).reshape(-1), steps[0].hyper.scale)


def _move_rows(
    steps: Sequence[Step], rows: Sequence[int], weight: Values, tile: Tile, numbers: Numbers
) -> _Move | None:
    """`_move` for steps that touch listed rows: the others keep the base's values."""
    first, last = bisect_left(rows, tile.top), bisect_left(rows, tile.bottom)
    if first == last:
        return None
    tuned, width = kits.copied(weight), tile.right - tile.left
    for entry in range(first, last):
        row = rows[entry]
        start = tile.start + (row - tile.top) * width
        part = Tile(start, start + width, row, row + 1, tile.left, tile.right)
        at = slice(row - tile.top, row - tile.top + 1)
        tuned[at] = tuned_values(weight[at], part, steps, numbers, entry)
    return _Tuned(tuned.reshape(-1))


def _finished(
    stored: Values,
    weight: Callable[[], Values],
    moves: Sequence[_Move | None],
    share: Share,
    numbers: Numbers,
    name: str,
) -> Values:
    """The values of a tile for one share, rounded: by a compiled loop, where there is one and the numbers are plain."""
    active = [(move, alpha) for move, alpha in zip(moves, share, strict=True) if move is not None and alpha]
    if len(active) == 1 and isinstance(stored, np.ndarray):
        ((move, alpha),) = active
        done = move.rounded(stored, alpha, numbers.output)
        if done is not None:
            return done
    return kits.finish(_blend(weight(), active), stored, numbers, name)


def _blend(weight: Values, active: Sequence[tuple[_Move, float]]) -> Values:
    """The values of a tile for one share, not rounded yet; they may take the weight's place if it is `own`."""
    if not active:
        return weight
    if len(active) > 1:
        shifts = [move.shift(weight, alpha) for move, alpha in active]
        return kit(weight).moved(weight, kit(weight).ordered_sum(shifts), 1.0)
    ((move, alpha),) = active
    return move.onto(weight, alpha)
