"""Tied embeddings, grown models and resized vocabularies: what a plan says of them, from names and shapes alone."""

from __future__ import annotations

import pytest
from plans import P, lora, plan_of

from wiseft_core.errors import ConfigError, ShapeMismatch, TiedEmbeddings, Unsupported

E, H = "model.embed_tokens.weight", "lm_head.weight"
LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True, "vocab_size": 9}
BASE = {E: (9, 4), "model.layers.0.q.weight": (4, 4)}
EMBEDDING = {"lora_embedding_A": (2, 9), "lora_embedding_B": (4, 2)}
EMBEDDED = {f"{P}model.embed_tokens.lora_embedding_A": (2, 9), f"{P}model.embed_tokens.lora_embedding_B": (4, 2)}
HEADED = lora("lm_head", 9, 4)
COPY = {f"{P}model.embed_tokens.base_layer.weight": (9, 4)}
SAVED = {f"{P}model.embed_tokens.base_layer.weight": (9, 4), f"{P}lm_head.base_layer.weight": (9, 4)}


def steps(plan):
    """The families that change each of the two."""
    return {name: [step.family for step in plan.bindings[name].steps] for name in (E, H) if name in plan.bindings}


NORMS = {f"model.layers.{layer}.norm.weight": (4,) for layer in (0, 1)}


@pytest.mark.parametrize("shared", [(), (frozenset(NORMS),)], ids=["", "norms share memory"])
@pytest.mark.parametrize(
    ("adapter", "config", "tied", "expected", "apart"),
    [
        (EMBEDDED, {}, "untie", {E: ["lora"]}, True),
        (HEADED, {}, "untie", {H: ["lora"]}, True),
        (EMBEDDED | HEADED, {}, "untie", {E: ["lora"], H: ["lora"]}, True),
        (EMBEDDED | HEADED, {}, "share", {E: ["lora", "lora"]}, False),
        (HEADED, {}, "share", {E: ["lora"]}, False),
        (EMBEDDED | HEADED, {"ensure_weight_tying": True}, "untie", {E: ["lora"]}, False),
        (EMBEDDED | HEADED | SAVED, {}, "share", {E: ["full", "lora", "lora"]}, False),
        (EMBEDDED | COPY, {}, "untie", {E: ["full", "lora"], H: ["full"]}, True),
        ({f"{P}{E}": (9, 4)}, {"modules_to_save": ["embed_tokens"]}, "untie", {E: ["full"]}, True),
        ({f"{P}{H}": (9, 4)}, {"modules_to_save": ["lm_head"]}, "untie", {H: ["full"]}, True),
        (
            {f"{P}model.embed_tokens.token_adapter.trainable_tokens_delta": (1, 4)},
            {"trainable_token_indices": {"embed_tokens": [2]}},
            "untie",
            {E: ["tokens"]},
            False,
        ),
        (lora("model.layers.0.q", 4, 4), {}, "untie", {}, False),
    ],
)
def test_what_becomes_of_a_tied_embedding(adapter, config, tied, expected, apart, shared):
    """Each changed where tuning changed it; apart only where they differ; the flag follows.

    Other names that share memory do not matter.
    """
    options = {"base_config": LLAMA, "tied": tied, "shared": shared}
    plan = plan_of(BASE | NORMS, adapter, {"lora_alpha": 4, **config}, **options)
    assert steps(plan) == expected
    assert (H in plan.outputs) == apart
    assert plan.config == ({"tie_word_embeddings": False} if apart else {})
    assert plan.sources == ({H: E} if apart else {})
    assert set(plan.consumed()) == set(adapter)
    assert plan.consumed().keys() >= plan.copies.keys()


def test_both_on_disk_are_written_apart_too():
    """A base that holds both names though its config ties them: what is not changed stays, and the flag is undone."""
    plan = plan_of(BASE | {H: (9, 4)}, EMBEDDED, base_config=LLAMA)
    assert steps(plan) == {E: ["lora"]} and not plan.sources and plan.config == {"tie_word_embeddings": False}


LAYERED = {f"model.layers.{layer}.q.weight": (4, 4) for layer in (0, 1)}
SHARED = (frozenset(LAYERED),)


