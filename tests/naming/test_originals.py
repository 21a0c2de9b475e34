"""The original layouts of UNets against diffusers' own converter, module by module."""

from __future__ import annotations

import pytest
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

from wiseft_core.naming.originals import in_diffusers, layers_per_block
from wiseft_core.naming.words import flat

RESNET = ["in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3", "skip_connection"]
TRANSFORMER = [
    "norm", "proj_in", "proj_out", "transformer_blocks.0.norm1", "transformer_blocks.0.attn1.to_q",
    "transformer_blocks.0.attn1.to_out.0", "transformer_blocks.1.attn2.to_k", "transformer_blocks.0.ff.net.0.proj",
    "transformer_blocks.0.ff.net.2",
]  # fmt: skip
MODELS = {
    "sd1": (2, [True, True, True, False], {}),
    "sdxl": (2, [False, True, True], {"addition_embed_type": "text_time"}),
    "refiner": (2, [False, True, True, False], {"addition_embed_type": "text_time"}),
    "unclip": (2, [True, True, True, False], {"class_embed_type": "projection"}),
    "shallow": (1, [True, False], {}),
    "deep": (3, [False, True], {}),
    "one": (2, [True], {}),
}
"""Layers to a block, which blocks have attention, and what else there is: UNets that were published, and others."""


def original(layers, attended, extra):
    """The modules of an original UNet, counted through as that code builds them."""
    found = ["time_embed.0", "time_embed.2", "input_blocks.0.0", "out.0", "out.2"]
    found += ["label_emb.0.0", "label_emb.0.2"] if extra else []
    number = 1
    for block, attention in enumerate(attended):
        for _ in range(layers):
            found += [f"input_blocks.{number}.0.{part}" for part in RESNET]
            found += [f"input_blocks.{number}.1.{part}" for part in TRANSFORMER if attention]
            number += 1
        if block != len(attended) - 1:
            found.append(f"input_blocks.{number}.0.op")
            number += 1
    found += [f"middle_block.{at}.{part}" for at in (0, 2) for part in RESNET]
    found += [f"middle_block.1.{part}" for part in TRANSFORMER]
    number = 0
    for block, attention in enumerate(reversed(attended)):
        for layer in range(layers + 1):
            found += [f"output_blocks.{number}.0.{part}" for part in RESNET]
            found += [f"output_blocks.{number}.1.{part}" for part in TRANSFORMER if attention]
            if layer == layers and block != len(attended) - 1:
                found.append(f"output_blocks.{number}.{2 if attention else 1}.conv")
            number += 1
    return found


@pytest.mark.parametrize("name", MODELS)
def test_every_module_of_a_unet_is_where_diffusers_puts_it(name):
    """Names are values of a checkpoint here, so that what diffusers' converter makes of them shows where each went."""
    layers, attended, extra = MODELS[name]
    modules = original(layers, attended, extra)
    tensors = [f"{module}.{leaf}" for module in modules for leaf in ("weight", "bias")]
    checkpoint = {f"model.diffusion_model.{tensor}": tensor for tensor in tensors}
    converted = convert_ldm_unet_checkpoint(checkpoint, {"layers_per_block": layers, **extra})
    wanted = {
        old.removesuffix(".weight"): flat(new.removesuffix(".weight"))
        for new, old in converted.items()
        if new.endswith(".weight")
    }
    assert wanted.keys() == set(modules)
    assert layers_per_block(map(flat, tensors)) == layers
    assert layers_per_block(map(flat, converted)) == layers
    for module in modules:
        spots = [spot.module for spot in in_diffusers(flat(module), layers)]
        assert wanted[module] in spots
        assert len(spots) == (2 if module.startswith("label_emb") else 1)


def test_blocks_of_different_depths_tell_nothing():
    """Then the numbers of the original blocks are not known, and no name is taken for another."""
    uneven = [f"down_blocks.{block}.resnets.{layer}.conv1" for block in range(3) for layer in range(2 - block // 2)]
    assert layers_per_block(map(flat, uneven)) == 0
    assert layers_per_block([f"input_blocks_{number}_0_op" for number in (3, 7)]) == 0
    assert [spot.module for spot in in_diffusers("input_blocks_1_0_in_layers_2", 0)] == ["input_blocks_1_0_in_layers_2"]


def test_a_name_of_diffusers_stays():
    """Only original names are changed; a text encoder of transformers 5 lacks `text_model.`."""
    for name in (
        "down_blocks_0_resnets_0_conv1",
        "conv_in",
        "transformer_blocks_0_attn_to_q",
        "encoder_layers_0_mlp_fc1",
    ):
        assert [spot.module for spot in in_diffusers(name, 2)] == [name]
    assert [spot.module for spot in in_diffusers("text_model_encoder_layers_0_mlp_fc1", 0)] == [
        "encoder_layers_0_mlp_fc1"
    ]
