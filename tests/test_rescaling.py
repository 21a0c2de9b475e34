"""rescale: the adapter with alpha folded in is, to PEFT and to us, the interpolation, or is refused by name.

PEFT merges both adapters in float64: what is left between (1 - alpha)·W + alpha·W_tuned and the merge of the rescaled
one is the rounding of its factors to float32. In float64 nothing is left but float64 itself.
"""

from __future__ import annotations

import copy
import math
import warnings

import exact
import numpy as np
import pytest
import strategies
import torch
from exact import same_bits
from folders import low_rank, weights
from hypothesis import assume, given
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from test_against_peft import CONFIGS, allowed, gpt2, toy, trained, tune

from wiseft_core import Adapter, AdapterConfig, errors, interpolate, plan, rescale, save_adapter, tiles
from wiseft_core.families import FAMILIES

ALPHAS = (0.0, 0.3, 0.5, 1.0)
__all__ = ["trained"]  # the fixture of models tuned by PEFT


def loaded(folder, make, dtype=torch.float32):
    """A model of `make` with the adapter in a folder, put there by PEFT, in `dtype`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(make(), folder).to(dtype)


def merged(live):
    """The weights that PEFT merges."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return copy.deepcopy(live).merge_and_unload().state_dict()


def row_errors(live, name, got, wanted):
    """Norm of the error of each row of a weight, relative to the row; rows run along `in` of the layer."""
    layer = dict(live.base_model.model.named_modules()).get(name.rpartition(".")[0])
    across = bool(getattr(layer, "lora_embedding_A", None)) or getattr(layer, "fan_in_fan_out", False)
    if wanted.dim() < 2:
        got, wanted, across = got.reshape(1, -1), wanted.reshape(1, -1), False
    got, wanted = ((tensor.T if across else tensor).double().flatten(1) for tensor in (got, wanted))
    return (got - wanted).norm(dim=1) / wanted.norm(dim=1).clamp_min(1e-30)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("name", CONFIGS)
def test_peft_loads_it_as_the_interpolated_model(trained, tmp_path, name, alpha):
    """Every layer and option: saved, loaded by PEFT onto the base, merged; and read again by ourselves."""
    base, live, _, folder, options = trained(name)
    save_adapter(rescale(folder, alpha, base=base, **options), tmp_path / "out", sync=False)
    again = loaded(tmp_path / "out", CONFIGS[name][0])
    tuned, wide = merged(copy.deepcopy(live).double()), merged(copy.deepcopy(again).double())
    single, view = merged(again), interpolate(base, folder, alpha, **options)
    ours = interpolate(base, tmp_path / "out", 1.0, **options)
    for key in base:
        wanted = (1 - alpha) * base[key].double() + alpha * tuned[key]
        assert row_errors(live, key, wide[key], wanted).max() <= 1e-6, key
        assert row_errors(live, key, ours[key], wanted).max() <= 1e-6, key
        off = (single[key].double() - wanted).abs() - 2.0**-23 * wanted.abs()
        assert bool((off <= 2 * allowed(again, key, base[key])).all()), key
        if bool((allowed(again, key, base[key]) == 0).all()):  # a head, a bias, a table with trained rows
            assert same_bits(single[key], view[key]), key


def test_the_oracle_tells_a_wrong_dora_from_a_right_one(trained, tmp_path):
    """Meta: B alone scaled, as PEFT's own helper does it, is found out."""
    base, live, _, folder, _ = trained("dora")
    given = rescale(folder, 1.0, base=base)
    wrong = {key: tensor * (0.5 if "lora_B" in key else 1) for key, tensor in given.tensors.items()}
    save_adapter(Adapter(wrong, given.config), tmp_path / "out", sync=False)
    tuned, wide = merged(copy.deepcopy(live).double()), merged(loaded(tmp_path / "out", toy).double())
    key = "layers.0.up.weight"
    assert row_errors(live, key, wide[key], (base[key].double() + tuned[key]) / 2).max() > 1e-2


