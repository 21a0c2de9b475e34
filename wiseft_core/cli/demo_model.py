"""The files that `wiseft demo` works on: a small model in the shape of Llama, a LoRA and a DoRA for it, as PEFT saves
them. Random numbers from a generator of its own: the process's global one is left alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save
from torch import Tensor

HIDDEN: Final = 384
INNER: Final = 1024
KEYS: Final = 128
LAYERS: Final = 4
VOCABULARY: Final = 8000
RANK: Final = 8
LORA_ALPHA: Final = 16
PROJECTIONS: Final = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KEYS, HIDDEN),
    "self_attn.v_proj": (KEYS, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}
"""Shape (out, in) of every module that the adapters tune, by its name in a layer."""
NORMS: Final = ("input_layernorm", "post_attention_layernorm")
CONFIG: Final = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "vocab_size": VOCABULARY,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


def modules() -> Iterator[tuple[str, tuple[int, int]]]:
    """Path and shape of every module that the adapters tune."""
    for layer in range(LAYERS):
        for name, shape in PROJECTIONS.items():
            yield f"model.layers.{layer}.{name}", shape


def write_base(folder: Path) -> None:
    """A sharded bf16 checkpoint with config.json and a text file beside it."""
    folder.mkdir(parents=True)
    random = torch.Generator().manual_seed(0)

    def weight(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=random) * 0.02).to(torch.bfloat16)

    body: dict[str, Tensor] = {f"{module}.weight": weight(*shape) for module, shape in modules()}
    for layer in range(LAYERS):
        body |= {f"model.layers.{layer}.{norm}.weight": weight(HIDDEN) + 1 for norm in NORMS}
    shards = (
        {"model.embed_tokens.weight": weight(VOCABULARY, HIDDEN)},
        body,
        {"model.norm.weight": weight(HIDDEN) + 1, "lm_head.weight": weight(VOCABULARY, HIDDEN)},
    )
    homes: dict[str, str] = {}
    for number, tensors in enumerate(shards, start=1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        _write_tensors(folder / name, tensors)
        homes |= dict.fromkeys(sorted(tensors), name)
    total = sum(tensor.nbytes for tensors in shards for tensor in tensors.values())
    _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": homes})
    _write_json(folder / "config.json", CONFIG)
    (folder / "vocabulary.txt").write_text("\n".join(f"word{number}" for number in range(VOCABULARY)) + "\n")


def write_adapter(folder: Path, base: Path, *, dora: bool) -> None:
    """A LoRA or a DoRA of rank 8 on every projection. Its magnitudes are the row norms of the base, moved a little."""
    folder.mkdir(parents=True)
    random = torch.Generator().manual_seed(2 if dora else 1)
    weights = read_tensors(base) if dora else {}
    tensors: dict[str, Tensor] = {}
    for module, (rows, columns) in modules():
        key = f"base_model.model.{module}"
        tensors[f"{key}.lora_A.weight"] = torch.randn(RANK, columns, generator=random) / columns**0.5
        tensors[f"{key}.lora_B.weight"] = torch.randn(rows, RANK, generator=random) * 0.004
        if dora:
            norms = weights[f"{module}.weight"].float().norm(dim=1)
            tensors[f"{key}.lora_magnitude_vector"] = norms * (1 + 0.02 * torch.randn(rows, generator=random))
    _write_tensors(folder / "adapter_model.safetensors", tensors)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.name,
        "r": RANK,
        "lora_alpha": LORA_ALPHA,
        "use_dora": dora,
        "use_rslora": False,
        "bias": "none",
        "target_modules": sorted(name.rpartition(".")[2] for name in PROJECTIONS),
    }
    _write_json(folder / "adapter_config.json", config)


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder's safetensors files, by the safetensors library: this package reads nothing here."""
    from safetensors.torch import load_file

    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """A file as `save_file` writes it; but where the disk is full, that raises an error which is no OSError."""
    path.write_bytes(save(tensors, metadata={"format": "pt"}))


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
