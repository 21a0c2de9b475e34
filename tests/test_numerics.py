"""The ground: dtypes by name, one exact rounding, the policies, and products and norms with fixed bits."""

from __future__ import annotations

import contextlib
import math
import random
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.oracles import FORMATS, round_exact, ulp
from wiseft_core import arrays, dtypes, numerics
from wiseft_core.errors import ConfigError, DtypeMismatch, NotFinite
from wiseft_core.types import BITS, FLOATS, parse_dtype

NARROW = ("BF16", "F16", "F8_E4M3", "F8_E5M2")
ANY_DOUBLE = st.floats(width=64) | st.floats(-500, 500) | st.floats(-1e-4, 1e-4)
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@contextlib.contextmanager
def threads(count):
    """torch's thread count for the length of a block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def bits(values):
    """The tensor's bytes as integers, so that NaN and -0.0 compare as what they are."""
    return values.contiguous().view(INTEGERS[values.dtype.itemsize])


def expected_rounding(values, name):
    """The oracle's answers as float64; F8_E4M3 saturates where the oracle says overflow."""
    answers = [round_exact(value, name) for value in values]
    if name == "F8_E4M3":
        answers = [math.copysign(448.0, answer) if math.isinf(answer) else answer for answer in answers]
    return torch.tensor(answers, dtype=torch.float64)


def same(got, expected):
    """Equal as numbers, with NaN equal to NaN and the sign of zero counted."""
    got, expected = got.double().flatten(), expected.double().flatten()
    nan = got.isnan() & expected.isnan()
    return bool((nan | (bits(got) == bits(expected))).all())


def steps(value, count):
    """`value` and its float64 neighbours, `count` steps to each side."""
    near = [value]
    up = down = value
    for _ in range(count):
        up, down = math.nextafter(up, math.inf), math.nextafter(down, -math.inf)
        near += [up, down]
    return near


def hard_values(name):
    """float64 values that mislead a rounding to `name`: the rows of the table of cases that any recipe must pass."""
    precision, least, largest = FORMATS[name]
    draw = random.Random(name)
    smallest = 2.0**least
    top = float(largest)
    threshold = float(largest + ulp(largest, name) / 2) if name != "F64" else top
    values = [0.0, -0.0, math.inf, -math.inf, math.nan, 5e-324, 2.0**-1022, 1.7976931348623157e308, 1e300, 1e-300]
    for exponent in {least - 2, least - 1, least, least + 1, least + precision - 1, -8, -1, 0, 1, 5, 7, 100, 120}:
        if -1074 <= exponent < 1023:
            for k in (1, 2, 3, 255, 257, 511):
                power = 2.0**exponent
                values += [power, power - k * math.ulp(power / 2), power + k * math.ulp(power)]
    for _ in range(60):
        exponent = draw.randrange(max(least + precision, -1000), 120 if name in ("F64", "F32", "BF16") else 6)
        target = math.ldexp(draw.randrange(2 ** (precision - 1), 2**precision), exponent - precision + 1)
        middle = target + float(ulp(target, name)) / 2
        values += steps(target, 2) + steps(middle, 3)
        values += [middle * (1 + sign * 2.0**-j) for sign in (-1, 1) for j in (24, 25, 30, 40, 51)]
        k = draw.randrange(0, 2 ** (precision - 1))
        values += steps(k * smallest, 2) + steps(k * smallest + smallest / 2, 3)
        values += [(k + 0.5) * smallest * (1 + sign * 2.0**-j) for sign in (-1, 1) for j in (18, 24, 30, 45)]
        values += [draw.gauss(0, 1), draw.gauss(0, 1e-6), draw.random() * smallest * 2**precision]
    values += steps(top, 3) + steps(threshold, 4) + [threshold * (1 - 2.0**-j) for j in range(20, 53, 4)]
    return values + [-value for value in values]


