"""Small diffusers pipelines on disk, written by the safetensors library and json alone."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from folders import low_rank, tree, write_adapter
from safetensors.torch import load_file, save_file

QUERY, UP, TEXT = "down.0.to_q", "up.0.to_out.0", "text_model.layers.0.q_proj"
INDEX = "diffusion_pytorch_model.safetensors.index.json"
FIRST, SECOND = (f"diffusion_pytorch_model-0000{at}-of-00002.safetensors" for at in (1, 2))
LISTED = {
    "_class_name": "TinyPipeline",
    "_diffusers_version": "0.42.1",
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "safety_checker": [None, None],
    "requires_safety_checker": False,
    "image_size": [64, 64],
}


def components(dtype: torch.dtype = torch.float32) -> dict[str, dict[str, torch.Tensor]]:
    """The tensors of each model by the names in its own files; one name is in two of them."""
    make = torch.Generator().manual_seed(7)

    def values(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=make).to(dtype)

    unet = {f"{QUERY}.weight": values(6, 4), "conv_in.weight": values(3, 2, 3, 3), "conv_in.bias": values(3)}
    text = {f"{TEXT}.weight": values(6, 4), "text_model.final_layer_norm.bias": values(4)}
    vae = {"conv_in.weight": values(3, 2, 3, 3), "decoder.steps": torch.arange(5)}
    return {"text_encoder": text, "unet": unet | {f"{UP}.weight": values(8, 6)}, "vae": vae}


def write_json(path: Path, value: object) -> None:
    """A JSON file, and the folder that it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2), encoding="ascii")


def write_pipeline(folder: Path, dtype: torch.dtype = torch.float32, **listed: object) -> Path:
    """A pipeline: a sharded unet, a text encoder, a vae, and folders and files that are no models."""
    found = components(dtype)
    write_json(folder / "model_index.json", LISTED | listed)
    write_json(folder / "unet" / "config.json", {"_class_name": "UNet2DConditionModel", "sample_size": 8})
    write_json(folder / "text_encoder" / "config.json", {"model_type": "clip_text_model", "dtype": "float32"})
    write_json(folder / "vae" / "config.json", {"_class_name": "AutoencoderKL"})
    names = sorted(found["unet"])
    parts = {FIRST: names[:2], SECOND: names[2:]}
    for file, inside in parts.items():
        save_file({name: found["unet"][name] for name in inside}, folder / "unet" / file, {"format": "pt"})
    weight_map = {name: file for file, inside in parts.items() for name in inside}
    write_json(folder / "unet" / INDEX, {"metadata": {"total_size": 1}, "weight_map": weight_map})
    save_file(found["text_encoder"], folder / "text_encoder" / "model.safetensors", {"format": "pt"})
    save_file(found["vae"], folder / "vae" / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    write_json(folder / "tokenizer" / "vocab.json", {"a": 0})
    write_json(folder / "tokenizer" / "tokenizer_config.json", {})
    write_json(folder / "scheduler" / "scheduler_config.json", {"_class_name": "DDIMScheduler"})
    (folder / "README.md").write_text("# tiny\n")
    return folder


def whole(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """All tensors of the pipeline, each with its component in front."""
    return {f"{part}.{name}": value for part, held in components(dtype).items() for name, value in held.items()}


def write_lora(folder: Path, *modules: str, **config: object) -> Path:
    """A LoRA with PEFT's keys on modules of the pipeline, named with their component."""
    return write_adapter(folder, low_rank(whole(), modules or (f"unet.{QUERY}", f"unet.{UP}")), **config)


def read_pipeline(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a pipeline's folder, read by the safetensors library, with the component in front."""
    return {
        f"{file.parent.name}.{name}": value
        for file in sorted(folder.glob("*/*.safetensors"))
        for name, value in load_file(file).items()
    }


def cache_snapshot(cache: Path, name: str, files: Path, commit: str = "a" * 40, revision: str | None = "main") -> Path:
    """The files of a folder as a snapshot, laid out as huggingface_hub does: links to blobs, and a reference."""
    root = cache / f"models--{name.replace('/', '--')}"
    snapshot = root / "snapshots" / commit
    (root / "blobs").mkdir(parents=True, exist_ok=True)
    for file, data in tree(files).items():
        blob = root / "blobs" / f"{len(os.listdir(root / 'blobs')):040}"
        blob.write_bytes(data)
        (snapshot / file).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / file).symlink_to(os.path.relpath(blob, (snapshot / file).parent))
    if revision is not None:
        (root / "refs" / revision).parent.mkdir(parents=True, exist_ok=True)
        (root / "refs" / revision).write_text(commit)
    return snapshot
