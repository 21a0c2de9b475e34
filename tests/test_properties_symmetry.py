"""The properties that relate one tensor to another: permuted, transposed, reshaped, in other dtypes or other pieces."""

from __future__ import annotations

import exact
import pytest
import strategies
import torch
from exact import same_bits
from families.test_contract import contract  # with the forms of every family
from hypothesis import given
from hypothesis import strategies as st
from strategies import Case

from wiseft_core import errors, interpolate, interpolate_tensor
from wiseft_core.families import FAMILIES


def value(case, alpha, **options):
    """W(alpha) of a case, saturated: ranges are not what is tested here."""
    return interpolate_tensor(**case.arguments, alpha=alpha, overflow="saturate", **options)


def linear(case, weight, first, second):
    """The same case over a linear weight."""
    return case._replace(weight=weight.contiguous(), layout="linear", factors={"A": first, "B": second})


@given(strategies.cases(("lora",), ("linear",), kind="dyadic"), strategies.alphas, st.randoms(use_true_random=False))
def test_rows_and_columns_may_be_permuted(case, alpha, random):
    """24: permuting rows of W and B, and columns of W and A, permutes the result and nothing else."""
    rows, columns = (random.sample(range(size), size) for size in case.weight.shape)
    weight = case.weight.view(torch.uint8 if case.weight.dtype.itemsize == 1 else case.weight.dtype)
    weight = weight[rows][:, columns].view(case.weight.dtype)
    first, second = case.factors["A"].double()[:, columns], case.factors["B"].double()[rows]
    moved = value(linear(case, weight, first, second), alpha).double()
    assert same_bits(moved, value(case, alpha).double()[rows][:, columns])


@given(strategies.cases(("lora", "dora"), ("linear",), kind="wild"), strategies.alphas, st.data())
def test_rows_of_the_result_are_the_result_of_the_rows(case, alpha, data):
    """24: computing some rows alone gives the same bits as cutting them out of the whole."""
    top = data.draw(st.integers(0, len(case.weight) - 1))
    bottom = data.draw(st.integers(top, len(case.weight)))
    parts = {role: factor if role == "A" else factor[top:bottom] for role, factor in case.factors.items()}
    part = case._replace(weight=case.weight[top:bottom], factors=parts)
    assert same_bits(value(part, alpha), value(case, alpha)[top:bottom])


@given(strategies.cases(("lora", "dora"), ("linear",), kind="wild"), strategies.alphas)
def test_a_transposed_weight_gives_the_transposed_result(case, alpha):
    """25: W stored (in, out) with the same factors gives the transpose, bit for bit."""
    across = case._replace(weight=case.weight.T.contiguous(), layout="transposed")
    assert same_bits(value(across, alpha).T, value(case, alpha))


@given(strategies.cases(("lora", "dora"), ("convolution",), kind="wild"), strategies.alphas)
def test_a_convolution_is_a_linear_weight_of_its_patches(case, alpha):
    """26: Conv1d, 2d and 3d equal the linear weight (out, in·kernel) with A and B flattened, 1x1 kernels too."""
    flat = {role: f.reshape(-1) if role == "magnitude" else f.flatten(1) for role, f in case.factors.items()}
    matrix = case._replace(weight=case.weight.flatten(1), layout="linear", factors=flat)
    assert same_bits(value(case, alpha), value(matrix, alpha).view(case.weight.shape))


@given(strategies.cases(("lora", "dora"), ("embedding",), kind="wild"), strategies.alphas)
def test_an_embedding_is_a_linear_weight_transposed(case, alpha):
    """27: an embedding (vocabulary, dimension) equals the linear weight W^T with the same A and B."""
    matrix = case._replace(weight=case.weight.T.contiguous(), layout="linear")
    assert same_bits(value(case, alpha), value(matrix, alpha).T)


@given(strategies.cases(("lora", "dora"), kind="wild", factor_dtype="BF16"), strategies.alphas)
def test_the_dtype_of_equal_factors_does_not_matter(case, alpha):
    """32: bf16 factors and the same values as float32 or float64 give the same bits."""
    for dtype in (torch.float32, torch.float64):
        wide = case._replace(factors={role: factor.to(dtype) for role, factor in case.factors.items()})
        assert same_bits(value(wide, alpha), value(case, alpha))


def test_rounding_by_way_of_float32_is_not_the_same():
    """33, negative: a float32 result that is rounded again to bf16 differs; the one rounding cannot be done in two."""
    weight = torch.tensor([[1 + 2.0**-8]])
    case = Case(weight, {"A": torch.tensor([[2.0**-40]]), "B": torch.tensor([[1.0]])})
    once, twice = value(case, 1.0, output_dtype="bf16"), value(case, 1.0).bfloat16()
    assert once.item() == 1 + 2.0**-7 and twice.item() == 1.0


