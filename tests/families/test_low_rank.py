"""What low-rank methods refuse, and what they carry along."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from exact import same_bits

from wiseft_core import errors, interpolate, rescale
from wiseft_core.config import AdapterConfig
from wiseft_core.config_completion import completed

BASE = {"proj.weight": torch.ones(6, 4)}
FACTORS = {"proj.lora_A.weight": torch.ones(2, 4), "proj.lora_B.weight": torch.ones(6, 2)}
PLAIN = {"lora_alpha": 4}


@pytest.mark.parametrize("said", [{}, {"kasa_config": None}, {"kasa_config": False}])
def test_a_diagonal_without_its_config_is_refused(said):
    """KaSA takes a part of the base away, and only its config says that it does: that is never guessed."""
    with pytest.raises(errors.WiseftError, match=r"kasa_config|diag"):
        interpolate(BASE, FACTORS | {"proj.lora_diag": torch.ones(2)}, 0.5, config=PLAIN | said)


def test_kasa_without_its_diagonal_is_refused():
    """The config says that there is one."""
    with pytest.raises(errors.MissingFactor, match="diag"):
        interpolate(BASE, FACTORS, 0.5, config=PLAIN | {"kasa_config": {}})


@pytest.mark.parametrize(("rows", "columns"), [("proj.lora_A.weight", (2, 2)), ("proj.lora_B.weight", (6, 1))])
def test_narrow_factors_need_the_config(rows, columns):
    """Blocks are read as such only where the config says that there are some."""
    narrow = FACTORS | {rows: torch.ones(columns)}
    with pytest.raises(errors.ShapeMismatch):
        interpolate(BASE, narrow, 0.5, config=PLAIN)
    assert interpolate(BASE, narrow, 1.0, config=PLAIN | {"use_bdlora": {"nblocks": 2}})["proj.weight"].sum() == 72


@pytest.mark.parametrize("name", ["use_bdlora", "kasa_config"])
@pytest.mark.parametrize("value", [True, 1, "yes", [2], {"surprise": 1}])
def test_parts_of_a_config_are_read_strictly(name, value):
    """They are objects, of the fields that PEFT 0.21 has."""
    with pytest.raises(errors.ConfigError, match=name):
        AdapterConfig.from_mapping(PLAIN | {name: value})


def test_two_variants_at_once_are_refused():
    """PEFT does not know what they would mean together, nor do we."""
    with pytest.raises(errors.Unsupported, match="dora and bdlora"):
        interpolate(BASE, FACTORS, 0.5, config=PLAIN | {"use_dora": True, "use_bdlora": {"nblocks": 2}})


@pytest.mark.parametrize(
    "extra", ["lora_velora_embed", *(f"lora_monteclora_sampler.{leaf}" for leaf in ("std_prior", "expert_weights"))]
)
def test_what_only_training_reads_is_carried(extra):
    """It changes no weight, and a rescaled adapter has it as it was, so that it can be trained on."""
    key = f"base_model.model.proj.{extra}"
    with_it = {f"base_model.model.{name}": value for name, value in FACTORS.items()} | {key: torch.tensor([3.0, 4.0])}
    view = interpolate(BASE, with_it, 0.5, config=PLAIN)
    assert same_bits(view["proj.weight"], interpolate(BASE, FACTORS, 0.5, config=PLAIN)["proj.weight"])
    assert view.plan.ignored == (key,)
    assert same_bits(rescale(with_it, 0.5, config=PLAIN).tensors[key], with_it[key])


def test_a_changed_config_is_saved_with_its_parts():
    """What was not changed is saved as it was given, objects too."""
    config = AdapterConfig.from_mapping(PLAIN | {"use_bdlora": {"nblocks": 2}})
    saved, _ = completed(replace(config, lora_alpha=5.0), {}, {})
    assert (saved["lora_alpha"], saved["use_bdlora"]) == (5.0, {"nblocks": 2})


@pytest.mark.parametrize("place", [-1, 24])
def test_places_outside_the_weight_are_refused(place):
    """They belong to another base."""
    sparse = {"proj.supertuning_values": torch.ones(2), "proj.supertuning_indices": torch.tensor([3, place])}
    with pytest.raises(errors.ShapeMismatch, match="outside"):
        interpolate(BASE, sparse, 0.5, config={"peft_type": "SUPERTUNING"})["proj.weight"]


def test_values_without_their_places_are_refused():
    """Sizes that are equal have no order, so that which value belongs to which cannot be found again."""
    config = {"peft_type": "SUPERTUNING", "save_precomputed_indices": False}
    with pytest.raises(errors.MissingFactor, match="indices"):
        interpolate(BASE, {"proj.supertuning_values": torch.ones(2)}, 0.5, config=config)


@pytest.mark.parametrize(
    "said",
    [
        {"peft_type": "UNILORA", "save_indices": False},
        {"peft_type": "TINYLORA", "weight_tying": 0.0},
        {"peft_type": "TINYLORA", "weight_tying": 1.0, "save_projection": False},
    ],
)
def test_what_follows_the_order_of_modules_is_refused(said):
    """The order in which a model has its modules stands in no file: the refusal says so."""
    with pytest.raises(errors.Unsupported) as caught:
        AdapterConfig.from_mapping(said)
    assert list(said)[-1] in caught.value.where and "order" in caught.value.got


@pytest.mark.parametrize("index", [-1, 3])
def test_indices_outside_theta_are_refused(index):
    """They would be read from the other end, or not at all."""
    drawn = {"base_model.unilora_theta_d": torch.ones(3)}
    for side, shape in (("A", (2, 4)), ("B", (6, 2))):
        drawn[f"base_model.model.proj.unilora_indices_{side}"] = torch.zeros(shape, dtype=torch.int64)
        drawn[f"base_model.model.proj.unilora_scales_{side}"] = torch.ones(shape)
    config = {"peft_type": "UNILORA", "save_indices": True, "theta_d_length": 3}
    assert interpolate(BASE, drawn, 1.0, config=config)["proj.weight"].sum() == 72
    drawn["base_model.model.proj.unilora_indices_A"][0, 0] = index
    with pytest.raises(errors.ShapeMismatch, match="outside"):
        interpolate(BASE, drawn, 1.0, config=config)["proj.weight"]


@pytest.mark.parametrize(("said", "general"), [(2, 0), (0, 2), (2, 1)])
def test_the_hybrid_rank_is_that_of_the_config(said, general):
    """The scale is read from it: a file without its factors, or with others, is not what the config speaks of."""
    factors = {"proj.gralora_A": torch.ones(2, 2, 4), "proj.gralora_B": torch.ones(2, 4, 3)}
    if general:
        factors["proj.gralora_A_general.weight"] = torch.ones(general, 4)
        factors["proj.gralora_B_general.weight"] = torch.ones(6, general)
    config = {"peft_type": "GRALORA", "alpha": 4, "r": 4, "gralora_k": 2}
    assert interpolate(BASE, factors, 1.0, config=config | {"hybrid_r": general})["proj.weight"].isfinite().all()
    with pytest.raises(errors.ShapeMismatch, match="hybrid"):
        interpolate(BASE, factors, 1.0, config=config | {"hybrid_r": said})["proj.weight"]
