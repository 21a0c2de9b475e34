"""Where the labels of points go, so that they hide as little as possible: geometry in pixels.

Ground floor: standard library only.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

Point = tuple[float, float]
GAPS: Final = (12.0, 22.0, 36.0, 50.0, 70.0)
"""Pixels from a point to its label, nearest first."""
TURNS: Final = 16
MARK_RADIUS: Final = 9.0
DOT_STEP: Final = 6.0
MARK_HARM: Final = 100.0
"""What hiding a point costs; hiding six pixels of line costs 1."""


class Box(NamedTuple):
    """A rectangle."""

    left: float
    low: float
    right: float
    high: float

    def meets(self, other: Box) -> bool:
        """Whether the two share more than an edge."""
        apart = self.right <= other.left or other.right <= self.left or self.high <= other.low or other.high <= self.low
        return not apart

    def near(self, point: Point, room: float) -> bool:
        """Whether a square of half-width `room` around `point` reaches into it."""
        x, y = point
        return self.left - room < x < self.right + room and self.low - room < y < self.high + room

    def within(self, other: Box) -> bool:
        """Whether it lies in `other`."""
        return (
            other.left <= self.left and self.right <= other.right and other.low <= self.low and self.high <= other.high
        )


class Place(NamedTuple):
    """From a point to the centre of its label, the label's box, and whether it needs a line to be found."""

    dx: float
    dy: float
    box: Box
    far: bool


def place_labels(
    points: Sequence[Point], sizes: Sequence[tuple[float, float]], frame: Box, order: Sequence[int], *, every: bool
) -> list[Place | None]:
    """A place for the label of each point, chosen one after the other, each where it hides least.

    Args:
        points: Joined by a line in their order.
        sizes: Width and height of each label.
        frame: Where labels should stay.
        order: Whose label chooses first.
        every: Place all labels, at a distance where it must be. Otherwise those that do not fit beside their point have
            no place.
    """
    dots, places = list(_dots(points)), list[Place | None]([None] * len(points))
    for at in order:
        taken = [place.box for place in places if place is not None]
        harm, place = min(
            (_harm(place.box, frame, points, dots, taken) + gap / 4, place)
            for gap, place in _places(points[at], *sizes[at], GAPS if every else GAPS[:1])
        )
        places[at] = place if every or harm < MARK_HARM else None
    return places


def _dots(points: Sequence[Point]) -> Iterator[Point]:
    """Dots along the line, a few pixels apart."""
    for (x, y), (to_x, to_y) in itertools.pairwise(points):
        steps = max(1, math.ceil(math.hypot(to_x - x, to_y - y) / DOT_STEP))
        yield from ((x + (to_x - x) * step / steps, y + (to_y - y) * step / steps) for step in range(steps))


def _places(point: Point, width: float, height: float, gaps: Sequence[float]) -> Iterator[tuple[float, Place]]:
    """All around a point, at each distance."""
    (x, y), half = point, (width / 2, height / 2)
    for gap, turn in itertools.product(gaps, range(TURNS)):
        angle = 2 * math.pi * turn / TURNS
        dx, dy = (gap + half[0]) * math.cos(angle), (gap + half[1]) * math.sin(angle)
        box = Box(x + dx - half[0], y + dy - half[1], x + dx + half[0], y + dy + half[1])
        yield gap, Place(dx, dy, box, gap > GAPS[0])


def _harm(box: Box, frame: Box, points: Sequence[Point], dots: Sequence[Point], taken: Sequence[Box]) -> float:
    """How bad a label there would be: on other labels, out of the frame, on points, and least of all on the line."""
    hidden = 3 * sum(map(box.meets, taken)) + 2 * (not box.within(frame))
    hidden += sum(box.near(point, MARK_RADIUS) for point in points)
    return MARK_HARM * hidden + sum(box.near(dot, 2) for dot in dots)
