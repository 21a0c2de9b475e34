"""Build the inputs of the benchmark: a base in the shape of a Llama, and LoRAs and a DoRA for it, as PEFT saves them.

    python tests/benchmarks/build.py FOLDER LAYERS

FOLDER gets `base`, `lora`, `lora128` (its rank) and `dora`, and is complete or absent. With 16 layers the base is 3.0
GB of bfloat16 (the shape of Llama 3.2 1B, with a head of its own). Values come from a seeded generator. One shard at a
time is in memory.
The runner starts this file as a process of its own, so that the runner stays small (see `run.py`).
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

HIDDEN = 2048
INNER = 8192
KEYS = 512
VOCABULARY = 128_256
RANK = 16
LAYERS_PER_SHARD = 4
BLOCK = 1 << 22
PROJECTIONS = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KEYS, HIDDEN),
    "self_attn.v_proj": (KEYS, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}
"""Shape (out, in) of the seven projections of a layer, all of which the adapters tune."""


def main() -> int:
    """Build into a sibling folder, then rename."""
    folder, layers = Path(sys.argv[1]), int(sys.argv[2])
    making = folder.with_name(folder.name + ".part")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    norms = write_base(making / "base", layers)
    write_adapter(making / "lora", norms, dora=False)
    write_adapter(making / "lora128", norms, dora=False, rank=128)
    write_adapter(making / "dora", norms, dora=True)
    shutil.rmtree(folder, ignore_errors=True)
    making.rename(folder)
    return 0


def write_base(folder: Path, layers: int) -> dict[str, Tensor]:
    """The base, shard by shard, with its index and config; the row norms of every projection, by module."""
    folder.mkdir()
    random = torch.Generator().manual_seed(0)
    plan = list(shard_shapes(layers))
    homes: dict[str, str] = {}
    norms: dict[str, Tensor] = {}
    total = 0
    for number, shapes in enumerate(plan, start=1):
        tensors = {name: weight(shape, random) for name, shape in shapes.items()}
        file = f"model-{number:05}-of-{len(plan):05}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        homes |= dict.fromkeys(tensors, file)
        total += sum(tensor.nbytes for tensor in tensors.values())
        norms |= {
            name.removesuffix(".weight"): torch.linalg.vector_norm(tensor, dim=1, dtype=torch.float32)
            for name, tensor in tensors.items()
            if name.endswith("_proj.weight")
        }
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": homes})
    write_json(folder / "config.json", config(layers))
    return norms


def shard_shapes(layers: int) -> Iterator[dict[str, tuple[int, ...]]]:
    """Names and shapes of the tensors, one shard after the other."""
    yield {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for first in range(0, layers, LAYERS_PER_SHARD):
        shapes: dict[str, tuple[int, ...]] = {}
        for layer in range(first, min(first + LAYERS_PER_SHARD, layers)):
            prefix = f"model.layers.{layer}"
            shapes |= {f"{prefix}.{name}.weight": shape for name, shape in PROJECTIONS.items()}
            shapes |= {f"{prefix}.{name}.weight": (HIDDEN,) for name in ("input_layernorm", "post_attention_layernorm")}
        yield shapes
    yield {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}


def weight(shape: tuple[int, ...], random: torch.Generator) -> Tensor:
    """A bfloat16 tensor: near 1 for a norm, of the size that a trained weight has else. Drawn block by block."""
    values = torch.empty(shape, dtype=torch.bfloat16)
    mean = 1.0 if len(shape) == 1 else 0.0
    for block in values.view(-1).split(BLOCK):
        block.copy_(torch.randn(len(block), generator=random).mul_(0.02).add_(mean))
    return values


def write_adapter(folder: Path, norms: dict[str, Tensor], *, dora: bool, rank: int = RANK) -> None:
    """An adapter on every projection, in float32, as PEFT saves it.

    B makes the difference some percent of the weight. Magnitudes are the base's row norms, moved a little.
    """
    folder.mkdir()
    random = torch.Generator().manual_seed(2 if dora else 1)
    tensors: dict[str, Tensor] = {}
    for module, norm in norms.items():
        rows, columns = PROJECTIONS[".".join(module.split(".")[-2:])]
        key = f"base_model.model.{module}"
        tensors[f"{key}.lora_A.weight"] = torch.randn(rank, columns, generator=random) / columns**0.5
        tensors[f"{key}.lora_B.weight"] = torch.randn(rows, rank, generator=random) * 0.006
        if dora:
            tensors[f"{key}.lora_magnitude_vector"] = norm * (1 + 0.02 * torch.randn(rows, generator=random))
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    targets = sorted(name.rpartition(".")[2] for name in PROJECTIONS)
    said = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "base", "bias": "none"}
    numbers = {"r": rank, "lora_alpha": 2 * rank, "lora_dropout": 0.0, "use_dora": dora, "use_rslora": False}
    write_json(folder / "adapter_config.json", {**said, **numbers, "target_modules": targets})


def config(layers: int) -> dict[str, object]:
    """config.json of the base."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": layers,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
    }


def write_json(path: Path, value: object) -> None:
    """A small JSON file."""
    path.write_text(json.dumps(value, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
