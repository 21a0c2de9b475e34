"""Compiled loops give the bits of arrays, refuse what arrays refuse, and are done without where they cannot be had."""

from __future__ import annotations

import builtins
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from folders import tree
from hypothesis import given
from hypothesis import strategies as st
from oracles import round_exact
from test_budget import layers, pair

from wiseft_core import arrays, compiled, interpolate, loops, save_checkpoint

KINDS = ("BF16", "F16", "F32")


@pytest.fixture(autouse=True)
def loaded(monkeypatch):
    """A process that has the loops."""
    state = loops._Loops()
    state.found, state.is_tried = compiled, True
    monkeypatch.setattr(loops, "_LOOPS", state)
    return state


def without(what, stored, values, factor, target):
    """The same by arrays alone."""
    whole = {"moved": arrays.moved, "mixed": arrays.mix}[what]
    return arrays.finished(whole(arrays.widen(stored), values, factor), stored, target)


def agree(what, stored, values, factor, target):
    """Whether loops and arrays give the same bytes, or both leave the tile to somebody else."""
    got, right = (
        getattr(loops, f"{what}_once")(stored, values, factor, target),
        without(what, stored, values, factor, target),
    )
    return (got is None and right is None) or (got.dtype == right.dtype and got.tobytes() == right.tobytes())


def every(target):
    """Every finite number of a dtype of 16 bits; for float32 those of each exponent that are hardest."""
    if target != "F32":
        bits = np.arange(1 << 16, dtype=np.uint16).view(arrays.CARRIERS[target])
        return bits[[arrays.is_all_finite(bits[at : at + 1]) for at in range(len(bits))]]
    ends = np.array([0, 1, 2, 0x400000, 0x7FFFFE, 0x7FFFFF], np.uint32)
    words = (np.arange(255, dtype=np.uint32)[:, None] << 23 | ends).reshape(-1)
    return np.concatenate([words, words | 0x80000000]).view(np.float32)


@pytest.mark.parametrize("target", KINDS)
@pytest.mark.parametrize("what", ["moved", "mixed"])
def test_every_stored_number(what, target):
    """Each finite number with changes from none at all to its own size, both signs, and halves of its last place."""
    stored = every(target)
    wide = arrays.widen(stored).copy()
    for exponent in (0, -1, -7, -8, -9, -10, -11, -12, -23, -24, -25, -60, -1100):
        for odd in (1.0, -1.0, 1 + 2.0**-40, -(1 - 2.0**-40), 0.7):
            values = wide * (odd * 2.0**exponent)
            if what == "mixed":
                values = values + wide
            small = np.abs(values) < 1e4
            assert agree(what, stored[small], values[small], 1.0, target)
            assert agree(what, stored[small], values[small], 0.5, target)


@pytest.mark.parametrize("target", KINDS)
@pytest.mark.parametrize("what", ["moved", "mixed"])
@pytest.mark.parametrize("factor", [1.0, 0.5, 0.3, -0.7, 2.5, 1e-300, 1 - 2.0**-53, 1e300])
def test_many_random_numbers(what, target, factor):
    """Numbers of all sizes, and changes of all sizes."""
    drawn = np.random.default_rng(0)
    for spread in (1, 8, 14):
        sizes = 2.0 ** drawn.integers(-spread, min(spread, 3), 20_000)
        stored = arrays.round_once(drawn.standard_normal(20_000) * sizes, target)
        values = drawn.standard_normal(20_000) * 2.0 ** drawn.integers(-40, 3, 20_000)
        assert agree(what, stored, values, factor, target)


@pytest.mark.parametrize("target", KINDS)
def test_rounding_against_fractions(target):
    """One rounding of the float64 sum, by an oracle that knows neither arrays nor loops."""
    drawn = np.random.default_rng(1)
    stored = arrays.round_once(drawn.standard_normal(500), target)
    delta = drawn.standard_normal(500) * 2.0 ** drawn.integers(-12, 1, 500)
    sums = arrays.widen(stored) + delta * 0.3
    got = arrays.widen(loops.moved_once(stored, delta, 0.3, target))
    assert got.tolist() == [float(round_exact(float(value), target)) for value in sums]


@given(
    st.sampled_from(KINDS),
    st.sampled_from(["moved", "mixed"]),
    st.lists(st.tuples(st.floats(width=16), st.floats()), max_size=20),
    st.floats(allow_nan=False, allow_infinity=False),
)
def test_whatever_there_is(target, what, pairs, factor):
    """Infinities, NaN, numbers beyond the dtype, subnormal numbers, signed zeros and empty tiles."""
    with np.errstate(all="ignore"):
        stored = arrays.round_once(np.array([pair[0] for pair in pairs], float), target)
        values = np.array([pair[1] for pair in pairs], float)
        assert agree(what, stored, values, factor, target)


@pytest.mark.parametrize("target", KINDS)
def test_what_is_not_plain_is_left_to_others(target):
    """One odd number among the base's or the results is enough, wherever it is."""
    for at in (0, 511, 1023):
        for bad in (np.inf, -np.inf, np.nan):
            values = np.zeros(1024)
            stored = arrays.round_once(values, target)
            assert loops.moved_once(stored, values, 1.0, target) is not None
            values[at] = bad
            assert loops.moved_once(stored, values, 1.0, target) is None
            assert loops.moved_once(arrays.round_once(values, target), np.zeros(1024), 1.0, target) is None
    assert loops.moved_once(arrays.round_once(np.ones(4), target), np.full(4, 1e39), 1.0, target) is None


