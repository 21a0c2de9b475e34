"""What a plan tells a human who may have taken the wrong base."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from wiseft_core import errors, interpolate, plan


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
