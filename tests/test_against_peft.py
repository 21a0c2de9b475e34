"""PEFT itself as the oracle: every layer and option that is supported, saved by PEFT, merged by PEFT, and by us.

PEFT merges in float32, in several steps, so it is compared within that arithmetic's own error: a sum of `rank` products
of float32 numbers, a scaling and a sum, each off by 2^-24 of its size, which is bounded by (rank + 8)·2^-24·(|W| + the
sum of the products' sizes) = (rank + 8)·2^-24·S; DoRA multiplies by g = m / ‖V‖, where the norm is off relatively by
‖S‖ / ‖V‖ as much and by `in` roundings more: g·(S + |V|·‖S‖ / ‖V‖)·(in + rank + 8)·2^-24.
At other alphas naive float64 is the oracle, rounded once.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from exact import same_bits
from peft import LoraConfig, PeftModel, TrainableTokensConfig, get_peft_model, get_peft_model_state_dict
from toys import gpt2, toy

from wiseft_core import interpolate

LINEAR = ["q_proj", "up"]
CONFIGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "linear": (toy, {"target_modules": LINEAR}),
    "rslora": (toy, {"target_modules": LINEAR, "use_rslora": True}),
    "gaussian": (toy, {"target_modules": LINEAR, "init_lora_weights": "gaussian"}),
    "orthogonal": (toy, {"target_modules": LINEAR, "init_lora_weights": "orthogonal", "r": 4}),
    "patterns": (
        toy,
        {
            "target_modules": LINEAR,
            "rank_pattern": {"layers.1.up": 2, "q_proj": 5},
            "alpha_pattern": {r"layers\.[02]\.q_proj": 3, "up": 11},
        },
    ),
    "layers": (toy, {"target_modules": LINEAR, "layers_to_transform": [1], "layers_pattern": "layers"}),
    "regex": (toy, {"target_modules": r".*\.(q_proj|up)"}),
    "embedding": (toy, {"target_modules": ["emb"]}),
    "conv": (toy, {"target_modules": ["conv1", "conv2", "conv3", "point"]}),
    "lora_bias": (toy, {"target_modules": [*LINEAR, "conv2"], "lora_bias": True}),
    "bias_all": (toy, {"target_modules": LINEAR, "bias": "all"}),
    "bias_lora_only": (toy, {"target_modules": LINEAR, "bias": "lora_only"}),
    "modules_to_save": (toy, {"target_modules": LINEAR, "modules_to_save": ["norm", "head"]}),
    "tokens": (toy, {"target_modules": LINEAR, "trainable_token_indices": {"emb": [7, 2, 5]}}),
    "dora": (toy, {"target_modules": LINEAR, "use_dora": True}),
    "dora_embedding": (toy, {"target_modules": ["emb"], "use_dora": True}),
    "dora_conv": (toy, {"target_modules": ["conv1", "conv2", "conv3", "point"], "use_dora": True}),
    "dora_everything": (
        toy,
        {
            "target_modules": [*LINEAR, "emb", "conv2"],
            "use_dora": True,
            "use_rslora": True,
            "bias": "all",
            "modules_to_save": ["norm"],
        },
    ),
    "gpt2": (gpt2, {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "gpt2_dora": (gpt2, {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True, "use_dora": True}),
    "only_tokens": (toy, {"peft": TrainableTokensConfig, "target_modules": ["emb"], "token_indices": [9, 0, 4]}),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A function that gives base weights, the live tuned model, its merged weights and the saved folder, once each."""
    kept: dict[str, Any] = {}

    def get(name):
        if name not in kept:
            kept[name] = tune(name, tmp_path_factory.mktemp(name))
        return kept[name]

    return get