def test_negative_zero_stays():
    """A base of -0.0 that nothing is added to keeps its sign, and another zero has none."""
    for target in KINDS:
        stored = arrays.round_once(np.array([-0.0, -0.0, 0.0, 1.0]), target)
        got = arrays.widen(loops.moved_once(stored, np.array([0.0, 1.0, 0.0, -1.0]), 1.0, target))
        assert np.signbit(got).tolist() == [True, False, False, False]


@pytest.mark.parametrize("target", [*KINDS, "F64"])
def test_wider_and_moved(target):
    """In float64, of one or two axes, turned, cut and empty; neither operand changes."""
    drawn = np.random.default_rng(2)
    stored = every(target) if target != "F64" else drawn.standard_normal(4096)
    for part in (stored[:4080], stored[4080:1:-3], stored[:0], np.frombuffer(stored.tobytes(), stored.dtype)):
        wide = arrays.widen(part).copy()
        assert loops.widen(part).tobytes() == wide.tobytes()
        change = drawn.standard_normal(len(wide))
        for c in (1.0, 0.3, -1e300, 5e-324):
            with np.errstate(all="ignore"):
                assert loops.moved(wide, change, c).tobytes() == (wide + change * c).tobytes()
    base, change = np.resize(arrays.widen(stored), (80, 51)), np.asfortranarray(drawn.standard_normal((80, 51)))
    before = base.tobytes(), change.tobytes()
    for one, other in ((base, change), (base.T, change.T), (base, change.copy()), (base[:, 3:40], change[:, 3:40])):
        assert loops.moved(one, other, 0.3).tobytes() == (one + other * 0.3).tobytes()
    assert (base.tobytes(), change.tobytes()) == before


def test_memory_of_any_kind():
    """Stored values that may not be written to, and values that lie apart."""
    stored = np.frombuffer(bytes(range(64)) * 2, np.uint16)
    values = np.ones((64, 3))[:, 1]
    assert not stored.flags.writeable
    assert not values.flags.c_contiguous
    assert agree("moved", stored, values, 0.5, "BF16")
    assert (values == 1).all()


def test_another_dtype_is_left_to_arrays():
    """float64, and results of another dtype than the base's, have no loop."""
    assert loops.moved_once(np.ones(3), np.ones(3), 1.0, "F64") is None
    assert loops.moved_once(np.ones(3, np.float32), np.ones(3), 1.0, "BF16") is None


@pytest.fixture
def fresh(monkeypatch):
    """A process that has not loaded anything yet."""
    state = loops._Loops()
    monkeypatch.setattr(loops, "_LOOPS", state)
    return state


def test_they_are_loaded_once_there_is_enough_to_do(fresh):
    """Not before, and what several jobs compute adds up."""
    assert loops.may_come()
    assert not loops.expect(loops.AFTER)
    assert loops.expect(1)
    assert loops.moved_once(np.ones(3, np.float32), np.ones(3), 1.0, "F32") is None
    loops.load()
    assert fresh.found is compiled
    assert not loops.may_come()
    assert not loops.expect(1)


def test_where_numba_compiles_nothing():
    """Loops in plain Python would take a thousand times as long: arrays do it."""
    code = "from wiseft_core import loops; loops.load(); print(loops._LOOPS.found, loops.may_come())"
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["None", "False"]


def test_without_numba(fresh, monkeypatch):
    """Everything is left to arrays; nobody is told, for nothing is wrong, and it is not tried again."""
    real, tried = builtins.__import__, []

    def refused(name, *rest):
        if name.partition(".")[0] == "numba":
            tried.append(name)
            raise ModuleNotFoundError(name)
        return real(name, *rest)

    monkeypatch.delitem(sys.modules, "wiseft_core.compiled")
    monkeypatch.setattr(builtins, "__import__", refused)
    loops.load()
    loops.load()
    assert (fresh.found, fresh.is_tried, tried) == (None, True, ["numba"])


@pytest.mark.parametrize(
    "wrong", ["moved", "wide_bf16", *(f"{what}_{target.lower()}" for what in ("moved", "mixed") for target in KINDS)]
)
def test_a_loop_that_computes_something_else_is_not_used(fresh, monkeypatch, wrong):
    """Here one that cuts where it should round, in one element of a tile."""
    names = [name for name in vars(compiled) if name.startswith(("moved", "mixed_", "wide_"))]

    def cut(*arguments):
        is_plain = getattr(compiled, wrong)(*arguments)
        arguments[-1][100] -= 1
        return is_plain

    broken = SimpleNamespace(**{name: cut if name == wrong else getattr(compiled, name) for name in names})
    monkeypatch.setattr(loops, "import_module", lambda name: broken)
    loops.load()
    assert (fresh.found, fresh.is_tried) == (None, True)


def test_a_job_has_the_same_tree_with_and_without(fresh, monkeypatch, tmp_path):
    """A checkpoint of several tensors, written by threads; the job itself says what it expects."""
    place = pair(tmp_path, {**layers(3, 96, 4096), "lm_head": (64, 512)})
    view, trees = interpolate(*place, 0.3), []
    for after in (1 << 40, 0):
        monkeypatch.setattr(loops, "AFTER", after)
        save_checkpoint(view, tmp_path / str(after), sync=False, threads=2)
        trees.append(tree(tmp_path / str(after)))
        assert fresh.found is (None if after else compiled)
    assert trees[0] == trees[1]
