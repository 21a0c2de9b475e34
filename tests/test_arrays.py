"""Arithmetic on numpy arrays, against exact oracles; and the memory that its tiles share."""

from __future__ import annotations

import gc
import hashlib
import math
import os
import queue
import random
import subprocess
import sys
import threading
import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import FORMATS, round_exact, ulp
from test_numerics import hard_values

from wiseft_core import arrays, numerics, rooms

CARRIED = tuple(arrays.CARRIERS)
FRACTION_BITS = {"BF16": 7, "F16": 10, "F32": 23, "F64": 52}
FINITE = st.floats(allow_nan=False, allow_infinity=False)


def same(one, other):
    """Equal bytes and shapes."""
    return one.shape == other.shape and one.tobytes() == other.tobytes()


def unsigned(stored):
    """The bits of stored values."""
    return stored.view(f"u{stored.itemsize}")


def numbers(stored):
    """Stored values as float64, by shifting bits."""
    return (
        (stored.astype(np.uint32) << 16).view(np.float32).astype(float)
        if stored.dtype == np.uint16
        else stored.astype(float)
    )


@pytest.fixture(autouse=True)
def silence():
    """Whatever is computed here, numpy is to say nothing, even where it was told to raise, and to stay as it was."""
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        before = np.geterr()
        yield
        assert np.geterr() == before


def check_rounding(values, name):
    """As the oracle has it, by numbers and signs; NaN stays NaN."""
    given, before = np.array(values), np.array(values).tobytes()
    found = arrays.round_once(given, name)
    assert given.tobytes() == before
    assert found.dtype == arrays.CARRIERS[name] and found.shape == given.shape
    wanted = np.array([round_exact(value, name) for value in values], float)
    got = numbers(found)
    assert np.array_equal(got, wanted, equal_nan=True)
    plain = ~np.isnan(wanted)
    assert np.array_equal(np.signbit(got)[plain], np.signbit(wanted)[plain])


@pytest.mark.parametrize("name", CARRIED)
def test_hard_values_are_rounded_once(name):
    """Ties, what lies beside them, subnormals, the largest, overflow, zeros; many ties together, and each alone."""
    values = hard_values(name)
    check_rounding(values, name)
    for start in range(0, len(values), 97):
        check_rounding(values[start : start + 5], name)
    check_rounding([], name)


@given(st.lists(st.floats(width=64) | st.floats(-4, 4), max_size=40), st.sampled_from(CARRIED))
def test_any_values_are_rounded_once(values, name):
    """Any doubles at all."""
    check_rounding(values, name)


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 18, 33, 500])
@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("where", ["first", "last", "spread"])
def test_bfloat16_of_any_number_of_ties(count, negative, where):
    """Few are settled one by one, many together; even and odd below, and beside a tie by less than float32 sees."""
    draw = np.random.default_rng(count)
    values = draw.standard_normal(1000)
    at = {
        "first": np.arange(count),
        "last": np.arange(1000 - count, 1000),
        "spread": np.arange(count) * 1000 // max(count, 1),
    }[where]
    ties = (draw.integers(128, 256, count) + 0.5) * 2.0 ** draw.integers(-140, 100, count)
    ties[::7] = (draw.integers(0, 128, len(ties[::7])) + 0.5) * 2.0**-133
    values[at] = ties * (1 + np.arange(count) % 3 * 2.0**-45 - 2.0**-45) * (-1 if negative else 1)
    check_rounding(values.tolist(), "BF16")
    values[~np.isin(np.arange(1000), at)] *= -0.0  # whose high half words look like a midpoint's low ones
    check_rounding(values.tolist(), "BF16")


@pytest.mark.parametrize("value", [(2 - 2.0**-8) * 2.0**127, -(2 - 2.0**-8) * 2.0**127])
def test_the_tie_with_infinity(value):
    """From the midpoint on it is infinity; one float64 below, the largest number."""
    check_rounding([value, math.nextafter(value, 0), math.nextafter(value, 2 * value), 3e38, -3.4e38, 1e39], "BF16")