@pytest.mark.parametrize("name", ["linear", "dora_everything", "modules_to_save", "tokens", "lora_bias"])
def test_over_a_bf16_base(tmp_path, name):
    """A bfloat16 base: B and m stay float32, heads and rows take the base's dtype and the interpolation's bits."""
    (tmp_path / "in").mkdir()
    base, live, _, folder, _ = tune(name, tmp_path / "in")
    base = {key: tensor.bfloat16() for key, tensor in base.items()}
    save_adapter(rescale(folder, 0.3, base=base), tmp_path / "out", sync=False)
    again = loaded(tmp_path / "out", lambda: toy().bfloat16(), torch.float64)
    with torch.no_grad():
        plain = toy().bfloat16().double()
        tuned = merged(PeftModel.from_pretrained(plain, folder).double())
    wide, view = merged(again), interpolate(base, folder, 0.3)
    for key in base:
        wanted = 0.7 * base[key].double() + 0.3 * tuned[key]
        if bool((allowed(live, key, base[key]) == 0).all()):
            assert same_bits(wide[key].bfloat16(), view[key]), key
        else:
            assert row_errors(live, key, wide[key], wanted).max() <= 1e-6, key


def test_alpha_by_name(trained, tmp_path):
    """A schedule over base names; without a base, over the names as the adapter has them, which it can also refuse."""
    base, live, _, folder, _ = trained("dora_everything")
    schedule = {"layers.0.*": 0.25, "layers.2.up.weight": 1, "emb.weight": 0, "*": 0.5}
    save_adapter(rescale(folder, schedule, base=base), tmp_path / "out", sync=False)
    tuned, wide = merged(copy.deepcopy(live).double()), merged(loaded(tmp_path / "out", toy, torch.float64))
    expected = {"layers.0.up.weight": 0.25, "layers.2.up.weight": 1, "emb.weight": 0, "conv2.weight": 0.5}
    for key, alpha in expected.items():
        wanted = (1 - alpha) * base[key].double() + alpha * tuned[key]
        assert row_errors(live, key, wide[key], wanted).max() <= 1e-6, key

    _, _, _, plain, _ = trained("linear")
    schedule = {"layers.1.up.weight": 0.25, "*": 0.5}
    alone, based = rescale(plain, schedule), rescale(plain, schedule, base=trained("linear")[0])
    assert all(same_bits(alone.tensors[key], based.tensors[key]) for key in based.tensors)
    given = rescale(plain, 1.0).tensors["base_model.model.layers.1.up.lora_B.weight"]
    assert torch.equal(alone.tensors["base_model.model.layers.1.up.lora_B.weight"], given * 0.25)
    with pytest.raises(errors.UnusedPattern, match=r"layers\.7"):
        rescale(plain, {"layers.7.*": 0.25, "*": 0.5})


def spelled(case, spelling="saved"):
    """A base of one module, and the adapter keys of a case."""
    embedding = case.layout == "embedding"
    module = "m.c_fc" if case.layout == "transposed" else "m.x"
    keys = {role: strategies.spell(module, role, spelling, embedding=embedding) for role in case.factors}
    return f"{module}.weight", keys


def tuned_matrix(case):
    """W_tuned by naive float64, as (out, in)."""
    first, second = (case.factors[role].double().flatten(1).numpy() for role in "AB")
    moved = exact.as_matrix(case.weight, case.layout) + case.scale * second @ first
    if case.family == "dora":
        moved = case.factors["magnitude"].numpy().reshape(-1, 1) * moved / np.linalg.norm(moved, axis=1, keepdims=True)
    return moved


def in_float64(case, alpha):
    """W(alpha) by naive float64 from the case, W_tuned by naive float64 from its rescaled factors, as (out, in)."""
    name, keys = spelled(case)
    config = {"lora_alpha": case.scale * len(case.factors["A"]), "r": len(case.factors["A"])}
    found = rescale(
        {keys[role]: factor for role, factor in case.factors.items()},
        alpha,
        config=config,
        base={name: case.weight},
        base_config={"model_type": "gpt2"},
        extrapolate=True,
    )
    factors = {role: found.tensors[key] for role, key in keys.items()}
    assert all(factor.dtype == torch.float64 for factor in factors.values())
    wanted = (1 - alpha) * exact.as_matrix(case.weight, case.layout) + alpha * tuned_matrix(case)
    return wanted, tuned_matrix(case._replace(factors=factors))


