"""Nothing but the result changes, inputs and torch's settings neither; and what is not finite never passes unseen."""

from __future__ import annotations

import hashlib
import math
import random
import warnings
from fractions import Fraction

import exact
import numpy as np
import pytest
import strategies
import torch
from folders import low_rank, tree, weights, write_adapter, write_base
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import DTYPES, NAMES, Case

from wiseft_core import (
    combine,
    combine_adapters,
    errors,
    interpolate,
    interpolate_tensor,
    plan,
    rescale,
    save_checkpoint,
    sweep,
    verify,
)


def fingerprint(tensors):
    """Names, bytes, strides and flags of a state dict, in order."""
    found = []
    for name, tensor in tensors.items():
        raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        flags = (tensor.dtype, tensor.shape, tensor.stride(), tensor.requires_grad, tensor.data_ptr(), tensor._version)
        found.append((name, hashlib.sha256(raw).hexdigest(), flags, tensor.grad is None))
    return found


def surroundings():
    """All global state of torch, numpy and Python that a careless library might change."""
    return (
        torch.get_num_threads(),
        torch.get_num_interop_threads(),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_rng_state().numpy().tobytes(),
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_default_device(),
        5e-324 * 1.0 != 0,
        (torch.tensor([2.0**-149]) * 1.0).item() != 0,
        random.getstate(),
        np.random.get_state()[1].tobytes(),
        tuple(np.geterr().items()),
        tuple(warnings.filters),
    )


@given(strategies.tunings(), strategies.alphas, st.booleans())
def test_inputs_and_surroundings_are_unchanged(tuning, alpha, grad):
    """34: base, adapter and config keep bytes, strides, flags and versions, and torch, numpy and Python their state."""
    for tensor in (*tuning.base.values(), *tuning.adapter.values()):
        tensor.requires_grad_(grad and tensor.is_floating_point() and tensor.dtype.itemsize > 1)
    before = fingerprint(tuning.base), fingerprint(tuning.adapter), repr(tuning.config), surroundings()
    plan(**tuning.arguments)
    for view in sweep(**tuning.arguments, alphas=[alpha, 0.0, 1.0], overflow="saturate"):
        for name in view:
            out = view[name]
            assert name not in tuning.cases or not out.requires_grad
            view.get_slice(name)
    for case in tuning.cases.values():
        interpolate_tensor(**case.arguments, alpha=alpha, overflow="saturate")
    assert (fingerprint(tuning.base), fingerprint(tuning.adapter), repr(tuning.config), surroundings()) == before


def test_a_refusal_changes_nothing_either():
    """34: a call that raises leaves inputs and surroundings as they were."""
    base, adapter = {"m.weight": torch.ones(2, 2)}, {"m.lora_A.weight": torch.ones(1, 2)}
    before = fingerprint(base), fingerprint(adapter), surroundings()
    with pytest.raises(errors.WiseftError):
        interpolate(base, adapter, 0.5, config={"lora_alpha": 1})
    assert (fingerprint(base), fingerprint(adapter), surroundings()) == before


def test_a_default_device_is_not_asked(tmp_path):
    """34: every verb gives under `torch.device("meta")` what it gives without: read, computed, joined and checked."""
    stored, rows = weights(), "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"
    base = write_base(tmp_path / "base", stored)
    low = low_rank(stored, ["model.layers.0.q_proj"]) | {rows: torch.ones(2, 6)}
    plain = write_adapter(tmp_path / "plain", low, trainable_token_indices={"embed_tokens": [1, 7]})
    dora = write_adapter(tmp_path / "dora", low_rank(stored, ["model.layers.0.q_proj"], dora=True), use_dora=True)
    pairs = [(plain, 0.3), (dora, 0.4)]

    def results():
        yield dict(interpolate(base, plain, 0.3))
        yield dict(combine(base, pairs))
        yield rescale(dora, 0.3, base=base).tensors
        yield combine_adapters(base, [(plain, 0.3), (plain, 0.4)]).adapter.tensors
        yield combine_adapters(base, pairs, method="svd", rank=2).adapter.tensors

    wanted = list(results())
    save_checkpoint(interpolate(base, plain, 0.3), tmp_path / "out", sync=False)
    with torch.device("meta"):
        for found, one in zip(results(), wanted, strict=True):
            assert found.keys() == one.keys() and all(exact.same_bits(found[name], one[name]) for name in one)
        save_checkpoint(interpolate(base, plain, 0.3), tmp_path / "again", sync=False)
        assert verify(tmp_path / "out", base=base, adapter=plain).ok
    assert tree(tmp_path / "again") == tree(tmp_path / "out")


