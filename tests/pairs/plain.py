"""Models that are not of transformers, with as much of its interface as the tests use."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn


class Plain(nn.Module):
    """Saves and loads itself under its own names."""

    config_class = SimpleNamespace

    def save_pretrained(self, folder: Path, **_: Any) -> None:
        """One file, no config."""
        folder.mkdir()
        save_file(self.state_dict(), folder / "model.safetensors", {"format": "pt"})

    @classmethod
    def from_pretrained(cls, folder: Path, **_: Any) -> tuple[Plain, dict[str, list[str]]]:
        """The model and what did not fit, as transformers reports it."""
        model = cls(SimpleNamespace())
        found = model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
        return model, {
            "missing_keys": found.missing_keys,
            "unexpected_keys": found.unexpected_keys,
            "mismatched_keys": [],
        }


class AttentionNet(Plain):
    """Two layers of torch's own attention, whose in_proj is one bare parameter."""

    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.MultiheadAttention(16, 2) for _ in range(2))
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Never run."""
        return self.head(x)
