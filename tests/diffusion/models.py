"""Tiny random diffusion models, and adapters of them as diffusers itself saves them."""

from __future__ import annotations

import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from peft import LoraConfig
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
TEXT = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]


def unet(**options):
    """An SD-like UNet: two blocks, the first with attention, two layers each."""
    torch.manual_seed(1)
    shape = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "layers_per_block": 2,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 12,
        "attention_head_dim": 4,
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(**(shape | options)).eval()


def sdxl_unet():
    """An SDXL-like UNet: three blocks, no attention in the first, linear projections, text and time added."""
    return unet(
        block_out_channels=(8, 16, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=36,
    )


def text_encoder(projected: bool = False):
    """A CLIP text encoder of two layers."""
    torch.manual_seed(2)
    config = CLIPTextConfig(
        vocab_size=30, hidden_size=12, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2,
        projection_dim=12, max_position_embeddings=8, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def flux():
    """A Flux-like transformer with one block of each kind."""
    torch.manual_seed(3)
    return FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=12, pooled_projection_dim=6, axes_dims_rope=(2, 2, 4), guidance_embeds=True,
    ).eval()  # fmt: skip


def sd3():
    """An SD3.5-like transformer of two blocks, the first with the second attention."""
    torch.manual_seed(3)
    return SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=12, caption_projection_dim=16, pooled_projection_dim=6,
        pos_embed_max_size=4, dual_attention_layers=(0,), qk_norm="rms_norm",
    ).eval()  # fmt: skip


def trained(model, targets, *, rank=3, alpha=5, name="default", **options):
    """The model with an adapter whose factors are all random, as after training."""
    model.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, **options), adapter_name=name)
    torch.manual_seed(4)
    with torch.no_grad():
        for key, value in model.named_parameters():
            if "lora_" in key:
                value.copy_(value.abs() * 1.3 if "magnitude" in key else torch.randn_like(value) * 0.2)
    return model


def fused(model):
    """The state dict after PEFT's own safe merge of the active adapter."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.merge(safe_merge=True)
    return {
        key.replace(".base_layer.", "."): value.detach().clone()
        for key, value in model.state_dict().items()
        if "lora_" not in key
    }


def stable_diffusion(network, *encoders):
    """A pipeline around these models, enough of one to load adapters into it and to fuse them."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

    shared = {
        "vae": None,
        "tokenizer": None,
        "unet": network,
        "scheduler": DDIMScheduler(clip_sample=False, steps_offset=1),
    }
    if len(encoders) == 2:
        others = {"text_encoder": encoders[0], "text_encoder_2": encoders[1], "tokenizer_2": None}
        return StableDiffusionXLPipeline(**shared, **others, add_watermarker=False)
    others = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return StableDiffusionPipeline(**shared, **others, text_encoder=encoders[0] if encoders else None)


def base_of(**components):
    """The state dicts of components as those of one pipeline."""
    return {f"{name}.{key}": value.clone() for name, model in components.items() for key, value in tensors(model)}


def tensors(model):
    """The model's tensors by the names that it saves them under."""
    return [(key, value) for key, value in model.state_dict().items() if "lora_" not in key]


def by_diffusers(pipe, adapter):
    """The weights of a pipeline's components after diffusers loaded an adapter and fused it safely."""
    pipe.load_lora_weights(adapter)
    names = [name for name in ("unet", "text_encoder", "text_encoder_2") if getattr(pipe, name, None) is not None]
    pipe.fuse_lora(components=names, safe_fusing=True)
    return {
        f"{name}.{key.replace('.base_layer.', '.')}": value.detach().clone()
        for name in names
        for key, value in tensors(getattr(pipe, name))
    }