@pytest.mark.parametrize("many", [False, True])
def test_nan_stays_nan_of_its_sign(many):
    """Payloads in the first bit, the last, all; in dtypes of fewer bits, and beside many ties."""
    payloads = [1 << 51, 1, (1 << 52) - 1, 1 << 28, 1 << 29, 1 << 44, 1 << 45, 0x8000 << 29, 0x7FFF << 29, 0xFFFF << 29]
    bits = [sign << 63 | 0x7FF << 52 | payload for payload in payloads for sign in (0, 1)]
    values = np.concatenate([np.array(bits, np.uint64).view(np.float64), np.full(40 * many, 1 + 2.0**-8), [1.5]])
    for name in CARRIED:
        for rolled in (values, np.roll(values, 7)):
            found = arrays.round_once(rolled, name)
            wide = numbers(found)
            assert np.array_equal(np.isnan(wide), np.isnan(rolled))
            sign = unsigned(found) >> (8 * found.itemsize - 1)
            assert np.array_equal(sign[np.isnan(wide)] == 1, np.signbit(rolled)[np.isnan(wide)])
            plain = ~np.isnan(rolled)
            assert (wide[plain] == [round_exact(value, name) for value in rolled[plain].tolist()]).all()


@pytest.mark.parametrize("name", CARRIED)
def test_what_was_stored_is_widened_exactly_and_rounds_back(name):
    """Every bit pattern of 16 bits, as many of wider dtypes, of any shape and strides."""
    item = np.dtype(arrays.CARRIERS[name]).itemsize
    bits = np.arange(2**16, dtype=np.uint64) << np.uint64(8 * item - 16) | np.uint64(item > 2)
    stored = bits.astype(f"u{item}").view(arrays.CARRIERS[name])
    wide = arrays.widen(stored)
    before = stored.tobytes()
    with np.errstate(invalid="ignore"):
        assert np.array_equal(wide, numbers(stored), equal_nan=True)
    assert wide.dtype == np.float64 and not np.shares_memory(wide, stored) and wide.flags.writeable
    finite = np.isfinite(wide)
    assert same(arrays.round_once(wide, name)[finite], stored[finite])
    square, whole = stored.reshape(256, 256), wide.reshape(256, 256)
    for view, wanted in ((square.T, whole.T), (square[::3, 1::2], whole[::3, 1::2])):
        assert np.array_equal(arrays.widen(view), wanted, equal_nan=True)
    assert stored.tobytes() == before


ODD = {
    name: (2 ** (8 * np.dtype(arrays.CARRIERS[name]).itemsize - 1) - 2**bits) for name, bits in FRACTION_BITS.items()
}
"""The bits of infinity."""


def carried(values, name):
    """Values that a dtype holds, stored in it."""
    return arrays.round_once(np.array(values, float), name)


@pytest.mark.parametrize("target", CARRIED)
@pytest.mark.parametrize("base", CARRIED)
def test_finished_is_none_where_something_is_not_plain(base, target):
    """Any one infinity or NaN of either sign, in the base or after rounding, anywhere; and nowhere else."""
    values, stored = np.linspace(-2, 2, 37), carried(np.linspace(-1, 1, 37), base)
    assert same(arrays.finished(values.copy(), stored, target), carried(values, target))
    sign = 1 << (8 * stored.itemsize - 1)
    for at in (0, 20, 36):
        for bits in (ODD[base], ODD[base] + 1, sign - 1, ODD[base] | sign, (ODD[base] + 1) | sign, 2 * sign - 1):
            broken = stored.copy()
            unsigned(broken)[at] = bits
            assert arrays.finished(values.copy(), broken, target) is None
            assert not arrays.is_all_finite(broken)
        for bits in (ODD[base] - 1, (ODD[base] - 1) | sign, sign, 0, 1, sign + 1):  # the largest, zeros, subnormals
            whole = stored.copy()
            unsigned(whole)[at] = bits
            assert arrays.finished(values.copy(), whole, target) is not None
            assert arrays.is_all_finite(whole)
        largest = float(FORMATS[target][2])
        first = float(FORMATS[target][2] + ulp(largest, target) / 2) if target != "F64" else math.inf
        for value in (math.inf, -math.inf, math.nan, first, -first):
            computed = values.copy()
            computed[at] = value
            assert arrays.finished(computed, stored, target) is None
        for value in (largest, -largest, math.nextafter(first, 0), -math.nextafter(first, 0), 5e-324, -0.0):
            computed = values.copy()
            computed[at] = value
            assert same(arrays.finished(computed.copy(), stored, target), carried(computed, target))


