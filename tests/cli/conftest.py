"""A small sharded model with a LoRA, written by the safetensors library, for the tests of the command line."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

MODULES = {"model.layers.0.self_attn.q_proj": (6, 4), "model.layers.1.mlp.up_proj": (8, 4)}


@dataclass(frozen=True)
class Model:
    """Folders of a base and its adapter, and where an output would go."""

    base: Path
    adapter: Path
    out: Path

    def args(self, *more: str, alpha: str = "0.5") -> list[str]:
        """An `interpolate` command line."""
        return ["interpolate", str(self.base), str(self.adapter), str(self.out), "--alpha", alpha, *more]

    def edit_config(self, **fields: object) -> None:
        """Set fields of adapter_config.json; None removes one."""
        path = self.adapter / "adapter_config.json"
        config = json.loads(path.read_text()) | fields
        path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))

    def edit_adapter(self, **changes: torch.Tensor | None) -> None:
        """Set tensors of the adapter, dots spelled as __; None removes one."""
        path = self.adapter / "adapter_model.safetensors"
        tensors = load_file(path) | {key.replace("__", "."): value for key, value in changes.items()}
        save_file({key: value for key, value in tensors.items() if value is not None}, path)


def write_shards(folder: Path, shards: list[dict[str, torch.Tensor]], config: dict[str, object]) -> None:
    """A checkpoint as transformers writes it."""
    folder.mkdir()
    names = [f"model-{at:05}-of-{len(shards):05}.safetensors" for at in range(1, len(shards) + 1)]
    for name, tensors in zip(names, shards, strict=True):
        save_file(tensors, folder / name, metadata={"format": "pt"})
    homes = {key: name for name, tensors in zip(names, shards, strict=True) for key in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": homes}))
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture
def model(tmp_path: Path) -> Model:
    """A base of two shards and a LoRA of rank 2 on two of its modules."""
    random = torch.Generator().manual_seed(0)

    def values(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random)

    body = {f"{module}.weight": values(*shape) for module, shape in MODULES.items()}
    rest = {"model.norm.weight": values(4), "model.steps": torch.arange(3)}
    write_shards(tmp_path / "base", [body, rest], {"model_type": "llama", "tie_word_embeddings": False})
    factors = {}
    for module, (rows, columns) in MODULES.items():
        factors[f"base_model.model.{module}.lora_A.weight"] = values(2, columns)
        factors[f"base_model.model.{module}.lora_B.weight"] = values(rows, 2)
    (tmp_path / "adapter").mkdir()
    save_file(factors, tmp_path / "adapter" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "bias": "none", "base_model_name_or_path": "org/\x1b]0;x"}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    return Model(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
