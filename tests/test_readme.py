"""The README is true: its code runs as written, and it holds one test command."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A folder with `base/` and `adapter/` of a tiny model, a server and a live PEFT model."""
    monkeypatch.chdir(tmp_path)
    config = LlamaConfig(
        vocab_size=17, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    with warnings.catch_warnings():  # PEFT still asks transformers in a deprecated way
        warnings.simplefilter("ignore")
        model = LlamaForCausalLM(config).eval()
        model.save_pretrained("base")
        peft_model = get_peft_model(
            model, LoraConfig(target_modules=["q_proj", "down_proj"], r=2, use_dora=True)
        ).eval()
        for name, parameter in peft_model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
        peft_model.save_pretrained("adapter")
        other = get_peft_model(LlamaForCausalLM(config), LoraConfig(target_modules=["q_proj"], r=1)).eval()
        other.save_pretrained("other")
    loaded: dict[str, torch.Tensor] = {}
    return SimpleNamespace(server=SimpleNamespace(load_weights=loaded.update), loaded=loaded, peft_model=peft_model)


def test_every_python_block_runs_as_written(folder: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    """The blocks run in order, in one folder with a base and an adapter, and do what their text says."""
    tried: list[str] = []
    space: dict[str, object] = {"server": folder.server, "peft_model": folder.peft_model}
    space["accuracy"] = lambda path: tried.append(path.name) or len(tried) % 3
    for block in BLOCKS:
        exec(compile(block, "README.md", "exec"), space)
    merged = folder.peft_model.merge_and_unload()
    with torch.no_grad():
        expected = merged(space["tokens"]).logits

    assert len(BLOCKS) == 11
    assert tried == ["alpha-0", "alpha-0.25", "alpha-0.5", "alpha-0.75", "alpha-1"]
    assert sorted(path.name for path in Path("outs").iterdir()) == ["alpha-0.25", "sweep.json"]
    assert all(Path(name, "adapter_model.safetensors").exists() for name in ("half", "joined"))
    assert Path("both/wiseft.json").exists()
    assert folder.loaded.keys() == merged.state_dict().keys()
    assert Path("out/wiseft.json").exists()
    assert Path("merged/wiseft.json").exists()
    torch.testing.assert_close(space["logits"], expected)  # the last alpha of the sweep is 1
    assert "2 of 12 tensors change" in capsys.readouterr().out


def test_first_block_has_seven_lines() -> None:
    """The first screen: seven lines of code."""
    assert len(BLOCKS[0].rstrip().splitlines()) == 7


def test_exactly_two_setup_commands() -> None:
    """One runs the main job, one passes the tests."""
    commands = re.findall(r"^\$ (.*)$", README, re.M)

    assert commands == [
        "pip install '.[cli]' && wiseft demo",
        "pip install '.[test]' && pytest -q",
    ]