@pytest.mark.parametrize("target", CARRIED)
@pytest.mark.parametrize("base", CARRIED)
def test_finished_keeps_negative_zero_of_the_base_only_where_the_value_is_zero(base, target):
    """Every pair of a base and a value, zeros, tiny ones that vanish and others; the base is not modified."""
    bases, computed = [-0.0, 0.0, 2.0**-24, -(2.0**-24), 1.0], [0.0, -0.0, 5e-324, -5e-324, 0.5, -0.5]
    stored = carried([b for b in bases for _ in computed], base)
    values = np.array(computed * len(bases))
    before, given = stored.tobytes(), values.copy()
    found = arrays.finished(values, stored, target)
    wanted = [-0.0 if math.copysign(1, b) < 0 and b == v == 0 else v for b in bases for v in computed]
    assert same(found, carried(wanted, target))
    assert stored.tobytes() == before
    if target != "F64":  # there it is the values' own memory
        assert same(values, given)
    without = carried([1.0, 0.0], base), np.array([-0.0, 0.0])
    assert same(arrays.finished(without[1].copy(), without[0], target), carried(without[1], target))


def test_finished_takes_nothing():
    """A tile without elements has a result without elements."""
    for name in CARRIED:
        found = arrays.finished(np.empty(0), np.empty(0, arrays.CARRIERS[name]), name)
        assert found.dtype == arrays.CARRIERS[name] and found.shape == (0,)
        assert arrays.is_all_finite(found)
        assert arrays.name_of(found) == name


SHAPES = [(1, 1), (8, 16), (64, 48), (72, 333), (130, 515)]
RANKS = (1, 2, 16, 31, 128, 129, 300)


def random_pair(out, rank, width, seed=0):
    """Factors of many sizes of numbers."""
    draw = np.random.default_rng((out, rank, width, seed))
    left, right = draw.standard_normal((out, rank)), draw.standard_normal((rank, width))
    return left * 2.0 ** draw.integers(-8, 8, rank), right


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", RANKS)
def test_an_element_of_a_product_knows_its_row_and_column_alone(shape, rank):
    """Any rows and columns cut out, any strides, beside inf and NaN, and the whole turned: the same bits."""
    left, right = random_pair(shape[0], rank, shape[1])
    before = left.tobytes(), right.tobytes()
    whole = arrays.product(left, right)
    draw = random.Random(rank)
    for rows in (1, 2, 7, 8, 9, 33, 64, 65):
        top, first = draw.randrange(shape[0]), draw.randrange(shape[1])
        assert same(arrays.product(left[top : top + rows], right), whole[top : top + rows])
        assert same(arrays.product(left, right[:, first : first + rows]), whole[:, first : first + rows])
    some = [draw.randrange(shape[0]) for _ in range(11)]
    assert same(arrays.product(left[some], right[:, ::-3]), whole[some][:, ::-3])
    assert same(arrays.product(np.asfortranarray(left), np.asfortranarray(right)), whole)
    wide = np.zeros((2 * shape[0], 3 * rank))
    wide[::2, 1::3] = left
    assert same(arrays.product(wide[::2, 1::3], right), whole)
    assert same(arrays.product(right.T, left.T), np.ascontiguousarray(whole.T))
    assert (left.tobytes(), right.tobytes()) == before
    if shape[0] > 1:
        left[-1], right[:, -1] = np.nan, np.inf
        assert same(arrays.product(left, right)[:-1, :-1], whole[:-1, :-1])


