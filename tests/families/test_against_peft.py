"""PEFT as the oracle of every method: base and adapter saved by PEFT, merged by PEFT, and by us.

A row of `CASES` is a method on some layers. Three things are compared:

alpha 1     with `merge_and_unload` of PEFT, in float32 and in bf16
alpha 0     with the base's bytes
alpha 0.3   with W + 0.3·(W_tuned - W) in float64, rounded once, where W_tuned is what PEFT's own code makes of float64
            copies of base and adapter, or naive numpy where that code insists on float32 (`NAIVE`)

PEFT's float32 is off by its own roundings. The bound is measured, not derived: `ERROR` units of 2^-24 of the largest
number of a tensor (weight, tuned weight, or their difference) is about twice the largest error that was seen.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from importlib.resources import files
from typing import Any, NamedTuple

import jsonschema
import numpy as np
import peft
import pytest
import torch
from exact import same_bits
from families import cases_base_dependent, cases_low_rank, cases_projections
from safetensors.torch import load_file
from toys import gpt2, toy

from wiseft_core import errors, interpolate, plan, rescale, save_adapter
from wiseft_core.families import FAMILIES


class Case(NamedTuple):
    """A method on some layers of a toy model.

    Attributes:
        config: PEFT's config class.
        options: Its arguments.
        make: Makes the model.
        units: The error of PEFT's float32, in units of 2^-24 of the largest number.
        spread: Size of the random values that are trained in.
    """

    config: Any
    options: dict[str, Any]
    make: Callable[[], torch.nn.Module] = toy
    units: float = 8
    spread: float = 0.3


LINEAR, CONVS = ["q_proj", "up"], ["conv1", "conv2", "point"]
CASES: dict[str, Case] = {
    "loha": Case(peft.LoHaConfig, {"target_modules": LINEAR, "r": 3, "alpha": 7, "rank_pattern": {"up": 2}}),
    "loha_conv": Case(peft.LoHaConfig, {"target_modules": CONVS, "r": 3, "alpha": 7}),
    "loha_tucker": Case(peft.LoHaConfig, {"target_modules": CONVS, "r": 3, "alpha": 7, "use_effective_conv2d": True}),
    "lokr": Case(peft.LoKrConfig, {"target_modules": LINEAR, "r": 1, "alpha": 7, "alpha_pattern": {"up": 3}}),
    "lokr_both": Case(peft.LoKrConfig, {"target_modules": LINEAR, "r": 1, "alpha": 7, "decompose_both": True}),
    "lokr_full": Case(peft.LoKrConfig, {"target_modules": LINEAR, "r": 5, "alpha": 7}),
    "lokr_conv": Case(peft.LoKrConfig, {"target_modules": CONVS, "r": 1, "alpha": 3}),
    "lokr_conv_full": Case(peft.LoKrConfig, {"target_modules": CONVS, "r": 9, "alpha": 3}),
    "lokr_tucker": Case(  # PEFT itself raises for a Conv1d
        peft.LoKrConfig, {"target_modules": ["conv2"], "r": 1, "alpha": 3, "use_effective_conv2d": True}
    ),
    "ia3": Case(peft.IA3Config, {"target_modules": [*LINEAR, "conv2", "conv3"], "feedforward_modules": ["up"]}),
    "ia3_conv": Case(
        peft.IA3Config,
        {"target_modules": ["conv2", "conv3", "grouped"], "feedforward_modules": ["conv2", "conv3", "grouped"]},
    ),
    "ia3_gpt2": Case(
        peft.IA3Config,
        {"target_modules": ["c_attn", "c_fc", "mlp.c_proj"], "feedforward_modules": ["mlp.c_proj"]},
        gpt2,
    ),
    "vera": Case(peft.VeraConfig, {"target_modules": LINEAR, "r": 4}),
    "vera_gpt2": Case(peft.VeraConfig, {"target_modules": ["c_attn", "c_proj"], "r": 4}, gpt2),
    "fourierft": Case(peft.FourierFTConfig, {"target_modules": LINEAR, "n_frequency": 20, "scaling": 30.0}),
    "fourierft_gpt2": Case(
        peft.FourierFTConfig, {"target_modules": ["c_attn", "c_fc"], "n_frequency": 20, "scaling": 30.0}, gpt2
    ),
    "adalora": Case(
        peft.AdaLoraConfig,
        {"target_modules": [*LINEAR, "conv2"], "init_r": 3, "target_r": 2, "total_step": 9, "lora_alpha": 5},
    ),
    "adalora_gpt2": Case(
        peft.AdaLoraConfig,
        {"target_modules": ["c_attn", "c_fc"], "init_r": 3, "target_r": 2, "total_step": 9, "lora_alpha": 5},
        gpt2,
    ),
    "oft": Case(peft.OFTConfig, {"target_modules": [*LINEAR, "emb", "square", "point"], "oft_block_size": 4, "r": 0}),
    "oft_cayley": Case(
        peft.OFTConfig,
        {"target_modules": [*LINEAR, "emb"], "oft_block_size": 4, "r": 0, "use_cayley_neumann": False},
    ),
    "oft_shared": Case(
        peft.OFTConfig,
        {
            "target_modules": [*LINEAR, "emb"],
            "oft_block_size": 4,
            "r": 0,
            "block_share": True,
            "num_cayley_neumann_terms": 3,
        },
    ),
    "pissa": Case(peft.LoraConfig, {"target_modules": LINEAR, "r": 3, "lora_alpha": 5, "init_lora_weights": "pissa"}),
    "pissa_gpt2": Case(
        peft.LoraConfig,
        {"target_modules": ["c_attn", "c_fc"], "r": 3, "lora_alpha": 5, "init_lora_weights": "pissa"},
        gpt2,
    ),
    "olora": Case(peft.LoraConfig, {"target_modules": LINEAR, "r": 3, "lora_alpha": 5, "init_lora_weights": "olora"}),
    "shira": Case(peft.ShiraConfig, {"target_modules": LINEAR, "r": 2}),
    "ln_tuning": Case(peft.LNTuningConfig, {"target_modules": ["norm"]}),
}
CASES |= {name: Case(*row) for name, row in cases_projections.CASES.items()}
CASES |= {name: Case(*row) for name, row in cases_low_rank.CASES.items()}
CASES |= {name: Case(**said) for name, said in cases_base_dependent.CASES.items()}
COUPLED = [name for name in CASES if name.startswith("glora_") and name.split("_")[2:3] != ["none"]]
UNREAD = {"shira": errors.MissingFactor, **dict.fromkeys(COUPLED, errors.Unsupported)}
"""What a live model's own names do not tell: the places of SHiRA, and which weight a bias of GLoRA is made of."""
ERRORS: dict[str, float] = {}
"""The largest error of each case that was seen, in its units: shown by `-s`."""


