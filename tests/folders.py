"""Small checkpoints and adapters on disk, as transformers and PEFT lay them out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": False}


def weights(seed: int = 0, dtype: torch.dtype = torch.bfloat16, layers: int = 2) -> dict[str, Tensor]:
    """A few tensors of a language model's shape, untied."""
    make = torch.Generator().manual_seed(seed)
    tensors = {"model.embed_tokens.weight": torch.randn(11, 6, generator=make)}
    for layer in range(layers):
        tensors[f"model.layers.{layer}.q_proj.weight"] = torch.randn(8, 6, generator=make)
        tensors[f"model.layers.{layer}.q_proj.bias"] = torch.randn(8, generator=make)
    tensors["model.norm.weight"] = torch.randn(6, generator=make)
    tensors["lm_head.weight"] = torch.randn(11, 6, generator=make)
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def write_base(
    folder: Path, tensors: Mapping[str, Tensor], shards: Sequence[Sequence[str]] | None = None, **config: object
) -> Path:
    """A checkpoint folder; `shards` lists the names of each file, None writes a single one."""
    folder.mkdir(parents=True)
    if shards is None:
        save_file(dict(tensors), folder / "model.safetensors", {"format": "pt"})
    else:
        where = {}
        for number, names in enumerate(shards, 1):
            file = f"model-{number:05}-of-{len(shards):05}.safetensors"
            save_file({name: tensors[name] for name in names}, folder / file, {"format": "pt"})
            where |= dict.fromkeys(names, file)
        total = sum(tensor.nbytes for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    return folder


def low_rank(
    base: Mapping[str, Tensor], modules: Sequence[str], rank: int = 2, seed: int = 1, dora: bool = False
) -> dict[str, Tensor]:
    """Factors for linear modules, under the keys that PEFT saves."""
    make, adapter = torch.Generator().manual_seed(seed), {}
    for module in modules:
        out, wide = base[f"{module}.weight"].shape
        key = f"base_model.model.{module}"
        adapter[f"{key}.lora_A.weight"] = torch.randn(rank, wide, generator=make)
        adapter[f"{key}.lora_B.weight"] = torch.randn(out, rank, generator=make)
        if dora:
            adapter[f"{key}.lora_magnitude_vector"] = torch.rand(out, generator=make) + 0.5
    return adapter


def write_adapter(folder: Path, tensors: Mapping[str, Tensor], **config: object) -> Path:
    """An adapter folder as PEFT's save_pretrained lays it out."""
    folder.mkdir(parents=True)
    save_file(dict(tensors), folder / "adapter_model.safetensors", {"format": "pt"})
    fields = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, **config}
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    return folder


def read_all(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a folder, by the safetensors library."""
    tensors: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def tree(folder: Path) -> dict[str, bytes]:
    """The content of every file below a folder, by relative name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def same_bits(one: Tensor, two: Tensor) -> bool:
    """Equal dtype, shape and bytes; NaN and -0.0 count."""
    alike = one.dtype == two.dtype and one.shape == two.shape
    return alike and torch.equal(
        one.contiguous().reshape(-1).view(torch.uint8), two.contiguous().reshape(-1).view(torch.uint8)
    )