@pytest.mark.parametrize("rank", RANKS)
def test_a_product_is_near_the_exact_one(rank):
    """Within rank roundings of the sum of sizes, by Fractions; of bfloat16 factors it is exact."""
    left, right = random_pair(5, rank, 7)
    for a, b in ((left, right), (left.astype(np.float32).astype(float), right)):
        for (i, j), got in np.ndenumerate(arrays.product(a, b)):
            terms = [Fraction(x) * Fraction(y) for x, y in zip(a[i].tolist(), b[:, j].tolist(), strict=True)]
            assert abs(Fraction(got) - sum(terms)) <= sum(map(abs, terms)) * rank * Fraction(2) ** -53
    draw = np.random.default_rng(rank)
    a, b = (draw.integers(-255, 256, size) * 2.0**-7 for size in ((5, rank), (rank, 7)))
    for (i, j), got in np.ndenumerate(arrays.product(a, b)):
        assert got == math.fsum(x * y for x, y in zip(a[i].tolist(), b[:, j].tolist(), strict=True))


@pytest.mark.parametrize("shape", [(0, 2, 3), (2, 0, 3), (2, 3, 0), (0, 0, 0)])
def test_an_empty_product_is_zero(shape):
    """No rank, or nothing at all."""
    out, rank, width = shape
    assert same(arrays.product(np.ones((out, rank)), np.ones((rank, width))), np.zeros((out, width)))


@pytest.mark.parametrize("columns", [1, 7, 1023, 1024, 1025, 5000])
def test_a_sum_of_squares_knows_its_row_alone(columns):
    """Any rows cut out, any strides; near the exact sum, by fsum of exact squares."""
    weight = np.random.default_rng(columns).standard_normal((67, columns)).astype(np.float32).astype(float)
    before = weight.tobytes()
    whole = arrays.square_sum(weight)
    for rows in (1, 2, 3, 8, 33):
        for top in (0, 5, 34):
            assert same(arrays.square_sum(weight[top : top + rows]), whole[top : top + rows])
    assert same(arrays.square_sum(np.asfortranarray(weight)), whole)
    assert same(arrays.square_sum(np.repeat(weight, 2, axis=1)[::-1, ::2]), whole[::-1])
    assert weight.tobytes() == before
    for row, got in zip(weight[:9].tolist(), whole.tolist(), strict=False):
        exact = math.fsum(x * x for x in row)
        assert abs(Fraction(got) - Fraction(exact)) <= Fraction(exact) * columns * Fraction(2) ** -53
    weight[1:] = np.nan
    assert same(arrays.square_sum(weight)[:1], whole[:1])


def test_a_sum_of_squares_goes_block_by_block():
    """Of 1024 columns, from left to right."""
    weight = np.random.default_rng(0).standard_normal((9, 5000))
    total = np.zeros(9)
    for first in range(0, 5000, 1024):
        total = total + arrays.square_sum(weight[:, first : first + 1024])
    assert same(arrays.square_sum(weight), total)


def test_a_sum_of_no_squares_is_zero():
    """No columns, or no rows."""
    assert same(arrays.square_sum(np.empty((3, 0))), np.zeros(3))
    assert arrays.square_sum(np.empty((0, 3))).shape == (0,)


def digest():
    """A digest of products and sums of squares of many sizes; a child process computes it too."""
    found = hashlib.sha256()
    for out, width in ((1, 1), (9, 33), (64, 512), (200, 1040), (128, 2048)):
        for rank in RANKS:
            left, right = random_pair(out, rank, width)
            whole = arrays.product(left, right)
            assert same(arrays.product(left[-3:], right[:, :5]), whole[-3:, :5])
            found.update(whole.tobytes() + arrays.square_sum(whole).tobytes())
    return found.hexdigest()


def digest_with(first="pass", **settings):
    """The digest as a process with these settings of its environment has it, after a `first` statement."""
    package = os.path.dirname(os.path.dirname(arrays.__file__))
    paths = os.pathsep.join([os.path.dirname(__file__), package, os.environ.get("PYTHONPATH", "")])
    code = f"from wiseft_core import arrays; import test_arrays; {first}; print(test_arrays.digest())"
    kept = {key: value for key, value in os.environ.items() if not key.endswith("_NUM_THREADS")}
    environment = {**kept, "PYTHONPATH": paths, **settings}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_number_of_threads_of_blas_does_not_matter():
    """One, two and three: the same bits as here."""
    assert {digest_with(OPENBLAS_NUM_THREADS=str(count)) for count in (1, 2, 3)} == {f"{digest()}\n"}


