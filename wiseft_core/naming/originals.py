"""The original layouts of image models, and what their modules are called in diffusers.

Naming room: strings only, and flat ones, with underscores for dots, so that one rule serves checkpoints and kohya's
names alike. A single file holds all components, each behind its own prefix; inside, a UNet counts its blocks through
(`input_blocks.4.1`), OpenCLIP, Flux and SD3 keep q, k and v in one tensor.

    input_blocks.1.0 ... of a UNet with L layers to a block are
    down_blocks.0.resnets.0, .1, ... (L of each), then the downsampler; the last block has none

Source: the formats are public; diffusers 0.42, `loaders/single_file_utils.py`, says the same and is the tests' oracle.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from wiseft_core.naming.links import Part
from wiseft_core.naming.words import UNET

FILE: Final = {
    "model.diffusion_model.": UNET,
    "cond_stage_model.transformer.": "text_encoder",
    "cond_stage_model.model.": "text_encoder",
    "conditioner.embedders.0.transformer.": "text_encoder",
    "conditioner.embedders.0.model.": "text_encoder_2",
    "conditioner.embedders.1.model.": "text_encoder_2",
    "text_encoders.clip_l.transformer.": "text_encoder",
    "text_encoders.clip_g.transformer.": "text_encoder_2",
    "text_encoders.t5xxl.transformer.": "text_encoder_3",
}
"""The components of a single file, by the start of their names; SDXL's refiner has the second encoder only."""
RESNET: Final = {
    "in_layers_0": "norm1",
    "in_layers_2": "conv1",
    "emb_layers_1": "time_emb_proj",
    "out_layers_0": "norm2",
    "out_layers_3": "conv2",
    "skip_connection": "conv_shortcut",
}
AROUND: Final = {
    "time_embed_0": ("time_embedding_linear_1",),
    "time_embed_2": ("time_embedding_linear_2",),
    "label_emb_0_0": ("add_embedding_linear_1", "class_embedding_linear_1"),
    "label_emb_0_2": ("add_embedding_linear_2", "class_embedding_linear_2"),
    "input_blocks_0_0": ("conv_in",),
    "out_0": ("conv_norm_out",),
    "out_2": ("conv_out",),
}
"""A UNet's modules outside its blocks. What SDXL adds to the time embedding, SD2.1-unCLIP calls a class."""
MIDDLE: Final = {"0": "resnets_0", "1": "attentions_0", "2": "resnets_1"}
OPENCLIP: Final = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp_c_fc": "mlp_fc1",
    "mlp_c_proj": "mlp_fc2",
    "attn_out_proj": "self_attn_out_proj",
}
STREAMS: Final = {
    "img_mod_lin": "norm1_linear",
    "txt_mod_lin": "norm1_context_linear",
    "img_attn_proj": "attn_to_out_0",
    "txt_attn_proj": "attn_to_add_out",
    "img_mlp_0": "ff_net_0_proj",
    "img_mlp_2": "ff_net_2",
    "txt_mlp_0": "ff_context_net_0_proj",
    "txt_mlp_2": "ff_context_net_2",
    "linear2": "proj_out",
    "modulation_lin": "norm_linear",
    "x_block_attn_proj": "attn_to_out_0",
    "x_block_attn2_proj": "attn2_to_out_0",
    "x_block_mlp_fc1": "ff_net_0_proj",
    "x_block_mlp_fc2": "ff_net_2",
    "x_block_adaLN_modulation_1": "norm1_linear",
    "context_block_attn_proj": "attn_to_add_out",
    "context_block_mlp_fc1": "ff_context_net_0_proj",
    "context_block_mlp_fc2": "ff_context_net_2",
}
"""Modules in the blocks of Flux and SD3. SD3's last modulation of the context has its halves turned: it is left out."""
FUSED: Final = {
    "img_attn_qkv": ("attn_to_q", "attn_to_k", "attn_to_v"),
    "txt_attn_qkv": ("attn_add_q_proj", "attn_add_k_proj", "attn_add_v_proj"),
    "linear1": ("attn_to_q", "attn_to_k", "attn_to_v", "proj_mlp"),
    "x_block_attn_qkv": ("attn_to_q", "attn_to_k", "attn_to_v"),
    "x_block_attn2_qkv": ("attn2_to_q", "attn2_to_k", "attn2_to_v"),
    "context_block_attn_qkv": ("attn_add_q_proj", "attn_add_k_proj", "attn_add_v_proj"),
}
"""Tensors of Flux and SD3 that diffusers splits by rows; `linear1` in three of the width of the model, and the rest."""
AROUND_STREAMS: Final = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in_in_layer": "time_text_embed_timestep_embedder_linear_1",
    "time_in_out_layer": "time_text_embed_timestep_embedder_linear_2",
    "vector_in_in_layer": "time_text_embed_text_embedder_linear_1",
    "vector_in_out_layer": "time_text_embed_text_embedder_linear_2",
    "guidance_in_in_layer": "time_text_embed_guidance_embedder_linear_1",
    "guidance_in_out_layer": "time_text_embed_guidance_embedder_linear_2",
    "final_layer_linear": "proj_out",
    "x_embedder_proj": "pos_embed_proj",
    "t_embedder_mlp_0": "time_text_embed_timestep_embedder_linear_1",
    "t_embedder_mlp_2": "time_text_embed_timestep_embedder_linear_2",
    "y_embedder_mlp_0": "time_text_embed_text_embedder_linear_1",
    "y_embedder_mlp_2": "time_text_embed_text_embedder_linear_2",
}
BLOCK: Final = re.compile(r"(input|output)_blocks_(\d+)_(\d+)_(.+)")
LAYER: Final = re.compile(r"(?:transformer_)?resblocks_(\d+)_(.+)")
BARE: Final = ("in_proj_weight", "text_projection")
"""What tensors are called that are weights without a module of their own."""
TURNED: Final = "text_projection"
"""The one of them that OpenCLIP stores (in, out)."""
STREAM: Final = re.compile(r"(double|single|joint)_blocks_(\d+)_(.+)")
INPUT: Final = re.compile(r"input_blocks_(\d+)_\d+_(op)?.*")
RESNETS: Final = re.compile(r"down_blocks_(\d+)_resnets_(\d+)_.+")


