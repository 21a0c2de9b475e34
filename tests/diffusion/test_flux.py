"""Flux, whose original joins q, k and v: adapters and bases in either layout, and OpenCLIP's encoders likewise."""

from __future__ import annotations

import pytest
import torch
from diffusers import FluxPipeline
from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers
from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers
from diffusion.models import TEXT, base_of, flux, text_encoder, trained, unet
from diffusion.single_file import openclip_file, unet_file
from peft import get_peft_model_state_dict

from wiseft_core import interpolate, plan, rescale
from wiseft_core.errors import UnclaimedKey, Unsupported

SEPARATE = [
    "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.add_q_proj", "attn.add_v_proj", "attn.to_add_out",
    "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "norm1.linear", "norm.linear", "proj_mlp", "proj_out",
    "x_embedder", "context_embedder", "text_embedder.linear_1", "timestep_embedder.linear_2",
    "guidance_embedder.linear_1",
]  # fmt: skip
DOUBLE = {
    "img_mod.lin": "norm1.linear", "txt_mod.lin": "norm1_context.linear", "img_attn.proj": "attn.to_out.0",
    "txt_attn.proj": "attn.to_add_out", "img_mlp.0": "ff.net.0.proj", "img_mlp.2": "ff.net.2",
    "txt_mlp.0": "ff_context.net.0.proj", "txt_mlp.2": "ff_context.net.2",
}  # fmt: skip
QKV = {
    "double_blocks.0.img_attn.qkv": [f"transformer_blocks.0.attn.to_{x}" for x in "qkv"],
    "double_blocks.0.txt_attn.qkv": [f"transformer_blocks.0.attn.add_{x}_proj" for x in "qkv"],
    "single_blocks.0.linear1": [
        *(f"single_transformer_blocks.0.attn.to_{x}" for x in "qkv"), "single_transformer_blocks.0.proj_mlp",
    ],
}  # fmt: skip
AROUND = {
    "img_in": "x_embedder", "txt_in": "context_embedder", "final_layer.linear": "proj_out",
    "single_blocks.0.linear2": "single_transformer_blocks.0.proj_out",
    "single_blocks.0.modulation.lin": "single_transformer_blocks.0.norm.linear",
    **{
        f"{short}_in.{layer}_layer": f"time_text_embed.{long}_embedder.linear_{number}"
        for short, long in {"time": "timestep", "vector": "text", "guidance": "guidance"}.items()
        for layer, number in {"in": 1, "out": 2}.items()
    },
}  # fmt: skip


def original(state):
    """A transformer's tensors as the original file has them, and its names by diffusers' for what is one to one."""
    names = dict(AROUND) | {f"double_blocks.0.{old}": f"transformer_blocks.0.{new}" for old, new in DOUBLE.items()}
    found = {f"{old}.{leaf}": state[f"{new}.{leaf}"] for old, new in names.items() for leaf in ("weight", "bias")}
    for old, parts in QKV.items():
        found |= {
            f"{old}.{leaf}": torch.cat([state[f"{part}.{leaf}"] for part in parts]) for leaf in ("weight", "bias")
        }
    norms = {"img_attn": ("norm_q", "norm_k"), "txt_attn": ("norm_added_q", "norm_added_k")}
    for stream, (query, key) in norms.items():
        place = f"double_blocks.0.{stream}.norm"
        found[f"{place}.query_norm.scale"] = state[f"transformer_blocks.0.attn.{query}.weight"]
        found[f"{place}.key_norm.scale"] = state[f"transformer_blocks.0.attn.{key}.weight"]
    for one, other in (("query_norm", "norm_q"), ("key_norm", "norm_k")):
        found[f"single_blocks.0.norm.{one}.scale"] = state[f"single_transformer_blocks.0.attn.{other}.weight"]
    for leaf in ("weight", "bias"):
        found[f"final_layer.adaLN_modulation.1.{leaf}"] = torch.cat(state[f"norm_out.linear.{leaf}"].chunk(2)[::-1])
    return found, names