def tune(name, folder):
    """Wrap, give every trained tensor a random value, save, and merge a copy."""
    make, options = CONFIGS[name]
    options = dict(options)
    kind = options.pop("peft", None)
    config = kind(**options) if kind else LoraConfig(**({"r": 3, "lora_alpha": 7} | options))
    model = make()
    base = copy.deepcopy(model.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        live = get_peft_model(model, config)
        draw = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for key, value in live.named_parameters():
                if value.requires_grad:
                    change = torch.randn(value.shape, generator=draw) * 0.3
                    value.copy_(value * (1 + change / 3) if "magnitude" in key else value + change)
        live.save_pretrained(folder, save_embedding_layers=False)
        merged = copy.deepcopy(live).merge_and_unload().state_dict()
    base_config = {"model_type": "gpt2"} if make is gpt2 else None
    return base, live, merged, folder, {"base_config": base_config}


def allowed(live, name, base):
    """The error of PEFT's own float32 arithmetic for one merged tensor; zero for what it only copies."""
    layer = dict(live.base_model.model.named_modules()).get(name.rpartition(".")[0])
    embedded, lora = getattr(layer, "lora_embedding_A", None), getattr(layer, "lora_A", None)
    if not embedded and not lora:
        return torch.zeros_like(base, dtype=torch.float64)
    if name.endswith(".bias"):
        bias = layer.lora_B["default"].bias
        return torch.zeros(()) if bias is None else (base.abs() + bias.abs() * layer.scaling["default"]) * 2.0**-22
    across = bool(embedded) or getattr(layer, "fan_in_fan_out", False)
    first = embedded["default"] if embedded else lora["default"].weight
    second = layer.lora_embedding_B["default"] if embedded else layer.lora_B["default"].weight
    first, second = first.detach().double().flatten(1), second.detach().double().flatten(1)
    scale, weight = layer.scaling["default"], base.double().T if across else base.double().flatten(1)
    moved, sizes = weight + scale * second @ first, weight.abs() + scale * second.abs() @ first.abs()
    units = len(first) + 8
    if layer.lora_magnitude_vector:
        vector = layer.lora_magnitude_vector["default"].weight.detach().double().abs().reshape(-1, 1)
        norm = moved.norm(dim=1, keepdim=True)
        sizes = vector / norm * (sizes + moved.abs() * sizes.norm(dim=1, keepdim=True) / norm)
        units += moved.shape[1]
    return (sizes.T if across else sizes).reshape(base.shape) * units * 2.0**-24


@pytest.mark.parametrize("name", CONFIGS)
def test_alpha_one_is_what_peft_merges(trained, name):
    """At alpha 1 every tensor is PEFT's merged one, within the error of PEFT's float32."""
    base, live, merged, folder, options = trained(name)
    view = interpolate(base, folder, 1.0, **options)
    assert view.keys() == merged.keys()
    for key, tensor in view.items():
        off = (tensor.double() - merged[key].double()).abs()
        assert bool((off <= allowed(live, key, base[key])).all()), (key, off.max())
    changed = {key for key in base if not torch.equal(base[key], merged[key])}
    assert changed == set(view.touched)


@pytest.mark.parametrize("name", CONFIGS)
def test_alpha_zero_is_the_base(trained, name):
    """At alpha 0 every tensor has the base's bytes, for DoRA, heads, biases and token rows too."""
    base, _, _, folder, options = trained(name)
    view = interpolate(base, folder, 0.0, **options)
    assert list(view) == list(base)
    assert all(same_bits(view[key], base[key]) for key in base)


@pytest.mark.parametrize("name", CONFIGS)
def test_other_alphas_are_the_formula_rounded_once(trained, name):
    """At alpha 0.3 every tensor is W + 0.3·(W_tuned - W) of naive float64, W_tuned from PEFT's model in float64."""
    base, live, _, folder, options = trained(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exact = copy.deepcopy(live).double().merge_and_unload().state_dict()
    view = interpolate(base, folder, 0.3, **options)
    wide = interpolate(base, folder, 0.3, output_dtype=None if "tokens" in name else "fp64", **options)
    for key in view.touched:
        wanted = base[key].double() + 0.3 * (exact[key] - base[key].double())
        if "tokens" not in name:
            assert torch.allclose(wide[key], wanted, rtol=1e-12, atol=1e-13), key
        steps = np.spacing(np.abs(wanted.float().numpy()))
        assert bool((np.abs(view[key].double().numpy() - wanted.numpy()) <= 0.5001 * steps + 1e-13).all()), key


@pytest.mark.parametrize("name", CONFIGS)
def test_adapters_in_memory_give_the_same_bits(trained, name):
    """The state dict that PEFT gives, and the live model's own trained parameters, mean the same as the saved files."""
    base, live, _, folder, options = trained(name)
    view = interpolate(base, folder, 0.7, **options)
    config = live.peft_config["default"].to_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT takes the bias of lora_bias for a damaged factor
        given = get_peft_model_state_dict(live, save_embedding_layers=False)
    own = {key: value for key, value in live.named_parameters() if value.requires_grad}
    for adapter in (given, own):
        other = interpolate(base, adapter, 0.7, config=config, **options)
        assert set(other.touched) == set(view.touched)
        assert all(same_bits(other[key], view[key]) for key in base)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_live_models_own_state_dict_means_the_same(trained, name):
    """With the weights of the base and the copies that a live model shows under PEFT's names."""
    base, live, _, folder, options = trained(name)
    view = interpolate(base, folder, 0.7, **options)
    other = interpolate(base, live.state_dict(), 0.7, config=live.peft_config["default"].to_dict(), **options)
    for key in base:
        assert torch.allclose(other[key], view[key], rtol=2**-23, atol=1e-12), key


def test_a_live_base_under_peft_is_not_mistaken_for_the_plain_one(trained):
    """The saved adapter loads back into PEFT and gives the same merged weights: what is compared here is real."""
    _, _, merged, folder, _ = trained("linear")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = PeftModel.from_pretrained(toy(), folder).merge_and_unload().state_dict()
    assert all(torch.equal(again[key], merged[key]) for key in merged)


def test_a_flat_conv3d_kernel_is_the_formula_where_peft_raises():
    """Conv3d with a (1, 1, x) kernel: PEFT takes it for a 1x1 Conv2d and raises; the formula does not mind."""
    draw = torch.Generator().manual_seed(3)
    weight = torch.randn(5, 4, 1, 1, 3, generator=draw)
    first, second = torch.randn(2, 4, 1, 1, 3, generator=draw), torch.randn(5, 2, 1, 1, 1, generator=draw)
    adapter = {"c.lora_A.weight": first, "c.lora_B.weight": second}
    out = interpolate({"c.weight": weight}, adapter, 1.0, config={"lora_alpha": 4, "r": 2})["c.weight"]
    change = np.einsum("or,rcxyz->ocxyz", second.double().numpy()[:, :, 0, 0, 0], first.double().numpy())
    wanted = torch.from_numpy(weight.double().numpy() + 2 * change)
    assert torch.equal(out, wanted.float())