@pytest.mark.parametrize("name", FLOATS)
def test_float64_is_rounded_once_on_every_hard_value(name):
    """Midpoints and their neighbours, powers of two, subnormals, thresholds, zeros, inf, NaN: as the oracle says."""
    values = hard_values(name)
    expected = expected_rounding(values, name)
    got = numerics.round_once(torch.tensor(values, dtype=torch.float64), dtypes.TORCH_DTYPES[name])
    assert got.dtype == dtypes.TORCH_DTYPES[name]
    assert same(got, expected)


@pytest.mark.parametrize("name", FLOATS)
def test_float32_is_rounded_once_on_every_hard_value(name):
    """From float32 too, at values that are hard for the target and exact in float32."""
    values = torch.tensor(hard_values(name), dtype=torch.float64).float()
    expected = expected_rounding(values.tolist(), name)
    assert same(numerics.round_once(values, dtypes.TORCH_DTYPES[name]), expected)


@pytest.mark.parametrize("name", NARROW)
def test_every_pattern_of_upper_bits_rounds_once_from_float32(name):
    """All 65536 upper halves of a float32, with lower halves at and around a tie, against float64's exact route."""
    upper = torch.arange(-(2**15), 2**15, dtype=torch.int32) << 16
    for lower in (0, 1, 0x1000, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        values = (upper | lower).view(torch.float32)
        dtype = dtypes.TORCH_DTYPES[name]
        assert same(numerics.round_once(values, dtype), numerics.round_once(values.double(), dtype))


@pytest.mark.parametrize("name", NARROW)
def test_every_number_of_a_dtype_survives(name):
    """Each finite bit pattern, widened and rounded back, is itself."""
    dtype = dtypes.TORCH_DTYPES[name]
    count = 2 ** BITS[name]
    patterns = torch.arange(count, dtype=torch.int32).to(INTEGERS[dtype.itemsize]).view(dtype)
    finite = patterns[patterns.float().isfinite()]
    for compute in (torch.float64, torch.float32):
        assert torch.equal(bits(numerics.round_once(numerics.widen(finite, compute), dtype)), bits(finite))


@given(st.lists(ANY_DOUBLE, max_size=40), st.sampled_from(FLOATS))
def test_any_float64_is_rounded_once(values, name):
    """Any doubles at all, any dtype."""
    tensor = torch.tensor(values, dtype=torch.float64)
    assert same(numerics.round_once(tensor, dtypes.TORCH_DTYPES[name]), expected_rounding(values, name))


@pytest.mark.parametrize("ties", [0, 1, 5, 15, 16, 17, 4000])
def test_bf16_does_not_depend_on_how_many_ties_a_tile_has(ties):
    """Few near-ties are repaired one by one, many by another route: the same bits."""
    values = torch.linspace(-3, 3, 4099, dtype=torch.float64)
    at = torch.randperm(4099, generator=torch.Generator().manual_seed(ties))[:ties]
    values[at] = (1 + 2.0**-8) * (1 + torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)[at % 3] * 2.0**-40)
    expected = expected_rounding(values.tolist(), "BF16")
    assert same(numerics.round_once(values, torch.bfloat16), expected)
    values[::7] = -0.0
    assert same(numerics.round_once(values, torch.bfloat16), expected_rounding(values.tolist(), "BF16"))


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("compute", [torch.float64, torch.float32])
def test_rounding_takes_any_shape_and_leaves_its_input(name, compute):
    """Empty, 0-d, transposed, strided and expanded input: same numbers as flat, input unchanged."""
    dtype = dtypes.TORCH_DTYPES[name]
    whole = torch.linspace(-9, 9, 6 * 8, dtype=compute).view(6, 8)
    before = whole.clone()
    flat = numerics.round_once(whole.flatten(), dtype).float().view(6, 8)
    views = [(whole.t(), flat.t()), (whole[::2, 1::3], flat[::2, 1::3]), (whole[2, 3], flat[2, 3])]
    views += [(whole[:0], flat[:0]), (whole[1:2].expand(4, 8), flat[1:2].expand(4, 8))]
    for view, expected in views:
        got = numerics.round_once(view, dtype)
        assert got.shape == expected.shape
        assert torch.equal(got.float(), expected)
    assert torch.equal(whole, before)


