"""Kohya's and LyCORIS's keys, word for word, and what is refused with its reason."""

from __future__ import annotations

import pytest

from wiseft_core.errors import AmbiguousName, MissingFactor, UnclaimedKey, Unsupported
from wiseft_core.naming.schemes import detect, translate

BASE = [
    "unet.conv_in.weight",
    "unet.mid.to_q.weight",
    "text_encoder.text_model.fc1.weight",
    "text_encoder_2.fc1.weight",
]


def keys(name, *tails):
    """The keys of one module."""
    return [f"{name}.{tail}" for tail in tails or ("lora_down.weight", "lora_up.weight", "alpha")]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("lora_unet_conv_in", "unet.conv_in"),
        ("lora_unet_mid_to_q", "unet.mid.to_q"),
        ("lora_transformer_conv_in", "unet.conv_in"),
        ("lora_te_text_model_fc1", "text_encoder.text_model.fc1"),
        ("lora_te1_text_model_fc1", "text_encoder.text_model.fc1"),
        ("lora_te1_fc1", "text_encoder.text_model.fc1"),
        ("lora_te2_text_model_fc1", "text_encoder_2.fc1"),
    ],
)
def test_a_name_is_looked_up_in_the_base(name, path):
    """Prefixes choose the component, underscores are those of the base; transformers 5 drops `text_model.`."""
    found = translate(keys(name), BASE)
    assert {key: factor.key for key, factor in found.factors.items()} == {
        f"base_model.model.{path}.lora_A.weight": f"{name}.lora_down.weight",
        f"base_model.model.{path}.lora_B.weight": f"{name}.lora_up.weight",
    }
    assert found.modules[path].keys["alpha"] == f"{name}.alpha"
    assert (found.scheme, found.method) == ("kohya", "LORA")


@pytest.mark.parametrize(
    ("method", "tails", "expected"),
    [
        (
            "LOHA",
            ["hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"],
            ["hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"],
        ),
        ("LOHA", ["hada_t1", "hada_t2", "alpha"], ["hada_t1", "hada_t2"]),
        ("LOKR", ["lokr_w1", "lokr_w2_a", "lokr_w2_b", "alpha"], ["lokr_w1", "lokr_w2_a", "lokr_w2_b"]),
        ("LORA", ["lora_down.weight", "dora_scale"], ["lora_A.weight", "lora_magnitude_vector"]),
    ],
)
def test_lycoris_names_are_pefts_with_other_paths(method, tails, expected):
    """LoHa's and LoKr's factors keep their names, a `dora_scale` is PEFT's magnitude."""
    found = translate(keys("lora_unet_conv_in", *tails), BASE)
    assert found.method == method
    assert list(found.factors) == [f"base_model.model.unet.conv_in.{tail}" for tail in expected]


