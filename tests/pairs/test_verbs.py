"""Every verb over awkward pairs: what a plan says, sums, adapters made of adapters, and outputs checked again.

`interpolate` is the oracle of the other verbs: `test_pairs` holds it to what transformers loads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from jsonschema import Draft202012Validator
from pairs.build import base_of, quiet, tuned_of
from pairs.table import PAIRS
from peft import PeftModel
from safetensors import safe_open
from torch import Tensor
from transformers import LlamaForCausalLM

from wiseft_core import (
    Plan,
    combine,
    combine_adapters,
    interpolate,
    plan,
    rescale,
    save_adapter,
    save_checkpoint,
    verify,
)
from wiseft_core.cli.inspection import inspect_adapter
from wiseft_core.errors import ConfigError, Unsupported

AWKWARD = [
    ("llama_tied_embed", "original"),
    ("llama_tied_both", "memory"),
    ("llama_tied_both_share", "memory"),
    ("llama_ensure_tying", "memory"),
    ("llama_ensure_tying_save", "memory"),
    ("llama_tokens_tied", "memory"),
    ("llama_tied_save_head", "memory"),
    ("llama_resized_tied", "memory"),
    ("llama_resized_embed", "memory"),
    ("llama_resized_tokens", "memory"),
    ("llama_resized_tokens_tied", "memory"),
    ("llama_replicated", "memory"),
    ("llama_seqcls", "memory"),
    ("nomic_bert_qkv", "original"),
    ("nomic_bert_only_v_dora", "original"),
    ("attention_net", "memory"),
    ("mixtral_parameters", "original"),
    ("mixtral_parameters", "memory"),
    ("mixtral_v4", "memory"),
    ("gpt_oss_wide", "memory"),
]
SUMMED = [(name, form) for name, form in AWKWARD if "resized" not in name]
JOINED = {"llama_ensure_tying", "llama_ensure_tying_save", "llama_tokens_tied", "llama_seqcls"}
OPEN = {
    "llama_resized_embed": "does not have",
    "llama_resized_tokens": "several parts",
    "llama_resized_tokens_tied": "several parts",
}
"""Pairs of which no adapter of their kind is the interpolation, and what they are told."""
CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # roundings to float32
awkward = pytest.mark.parametrize(("name", "form"), AWKWARD, ids=map("/".join, AWKWARD))


def inputs(name: str, form: str) -> tuple[Path, Path, str]:
    """A pair's base, adapter and `tied`."""
    return base_of(PAIRS[name], form)[0], tuned_of(PAIRS[name]).folder, PAIRS[name].tied


def check_same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    """The same names, with values alike."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value.shape == other[name].shape, name
        assert torch.allclose(value, other[name], **CLOSE), (name, (value - other[name]).abs().max())


def keys_of(adapter: Path) -> set[str]:
    """The keys in an adapter's file."""
    with safe_open(adapter / "adapter_model.safetensors", "pt") as file:
        return set(file.keys())


def validated(seen: Plan) -> dict[str, object]:
    """A plan as machines read it, which fits the shipped schema."""
    schema = json.loads((files("wiseft_core") / "schemas" / "plan.schema.json").read_text())
    said = json.loads(json.dumps(seen.as_dict()))
    Draft202012Validator(schema).validate(said)
    return said


@awkward
def test_a_plan_tells_machines_everything(name: str, form: str) -> None:
    """It fits its schema, and every key of the adapter's file is named in it."""
    base, adapter, tied = inputs(name, form)
    said = validated(plan(base, adapter, tied=tied))
    text = json.dumps(said)
    assert all(json.dumps(key) in text for key in keys_of(adapter))


@awkward
def test_inspection_refuses_nothing_that_is_supported(name: str, form: str) -> None:
    """Without the base the rank of a stack's factors is not known; that is no contradiction of the config."""
    seen = inspect_adapter(inputs(name, form)[1])
    assert not seen.refusals
    assert set(seen.ranks) <= {4}


def test_a_plan_tells_what_becomes_of_a_tie_and_of_config() -> None:
    """Untied, shared, resized and grown models are told apart by what machines read."""
    untied = validated(plan(*inputs("llama_tied_embed", "memory")[:2]))
    assert untied["sources"] == {"lm_head.weight": "model.embed_tokens.weight"}
    assert untied["config"] == {"tie_word_embeddings": False}
    shared = validated(plan(*inputs("llama_tied_embed", "memory")[:2], tied="share"))
    assert (shared["sources"], shared["config"]) == ({}, {})
    assert shared["alike"] == {"lm_head.weight": "model.embed_tokens.weight"}
    copied = validated(plan(*inputs("llama_ensure_tying_save", "memory")[:2]))
    assert len(copied["copies"]) == 1
    resized = validated(plan(*inputs("llama_resized", "memory")[:2], output_dtype="BF16"))
    assert resized["config"] == {"vocab_size": 105}
    assert resized["touched"]["lm_head.weight"]["result"] == {"dtype": "BF16", "shape": [105, 32]}
    grown = validated(plan(*inputs("llama_replicated", "memory")[:2]))
    assert grown["config"]["num_hidden_layers"] == 3 and grown["sources"]


