"""What a plan tells a human who may have taken the wrong base, and the values that it compares."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from wiseft_core import errors, interpolate, plan, planning, sources
from wiseft_core.errors import BindingError
from wiseft_core.families import FAMILIES
from wiseft_core.planning import bind_sources
from wiseft_core.sources import Memory, Tuned, hold_same


@pytest.fixture
def folders(tmp_path):
    """A base called "own-base", and a function that writes an adapter with these fields in its config."""
    base, adapter = tmp_path / "own-base", tmp_path / "adapter"
    base.mkdir()
    adapter.mkdir()
    save_file({"model.q.weight": torch.ones(4, 6)}, base / "model.safetensors", {"format": "pt"})
    (base / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    factors = {"lora_A.weight": torch.ones(2, 6), "lora_B.weight": torch.ones(4, 2)}
    save_file(
        {f"base_model.model.model.q.{role}": one for role, one in factors.items()},
        adapter / "adapter_model.safetensors",
    )

    def written(**fields):
        (adapter / "adapter_config.json").write_text(
            json.dumps({"peft_type": "LORA", "lora_alpha": 2, "r": 2, **fields})
        )
        return base, adapter

    return written


@pytest.mark.parametrize("name", ["own-base", "org/own-base", "/somewhere/own-base/", None])
def test_a_base_of_the_name_that_the_adapter_says_is_not_doubted(folders, name):
    """The last part of the name counts: a hub's name and a local folder can be one model."""
    assert plan(*folders(base_model_name_or_path=name)).notes == ()


def test_a_base_of_another_name_is_noted(folders):
    """Both names are told, in the plan and with the view; it is no refusal."""
    base, adapter = folders(base_model_name_or_path="org/other-base")
    (note,) = plan(base, adapter).notes
    assert "org/other-base" in note and "own-base" in note
    assert interpolate(base, adapter, 0.5).plan.notes == (note,)


def test_a_base_in_a_cache_is_called_by_its_repository(folders, tmp_path):
    """A snapshot's folder is named by a hash: the repository's name counts."""
    base, adapter = folders(base_model_name_or_path="org/own-base")
    snapshot = tmp_path / "models--org--own-base" / "snapshots" / "0123abc"
    snapshot.parent.mkdir(parents=True)
    base.rename(snapshot)
    assert plan(snapshot, adapter).notes == ()
    assert plan(snapshot / "model.safetensors", adapter).notes == ()


@pytest.mark.parametrize(("trained", "noted"), [("LlamaModel", 0), ("LlamaForCausalLM", 0), ("MistralForCausalLM", 1)])
def test_another_class_of_model_is_noted(folders, trained, noted):
    """The class that PEFT wrote down, without its head, against the base's."""
    notes = plan(*folders(auto_mapping={"base_model_class": trained, "parent_library": "x"})).notes
    assert len(notes) == noted and all(trained in note for note in notes)


@pytest.mark.parametrize("spelled", ["bf16", "BF16", "bfloat16", torch.bfloat16])
def test_an_output_dtype_is_read_as_interpolate_reads_it(folders, spelled):
    """However it is spelled, the plan is that of the interpolation; what that refuses is refused."""
    base, adapter = folders()
    found = plan(base, adapter, output_dtype=spelled)
    assert found.outputs == interpolate(base, adapter, 0.5, output_dtype=spelled).plan.outputs
    assert {spec.dtype for spec in found.outputs.values()} == {"BF16"} and found.nbytes == 4 * 6 * 2
    for wrong in ("no such", "int8", torch.int8):
        with pytest.raises(errors.ConfigError, match="not a dtype to compute with"):
            plan(base, adapter, output_dtype=wrong)


E, H = "model.embed_tokens.weight", "lm_head.weight"
HEADED = {"lm_head.lora_A.weight": torch.ones(2, 3), "lm_head.lora_B.weight": torch.ones(7, 2)}
PLAIN = {"tied": "untie", "output_dtype": None, "families": FAMILIES}
LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}


