"""`wiseft inspect` of files that PEFT did not write: what their keys say, without a base and without a config."""

from __future__ import annotations

import json

import torch
from safetensors.torch import save_file

from wiseft_core.cli import main

KOHYA = {
    "lora_unet_down_blocks_0_attn_to_q.lora_down.weight": torch.ones(4, 8),
    "lora_unet_down_blocks_0_attn_to_q.lora_up.weight": torch.ones(8, 4),
    "lora_unet_down_blocks_0_attn_to_q.alpha": torch.tensor(2.0),
    "lora_unet_down_blocks_1_attn_to_q.lora_down.weight": torch.ones(4, 8),
    "lora_unet_down_blocks_1_attn_to_q.lora_up.weight": torch.ones(8, 4),
    "lora_unet_down_blocks_1_attn_to_q.alpha": torch.tensor(2.0),
}


def seen(path, capsys):
    """The exit code, and the object that was printed."""
    code = main(["inspect", str(path), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_a_kohya_file(tmp_path, capsys):
    """Its spelling, modules, ranks and factors; layer numbers are one target."""
    save_file(KOHYA, tmp_path / "mine.safetensors")
    code, told = seen(tmp_path / "mine.safetensors", capsys)
    assert code == 0 and told["spelling"] == "kohya" and told["method"] == "LoRA"
    assert told["ranks"] == {"4": 2} and told["factors"] == {"A": 2, "B": 2} and told["modules"] == 2
    assert list(told["targets"].values()) == [2]


def test_what_is_refused_of_it_is_shown(tmp_path, capsys):
    """A Tucker LoRA is told as such, with everything else."""
    mid = {"lora_unet_down_blocks_0_attn_to_q.lora_mid.weight": torch.ones(4, 4, 3, 3)}
    save_file(KOHYA | mid, tmp_path / "mine.safetensors")
    code, told = seen(tmp_path / "mine.safetensors", capsys)
    assert code == 4 and told["spelling"] == "kohya"
    assert "lora_mid" in told["refusals"][0]["where"]


def test_a_file_that_is_no_adapter_is_refused(tmp_path, capsys):
    """A checkpoint in the adapter's place, and a file that is not there."""
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    for path in (tmp_path / "model.safetensors", tmp_path / "none.safetensors"):
        assert seen(path, capsys)[0] == 3