@pytest.mark.parametrize(
    ("tail", "why"),
    [
        ("lora_mid.weight", "Tucker"),
        ("diff", "whole difference"),
        ("diff_b", "whole difference"),
        ("w_norm", "norm"),
        ("a1.weight", "GLoRA"),
        ("b2.weight", "GLoRA"),
        ("on_input", "IA3"),
        ("oft_blocks", "OFT"),
        ("scalar", "folds"),
        ("attn1.to_q.lora_magnitude_vector", "misspells"),
        ("who_knows", "not known"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(tail, why):
    """The reason is said, whatever else is in the file."""
    with pytest.raises(Unsupported, match=why):
        translate([*keys("lora_unet_conv_in"), f"lora_unet_mid_to_q.{tail}"], BASE)


def test_bundled_embeddings_methods_mixed_and_decomposed_loha_are_refused():
    """One method in a file, and nothing that is no change of a weight."""
    with pytest.raises(Unsupported, match="bundled"):
        translate([*keys("lora_unet_conv_in"), "bundle_emb.cat.string_to_param.*"], BASE)
    with pytest.raises(Unsupported, match="LOHA and LORA"):
        translate([*keys("lora_unet_conv_in"), *keys("lora_unet_mid_to_q", "hada_w1_a")], BASE)
    with pytest.raises(Unsupported, match="decomposed"):
        translate(keys("lora_unet_conv_in", "hada_w1_a", "dora_scale"), BASE)


def test_collisions_are_refused():
    """`a_b.c` and `a.b_c` are one name with underscores: neither is taken."""
    base = ["unet.a_b.c.weight", "unet.a.b_c.weight", "text_encoder.x.weight"]
    with pytest.raises(AmbiguousName, match="2 tensors"):
        translate(keys("lora_unet_a_b_c"), base)


def test_two_names_of_one_module_are_refused():
    """`lora_te_` and `lora_te1_` mean the same encoder."""
    with pytest.raises(AmbiguousName, match="second key"):
        translate([*keys("lora_te_text_model_fc1"), *keys("lora_te1_text_model_fc1")], BASE)
    with pytest.raises(AmbiguousName, match="second key"):
        translate([*keys("lora_te1_fc1"), *keys("lora_te1_text_model_fc1")], BASE)


def test_an_alpha_without_factors_is_refused():
    """It is no tensor that means nothing: its factors were lost."""
    with pytest.raises(MissingFactor, match="alpha"):
        translate([*keys("lora_unet_conv_in"), "lora_unet_mid_to_q.alpha"], BASE)


def test_components():
    """Of a base that is one component: the adapter's only one, or the one that is asked for."""
    both = [*keys("lora_unet_conv_in"), *keys("lora_te1_fc1")]
    assert list(translate(keys("lora_unet_conv_in"), ["conv_in.weight"]).modules) == ["conv_in"]
    with pytest.raises(UnclaimedKey, match="several components"):
        translate(both, ["conv_in.weight"])
    assert list(translate(both, ["conv_in.weight"], "unet").modules) == ["conv_in"]
    assert list(translate(both, ["conv_in.weight"], "transformer").modules) == ["conv_in"]
    assert list(translate(both, ["text_model.fc1.weight"], "text_encoder").modules) == ["text_model.fc1"]
    assert list(translate(both, BASE, "unet").modules) == ["unet.conv_in"]
    with pytest.raises(UnclaimedKey, match="nothing for it"):
        translate(both, ["fc1.weight"], "text_encoder_2")
    with pytest.raises(UnclaimedKey, match="no text_encoder"):
        translate(both, ["unet.conv_in.weight"])


def test_t5_is_the_third_encoder_of_sd3_and_the_second_of_flux():
    """sd-scripts calls it te3 in both."""
    t5 = "encoder.block.0.layer.0.SelfAttention.q"
    name = "lora_te3_encoder_block_0_layer_0_SelfAttention_q"
    both = ["transformer.x.weight", "text_encoder.x.weight", "text_encoder_2.x.weight"]
    assert list(translate(keys(name), [*both, f"text_encoder_3.{t5}.weight"]).modules) == [f"text_encoder_3.{t5}"]
    assert list(translate(keys(name), [*both, f"text_encoder_2.{t5}.weight"]).modules) == [f"text_encoder_2.{t5}"]


def test_detection():
    """Kohya's names are certain; mixed with another spelling they are refused, and PEFT's are left alone."""
    assert detect(keys("lora_unet_conv_in")) == "kohya"
    assert detect(["base_model.model.conv_in.lora_A.weight"]) is None
    assert detect(["conv_in.weight", "conv_in.bias"]) is None
    with pytest.raises(AmbiguousName, match="kohya"):
        detect([*keys("lora_unet_conv_in"), "unet.conv_in.lora.down.weight"])
    with pytest.raises(AmbiguousName, match="not kohya's"):
        translate([*keys("lora_unet_conv_in"), "base_model.model.conv_in.lora_A.weight"], BASE)


def test_a_module_that_the_base_lacks_is_shown_with_its_neighbours():
    """The nearest names are of the same component."""
    with pytest.raises(UnclaimedKey, match="mid_to_q"):
        translate(keys("lora_unet_mid_to_qq"), BASE)