@awkward
def test_a_rescaled_adapter_makes_the_interpolation(name: str, form: str, tmp_path: Path) -> None:
    """Saved and read again it gives at 1 what the adapter gives at alpha, and `verify` makes it again."""
    base, adapter, tied = inputs(name, form)
    if name in OPEN:
        with pytest.raises(Unsupported, match=OPEN[name]):
            rescale(adapter, 0.5, base=base)
        return
    save_adapter(rescale(adapter, 0.5, base=base), tmp_path / "half")
    assert keys_of(tmp_path / "half") == keys_of(adapter)
    check_same(interpolate(base, tmp_path / "half", 1.0, tied=tied), interpolate(base, adapter, 0.5, tied=tied))
    assert verify(tmp_path / "half", base=base, adapter=adapter).ok


@pytest.mark.parametrize(("name", "form"), SUMMED, ids=map("/".join, SUMMED))
def test_two_quarters_are_a_half(name: str, form: str, tmp_path: Path) -> None:
    """The sum of an adapter with itself; what is written of it is found again from its manifest."""
    base, adapter, tied = inputs(name, form)
    both = combine(base, [(adapter, 0.25), (adapter, 0.25)], tied=tied)
    check_same(both, interpolate(base, adapter, 0.5, tied=tied))
    save_checkpoint(both, tmp_path / "out", sync=False)
    assert verify(tmp_path / "out", base=base / ".." / base.name, adapter=[adapter, adapter]).ok


@awkward
def test_a_joined_adapter_makes_the_sum(name: str, form: str, tmp_path: Path) -> None:
    """One adapter of two, saved and read again, gives their sum, tied where that is; or it is refused."""
    base, adapter, tied = inputs(name, form)
    pairs = [(adapter, 0.25), (adapter, 0.25)]
    if name not in JOINED:
        with pytest.raises(Unsupported):
            combine_adapters(base, pairs)
        return
    save_adapter(combine_adapters(base, pairs).adapter, tmp_path / "joined")
    check_same(interpolate(base, tmp_path / "joined", 1.0, tied=tied), combine(base, pairs, tied=tied))
    assert verify(tmp_path / "joined", base=base, adapter=[adapter, adapter]).ok


@pytest.mark.parametrize("name", ["llama_tokens_tied", "llama_ensure_tying", "llama_ensure_tying_save"])
def test_peft_loads_what_is_made_of_tied_adapters(name: str, tmp_path: Path) -> None:
    """A joined adapter and a rescaled one make in PEFT, tied, the model that the sum makes in transformers."""
    base, adapter, _ = inputs(name, "memory")
    pairs = [(adapter, 0.25), (adapter, 0.25)]
    save_checkpoint(combine(base, pairs), tmp_path / "sum", sync=False)
    save_adapter(combine_adapters(base, pairs).adapter, tmp_path / "joined")
    save_adapter(rescale(adapter, 0.5, base=base), tmp_path / "half")
    tokens = torch.tensor([[1, 2, 3, 90]])
    with quiet(), torch.no_grad():
        wanted = LlamaForCausalLM.from_pretrained(tmp_path / "sum")(tokens).logits
        for made in ("joined", "half"):
            live = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base), tmp_path / made)
            assert torch.allclose(live(tokens).logits, wanted, rtol=1e-4, atol=1e-5), made


@pytest.mark.parametrize("dtype", [None, "BF16"])
@awkward
def test_what_is_written_is_found_again(name: str, form: str, dtype: str | None, tmp_path: Path) -> None:
    """`verify` with base and adapter by other paths computes every tensor again from the manifest."""
    base, adapter, tied = inputs(name, form)
    view = interpolate(base, adapter, 0.5, tied=tied, output_dtype=dtype)
    save_checkpoint(view, tmp_path / "out", sync=False)
    checked = verify(tmp_path / "out", base=base / ".." / base.name, adapter=adapter)
    assert checked.ok, checked.problems
    assert checked.touched >= len(view.touched)


def test_parameters_are_not_rescaled_without_the_base() -> None:
    """The keys of a parameter's factors name its module alone: the base is asked for."""
    _, adapter, _ = inputs("mixtral_down_only", "memory")
    with pytest.raises(ConfigError, match="without the base"):
        rescale(adapter, 0.5)
