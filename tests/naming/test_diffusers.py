"""Diffusers' keys, word for word; what may be a language model's own names is left to PEFT's reading."""

from __future__ import annotations

import pytest

from wiseft_core.errors import AmbiguousName, UnclaimedKey
from wiseft_core.naming.diffusers import parse
from wiseft_core.naming.schemes import detect, translate

BASE = ["unet.attn1.to_q.weight", "unet.attn1.to_out.0.weight", "text_encoder.self_attn.q_proj.weight", "vae.x.weight"]


@pytest.mark.parametrize(
    ("key", "component", "module", "role"),
    [
        ("unet.a.to_q.lora_A.weight", "unet", "a.to_q", "A"),
        ("transformer.a.to_q.lora_B.weight", "unet", "a.to_q", "B"),
        ("transformer.a.to_q.lora_B.bias", "unet", "a.to_q", "bias"),
        ("diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight", "unet", "double_blocks.0.img_attn.qkv", "A"),
        ("unet.a.to_q.lora_magnitude_vector", "unet", "a.to_q", "magnitude"),
        ("unet.a.to_q.lora_magnitude_vector.weight", "unet", "a.to_q", "magnitude"),
        ("unet.a.to_q.lora.up.weight", "unet", "a.to_q", "B"),
        ("unet.a.processor.to_out_lora.down.weight", "unet", "a.to_out.0", "A"),
        ("a.processor.to_k_lora.up.weight", "", "a.to_k", "B"),
        ("unet.a.processor.add_k_proj_lora.up.weight", "unet", "a.add_k_proj", "B"),
        ("text_encoder_2.a.self_attn.to_out_lora.down.weight", "text_encoder_2", "a.self_attn.out_proj", "A"),
        ("text_encoder.a.mlp.fc1.lora_linear_layer.up.weight", "text_encoder", "a.mlp.fc1", "B"),
        ("transformer.a.lora_down.weight", "unet", "a", "A"),
        ("transformer.a.alpha", "unet", "a", "alpha"),
    ],
)
def test_keys(key, component, module, role):
    """Every form that diffusers has written, and those that it reads."""
    said = parse(key)
    assert said is not None
    assert (said.component, said.module, said.role) == (component, module, role)


@pytest.mark.parametrize(
    "keys",
    [
        ["base_model.model.unet.a.lora_A.weight"],
        ["transformer.h.0.attn.c_attn.lora_A.weight", "transformer.h.0.attn.c_attn.lora_B.weight"],
        ["unet.a.lora_A.default.weight"],
        ["unet.a.weight", "text_encoder.b.weight"],
        ["unet.a.weight", "unet.snake.alpha"],
        ["model.layers.0.q_proj.lora_A.weight"],
        [],
    ],
)
def test_what_may_be_pefts_stays_pefts(keys):
    """GPT-2 lies in a module called transformer too: there lora_alpha is never guessed."""
    assert detect(keys) is None


@pytest.mark.parametrize(
    "keys",
    [
        ["unet.a.lora_A.weight"],
        ["transformer.transformer_blocks.0.attn.to_q.lora_A.weight"],
        ["text_encoder.a.lora_A.weight", "transformer.x.lora_A.weight"],
        ["a.processor.to_q_lora.down.weight"],
        ["a.to_q.lora.up.weight"],
    ],
)
def test_what_is_diffusers_alone_is_known(keys):
    """The names of components, or the old ends of keys, are enough."""
    assert detect(keys) == "diffusers"


def test_translation_and_refusals():
    """Every key has its module, or the file is refused."""
    keys = ["unet.attn1.processor.to_out_lora.down.weight", "text_encoder.self_attn.q_proj.lora_A.weight"]
    assert list(translate(keys, BASE).modules) == ["unet.attn1.to_out.0", "text_encoder.self_attn.q_proj"]
    with pytest.raises(UnclaimedKey):
        translate(["unet.attn2.to_q.lora.down.weight"], BASE)
    with pytest.raises(AmbiguousName, match="not diffusers's"):
        translate(["unet.attn1.to_q.lora.down.weight", "unet.attn1.to_q.weight"], BASE)
    with pytest.raises(AmbiguousName, match="second key"):
        translate(["unet.attn1.to_q.lora.down.weight", "unet.attn1.to_q.lora_A.weight"], BASE)