@pytest.mark.parametrize("config", [LLAMA, {"model_type": "mine", "tie_word_embeddings": True}, None])
def test_layers_that_share_memory_are_no_embedding_and_head(config):
    """They are written apart, and the flag, which is of embedding and head, stays: no head is written."""
    plan = plan_of(BASE | LAYERED, lora("model.layers.0.q", 4, 4), base_config=config, shared=SHARED)
    assert not plan.config and H not in plan.outputs and list(plan.bindings) == ["model.layers.0.q.weight"]
    assert plan.untied == ("model.layers.1.q.weight",)
    (note,) = plan.notes
    assert "both are written" in note and "tie_word_embeddings" not in note


def test_two_ties_are_taken_apart_one_by_one():
    """Two layers that share memory, and an embedding with its head: each tie is of two names alone."""
    adapter = lora("model.layers.0.q", 4, 4) | HEADED
    plan = plan_of(BASE | LAYERED, adapter, base_config=LLAMA, shared=SHARED)
    assert set(plan.untied) == {H, "model.layers.1.q.weight"} and len(plan.notes) == 2
    assert plan.config == {"tie_word_embeddings": False} and plan.sources == {H: E}
    plan = plan_of(BASE | LAYERED, adapter, base_config=LLAMA, shared=SHARED, tied="share")
    assert plan.alike == {H: E, "model.layers.1.q.weight": "model.layers.0.q.weight"} and H not in plan.outputs


@pytest.mark.parametrize("embedding", [E, "model.tok.weight"])
def test_a_live_embedding_and_head_are_known_by_their_names(embedding):
    """Of an architecture that the table does not know, one whose embedding has another name too: the flag follows."""
    live = {embedding: (9, 4), H: (9, 4)}
    said = {"model_type": "mine", "tie_word_embeddings": True}
    plan = plan_of(live, HEADED, base_config=said, shared=(frozenset(live),))
    assert plan.config == {"tie_word_embeddings": False} and plan.untied == (H,)


def test_a_head_has_one_name_though_disk_and_memory_call_it_otherwise():
    """GPT-NeoX: `embed_out` on disk, `lm_head` in memory: still two parameters, which can be written apart."""
    config = {"model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"], "tie_word_embeddings": True}
    embedding = "gpt_neox.embed_in.weight"
    plan = plan_of({embedding: (9, 4)}, HEADED, base_config=config)
    assert plan.sources == {"embed_out.weight": embedding} and list(plan.bindings) == ["embed_out.weight"]
    live = {embedding: (9, 4), H: (9, 4)}
    plan = plan_of(live, HEADED, base_config=config, shared=(frozenset(live),))
    assert list(plan.outputs) == list(live) and plan.untied == (H,) and plan.config == {"tie_word_embeddings": False}


