"""The properties of DoRA: W_tuned = diag(m / ‖W + s·B·A‖) · (W + s·B·A), mixed with W."""

from __future__ import annotations

from fractions import Fraction

import exact
import pytest
import strategies
import torch
from exact import same_bits
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import NAMES

from wiseft_core import errors, interpolate_tensor

CASES = strategies.cases(("dora",), kind="wild", factor_dtype="F32")


def value(case, alpha, **options):
    """W(alpha) of a case, saturated: ranges are not what is tested here."""
    return interpolate_tensor(**case.arguments, alpha=alpha, overflow="saturate", **options)


def is_dora(case):
    """Whether the drawn case kept its family: one without directions is drawn as LoRA."""
    return case.family == "dora"


def tuned_norm(case):
    """‖W + s·B·A‖ of each row, in exact numbers, rounded to float64."""
    plain = case._replace(family="lora", factors={role: case.factors[role] for role in ("A", "B")})
    flat = torch.tensor([float(v) for v in exact.tuned(plain)], dtype=torch.float64).view(case.weight.shape)
    matrix = flat.T if case.layout in ("transposed", "embedding") else flat.flatten(1)
    sizes = [float(exact.root(sum(Fraction(v) ** 2 for v in row))) for row in matrix.tolist()]
    return torch.tensor(sizes, dtype=torch.float64)


def with_magnitude(case, magnitude):
    """The case with another magnitude, in the layout's shape."""
    return case._replace(factors=case.factors | {"magnitude": magnitude.view(case.factors["magnitude"].shape)})


@given(CASES.filter(is_dora), strategies.alphas)
def test_a_dora_of_untouched_magnitude_is_a_lora(case, alpha):
    """28: with m = ‖W + s·B·A‖ in float64 the result is the LoRA's, within the promise for DoRA around it."""
    assume(NAMES[case.weight.dtype] != "F64")
    case = with_magnitude(case, tuned_norm(case))
    plain = case._replace(family="lora", factors={role: case.factors[role] for role in ("A", "B")})
    out, wanted = value(case, alpha), exact.interpolated(plain, alpha)
    norms = [Fraction(size) for size in tuned_norm(case).tolist()]
    hair = max(norms) * Fraction(2) ** -50  # m itself is rounded to float64
    slacks = [slack + hair for slack in exact.slack(case, alpha)]
    assert exact.broken_promises(out, wanted, slacks) == []


def random_case(seed, dtype=torch.bfloat16):
    """A DoRA of normal random numbers, its magnitude the exact norm in float64."""
    draw = torch.Generator().manual_seed(seed)
    weight = (torch.randn(40, 30, generator=draw) * 0.02).to(dtype)
    first = torch.randn(8, 30, generator=draw).to(dtype)
    second = (torch.randn(40, 8, generator=draw) * 0.01).to(dtype)
    moved = weight.double() + 2 * second.double() @ first.double()
    factors = {"A": first, "B": second, "magnitude": moved.norm(dim=1)}
    return strategies.Case(weight, factors, "dora", "linear", 2.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_a_dora_with_the_norm_in_float64_has_the_bits_of_the_lora(dtype):
    """28: at the usual sizes, m = ‖W + s·B·A‖ in float64 gives the LoRA's very bits."""
    case = random_case(28, dtype)
    plain = case._replace(family="lora", factors={role: case.factors[role] for role in ("A", "B")})
    assert same_bits(value(case, 1.0), value(plain, 1.0))


def test_a_magnitude_stored_in_bf16_is_not_the_same():
    """28, negative: with the same magnitude rounded to bf16 some elements differ from the LoRA."""
    case = random_case(28)
    plain = case._replace(family="lora", factors={role: case.factors[role] for role in ("A", "B")})
    stored = with_magnitude(case, case.factors["magnitude"].bfloat16())
    assert not torch.equal(value(stored, 1.0), value(plain, 1.0))


@given(CASES.filter(is_dora), st.integers(-3, 3))
def test_weight_and_factor_scaled_alike_change_nothing_at_one(case, power):
    """29: at alpha 1 (2^k·W, 2^k·B, m) gives the bits of (W, B, m): only the direction counts."""
    wide = case._replace(weight=case.weight.double())
    larger = wide.factors | {"B": wide.factors["B"].double() * 2.0**power}
    moved = wide._replace(weight=wide.weight * 2.0**power, factors=larger)
    name = NAMES[case.weight.dtype]
    assert same_bits(value(moved, 1.0, output_dtype=name), value(wide, 1.0, output_dtype=name))


@given(CASES.filter(is_dora))
def test_twice_the_magnitude_is_twice_the_tuned_weight(case):
    """29: m -> 2·m doubles the result at alpha 1 bit for bit, where neither is subnormal or out of range."""
    name = NAMES[case.weight.dtype]
    once = value(case, 1.0, output_dtype=name).double()
    twice = value(with_magnitude(case, case.factors["magnitude"] * 2), 1.0, output_dtype=name).double()
    precision, least, largest = exact.FORMATS[name]
    usual = (once.abs() >= 2.0 ** (least + precision)) & (twice.abs() < float(largest))
    assert torch.equal(twice[usual], 2 * once[usual])


@given(strategies.cases(("dora",), kind="wild", dtype="F32", factor_dtype="F32").filter(is_dora))
def test_rows_of_the_tuned_weight_have_the_magnitude_as_norm(case):
    """31: at alpha 1 each row's norm is |m|, up to the rounding of its elements."""
    out = value(case, 1.0).double()
    matrix = out.T if case.layout in ("transposed", "embedding") else out.flatten(1)
    size = case.factors["magnitude"].double().flatten().abs()
    # each element is off by half an ulp, relatively 2^-24, or half the least subnormal
    slack = size * 2.0**-23 + matrix.shape[1] * 2.0**-149
    assert bool(((matrix.norm(dim=1) - size).abs() <= slack).all())


@given(strategies.cases(("dora",), kind="wild").filter(is_dora))
def test_alpha_zero_is_the_base_and_not_a_rescaled_one(case):
    """At alpha 0 the result is W, where scaling s inside the norm would give m / ‖W‖ · W."""
    assert same_bits(value(case, 0.0), case.weight)


@pytest.mark.parametrize("layout", ["linear", "transposed"])
def test_a_row_without_a_direction_is_refused(layout):
    """A row of W + s·B·A that is zero has no direction: DoRA is not defined there, and the tensor's name is told."""
    weight = torch.zeros(2, 3) if layout == "linear" else torch.zeros(3, 2)
    factors = {"A": torch.zeros(1, 3), "B": torch.zeros(2, 1), "magnitude": torch.ones(2)}
    with pytest.raises(errors.NotFinite, match="no direction"):
        interpolate_tensor(weight, factors, 0.5, family="dora", layout=layout)
