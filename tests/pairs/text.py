"""Pairs of language models: Llama in all its options, its kin, GPT, BERT and T5."""

from __future__ import annotations

from pairs import formulas
from pairs.pair import FRESH, SHORTER, Pair, lora, swap

GAMMA = swap(("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"))
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
NORMED = ("dense.weight", "dense.bias", "LayerNorm.weight", "LayerNorm.bias")
BERT_HEAD = frozenset(
    f"cls.predictions.{name}" for name in ("bias", "decoder.bias", *(f"transform.{name}" for name in NORMED))
)
TIED_MERGE = "PEFT adds the delta to the tensor that embedding and head share"

LLAMA = [
    Pair("llama", "llama", lora(*ATTENTION, "down_proj")),
    Pair("llama_wide", "llama_wide", lora("q_proj", "o_proj")),
    Pair("llama_all_linear", "llama", lora(target_modules="all-linear")),
    Pair("llama_rslora", "llama", lora("q_proj", "v_proj", use_rslora=True)),
    Pair(
        "llama_patterns",
        "llama",
        lora("q_proj", "up_proj", rank_pattern={"layers.1.self_attn.q_proj": 2}, alpha_pattern={"up_proj": 3}),
    ),
    Pair("llama_dora", "llama", lora(*ATTENTION, "down_proj", use_dora=True)),
    Pair("llama_dora_rslora_embed", "llama", lora("q_proj", "embed_tokens", use_dora=True, use_rslora=True)),
    Pair("llama_embed", "llama", lora("q_proj", "embed_tokens")),
    Pair("llama_head", "llama", lora("v_proj", "lm_head")),
    Pair("llama_pissa_head", "llama", lora("v_proj", "lm_head", init_lora_weights="pissa")),
    Pair("llama_olora_head", "llama", lora("v_proj", "lm_head", init_lora_weights="olora")),
    Pair("llama_pissa_embed", "llama", lora("v_proj", "embed_tokens", init_lora_weights="pissa")),
    Pair("llama_olora_embed", "llama", lora("v_proj", "embed_tokens", init_lora_weights="olora")),
    Pair("llama_tied_embed", "llama_tied", lora("embed_tokens", "q_proj"), oracle=formulas.untied, fault=TIED_MERGE),
    Pair("llama_tied_embed_share", "llama_tied", lora("embed_tokens", "q_proj"), tied="share"),
    Pair("llama_tied_head", "llama_tied", lora("lm_head", "v_proj"), oracle=formulas.untied, fault=TIED_MERGE),
    Pair(
        "llama_tied_pissa_head",
        "llama_tied",
        lora("lm_head", "v_proj", init_lora_weights="pissa"),
        oracle=formulas.untied,
        fault=TIED_MERGE,
    ),
    Pair("llama_tied_head_share", "llama_tied", lora("lm_head", "v_proj"), tied="share"),
    Pair("llama_tied_both", "llama_tied", lora("lm_head", "embed_tokens"), oracle=formulas.untied, fault=TIED_MERGE),
    Pair("llama_tied_both_share", "llama_tied", lora("lm_head", "embed_tokens"), tied="share"),
    Pair(
        "llama_ensure_tying",
        "llama_tied",
        lora("embed_tokens", "q_proj", ensure_weight_tying=True),
        oracle=formulas.once,
        fault="PEFT adds the one delta twice",
    ),
    Pair("llama_tied_save_embed", "llama_tied", lora("q_proj", modules_to_save=["embed_tokens"])),
    Pair("llama_tied_save_head", "llama_tied", lora("q_proj", modules_to_save=["lm_head"])),
    Pair("llama_tied_save_both", "llama_tied", lora("q_proj", modules_to_save=["embed_tokens", "lm_head"])),
    Pair(
        "llama_ensure_tying_save",
        "llama_tied",
        lora("q_proj", modules_to_save=["embed_tokens"], ensure_weight_tying=True),
    ),
    Pair("llama_tokens", "llama", lora("q_proj", trainable_token_indices={"embed_tokens": [90, 3, 41]})),
    Pair("llama_tokens_tied", "llama_tied", lora("q_proj", trainable_token_indices=[90, 3, 41])),
    Pair("llama_save_norm", "llama", lora("q_proj", modules_to_save=["norm", "lm_head"])),
    Pair("llama_resized", "llama", lora("q_proj", "v_proj"), vocabulary=105),
    Pair("llama_resized_tied", "llama_tied", lora("q_proj", "v_proj"), vocabulary=105),
    Pair("llama_resized_embed", "llama", lora("q_proj", "embed_tokens", "lm_head"), vocabulary=105),
    Pair("llama_resized_tokens", "llama", lora("q_proj", trainable_token_indices=[100, 98, 3]), vocabulary=105),
    Pair(
        "llama_resized_tokens_tied", "llama_tied", lora("q_proj", trainable_token_indices=[97, 98, 3]), vocabulary=105
    ),
    Pair(
        "llama_seqcls",
        "llama",
        lora("q_proj", task_type="SEQ_CLS"),
        tuned="LlamaForSequenceClassification",
        legal=FRESH,
    ),
    Pair(
        "llama_bare_base",
        "llama_bare",
        lora("q_proj", "up_proj"),
        tuned="LlamaForSequenceClassification",
        absent=frozenset({"score.weight"}),
        legal=SHORTER,
    ),
    Pair(
        "llama_replicated",
        "llama",
        lora("q_proj", "down_proj", layer_replication=[[0, 2], [1, 2]]),
        oracle=formulas.replicated,
        origin=swap(("model.layers.2.", "model.layers.1.")),
        fault="PEFT adds the deltas of all replicas to the one tensor that they share",
    ),
    Pair("llama_bare_adapter", "llama", lora("q_proj", "up_proj"), tuned="LlamaModel"),
]
KIN = [
    Pair("qwen2_bias_all", "qwen2", lora("q_proj", "o_proj", bias="all")),
    Pair(
        "qwen2_lora_bias",
        "qwen2",
        lora("q_proj", "v_proj", lora_bias=True),
        legal={"drop/lora_B.bias": "what is not there adds nothing"},
    ),
    Pair("qwen2_tokens_tied", "qwen2_tied", lora("q_proj", trainable_token_indices=[5, 96])),
    Pair("mistral", "mistral", lora(*ATTENTION)),
    Pair("phi3_fused", "phi3", lora("qkv_proj", "gate_up_proj", "o_proj")),
    Pair("gpt2", "gpt2", lora("c_attn", "c_proj", "c_fc", fan_in_fan_out=True)),
    Pair("gpt2_false_flag", "gpt2", lora("c_attn", "c_proj")),
    Pair(
        "gpt2_bare_base_dora",
        "gpt2_bare",
        lora("c_attn", "attn.c_proj", use_dora=True, fan_in_fan_out=True),
        tuned="GPT2LMHeadModel",
        legal=SHORTER,
    ),
    Pair("gpt_neox_head", "gpt_neox", lora("query_key_value", "dense", "lm_head")),
    Pair("opt", "opt", lora("q_proj", "v_proj", "fc1")),
    Pair("bloom", "bloom", lora("query_key_value", "dense_h_to_4h")),
    Pair("falcon", "falcon", lora("query_key_value", "dense")),
]
ENCODERS = [
    Pair("bert_save_embedding", "bert_mlm", lora("query", modules_to_save=["word_embeddings"])),
    Pair(
        "bert_seqcls_legacy",
        "bert_mlm",
        lora("query", "value", bias="all", task_type="SEQ_CLS"),
        tuned="BertForSequenceClassification",
        spell=GAMMA,
        absent=frozenset({"bert.pooler.dense.weight"}),
        legal=FRESH,
    ),
    Pair(
        "roberta_tokens_cls",
        "roberta_mlm",
        lora("query", "key", task_type="TOKEN_CLS"),
        tuned="RobertaForTokenClassification",
        legal=FRESH,
    ),
    Pair("bert_vera", "bert", {"target_modules": ["query", "value"], "r": 4}, method="Vera"),
    Pair(
        "bert_bare_base",
        "bert",
        lora("query", "output.dense"),
        tuned="BertForMaskedLM",
        absent=BERT_HEAD,
        legal=SHORTER,
    ),
    Pair("deberta", "deberta", lora("query_proj", "value_proj", "dense")),
    Pair(
        "distilbert_seqcls",
        "distilbert",
        lora("q_lin", "v_lin", "lin1", task_type="SEQ_CLS", modules_to_save=["pre_classifier"]),
        tuned="DistilBertForSequenceClassification",
        legal=FRESH,
    ),
    Pair("nomic_bert_bias_all", "nomic_bert", lora("q_proj", bias="all")),
    Pair("nomic_bert_qkv", "nomic_bert", lora("q_proj", "k_proj", "v_proj", "down_proj")),
    Pair("nomic_bert_only_v_dora", "nomic_bert", lora("v_proj", "gate_proj", use_dora=True)),
    Pair("t5_ia3", "t5", {"target_modules": ["k", "v", "wo"], "feedforward_modules": ["wo"]}, method="IA3"),
    Pair("t5_encoder_adapter", "t5", lora("q", "v", "wo"), tuned="T5EncoderModel"),
    Pair("bigbird_pegasus", "bigbird_pegasus", lora("query", "output", "out_proj")),
    Pair("bart", "bart", lora("q_proj", "v_proj", "fc2")),
    Pair("t5", "t5", lora("q", "v", "wo")),
]
TABLE = [*LLAMA, *KIN, *ENCODERS]