LLAVA_E, LLAVA_H = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"
LLAVA = {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"]}


@pytest.mark.parametrize(("top", "text"), [(False, True), (None, False), (True, None), (False, False), (None, None)])
@pytest.mark.parametrize("config", [LLAVA, LLAVA | {"model_type": "gemma3"}], ids=["llava", "gemma3"])
def test_a_head_that_is_stored_nowhere_is_tied(config, top, text):
    """Whatever the flags say, of the model or of the text model inside: transformers would have nothing to load."""
    if config["model_type"] == "gemma3":
        config = config | {"architectures": ["Gemma3ForConditionalGeneration"]}
    said = {} if top is None else {"tie_word_embeddings": top}
    inner = {} if text is None else {"tie_word_embeddings": text}
    adapter = {f"{P}model.language_model.embed_tokens.{role}": shape for role, shape in EMBEDDING.items()}
    plan = plan_of({LLAVA_E: (9, 4)}, adapter, base_config=config | said | {"text_config": inner})
    assert list(plan.bindings) == [LLAVA_E] and plan.sources == {LLAVA_H: LLAVA_E}
    assert plan.config == {"tie_word_embeddings": False} | ({"text_config.tie_word_embeddings": False} if inner else {})


def test_a_head_under_an_older_name_is_stored():
    """A base of old names, of a config that unties them: the head is no alias of the embedding."""
    base = {"language_model.model.embed_tokens.weight": (9, 4), "lm_head.weight": (9, 4)}
    untied = LLAVA | {"tie_word_embeddings": False}
    plan = plan_of(base, lora("lm_head", 9, 4), base_config=untied)
    assert list(plan.bindings) == ["lm_head.weight"] and not plan.sources and not plan.config


DECODERS = {
    "trocr": ("model.decoder.embed_tokens.weight", "output_projection.weight"),
    "gpt2": ("transformer.wte.weight", "lm_head.weight"),
    "mbart": ("model.decoder.embed_tokens.weight", "lm_head.weight"),
}


@pytest.mark.parametrize("kind", DECODERS)
def test_a_decoder_ties_what_its_type_ties(kind):
    """An encoder with any decoder: the flag at the top is false there, the decoder's is true; both are undone."""
    embedding, head = (f"decoder.{name}" for name in DECODERS[kind])
    config = {
        "model_type": "vision-encoder-decoder",
        "architectures": ["VisionEncoderDecoderModel"],
        "tie_word_embeddings": False,
        "encoder": {"model_type": "vit"},
        "decoder": {"model_type": kind, "tie_word_embeddings": True},
    }
    module = embedding.removesuffix(".weight")
    adapter = {f"{P}{module}.{role}": shape for role, shape in EMBEDDING.items()}
    plan = plan_of({embedding: (9, 4)}, adapter, base_config=config)
    assert list(plan.bindings) == [embedding] and plan.sources == {head: embedding}
    assert plan.config == {"tie_word_embeddings": False, "decoder.tie_word_embeddings": False}
    tokens = {f"{P}{module}.token_adapter.trainable_tokens_delta": (1, 4)}
    plan = plan_of({embedding: (9, 4)}, tokens, {"trainable_token_indices": {module: [2]}}, base_config=config)
    assert list(plan.bindings) == [embedding] and plan.sources == {head: embedding}  # PEFT asks the flag at the top


ROWS = {f"{P}model.embed_tokens.token_adapter.trainable_tokens_delta": (1, 4)}
INDICES = {"lora_alpha": 4, "trainable_token_indices": {"embed_tokens": [2]}}


def test_token_rows_of_a_tied_head():
    """Rows of the embedding are the head's too, so another change of the head cannot be made alone; not the reverse."""
    with pytest.raises(Unsupported, match="token rows together"):
        plan_of(BASE, ROWS | HEADED, INDICES, base_config=LLAMA)
    rows = {f"{P}lm_head.token_adapter.trainable_tokens_delta": (1, 4)}
    plan = plan_of(BASE, rows, {"trainable_token_indices": {"lm_head": [2]}}, base_config=LLAMA)
    assert steps(plan) == {H: ["tokens"]} and plan.sources == {H: E}


@pytest.mark.parametrize(("flag", "expected"), [(True, [E, H]), (None, [E]), (False, [E])])
def test_token_rows_where_a_head_differs_from_its_embedding(flag, expected):
    """PEFT asks the flag alone: where it is true, rows are trained at both, which stay two tensors."""
    config = {key: value for key, value in LLAMA.items() if key != "tie_word_embeddings"}
    config |= {} if flag is None else {"tie_word_embeddings": flag}
    plan = plan_of(BASE | {H: (9, 4)}, ROWS, INDICES, base_config=config, agree=lambda first, second: False)
    assert list(plan.bindings) == expected and not plan.alike and not plan.config


BERT_E, BERT_H = "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"
BERT_B = ("cls.predictions.bias", "cls.predictions.decoder.bias")
BERT = {"model_type": "bert", "architectures": ["BertForMaskedLM"], "vocab_size": 9}
SAVED_HEAD = {f"{P}cls.predictions.decoder.weight": (9, 4), f"{P}cls.predictions.decoder.bias": (9,)}


@pytest.mark.parametrize(
    ("adapter", "config", "expected"),
    [
        (lora("cls.predictions.decoder", 9, 4), {}, [BERT_H]),
        ({f"{P}bert.embeddings.word_embeddings.{role}": shape for role, shape in EMBEDDING.items()}, {}, [BERT_E]),
        (SAVED_HEAD, {"modules_to_save": ["decoder"]}, [BERT_H, BERT_B[1]]),
        (SAVED_HEAD | {f"{P}{BERT_B[0]}": (9,)}, {"modules_to_save": ["cls"]}, [*BERT_B, BERT_H]),
    ],
)
def test_weight_and_bias_are_two_ties(adapter, config, expected):
    """BERT ties the head's weight to the embedding, and its bias to another one: the one flag unties both."""
    base = {BERT_E: (9, 4), BERT_B[0]: (9,)}
    plan = plan_of(base, adapter, {"lora_alpha": 4, **config}, base_config=BERT)
    assert sorted(plan.bindings) == sorted(expected)
    assert plan.sources == {BERT_H: BERT_E, BERT_B[1]: BERT_B[0]}
    assert plan.config == {"tie_word_embeddings": False}
    assert plan.outputs.keys() == {BERT_E, BERT_H, *BERT_B}


def test_old_and_new_name_of_a_head_are_one():
    """GPT-NeoX calls its head `embed_out` on disk and `lm_head` in memory."""
    config = {"model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"], "tie_word_embeddings": True}
    adapter = {f"{P}gpt_neox.embed_in.{role}": shape for role, shape in EMBEDDING.items()}
    plan = plan_of({"gpt_neox.embed_in.weight": (9, 4)}, adapter, base_config=config)
    assert plan.sources == {"embed_out.weight": "gpt_neox.embed_in.weight"}


