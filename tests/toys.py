"""Tiny models of known weights with one of each layer that PEFT adapts."""

from __future__ import annotations

import torch
from torch import nn
from transformers import GPT2Config, GPT2Model


class Toy(nn.Module):
    """One of each layer; the forward pass is never run."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(11, 8)
        self.layers = nn.ModuleList(
            nn.ModuleDict({"q_proj": nn.Linear(8, 8), "up": nn.Linear(8, 12)}) for _ in range(3)
        )
        self.conv1, self.conv2 = nn.Conv1d(4, 6, 3), nn.Conv2d(4, 6, (3, 2))
        self.conv3, self.point = nn.Conv3d(4, 6, (2, 3, 2)), nn.Conv2d(4, 6, 1)
        self.grouped, self.square = nn.Conv2d(4, 6, 3, groups=2), nn.Conv2d(4, 6, 3)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Embed and go on, so that PEFT accepts the model."""
        return self.head(self.norm(self.emb(x)))


def toy() -> nn.Module:
    """A model of known weights."""
    torch.manual_seed(0)
    return Toy()


def gpt2() -> nn.Module:
    """A tiny GPT-2, for transformers' Conv1D, square and not."""
    torch.manual_seed(0)
    return GPT2Model(
        GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    )