def finish(values, stored, dtype=None, overflow="error"):
    """`finish` on copies, with a name."""
    return numerics.finish(values.clone(), stored, dtype or stored.dtype, overflow=overflow, name="layers.0.weight")


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("trouble", [False, True])
def test_finish_rounds_plain_numbers_alike_on_both_paths(name, trouble):
    """A -0.0 elsewhere in the tile sends it down the slow path: the other elements keep the same bits."""
    dtype = dtypes.TORCH_DTYPES[name]
    values = torch.linspace(-5, 5, 3000, dtype=torch.float64).view(3, 1000)
    stored = values.to(dtype)
    if trouble:
        stored[0, 0] = torch.tensor(-0.0).to(dtype)
    assert torch.equal(bits(finish(values, stored)), bits(numerics.round_once(values, dtype)))


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("compute", [torch.float64, torch.float32])
def test_an_untouched_element_keeps_its_bits(name, compute):
    """Every bit pattern of the narrow dtypes, and odd ones of the wide: NaN payloads, inf, both zeros, subnormals."""
    dtype = dtypes.TORCH_DTYPES[name]
    if BITS[name] <= 16:
        stored = torch.arange(2 ** BITS[name], dtype=torch.int32).to(INTEGERS[dtype.itemsize]).view(dtype)
    else:
        shift = BITS[name] - 16
        stored = (torch.arange(-(2**15), 2**15, dtype=torch.int64) << shift).add(1).to(INTEGERS[dtype.itemsize])
        stored = torch.cat([stored, stored - 1]).view(dtype)
        if name == "F64" and compute == torch.float32:  # float32 holds but some of them
            stored = torch.tensor([0.0, -0.0, math.nan, -math.inf, 1.5], dtype=dtype)
    values = numerics.widen(stored, compute).add_(0.0)
    before = bits(stored).clone()
    assert torch.equal(bits(finish(values, stored)), before)
    assert torch.equal(bits(stored), before)


@pytest.mark.parametrize("name", FLOATS)
def test_a_base_that_is_not_finite_passes_through_whatever_was_computed(name):
    """Also where the computed value is finite, or NaN because inf met inf."""
    dtype = dtypes.TORCH_DTYPES[name]
    odd = [math.nan] if name == "F8_E4M3" else [math.nan, math.inf, -math.inf]
    for value in (*odd, 1.0):
        stored = torch.tensor([*odd, 2.0]).to(dtype)
        values = torch.full((len(stored),), value, dtype=torch.float64)
        values[-1] = 3.0
        got = finish(values, stored)
        assert torch.equal(bits(got)[:-1], bits(stored)[:-1])
        assert got[-1].float() == 3.0


def test_a_base_that_is_not_finite_is_converted_to_another_dtype():
    """inf stays inf, NaN stays NaN; F8_E4M3 has no inf, so that one is an overflow."""
    stored = torch.tensor([math.inf, -math.inf, math.nan, 1.0], dtype=torch.bfloat16)
    values = stored.double()
    for name in ("F64", "F32", "F16", "F8_E5M2"):
        assert same(finish(values, stored, dtypes.TORCH_DTYPES[name]), stored)
    with pytest.raises(NotFinite, match="does not fit F8_E4M3"):
        finish(values, stored, torch.float8_e4m3fn)
    got = finish(values, stored, torch.float8_e4m3fn, overflow="saturate")
    assert same(got, torch.tensor([448.0, -448.0, math.nan, 1.0]))