class Spot(NamedTuple):
    """A module of diffusers' layout, flat, and which part of the original it is; None: all of it."""

    module: str
    part: Part | None = None


def layers_per_block(modules: Iterable[str]) -> int:
    """How many layers each down block of a UNet has, from the flat names of its modules in either layout.

    0 where they are not all of one depth, as in no published UNet: then nothing tells how the layouts correspond.
    """
    inputs, ops, depths = {0}, set[int](), dict[str, int]()
    for module in modules:
        if found := INPUT.fullmatch(module):
            inputs.add(int(found[1]))
            ops |= {int(found[1])} if found[2] else set()
        elif found := RESNETS.fullmatch(module):
            depths[found[1]] = max(depths.get(found[1], 0), int(found[2]) + 1)
    if depths:
        return min(depths.values()) if len(set(depths.values())) == 1 else 0
    step = min(ops, default=max(inputs) + 1)
    even = ops == set(range(step, max(inputs), step)) and (max(inputs) + 1) % step == 0
    return step - 1 if even else 0


def in_diffusers(module: str, layers: int) -> tuple[Spot, ...]:
    """What an original module is in diffusers' layout: several spots are parts, or other words for the same.

    Args:
        module: A flat name in any layout; what is no original name stays.
        layers: Layers in each block of the UNet; 0 where that is not known, and no name says it.
    """
    if module in AROUND:
        return tuple(map(Spot, AROUND[module]))
    if module.startswith("middle_block_"):
        number, _, rest = module.removeprefix("middle_block_").partition("_")
        return (Spot(f"mid_block_{MIDDLE.get(number, number)}_{RESNET.get(rest, rest)}"),)
    if (found := BLOCK.fullmatch(module)) and layers:
        return (Spot(_in_block(found[1] == "input", int(found[2]), found[3], found[4], layers)),)
    if found := LAYER.fullmatch(module):
        where = f"encoder_layers_{found[1]}"
        if found[2] == "attn_in_proj_weight":
            return _parts([f"{where}_self_attn_{one}_proj" for one in "qkv"])
        return (Spot(f"{where}_{OPENCLIP.get(found[2], found[2])}"),)
    if found := STREAM.fullmatch(module):
        where = f"{'single_' if found[1] == 'single' else ''}transformer_blocks_{found[2]}"
        if found[3] in FUSED:
            return _parts([f"{where}_{one}" for one in FUSED[found[3]]], rest=found[3] == "linear1")
        return (Spot(f"{where}_{STREAMS.get(found[3], found[3])}"),)
    return (Spot(AROUND_STREAMS.get(module, module.removeprefix("text_model_"))),)


def _in_block(down: bool, number: int, place: str, rest: str, layers: int) -> str:
    """A module of a numbered block of a UNet: the first of the input blocks is `conv_in`."""
    block, layer = divmod(number - down, layers + 1)
    where = f"{'down' if down else 'up'}_blocks_{block}"
    if down and rest == "op":
        return f"{where}_downsamplers_0_conv"
    if not down and place in "12" and rest == "conv":
        return f"{where}_upsamplers_0_conv"
    return f"{where}_{'attentions' if place == '1' else 'resnets'}_{layer}_{RESNET.get(rest, rest)}"


def _parts(modules: list[str], *, rest: bool = False) -> tuple[Spot, ...]:
    """Modules that one tensor joins by rows."""
    return tuple(Spot(module, Part(number, len(modules), rest=rest)) for number, module in enumerate(modules))