@pytest.fixture(scope="module")
def weights():
    """The transformer in both layouts; diffusers' own converter says that they are one."""
    state = {name: value.detach().clone() for name, value in flux().state_dict().items()}
    file, _ = original(state)
    # The converter has Flux's own sizes written into it, for this one tensor: so many rows, numbered, stand in for it.
    single, sizes = "single_blocks.0.linear1", (3072, 3072, 3072, 12288)
    rows = {f"{single}.{leaf}": torch.arange(sum(sizes)) for leaf in ("weight", "bias")}
    back = convert_flux_transformer_checkpoint_to_diffusers(file | rows)
    parts = {
        f"{part}.{leaf}": run
        for leaf in ("weight", "bias")
        for part, run in zip(QKV[single], torch.arange(sum(sizes)).split(sizes), strict=True)
    }
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], parts.get(name, state[name])) for name in state)
    return state, file


def wanted_file(view):
    """What a merged folder is as an original file."""
    return original(dict(view))[0]


@pytest.mark.parametrize("alpha", [1.0, 0.4, 0.0])
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("dora", [False, True])
def test_separate_adapters_on_a_joined_base(weights, alpha, prefix, dora):
    """Each of q, k and v changes its rows of the one tensor, the rest of which stays as it is."""
    state, file = weights
    model = trained(flux(), SEPARATE, alpha=3, use_dora=dora)
    adapter = {f"transformer.{key}": value for key, value in get_peft_model_state_dict(model).items()}
    wanted = wanted_file(interpolate(state, adapter, alpha))
    view = interpolate({prefix + name: value for name, value in file.items()}, adapter, alpha)
    for name, value in wanted.items():
        assert torch.equal(view[prefix + name], value), name


def test_separate_adapters_of_a_pipeline_are_fused_as_diffusers_does(weights, tmp_path):
    """FluxPipeline's saving code and header; diffusers' safe fusing of the transformer."""
    state, _ = weights
    model = trained(flux(), SEPARATE, alpha=5)
    layers, config = get_peft_model_state_dict(model), model.peft_config["default"].to_dict()
    FluxPipeline.save_lora_weights(tmp_path, transformer_lora_layers=layers, transformer_lora_adapter_metadata=config)
    network = flux()
    network.load_lora_adapter(str(tmp_path), prefix="transformer", use_safetensors=True)
    network.fuse_lora(safe_fusing=True)
    fused = {
        name.replace(".base_layer.", "."): value for name, value in network.state_dict().items() if "lora_" not in name
    }
    view = interpolate(state, tmp_path, 1.0)
    assert fused.keys() == set(view) and len(view.touched) == len(layers) // 2
    for name, value in fused.items():
        torch.testing.assert_close(view[name], value, rtol=1e-6, atol=1e-6)


def kohya(file):
    """An adapter as sd-scripts saves it for Flux: the original's names, alphas other than the rank."""
    generator = torch.Generator().manual_seed(5)
    found = {}
    modules = [*QKV, "double_blocks.0.img_mlp.0", "double_blocks.0.txt_attn.proj", "single_blocks.0.linear2"]
    for module in modules:
        rows, columns = file[f"{module}.weight"].shape
        name = f"lora_unet_{module.replace('.', '_')}"
        found[f"{name}.lora_down.weight"] = torch.randn(3, columns, generator=generator) * 0.2
        found[f"{name}.lora_up.weight"] = torch.randn(rows, 3, generator=generator) * 0.2
        found[f"{name}.alpha"] = torch.tensor(2.0)
    return found


@pytest.mark.parametrize("alpha", [1.0, 0.4, 0.0])
@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_joined_adapters_on_a_separate_base(weights, alpha, prefix):
    """A change of the joined tensor is cut: each byte of q, k, v and the feed-forward's part gets its own rows."""
    state, file = weights
    adapter = kohya(file)
    merged = interpolate(file, adapter, alpha)
    base = {prefix + name: value for name, value in state.items()}
    base |= {f"text_encoder.{name}": value for name, value in text_encoder().state_dict().items()} if prefix else {}
    view = interpolate(base, adapter, alpha)
    found = original({name: view[prefix + name] for name in state})[0]
    for name, value in merged.items():
        assert torch.equal(found[name], value), name
    with pytest.raises(Unsupported, match="split these weights alike"):
        rescale(adapter, 0.5, base=base)


