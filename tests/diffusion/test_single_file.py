"""Adapters on original single files: each lands where it does in the diffusers folder, tensor by tensor."""

from __future__ import annotations

import pytest
import torch
from diffusers.loaders.lora_conversion_utils import (
    _convert_non_diffusers_lora_to_diffusers,
    _maybe_map_sgm_blocks_to_diffusers,
)
from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya, convert_unet_state_dict_to_peft
from diffusion.models import ATTENTION, TEXT, base_of, sdxl_unet, text_encoder, trained, unet
from diffusion.single_file import clip_file, unet_file, unet_names
from peft import get_peft_model_state_dict

from wiseft_core import interpolate
from wiseft_core.errors import UnclaimedKey

UNET = [
    *ATTENTION, "proj_in", "proj_out", "conv1", "conv2", "conv_shortcut", "time_emb_proj", "ff.net.0.proj", "ff.net.2",
    "conv_in", "conv_out", "downsamplers.0.conv", "upsamplers.0.conv", "linear_1", "linear_2",
]  # fmt: skip
MAKE = {"sd": unet, "sdxl": sdxl_unet}


def states(models):
    """The adapters' tensors behind the names of their components."""
    found = [(name, get_peft_model_state_dict(model)) for name, model in models.items()]
    return {f"{name}.{key}": value for name, state in found for key, value in state.items()}


def original_kohya(state, kind):
    """An adapter of a UNet as sd-scripts saves it for SDXL, whose UNet it builds as the original is."""
    names = unet_names(kind)
    found = {}
    for key, value in state.items():
        module, _, end = key.removeprefix("unet.").partition(".lora_")
        name = "lora_unet_" + names[f"{module}.weight"].removesuffix(".weight").replace(".", "_")
        found[f"{name}.lora_{'down' if end.startswith('A') else 'up'}.weight"] = value
        found[f"{name}.alpha"] = torch.tensor(3.0)
    return found


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("alpha", [1.0, 0.3])
def test_a_unet_adapter_in_any_spelling_on_either_layout(kind, alpha):
    """Three spellings on two layouts of one UNet are six times the same numbers."""
    model = MAKE[kind]()
    folder, file = dict(model.state_dict()), unet_file(model, kind)
    folder = {name: value.detach().clone() for name, value in folder.items()}
    state = states({"unet": trained(MAKE[kind](), UNET, alpha=3)})
    spelled = [state, convert_state_dict_to_kohya(dict(state)), original_kohya(state, kind)]
    names = unet_names(kind)
    wanted = interpolate(folder, spelled[0], alpha)
    assert len(wanted.touched) == len(state) // 2 > 40
    bare = {name.removeprefix("model.diffusion_model."): value for name, value in file.items()}
    for adapter in spelled:
        assert interpolate(folder, adapter, alpha).touched == wanted.touched
        for base, prefix in ((file, "model.diffusion_model."), (bare, "")):
            view = interpolate(base, adapter, alpha)
            assert all(torch.equal(view[f"{prefix}{names[name]}"], wanted[name]) for name in wanted)
            assert len(view.touched) == len(wanted.touched)
        again = interpolate(folder, adapter, alpha)
        assert all(torch.equal(again[name], wanted[name]) for name in wanted)


def test_original_names_of_kohya_are_read_as_diffusers_reads_them():
    """Diffusers' own way from the names of SDXL's original UNet to its modules ends at the same modules."""
    state = states({"unet": trained(sdxl_unet(), [*ATTENTION, "proj_in", "conv1", "conv_shortcut"], alpha=3)})
    kohya = original_kohya(state, "sdxl")
    blocks = _maybe_map_sgm_blocks_to_diffusers(dict(kohya), sdxl_unet().config)
    converted, _ = _convert_non_diffusers_lora_to_diffusers(blocks)
    as_peft = convert_unet_state_dict_to_peft(converted)
    base = base_of(unet=sdxl_unet())
    view, wanted = interpolate(base, kohya, 1.0), interpolate(base, as_peft, 1.0)
    assert as_peft.keys() == state.keys()
    assert all(torch.equal(view[name], wanted[name]) for name in base)


def encoders():
    """Two text encoders with adapters, and without."""
    made = {"text_encoder": text_encoder(), "text_encoder_2": text_encoder(projected=True)}
    rank = {"text_encoder": 2, "text_encoder_2": 4}
    return made, {
        name: trained(text_encoder(projected=name.endswith("2")), TEXT, rank=rank[name], alpha=rank[name])
        for name in made
    }


def test_text_encoders_of_a_single_file():
    """The first encoder has transformers' names behind a prefix."""
    made, models = encoders()
    state = states({"text_encoder": models["text_encoder"]})
    folder = interpolate(base_of(text_encoder=made["text_encoder"], unet=unet()), state, 0.6)
    for prefix in ("cond_stage_model.transformer.", "conditioner.embedders.0.transformer."):
        file = unet_file(unet(), "sd") | clip_file(made["text_encoder"], prefix)
        for adapter in (state, convert_state_dict_to_kohya(dict(state))):
            view = interpolate(file, adapter, 0.6)
            assert len(view.touched) == len(state) // 2
            for name in folder:
                if name.startswith("text_encoder."):
                    module = name.removeprefix("text_encoder.").removeprefix("text_model.")
                    assert torch.equal(view[f"{prefix}text_model.{module}"], folder[name])


def test_an_adapter_for_what_the_file_does_not_have_is_refused():
    """A text encoder's part has no place in a file of a UNet alone."""
    _, models = encoders()
    with pytest.raises(UnclaimedKey, match="no text_encoder"):
        interpolate(unet_file(unet(), "sd"), states({"text_encoder": models["text_encoder"]}), 1.0)