def test_products_that_are_not_cut_have_the_same_bits():
    """Where BLAS has one thread they need not be; nor would another number of threads change them."""
    for settings in ({"OPENBLAS_NUM_THREADS": "1"}, {"OPENBLAS_NUM_THREADS": "2"}):
        assert digest_with("arrays.leave_blas_alone()", **settings) == f"{digest()}\n"
    older = {"OPENBLAS_CORETYPE": "Haswell", "OPENBLAS_NUM_THREADS": "1"}
    assert digest_with("arrays.leave_blas_alone()", **older) == digest_with(**older)


def test_padding_suits_an_older_processor_too():
    """OpenBLAS's kernels for another one have sums of their own, but no edges either: `digest` checks a corner."""
    assert len(digest_with(OPENBLAS_CORETYPE="Nehalem")) == 65


@given(st.lists(st.tuples(FINITE, FINITE), min_size=1, max_size=9), st.lists(st.floats(0, 1), min_size=2, max_size=5))
def test_mix_is_exact_at_the_ends_and_monotone(pairs, alphas):
    """Subnormals and differences that overflow among them; both keep what they are."""
    base, tuned = (np.array(side) for side in zip(*pairs, strict=True))
    before = base.tobytes(), tuned.tobytes()
    assert same(arrays.mix(base, tuned, 0.0), base) and same(arrays.mix(base, tuned, 1.0), tuned)
    path = np.stack([arrays.mix(base, tuned, alpha) for alpha in sorted([0.0, *alphas, 1.0])])
    up = tuned >= base
    assert ((path[1:] >= path[:-1]) | ~up).all() and ((path[1:] <= path[:-1]) | up).all()
    assert (base.tobytes(), tuned.tobytes()) == before


ANY = st.floats(width=64) | st.sampled_from([1.7e308, -1.7e308, 5e-324, -0.0])


@given(st.lists(st.tuples(ANY, ANY), max_size=9), st.floats(-2, 3) | st.sampled_from([0.0, 1.0, 1e-300, 1 - 2.0**-53]))
def test_mix_of_anything_has_the_bits_of_tensors(pairs, alpha):
    """inf and NaN too, beside numbers, which keep the bits that they have alone."""
    base, tuned = np.array(pairs, float).reshape(-1, 2).T.copy()
    found = arrays.mix(base, tuned, alpha)
    wanted = numerics.mix(torch.from_numpy(base), torch.from_numpy(tuned), alpha).numpy()
    odd = np.isnan(found)
    assert np.array_equal(odd, np.isnan(wanted))
    assert same(found[~odd], wanted[~odd])
    for at in np.flatnonzero(~odd):
        assert same(arrays.mix(base[at : at + 1], tuned[at : at + 1], alpha), found[at : at + 1])


def test_mix_where_the_difference_overflows():
    """By the exact value, beside an ordinary one."""
    found = arrays.mix(np.array([1.5e308, 1.0, -1.7e308]), np.array([-1.5e308, 2.0, 1.7e308]), 0.25)
    for got, (base, tuned) in zip(found.tolist(), [(1.5e308, -1.5e308), (1.0, 2.0), (-1.7e308, 1.7e308)], strict=True):
        exact = Fraction(3, 4) * Fraction(base) + Fraction(1, 4) * Fraction(tuned)
        assert abs(Fraction(got) - exact) <= abs(exact) * Fraction(2) ** -51


@given(st.lists(st.tuples(ANY, ANY, ANY), min_size=1, max_size=6), st.floats(-3, 3), st.permutations(range(3)))
def test_sums_of_anything_are_those_of_tensors(rows, c, order):
    """`moved` and `ordered_sum`, the latter in any order; what is given stays as it is."""
    parts = list(np.array(rows).T.copy())
    before = [part.tobytes() for part in parts]
    tensors = [torch.from_numpy(part) for part in parts]
    pairs = [
        (arrays.moved(parts[0], parts[1], c), numerics.moved(tensors[0], tensors[1], c)),
        (arrays.moved(parts[0], parts[1], 1.0), numerics.moved(tensors[0], tensors[1], 1.0)),
        (arrays.ordered_sum(parts), numerics.ordered_sum(tensors)),
        (arrays.ordered_sum([parts[at] for at in order]), numerics.ordered_sum(tensors)),
        (arrays.ordered_sum(parts[:2]), numerics.ordered_sum(tensors[1::-1])),
    ]
    for found, tensor in pairs:
        odd = np.isnan(found)
        assert np.array_equal(odd, np.isnan(tensor.numpy())) and same(found[~odd], tensor.numpy()[~odd])
    assert [part.tobytes() for part in parts] == before