def sizes_of(case, alpha):
    """How large each row of the interpolation is before anything cancels, and for DoRA |h| beside its parts."""
    weight = exact.as_matrix(case.weight, case.layout)
    first, second = (case.factors[role].double().flatten(1).numpy() for role in "AB")
    whole = np.abs(weight) + abs(case.scale) * np.abs(second) @ np.abs(first)
    if case.family == "lora":
        return np.linalg.norm(np.abs(weight) + abs(alpha) * whole, axis=1), np.ones(len(weight))
    norm = np.linalg.norm(weight + case.scale * second @ first, axis=1)
    gain = case.factors["magnitude"].double().flatten().numpy() / norm
    share = np.abs((1 - alpha) + alpha * gain) / np.maximum(abs(1 - alpha) + np.abs(alpha * gain), 1e-300)
    share = np.ones_like(share) if alpha == 1 else share
    hair = np.linalg.norm(whole, axis=1) / norm  # the norm is off by this many roundings
    return (abs(1 - alpha) * np.linalg.norm(weight, axis=1) + np.abs(alpha * gain) * norm * hair) * hair, share


far = st.floats(-8, 8).map(lambda power: 10.0**power)
wide_alphas = st.sampled_from((0.0, 1.0, 0.5, 1e-12, 1e-290, -1e-12, 1e6, -1e6)) | st.floats(-3, 3) | st.floats(0, 1)


@given(strategies.cases(("lora", "dora"), dtype="F64", factor_dtype="F64", kind="dyadic"), wide_alphas, st.data())
def test_closed_to_the_last_bits_of_float64(case, alpha, data):
    """Any shape and layout, magnitudes of any sign and far from the norms, any alpha: 1e-12 of each row."""
    assume(not 0 < abs(alpha) < 1e-300)
    if case.family == "dora":
        shape = case.factors["magnitude"].shape
        draws = data.draw(
            st.lists(st.tuples(far, st.sampled_from((1, 1, 1, -1))), min_size=shape.numel(), max_size=shape.numel())
        )
        case.factors["magnitude"] = torch.tensor([m * s for m, s in draws], dtype=torch.float64).reshape(shape)
    sizes, share = sizes_of(case, alpha)
    assume(bool((share > 1e-6).all()))
    try:
        wanted, got = in_float64(case, alpha)
    except errors.NotFinite:
        assert is_open(case, alpha)
        return
    off = np.linalg.norm(got - wanted, axis=1)
    assert bool((off <= 1e-12 * sizes / share).all()), (off, sizes)


def is_open(case, alpha):
    """Whether no DoRA is the interpolation: in some row h, or all of h·(W + s·B'·A), is zero or nearly."""
    if case.family != "dora" or case.weight.numel() == 0:
        return False
    sizes, share = sizes_of(case, alpha)
    rows = exact.as_matrix(torch.from_numpy(np.ascontiguousarray(exact.naive(case, alpha))), case.layout)
    return bool((share < 1e-12).any() or (np.linalg.norm(rows, axis=1) <= 1e-12 * sizes).any())


@given(strategies.tunings(kind="dyadic"), st.sampled_from(ALPHAS))
def test_a_whole_adapter_read_again_is_the_interpolation(tuning, alpha):
    """Saved, bare and live names, every family at once: at 1 the rescaled adapter is the given one at alpha."""
    config, options = {"config": tuning.config}, {"base": tuning.base, "base_config": tuning.base_config}
    try:
        found = rescale(tuning.adapter, alpha, **config, **options) if tuning.adapter else None
    except errors.NotFinite:
        assert any(is_open(case, alpha) for case in tuning.cases.values())
        return
    except errors.ConfigError as error:
        assert "full checkpoint" in str(error)
        return
    if found is None:
        return
    wide = {"output_dtype": "fp64", "base_config": tuning.base_config}
    ours = interpolate(tuning.base, found, 1.0, **wide)
    assert all(key.startswith("base_model.model.") and ".default" not in key for key in found.tensors)
    for name, case in tuning.cases.items():
        if case.weight.numel() == 0:
            continue
        wanted, got = exact.naive(case, alpha), ours[name].numpy()
        if case.family == "full":
            dtype = case.weight.dtype
            assert same_bits(
                found.tensors[f"base_model.model.{name}"], interpolate(**tuning.arguments, alpha=alpha)[name]
            )
            assert found.tensors[f"base_model.model.{name}"].dtype == dtype
            continue
        sizes, _ = sizes_of(case, alpha)
        off = exact.as_matrix(torch.from_numpy(np.ascontiguousarray(got - wanted)), case.layout)
        assert bool((np.linalg.norm(off, axis=1) <= 1e-6 * sizes).all()), name


