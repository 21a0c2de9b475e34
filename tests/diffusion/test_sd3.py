"""SD3, whose original joins q, k and v: adapters and bases in either layout, with diffusers' converter to tell them."""

from __future__ import annotations

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from diffusion.models import sd3, trained
from peft import get_peft_model_state_dict

from wiseft_core import interpolate
from wiseft_core.errors import UnclaimedKey

TARGETS = [
    "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.add_q_proj", "attn.add_k_proj", "attn2.to_v",
    "attn2.to_out.0", "attn.to_add_out", "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "norm1.linear",
    "pos_embed.proj", "context_embedder", "timestep_embedder.linear_1", "text_embedder.linear_2", "proj_out",
]  # fmt: skip
JOINED = {
    "x_block.attn.qkv": [f"attn.to_{x}" for x in "qkv"],
    "x_block.attn2.qkv": [f"attn2.to_{x}" for x in "qkv"],
    "context_block.attn.qkv": [f"attn.add_{x}_proj" for x in "qkv"],
}
BLOCK = {
    "x_block.attn.proj": "attn.to_out.0", "x_block.attn2.proj": "attn2.to_out.0", "x_block.mlp.fc1": "ff.net.0.proj",
    "x_block.mlp.fc2": "ff.net.2", "x_block.adaLN_modulation.1": "norm1.linear",
    "context_block.attn.proj": "attn.to_add_out", "context_block.mlp.fc1": "ff_context.net.0.proj",
    "context_block.mlp.fc2": "ff_context.net.2", "context_block.adaLN_modulation.1": "norm1_context.linear",
    "x_block.attn.ln_q": "attn.norm_q", "x_block.attn.ln_k": "attn.norm_k", "x_block.attn2.ln_q": "attn2.norm_q",
    "x_block.attn2.ln_k": "attn2.norm_k", "context_block.attn.ln_q": "attn.norm_added_q",
    "context_block.attn.ln_k": "attn.norm_added_k",
}  # fmt: skip
AROUND = {
    "x_embedder.proj": "pos_embed.proj", "context_embedder": "context_embedder", "final_layer.linear": "proj_out",
    "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
    "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2", "final_layer.adaLN_modulation.1": "norm_out.linear",
}  # fmt: skip


def original(state):
    """A transformer's tensors as Stability's file has them."""
    names = dict(AROUND) | {
        f"joint_blocks.{at}.{old}": f"transformer_blocks.{at}.{new}" for at in (0, 1) for old, new in BLOCK.items()
    }
    found = {"pos_embed": state["pos_embed.pos_embed"]}
    for leaf in ("weight", "bias"):
        found |= {f"{old}.{leaf}": state[f"{new}.{leaf}"] for old, new in names.items() if f"{new}.{leaf}" in state}
        for at in (0, 1):
            for old, parts in JOINED.items():
                tensors = [state.get(f"transformer_blocks.{at}.{part}.{leaf}") for part in parts]
                if tensors[0] is not None:
                    found[f"joint_blocks.{at}.{old}.{leaf}"] = torch.cat(tensors)
        for turned in ("final_layer.adaLN_modulation.1", "joint_blocks.1.context_block.adaLN_modulation.1"):
            found[f"{turned}.{leaf}"] = torch.cat(found[f"{turned}.{leaf}"].chunk(2)[::-1])
    return found


@pytest.fixture(scope="module")
def weights():
    """The transformer in both layouts; diffusers' own converter says that they are one."""
    state = {name: value.detach().clone() for name, value in sd3().state_dict().items()}
    file = original(state)
    back = convert_sd3_transformer_checkpoint_to_diffusers(dict(file))
    assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in state)
    return state, file


@pytest.mark.parametrize("alpha", [1.0, 0.4, 0.0])
def test_separate_adapters_on_a_joined_base(weights, alpha):
    """Each of q, k and v changes its rows of the one tensor."""
    state, file = weights
    adapter = get_peft_model_state_dict(trained(sd3(), TARGETS, alpha=3))
    adapter = {f"transformer.{key}": value for key, value in adapter.items()}
    wanted = original(dict(interpolate(state, adapter, alpha)))
    view = interpolate({f"model.diffusion_model.{name}": value for name, value in file.items()}, adapter, alpha)
    for name, value in wanted.items():
        assert torch.equal(view[f"model.diffusion_model.{name}"], value), name


def kohya(file, modules):
    """An adapter as sd-scripts saves it for SD3."""
    generator = torch.Generator().manual_seed(5)
    found = {}
    for module in modules:
        rows, columns = file[f"{module}.weight"].shape
        name = f"lora_unet_{module.replace('.', '_')}"
        found[f"{name}.lora_down.weight"] = torch.randn(3, columns, generator=generator) * 0.2
        found[f"{name}.lora_up.weight"] = torch.randn(rows, 3, generator=generator) * 0.2
        found[f"{name}.alpha"] = torch.tensor(2.0)
    return found


@pytest.mark.parametrize("alpha", [1.0, 0.4])
def test_joined_adapters_on_a_separate_base(weights, alpha):
    """sd-scripts trains the joined tensors; the rows go where diffusers has them."""
    state, file = weights
    ends = [
        *JOINED,
        "x_block.mlp.fc1",
        "context_block.mlp.fc2",
        "x_block.adaLN_modulation.1",
        "context_block.attn.proj",
    ]
    adapter = kohya(file, [f"joint_blocks.0.{end}" for end in ends] + ["joint_blocks.1.x_block.attn.qkv"])
    found = original(dict(interpolate(state, adapter, alpha)))
    for name, value in interpolate(file, adapter, alpha).items():
        assert torch.equal(found[name], value), name


def test_what_is_turned_round_is_refused(weights):
    """The modulations whose halves the converter swaps have no name in the other layout."""
    state, file = weights
    for module in ("joint_blocks.1.context_block.adaLN_modulation.1", "final_layer.adaLN_modulation.1"):
        adapter = kohya(file, [module])
        assert len(interpolate(file, adapter, 1.0).touched) == 1
        with pytest.raises(UnclaimedKey):
            interpolate(state, adapter, 1.0)
