"""The properties of interpolation, against exact arithmetic: ends, bounds, monotony, and what leaves a weight alone."""

from __future__ import annotations

from fractions import Fraction

import exact
import strategies
import torch
from exact import same_bits
from hypothesis import example, given
from hypothesis import strategies as st
from oracles import ulp
from strategies import DTYPES, Case

from wiseft_core import interpolate, interpolate_tensor, sweep

EVERY = ("lora", "dora", "full")


def value(case, alpha, **options):
    """W(alpha) of a case; wild cases may leave a narrow dtype's range, which is not what is tested here."""
    return interpolate_tensor(**case.arguments, alpha=alpha, overflow="saturate", **options)


@given(
    strategies.cases(("lora", "full"), sizes=strategies.dims_or_none), strategies.values((7,), "F32", "bits"), st.data()
)
def test_alpha_zero_is_the_base_bit_for_bit(case, anything, data):
    """1: at alpha 0 every tensor of the mapping is the base's own storage, whatever its bits."""
    name = data.draw(st.sampled_from(sorted(DTYPES)))
    weight = data.draw(strategies.values(tuple(case.weight.shape), name, "bits"))
    base = {"m.weight": weight, "n.weight": anything}
    role = {"A": "lora_A.weight", "B": "lora_B.weight", "value": "weight"}
    if case.layout in ("embedding", "transposed"):
        role |= {"A": "lora_embedding_A", "B": "lora_embedding_B"}
    adapter = {f"m.{role[key]}": factor for key, factor in case.factors.items()}
    view = interpolate(base, adapter, 0.0, config={"lora_alpha": 2})
    assert view["m.weight"].data_ptr() == weight.data_ptr()
    assert same_bits(view["m.weight"], weight) and same_bits(view["n.weight"], anything)


@given(strategies.tunings(), strategies.alphas)
def test_untouched_tensors_are_the_inputs_own_memory(tuning, alpha):
    """2: a tensor that tuning does not change is the very memory of the input, at any alpha."""
    view = interpolate(**tuning.arguments, alpha=alpha, overflow="saturate")
    assert set(view.touched) == set(tuning.cases)
    assert list(view) == list(tuning.base)
    for name in tuning.base.keys() - tuning.cases.keys():
        assert view[name].data_ptr() == tuning.base[name].data_ptr()
        assert same_bits(view[name], tuning.base[name])


@given(strategies.cases(("lora", "full"), kind="dyadic"), strategies.dyadic_alphas)
def test_dyadic_values_are_rounded_correctly(case, alpha):
    """3 and 4: where float64 holds every sum, the result is the exact value rounded once, in every dtype."""
    case = case._replace(scale=1.0 if case.scale not in (0.5, 1.0, 2.0, -1.5) else case.scale)
    out = value(case, alpha)
    expected = exact.rounded(exact.interpolated(case, alpha), case.weight.dtype).view(out.shape)
    assert torch.equal(out.double(), expected.double())


@given(strategies.cases(EVERY), strategies.alphas)
def test_any_value_keeps_the_promise(case, alpha):
    """3, 4 and 9: every element lies within half an ulp and the promised hair of the exact value, at any alpha."""
    out = value(case, alpha)
    assert out.dtype == case.weight.dtype and out.shape == case.weight.shape
    assert exact.broken_promises(out, exact.interpolated(case, alpha), exact.slack(case, alpha)) == []


@given(strategies.cases(("lora", "full"), kind="wild"), strategies.dtypes, strategies.alphas)
def test_any_output_dtype_keeps_the_promise(case, name, alpha):
    """3 and 4: the one rounding goes to the dtype that was asked for, from any stored dtype."""
    out = value(case, alpha, output_dtype=name)
    assert out.dtype == DTYPES[name]
    assert exact.broken_promises(out, exact.interpolated(case, alpha), exact.slack(case, alpha)) == []


@given(strategies.tunings(), strategies.alphas)
def test_a_whole_model_keeps_the_promise(tuning, alpha):
    """3 and 4 through names and configs: each touched tensor is the exact value of its own case, rounded once."""
    view = interpolate(**tuning.arguments, alpha=alpha, overflow="saturate")
    for name, case in tuning.cases.items():
        slack = exact.slack(case, alpha)
        assert exact.broken_promises(view[name], exact.interpolated(case, alpha), slack) == [], name


@given(strategies.tunings(), strategies.alphas)
def test_the_maths_alone_gives_the_same_bits(tuning, alpha):
    """`interpolate_tensor` of a case equals the tensor of the whole mapping, bit for bit."""
    view = interpolate(**tuning.arguments, alpha=alpha, overflow="saturate")
    for name, case in tuning.cases.items():
        if alpha != 0:  # at zero the mapping gives the base's own bytes, the maths its numbers
            assert same_bits(view[name], value(case, alpha)), name


