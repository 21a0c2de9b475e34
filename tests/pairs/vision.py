"""Pairs of models that see or hear."""

from __future__ import annotations

from pairs.pair import FRESH, SHORTER, Pair, lora, swap

TOWER = swap(("vision_tower.", "vision_tower.vision_model."))
UNMOVED = "the base is merged untouched when PEFT 0.21 loads these names: PEFT is asked under the new ones"
OLD_QWEN = swap(("model.language_model.", "model."), ("model.model.visual.", "model.visual."))
OLD_LLAVA = swap(
    ("model.model.language_model.", "model.language_model.model."),
    ("model.model.vision_tower.", "model.vision_tower.vision_model."),
    ("model.model.multi_modal_projector.", "model.multi_modal_projector."),
)
OLD_TEXT = swap(("^base_model.model.", "base_model.model.text_model."))
SIGHT = ("q_proj", "v_proj", "fc1", "down_proj")

TABLE = [
    Pair("vit", "vit", lora("q_proj", "v_proj", "fc1", "projection", modules_to_save=["classifier"])),
    Pair("vit_loha", "vit", {"r": 4, "alpha": 8, "target_modules": ["k_proj", "fc2"]}, method="LoHa"),
    Pair(
        "vit_old_adapter",
        "vit",
        lora("q_proj", "v_proj"),
        respell=swap(
            (".layers.0.attention.q_proj", ".encoder.layer.0.attention.attention.query"),
            (".layers.1.attention.q_proj", ".encoder.layer.1.attention.attention.query"),
            (".layers.0.attention.v_proj", ".encoder.layer.0.attention.attention.value"),
            (".layers.1.attention.v_proj", ".encoder.layer.1.attention.attention.value"),
        ),
        fault=UNMOVED,
    ),
    Pair("resnet_dora", "resnet", lora("convolution", use_dora=True, modules_to_save=["normalization"])),
    Pair("convnext", "convnext", lora("pwconv1", "pwconv2", modules_to_save=["classifier"])),
    Pair("swin", "swin", lora("q_proj", "v_proj", "fc1", "reduction")),
    Pair("dinov2", "dinov2", lora("q_proj", "o_proj", "fc1")),
    Pair(
        "dinov2_bare_base",
        "dinov2_bare",
        lora("q_proj", "v_proj", modules_to_save=["classifier"]),
        tuned="Dinov2ForImageClassification",
        legal=FRESH | SHORTER,
    ),
    Pair("siglip", "siglip", lora("q_proj", "fc2")),
    Pair("clip_both_towers", "clip", lora("q_proj", "fc1", "text_projection")),
    Pair("clip_twin_towers", "clip_twins", lora("q_proj", "fc1")),
    Pair("clip_vision_of_twins", "clip_twins", lora(target_modules=r"vision_model.*\.(q_proj|fc2)")),
    Pair("clip_text_of_clip", "clip", lora("q_proj", "fc1"), tuned="CLIPTextModel"),
    Pair("clip_text", "clip_text", lora("q_proj", "out_proj")),
    Pair("clip_text_old_base", "clip_text", lora("q_proj", "out_proj"), spell=swap(("^", "text_model."))),
    Pair("clip_text_old_adapter", "clip_text", lora("q_proj", "fc1"), respell=OLD_TEXT, fault=UNMOVED, legal=SHORTER),
    Pair(
        "clip_text_both_old",
        "clip_text",
        lora("q_proj", "fc1"),
        spell=swap(("^", "text_model.")),
        respell=OLD_TEXT,
        fault=UNMOVED,
    ),
    Pair("qwen2_vl", "qwen2_vl", lora("q_proj", "down_proj", "qkv", "attn.proj", "fc1")),
    Pair("qwen2_vl_conv", "qwen2_vl", lora("patch_embed.proj", "o_proj")),
    Pair("qwen2_vl_old_adapter", "qwen2_vl", lora("q_proj", "o_proj", "qkv"), respell=OLD_QWEN, fault=UNMOVED),
    Pair("qwen2_vl_oft", "qwen2_vl", {"target_modules": ["q_proj", "qkv"], "oft_block_size": 8}, method="OFT"),
    Pair("qwen2_5_vl", "qwen2_5_vl", lora("q_proj", "qkv", "gate_proj")),
    Pair("qwen2_5_vl_old_adapter", "qwen2_5_vl", lora("q_proj", "qkv"), respell=OLD_QWEN, fault=UNMOVED),
    Pair("llava", "llava", lora(*SIGHT, "linear_1")),
    Pair("llava_hub_base", "llava", lora(*SIGHT, "linear_1"), spell=TOWER, formats=("original",)),
    Pair("llava_old_adapter", "llava", lora(*SIGHT, "linear_1"), spell=TOWER, respell=OLD_LLAVA, formats=("original",)),
    Pair("gemma3_vlm", "gemma3", lora("q_proj", "k_proj", "down_proj", modules_to_save=["multi_modal_projector"])),
    Pair("gemma3_vlm_old_adapter", "gemma3", lora("q_proj", "o_proj"), respell=OLD_LLAVA),
    Pair("paligemma", "paligemma", lora("q_proj", "fc1", "up_proj")),
    Pair("paligemma_old_adapter", "paligemma", lora("q_proj"), respell=OLD_LLAVA),
    Pair("idefics3", "idefics3", lora("q_proj", "fc1", "modality_projection.proj")),
    Pair("smolvlm_dora", "smolvlm", lora("q_proj", "down_proj", use_dora=True)),
    Pair("whisper", "whisper", lora("q_proj", "v_proj", "fc1", "conv1")),
    Pair(
        "attention_net",
        "attention_net",
        lora("0", "1", "head"),
        fault="PEFT 0.21 applies out_proj's delta twice, in training too",
    ),
    Pair(
        "bare_keys",
        "llava",
        lora("q_proj"),
        respell=swap(("^base_model.model.", "")),
        fault="not PEFT's own spelling: without its prefix",
    ),
]
