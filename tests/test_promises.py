"""An adapter that lacks what its config says was trained is refused, as PEFT refuses it; nothing else is."""

from __future__ import annotations

import json
import warnings

import pytest
from plans import P, lora, plan_of, problems
from safetensors.torch import load_file, save_file
from test_joining import load, train
from toys import toy

from wiseft_core import interpolate
from wiseft_core.errors import BindingError, ConfigError

BASE = {
    "model.embed_tokens.weight": (9, 4),
    "model.q.weight": (6, 4),
    "lm_head.weight": (9, 4),
    "model.norm.weight": (4,),
}
LORA = lora("model.q", 6, 4)
HEAD = {f"{P}lm_head.weight": (9, 4)}
ROWS = {f"{P}model.embed_tokens.token_adapter.trainable_tokens_delta": (2, 4)}


@pytest.mark.parametrize(
    ("options", "dropped", "named"),
    [
        ({"modules_to_save": ["head"]}, "head", "'head' of modules_to_save"),
        ({"modules_to_save": ["norm", "head"]}, "norm", "'norm' of modules_to_save"),
        ({"trainable_token_indices": {"emb": [1, 3]}}, "token_adapter", "'emb' of trainable_token_indices"),
        ({"lora_bias": True}, "lora_B.bias", "lora_bias: true"),
    ],
    ids=str,
)
def test_what_peft_misses_is_missed(tmp_path, options, dropped, named):
    """Without the tensors of one entry PEFT raises or warns, and we name the entry; with them both are content."""
    folder = train(toy, tmp_path / "adapter", 1, {"target_modules": ["up"], **options})
    interpolate(toy().state_dict(), folder, 1.0)
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    left = {key: value for key, value in tensors.items() if dropped not in key}
    assert 0 < len(left) < len(tensors)
    save_file(left, file)
    with pytest.raises((KeyError, UserWarning)), warnings.catch_warnings():
        warnings.simplefilter("error")
        load(toy(), folder)
    with pytest.raises(ConfigError, match="has no such tensors") as caught:
        interpolate(toy().state_dict(), folder, 1.0)
    assert named in caught.value.where


@pytest.mark.parametrize(
    ("config", "adapter"),
    [
        ({"modules_to_save": ["classifier", "score"], "task_type": "SEQ_CLS"}, {}),
        ({"modules_to_save": ["classifier", "score"]}, {f"{P}score.weight": (2, 4)}),
        ({"modules_to_save": ["head"]}, HEAD),
        ({"modules_to_save": ["model"]}, {f"{P}model.norm.weight": (4,)}),
        ({"trainable_token_indices": [1, 2]}, ROWS),
        ({"trainable_token_indices": {"embed_tokens": [1, 2]}}, ROWS),
        ({"trainable_token_indices": {"embed_tokens": []}}, {}),
        ({"lora_bias": False}, {}),
    ],
    ids=str,
)
def test_what_promises_nothing_of_this_base_is_taken(config, adapter):
    """Heads that the base has not, an entry that is the end of a name, a lone list of tokens, flags that are off."""
    assert plan_of(BASE, LORA | adapter, {"lora_alpha": 1, **config}).bindings


def test_a_tied_tensor_may_come_under_its_other_name():
    """PEFT saves what is tied once."""
    base = {name: shape for name, shape in BASE.items() if name != "lm_head.weight"}
    model = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True}
    config = {"lora_alpha": 1, "modules_to_save": ["embed_tokens", "lm_head"]}
    embedding = {f"{P}model.embed_tokens.weight": (9, 4)}
    for adapter in (embedding, HEAD, embedding | HEAD):
        assert plan_of(base, LORA | adapter, config, base_config=model).bindings
    with pytest.raises(ConfigError) as caught:
        plan_of(base, LORA, config, base_config=model)
    assert ["embed_tokens" in caught.value.where, "lm_head" in problems(caught)[1].where] == [True, True]


def test_a_list_of_tokens_without_any_rows():
    """Whatever the embedding is called in this base."""
    for config in ({"trainable_token_indices": [1, 2]}, {"trainable_token_indices": {"embed_tokens": [1, 2]}}):
        with pytest.raises(ConfigError, match="'embed_tokens' of trainable_token_indices"):
            plan_of({"wte.weight": (9, 4), "q.weight": (6, 4)}, lora("q", 6, 4), {"lora_alpha": 1, **config})


def test_no_tensors_at_all(tmp_path):
    """An empty file, and one with nothing that means anything."""
    nothing = {f"{P}model.embed_tokens.token_adapter.trainable_tokens_original": (9, 4)}
    for adapter in ({}, nothing):
        with pytest.raises(BindingError, match="it has no tensors"):
            plan_of(BASE, adapter)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 1}))
    save_file({}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(BindingError, match="it has no tensors"):
        interpolate(toy().state_dict(), tmp_path, 0.5)