def test_a_head_whose_name_is_not_known_is_refused():
    """An architecture that the table does not know: refused, and `share` needs no name."""
    config = {"model_type": "mine", "architectures": ["MineForCausalLM"]}
    with pytest.raises(TiedEmbeddings, match="tied"):
        plan_of(BASE, EMBEDDED, base_config=config)
    assert steps(plan_of(BASE, EMBEDDED | HEADED, base_config=config, tied="share")) == {E: ["lora", "lora"]}
    with pytest.raises(ConfigError, match="tied"):
        plan_of(BASE, EMBEDDED, base_config=LLAMA, tied="both")


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_start_that_takes_from_a_tied_tensor(start):
    """PEFT writes what it leaves to the one tensor, of which a file says nothing unless it has a copy."""
    config = {"lora_alpha": 4, "init_lora_weights": start}
    with pytest.raises(Unsupported, match="tied to the embedding") as caught:
        plan_of(BASE, HEADED, config, base_config=LLAMA)
    assert caught.value.exit_code == 4
    assert steps(plan_of(BASE, HEADED, config, base_config=LLAMA, tied="share")) == {E: [start]}
    own = LLAMA | {"tie_word_embeddings": False}
    assert steps(plan_of(BASE | {H: (9, 4)}, HEADED, config, base_config=own)) == {H: [start]}
    saved = HEADED | {f"{P}{E}": (9, 4), f"{P}lm_head.base_layer.weight": (9, 4)}
    assert steps(plan_of(BASE, saved, config, base_config=LLAMA)) == {E: ["full"], H: ["full", "lora"]}


def test_an_attention_called_output_is_no_head():
    """It has not a row for every word: its changes are no head's, and it says nothing of the embedding."""
    config = {"model_type": "mine", "architectures": ["MineForCausalLM"], "tie_word_embeddings": True}
    base, name = BASE | {"model.layers.0.output.weight": (4, 4)}, "model.layers.0.output"
    assert list(plan_of(base, lora(name, 4, 4), base_config=config).bindings) == [f"{name}.weight"]
    with pytest.raises(TiedEmbeddings, match="tied"):
        plan_of(BASE | {"output.weight": (9, 4)}, lora("output", 9, 4), base_config=config)
    with pytest.raises(TiedEmbeddings, match="no output head"):
        plan_of(base, EMBEDDED)


def test_more_than_two_names_for_one_tensor_are_refused():
    """T5 ties the tables of encoder, decoder and head to one: untying one of them is not what its flag says."""
    config = {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "tie_word_embeddings": True}
    adapter = {f"{P}shared.lora_embedding_A": (2, 9), f"{P}shared.lora_embedding_B": (4, 2)}
    with pytest.raises(Unsupported, match="more than two"):
        plan_of({"shared.weight": (9, 4)}, adapter, base_config=config)
    plan = plan_of({"shared.weight": (9, 4)}, adapter, base_config=config, tied="share")
    assert list(plan.bindings) == list(plan.outputs) == ["shared.weight"]