@given(strategies.tunings(), strategies.alphas, st.randoms(use_true_random=False))
def test_the_order_of_keys_does_not_matter(tuning, alpha, random):
    """13: shuffled inputs give the same tensors, in the order of the base as given."""
    base, adapter = (random.sample(sorted(part), len(part)) for part in (tuning.base, tuning.adapter))
    shuffled = tuning._replace(
        base={name: tuning.base[name] for name in base}, adapter={name: tuning.adapter[name] for name in adapter}
    )
    one = interpolate(**tuning.arguments, alpha=alpha, overflow="saturate")
    two = interpolate(**shuffled.arguments, alpha=alpha, overflow="saturate")
    assert list(two) == base
    assert all(same_bits(one[name], two[name]) for name in base)


@given(strategies.tunings(spelling="saved"), strategies.alphas)
def test_the_spelling_of_the_adapter_does_not_matter(tuning, alpha):
    """Keys as saved, without their prefix, and as a live model has them mean the same tensors."""
    one = interpolate(**tuning.arguments, alpha=alpha, overflow="saturate")
    bare = {key.removeprefix("base_model.model."): factor for key, factor in tuning.adapter.items()}
    live = {}
    for name, case in tuning.cases.items():
        for role, factor in case.factors.items():
            embedding = case.layout == "embedding"
            live[strategies.spell(name.removesuffix(".weight"), role, "live", embedding=embedding)] = factor
    for adapter in (bare, live):
        two = interpolate(**tuning._replace(adapter=adapter).arguments, alpha=alpha, overflow="saturate")
        assert two.touched == one.touched
        assert all(same_bits(one[name], two[name]) for name in one)


@given(strategies.cases(("full",), kind="wild"), strategies.alphas)
def test_numpy_arrays_are_tensors(case, alpha):
    """A numpy array in the place of a tensor gives the same bits, ml_dtypes' narrow floats included."""
    import ml_dtypes
    import numpy as np

    narrow = {"BF16": ml_dtypes.bfloat16, "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2}

    def array(tensor):
        name = strategies.NAMES[tensor.dtype]
        if name in narrow:
            carrier = torch.int8 if tensor.dtype.itemsize == 1 else torch.int16
            return tensor.view(carrier).numpy().view(narrow[name])
        return np.array(tensor.numpy())

    base, tuned = {"m.weight": case.weight}, {"m.weight": case.factors["value"]}
    expected = interpolate(base, tuned, alpha, overflow="saturate")["m.weight"]
    base, tuned = {"m.weight": array(case.weight)}, {"m.weight": array(case.factors["value"])}
    assert same_bits(interpolate(base, tuned, alpha, overflow="saturate")["m.weight"], expected)


@given(st.data(), strategies.dtypes, strategies.alphas)
def test_trained_rows_interpolate_as_rows(data, name, alpha):
    """Token rows: the listed ones, in any order, are W + alpha·(rows - W) rounded once; all others keep their bits."""
    vocabulary, width = data.draw(st.integers(1, 7)), data.draw(st.integers(1, 5))
    table = data.draw(strategies.values((vocabulary, width), name, "wild"))
    order = data.draw(st.lists(st.integers(0, vocabulary - 1), unique=True, min_size=1))
    rows = data.draw(strategies.values((len(order), width), data.draw(strategies.dtypes), "wild", 3))
    adapter = {"base_model.model.emb.token_adapter.trainable_tokens_delta": rows}
    config = {"peft_type": "TRAINABLE_TOKENS", "target_modules": ["emb"], "token_indices": order}
    out = interpolate({"emb.weight": table}, adapter, alpha, config=config, overflow="saturate")["emb.weight"]
    full = table.double().clone()
    full[order] = rows.double()
    case = Case(table, {"value": full}, "full", "whole")
    assert exact.broken_promises(out, exact.interpolated(case, alpha), exact.slack(case, alpha)) == []
    rest = [row for row in range(vocabulary) if row not in order]
    assert torch.equal(
        out.view(torch.uint8).view(vocabulary, -1)[rest], table.view(torch.uint8).view(vocabulary, -1)[rest]
    )


def test_the_maths_alone_takes_the_listed_rows_only():
    """`interpolate_tensor` of token rows wants as many rows as the weight has, and changes each by its own."""
    weight, rows = torch.zeros(3, 2), torch.arange(6.0).reshape(3, 2)
    out = interpolate_tensor(weight, {"rows": rows}, 0.5, family="tokens", layout="whole")
    assert torch.equal(out, rows / 2)
    with pytest.raises(errors.ShapeMismatch):
        interpolate_tensor(torch.zeros(4, 2), {"rows": rows}, 0.5, family="tokens", layout="whole")


def test_every_family_is_in_the_strategies():
    """A family is not in until the strategies, or the rows above, draw it."""
    assert set(FAMILIES) == {*strategies.FAMILY_LAYOUTS, *(maker.family for maker in contract.MAKERS)}
