"""PEFT's spellings: literal keys, and what PEFT itself writes for a small model."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, TrainableTokensConfig, get_peft_model, get_peft_model_state_dict
from torch import nn

from wiseft_core.errors import AmbiguousName, BindingError
from wiseft_core.naming.peft import PeftKey, format_key, parse_key, parse_keys, saved_keys

ROLES = {
    "A": "lora_A.weight",
    "B": "lora_B.weight",
    "bias": "lora_B.bias",
    "embedding_A": "lora_embedding_A",
    "embedding_B": "lora_embedding_B",
    "magnitude": "lora_magnitude_vector",
}
modules = st.lists(st.sampled_from(["model", "layers", "0", "q_proj", "lora_A", "weight", "default"]), max_size=4)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("X.lora_A.weight", PeftKey("X", "weight", "A", None)),
        ("X.lora_A.default.weight", PeftKey("X", "weight", "A", "default")),
        ("X.lora_B.weight", PeftKey("X", "weight", "B", None)),
        ("X.lora_B.default.weight", PeftKey("X", "weight", "B", "default")),
        ("X.lora_B.bias", PeftKey("X", "bias", "bias", None)),
        ("X.lora_B.default.bias", PeftKey("X", "bias", "bias", "default")),
        ("X.lora_embedding_A", PeftKey("X", "weight", "embedding_A", None)),
        ("X.lora_embedding_B.v2", PeftKey("X", "weight", "embedding_B", "v2")),
        ("X.lora_magnitude_vector", PeftKey("X", "weight", "magnitude", None)),
        ("X.lora_magnitude_vector.weight", PeftKey("X", "weight", "magnitude", None)),
        ("X.lora_magnitude_vector.default", PeftKey("X", "weight", "magnitude", "default")),
        ("X.lora_magnitude_vector.default.weight", PeftKey("X", "weight", "magnitude", "default")),
        ("X.trainable_tokens_delta", PeftKey("X", "weight", "rows", None)),
        ("X.trainable_tokens_delta.default", PeftKey("X", "weight", "rows", "default")),
        ("X.token_adapter.trainable_tokens_delta", PeftKey("X", "weight", "rows", None, True)),
        ("X.token_adapter.trainable_tokens_delta.default", PeftKey("X", "weight", "rows", "default", True)),
        ("X.token_adapter.trainable_tokens_original.default", PeftKey("X", "weight", "ignored", "default", True)),
        ("X.token_adapter.base_layer.weight", PeftKey("X", "weight", "value", None, True)),
        ("X.base_layer.weight", PeftKey("X", "weight", "value", None, True)),
        ("X.weight", PeftKey("X", "weight", "value", None)),
        ("X.modules_to_save.default.weight", PeftKey("X", "weight", "value", "default")),
        ("X.modules_to_save.default.dense.weight", PeftKey("X.dense", "weight", "value", "default")),
        ("X.original_module.weight", PeftKey("X", "weight", "ignored", None)),
        ("X.num_batches_tracked", PeftKey("X", "num_batches_tracked", "ignored", None)),
        ("_orig_mod.X._fsdp_wrapped_module.lora_A.weight", PeftKey("X", "weight", "A", None)),
        ("X._checkpoint_wrapped_module.q.weight", PeftKey("X.q", "weight", "value", None)),
        # nested wrappers keep what makes them fit no base module
        ("X.base_layer.lora_A.weight", PeftKey("X.base_layer", "weight", "A", None)),
        ("X.base_layer.base_layer.weight", PeftKey("X.base_layer.base_layer", "weight", "value", None)),
        # other tuners are values of modules that no base has
        ("X.lora_C.weight", PeftKey("X.lora_C", "weight", "value", None)),
        ("X.hada_w1_a", PeftKey("X", "hada_w1_a", "value", None)),
        ("X.lora_A", PeftKey("X", "lora_A", "value", None)),
        ("X.lora_A.default.bias", PeftKey("X.lora_A.default", "bias", "value", None)),
        ("weight", PeftKey("", "weight", "value", None)),
        ("lora_A.weight", PeftKey("", "weight", "A", None)),
        ("_orig_mod", PeftKey("", "_orig_mod", "value", None)),
        ("", PeftKey("", "", "value", None)),
    ],
)
@pytest.mark.parametrize("prefix", ["", "base_model.model."])
def test_every_form(prefix, key, expected):
    """Saved and live spellings parse to the same meaning, with PEFT's prefix and without it."""
    if not (prefix and key == "_orig_mod"):
        assert parse_key(prefix + key) == expected