def two(*, last):
    """An embedding and a head of other memory, which differ in their last element by `last`."""
    tensors = {name: torch.arange(21.0).reshape(7, 3) for name in (E, H, "other.weight")}
    tensors[H][-1, -1] += last
    return tensors


@pytest.mark.parametrize("flag", [True, None])
@pytest.mark.parametrize("on_disk", [True, False])
@pytest.mark.parametrize("last", [0, 1])
def test_a_stored_head_is_tied_only_to_what_it_equals(tmp_path, monkeypatch, flag, on_disk, last):
    """transformers ties no two stored tensors that differ, whatever config.json says: each is its own."""
    monkeypatch.setattr(sources, "PIECE", 4)
    base, config = two(last=last), LLAMA | ({} if flag is None else {"tie_word_embeddings": flag})
    save_file(base, tmp_path / "base.safetensors")
    given = str(tmp_path / "base.safetensors") if on_disk else base
    view = interpolate(given, HEADED, 1.0, config={"lora_alpha": 2}, base_config=config)
    assert view.touched == (H,) and torch.equal(view[H], base[H] + 2) and torch.equal(view[E], base[E])
    assert view.plan.config == ({} if last else {"tie_word_embeddings": False})
    rows = {"model.embed_tokens.token_adapter.trainable_tokens_delta": torch.zeros(1, 3)}
    held = dict(interpolate(given, rows, 1.0, config={"trainable_token_indices": [5]}, base_config=config))
    assert (held[E] is held[H]) == (not last) and held[H][-1, -1] == base[H][-1, -1]


def test_a_full_checkpoint_needs_a_head_that_differs():
    """It is not the embedding under another name, though config.json says so; one that equals it is."""
    tied = LLAMA | {"tie_word_embeddings": True}
    tuned = {E: torch.zeros(7, 3), "other.weight": torch.zeros(7, 3)}
    with pytest.raises(BindingError, match="lacks 1 tensor"):
        bind_sources(Memory(two(last=1)), Tuned(Memory(tuned), None, True), base_config=tied, **PLAIN)
    found = bind_sources(Memory(two(last=0)), Tuned(Memory(tuned), None, True), base_config=tied, **PLAIN)
    assert found.alike == {H: E}


def test_values_are_compared_only_where_tuning_touches_them(monkeypatch):
    """Nothing is read for an adapter of other modules, nor where config.json unties the two."""
    monkeypatch.setattr(planning, "hold_same", lambda *names: pytest.fail(f"compared {names}"))
    other = {"other.lora_A.weight": torch.ones(2, 3), "other.lora_B.weight": torch.ones(7, 2)}
    assert list(plan(two(last=1), other, config={"lora_alpha": 2}, base_config=LLAMA).bindings) == ["other.weight"]
    untied = LLAMA | {"tie_word_embeddings": False}
    assert list(plan(two(last=0), HEADED, config={"lora_alpha": 2}, base_config=untied).bindings) == [H]


@pytest.mark.parametrize("other", [torch.zeros(7, 3), torch.zeros(7, 2), torch.zeros(7, 3).half()])
def test_same_is_the_same_dtype_shape_and_values(other):
    """Of tensors in memory, whatever their strides."""
    memory = Memory({"a": torch.zeros(3, 7).T, "b": other})
    assert hold_same(memory, "a", "b") == (other.shape == (7, 3) and other.dtype == torch.float32)


def test_a_base_as_its_own_tuned_model_is_noted(tmp_path):
    """Given twice, also through a link, it changes nothing; a copy of it is another checkpoint."""
    for name in ("base", "copy"):
        (tmp_path / name).mkdir()
        save_file({"w": torch.ones(2, 2)}, tmp_path / name / "model.safetensors")
    (tmp_path / "link").symlink_to(tmp_path / "base")
    notes = [bool(plan(tmp_path / "base", tmp_path / other).notes) for other in ("base", "link", "copy")]
    assert notes == [True, True, False]
    assert "nothing changes" in interpolate(tmp_path / "base", tmp_path / "link", 0.5).plan.notes[0]
