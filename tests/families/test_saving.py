"""Adapters of other methods that come with the numbers of their formulas alone: saved, PEFT loads them all the same."""

from __future__ import annotations

import json
import warnings

import peft
import pytest
import torch
from families.test_against_peft import CASES, train
from safetensors.torch import load_file

from wiseft_core import Adapter, AdapterConfig, interpolate, save_adapter

LEAST = {
    "loha": {"alpha": 7},
    "vera": {},
    "adalora": {"lora_alpha": 5, "init_r": 3, "total_step": 9},
    "ia3": {"feedforward_modules": [f"layers.{at}.up" for at in range(3)]},  # PEFT wants them among target_modules
    "fourierft": {"scaling": 30.0, "random_loc_seed": 777, "n_frequency": 20},
    "ln_tuning": {},
}
"""For each case, what its tensors do not say."""
ADDED = {
    "loha": {"r": 3, "rank_pattern": {rf"^layers\.{at}\.up": 2 for at in range(3)}},
    "vera": {"r": 4},
    "adalora": {"r": 3},
    "ia3": {},
    "fourierft": {},
    "ln_tuning": {},
}
"""What is added of them, besides the modules."""


@pytest.mark.parametrize("name", LEAST)
def test_a_config_is_completed_until_peft_loads_it(name, tmp_path):
    """Modules and ranks come from the tensors, a note says so, and PEFT merges the same weights."""
    case = CASES[name]
    one = train(case, torch.float32, tmp_path / "trained")
    kind = one.live.peft_config["default"].peft_type.value
    tensors = load_file(tmp_path / "trained" / "adapter_model.safetensors")
    adapter = Adapter(tensors, AdapterConfig.from_mapping({"peft_type": kind, **LEAST[name]}))
    report = save_adapter(adapter, tmp_path / "saved", sync=False)
    said = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())
    modules = {
        key.rpartition(".weight")[0] or key.rpartition(".bias")[0] for key in interpolate(one.base, adapter, 1).touched
    }
    assert set(said.pop("target_modules")) == modules - {""}
    assert said == {"peft_type": kind, **LEAST[name], **ADDED[name]}
    assert "target_modules" in report.notes[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = case.make()
        model.load_state_dict(one.base)
        merged = peft.PeftModel.from_pretrained(model, tmp_path / "saved").merge_and_unload().state_dict()
    assert all(torch.equal(merged[key], one.merged[key]) for key in one.merged)
