"""Full checkpoints over a base with a tied embedding: the tuned one says itself whether the two are one tensor."""

from __future__ import annotations

import json

import pytest
import torch
from folders import read_all, write_base

from wiseft_core import Adapter, AdapterConfig, combine, errors, interpolate, open_checkpoint, save_checkpoint

E, H, Q = "model.embed_tokens.weight", "lm_head.weight", "model.layers.0.q_proj.weight"
TIED = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True}
NAMES = ("shared", "encoder.embed_tokens", "decoder.embed_tokens", "lm_head")
T5 = {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "tie_word_embeddings": True}
BEFORE, AFTER, HEAD = (torch.randn(6, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(3))


def stored(form, embedding, head, folder):
    """Embedding and head as a state dict or a folder: one tensor under two names, two tensors, or one name alone."""
    if form == "one tensor":
        return {E: embedding, H: embedding, Q: torch.eye(4)}
    if form == "two tensors":
        return {E: embedding, H: head.clone(), Q: torch.eye(4)}
    both = {} if form == "folder of one" else {H: head.clone()}
    return write_base(folder, {E: embedding, Q: torch.eye(4), **both}, tie_word_embeddings=form != "folder apart")


BASES = ["one tensor", "two tensors", "folder of both", "folder of one"]


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("tuned", ["one tensor", "folder of both", "folder of one"])
@pytest.mark.parametrize("tied", ["untie", "share"])
def test_tied_on_both_sides_stays_tied(tmp_path, base, tuned, tied):
    """One value under every name that the base has, in memory one object, and config.json as it was."""
    base = stored(base, BEFORE, BEFORE, tmp_path / "base")
    tuned = stored(tuned, AFTER, AFTER, tmp_path / "tuned")
    view = interpolate(base, tuned, 0.5, base_config=TIED, tied=tied)
    held, wanted = dict(view), ((BEFORE.double() + AFTER.double()) / 2).float()
    assert view.plan.config == {} and view.plan.untied == ()
    assert (H in held) == (isinstance(base, dict) or "lm_head.weight" in open_checkpoint(base))
    assert torch.equal(held[E], wanted)
    assert H not in held or held[H] is held[E]
    if H in held:
        with pytest.raises(errors.BadAlpha, match="one tensor with"):
            view.at({E: 0.5, H: 0.25, "*": 0.0})


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("tuned", ["two tensors", "folder apart"])
def test_tuned_apart_is_written_apart(tmp_path, base, tuned):
    """Each interpolated with the one tensor of the base, and config.json, written with them, says so."""
    base = stored(base, BEFORE, BEFORE, tmp_path / "base")
    tuned = stored(tuned, AFTER, HEAD, tmp_path / "tuned")
    view = interpolate(base, tuned, {E: 0.5, H: 0.25, "*": 0.0}, base_config=TIED)
    assert torch.allclose(view[E], 0.5 * BEFORE + 0.5 * AFTER) and torch.allclose(view[H], 0.75 * BEFORE + 0.25 * HEAD)
    assert view.plan.config == {"tie_word_embeddings": False} and view.plan.untied == (H,)
    assert [note for note in view.plan.notes if "were one tensor: both are written" in note]
    if not isinstance(base, dict):
        save_checkpoint(view, tmp_path / "out", sync=False)
        assert json.loads((tmp_path / "out/config.json").read_text())["tie_word_embeddings"] is False
        assert read_all(tmp_path / "out").keys() == {E, H, Q}
    with pytest.raises(errors.DtypeMismatch, match="another value than what it is a copy of"):
        interpolate(base, tuned, 0.5, base_config=TIED, tied="share")


def test_a_config_that_ties_what_differs_is_refused(tmp_path):
    """The tuned folder contradicts itself: which of the two is meant is not guessed."""
    tuned = stored("folder of both", AFTER, HEAD, tmp_path / "tuned")
    with pytest.raises(errors.DtypeMismatch, match="of a full checkpoint"):
        interpolate({E: BEFORE, H: BEFORE, Q: torch.eye(4)}, tuned, 0.5, base_config=TIED)


@pytest.mark.parametrize("base", ["two tensors", "folder apart"])
@pytest.mark.parametrize("tuned", ["one tensor", "folder of both", "folder of one"])
def test_a_base_that_is_not_tied_stays_so(tmp_path, base, tuned):
    """Each is interpolated with what the tuned one has under its name; a name that it does not have is refused."""
    config = {**TIED, "tie_word_embeddings": False}
    base = stored(base, BEFORE, HEAD, tmp_path / "base")
    parts = stored(tuned, AFTER, AFTER, tmp_path / "tuned")
    if tuned == "folder of one":
        with pytest.raises(errors.BindingError, match="the tuned checkpoint lacks"):
            interpolate(base, parts, 0.5, base_config=config)
        return
    view = interpolate(base, parts, {E: 0.5, H: 0.25, "*": 0.0}, base_config=config)
    assert torch.allclose(view[E], 0.5 * BEFORE + 0.5 * AFTER) and torch.allclose(view[H], 0.75 * HEAD + 0.25 * AFTER)
    assert not view.plan.config and not view.plan.notes and not view.plan.alike


def test_a_config_that_does_not_say_is_no_tie_of_two_that_are_stored(tmp_path):
    """Without the flag, two names that both sides store are two tensors; nothing is edited."""
    folders = [
        write_base(tmp_path / name, {E: first, H: second}, tie_word_embeddings=None)
        for name, first, second in (("base", BEFORE, HEAD), ("tuned", AFTER, BEFORE))
    ]
    view = interpolate(*folders, 1.0)
    assert torch.equal(view[E], AFTER) and torch.equal(view[H], BEFORE)
    assert not view.plan.config and not view.plan.notes


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("tied", ["untie", "share"])
def test_four_names_of_one_tensor(live, tied):
    """Tied in the tuned one, they stay one; copies are written each for itself, for no flag tells four apart."""
    base = {f"{name}.weight": BEFORE for name in NAMES}
    tuned = {name: AFTER if live else AFTER.clone() for name in base}
    view = interpolate(base, tuned, 1.0, base_config=T5, tied=tied)
    held = dict(view)
    assert all(torch.equal(value, AFTER) for value in held.values()) and not view.plan.config
    assert (len({id(value) for value in held.values()}) == 1) == (live or tied == "share")
    tuned["lm_head.weight"] = HEAD
    if tied == "untie":
        assert torch.equal(interpolate(base, tuned, 1.0, base_config=T5)["lm_head.weight"], HEAD)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("other", ["checkpoint", "rows", "head"])
def test_checkpoints_and_adapters_add_up(tmp_path, base, other):
    """What one of them unties is apart for all: a tied checkpoint changes both, and so do token rows."""
    base = stored(base, BEFORE, BEFORE, tmp_path / "base")
    tied = stored("folder of one", AFTER, AFTER, tmp_path / "tied")
    apart = stored("folder apart", BEFORE, HEAD, tmp_path / "apart")
    rows = {"model.embed_tokens.token_adapter.trainable_tokens_delta": torch.ones(1, 4)}
    config = AdapterConfig.from_mapping({"trainable_token_indices": {"embed_tokens": [2]}})
    head = {"lm_head.lora_A.weight": torch.ones(1, 4), "lm_head.lora_B.weight": torch.ones(6, 1)}
    lora = AdapterConfig.from_mapping({"lora_alpha": 1, "r": 1})
    first = Adapter(rows, config) if other == "rows" else tied
    second = Adapter(head, lora) if other == "head" else apart
    shift = (
        torch.zeros(6, 4).index_fill(0, torch.tensor([2]), 1.0) * (1 - BEFORE) if other == "rows" else AFTER - BEFORE
    )
    wanted = BEFORE + 0.5 * shift
    for order in (1, -1):
        view = combine(base, [(first, 0.5), (second, 0.25)][::order], base_config=TIED)
        assert torch.allclose(view[E], wanted, atol=1e-6)
        assert torch.allclose(view[H], wanted + 0.25 * (1.0 if other == "head" else HEAD - BEFORE), atol=1e-6)
        assert view.plan.config == {"tie_word_embeddings": False}
