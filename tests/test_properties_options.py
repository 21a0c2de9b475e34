"""The options of `interpolate` and the words of its result: output and compute dtypes, schedules, slices, `out`."""

from __future__ import annotations

from fractions import Fraction

import exact
import pytest
import strategies
import torch
from exact import same_bits
from hypothesis import given
from hypothesis import strategies as st
from oracles import ulp
from strategies import DTYPES, NAMES

from wiseft_core import errors, interpolate, interpolate_tensor

BASE = {"a.weight": torch.ones(4, 3), "b.weight": torch.zeros(4, 3), "c.weight": torch.arange(3)}
ADAPTER = {f"{m}.lora_{r}.weight": torch.ones(s) for m in "ab" for r, s in (("A", (1, 3)), ("B", (4, 1)))}
CONFIG = {"lora_alpha": 8}


@given(strategies.tunings(), strategies.alphas, strategies.dtypes)
def test_output_dtype_holds_for_every_float_and_nothing_else(tuning, alpha, name):
    """Each float tensor, touched or not, is rounded once to the asked dtype; all others keep their bytes."""
    view = interpolate(**tuning.arguments, alpha=alpha, output_dtype=name, overflow="saturate")
    for key, stored in tuning.base.items():
        out = view[key]
        assert out.dtype == DTYPES[view.spec(key).dtype] if stored.dtype in NAMES else out.dtype == stored.dtype
        if stored.dtype not in NAMES or (stored.dtype == DTYPES[name] and key not in tuning.cases):
            assert same_bits(out, stored)
        elif key in tuning.cases:
            case = tuning.cases[key]
            slack = exact.slack(case, alpha)
            if case.family == "dora":  # its hair is told in units of the dtype that is written
                hairs = [ulp(value, name) / 10**6 for value in exact.interpolated(case, alpha)]
                slack = [max(pair) for pair in zip(slack, hairs, strict=True)]
            assert exact.broken_promises(out, exact.interpolated(case, alpha), slack) == []
        else:
            plain = stored.double().isfinite()
            values = [Fraction(value) for value in stored.double()[plain].tolist()]
            assert same_bits(out[plain].double() + 0.0, exact.rounded(values, DTYPES[name]).double() + 0.0)


@given(strategies.cases(("lora", "full"), kind="wild"), strategies.alphas)
def test_float32_arithmetic_is_off_by_its_own_rounding(case, alpha):
    """compute_dtype=torch.float32: half an ulp and (rank + 8)·2^-23 of the operands, and exact at alpha 0."""
    out = interpolate_tensor(**case.arguments, alpha=alpha, compute_dtype=torch.float32, overflow="saturate")
    rank = len(case.factors.get("A", ()))
    unit = Fraction(2) ** 26  # from float64 arithmetic to that of float32, and the factors rounded to it
    slack = [s * unit * (rank + 8) + Fraction(2) ** -140 for s in exact.slack(case, alpha)]
    assert exact.broken_promises(out, exact.interpolated(case, alpha), slack) == []
    zero = interpolate_tensor(**case.arguments, alpha=0.0, compute_dtype=torch.float32, overflow="saturate")
    assert case.weight.dtype == torch.float64 or same_bits(zero, case.weight)


@given(strategies.tunings(), strategies.alphas)
def test_a_constant_schedule_is_its_number(tuning, alpha):
    """A mapping, a glob and a function that give one number everywhere have the bits of the number."""
    plain = interpolate(**tuning.arguments, alpha=alpha, overflow="saturate")
    schedules = [lambda name: alpha, dict.fromkeys(plain.touched, alpha)]
    schedules += [{"*": alpha}] if plain.touched else []
    for schedule in schedules:
        view = interpolate(**tuning.arguments, alpha=schedule, overflow="saturate")
        assert all(same_bits(view[name], plain[name]) for name in plain)


def test_a_schedule_gives_each_tensor_its_own():
    """A name beats a glob, and what is 0 is the base's own memory."""
    view = interpolate(BASE, ADAPTER, {"*.weight": 0.5, "b.weight": 0.0}, config=CONFIG)
    assert torch.equal(view["a.weight"], torch.full((4, 3), 5.0))
    assert view["b.weight"].data_ptr() == BASE["b.weight"].data_ptr()


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), 1.5, -0.1, "0.5", True, None, 1j, {"c.weight": 0.5}])
def test_an_alpha_that_cannot_be_meant_is_refused(alpha):
    """NaN, infinities, what lies outside [0, 1], what is no number, and a name that tuning does not touch."""
    with pytest.raises(errors.ConfigError) as caught:
        interpolate(BASE, ADAPTER, alpha, config=CONFIG)
    assert caught.value.exit_code == 3


def test_extrapolation_is_the_same_line():
    """With extrapolate=True, alpha -1 and 2 lie on the line through base and tuned."""
    for alpha, value in ((-1.0, -7.0), (2.0, 17.0)):
        view = interpolate(BASE, ADAPTER, alpha, config=CONFIG, extrapolate=True)
        assert torch.equal(view["a.weight"], torch.full((4, 3), value))