def adapter_of(dora=False, **changes):
    """A small base in float32 with a low-rank adapter over two modules."""
    base = weights(dtype=torch.float32)
    tensors = low_rank(base, ["model.layers.0.q_proj", "model.layers.1.q_proj"], dora=dora)
    return base, tensors | changes, {"lora_alpha": 4, "r": 2, "use_dora": dora}


Q = "base_model.model.model.layers.0.q_proj"


def test_dtypes_and_bytes():
    """B is float32, or float64 where it was; A keeps its storage; alpha 1 keeps every value; a dtype can be asked."""
    base, tensors, config = adapter_of(dora=True)
    narrow = {key: tensor.bfloat16() for key, tensor in tensors.items()}
    found = rescale(narrow, 1.0, config=config, base=base)
    for key, tensor in found.tensors.items():
        assert torch.equal(tensor.float(), narrow[key].float())
        assert tensor.dtype == (torch.bfloat16 if "lora_A" in key else torch.float32)
    assert found.tensors[f"{Q}.lora_A.weight"].data_ptr() == narrow[f"{Q}.lora_A.weight"].data_ptr()
    wide = rescale({key: tensor.double() for key, tensor in tensors.items()}, 0.3, config=config, base=base)
    assert {tensor.dtype for tensor in wide.tensors.values()} == {torch.float64}
    asked = rescale(narrow, 0.3, config=config, base=base, output_dtype="fp16").tensors
    assert asked[f"{Q}.lora_B.weight"].dtype == asked[f"{Q}.lora_magnitude_vector"].dtype == torch.float16


def test_magnitudes_are_those_of_the_factors_that_are_stored():
    """B' is rounded first, and m' = h·‖W + s·B'·A‖ is of the rounded one: seen in bfloat16, where B' moves by 2^-9."""
    draw = torch.Generator().manual_seed(3)
    weight, second = torch.randn(64, 4, generator=draw) / 64, torch.rand(64, 1, generator=draw) + 1
    first, magnitude = torch.ones(1, 4), torch.rand(64, generator=draw) + 1
    factors = {"m.lora_A.weight": first, "m.lora_B.weight": second, "m.lora_magnitude_vector": magnitude}
    config, base = {"lora_alpha": 1, "r": 1}, {"m.weight": weight}
    found = rescale(factors, 0.3, config=config, base=base, output_dtype="bf16").tensors
    share = 0.7 + 0.3 * magnitude.double() / (weight.double() + second.double() @ first.double()).norm(dim=1)
    stored = found["base_model.model.m.lora_B.weight"].double()
    wanted = share * (weight.double() + stored @ first.double()).norm(dim=1)
    assert torch.equal(found["base_model.model.m.lora_magnitude_vector"], wanted.bfloat16())


def test_twice_is_once_with_the_product():
    """Rescaled by x and then by y is rescaled by x·y: W + y·(x·D); for DoRA too, in float64."""
    for dora in (False, True):
        base, tensors, config = adapter_of(dora)
        tensors = {key: tensor.double() for key, tensor in tensors.items()}
        once = rescale(tensors, 0.35, config=config, base=base)
        twice = rescale(rescale(tensors, 0.7, config=config, base=base), 0.5, base=base)
        assert once.config == twice.config
        for key, tensor in once.tensors.items():
            assert torch.allclose(tensor, twice.tensors[key], rtol=1e-12, atol=0), key


def test_inputs_stay_as_they_are():
    """Neither base nor adapter is written to."""
    base, tensors, config = adapter_of(dora=True)
    before = copy.deepcopy([base, tensors])
    rescale(tensors, 0.3, config=config, base=base)
    for old, now in zip(before, (base, tensors), strict=True):
        assert all(same_bits(old[key], now[key]) for key in old)


