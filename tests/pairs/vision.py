"""Pairs of models that see or hear."""

from __future__ import annotations

from pairs.experts import MIXTRAL, fused, per_expert
from pairs.pair import FRESH, RULED, SHORTER, Pair, lora, swap

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

OF_TEXT_MODEL = swap(("model.model.language_model.", "model.model."))
ONLY_TEXT = "the adapter is of the language model alone: PEFT is asked under the names of the whole"

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
    Pair("siglip", "siglip", lora("q_proj", "fc2"), legal=RULED),
    Pair("clip_both_towers", "clip", lora("q_proj", "fc1", "text_projection"), legal=RULED),
    Pair("clip_twin_towers", "clip_twins", lora("q_proj", "fc1"), legal=RULED),
    Pair("clip_vision_of_twins", "clip_twins", lora(target_modules=r"vision_model.*\.(q_proj|fc2)"), legal=RULED),
    Pair("clip_text_of_clip", "clip", lora("q_proj", "fc1"), tuned="CLIPTextModel"),
    Pair("clip_text", "clip_text", lora("q_proj", "out_proj")),
    Pair("clip_text_old_base", "clip_text", lora("q_proj", "out_proj"), spell=swap(("^", "text_model."))),
    Pair("clip_text_old_adapter", "clip_text", lora("q_proj", "fc1"), respell=OLD_TEXT, fault=UNMOVED, legal=RULED),
    Pair(
        "clip_text_both_old",
        "clip_text",
        lora("q_proj", "fc1"),
        spell=swap(("^", "text_model.")),
        respell=OLD_TEXT,
        fault=UNMOVED,
        legal=RULED,
    ),
    Pair("qwen2_vl", "qwen2_vl", lora("q_proj", "down_proj", "qkv", "attn.proj", "fc1"), legal=RULED),
    Pair("qwen2_vl_conv", "qwen2_vl", lora("patch_embed.proj", "o_proj"), legal=RULED),
    Pair(
        "qwen2_vl_old_adapter",
        "qwen2_vl",
        lora("q_proj", "o_proj", "qkv"),
        respell=OLD_QWEN,
        fault=UNMOVED,
        legal=RULED,
    ),
    Pair(
        "qwen2_vl_oft",
        "qwen2_vl",
        {"target_modules": ["q_proj", "qkv"], "oft_block_size": 8},
        method="OFT",
        legal=RULED,
    ),
    Pair("qwen2_5_vl", "qwen2_5_vl", lora("q_proj", "qkv", "gate_proj"), legal=RULED),
    Pair("qwen2_5_vl_old_adapter", "qwen2_5_vl", lora("q_proj", "qkv"), respell=OLD_QWEN, fault=UNMOVED, legal=RULED),
    Pair("llava", "llava", lora(*SIGHT, "linear_1"), legal=RULED),
    Pair("llava_hub_base", "llava", lora(*SIGHT, "linear_1"), spell=TOWER, formats=("original",), legal=RULED),
    Pair(
        "llava_old_adapter",
        "llava",
        lora(*SIGHT, "linear_1"),
        spell=TOWER,
        respell=OLD_LLAVA,
        formats=("original",),
        legal=RULED,
    ),
    Pair(
        "gemma3_vlm",
        "gemma3",
        lora("q_proj", "k_proj", "down_proj", modules_to_save=["multi_modal_projector"]),
        legal=RULED,
    ),
    Pair("gemma3_vlm_old_adapter", "gemma3", lora("q_proj", "o_proj"), respell=OLD_LLAVA, legal=RULED),
    Pair("paligemma", "paligemma", lora("q_proj", "fc1", "up_proj"), legal=RULED),
    Pair("paligemma_old_adapter", "paligemma", lora("q_proj"), respell=OLD_LLAVA, legal=RULED),
    Pair(
        "llava_text_only_adapter",
        "llava",
        lora(target_modules=r".*language_model.*\.(q_proj|up_proj)"),
        respell=OF_TEXT_MODEL,
        fault=ONLY_TEXT,
        formats=("original",),
    ),
    Pair(
        "qwen2_vl_old_saved",
        "qwen2_vl",
        lora("q_proj", modules_to_save=["merger", "norm"]),
        respell=OLD_QWEN,
        fault=UNMOVED,
        legal=RULED,
    ),
    Pair(
        "gemma3_vlm_old_saved",
        "gemma3",
        lora("o_proj", modules_to_save=["multi_modal_projector"]),
        respell=OLD_LLAVA,
        fault=UNMOVED,
        legal=RULED | {"wrong base": "a Llama has every o_proj, and nothing that says a projector is no new head"},
    ),
    Pair("colpali", "colpali", lora("q_proj", "fc1", "embedding_proj_layer"), legal=RULED),
    Pair("colqwen2", "colqwen2", lora("o_proj", "qkv", "embedding_proj_layer")),
    Pair("vision_encoder_decoder", "vision_encoder_decoder", lora("q_proj", "c_attn", "c_proj", fan_in_fan_out=True)),
    Pair("decoder_save_head", "vision_encoder_decoder", lora("q_proj", modules_to_save=["lm_head"])),
    Pair(
        "siglip_classifier",
        "siglip",
        lora("q_proj", "fc1", modules_to_save=["classifier"]),
        tuned="SiglipForImageClassification",
        legal=RULED | FRESH,
    ),
    Pair("llava_mixtral", "llava_mixtral", fused("mlp.experts"), legal=RULED),
    per_expert(
        "llava_mixtral_v4",
        "llava_mixtral",
        "block_sparse_moe.experts",
        MIXTRAL,
        "layers.0.self_attn.k_proj",
        legal=RULED,
    ),
    Pair("llava_qwen2_moe", "llava_qwen2_moe", fused("mlp.experts", "q_proj", "fc2"), legal=RULED),
    Pair("llava_gpt_oss", "llava_gpt_oss", fused("mlp.experts", "q_proj"), legal=RULED),
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
        "attention_net_bias",
        "attention_net",
        lora("0", "1", bias="lora_only"),
        fault="PEFT 0.21 applies out_proj's delta twice, in training too",
    ),
    Pair(
        "attention_net_patterns",
        "attention_net",
        lora("0", "1", "head", rank_pattern={"layers.0": 2}, alpha_pattern={"1": 3}),
    ),
    Pair("attention_net_parameter", "attention_net", lora("head", target_parameters=["0.in_proj_weight"])),
    Pair(
        "bare_keys",
        "llava",
        lora("q_proj"),
        respell=swap(("^base_model.model.", "")),
        fault="not PEFT's own spelling: without its prefix",
        legal=RULED,
    ),
]