LAYERS = {f"model.layers.{layer}.q.weight": (6, 4) for layer in range(3)} | {"model.norm.weight": (4,)}


def test_a_grown_model_has_a_layer_for_each_copy():
    """Layers 0 1 1 2: each is made from its layer of the base, the config counts four, and lists go along."""
    adapter = lora("model.layers.2.q", 6, 4)
    said = {"num_hidden_layers": 3, "layer_types": ["a", "b", "c"]}
    plan = plan_of(LAYERS, adapter, {"lora_alpha": 4, "layer_replication": [[0, 2], [1, 3]]}, base_config=said)
    named = {f"model.layers.{at}.q.weight": f"model.layers.{of}.q.weight" for at, of in enumerate((0, 1, 1, 2))}
    assert plan.sources == {name: source for name, source in named.items() if name != source}
    assert set(plan.outputs) == {*named, "model.norm.weight"}
    assert list(plan.bindings) == ["model.layers.2.q.weight"]
    assert plan.config == {"num_hidden_layers": 4, "layer_types": ["a", "b", "b", "c"]}


@pytest.mark.parametrize(
    ("spans", "error", "base"),
    [
        ([[0, 2], [1, 9]], ConfigError, LAYERS),
        ([[0, 2]], Unsupported, LAYERS),
        ([[0, 4]], Unsupported, LAYERS | {f"tower.layers.{at}.q.weight": (6, 4) for at in range(3)}),
        ([[2, 1]], ConfigError, LAYERS),
        ([[0]], ConfigError, LAYERS),
        ("all", ConfigError, LAYERS),
    ],
)
def test_layers_that_the_base_does_not_have_are_refused(spans, error, base):
    """A layer too many, fewer than before, two stacks of layers, and spans that are none."""
    with pytest.raises(error, match="layer"):
        plan_of(base, lora("model.layers.1.q", 6, 4), {"lora_alpha": 4, "layer_replication": spans})


UNTIED = {**LLAMA, "tie_word_embeddings": False, "text_config": {"vocab_size": 9}}


def test_a_resized_vocabulary_is_followed():
    """Saved tables with more rows: outputs, pieces and config follow; all tables must."""
    saved = {f"{P}{E}": (11, 4), f"{P}{H}": (11, 4)} | lora("model.layers.0.q", 4, 4)
    plan = plan_of(BASE | {H: (9, 4)}, saved, base_config=UNTIED)
    assert plan.outputs[E].shape == plan.outputs[H].shape == plan.bindings[H].pieces[0].shape == (11, 4)
    assert plan.bindings[E].spec.shape == (9, 4)
    assert plan.config == {"vocab_size": 11, "text_config.vocab_size": 11}
    for lost, other in ((f"{P}{H}", {}), (f"{P}{H}", {f"{P}{H}": (12, 4)})):
        wrong = {key: shape for key, shape in saved.items() if key != lost} | other
        with pytest.raises(ShapeMismatch, match="vocabulary"):
            plan_of(BASE | {H: (9, 4)}, wrong, base_config=UNTIED)
    with pytest.raises(ShapeMismatch):
        plan_of(BASE | {H: (9, 4)}, {f"{P}{E}": (11, 5)}, base_config=UNTIED)


def test_another_class_is_not_a_resized_vocabulary():
    """A base of another class than the adapter was trained on is refused where only a resized table would fit."""
    saved = {f"{P}{E}": (11, 4), f"{P}{H}": (11, 4)}
    trained = {"lora_alpha": 4, "auto_mapping": {"base_model_class": "Qwen2VLForConditionalGeneration"}}
    with pytest.raises(ShapeMismatch, match="another class"):
        plan_of(BASE | {H: (9, 4)}, saved, trained, base_config=UNTIED)
    trained["auto_mapping"] = {"base_model_class": "LlamaModel"}
    assert plan_of(BASE | {H: (9, 4)}, saved, trained, base_config=UNTIED).outputs[E].shape == (11, 4)