@pytest.mark.parametrize("name", ["dora", "dora_embedding", "dora_conv", "gpt2_dora"])
@pytest.mark.parametrize("size", [1, 5, 16, 30])
def test_norms_are_summed_over_tiles(trained, monkeypatch, name, size):
    """Cut into tiles of any size, the factors are the same to the last bit of float32: no tile is the whole weight."""
    base, _, _, folder, options = trained(name)
    whole = rescale(folder, 0.3, base=base, **options)
    seen, real = [], tiles.grid

    def grid(*args):
        for tile in real(*args):
            seen.append(tile.stop - tile.start)
            yield tile

    monkeypatch.setattr(tiles, "TILE", size)
    monkeypatch.setattr(tiles, "grid", grid)
    parts = rescale(folder, 0.3, base=base, **options)
    assert seen and max(seen) <= size
    for key, tensor in whole.tensors.items():
        assert torch.allclose(tensor, parts.tensors[key], rtol=2.0**-22, atol=0), key


def test_live_names_are_saved_ones(trained):
    """The live model's own trained parameters give the tensors and keys that the saved files give."""
    base, live, _, folder, _ = trained("dora_everything")
    own = {key: value for key, value in live.named_parameters() if value.requires_grad}
    saved = rescale(folder, 0.3, base=base)
    found = rescale(own, 0.3, config=live.peft_config["default"].to_dict(), base=base)
    assert found.tensors.keys() == saved.tensors.keys()
    assert all(same_bits(found.tensors[key], saved.tensors[key]) for key in saved.tensors)
    assert not any(tensor.requires_grad for tensor in found.tensors.values())


def test_copies_that_were_not_trained_are_left_out(trained):
    """bias="all" makes PEFT save the wrapper's two copies of a head's bias: only the one that it loads goes along."""
    base, _, _, folder, _ = trained("dora_everything")
    given, found = rescale(folder, 0.3, base=base), None
    found = {key for key in given.tensors if key.startswith("base_model.model.norm")}
    assert found == {"base_model.model.norm.weight", "base_model.model.norm.bias"}


def test_what_means_nothing_to_interpolation_is_carried():
    """Integer tensors and counters as they are; a head that the base lacks as trained."""
    base, tensors, config = adapter_of()
    base |= {"model.steps": torch.arange(3)}
    extra = {
        "base_model.model.model.steps": torch.arange(3),
        "base_model.model.bn.num_batches_tracked": torch.tensor(7),
        "base_model.model.score.weight": torch.ones(2, 6, dtype=torch.float16),
    }
    found = rescale(tensors | extra, 0.3, config=config | {"modules_to_save": ["score"]}, base=base)
    assert all(same_bits(found.tensors[key], tensor) for key, tensor in extra.items())
    del extra["base_model.model.score.weight"]
    alone = rescale(tensors | extra, 0.3, config=config)
    assert all(same_bits(alone.tensors[key], tensor) for key, tensor in extra.items())
    with pytest.raises(errors.DtypeMismatch, match="steps"):
        rescale(tensors | {"base_model.model.model.steps": torch.ones(3).long()}, 0.3, config=config, base=base)


def test_a_low_rank_change_over_a_saved_weight():
    """W + a·(V - W) is saved wider than a bf16 base, so that with a·s·B·A on top it is rounded once."""
    base, tensors, config = adapter_of()
    base = {key: tensor.bfloat16() for key, tensor in base.items()}
    name = "model.layers.0.q_proj.weight"
    value = torch.randn(base[name].shape, generator=torch.Generator().manual_seed(9))
    given = tensors | {f"{Q}.base_layer.weight": value}
    found = rescale(given, 0.3, config=config, base=base)
    moved = value.double() + 2 * tensors[f"{Q}.lora_B.weight"].double() @ tensors[f"{Q}.lora_A.weight"].double()
    wanted = 0.7 * base[name].double() + 0.3 * moved
    assert found.tensors[f"{Q}.base_layer.weight"].dtype == torch.float32
    ours = interpolate(base, found, 1.0, output_dtype="fp64")[name]
    assert torch.allclose(ours, wanted, rtol=1e-6, atol=1e-6)