class Trained(NamedTuple):
    """A base, PEFT's model over it with trained values, what PEFT merges, and the saved folder."""

    base: dict[str, torch.Tensor]
    live: Any
    merged: dict[str, torch.Tensor]
    folder: Any
    base_config: dict[str, str] | None


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """`trained(name, dtype)`: a case trained and saved by PEFT, made once."""
    made: dict[tuple[str, torch.dtype], Trained] = {}

    def make(name, dtype=torch.float32):
        if (name, dtype) not in made:
            made[name, dtype] = train(CASES[name], dtype, tmp_path_factory.mktemp(name))
        return made[name, dtype]

    return make


def train(case: Case, dtype: torch.dtype, folder: Any) -> Trained:
    """Give every trained parameter other values, save the adapter, and merge it."""
    model, draw = case.make(), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in model.parameters():
            if not value.any():  # a bias of zeros would hide what becomes of it
                value.normal_(generator=draw)
    model = model.to(dtype)
    base = copy.deepcopy(model.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(2)
        live = peft.get_peft_model(model, case.config(**case.options))
        with torch.no_grad():
            for key, value in live.named_parameters():
                if value.requires_grad and "ranknum" not in key:  # AdaLoRA's divisor: not saved, init_r when loaded
                    value.add_(torch.randn(value.shape, generator=draw) * case.spread)
        live.save_pretrained(folder, save_embedding_layers=False)
        merged = copy.deepcopy(live).merge_and_unload().state_dict()
    return Trained(base, live, merged, folder, {"model_type": "gpt2"} if case.make is gpt2 else None)


def view_of(trained: Trained, alpha: float, **options: Any):
    """W(alpha) from the saved files."""
    return interpolate(trained.base, trained.folder, alpha, base_config=trained.base_config, **options)


@pytest.mark.parametrize("name", CASES)
def test_alpha_one_is_what_peft_merges(trained, name):
    """In float32, every tensor is PEFT's merged one within PEFT's own error, and the same tensors are touched."""
    one = trained(name)
    view = view_of(one, 1.0)
    assert view.keys() == one.merged.keys()
    for key in view.touched:
        size = max(one.base[key].abs().max(), one.merged[key].abs().max())
        off = (view[key].double() - one.merged[key].double()).abs().max() / size * 2**24
        ERRORS[name] = max(ERRORS.get(name, 0), float(off))
        assert off <= CASES[name].units, (key, float(off))
    assert {key for key in one.base if not torch.equal(one.base[key], one.merged[key])} == set(view.touched)
    assert all(torch.equal(view[key], one.merged[key]) for key in view.keys() - set(view.touched))
    print(f"{name}: largest error {ERRORS[name]:.2f} of 2^-24")


@pytest.mark.parametrize("name", CASES)
def test_alpha_one_is_what_peft_merges_in_bf16(trained, name):
    """In bf16, every element is PEFT's or its neighbour: PEFT rounds its steps, and we round once."""
    one = trained(name, torch.bfloat16)
    for key, tensor in view_of(one, 1.0).items():
        size = max(one.base[key].abs().max(), one.merged[key].abs().max()).double()
        assert (tensor.double() - one.merged[key].double()).abs().max() <= size * 2**-7, key


@pytest.mark.parametrize("name", CASES)
def test_alpha_zero_is_the_base(trained, name):
    """At alpha 0 every tensor has the base's bytes."""
    one = trained(name)
    view = view_of(one, 0.0)
    assert list(view) == list(one.base)
    assert all(same_bits(view[key], one.base[key]) for key in one.base)


@pytest.mark.parametrize("name", CASES)
def test_other_alphas_are_the_formula_rounded_once(trained, name):
    """At alpha 0.3 every tensor is the interpolation of float64, rounded once to float32."""
    one = trained(name)
    exact = exactly(name, one)
    view, wide = view_of(one, 0.3), view_of(one, 0.3, output_dtype="fp64")
    for key in view.touched:
        wanted = one.base[key].double() + 0.3 * (exact[key] - one.base[key].double())
        assert torch.allclose(wide[key], wanted, rtol=1e-11, atol=1e-12), key
        steps = np.spacing(np.abs(wanted.float().numpy()))
        assert bool((np.abs(view[key].double().numpy() - wanted.numpy()) <= 0.5001 * steps + 1e-12).all()), key


@pytest.mark.parametrize("name", CASES)
def test_adapters_in_memory_give_the_same_bits(trained, name):
    """The state dict that PEFT gives means the same as the saved files."""
    one = trained(name)
    config = one.live.peft_config["default"].to_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        given = peft.get_peft_model_state_dict(one.live, save_embedding_layers=False)
    view = view_of(one, 0.7)
    other = interpolate(one.base, given, 0.7, config=config, base_config=one.base_config)
    assert set(other.touched) == set(view.touched)
    assert all(same_bits(other[key], view[key]) for key in one.base)


@pytest.mark.parametrize("name", CASES)
def test_a_live_models_own_state_dict_means_the_same(trained, name):
    """With the weights and biases that a live model shows below its wrappers; or it is refused, with `UNREAD`."""
    one = trained(name)
    config, view = one.live.peft_config["default"].to_dict(), view_of(one, 0.7)

    def other():
        return interpolate(one.base, one.live.state_dict(), 0.7, config=config, base_config=one.base_config)

    if name in UNREAD:
        with pytest.raises(UNREAD[name]):
            other()
        return
    for key, value in other().items():
        size = max(one.base[key].abs().max(), one.merged[key].abs().max())
        assert (value - view[key]).abs().max() <= size * CASES[name].units * 2**-24, key


@pytest.mark.parametrize("name", CASES)
def test_the_plan_fits_its_schema(trained, name):
    """What `plan --json` says of any method validates, and accounts for every tensor of the adapter."""
    one = trained(name)
    seen = plan(one.base, one.folder, base_config=one.base_config)
    schema = json.loads((files("wiseft_core") / "schemas" / "plan.schema.json").read_text())
    jsonschema.validate(json.loads(json.dumps(seen.as_dict())), schema)
    assert seen.consumed().keys() == load_file(one.folder / "adapter_model.safetensors").keys()


@pytest.mark.parametrize("name", CASES)
def test_rescaled_adapters_are_the_interpolation(trained, name, tmp_path):
    """Where a method is closed, PEFT merges the rescaled adapter to what interpolating gives; else it is refused."""
    one = trained(name)
    view = view_of(one, 0.5)
    steps = [step for key in view.touched for step in view.plan.bindings[key].steps]
    if not all(FAMILIES[step.family].forms(step.parameter)[step.form].closed for step in steps):
        with pytest.raises(errors.Unsupported):
            rescale(one.folder, 0.5, base=one.base, base_config=one.base_config)
        return
    save_adapter(rescale(one.folder, 0.5, base=one.base, base_config=one.base_config), tmp_path / "half")
    model = CASES[name].make()
    model.load_state_dict(one.base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged = peft.PeftModel.from_pretrained(model, tmp_path / "half").merge_and_unload().state_dict()
    for key in view.touched:
        size = max(one.base[key].abs().max(), one.merged[key].abs().max())
        assert (view[key] - merged[key]).abs().max() <= size * (CASES[name].units + 2) * 2**-24, key


@pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT cannot find the embeddings of a plain module, and says so
def test_batch_normalisation_is_tuned_with_what_it_counts():
    """LN-tuning of it: PEFT trains, saves and merges the whole layer, whose statistics follow the data too."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6))
    base = copy.deepcopy(model.state_dict())
    live = peft.get_peft_model(model, peft.LNTuningConfig(target_modules=["1"]))
    with torch.no_grad():
        for value in (value for value in live.parameters() if value.requires_grad):
            value.add_(torch.linspace(-0.3, 0.4, value.numel()).view_as(value))
        live.train()(torch.linspace(-1, 3, 20).view(5, 4))
    adapter, config = peft.get_peft_model_state_dict(live), live.peft_config["default"].to_dict()
    merged = live.merge_and_unload().state_dict()
    changed = {"1.weight", "1.bias", "1.running_mean", "1.running_var"}
    for alpha in (0.0, 0.5, 1.0):
        view = interpolate(base, adapter, alpha, config=config)
        assert set(view.touched) == changed
        for key in changed:
            assert torch.allclose(view[key], base[key] + alpha * (merged[key] - base[key])), key


def exactly(name: str, one: Trained) -> dict[str, torch.Tensor]:
    """W_tuned in float64: from PEFT's own code, or from `NAIVE`."""
    naive = NAIVE.get(name, NAIVE.get(one.live.peft_config["default"].peft_type.value))
    if naive is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return copy.deepcopy(one.live).double().merge_and_unload().state_dict()
    said = json.loads((one.folder / "adapter_config.json").read_text())
    factors: dict[str, dict[str, np.ndarray]] = {}
    for key, value in load_file(one.folder / "adapter_model.safetensors").items():
        module, _, role = key.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".")
        while module and f"{module}.weight" not in one.base:  # factors of a module within the module, or of all
            module, _, outer = module.rpartition(".")
            role = f"{outer}.{role}"
        factors.setdefault(module, {})[role] = value.double().numpy()
    found = {key: value.double() for key, value in one.base.items()}
    shared = {role.removeprefix("base_model."): value for role, value in factors.pop("", {}).items()}
    for module, parts in factors.items():
        weight = found[f"{module}.weight"].numpy()
        across = one.base_config is not None
        tuned = naive(weight.T if across else weight, shared | parts, said, module)
        found[f"{module}.weight"] = torch.from_numpy(np.ascontiguousarray(tuned.T if across else tuned))
    return found


def hadamard(weight, factors, said, module):
    """LoHa with its sums written out: PEFT's code makes the scale float32."""
    one, two = ([factors.get(f"hada_{role.format(x)}") for role in ("t{}", "w{}_a", "w{}_b")] for x in "12")
    if one[0] is None:
        change = np.einsum("or,ri,os,si->oi", one[1], one[2], two[1], two[2])
    else:
        change = np.einsum("abkl,ao,bi,cdkl,co,di->oikl", *one, *two)
    rank = next((rank for name, rank in said["rank_pattern"].items() if module.endswith(name)), said["r"])
    return weight + said["alpha"] / rank * change.reshape(weight.shape)


def fourier(weight, factors, said, module):
    """A sum of cosines, without a Fourier transform: PEFT's code makes the spectrum float32."""
    (out, size), values = weight.shape, factors["fourierft_spectrum"]
    order = torch.randperm(out * size, generator=torch.Generator().manual_seed(said["random_loc_seed"]))
    rows, columns = np.arange(out)[:, None], np.arange(size)[None, :]
    change = np.zeros_like(weight)
    for place, value in zip(order[: len(values)].tolist(), values, strict=True):
        turns = (place // size) * rows / out + (place % size) * columns / size
        change += value * np.cos(2 * np.pi * turns)
    return weight + said["scaling"] * change / (out * size)


def sparse(weight, factors, said, module):
    """ShiRA one place after the other: PEFT adds a sparse tensor of float32."""
    tuned = weight.copy()
    for row, column, value in zip(*factors["shira_indices"].astype(int), factors["shira_weight"], strict=True):
        tuned[row, column] += value
    return tuned


def low_rank(weight, factors, said, module):
    """PiSSA and OLoRA from the base as it was: PEFT has rounded to float32 what it left of it."""
    rank, scale = said["r"], said["lora_alpha"] / said["r"]
    if said["init_lora_weights"] == "pissa":
        left, sizes, right = np.linalg.svd(weight, full_matrices=False)
        taken = left[:, :rank] * sizes[:rank] @ right[:rank]
    else:  # what Q_r·R_r is: for the first columns W itself, for the others their projection on these
        basis, _ = np.linalg.qr(weight[:, :rank])
        taken = scale * basis @ (basis.T @ weight)
    return weight - taken + scale * factors["lora_B"] @ factors["lora_A"]


NAIVE = {"FOURIERFT": fourier, "LOHA": hadamard, "SHIRA": sparse, "LORA": low_rank}
NAIVE |= cases_projections.NAIVE
NAIVE |= cases_low_rank.NAIVE
NAIVE |= cases_base_dependent.NAIVE
