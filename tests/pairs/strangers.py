"""The tiny models of the blind set: architectures that nobody looked at while names were made; and all."""

from __future__ import annotations

from typing import Any

from pairs import models
from pairs.models import BERT, EXPERTS, PICTURE, SEQ2SEQ, SMALL, TEXT, TIED, TWIN_PICTURE, TWIN_TEXT, UNTIED

STRANGERS: dict[str, tuple[str, dict[str, Any]]] = {
    "cohere": ("CohereForCausalLM", TEXT | TIED),
    "stablelm": ("StableLmForCausalLM", TEXT | UNTIED),
    "gemma2": ("Gemma2ForCausalLM", TEXT | {"head_dim": 8, "tie_word_embeddings": True}),
    "mamba": ("MambaForCausalLM", {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}),
    "mistral3": (
        "Mistral3ForConditionalGeneration",
        {
            "text_config": TEXT | {"model_type": "mistral", "head_dim": 8},
            "vision_config": PICTURE | {"model_type": "pixtral", "head_dim": 8},
            "image_token_index": 96,
            "spatial_merge_size": 2,
        },
    ),
    "internvl": (
        "InternVLForConditionalGeneration",
        {
            "text_config": TEXT | {"model_type": "qwen2"},
            "vision_config": {**PICTURE, "image_size": [16, 16], "patch_size": [4, 4]},
            "image_token_id": 96,
        },
    ),
    "blip2": (
        "Blip2ForConditionalGeneration",
        {
            "text_config": {**SMALL, "ffn_dim": 48, "word_embed_proj_dim": 32, "model_type": "opt"},
            "vision_config": PICTURE,
            "qformer_config": {**SMALL, "encoder_hidden_size": 16},
            "num_query_tokens": 4,
        },
    ),
    "jamba": (
        "JambaForCausalLM",
        TEXT
        | UNTIED
        | {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "mamba_d_state": 4,
            "mamba_d_conv": 2,
            "mamba_dt_rank": 4,
            "use_mamba_kernels": False,
        },
    ),
    "phimoe": ("PhimoeForCausalLM", TEXT | UNTIED | {"intermediate_size": 24, "num_local_experts": 4}),
    "ernie_moe": (
        "Ernie4_5_MoeForCausalLM",
        TEXT
        | UNTIED
        | {
            "moe_intermediate_size": 20,
            "moe_num_experts": 4,
            "moe_k": 2,
            "moe_num_shared_experts": 1,
            "moe_layer_start_index": 1,
            "moe_layer_end_index": 1,
        },
    ),
    "glm4_moe": (
        "Glm4MoeForCausalLM",
        TEXT
        | UNTIED
        | {
            "moe_intermediate_size": 20,
            "n_routed_experts": 11,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "head_dim": 8,
        },
    ),
    "m2m100": ("M2M100ForConditionalGeneration", SEQ2SEQ),
    "segformer": (
        "SegformerForSemanticSegmentation",
        {
            "num_encoder_blocks": 2,
            "depths": [1, 1],
            "sr_ratios": [2, 1],
            "hidden_sizes": [8, 16],
            "patch_sizes": [3, 3],
            "strides": [2, 2],
            "num_attention_heads": [1, 2],
            "mlp_ratios": [2, 2],
            "decoder_hidden_size": 16,
        },
    ),
    "wav2vec2": (
        "Wav2Vec2ForCTC",
        {
            **SMALL,
            "conv_dim": [8, 8],
            "conv_stride": [2, 2],
            "conv_kernel": [3, 3],
            "num_feat_extract_layers": 2,
            "num_conv_pos_embeddings": 4,
            "num_conv_pos_embedding_groups": 2,
        },
    ),
    "efficientnet": (
        "EfficientNetForImageClassification",
        {
            "image_size": 16,
            "hidden_dim": 32,
            "width_coefficient": 0.25,
            "depth_coefficient": 0.2,
            "in_channels": [32, 16],
            "out_channels": [16, 24],
            "kernel_sizes": [3, 3],
            "strides": [1, 2],
            "num_block_repeats": [1, 1],
            "expand_ratios": [1, 6],
            "depthwise_padding": [],
        },
    ),
    "aria": (
        "AriaForConditionalGeneration",
        {
            "text_config": TEXT
            | {
                "model_type": "aria_text",
                "intermediate_size": 24,
                "moe_num_experts": 4,
                "moe_topk": 2,
                "moe_num_shared_experts": 1,
            },
            "vision_config": PICTURE | {"model_type": "idefics3_vision"},
            "projector_patch_to_query_dict": {16: 4},
            "image_token_index": 96,
        },
    ),
    "beit": ("BeitForImageClassification", PICTURE | {"hidden_size": 32, "num_attention_heads": 4, "vocab_size": 97}),
    "deit": ("DeiTForImageClassification", PICTURE | {"hidden_size": 32}),
    "albert": ("AlbertForMaskedLM", BERT | {"embedding_size": 16}),
    "gptj": (
        "GPTJForCausalLM",
        {
            "vocab_size": 97,
            "n_positions": 64,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "rotary_dim": 4,
            "tie_word_embeddings": False,
        },
    ),
    "starcoder2": ("Starcoder2ForCausalLM", TEXT | TIED),
    "qwen3_next": (
        "Qwen3NextForCausalLM",
        TEXT
        | UNTIED
        | EXPERTS
        | {
            "shared_expert_intermediate_size": 40,
            "head_dim": 8,
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "layer_types": ["linear_attention", "full_attention"],
        },
    ),
    "mllama": (
        "MllamaForConditionalGeneration",
        {
            "text_config": TEXT
            | {"cross_attention_layers": [1], "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 24,
                "num_hidden_layers": 2,
                "num_global_layers": 1,
                "attention_heads": 2,
                "image_size": 16,
                "patch_size": 4,
                "vision_output_dim": 32,
                "intermediate_layers_indices": [0],
                "max_num_tiles": 1,
                "supported_aspect_ratios": [[1, 1]],
            },
            "image_token_index": 96,
        },
    ),
    "llava_onevision": (
        "LlavaOnevisionForConditionalGeneration",
        {
            "text_config": TEXT | {"model_type": "qwen2"},
            "vision_config": PICTURE | {"model_type": "siglip_vision_model"},
            "image_token_index": 96,
            "video_token_index": 95,
        },
    ),
    "qwen2_audio": (
        "Qwen2AudioForConditionalGeneration",
        {
            "text_config": TEXT | {"model_type": "qwen2"},
            "audio_config": {
                "model_type": "qwen2_audio_encoder",
                "d_model": 16,
                "encoder_layers": 2,
                "encoder_attention_heads": 2,
                "encoder_ffn_dim": 24,
                "num_mel_bins": 8,
                "max_source_positions": 16,
            },
            "audio_token_index": 96,
        },
    ),
    "lfm2_moe": (
        "Lfm2MoeForCausalLM",
        TEXT
        | TIED
        | {
            "moe_intermediate_size": 20,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "num_dense_layers": 1,
            "layer_types": ["conv", "full_attention"],
        },
    ),
    "flex_olmo": (
        "FlexOlmoForCausalLM",
        TEXT | UNTIED | {"intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2},
    ),
    "owlvit": ("OwlViTModel", {"text_config": TWIN_TEXT, "vision_config": TWIN_PICTURE, "projection_dim": 24}),
    "jetmoe": (
        "JetMoeForCausalLM",
        {
            "vocab_size": 97,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_key_value_heads": 2,
            "kv_channels": 8,
            "intermediate_size": 24,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "tie_word_embeddings": True,
        },
    ),
    "xlm_roberta_bare": ("XLMRobertaModel", BERT | {"pad_token_id": 1}),
    "minimax": (
        "MiniMaxForCausalLM",
        TEXT
        | UNTIED
        | {
            "intermediate_size": 24,
            "num_local_experts": 4,
            "head_dim": 8,
            "block_size": 8,
            "layer_types": ["full_attention", "linear_attention"],
        },
    ),
    "modernbert": (
        "ModernBertForMaskedLM",
        BERT
        | {
            "intermediate_size": 48,
            "global_attn_every_n_layers": 2,
            "cls_token_id": 1,
            "sep_token_id": 2,
            "eos_token_id": 2,
            "bos_token_id": 1,
        },
    ),
}
MODELS = models.MODELS | STRANGERS
"""All of them."""