def refused(kind, *said, adapter=None, alpha=0.3, **options):
    """The error of a rescaling, which says all of `said` in four lines."""
    with pytest.raises(kind) as caught:
        rescale(adapter, alpha, **options)
    assert type(caught.value) is kind
    for text in said:
        assert text in str(caught.value)
    for line in (caught.value.where, caught.value.expected, caught.value.got, caught.value.hint):
        assert line
    return caught.value


def test_what_needs_the_base_is_listed():
    """Without a base, every tensor that needs one is named, with what to give."""
    base, tensors, config = adapter_of(dora=True)
    rows = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"
    given = tensors | {rows: torch.ones(2, 6), "base_model.model.model.norm.weight": torch.ones(6)}
    names = ["model.layers.0.q_proj.weight", "model.layers.1.q_proj.weight", "embed_tokens.weight", "norm.weight"]
    refused(errors.ConfigError, "base=", "--base", "4 tensor(s)", *names, adapter=given, config=config)
    assert base


def test_full_checkpoints_are_for_interpolate(tmp_path):
    """Tensors that replace those of the base are no adapter, in memory or on disk."""
    base, _, _ = adapter_of()
    tuned = {key: tensor + 1 for key, tensor in base.items()}
    refused(errors.ConfigError, "full checkpoint", "interpolate", adapter=tuned, base=base)
    refused(errors.ConfigError, "full checkpoint", adapter=tuned)
    _, tensors, _ = adapter_of()
    refused(errors.ConfigNeeded, "lora_alpha", adapter=tensors, base=base)
    refused(errors.ConfigError, "config=", adapter=tensors)


def test_no_closed_form_is_refused_by_name():
    """DoRA over a saved weight, and a family without `rescaled`."""
    base, tensors, config = adapter_of(dora=True)
    name = "model.layers.0.q_proj.weight"
    given = tensors | {f"{Q}.base_layer.weight": base[name] + 1}
    refused(errors.Unsupported, name, "dora over a weight", adapter=given, config=config, base=base)
    change = FAMILIES["dora"].parameters["weight"]._replace(rescaled=None)
    families = FAMILIES | {"dora": FAMILIES["dora"]._replace(parameters={"weight": change})}
    error = refused(errors.Unsupported, name, "dora", adapter=tensors, config=config, base=base, families=families)
    assert len(error.others) == 1


def flat_dora(magnitude, weight=1.0, dtype=torch.float64):
    """A DoRA over one row of ones with B·A = 0, so that g = magnitude / sqrt(4)."""
    base = {"m.weight": torch.full((1, 4), weight, dtype=dtype)}
    adapter = {
        "m.lora_A.weight": torch.ones(1, 4, dtype=dtype),
        "m.lora_B.weight": torch.zeros(1, 1, dtype=dtype),
        "m.lora_magnitude_vector": torch.tensor([magnitude], dtype=dtype),
    }
    return {"adapter": adapter, "base": base, "config": {"lora_alpha": 1, "r": 1}}


def test_where_no_dora_is_the_interpolation():
    """h = 0, a row without norm before or after, and factors beyond float32 are refused; a negative h is not."""
    refused(errors.NotFinite, "m.weight", "alpha 0.5", **flat_dora(-2.0), alpha=0.5)
    refused(errors.NotFinite, "m.weight", "no direction", **flat_dora(2.0, weight=0.0), alpha=0.5)
    lost = flat_dora(2.0, weight=0.0)
    lost["adapter"]["m.lora_B.weight"] += 1
    refused(errors.NotFinite, "m.weight", "no direction", **lost, alpha=0.0)
    refused(errors.NotFinite, "no direction", **flat_dora(2.0, weight=math.nan), alpha=0.5)
    found = rescale(**flat_dora(-6.0), alpha=0.5).tensors
    assert found["base_model.model.m.lora_magnitude_vector"].tolist() == [-2.0]
    huge = {"m.lora_A.weight": torch.ones(1, 4), "m.lora_B.weight": torch.full((1, 1), 1e38)}
    refused(
        errors.NotFinite, "lora_B", "F32", "fp64", adapter=huge, config={"lora_alpha": 1}, alpha=9, extrapolate=True
    )
    kept = rescale(**flat_dora(0.0), alpha=1).tensors
    assert kept["base_model.model.m.lora_magnitude_vector"].tolist() == [0.0]