def test_out_is_filled_and_returned():
    """`get_tensor(name, out=...)` computes into the tensor given, touched or not, and refuses one that does not fit."""
    view = interpolate(BASE, ADAPTER, 0.5, config=CONFIG)
    out = torch.empty(4, 3)
    assert view.get_tensor("a.weight", out=out) is out and torch.equal(out, view["a.weight"])
    numbers = torch.empty(3, dtype=torch.int64)
    assert view.get_tensor("c.weight", out=numbers) is numbers and torch.equal(numbers, torch.arange(3))
    for name, wrong in (
        ("a.weight", torch.empty(3, 4)),
        ("a.weight", torch.empty(4, 3, dtype=torch.float64)),
        ("a.weight", torch.empty(3, 4).T),
        ("c.weight", torch.empty(3)),
        ("c.weight", torch.empty(2, 3, dtype=torch.int64)),
    ):
        with pytest.raises(errors.ConfigError):
            view.get_tensor(name, out=wrong)


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_a_parameter_is_filled_too(alpha):
    """Computed or copied: it stays a leaf, and what was made of it keeps its history."""
    view = interpolate(BASE, ADAPTER, alpha, config=CONFIG)
    leaf = torch.nn.Parameter(torch.full((4, 3), 9.0))
    assert view.get_tensor("a.weight", out=leaf) is leaf and leaf.is_leaf and leaf.requires_grad
    assert torch.equal(leaf.detach(), view["a.weight"])
    made = leaf * 1
    history = made.grad_fn
    assert view.get_tensor("a.weight", out=made).grad_fn is history


@pytest.mark.parametrize("name", ["a.weight", "c.weight"])
@pytest.mark.parametrize(
    "index",
    [
        0, -1, slice(1, 3), slice(None), slice(3, 1), slice(-2, None), slice(0, 3, 2), ..., (), None,
        (slice(0, 2), ), (0, ...), (..., 0), [0, 2], torch.tensor([1, 0]),
    ],
    ids=str,
)  # fmt: skip
def test_slices_are_those_of_torch(name, index):
    """Whatever torch's own indexing gives, a slice of the result gives too."""
    view = interpolate(BASE, ADAPTER, 0.5, config=CONFIG)
    assert same_bits(view.get_slice(name)[index], view[name][index])


@pytest.mark.parametrize("index", [..., (), None, 0, slice(None), (0, ...), True], ids=str)
@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize("name", ["touched", "copied"])
def test_a_slice_of_a_lone_number_is_torchs(name, alpha, index):
    """A tensor without axes has no rows: it is given whole where torch gives it, and refused where torch refuses."""
    base = {"touched": torch.tensor(1.0), "copied": torch.tensor(7.0)}
    view = interpolate(base, base | {"touched": torch.tensor(3.0)}, alpha)
    try:
        wanted = view[name][index]
    except IndexError:
        with pytest.raises(IndexError):
            view.get_slice(name)[index]
    else:
        assert same_bits(view.get_slice(name)[index], wanted)


@pytest.mark.parametrize("name", ["a.weight", "c.weight"])
def test_an_index_beyond_the_end_is_an_index_error(name):
    """As for a tensor."""
    with pytest.raises(IndexError):
        interpolate(BASE, ADAPTER, 0.5, config=CONFIG).get_slice(name)[7]


def test_unknown_names_are_key_errors():
    """As for any mapping."""
    view = interpolate(BASE, ADAPTER, 0.5, config=CONFIG)
    for call in (view.get_tensor, view.get_slice, view.spec, view.__getitem__):
        with pytest.raises(KeyError):
            call("nowhere")
    assert "nowhere" not in view and "a.weight" in view and len(view) == 3


@given(st.data(), strategies.alphas)
def test_new_tensors_are_carried_at_every_alpha(data, alpha):
    """A head that the base lacks is the adapter's own memory at every alpha, and listed last."""
    head = data.draw(strategies.values((2, 3), data.draw(strategies.dtypes), "wild"))
    adapter = ADAPTER | {"base_model.model.score.weight": head}
    config = CONFIG | {"modules_to_save": ["score"]}
    view = interpolate(BASE, adapter, alpha, config=config)
    assert list(view) == [*BASE, "score.weight"] and view.plan.new == {"score.weight": "base_model.model.score.weight"}
    assert view["score.weight"].data_ptr() == head.data_ptr()


@given(strategies.tunings(), strategies.alphas)
def test_a_full_checkpoint_is_the_original_wise_ft(tuning, alpha):
    """A tuned checkpoint in the adapter's place: each float tensor is (1 - alpha)·W + alpha·W_tuned, rounded once."""
    cases = {
        k: strategies.Case(c.weight, {"value": c.weight.double() / 2}, "full", "whole") for k, c in tuning.cases.items()
    }
    base = {key: case.weight for key, case in cases.items()} | {"steps": torch.arange(3)}
    tuned = {key: case.factors["value"] for key, case in cases.items()} | {"steps": torch.arange(3)}
    view = interpolate(base, tuned, alpha)
    for key, case in cases.items():
        assert exact.broken_promises(view[key], exact.interpolated(case, alpha), exact.slack(case, alpha)) == []
    with pytest.raises(errors.DtypeMismatch, match="integer"):
        interpolate(base, tuned | {"steps": torch.arange(1, 4)}, alpha)
