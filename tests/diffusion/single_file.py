"""Original single files of small models, written out from diffusers' weights: no rule of the package is used."""

from __future__ import annotations

import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from naming.test_originals import original

ATTENDED = {"sd": [True, False], "sdxl": [False, True, True]}


def unet_names(kind):
    """The original name of each tensor of a UNet, as diffusers' converter tells them."""
    extra = {"addition_embed_type": "text_time"} if kind == "sdxl" else {}
    parts = [f"transformer_blocks.{at}" for at in (0, 1)]
    inner = [f"{attn}.{to}" for attn in ("attn1", "attn2") for to in ("to_q", "to_k", "to_v", "to_out.0")]
    inner += ["norm1", "norm2", "norm3", "ff.net.0.proj", "ff.net.2"]
    modules = [m for m in original(2, ATTENDED[kind], extra) if "transformer_blocks" not in m]
    places = [m.removesuffix(".proj_in") for m in modules if m.endswith(".proj_in")]
    modules += [f"{place}.{part}.{one}" for place in places for part in parts for one in inner]
    tensors = [f"{module}.{leaf}" for module in modules for leaf in ("weight", "bias")]
    checkpoint = {f"model.diffusion_model.{tensor}": tensor for tensor in tensors}
    return convert_ldm_unet_checkpoint(checkpoint, {"layers_per_block": 2, **extra})


def unet_file(model, kind):
    """A UNet's tensors as a single file has them."""
    names = unet_names(kind)
    return {f"model.diffusion_model.{names[key]}": value.detach().clone() for key, value in model.state_dict().items()}


def clip_file(model, prefix):
    """A CLIP encoder's tensors as single files have those of OpenAI's."""
    state = model.state_dict()
    return {
        f"{prefix}text_model.{key.removeprefix('text_model.')}": value.detach().clone() for key, value in state.items()
    }


def openclip_file(model, prefix):
    """A CLIP encoder's tensors as OpenCLIP has them: q, k and v in one, the projection transposed."""
    state = {key.removeprefix("text_model."): value.detach().clone() for key, value in model.state_dict().items()}
    found = {
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
    }
    if "text_projection.weight" in state:
        found["text_projection"] = state["text_projection.weight"].T.contiguous()
    renames = {
        "self_attn.out_proj": "attn.out_proj", "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
    }  # fmt: skip
    for layer in range(2):
        old, new = f"encoder.layers.{layer}", f"transformer.resblocks.{layer}"
        for leaf in ("weight", "bias"):
            found |= {f"{new}.{to}.{leaf}": state[f"{old}.{one}.{leaf}"] for one, to in renames.items()}
            joined = torch.cat([state[f"{old}.self_attn.{x}_proj.{leaf}"] for x in "qkv"])
            found[f"{new}.attn.in_proj_{leaf}"] = joined
    return {f"{prefix}{key}": value for key, value in found.items()}