@given(strategies.tunings(), st.floats(0.1, 0.9))
def test_results_are_new_memory(tuning, alpha):
    """34: writing into a computed tensor touches neither the inputs nor the next access."""
    view = interpolate(**tuning.arguments, alpha=alpha, overflow="saturate")
    before = fingerprint(tuning.base), fingerprint(tuning.adapter)
    for name in view.touched:
        first = view[name]
        kept = first.clone()
        first.zero_()
        assert exact.same_bits(view[name], kept)
    assert (fingerprint(tuning.base), fingerprint(tuning.adapter)) == before


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("role", ["A", "B", "magnitude", "value"])
@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_an_adapter_that_is_not_finite_is_refused(role, bad, alpha):
    """37: one NaN or infinity anywhere in the adapter is refused at the call, by its key, at any alpha."""
    factors = {"A": torch.ones(1, 3), "B": torch.ones(2, 1), "magnitude": torch.ones(2)}
    keys = {"A": "m.lora_A.weight", "B": "m.lora_B.weight", "magnitude": "m.lora_magnitude_vector"}
    adapter = {keys[r]: factor for r, factor in factors.items()} | {"n.bias": torch.ones(2)}
    key = keys.get(role, "n.bias")
    adapter[key].view(-1)[-1] = bad
    base = {"m.weight": torch.ones(2, 3), "n.bias": torch.ones(2)}
    with pytest.raises(errors.NotFinite, match=key.replace(".", r"\.")):
        interpolate(base, adapter, alpha, config={"lora_alpha": 1})


@given(strategies.cases(("lora", "full"), kind="wild"), st.floats(0.01, 1), st.data())
def test_a_base_that_is_not_finite_passes_through(case, alpha, data):
    """37: NaN and infinity of the base stay where they are, with their bits, and spread to no other element."""
    name = NAMES[case.weight.dtype]
    weight = data.draw(strategies.values(tuple(case.weight.shape), name, "bits"))
    weight = torch.where(data.draw(strategies.values(tuple(weight.shape), "F32", "dyadic")) > 0, case.weight, weight)
    out = interpolate_tensor(**case._replace(weight=weight).arguments, alpha=alpha, overflow="saturate")
    odd = ~weight.double().isfinite()
    bits = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[weight.dtype.itemsize]
    assert torch.equal(out.view(bits)[odd], weight.view(bits)[odd])
    assert bool(out.double()[~odd].isfinite().all())


@given(strategies.dtypes, st.floats(0.5, 2), st.sampled_from((1, -1)))
def test_overflow_is_an_error_or_saturates_exactly(name, factor, sign):
    """38: a finite value that rounds beyond the largest number is refused, or becomes exactly that number."""
    assume(name != "F64")
    largest = float(exact.FORMATS[name][2])
    weight = torch.tensor([[sign * largest]], dtype=DTYPES[name])
    delta = largest * (factor - 1)
    case = Case(
        weight,
        {"A": torch.tensor([[1.0]], dtype=torch.float64), "B": torch.tensor([[sign * delta]], dtype=torch.float64)},
    )
    value = exact.interpolated(case, 1.0)[0]
    fits = math.isfinite(exact.round_exact(value, name))
    saturated = interpolate_tensor(**case.arguments, alpha=1.0, overflow="saturate")
    expected = exact.round_exact(exact.clip(value, name), name)
    assert saturated.double().item() == expected
    if fits:
        assert exact.same_bits(interpolate_tensor(**case.arguments, alpha=1.0), saturated)
    else:
        assert Fraction(abs(expected)) == exact.FORMATS[name][2]
        with pytest.raises(errors.NotFinite, match="does not fit"):
            interpolate_tensor(**case.arguments, alpha=1.0)


names = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12)


@given(names, names.filter(lambda text: not set(text.split(".")) & strategies.MEANINGFUL), strategies.alphas)
def test_any_unicode_name_goes_through(untouched, module, alpha):
    """41: any name comes out as it went in, touched or not: control characters, bidi and empty components too."""
    assume(untouched != f"{module}.weight" and not module.startswith("base_model.model."))
    base = {untouched: torch.ones(2), f"{module}.weight": torch.ones(2, 3)}
    adapter = {f"{module}.lora_A.weight": torch.ones(1, 3), f"{module}.lora_B.weight": torch.ones(2, 1)}
    view = interpolate(base, adapter, alpha, config={"lora_alpha": 2})
    assert list(view) == list(base) and view.touched == (f"{module}.weight",)
    assert view[untouched].data_ptr() == base[untouched].data_ptr()
    assert torch.equal(view[f"{module}.weight"], torch.full((2, 3), 1 + 2 * alpha, dtype=torch.float64).float())


@given(names, names)
def test_errors_hold_no_control_characters(module, other):
    """41: whatever the names, a refusal prints only printable characters and its own line ends."""
    base = {f"{other}.weight": torch.ones(2, 3)}
    adapter = {f"{module}.lora_A.weight": torch.ones(1, 4), f"{module}.lora_B.weight": torch.ones(2, 1)}
    with pytest.raises(errors.WiseftError) as caught:
        interpolate(base, adapter, 0.5, config={"lora_alpha": 2})
    assert all(line.isprintable() for line in str(caught.value).split("\n"))