def test_joined_adapters_are_read_as_diffusers_reads_them(weights):
    """Its converter cuts the factors with torch: the same numbers but for its folding of the scale into the factors."""
    state, file = weights
    adapter = {key: value for key, value in kohya(file).items() if "linear1" not in key}  # Flux's sizes again
    converted = _convert_kohya_flux_lora_to_diffusers(dict(adapter))
    view, wanted = interpolate(state, adapter, 1.0), interpolate(state, converted, 1.0)
    assert set(view.touched) == set(wanted.touched)
    for name in wanted:
        torch.testing.assert_close(view[name], wanted[name], rtol=1e-6, atol=1e-6)


def test_dora_on_a_joined_tensor(weights):
    """Its norm is of rows: over the three tensors that diffusers keeps apart it is what it is over the joined one."""
    state, file = weights
    adapter = kohya(file)
    module = "lora_unet_double_blocks_0_img_attn_qkv"
    rows = file["double_blocks.0.img_attn.qkv.weight"].shape[0]
    adapter[f"{module}.dora_scale"] = torch.rand(rows, 1, generator=torch.Generator().manual_seed(6)) + 0.5
    wanted = interpolate(file, adapter, 0.7)
    assert "double_blocks.0.img_attn.qkv.weight" in wanted.touched
    got = wanted_file(interpolate(state, adapter, 0.7))
    for name in wanted:
        torch.testing.assert_close(got[name], wanted[name], rtol=1e-6, atol=1e-6)


def test_what_only_one_layout_has_is_refused(weights):
    """The last modulation has its halves the other way round in diffusers: no name is taken for it."""
    state, file = weights
    rows, columns = file["final_layer.adaLN_modulation.1.weight"].shape
    adapter = {
        "lora_unet_final_layer_adaLN_modulation_1.lora_down.weight": torch.ones(2, columns),
        "lora_unet_final_layer_adaLN_modulation_1.lora_up.weight": torch.ones(rows, 2),
    }
    assert len(interpolate(file, adapter, 1.0).touched) == 1
    with pytest.raises(UnclaimedKey, match="adaLN"):
        interpolate(state, adapter, 1.0)
    incomplete = {name: value for name, value in state.items() if "attn.to_k" not in name}
    with pytest.raises(UnclaimedKey, match="qkv"):
        interpolate(incomplete, kohya(file), 1.0)


@pytest.mark.parametrize("where", ["conditioner.embedders.1.model.", "cond_stage_model.model."])
def test_an_encoder_of_openclip(where):
    """q, k and v are one tensor there, and the projection is stored the other way round."""
    second = where.startswith("conditioner")
    name = "text_encoder_2" if second else "text_encoder"
    make = {True: lambda: text_encoder(projected=True), False: text_encoder}[second]
    targets = [*TEXT, "text_projection"] if second else TEXT
    state = get_peft_model_state_dict(trained(make(), targets, rank=2, alpha=2))
    adapter = {f"{name}.{key}": value for key, value in state.items()}
    folder = interpolate(base_of(**{name: make(), "unet": unet()}), adapter, 0.6)
    model = make()
    model.load_state_dict({key: folder[f"{name}.{key}"] for key in model.state_dict()})
    wanted = openclip_file(model, where)
    view = interpolate(unet_file(unet(), "sd") | openclip_file(make(), where), adapter, 0.6)
    for key, value in wanted.items():
        assert torch.equal(view[key], value), key
    kohya = {}
    for key, value in state.items():
        module, _, end = key.removeprefix("text_model.").partition(".lora_")
        flat, side = module.replace(".", "_"), "down" if end.startswith("A") else "up"
        if "projection" not in key:
            kohya[f"lora_te{'2' if second else ''}_text_model_{flat}.lora_{side}.weight"] = value
    again = interpolate(unet_file(unet(), "sd") | openclip_file(make(), where), kohya, 0.6)
    assert all(torch.equal(again[key], value) for key, value in wanted.items() if "projection" not in key)
    told = plan(unet_file(unet(), "sd") | openclip_file(make(), where), adapter)
    assert len(told.consumed()) == len(adapter)
