"""all-MiniLM-L6-v2 with an adapter of each other method, trained by PEFT for some steps, through the command line.

A row of `METHODS` is a method: files in, `wiseft interpolate` at 0, 0.5 and 1, `wiseft verify`. What comes out is held
to PEFT's own merge; exactness is tested on small tensors, in tests/families.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import peft
import pytest
import torch
from folders import read_all
from real import adapters
from safetensors.torch import load_file
from transformers import AutoModel

from wiseft_core.cli import main

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
STEPS = 6
TARGETS = adapters.BERT_TARGETS


class Method(NamedTuple):
    """A method as PEFT trains it.

    Attributes:
        config: PEFT's config class.
        fields: Its arguments.
        units: The error of PEFT's float32 merge, in units of 2^-24 of the largest number of a tensor: about twice what
            was seen.
    """

    config: Any
    fields: dict[str, Any]
    units: float = 3


METHODS = {
    "loha": Method(peft.LoHaConfig, {"target_modules": TARGETS, "r": 4, "alpha": 6}),
    "lokr": Method(peft.LoKrConfig, {"target_modules": TARGETS, "r": 4, "alpha": 6}),
    "adalora": Method(
        peft.AdaLoraConfig,
        {"target_modules": TARGETS, "init_r": 6, "target_r": 4, "total_step": 100, "lora_alpha": 12},
    ),
    "ia3": Method(
        peft.IA3Config, {"target_modules": ["query", "value", "output.dense"], "feedforward_modules": ["output.dense"]}
    ),
    "oft": Method(peft.OFTConfig, {"target_modules": TARGETS, "oft_block_size": 32, "r": 0}, units=12),
    "vera": Method(peft.VeraConfig, {"target_modules": ["query", "value"], "r": 16}),
    "fourierft": Method(
        peft.FourierFTConfig, {"target_modules": ["query", "value"], "n_frequency": 200, "scaling": 100.0}
    ),
    "shira": Method(peft.ShiraConfig, {"target_modules": TARGETS, "r": 4}),
    "ln_tuning": Method(peft.LNTuningConfig, {"target_modules": ["LayerNorm"]}),
    "hra": Method(peft.HRAConfig, {"target_modules": ["query", "value"], "r": 8}, units=28),
    "miss": Method(peft.MissConfig, {"target_modules": ["query", "value"], "r": 16}),
    "randlora": Method(peft.RandLoraConfig, {"target_modules": ["query", "value"], "r": 16}, units=18),
    "delora": Method(peft.DeloraConfig, {"target_modules": ["query", "value"], "r": 8}),
    "hira": Method(peft.HiraConfig, {"target_modules": ["query", "value"], "r": 8}),
    "c3a": Method(peft.C3AConfig, {"target_modules": ["query", "value"], "block_size": 64}),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_trained_adapter_goes_through_the_command_line(name, minilm: Path, tmp_path: Path):
    """At 0 the base's bytes, at 1 PEFT's merge within its rounding, at 0.5 the middle; and every output verifies."""
    method, adapter = METHODS[name], tmp_path / "adapter"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapters.train_minilm(minilm, adapter, method.fields, method.config, STEPS)
        model = AutoModel.from_pretrained(minilm).eval()
        merged = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()
    base, found = read_all(minilm), {}
    for alpha in ("0", "0.5", "1"):
        out = tmp_path / f"alpha-{alpha}"
        assert main(["interpolate", str(minilm), str(adapter), str(out), "--alpha", alpha, "--no-sync", "--quiet"]) == 0
        assert main(["verify", str(out), "--base", str(minilm), "--adapter", str(adapter), "--quiet"]) == 0
        found[alpha] = load_file(out / "model.safetensors")
    assert (tmp_path / "alpha-0" / "model.safetensors").read_bytes() == (minilm / "model.safetensors").read_bytes()
    worst, changed = 0.0, {key for key, before in base.items() if not torch.equal(found["1"][key], before)}
    assert changed == {key for key, after in merged.items() if not torch.equal(after, base[key])}
    assert len(changed) >= 12
    for key in changed:
        size = float(max(base[key].abs().max(), merged[key].abs().max()))
        for alpha, share in (("1", 1.0), ("0.5", 0.5)):
            wanted = base[key].double() + share * (merged[key].double() - base[key].double())
            worst = max(worst, float((found[alpha][key].double() - wanted).abs().max()) / size * 2**24)
    print(f"{name}: {len(changed)} tensors, largest error {worst:.2f} of 2^-24")
    assert worst <= method.units
