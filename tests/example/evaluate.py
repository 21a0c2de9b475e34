"""Measure a model on both kinds of text: mean loss of the next token, in nats, as one JSON object; lower is better.

    python tests/example/evaluate.py MODEL [--texts N]

The model is loaded as it was saved and computes in float32; the same folder gives the same numbers.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

import torch
from example import texts
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

WINDOW = 256  # tokens read of each text


def evaluate(folder: Path, most: int | None = None) -> dict[str, float]:
    """The mean loss on each kind, over at most so many of its texts; products in bf16 would be far slower."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    kinds = {"table_loss": texts.held_out_pages(), "english_loss": texts.english()}
    return {
        metric: mean_loss(model, [tokenizer(text)["input_ids"][:WINDOW] for text in kind[:most]])
        for metric, kind in kinds.items()
    }


def mean_loss(model: nn.Module, windows: list[list[int]]) -> float:
    """Nats per predicted token; each window is read by itself."""
    total = count = 0
    with torch.no_grad():
        for window in windows:
            batch = torch.tensor([window])
            total += model(input_ids=batch, labels=batch).loss.item() * (len(window) - 1)
            count += len(window) - 1
    return total / count


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path, help="folder of a model")
    parser.add_argument("--texts", type=int, metavar="N", help="read the first N texts of each kind only")
    asked = parser.parse_args()
    print(json.dumps(evaluate(asked.model, asked.texts)))


if __name__ == "__main__":
    main()
