"""What one writes in an hour: load every shard, merge in the base's dtype with torch, save it, shard by shard.

    python tests/benchmarks/naive_merge.py BASE ADAPTER OUT

It gives the tuned weights (alpha 1), rounded three times. No check, no digest, no sync.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def main() -> int:
    """Merge and save."""
    base, adapter, out = map(Path, sys.argv[1:])
    shutil.copytree(base, out, ignore=shutil.ignore_patterns("*.safetensors"))
    said = json.loads((adapter / "adapter_config.json").read_text())
    factors, scale = load_file(adapter / "adapter_model.safetensors"), said["lora_alpha"] / said["r"]
    for shard in sorted(base.glob("*.safetensors")):
        tensors = load_file(shard)
        with torch.no_grad():
            for name, weight in tensors.items():
                key = f"base_model.model.{name.removesuffix('.weight')}"
                if f"{key}.lora_A.weight" in factors:
                    change = factors[f"{key}.lora_B.weight"] @ factors[f"{key}.lora_A.weight"]
                    weight += (change * scale).to(weight.dtype)
        save_file(tensors, out / shard.name, metadata={"format": "pt"})
    return 0


if __name__ == "__main__":
    sys.exit(main())