@pytest.mark.parametrize(("dtype", "most"), [("fp16", 65504), ("f8_e5m2", 57344), ("f8_e4m3", 448)])
def test_a_factor_beyond_the_asked_dtype_is_refused(dtype, most):
    """The largest number is stored, and what rounds beyond it is not cut off, whether or not the dtype has infinity."""
    factors = {"m.lora_A.weight": torch.ones(1, 4), "m.lora_B.weight": torch.full((2, 1), 2.0 * most)}
    options = {"adapter": factors, "config": {"lora_alpha": 1}, "alpha": 0.5, "output_dtype": dtype}
    found = rescale(**options).tensors["base_model.model.m.lora_B.weight"]
    assert found.double().tolist() == [[most], [most]]
    factors["m.lora_B.weight"][0] *= 1.25
    refused(errors.NotFinite, "m.weight", "lora_B", **options)
    huge = flat_dora(2.0 * most, weight=1e-9)
    refused(errors.NotFinite, "lora_magnitude_vector", **huge, alpha=1, output_dtype=dtype)


def test_other_refusals_are_those_of_interpolate():
    """Alpha, values, names, shapes, ranks, patterns: with a base and without."""
    base, tensors, config = adapter_of()
    for options in ({}, {"base": base}):
        options |= {"config": config}
        refused(errors.BadAlpha, "1.5", adapter=tensors, alpha=1.5, **options)
        broken = tensors | {f"{Q}.lora_A.weight": tensors[f"{Q}.lora_A.weight"] * math.nan}
        refused(errors.NotFinite, "lora_A", adapter=broken, **options)
        lacking = {key: tensor for key, tensor in tensors.items() if key != f"{Q}.lora_A.weight"}
        refused(errors.MissingFactor, "lora_B", adapter=lacking, **options)
        short = tensors | {f"{Q}.lora_A.weight": torch.ones(3, 6)}
        refused(errors.ShapeMismatch, "q_proj", adapter=short, **options)
        integers = tensors | {f"{Q}.lora_A.weight": torch.ones(2, 6).int()}
        refused(errors.DtypeMismatch, "lora_A", adapter=integers, **options)
        refused(errors.ConfigError, "rank of", adapter=tensors, **options | {"config": config | {"r": 3}})
        unused = config | {"alpha_pattern": {"k_proj": 3}}
        refused(errors.UnusedPattern, "k_proj", adapter=tensors, **options | {"config": unused})
        bias = {key.replace("lora_B.weight", "lora_B.bias"): tensor[:, 0] for key, tensor in tensors.items()}
        alone = {key: tensor for key, tensor in bias.items() if key.endswith("bias")}
        refused(errors.MissingFactor, "bias", adapter=alone, **options)
        flagged = config | {"use_dora": True}
        refused(errors.MissingFactor, "magnitude", adapter=tensors, **options | {"config": flagged})
    renamed = {key.replace("q_proj", "k_proj"): tensor for key, tensor in tensors.items()}
    refused(errors.UnclaimedKey, "k_proj", adapter=renamed, config=config, base=base)
    wide = {key: torch.ones(2, 7) if "lora_A" in key else tensor for key, tensor in tensors.items()}
    refused(errors.ShapeMismatch, "q_proj", adapter=wide, config=config, base=base)


def test_without_a_base_square_and_tied_weights_are_no_question():
    """B is scaled the same whichever way round a weight is stored, and whether or not another one is tied to it."""
    adapter = {
        "transformer.h.0.attn.c_proj.lora_A.weight": torch.ones(1, 4),
        "transformer.h.0.attn.c_proj.lora_B.weight": torch.ones(4, 1),
        "transformer.wte.lora_embedding_A": torch.ones(1, 9),
        "transformer.wte.lora_embedding_B": torch.ones(4, 1),
    }
    found = rescale(adapter, 0.25, config={"lora_alpha": 4, "fan_in_fan_out": True}).tensors
    assert torch.equal(found["base_model.model.transformer.h.0.attn.c_proj.lora_B.weight"], torch.full((4, 1), 0.25))
    assert torch.equal(found["base_model.model.transformer.wte.lora_embedding_B"], torch.full((4, 1), 0.25))