@given(st.lists(st.floats(0, width=64), min_size=1, max_size=40))
def test_roots_are_correctly_rounded(squares):
    """Of arrays and tensors: no float64 is nearer to the exact root."""
    for found in (arrays.root(np.array(squares)), numerics.root(torch.tensor(squares, dtype=torch.float64)).numpy()):
        for square, got in zip(squares, found.tolist(), strict=True):
            if math.isinf(square) or square == 0:
                assert got == square
                continue
            below = (Fraction(got) + Fraction(math.nextafter(got, 0))) / 2
            above = (Fraction(got) + Fraction(math.nextafter(got, math.inf))) / 2
            assert below**2 <= Fraction(square) <= above**2


TROUBLE = [0.0, -0.0, 5e-324, 1e-308, -1.7e308, 1.7e308, math.inf, -math.inf, math.nan]


def test_nothing_is_said_whatever_the_values():
    """Every function on every pair of troubles: `silence` would hear it."""
    signalling = np.array([0x7FF0000000000001], np.uint64).view(np.float64)
    values = np.concatenate([np.array(TROUBLE), signalling])
    for one in values:
        for other in values:
            left, right = np.full((9, 130), one), np.full((130, 17), other)
            arrays.product(left, right)
            a, b = left.reshape(-1), np.full(9 * 130, other)
            for c in (1.0, 1e-300, 1e300):
                arrays.moved(a, b, c), arrays.mix(a, b, c)
            arrays.ordered_sum([a, b]), arrays.ordered_sum([a, b, a])
        arrays.square_sum(left), arrays.root(arrays.square_sum(left))
        arrays.widen(left), arrays.widen(left.view(np.float32)), arrays.widen(left.view(np.uint16))
        for name in CARRIED:
            arrays.round_once(a, name), arrays.finished(a.copy(), a.copy(), name)
        arrays.to_bfloat16(a)
    assert np.isinf(arrays.square_sum(np.full((1, 3000), 1.1e305**0.5)))  # only the sum of its blocks overflows


@pytest.fixture
def empty_room():
    """No memory kept by this thread, and none left behind."""
    rooms._ROOMS.kept.clear()
    yield
    rooms._ROOMS.kept.clear()


def start(array):
    """Where an array's memory begins."""
    return array.__array_interface__["data"][0]