def test_the_prefix_is_stripped_once_and_only_in_front():
    """A model whose own modules are called so keeps them."""
    assert parse_key("base_model.model.base_model.model.q.weight").module == "base_model.model.q"
    assert parse_key("x.base_model.model.q.weight").module == "x.base_model.model.q"
    assert parse_key("base_model.vera_A").module == "base_model"


@given(modules, st.sampled_from(sorted(ROLES)))
def test_saved_and_live_names_of_factors_mean_the_same(path, role):
    """For any module path, odd ones too, live and saved names differ in the adapter's name only, and format back."""
    suffix, module = ROLES[role], ".".join(path)
    stem, _, leaf = suffix.partition(".")
    saved = ".".join(["base_model.model", *path, suffix])
    live = ".".join(["base_model.model", *path, stem, "tuned", *([leaf] if leaf else [])])
    assert parse_key(saved)._replace(adapter="tuned") == parse_key(live)
    assert parse_key(saved)[:4] == (module, "bias" if role == "bias" else "weight", role, None)
    assert format_key(parse_key(live)) == saved


@pytest.mark.parametrize(
    ("key", "saved"),
    [
        ("m.base_layer.out_proj.bias", None),
        ("q.base_layer.bias", "base_model.model.q.base_layer.bias"),
        ("head.modules_to_save.default.weight", "base_model.model.head.weight"),
        ("e.trainable_tokens_delta.default", "base_model.model.e.trainable_tokens_delta"),
        ("e.token_adapter.trainable_tokens_delta.default", "base_model.model.e.token_adapter.trainable_tokens_delta"),
        ("weight", "base_model.model.weight"),
    ],
)
def test_whole_tensors_and_rows_format_as_saved(key, saved):
    """What is formatted is what PEFT saves, and parses to the same again."""
    parsed = parse_key(key)
    assert saved is None or format_key(parsed) == saved
    assert parse_key(format_key(parsed)) == parsed._replace(adapter=None)


def test_ignored_keys_have_no_saved_form():
    """A copy that PEFT does not save is not written by mistake."""
    with pytest.raises(BindingError, match="ignored"):
        format_key(parse_key("x.original_module.weight"))


class Small(nn.Module):
    """One module of each kind that PEFT wraps in its own way."""

    def __init__(self):
        super().__init__()
        self.embed, self.q, self.c = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Conv1d(4, 4, 3)
        self.norm, self.head = nn.BatchNorm1d(4), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))


