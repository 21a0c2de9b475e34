"""Fine-tune a base model on pages of Unicode's table with PEFT's LoRA or DoRA, on the CPU, and save the adapter.

    python tests/example/train.py BASE OUT [--steps 200] [--dora]

AdamW from a fixed seed, its rate falling to 0 in a straight line; a step is two windows of 128 tokens.
"""

from __future__ import annotations

import argparse
import random
import sys
from functools import partial
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

import torch
from example import texts
from real import adapters
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

LORA = {"r": 16, "lora_alpha": 32, "target_modules": adapters.LLAMA_TARGETS, "task_type": "CAUSAL_LM"}
RATE = 1e-3
BATCH = 2
WINDOW = 128


def train(base: Path, out: Path, steps: int, *, dora: bool = False, window: int = WINDOW) -> None:
    """Train on windows drawn without replacement from all training pages joined; tell the loss of every tenth step."""
    tokens = AutoTokenizer.from_pretrained(base)("\n\n".join(texts.training_pages()))["input_ids"]
    starts = random.Random(20).sample(range(0, len(tokens) - window, window), steps * BATCH)

    def loss(model: nn.Module, step: int) -> Tensor:
        batch = torch.tensor([tokens[start : start + window] for start in starts[step * BATCH :][:BATCH]])
        value = model(input_ids=batch, labels=batch).loss
        if step % 10 == 9:
            print(f"step {step + 1} of {steps}: loss {value:.3f}", file=sys.stderr, flush=True)
        return value

    start = partial(AutoModelForCausalLM.from_pretrained, base, dtype=torch.float32)
    adapters.train(start, {**LORA, "use_dora": dora}, loss, steps, out, lambda step: RATE * (1 - step / steps))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("base", type=Path, help="folder of the base model")
    parser.add_argument("out", type=Path, help="folder for the adapter")
    parser.add_argument("--steps", type=int, default=200, help="(%(default)s)")
    parser.add_argument("--dora", action="store_true", help="DoRA in LoRA's place")
    asked = parser.parse_args()
    train(asked.base, asked.out, asked.steps, dora=asked.dora)


if __name__ == "__main__":
    main()