KIB = 1024
HOLDERS = {
    "itself": lambda array: array,
    "a view": lambda array: array[3:5],
    "a view of views": lambda array: array.reshape(-1, 2)[1:].T[::-1][:1].view(np.int64),
    "a tensor": torch.from_numpy,
    "a part of a tensor": lambda array: torch.from_numpy(array)[7:9].view(torch.int16),
    "bytes": lambda array: array.view(np.uint8).data,
    "a part of bytes": lambda array: array.view(np.uint8).data[5:6],
    "an iterator": lambda array: iter(array),
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_memory_is_used_again_once_nothing_refers_to_it(holder, empty_room):
    """Not before, whoever refers to it and through how many views."""
    first = rooms.room((16 * KIB,), np.float64)
    place, held = start(first), HOLDERS[holder](first)
    del first
    gc.collect()
    for shape, dtype in (((16 * KIB,), np.float64), ((100, 100), np.float64), ((128 * KIB,), np.uint8)):
        other = rooms.room(shape, dtype)
        assert other.shape == shape and other.dtype == dtype and other.flags.c_contiguous and other.flags.writeable
        assert start(other) != place
    del held
    gc.collect()
    again = rooms.room((128, 128), np.float64)
    assert start(again) == place


@pytest.mark.parametrize("size", [0, 1, 64 * KIB - 1, 4096 * KIB + 1, 8192 * KIB])
def test_small_and_large_arrays_are_not_kept(size, empty_room):
    """The system is quick enough with those, or wants them back."""
    assert rooms.room((size,), np.uint8).shape == (size,)
    assert rooms._ROOMS.kept == []
    for kept in (64 * KIB, 4096 * KIB):
        rooms.room((kept,), np.uint8)
    assert [len(one) for one in rooms._ROOMS.kept] == [64 * KIB, 4096 * KIB]


def test_no_more_are_kept_than_a_few(empty_room):
    """However many are in use; those that were let go from the list stay what they are."""
    held = [rooms.room((64 * KIB,), np.uint8) for _ in range(3 * rooms._MOST)]
    for number, array in enumerate(held):
        array[:] = number
    assert len(rooms._ROOMS.kept) == rooms._MOST
    assert len({start(array) for array in held}) == len(held)
    assert all((array == number).all() for number, array in enumerate(held))


def test_memory_that_is_too_small_is_not_used(empty_room):
    """A free one of fewer bytes is left alone; one of more will do."""
    small = start(rooms.room((64 * KIB,), np.uint8))
    large = rooms.room((128 * KIB,), np.uint8)
    assert start(large) != small
    place = start(large)
    del large
    assert start(rooms.room((96 * KIB,), np.uint8)) == place


def test_no_thread_uses_the_memory_of_another(empty_room):
    """Free memory of one thread is not given to another; what a thread has made outlives it."""
    mine = start(rooms.room((64 * KIB,), np.uint8))
    made = queue.Queue()

    def other():
        first = rooms.room((64 * KIB,), np.uint8)
        first[:] = 7
        made.put(first)
        made.put(len(rooms._ROOMS.kept))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    theirs, count = made.get(), made.get()
    assert start(theirs) != mine and count == 1
    for _ in range(40):
        rooms.room((64 * KIB,), np.uint8)[:] = 1
    assert (theirs == 7).all()
    assert start(rooms.room((64 * KIB,), np.uint8)) == mine


def test_many_threads_and_lifetimes_never_share(empty_room):
    """Arrays filled with a number of their own, held as views, tensors or bytes, handed to other threads, dropped in
    any order: each holds its number to the end."""
    shared, wrong, reused = queue.Queue(), [], []

    def check(held, number):
        if isinstance(held, torch.Tensor):
            held = held.numpy()
        if not (np.frombuffer(held, np.int32) == number).all():
            wrong.append(number)

    def work(seed):
        draw, live, places = random.Random(seed), [], set()
        for step in range(150):
            number = seed * 1000 + step
            array = rooms.room((draw.choice([17, 20, 33]) * KIB,), np.int32)
            reused.append(start(array) in places)
            places.add(start(array))
            array[:] = number
            kind = draw.randrange(4)
            held = [array, array[1:].reshape(-1), torch.from_numpy(array), array.view(np.uint8).data][kind]
            del array
            (shared.put if draw.random() < 0.3 else live.append)((held, number))
            del held
            while len(live) > draw.randrange(1, 25):
                check(*live.pop(draw.randrange(len(live))))
            if draw.random() < 0.3 and not shared.empty():
                try:
                    live.append(shared.get_nowait())
                except queue.Empty:
                    continue
        for one in live[::2]:
            check(*one)
        for one in live[1::2]:
            shared.put(one)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert len(reused) == 8 * 150 and sum(reused) > 300  # else nothing was tried
    while not shared.empty():  # their threads are gone
        check(*shared.get())
    assert wrong == []


def test_results_that_are_held_keep_their_values(empty_room):
    """Everything that arithmetic returns is kept while more is computed: none of it changes."""
    draw, choose, held = np.random.default_rng(0), random.Random(0), []
    for _ in range(30):
        base, delta = draw.standard_normal((150, 100)), draw.standard_normal((150, 100))
        made = [arrays.product(base, delta.T), arrays.moved(base, delta, 0.3), arrays.mix(base, delta, 0.3)]
        made += [arrays.round_once(base.reshape(-1), name) for name in CARRIED]
        made += [arrays.widen(one) for one in made[-4:]]
        made += [arrays.to_bfloat16(np.full(40_000, 1 + 2.0**-8)), arrays.square_sum(base)]
        held += [(one, one.tobytes()) for one in choose.sample(made, 4)]
    assert all(one.tobytes() == before for one, before in held)
