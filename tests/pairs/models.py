"""The tiny models: a transformers class and the sizes of its config. Two layers, 32 wide, four heads, few experts.

Square weights (a query of 4 heads of 8) and weights that are not (16 wide keys, 24 and 48 in between) occur side by
side; "_wide" models have heads of 16, so that no attention weight is square.
"""

from __future__ import annotations

from typing import Any

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
TEXT = {**SMALL, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
BERT = {**SMALL, "type_vocab_size": 2, "pad_token_id": 0}
PICTURE = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}
TIED = {"tie_word_embeddings": True}
UNTIED = {"tie_word_embeddings": False}
GPT2 = {"vocab_size": 97, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 1}
SEQ2SEQ = {
    "vocab_size": 97,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
TWIN_TEXT = {**SMALL, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
TWIN_PICTURE = {**PICTURE, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
MROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}}
QWEN_EYE = {"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4}
QWEN_EYE_2_5 = {
    "depth": 2,
    "hidden_size": 16,
    "out_hidden_size": 32,
    "intermediate_size": 24,
    "num_heads": 2,
    "patch_size": 4,
    "fullatt_block_indexes": [1],
}
QWEN_EYE_3 = {
    "depth": 2,
    "hidden_size": 16,
    "out_hidden_size": 32,
    "intermediate_size": 24,
    "num_heads": 2,
    "patch_size": 4,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0],
}
IMAGE = {"image_token_id": 96, "video_token_id": 95, "vision_start_token_id": 94, "vision_end_token_id": 93}
GEMMA = {**TEXT, "head_dim": 8}
EXPERTS = {"moe_intermediate_size": 20, "num_experts": 4, "num_experts_per_tok": 2, "decoder_sparse_step": 1}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", TEXT | UNTIED),
    "llama_tied": ("LlamaForCausalLM", TEXT | TIED),
    "llama_wide": ("LlamaForCausalLM", TEXT | UNTIED | {"head_dim": 16}),
    "llama_bare": ("LlamaModel", TEXT),
    "qwen2": ("Qwen2ForCausalLM", TEXT | UNTIED),
    "qwen2_tied": ("Qwen2ForCausalLM", TEXT | TIED),
    "mistral": ("MistralForCausalLM", TEXT | UNTIED | {"head_dim": 8}),
    "phi3": ("Phi3ForCausalLM", TEXT | UNTIED),
    "gpt2": ("GPT2LMHeadModel", GPT2 | {"eos_token_id": 2}),
    "gpt2_bare": ("GPT2Model", GPT2 | {"eos_token_id": 2}),
    "gpt_neox": ("GPTNeoXForCausalLM", SMALL | UNTIED),
    "opt": ("OPTForCausalLM", {**SMALL, "ffn_dim": 48, "word_embed_proj_dim": 32} | TIED),
    "bloom": ("BloomForCausalLM", {"vocab_size": 97, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "falcon": ("FalconForCausalLM", SMALL),
    "bert_mlm": ("BertForMaskedLM", BERT),
    "bert": ("BertModel", BERT),
    "roberta_mlm": ("RobertaForMaskedLM", BERT | {"pad_token_id": 1}),
    "t5": (
        "T5ForConditionalGeneration",
        {"vocab_size": 97, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4},
    ),
    "vit": ("ViTForImageClassification", {**PICTURE, "hidden_size": 32, "intermediate_size": 48}),
    "deberta": ("DebertaV2ForMaskedLM", BERT | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
    "distilbert": (
        "DistilBertForMaskedLM",
        {"vocab_size": 97, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 64},
    ),
    "nomic_bert": ("NomicBertForMaskedLM", BERT),
    "bart": ("BartForConditionalGeneration", SEQ2SEQ),
    "bigbird_pegasus": ("BigBirdPegasusForConditionalGeneration", SEQ2SEQ),
    "whisper": (
        "WhisperForConditionalGeneration",
        SEQ2SEQ | {"num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 16},
    ),
    "convnext": ("ConvNextForImageClassification", {"num_stages": 2, "depths": [1, 1], "hidden_sizes": [8, 16]}),
    "swin": (
        "SwinForImageClassification",
        {"image_size": 16, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2},
    ),
    "dinov2": ("Dinov2ForImageClassification", PICTURE | {"hidden_size": 32, "mlp_ratio": 2}),
    "dinov2_bare": ("Dinov2Model", PICTURE | {"hidden_size": 32, "mlp_ratio": 2}),
    "siglip": (
        "SiglipModel",
        {"text_config": BERT | {"projection_size": 32}, "vision_config": PICTURE | {"hidden_size": 32}},
    ),
    "clip": ("CLIPModel", {"text_config": TWIN_TEXT, "vision_config": PICTURE, "projection_dim": 24}),
    "clip_twins": ("CLIPModel", {"text_config": TWIN_TEXT, "vision_config": TWIN_PICTURE, "projection_dim": 24}),
    "clip_text": ("CLIPTextModel", TWIN_TEXT),
    "qwen2_vl": ("Qwen2VLForConditionalGeneration", {"text_config": TEXT | MROPE, "vision_config": QWEN_EYE} | IMAGE),
    "qwen2_5_vl": (
        "Qwen2_5_VLForConditionalGeneration",
        {"text_config": TEXT | MROPE, "vision_config": QWEN_EYE_2_5} | IMAGE,
    ),
    "llava": (
        "LlavaForConditionalGeneration",
        {
            "text_config": TEXT | {"model_type": "llama"},
            "vision_config": PICTURE | {"model_type": "clip_vision_model", "projection_dim": 16},
            "image_token_index": 96,
        },
    ),
    "gemma3": (
        "Gemma3ForConditionalGeneration",
        {
            "text_config": GEMMA,
            "vision_config": PICTURE | {"model_type": "siglip_vision_model"},
            "mm_tokens_per_image": 4,
            "image_token_index": 96,
        },
    ),
    "paligemma": (
        "PaliGemmaForConditionalGeneration",
        {
            "text_config": GEMMA | {"model_type": "gemma"},
            "vision_config": PICTURE | {"model_type": "siglip_vision_model", "projection_dim": 32},
            "projection_dim": 32,
            "image_token_index": 96,
        },
    ),
    "idefics3": (
        "Idefics3ForConditionalGeneration",
        {"text_config": TEXT | {"model_type": "llama"}, "vision_config": PICTURE, "scale_factor": 2} | IMAGE,
    ),
    "smolvlm": (
        "SmolVLMForConditionalGeneration",
        {"text_config": TEXT | {"model_type": "llama"}, "vision_config": PICTURE, "scale_factor": 2} | IMAGE,
    ),
    "mixtral": ("MixtralForCausalLM", TEXT | UNTIED | {"intermediate_size": 24, "num_local_experts": 4}),
    "mixtral_square": ("MixtralForCausalLM", TEXT | UNTIED | {"intermediate_size": 32, "num_local_experts": 4}),
    "qwen2_moe": ("Qwen2MoeForCausalLM", TEXT | UNTIED | EXPERTS | {"shared_expert_intermediate_size": 40}),
    "qwen3_moe": ("Qwen3MoeForCausalLM", TEXT | UNTIED | EXPERTS | {"num_experts": 12, "head_dim": 8}),
    "gpt_oss": ("GptOssForCausalLM", TEXT | UNTIED | {"intermediate_size": 32, "num_local_experts": 4, "head_dim": 8}),
    "gpt_oss_wide": (
        "GptOssForCausalLM",
        TEXT | UNTIED | {"intermediate_size": 24, "num_local_experts": 4, "head_dim": 8},
    ),
    "llama4": (
        "Llama4ForCausalLM",
        TEXT
        | UNTIED
        | {
            "intermediate_size": 24,
            "intermediate_size_mlp": 40,
            "num_local_experts": 4,
            "head_dim": 8,
            "interleave_moe_layer_step": 1,
        },
    ),
    "granitemoe": ("GraniteMoeForCausalLM", TEXT | UNTIED | {"intermediate_size": 24, "num_local_experts": 4}),
    "deepseek_v3": (
        "DeepseekV3ForCausalLM",
        TEXT
        | UNTIED
        | {
            "num_key_value_heads": 4,
            "moe_intermediate_size": 16,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "q_lora_rank": 8,
            "kv_lora_rank": 8,
            "qk_nope_head_dim": 4,
            "qk_rope_head_dim": 4,
            "v_head_dim": 8,
        },
    ),
    "olmoe": ("OlmoeForCausalLM", TEXT | UNTIED | {"intermediate_size": 24, "num_experts": 4}),
    "qwen3_vl_moe": (
        "Qwen3VLMoeForConditionalGeneration",
        {"text_config": TEXT | EXPERTS | {"num_experts": 4, "head_dim": 8} | MROPE, "vision_config": QWEN_EYE_3}
        | IMAGE,
    ),
    "attention_net": ("AttentionNet", {}),
    "resnet": (
        "ResNetForImageClassification",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    ),
}


def llava_over(text: str, vision: str) -> dict[str, Any]:
    """A LLaVA whose language model and tower are of other types."""
    return {
        "text_config": {"model_type": text} | MODELS[text][1],
        "vision_config": {"model_type": vision} | PICTURE,
        "image_token_index": 96,
    }


MODELS |= {
    "colpali": (
        "ColPaliForRetrieval",
        {"vlm_config": {"model_type": "paligemma"} | MODELS["paligemma"][1], "embedding_dim": 16},
    ),
    "colqwen2": (
        "ColQwen2ForRetrieval",
        {"vlm_config": {"model_type": "qwen2_vl"} | MODELS["qwen2_vl"][1], "embedding_dim": 16},
    ),
    "vision_encoder_decoder": (
        "VisionEncoderDecoderModel",
        {
            "encoder": {"model_type": "vit"} | MODELS["vit"][1],
            "decoder": {"model_type": "gpt2", "add_cross_attention": True, "is_decoder": True} | MODELS["gpt2"][1],
        },
    ),
    "llava_mixtral": ("LlavaForConditionalGeneration", llava_over("mixtral", "clip_vision_model")),
    "llava_qwen2_moe": ("LlavaForConditionalGeneration", llava_over("qwen2_moe", "siglip_vision_model")),
    "llava_gpt_oss": ("LlavaForConditionalGeneration", llava_over("gpt_oss", "dinov2")),
}