@pytest.mark.parametrize("name", FLOATS)
def test_zero_keeps_the_sign_of_the_base_and_a_vanishing_value_its_own(name):
    """-0.0 plus nothing is -0.0; what rounds to zero has the sign of what it was."""
    dtype = dtypes.TORCH_DTYPES[name]
    tiny = 0.0 if name == "F64" else float(ulp(0.0, name)) / 4
    stored = torch.tensor([-0.0, -0.0, 0.0, 0.0]).to(dtype)
    values = torch.tensor([0.0, -tiny, -tiny, 0.0], dtype=torch.float64)
    expected = torch.tensor([-0.0, -0.0, -tiny * 0.0, 0.0], dtype=torch.float64)
    assert same(finish(values, stored), expected)
    assert same(
        finish(torch.tensor([tiny or 1.0], dtype=torch.float64), stored[:1]), torch.tensor([0.0 if tiny else 1.0])
    )


@pytest.mark.parametrize("name", [name for name in FLOATS if name != "F64"])
@pytest.mark.parametrize("sign", [1, -1])
def test_overflow_is_an_error_or_saturates(name, sign):
    """From the first float64 that rounds beyond the largest number, and not before."""
    dtype, largest = dtypes.TORCH_DTYPES[name], FORMATS[name][2]
    threshold = float(largest + ulp(largest, name) / 2)
    first = math.nextafter(threshold, math.inf) if name == "F8_E4M3" else threshold
    last = math.nextafter(first, 0)
    stored = torch.ones(2, 3).to(dtype)
    values = torch.ones(2, 3, dtype=torch.float64)
    values[1, 1] = sign * last
    assert finish(values, stored)[1, 1].double() == sign * float(largest)
    values[1, 1] = sign * first
    got = finish(values, stored, overflow="saturate").double()
    assert got[1, 1] == sign * float(largest)
    assert (got != 1).sum() == 1
    with pytest.raises(NotFinite) as caught:
        finish(values, stored)
    assert "layers.0.weight" in caught.value.where
    assert "1 of 6" in caught.value.got
    assert f"{float(largest):.9g}" in caught.value.expected
    assert caught.value.hint


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("overflow", ["error", "saturate"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_refused_under_both_policies(name, overflow, bad):
    """A broken adapter is never stored, not even as the largest number."""
    stored = torch.ones(5).to(dtypes.TORCH_DTYPES[name])
    values = torch.ones(5, dtype=torch.float64)
    values[2] = bad
    with pytest.raises(NotFinite, match=r"layers\.0\.weight.*not finite"):
        finish(values, stored, overflow=overflow)


def test_an_unknown_overflow_policy_is_refused():
    """Even where nothing overflows."""
    with pytest.raises(ConfigError, match="overflow"):
        finish(torch.ones(2, dtype=torch.float64), torch.ones(2), overflow="ieee")


def test_finish_takes_an_empty_tile():
    """A tensor without elements is a tensor."""
    for name in FLOATS:
        empty = torch.empty(0, 4).to(dtypes.TORCH_DTYPES[name])
        assert finish(empty.double(), empty).shape == (0, 4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("rank", [1, 2, 16, 129, 520])
@pytest.mark.parametrize("width", [1, 2, 7, 64, 333, 1024])
def test_product_has_the_same_bits_for_any_threads_rows_and_layout(dtype, rank, width):
    """A row's bits depend on the row, not on threads, neighbours, strides or where the columns were cut."""
    draw = torch.Generator().manual_seed(rank * width)
    left, right = (torch.randn(*s, generator=draw).to(dtype) for s in ((64, rank), (rank, width)))
    with threads(1):
        whole = numerics.product(left, right)
    for count in (1, 2, 3):
        with threads(count):
            for rows in (1, 2, 7, 32, 64):
                assert torch.equal(numerics.product(left[:rows], right), whole[:rows])
    assert torch.equal(numerics.product(left.t().contiguous().t(), right.t().contiguous().t()), whole)
    part = slice(0, max(1, width // 3))
    assert torch.equal(numerics.product(left, right[:, part]), whole[:, part])


def test_a_moved_product_is_exact_but_for_the_last_steps():
    """With bf16 factors the product is exact: at most the scaling and the sum round, and nothing given is modified."""
    draw = torch.Generator().manual_seed(1)
    weight, left, right = (torch.randn(*s, generator=draw).bfloat16().double() for s in ((3, 5), (3, 200), (200, 5)))
    change = numerics.product(left, right)
    before = weight.clone(), change.clone()
    got = numerics.moved(weight, change, 1 / 3)
    for i in range(3):
        for j in range(5):
            product = sum(Fraction(left[i, k].item()) * Fraction(right[k, j].item()) for k in range(200))
            exact = Fraction(weight[i, j].item()) + Fraction(1 / 3) * product
            slack = (abs(product) + abs(exact)) * Fraction(2) ** -53
            assert abs(Fraction(got[i, j].item()) - exact) <= slack
    assert torch.equal(weight, before[0]) and torch.equal(change, before[1])


def test_product_of_rank_zero_is_zero():
    """An empty product is zero."""
    assert torch.equal(numerics.product(torch.empty(1, 0), torch.empty(0, 2)), torch.zeros(1, 2))


@given(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_an_ordered_sum_does_not_know_the_order(terms, order):
    """Every permutation of the terms gives the same bits, near the exact sum."""
    parts = [torch.tensor([[term]], dtype=torch.float64) for term in terms]
    total = numerics.ordered_sum(parts)
    order.shuffle(parts)
    assert torch.equal(numerics.ordered_sum(parts).view(torch.int64), total.view(torch.int64))
    exact, size = sum(map(Fraction, terms)), sum(abs(Fraction(term)) for term in terms)
    assert abs(Fraction(total.item()) - exact) <= size * Fraction(2) ** -50


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(64, 1), (64, 7), (64, 1024), (64, 1025), (5, 4096), (3, 5000), (1, 200_000)])
def test_square_sum_has_the_same_bits_for_any_threads_rows_and_layout(dtype, shape):
    """Also in one huge row, where torch's own sum is split among threads."""
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    with threads(1):
        whole = numerics.square_sum(weight)
    exact = [math.fsum(x * x for x in row) for row in weight.double().tolist()]
    assert whole.dtype == dtype
    assert torch.allclose(
        whole, torch.tensor(exact, dtype=dtype), rtol=2**-48 if dtype == torch.float64 else 2**-23, atol=0
    )
    for count in (1, 2, 3):
        with threads(count):
            assert torch.equal(numerics.square_sum(weight), whole)
            assert torch.equal(numerics.square_sum(weight.t().contiguous().t()), whole)
            for rows in (1, 2, 3):
                assert torch.equal(numerics.square_sum(weight[:rows]), whole[:rows])


def test_square_sum_of_no_columns_is_zero():
    """No columns, or no rows."""
    assert torch.equal(numerics.square_sum(torch.empty(3, 0, dtype=torch.float64)), torch.zeros(3, dtype=torch.float64))
    assert numerics.square_sum(torch.empty(0, 3)).shape == (0,)


def mixed(base, tuned, alpha, dtype=torch.float64):
    """`mix` of two numbers."""
    return numerics.mix(torch.tensor([base], dtype=dtype), torch.tensor([tuned], dtype=dtype), alpha).item()


FINITE = st.floats(allow_nan=False, allow_infinity=False)
FINITE32 = st.floats(allow_nan=False, allow_infinity=False, width=32)
UNIT = st.floats(0, 1) | st.sampled_from([0.0, 1.0, 0.5, 1 - 2.0**-53, 1 - 2.0**-52, 1 - 1e-9, 5e-324, 1e-9])


@given(FINITE, FINITE, UNIT, UNIT)
def test_mix_is_exact_at_the_ends_bounded_and_monotone(base, tuned, first, second):
    """In float64, subnormals and values whose difference overflows included."""
    assert mixed(base, tuned, 0.0) == base
    assert mixed(base, tuned, 1.0) == tuned
    low, high = sorted((first, second))
    path = [base, mixed(base, tuned, low), mixed(base, tuned, high), tuned]
    assert path == sorted(path, reverse=tuned < base)


@given(FINITE32, FINITE32, UNIT, UNIT)
def test_mix_keeps_its_promises_in_float32(base, tuned, first, second):
    """Also where alpha rounds to 1."""
    low, high = sorted((first, second))
    path = [base, *(mixed(base, tuned, alpha, torch.float32) for alpha in (low, high)), tuned]
    assert path == sorted(path, reverse=tuned < base)


@given(st.floats(-1e9, 1e9), st.floats(-1e9, 1e9), st.floats(-2, 3))
def test_mix_is_what_it_says(base, tuned, alpha):
    """Within a few roundings of the exact value, outside of [0, 1] too."""
    exact = Fraction(base) + Fraction(alpha) * (Fraction(tuned) - Fraction(base))
    scale = (abs(Fraction(base)) + abs(Fraction(tuned))) * (1 + abs(Fraction(alpha)))
    assert abs(Fraction(mixed(base, tuned, alpha)) - exact) <= scale * Fraction(2) ** -51 + Fraction(2) ** -1070


def test_mix_survives_a_difference_that_overflows():
    """Beside ordinary elements, which keep their bits."""
    base = torch.tensor([1.5e308, 1.0], dtype=torch.float64)
    tuned = torch.tensor([-1.5e308, 2.0], dtype=torch.float64)
    ends = base.clone(), tuned.clone()
    assert numerics.mix(base, tuned, 0.25).tolist() == [0.75e308, 1.25]
    assert numerics.mix(*ends, 0.5).tolist() == [0.0, 1.5]


def test_flushing_of_subnormals_is_noticed():
    """By this thread's arithmetic, and only while it lasts."""
    assert not arrays.flushes_denormals()
    assert torch.set_flush_denormal(True), "this processor cannot flush"
    try:
        assert arrays.flushes_denormals()
    finally:
        torch.set_flush_denormal(False)
    assert not arrays.flushes_denormals()


@pytest.mark.parametrize("name", FLOATS)
def test_is_all_finite(name):
    """For every pattern that is not finite, and for tiles whose sum overflows."""
    dtype = dtypes.TORCH_DTYPES[name]
    full = torch.full((300,), numerics.LARGEST[dtype], dtype=torch.float64).to(dtype)
    assert numerics.is_all_finite(full)
    assert numerics.is_all_finite(full[:0])
    for bad in [math.nan] if name == "F8_E4M3" else [math.nan, math.inf, -math.inf]:
        broken = full.clone()
        broken[7] = torch.tensor(bad).to(dtype)
        assert not numerics.is_all_finite(broken)
    negative = bits(torch.full((5,), math.nan).to(dtype)) | torch.iinfo(INTEGERS[dtype.itemsize]).min
    assert not numerics.is_all_finite(negative.view(dtype))


def test_dtypes_have_one_name_each():
    """There and back; what safetensors cannot store is refused."""
    for name, dtype in dtypes.TORCH_DTYPES.items():
        assert dtypes.dtype_name(dtype) == name
        assert name in BITS
    with pytest.raises(DtypeMismatch, match="complex128"):
        dtypes.dtype_name(torch.complex128)


@pytest.mark.parametrize(
    ("text", "name"),
    [("bf16", "BF16"), ("bfloat16", "BF16"), ("BF16", "BF16"), ("fp16", "F16"), ("half", "F16"), ("float32", "F32"),
     ("fp32", "F32"), ("float64", "F64"), ("f8_e4m3", "F8_E4M3"), ("float8_e4m3fn", "F8_E4M3"), (None, None),
     ("torch.float16", "F16"), (torch.bfloat16, "BF16"), (torch.float8_e5m2, "F8_E5M2"), ("F8_E5M2", "F8_E5M2")],
)  # fmt: skip
def test_dtypes_are_understood_as_users_spell_them(text, name):
    """The usual words and torch's own."""
    assert parse_dtype(text) == name


@pytest.mark.parametrize("text", ["int8", "bf61", "", "f8", torch.int64, torch.complex64])
def test_other_dtypes_are_refused(text):
    """With the list of those that work."""
    with pytest.raises(ConfigError) as caught:
        parse_dtype(text)
    assert "BF16" in caught.value.expected


def test_a_torch_tensor_keeps_its_storage_and_loses_its_grad():
    """Parameters too."""
    parameter = torch.nn.Parameter(torch.ones(3))
    got = dtypes.as_tensor(parameter, "w")
    assert type(got) is torch.Tensor
    assert not got.requires_grad
    assert got.data_ptr() == parameter.data_ptr()
    assert parameter.requires_grad


def test_numpy_arrays_are_taken_and_shared_where_they_can_be():
    """Writable native arrays share memory; read-only, big-endian and reversed ones are copied, without a warning."""
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    shared = dtypes.as_tensor(array, "w")
    shared[0, 0] = 7
    assert array[0, 0] == 7
    assert torch.equal(dtypes.as_tensor(array.T, "w"), shared.t())
    frozen = array.copy()
    frozen.flags.writeable = False
    for other in (frozen, array.astype(">f4"), array[::-1].copy()[::-1], np.asfortranarray(array)):
        assert torch.equal(dtypes.as_tensor(other, "w"), shared)
    record = np.zeros(3, dtype=[("pad", "u1"), ("x", "<f4")])["x"]
    assert dtypes.as_tensor(record, "w").tolist() == [0, 0, 0]
    assert dtypes.as_tensor(np.array(2.0), "w").shape == ()
    assert dtypes.as_tensor(np.arange(3, dtype=">i8"), "w").tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("frozen", [False, True])
def test_ml_dtypes_arrays_are_understood(name, frozen):
    """Bit for bit, of any shape."""
    for shape in ((2, 3), (), (0, 4)):
        array = np.full(shape, -1.5).astype(getattr(ml_dtypes, name))
        array.flags.writeable = not frozen
        for variant in (array, array.T):
            got = dtypes.as_tensor(variant, "w")
            assert got.dtype == getattr(torch, name)
            assert got.shape == variant.shape
            assert got.double().eq(-1.5).all()


@pytest.mark.parametrize(
    "value",
    [
        torch.empty(2, device="meta"), torch.eye(2).to_sparse(), [1.0], 3.0, None, np.float32(1), np.array(["a"]),
        np.array([object()]), np.zeros(2, dtype=np.longdouble), np.ma.masked_array([1.0], [True]), b"x",
        np.zeros(2, dtype="f4,f4"), np.zeros(2, dtype="M8[s]"),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_anything_else_is_refused_by_name(value):
    """With the name of the tensor and of what came instead."""
    with pytest.raises(DtypeMismatch, match=r"layers\.3") as caught:
        dtypes.as_tensor(value, "layers.3")
    assert caught.value.got


@pytest.mark.parametrize("name", FLOATS)
def test_widening_is_exact_and_owned(name):
    """A new contiguous tensor, also where nothing changes."""
    stored = torch.linspace(-2, 2, 12).view(3, 4).to(dtypes.TORCH_DTYPES[name])
    for compute in (torch.float64, torch.float32):
        for source in (stored, stored.t()):
            wide = numerics.widen(source, compute)
            assert wide.dtype == compute
            assert wide.is_contiguous()
            assert torch.equal(wide.double(), source.double())
            assert wide.untyped_storage().data_ptr() != stored.untyped_storage().data_ptr()
