"""A real, tiny StableDiffusionPipeline: saved by diffusers, interpolated here, loaded by diffusers again.

The oracle is diffusers' own loading, and for the adapter PEFT's merge in the live unet.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from folders import tree, write_adapter

from wiseft_core import interpolate, open_checkpoint, save_checkpoint, verify

MODELS = ("text_encoder", "unet", "vae")


def quiet_diffusers():
    """diffusers and what it needs; its own warnings are not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import diffusers
        import peft
        import transformers
    return diffusers, transformers, peft


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Path:
    """The folder of a pipeline with weights at random, whose unet is sharded."""
    diffusers, transformers, _ = quiet_diffusers()
    folder = tmp_path_factory.mktemp("sd") / "base"
    torch.manual_seed(3)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=32, attention_head_dim=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(32,), down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",)
    )
    text = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=50,
            hidden_size=32,
            intermediate_size=37,
            num_hidden_layers=2,
            num_attention_heads=4,
            bos_token_id=0,
            eos_token_id=1,
        )
    )
    words = ["<|startoftext|>", "<|endoftext|>", "a</w>", "b</w>"]
    tokenizer = transformers.CLIPTokenizer(vocab={word: at for at, word in enumerate(words)}, merges=[])
    made = diffusers.StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=tokenizer, unet=unet,
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.save_pretrained(folder, safe_serialization=True)
        unet.save_pretrained(folder / "unet", max_shard_size="1MB")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    return folder


def loaded(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The weights of each model as diffusers loads the pipeline."""
    diffusers, _, _ = quiet_diffusers()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    return {name: getattr(made, name).state_dict() for name in MODELS}


def lora(folder: Path, prefix: str) -> tuple[Path, dict[str, torch.Tensor]]:
    """A LoRA that PEFT saved of the unet, its keys under `prefix`; and the unet's weights as PEFT merges it."""
    diffusers, _, peft = quiet_diffusers()
    torch.manual_seed(5)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["to_q", "to_out.0", "conv1"], init_lora_weights=False)
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(unet, config)
        saved = {key: value.clone() for key, value in peft.get_peft_model_state_dict(model).items()}
        merged = model.merge_and_unload().state_dict()
    named = {key.replace("base_model.model.", prefix): value for key, value in saved.items()}
    fields = {"r": 4, "lora_alpha": 8, "target_modules": ["to_q", "to_out.0", "conv1"]}
    return write_adapter(folder.parent / prefix.replace(".", "-"), named, **fields), merged


def test_a_real_pipeline(pipeline, tmp_path):
    """At 0 its own bytes and what diffusers loads; at 1 what PEFT merges, in the unet and nowhere else."""
    assert (pipeline / "unet" / "diffusion_pytorch_model.safetensors.index.json").exists()
    before = loaded(pipeline)
    with open_checkpoint(pipeline) as base:
        assert base.components == MODELS
    for prefix in ("unet.", "base_model.model.unet."):
        adapter, merged = lora(pipeline, prefix)
        view = interpolate(pipeline, adapter, 0)
        out = tmp_path / prefix.replace(".", "-")
        out.mkdir()
        save_checkpoint(view, out / "0")
        assert {name: data for name, data in tree(out / "0").items() if name != "wiseft.json"} == tree(pipeline)
        for name, weights in loaded(out / "0").items():
            assert all(torch.equal(value, before[name][key]) for key, value in weights.items())
        save_checkpoint(view.at(1), out / "1")
        after = loaded(out / "1")
        assert all(
            torch.equal(after[name][key], before[name][key]) for name in ("text_encoder", "vae") for key in after[name]
        )
        changed = 0
        for key, value in after["unet"].items():
            torch.testing.assert_close(value, merged[key], rtol=1e-5, atol=1e-5)
            changed += not torch.equal(value, before["unet"][key])
        assert changed == len(view.touched) > 10
        assert verify(out / "1", base=pipeline, adapter=adapter).ok
        manifest = json.loads((out / "1" / "wiseft.json").read_text())
        assert "unet/diffusion_pytorch_model.safetensors.index.json" in {one["file"] for one in manifest["outputs"]}
