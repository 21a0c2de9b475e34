"""Labels beside their points: in the frame, off each other, and off the points, whenever there is room."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wiseft_core.placement import Box, place_labels

FRAME = Box(0, 0, 1000, 800)
SIZE = (60.0, 18.0)


def overlap(one, other):
    """The area that two boxes share, exactly."""
    width = min(Fraction(one[2]), Fraction(other[2])) - max(Fraction(one[0]), Fraction(other[0]))
    height = min(Fraction(one[3]), Fraction(other[3])) - max(Fraction(one[1]), Fraction(other[1]))
    return max(width, 0) * max(height, 0)


def placed(points, *, every=True):
    """The places of equally large labels, chosen in order."""
    return place_labels(points, [SIZE] * len(points), FRAME, range(len(points)), every=every)


def check_clear(points, places):
    """No label hides another, or a point, or leaves the frame; each is where its offset says."""
    boxes = [place.box for place in places if place is not None]
    for at, box in enumerate(boxes):
        assert all(overlap(box, other) == 0 for other in boxes[:at])
        assert overlap(box, FRAME) == pytest.approx(SIZE[0] * SIZE[1])
        assert not any(box[0] < x < box[2] and box[1] < y < box[3] for x, y in points)
    for (x, y), place in zip(points, places, strict=True):
        if place is not None:
            assert (x + place.dx, y + place.dy) == pytest.approx(
                ((place.box[0] + place.box[2]) / 2, (place.box[1] + place.box[3]) / 2)
            )


@pytest.mark.parametrize("count", [5, 11])
@pytest.mark.parametrize("bend", [0.3, 1.0])
def test_a_smooth_curve_has_all_its_labels_near(count, bend):
    """5 and 11 points on an arc: every label is clear, and none needs a line to be found."""
    turns = [math.pi * bend * at / (count - 1) for at in range(count)]
    points = [(500 - 350 * math.cos(turn), 100 + 500 * math.sin(turn)) for turn in turns]
    places = placed(points)
    check_clear(points, places)
    assert not any(place.far for place in places)


@pytest.mark.parametrize("step", [0, 1, 5])
def test_points_on_one_heap_have_all_their_labels(step):
    """Eleven points in one place or almost: all labels are there and clear, some at a distance with a line."""
    points = [(500.0 + step * at, 400.0) for at in range(11)]
    places = placed(points)
    check_clear(points, places)
    assert any(place.far for place in places)


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 800)), max_size=40))
def test_labels_that_may_be_left_out_never_hide_anything(points):
    """Where not every label is asked for, those that are placed are clear and near."""
    places = placed(points, every=False)
    check_clear(points, places)
    assert not any(place.far for place in places if place is not None)


@given(st.lists(st.tuples(st.integers(-50, 1100), st.integers(-50, 900)), max_size=15))
def test_every_label_is_placed_if_asked_for(points):
    """However crowded, and even outside the frame, each point has its label, the same each time."""
    places = placed(points)
    assert None not in places
    assert places == placed(points)


def test_who_chooses_first_is_nearest():
    """On one heap, the labels that choose first are the ones without a line."""
    order = [7, 3, 0, 1, 2, 4, 5, 6, 8, 9, 10]
    places = place_labels([(500.0, 400.0)] * 11, [SIZE] * 11, FRAME, order, every=True)
    far = [places[at].far for at in order]
    assert far == sorted(far)
    assert far[0] is False