def test_adapters_with_a_prefix_keep_their_own_names(trained):
    """An adapter trained on the inner model fits the outer base; the rescaled one has the adapter's names."""
    base, _, _, folder, _ = trained("dora")
    outer = {f"model.{key}": tensor for key, tensor in base.items()}
    found, plain = rescale(folder, 0.3, base=outer), rescale(folder, 0.3, base=base)
    assert found.tensors.keys() == plain.tensors.keys()
    assert all(same_bits(found.tensors[key], plain.tensors[key]) for key in plain.tensors)


def test_config_that_is_given_wins():
    """The config of the result is the one that was used, whole."""
    _, tensors, config = adapter_of()
    stale = AdapterConfig.from_mapping({"lora_alpha": 1})
    found = rescale(Adapter(tensors, stale), 0.3, config=config)
    assert found.config == AdapterConfig.from_mapping(config)
    assert found.config.fields == config


def test_config_that_is_given_wins_in_interpolate_and_plan_too():
    """At alpha = 1 the scale is that of the given config; the one that the adapter brings has another."""
    base, tensors, config = adapter_of()
    brought = Adapter(tensors, AdapterConfig.from_mapping({"lora_alpha": 16 * config["lora_alpha"]}))
    name = f"{Q.removeprefix('base_model.model.')}.weight"
    delta = tensors[f"{Q}.lora_B.weight"].double() @ tensors[f"{Q}.lora_A.weight"].double()
    scale = config["lora_alpha"] / tensors[f"{Q}.lora_A.weight"].shape[0]
    found = interpolate(base, brought, 1.0, config=config)[name].double()
    assert torch.allclose(found, base[name].double() + scale * delta, rtol=1e-6, atol=1e-6)
    scales = [plan(base, brought, config=said).bindings[name].steps[0].hyper.scale for said in (config, None)]
    assert scales == [scale, 16 * scale]


def test_gpt2_square_conv1d_against_peft(tmp_path):
    """A DoRA over transformers' Conv1D whose weight is square alone: config.json settles it, and PEFT agrees."""
    model = gpt2()
    base = copy.deepcopy(model.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        live = get_peft_model(
            model, LoraConfig(r=2, target_modules=[r"attn.c_proj"], use_dora=True, fan_in_fan_out=True)
        )
    with torch.no_grad():
        for key, value in live.named_parameters():
            if value.requires_grad:
                value.add_(torch.rand(value.shape, generator=torch.Generator().manual_seed(len(key))) * 0.3)
    live.save_pretrained(tmp_path / "in")
    found = rescale(tmp_path / "in", 0.4, base=base, base_config={"model_type": "gpt2"})
    save_adapter(found, tmp_path / "out", sync=False)
    tuned, wide = merged(live.double()), merged(loaded(tmp_path / "out", gpt2, torch.float64))
    key = "h.0.attn.c_proj.weight"
    assert row_errors(live, key, wide[key], 0.6 * base[key].double() + 0.4 * tuned[key]).max() <= 1e-6


@pytest.mark.parametrize("live", [True, False])
def test_token_rows_of_a_tied_embedding(live):
    """The rows that embedding and head share are rescaled once, whether the base holds one name of it or both."""
    weight = torch.arange(24.0).reshape(6, 4)
    base = {"model.embed_tokens.weight": weight} | ({"lm_head.weight": weight} if live else {})
    said = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True}
    rows = {"model.embed_tokens.token_adapter.trainable_tokens_delta": torch.ones(1, 4)}
    options = {"config": {"trainable_token_indices": {"embed_tokens": [2]}}, "base_config": said}
    again = rescale(rows, 0.5, base=base, **options)
    (value,) = again.tensors.values()
    assert torch.equal(value, (weight[2:3] + 1) / 2)
    wanted = dict(interpolate(base, rows, 0.5, **options))
    assert all(
        torch.equal(held, wanted[name]) for name, held in interpolate(base, again, 1.0, base_config=said).items()
    )
