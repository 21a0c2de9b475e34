"""What the methods whose change depends on the base refuse, beyond what the tables of `cases_base_dependent` show."""

from __future__ import annotations

import warnings

import peft
import pytest
import torch
from toys import toy

from wiseft_core import errors, interpolate, interpolate_tensor, rescale


@pytest.fixture
def saved(tmp_path):
    """`saved(config)`: a base's state dict, and the state dict of an adapter of PEFT over it with its config."""

    def make(config):
        model = toy()
        base = {key: value.clone() for key, value in model.state_dict().items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            live = peft.get_peft_model(model, config)
            return base, peft.get_peft_model_state_dict(live), live.peft_config["default"].to_dict()

    return make


def test_a_bias_that_needs_a_weight_needs_it_from_the_base(saved):
    """GLoRA's bias reads the weight: one that the adapter replaces, or that the base lacks, is refused."""
    base, adapter, config = saved(peft.GloraConfig(target_modules=["up"], r=3))
    assert "layers.0.up.bias" in interpolate(base, adapter, 0.5, config=config).touched
    replaced = {"base_model.model.layers.0.up.base_layer.weight": base["layers.0.up.weight"] + 1}
    with pytest.raises(errors.Unsupported, match=r"layers\.0\.up\.weight, which the adapter replaces"):
        interpolate(base, adapter | replaced, 0.5, config=config)
    for name in [key for key in base if key.endswith("up.weight")]:
        del base[name]
    only = {key: value for key, value in adapter.items() if "glora_A" not in key and "glora_B" not in key}
    with pytest.raises(errors.MissingFactor, match=r"depends on layers\.0\.up\.weight"):
        interpolate(base, only, 0.5, config=config)


def test_a_bias_that_changes_along_is_no_other_change_of_it(saved):
    """IA3 scales a bias too: one that was trained beside is refused, a live model's own is what it scales."""
    base, adapter, config = saved(peft.IA3Config(target_modules=["up"], feedforward_modules=[], init_ia3_weights=False))
    bias = base["layers.0.up.bias"]
    with pytest.raises(errors.Unsupported, match="trained by itself"):
        interpolate(base, adapter | {"base_model.model.layers.0.up.bias": bias + 1}, 0.5, config=config)
    live = adapter | {"base_model.model.layers.0.up.base_layer.bias": bias + 1}
    vector = adapter["base_model.model.layers.0.up.ia3_l"].flatten()
    for alpha in (0.0, 0.5, 1.0):
        found = interpolate(base, live, alpha, config=config)["layers.0.up.bias"]
        assert torch.allclose(found, bias + alpha * ((bias + 1) * vector - bias))
    del base["layers.0.up.bias"]
    assert "layers.0.up.bias" not in interpolate(base, adapter, 0.5, config=config)
    with pytest.raises(errors.UnclaimedKey, match=r"up\.base_layer\.bias"):
        interpolate(base, live, 0.5, config=config)


def test_the_weight_that_a_bias_needs_is_the_bases_at_every_alpha(saved):
    """With the weight's own change scheduled away, the bias still moves, and by the same."""
    base, adapter, config = saved(peft.GloraConfig(target_modules=["up"], r=3, init_weights=False))
    one = interpolate(base, adapter, 1.0, config=config)
    other = interpolate(base, adapter, {"*.weight": 0.0, "*": 1.0}, config=config)
    assert torch.equal(other["layers.0.up.weight"], base["layers.0.up.weight"])
    assert torch.equal(other["layers.0.up.bias"], one["layers.0.up.bias"])


def test_randomised_components_are_refused(saved):
    """PSOFT's lowrank decomposition is named, with the reason."""
    base, adapter, config = saved(peft.PsoftConfig(target_modules=["up"], r=3, psoft_svd="lowrank"))
    with pytest.raises(errors.Unsupported, match="random projections") as caught:
        interpolate(base, adapter, 0.5, config=config)
    assert caught.value.exit_code == 4


def test_what_a_human_should_know_is_said_with_the_plan(saved):
    """PSOFT's signs are those of the machine: the plan says so, once. Other methods say nothing."""
    base, adapter, config = saved(peft.PsoftConfig(target_modules=["up", "q_proj"], r=3))
    (note,) = interpolate(base, adapter, 0.5, config=config).plan.notes
    assert "signs" in note
    base, adapter, config = saved(peft.OSFConfig(target_modules=["up"]))
    assert interpolate(base, adapter, 0.5, config=config).plan.notes == ()


def test_what_the_config_says_must_be_what_the_shapes_say(saved):
    """RoAd's variant and PSOFT's vectors: tensors of another kind than the config's are refused."""
    base, adapter, config = saved(peft.RoadConfig(target_modules=["up"], group_size=4))
    with pytest.raises(errors.ShapeMismatch):
        interpolate(base, adapter, 0.5, config=config | {"variant": "road_4"})
    with pytest.raises(errors.ShapeMismatch, match="group"):
        interpolate(base, adapter, 0.5, config=config | {"group_size": 7})["layers.0.up.weight"]
    base, adapter, config = saved(peft.PsoftConfig(target_modules=["up"], r=3))
    with pytest.raises(errors.ShapeMismatch):
        interpolate(base, adapter, 0.5, config=config | {"psoft_mag_a": False})


def test_networks_deeper_than_known_are_refused(saved):
    """A PEANuT of seven encoders: the eighth matrix has no place."""
    base, adapter, config = saved(peft.PeanutConfig(target_modules=["up"], r=3, depth=7))
    with pytest.raises(errors.UnclaimedKey, match="peanut_encoders"):
        interpolate(base, adapter, 0.5, config=config)
    with pytest.raises(errors.Unsupported, match="act_fn"):
        interpolate(base, adapter, 0.5, config=config | {"act_fn": "quick_gelu"})


def test_deft_below_zero_is_no_deft(saved):
    """Extrapolated to a negative alpha, no P has the product that is wanted."""
    base, adapter, config = saved(peft.DeftConfig(target_modules=["up"], r=3))
    with pytest.raises(errors.Unsupported, match="DEFT at alpha"):
        rescale(adapter, -0.5, config=config, base=base, extrapolate=True)


@pytest.mark.parametrize(
    "name", ["relu", "gelu", "silu", "swish", "tanh", "sigmoid", "relu6", "leaky_relu", "mish", "linear"]
)
def test_activations_are_those_of_transformers(name):
    """PEANuT with one hidden value: sigma as transformers computes it."""
    from transformers.activations import ACT2FN

    weight = torch.linspace(-3, 3, 7, dtype=torch.float64).view(1, 7)
    factors = {"A": torch.ones(1, 1), "B": torch.ones(1, 1)}
    found = interpolate_tensor(weight, factors, 1.0, family="peanut", options={"act_fn": name})
    assert torch.allclose(found - weight, ACT2FN[name](weight), rtol=1e-12, atol=1e-14)


def test_what_modules_of_one_name_share_is_theirs_alone(saved):
    """FRoD's V of one name is needed by its modules, and one that has no modules is refused."""
    base, adapter, config = saved(peft.FrodConfig(target_modules=["q_proj", "up"], sparse_rate=0.2))
    assert len(interpolate(base, adapter, 0.5, config=config).touched) == 6
    only = {key: value for key, value in adapter.items() if ".up." not in key}
    with pytest.raises(errors.UnclaimedKey, match=r"frod_V\.up"):
        interpolate(base, only, 0.5, config=config)
    less = {key: value for key, value in adapter.items() if key != "base_model.frod_V.up"}
    with pytest.raises(errors.MissingFactor, match=r"layers\.0\.up\.weight"):
        interpolate(base, less, 0.5, config=config)


def test_a_live_model_spells_what_a_group_shares_with_the_adapters_name(saved):
    """The keys of FRoD's own state dict mean the same as those that it saves."""
    base, adapter, config = saved(peft.FrodConfig(target_modules=["up"], sparse_rate=0.2))
    ends = ("frod_V.up", "frod_s_indices.up", "frod_s_size.up", "frod_lambda_l", "frod_lambda_s_values")
    assert all(key.endswith(ends) for key in adapter)
    live = {f"{key}.default": value for key, value in adapter.items()}
    view, other = (interpolate(base, given, 0.5, config=config) for given in (adapter, live))
    assert all(torch.equal(view[key], other[key]) for key in base)


@pytest.mark.parametrize(
    "path", ["q", "h.0.attn.c_attn", "layer.3.attention.output.dense", "layer.3.output.dense", "0.x"]
)
def test_names_of_groups_are_pefts(path):
    """FRoD's name of a module, for paths of several architectures."""
    from peft.tuners.frod.model import _category_from_key

    from wiseft_core.families import FAMILIES

    group = FAMILIES["frod"].group
    assert group is not None and group(path) == _category_from_key(path)


def test_projections_that_are_not_saved_are_refused(saved):
    """FRoD without its projections is named, with the reason."""
    base, adapter, config = saved(peft.FrodConfig(target_modules=["up"], save_projection=False))
    with pytest.raises(errors.Unsupported, match="weights of all layers") as caught:
        interpolate(base, adapter, 0.5, config=config)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_start_takes_nothing_from_a_saved_copy_or_an_embedding(start):
    """A live model's own weights lack what PEFT took from them, and its embeddings lack nothing: each is its merge."""
    model = toy()
    base = {key: value.clone() for key, value in model.state_dict().items()}
    options = {"r": 3, "lora_alpha": 5, "init_lora_weights": start}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        live = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "up", "emb"], **options))
        with torch.no_grad():
            for value in (value for value in live.parameters() if value.requires_grad):
                value.add_(torch.linspace(-0.3, 0.4, value.numel()).view_as(value))
        saved = peft.get_peft_model_state_dict(live, save_embedding_layers=False)
        own = {key: value.clone() for key, value in live.state_dict().items()}
        config, merged = live.peft_config["default"].to_dict(), live.merge_and_unload().state_dict()
    for adapter in (saved, own):
        for alpha in (0.0, 0.3, 1.0):
            view = interpolate(base, adapter, alpha, config=config)
            for key, before in base.items():
                wanted = before + alpha * (merged[key] - before)
                assert torch.allclose(view[key], wanted, rtol=0, atol=2e-6), (key, alpha)