CONFIGS = {
    "dora": (LoraConfig(r=2, target_modules=["q", "c"], use_dora=True, modules_to_save=["head", "norm"]), "lora"),
    "embedding": (LoraConfig(r=2, target_modules=["embed"], use_dora=True), "lora"),
    "rows": (LoraConfig(r=2, target_modules=["q"], trainable_token_indices={"embed": [1, 2]}), "lora"),
    "biases": (LoraConfig(r=2, target_modules=["q"], bias="all", modules_to_save=["head"]), "lora"),
    "tokens": (TrainableTokensConfig(token_indices=[1, 2], target_modules=["embed"]), "tokens"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT cannot find the embeddings of a plain module, and says so
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_what_peft_writes(name):
    """Saved and live keys of a real PEFT model name the same trained tensors, each with the same values."""
    torch.manual_seed(0)
    model = get_peft_model(Small(), CONFIGS[name][0])
    saved, live = get_peft_model_state_dict(model, save_embedding_layers=False), model.state_dict()
    meant_saved = {p[:3]: saved[key] for key, p in parse_keys(saved).items() if p.role != "ignored"}
    meant_live = {p[:3]: live[key] for key, p in parse_keys(live).items() if p.role != "ignored"}
    assert meant_saved
    assert meant_saved.keys() <= meant_live.keys()
    own = Small().state_dict()
    for module, parameter, role in meant_live:
        assert f"{module}.{parameter}" in own, role
    for meaning, tensor in meant_saved.items():
        assert torch.equal(tensor.reshape(-1), meant_live[meaning].reshape(-1)), meaning
    for key, parsed in parse_keys(saved).items():
        assert parsed.role == "ignored" or format_key(parsed) == key


def test_the_second_copy_of_trained_biases_is_ignored():
    """PEFT with bias="all" saves a head's biases again under `modules_to_save`, nested heads too."""
    keys = ["q.lora_A.weight", "h.weight", "h.bias", "h.modules_to_save.bias", "h.original_module.bias",
            "n.0.bias", "n.modules_to_save.default.0.bias", "n.original_module.0.bias"]  # fmt: skip
    roles = [parsed.role for parsed in parse_keys(keys).values()]
    assert roles == ["A", "value", "value", "ignored", "ignored", "value", "ignored", "ignored"]
    alone = parse_keys(["q.lora_A.weight", "head.modules_to_save.bias"])
    assert alone["head.modules_to_save.bias"] == PeftKey("head", "bias", "value", None)


def test_one_adapter_has_to_be_chosen():
    """Two adapters in one live model are never mixed: the error lists them, a choice ignores the others."""
    keys = ["q.base_layer.weight", "q.lora_A.one.weight", "q.lora_A.two.weight", "h.modules_to_save.two.weight"]
    with pytest.raises(AmbiguousName, match="one, two"):
        parse_keys(keys)
    assert [parsed.role for parsed in parse_keys(keys, "one").values()] == ["value", "A", "ignored", "ignored"]
    assert [parsed.role for parsed in parse_keys(keys, "two").values()] == ["value", "ignored", "A", "value"]
    with pytest.raises(BindingError, match="one, two"):
        parse_keys(keys, "three")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("q.lora_A.weight", "base_model.model.q.lora_A.weight"),
        ("q.lora_A.weight", "q.lora_A.default.weight"),
        ("q.weight", "q.base_layer.weight"),
        ("e.trainable_tokens_delta", "e.token_adapter.trainable_tokens_delta"),
        ("q._orig_mod.lora_B.weight", "q.lora_B.weight"),
    ],
)
def test_two_keys_for_one_tensor_are_refused(first, second):
    """Which of the two would count is not guessed; the error names both."""
    with pytest.raises(AmbiguousName) as caught:
        parse_keys([first, second])
    assert first in caught.value.got
    assert second in caught.value.got


def test_saved_keys_are_those_of_peft():
    """Saved, bare and live names come out as saved; counters go along, copies that were not trained do not."""
    expected = {
        "q.lora_A.default.weight": "base_model.model.q.lora_A.weight",
        "base_model.model.q.lora_magnitude_vector.default.weight": "base_model.model.q.lora_magnitude_vector",
        "_orig_mod.q.base_layer.bias": "base_model.model.q.base_layer.bias",
        "e.token_adapter.trainable_tokens_delta.default": "base_model.model.e.token_adapter.trainable_tokens_delta",
        "n.modules_to_save.default.weight": "base_model.model.n.weight",
        "n.modules_to_save.default.num_batches_tracked": "base_model.model.n.num_batches_tracked",
    }
    copies = ["n.original_module.weight", "n.original_module.num_batches_tracked", "n.bias", "n.modules_to_save.bias"]
    found = saved_keys(parse_keys([*expected, *copies, "e.token_adapter.trainable_tokens_original.default"]))
    assert found == expected | {"n.bias": "base_model.model.n.bias"}
    assert saved_keys(parse_keys(found.values())) == {key: key for key in found.values()}