@given(strategies.cases(("lora",)), st.sampled_from(("A", "B", "scale")), strategies.alphas, st.data())
def test_a_zero_change_leaves_every_bit(case, zero, alpha, data):
    """5: with A, B or s zero every element keeps its bits, -0.0 and every NaN payload too."""
    name = data.draw(strategies.dtypes)
    weight = data.draw(strategies.values(tuple(case.weight.shape), name, "bits"))
    if zero == "scale":
        case = case._replace(scale=0.0)
    else:
        case = case._replace(factors=case.factors | {zero: torch.zeros_like(case.factors[zero])})
    assert same_bits(value(case._replace(weight=weight), alpha), weight)


@given(strategies.cases(EVERY, kind="wild"), strategies.alphas)
def test_the_result_lies_between_base_and_tuned(case, alpha):
    """6: min(W, W_tuned) <= W(alpha) <= max(W, W_tuned), element by element."""
    start, end, out = case.weight.double(), value(case, 1.0).double(), value(case, alpha).double()
    assert bool((torch.minimum(start, end) <= out).all()) and bool((out <= torch.maximum(start, end)).all())


@given(strategies.cases(EVERY, kind="wild"), st.lists(strategies.alphas, min_size=3, max_size=6, unique=True))
def test_the_result_is_monotone_in_alpha(case, alphas):
    """7: each element moves one way only as alpha grows, and never back."""
    path = torch.stack([value(case, alpha).double() for alpha in sorted(alphas)])
    steps = path.diff(dim=0)
    assert bool(((steps >= 0).all(0) | (steps <= 0).all(0)).all())


@given(strategies.cases(("full",), kind="wild"), strategies.alphas)
def test_a_tuned_weight_equal_to_the_base_is_the_base(case, alpha):
    """8: where W_tuned equals W, so does every W(alpha), bit for bit."""
    case = case._replace(factors={"value": case.weight.clone()})
    assert same_bits(value(case, alpha), case.weight)


@given(strategies.cases(("lora", "full"), kind="wild", dtype="BF16"), st.integers(1, 8))
def test_the_path_is_straight(case, count):
    """9: the second difference over equal steps of alpha is at most 2 ulp of the largest value on the path."""
    alphas = [step / (count + 1) for step in range(count + 2)]
    path = [value(case, alpha).double() for alpha in alphas]
    for before, here, after in zip(path, path[1:], path[2:], strict=False):
        for triple in zip(before.flatten().tolist(), here.flatten().tolist(), after.flatten().tolist(), strict=True):
            bend = abs(Fraction(triple[0]) - 2 * Fraction(triple[1]) + Fraction(triple[2]))
            assert bend <= 2 * ulp(max(map(abs, triple)), "BF16")


@given(strategies.cases(("lora",), kind="wild"), strategies.alphas, st.integers(1, 5))
def test_rank_padded_with_zeros_changes_nothing(case, alpha, more):
    """16: zeros appended along the rank leave the result bit for bit."""
    first, second = case.factors["A"], case.factors["B"]
    rows = first.new_zeros(more, *first.shape[1:])
    columns = second.new_zeros(second.shape[0], more, *second.shape[2:])
    padded = {"A": torch.cat([first, rows]), "B": torch.cat([second, columns], dim=1)}
    assert same_bits(value(case, alpha), value(case._replace(factors=padded), alpha))


@given(strategies.cases(("lora",), kind="dyadic"), strategies.alphas, st.randoms(use_true_random=False))
def test_the_order_of_the_rank_changes_nothing(case, alpha, random):
    """17: A and B permuted alike along the rank give the same bits, where sums are exact."""
    order = list(range(case.factors["A"].shape[0]))
    random.shuffle(order)
    factors = {"A": case.factors["A"].double()[order], "B": case.factors["B"].double()[:, order]}
    assert same_bits(value(case, alpha), value(case._replace(factors=factors), alpha))


@given(strategies.cases(("lora",), kind="wild", factor_dtype="F32"), strategies.alphas, st.integers(-20, 20))
def test_a_power_of_two_moved_between_the_factors_changes_nothing(case, alpha, power):
    """18: (2^k·B, A/2^k) gives the same bits: nothing overflows or underflows in float64."""
    factors = {"A": case.factors["A"].double() * 2.0**-power, "B": case.factors["B"].double() * 2.0**power}
    assert same_bits(value(case, alpha), value(case._replace(factors=factors), alpha))


