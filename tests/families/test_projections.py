"""What rotations and projections refuse, each with its reason, and what their cases against PEFT do not reach."""

from __future__ import annotations

import copy
import warnings

import peft
import pytest
import torch
from toys import toy

from wiseft_core import errors, interpolate, interpolate_tensor
from wiseft_core.families.waveft import daubechies

BASE = {"proj.weight": torch.eye(8)}


def merged(tensors, **config):
    """W(1) of one weight from saved tensors; values are computed too."""
    prefix = "base_model.model.proj."
    keys = {key if key.startswith("base_model.") else prefix + key: value for key, value in tensors.items()}
    return interpolate(BASE, keys, 1.0, config=config)["proj.weight"]


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"peft_type": "RANDLORA", "randlora_alpha": 7, "r": 3, "save_projection": False}, "bf16 or fp16"),
        ({"peft_type": "PVERA", "save_projection": False}, "16 bits"),
        ({"peft_type": "VERA", "save_projection": False}, "16 bits"),
        ({"peft_type": "WAVEFT", "scaling": 1.0, "random_loc_seed": 7, "wavelet_family": "sym4"}, "filters"),
    ],
)
def test_what_files_do_not_tell_is_refused_with_its_reason(config, reason):
    """Bases that are not in the file, and wavelets whose filters are not known."""
    with pytest.raises(errors.Unsupported, match=reason) as caught:
        merged({}, **config)
    assert ("save it with save_projection=True" in caught.value.hint) == ("save_projection" in config)


def test_randlora_without_its_bases_is_not_complete():
    """Where the config does not say that they were left out, they are missing."""
    trained = {"randlora_lambda": torch.ones(3, 3), "randlora_gamma": torch.ones(3, 8)}
    with pytest.raises(errors.MissingFactor, match="A, B, gamma, lambda"):
        merged(trained, peft_type="RANDLORA", randlora_alpha=7, r=3)


@pytest.mark.parametrize("change", [{"topk": 3}, {"num_vectors": 6}, {"places": 5}, {"places": -1}, {}])
def test_vblora_reads_its_numbers_strictly(change):
    """Another k, another bank, or a place outside of it is refused; the same tensors as they are, are not."""
    config = {"peft_type": "VBLORA", "topk": 2, "num_vectors": 5} | change
    places = torch.full((2, 2, 2), config.pop("places", 4), dtype=torch.int16)
    tensors = {"base_model.vblora_vector_bank": torch.rand(5, 4)}
    for side in "AB":
        tensors[f"vblora_logits_{side}_topk_indices"] = places
        tensors[f"vblora_logits_{side}_topk_weights"] = torch.rand(2, 2, 1)
    if not change:
        assert merged(tensors, **config).shape == (8, 8)
        return
    with pytest.raises(errors.ShapeMismatch, match="places"):
        merged(tensors, **config)


def test_vblora_breaks_ties_as_peft_does():
    """Logits that tie for the last place, as those of bf16 often do, choose the vectors that PEFT chooses."""
    config = peft.VBLoRAConfig(target_modules=["q_proj"], r=4, num_vectors=90, vector_length=4, topk=3)
    model, draw = toy(), torch.Generator().manual_seed(1)
    base = copy.deepcopy(model.state_dict())
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        live = peft.get_peft_model(model, config)
        for value in live.parameters():
            if value.requires_grad:
                size = 3 if value.dim() == 3 else 1000
                value.copy_(torch.randint(-size, size, value.shape, generator=draw) / size)
        given = copy.deepcopy(peft.get_peft_model_state_dict(live))
        wanted = live.merge_and_unload().state_dict()
    view = interpolate(base, given, 1.0, config=config.to_dict())
    assert len(view.touched) == 3
    assert all(torch.allclose(view[key], wanted[key], rtol=1e-5, atol=1e-5) for key in view.touched)


def test_hra_refuses_to_make_dependent_vectors_orthogonal():
    """PEFT starts with pairs of equal vectors, of which apply_GS makes numbers that mean nothing."""
    pairs = {"hra_u": torch.randn(8, 2).repeat_interleave(2, 1)}
    with pytest.raises(errors.NotFinite, match="span of those before"):
        merged(pairs, peft_type="HRA", apply_GS=True)
    assert torch.allclose(merged(pairs, peft_type="HRA"), torch.eye(8), atol=1e-6)


@pytest.mark.parametrize(("variant", "shape"), [(True, (2, 4)), ("mini", (2, 3)), ("mini", (2, 0)), ("bat", (2, 8))])
def test_miss_is_of_the_variant_that_the_config_says(variant, shape):
    """A matrix that does not fit that variant is refused, even where it would fit another one."""
    with pytest.raises(errors.ShapeMismatch, match="miss"):
        merged({"miss_block": torch.ones(shape)}, peft_type="MISS", init_weights=variant)


@pytest.mark.parametrize("shape", [(2, 8, 1, 1), (3, 2, 4, 4), (4, 2, 4, 4), (1, 3, 2, 2)])
def test_boft_rotations_must_pair_their_blocks(shape):
    """Blocks that cannot be halved, or not paired as often as there are rotations, or do not fill the weight."""
    with pytest.raises(errors.ShapeMismatch, match="boft"):
        merged({"boft_R": torch.zeros(shape), "boft_s": torch.ones(8, 1)}, peft_type="BOFT")


def test_boft_rotates():
    """Without scales, lengths of rows stay, and each output comes to depend on every input."""
    trained = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(3))
    tuned = interpolate_tensor(torch.eye(8), {"R": trained, "s": torch.ones(8, 1)}, 1.0, family="boft")
    assert torch.allclose(tuned @ tuned.T, torch.eye(8), atol=1e-6)
    assert (tuned.abs() > 1e-6).all()


@pytest.mark.parametrize("moments", range(1, 11))
def test_daubechies_filters_are_what_defines_them(moments):
    """Orthonormal to its even shifts, with so many vanishing moments, and the most of its energy early."""
    low = torch.tensor(daubechies(moments), dtype=torch.float64)
    steps = torch.arange(2 * moments, dtype=torch.float64) / (2 * moments)
    for shift in range(moments):
        product = (low[: len(low) - 2 * shift] * low[2 * shift :]).sum()
        assert abs(product - int(shift == 0)) < 1e-13
        assert abs((low * (-1) ** torch.arange(2 * moments) * steps**shift).sum()) < 1e-12
    assert low[: moments + 1].square().sum() >= low[moments - 1 :].square().sum() - 1e-12
