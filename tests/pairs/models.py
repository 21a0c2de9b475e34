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
    "resnet": (
        "ResNetForImageClassification",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    ),
}
