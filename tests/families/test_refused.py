"""Every adapter of PEFT that no weights can be made from is refused by name, from the config that PEFT writes."""

from __future__ import annotations

import importlib.util
import sys
import types
import warnings

import peft
import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.lora.config import CordaConfig, LoraGAConfig
from safetensors.torch import save_file

from wiseft_core import errors, interpolate
from wiseft_core.config_methods import METHODS_REFUSED, REFUSED, REWRITES

NEEDED = {
    "ADAPTION_PROMPT": {"target_modules": "self_attn", "adapter_len": 4, "adapter_layers": 2},
    "CPT": {"cpt_token_ids": [1], "cpt_mask": [1], "cpt_tokens_type_mask": [1], "task_type": "CAUSAL_LM"},
    "XLORA": {"hidden_size": 8, "adapters": {"one": "org/one"}},
}
"""What PEFT's configs want to be told."""
VARIANTS = {
    "use_qalora": {"use_qalora": True},
    "arrow_config": {"arrow_config": peft.ArrowConfig()},
    "alora_invocation_tokens": {"alora_invocation_tokens": [1, 2], "task_type": "CAUSAL_LM"},
}
"""LoRA's variants, by the field that asks for each."""
STARTS = {
    "pissa_niter": {"init_lora_weights": "pissa_niter_4"},
    "corda": {"init_lora_weights": "corda", "corda_config": CordaConfig()},
    "lora_ga": {"init_lora_weights": "lora_ga", "lora_ga_config": LoraGAConfig()},
    "loftq": {"init_lora_weights": "loftq", "loftq_config": peft.LoftQConfig()},
}
"""Starts after which LoRA's factors do not belong to the base file alone."""
BASE = {"layers.0.q_proj.weight": torch.ones(4, 4)}


@pytest.fixture(autouse=True)
def _libraries(monkeypatch):
    """PEFT makes no config of AdaMSS and LoftQ where scikit-learn and scipy are missing: their files need neither."""
    monkeypatch.setitem(sys.modules, "sklearn", types.ModuleType("sklearn"))
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: name == "scipy" or found(name, *rest))


def refused(config, folder):
    """The refusal of a folder with this config, and factors as LoRA has them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config.save_pretrained(folder)
    start = "base_model.model.layers.0.q_proj.lora_"
    save_file(
        {f"{start}A.weight": torch.ones(8, 4), f"{start}B.weight": torch.ones(4, 8)},
        folder / "adapter_model.safetensors",
    )
    with pytest.raises(errors.Unsupported) as caught:
        interpolate(BASE, folder, 0.5)
    assert caught.value.exit_code == 4
    return caught.value


@pytest.mark.parametrize("kind", METHODS_REFUSED)
def test_methods(kind, tmp_path):
    """The method's name and the reason."""
    error = refused(PEFT_TYPE_TO_CONFIG_MAPPING[kind](**NEEDED.get(kind, {})), tmp_path)
    assert kind in error.got and METHODS_REFUSED[kind] in error.got


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_of_lora(name, tmp_path):
    """The field's name and the reason."""
    error = refused(peft.LoraConfig(target_modules=["q_proj"], **VARIANTS[name]), tmp_path)
    assert name in error.where and REFUSED[name] in error.got


@pytest.mark.parametrize("name", STARTS)
def test_starts_of_lora(name, tmp_path):
    """The start's name and the reason."""
    error = refused(peft.LoraConfig(target_modules=["q_proj"], **STARTS[name]), tmp_path)
    assert "init_lora_weights" in error.where and REWRITES[name] in error.got


def test_nothing_is_left_out():
    """Every reason that the package has is tested here, and belongs to a field or a method of PEFT."""
    assert VARIANTS.keys() >= REFUSED.keys() and STARTS.keys() == REWRITES.keys()
    assert METHODS_REFUSED.keys() <= {kind.value for kind in peft.PeftType}
    assert REFUSED.keys() <= peft.LoraConfig.__dataclass_fields__.keys()
