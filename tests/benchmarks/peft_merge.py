"""What PEFT's users do instead: load the base in bfloat16, put the adapter on it, merge, save.

    python tests/benchmarks/peft_merge.py BASE ADAPTER OUT

It gives the tuned weights (alpha 1), which PEFT computes in the base's dtype.
"""

from __future__ import annotations

import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM


def main() -> int:
    """Merge and save."""
    base, adapter, out = sys.argv[1:]
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