def random_case(seed, shape=(40, 30), rank=8, dtype=torch.bfloat16):
    """A LoRA of normal random numbers in the usual sizes."""
    draw = torch.Generator().manual_seed(seed)
    weight = (torch.randn(shape, generator=draw) * 0.02).to(dtype)
    first = torch.randn(rank, shape[1], generator=draw).to(dtype)
    second = (torch.randn(shape[0], rank, generator=draw) * 0.01).to(dtype)
    return Case(weight, {"A": first, "B": second}, scale=2.0)


def test_a_factor_three_moved_between_bf16_factors_is_not_the_same():
    """18, negative: (3·B, A/3), each rounded to bf16, is another adapter; some elements differ."""
    case = random_case(18)
    factors = {"A": (case.factors["A"].double() / 3).bfloat16(), "B": (case.factors["B"].double() * 3).bfloat16()}
    assert not torch.equal(value(case, 1.0), value(case._replace(factors=factors), 1.0))


@given(strategies.cases(("lora",), kind="wild"), st.sampled_from((0.5, 0.25, 0.125, 0.0625)))
def test_alpha_folded_into_the_scale_changes_nothing(case, alpha):
    """19: (alpha, s) and (1, alpha·s) give the same bits, where alpha·s is the same double."""
    assert same_bits(value(case, alpha), value(case._replace(scale=alpha * case.scale), 1.0))


def test_alpha_folded_into_a_stored_bf16_factor_is_not_the_same():
    """19, negative: alpha folded into B and rounded to bf16 is another adapter; some elements differ."""
    case = random_case(19)
    folded = case.factors | {"B": (case.factors["B"].double() * 0.3).bfloat16()}
    assert not torch.equal(value(case, 0.3), value(case._replace(factors=folded), 1.0))


@given(strategies.cases(("lora",), kind="wild", factor_dtype="BF16"), strategies.alphas)
def test_lora_alpha_and_factor_double_alike(case, alpha):
    """20: (2·s, B) and (s, 2·B) give the same bits."""
    double = case.factors | {"B": case.factors["B"] * 2}
    assert same_bits(value(case._replace(scale=2 * case.scale), alpha), value(case._replace(factors=double), alpha))


def test_two_merges_in_turn_are_not_one():
    """21, negative: merging two adapters in turn rounds twice; stacked along the rank they round once."""
    one, two = random_case(21), random_case(22)
    stacked = {
        "A": torch.cat([one.factors["A"], two.factors["A"]]),
        "B": torch.cat([one.factors["B"], two.factors["B"]], 1),
    }
    at_once = value(one._replace(factors=stacked), 1.0)
    in_turn = value(two._replace(weight=value(one, 1.0)), 1.0)
    assert not torch.equal(at_once, in_turn)


@given(st.integers(0, 2**32), st.floats(0, 1), st.floats(0, 1))
@example(0, 0.3, 0.7)
def test_composition_is_near_but_not_the_same(seed, first, second):
    """22, negative: a second interpolation towards the same tuned weight is within 1.5 ulp of one with a + b - ab."""
    case = random_case(seed, (6, 5), 2)
    tuned = value(case, 1.0)
    halfway = value(Case(case.weight, {"value": tuned}, "full", "whole"), first)
    twice = value(Case(halfway, {"value": tuned}, "full", "whole"), second)
    once = value(Case(case.weight, {"value": tuned}, "full", "whole"), first + second - first * second)
    largest = torch.maximum(case.weight.abs(), tuned.abs()).double().flatten().tolist()
    for left, right, size in zip(twice.flatten().tolist(), once.flatten().tolist(), largest, strict=True):
        assert abs(left - right) <= 1.5 * float(ulp(size, "BF16"))


def test_composition_differs_somewhere():
    """22, negative: the same on a larger weight is not equal bit for bit."""
    case = random_case(220)
    tuned = {"value": value(case, 1.0)}
    halfway = value(Case(case.weight, tuned, "full", "whole"), 0.3)
    twice, once = (
        value(Case(w, tuned, "full", "whole"), a) for w, a in ((halfway, 0.7), (case.weight, 0.3 + 0.7 - 0.21))
    )
    assert not torch.equal(twice, once)


@given(strategies.tunings(), st.lists(strategies.alphas, min_size=1, max_size=4))
def test_a_sweep_is_many_single_runs(tuning, alphas):
    """36: every view of a sweep has the bits of its own `interpolate`, and so has `at`."""
    views = sweep(**tuning.arguments, alphas=alphas, overflow="saturate")
    assert len(views) == len(alphas)
    for view, alpha in zip(views, alphas, strict=True):
        single = interpolate(**tuning.arguments, alpha=alpha, overflow="saturate")
        again = views[0].at(alpha)
        assert all(same_bits(view[name], single[name]) and same_bits(again[name], single[name]) for name in single)
