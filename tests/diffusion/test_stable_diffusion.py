"""Adapters that diffusers saved, and those it converted to kohya's names, end where diffusers' own fusing puts them."""

from __future__ import annotations

import warnings

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils.state_dict_utils import convert_state_dict_to_diffusers, convert_state_dict_to_kohya
from diffusion.models import (
    ATTENTION,
    TEXT,
    base_of,
    by_diffusers,
    sdxl_unet,
    stable_diffusion,
    text_encoder,
    trained,
    unet,
)
from peft import get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import CLIPTextModel

from wiseft_core import interpolate, open_checkpoint, plan, save_checkpoint
from wiseft_core.errors import ConfigError, MissingFactor, UnclaimedKey, WiseftError

ULP = 1e-6
"""Some units in the last place of weights of size one: PEFT multiplies in float32, and rounds twice."""
UNET = [
    *ATTENTION,
    "proj_in",
    "proj_out",
    "conv1",
    "conv_shortcut",
    "time_emb_proj",
    "ff.net.0.proj",
    "ff.net.2",
    "conv_in",
]


def adapter(*, alpha=3, dora=False, text=True):
    """What PEFT has of a trained pipeline, as diffusers collects it; lora_alpha is the rank unless said."""
    network = trained(unet(), UNET, alpha=alpha, use_dora=dora)
    found = {"unet": network}
    if text:
        found["text_encoder"] = trained(text_encoder(), TEXT, rank=2, alpha=2)
    return found


def states(models):
    """The adapters' tensors behind the names of their components."""
    return {
        f"{name}.{key}": value
        for name, model in models.items()
        for key, value in get_peft_model_state_dict(model).items()
    }


def processors(state):
    """The same as the first versions of diffusers saved attention, which had no other layers."""
    found = {}
    for key, value in state.items():
        module, _, tail = key.partition(".lora_")
        name = module.rpartition(".")[2]
        if "to_out.0" in module:
            module, name = module.removesuffix(".0"), "to_out"
        parent = module.rpartition(".")[0]
        of_text = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}
        processor = ".processor" if key.startswith("unet") else ""
        end = "down" if tail.startswith("A") else "up"
        found[f"{parent}{processor}.{of_text.get(name, name)}_lora.{end}.weight"] = value
    return found


def same(view, wanted):
    """Whether every tensor is as wanted, and whether the adapter changed any at all."""
    for name, value in wanted.items():
        torch.testing.assert_close(view[name], value, rtol=ULP, atol=ULP)
    assert view.touched


BASE = {"unet": unet, "text_encoder": text_encoder}


def base():
    return base_of(**{name: make() for name, make in BASE.items()})


@pytest.fixture(scope="module")
def fused():
    """The pipeline after diffusers loaded and fused the adapter that is scaled by 1."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return by_diffusers(stable_diffusion(unet(), text_encoder()), states(adapter()))


@pytest.mark.parametrize("spelling", ["peft", "kohya", "converted"])
def test_every_spelling_of_one_adapter_gives_what_diffusers_fuses(spelling, fused):
    """The three ways in which diffusers writes an adapter mean one thing, which is what diffusers makes of them."""
    state = states(adapter())
    spelled = {
        "peft": lambda: state,
        "kohya": lambda: convert_state_dict_to_kohya(dict(state)),
        "converted": lambda: convert_state_dict_to_diffusers(dict(state)),
    }[spelling]()
    assert (set(spelled) == set(state)) is (spelling == "peft")
    same(interpolate(base(), spelled, 1.0), fused)


def test_the_oldest_spelling_of_attention_gives_what_diffusers_fuses():
    """`attn1.processor.to_q_lora.down`, with or without the component in front."""
    network = trained(unet(), ATTENTION, alpha=3)
    state = processors(states({"unet": network}))
    wanted = by_diffusers(stable_diffusion(unet()), state)
    same(interpolate(base_of(unet=unet()), state, 1.0), wanted)
    bare = {key.removeprefix("unet."): value for key, value in state.items()}
    view = interpolate(dict(unet().state_dict()), bare, 1.0)
    assert all(torch.equal(view[key], interpolate(base_of(unet=unet()), state, 1.0)[f"unet.{key}"]) for key in view)


def test_the_oldest_spelling_of_a_text_encoder(fused):
    """`self_attn.to_q_lora` is q_proj there, `to_out_lora` is out_proj."""
    state = states({"text_encoder": trained(text_encoder(), TEXT[:4], rank=2, alpha=2)})
    old = processors(state)
    assert any("to_out_lora" in key for key in old)
    view = interpolate(base_of(text_encoder=text_encoder(), unet=unet()), old, 1.0)
    again = interpolate(base_of(text_encoder=text_encoder(), unet=unet()), state, 1.0)
    assert all(torch.equal(view[name], again[name]) for name in view) and len(view.touched) == 8


def test_the_scale_comes_from_the_header_where_diffusers_wrote_it(tmp_path):
    """lora_alpha other than the rank is in `lora_adapter_metadata`, for each component its own."""
    models = {"unet": trained(unet(), UNET, alpha=5), "text_encoder": trained(text_encoder(), TEXT, rank=2, alpha=7)}
    StableDiffusionPipeline.save_lora_weights(
        tmp_path / "adapter",
        unet_lora_layers=get_peft_model_state_dict(models["unet"]),
        text_encoder_lora_layers=get_peft_model_state_dict(models["text_encoder"]),
        unet_lora_adapter_metadata=models["unet"].peft_config["default"].to_dict(),
        text_encoder_lora_adapter_metadata=models["text_encoder"].peft_config["default"].to_dict(),
    )
    wanted = by_diffusers(stable_diffusion(unet(), text_encoder()), tmp_path / "adapter")
    same(interpolate(base(), tmp_path / "adapter", 1.0), wanted)


@pytest.mark.parametrize(
    "options", [{}, {"use_rslora": True}, {"alpha_pattern": {"to_q": 9}, "rank_pattern": {"conv1": 2}}]
)
def test_an_adapter_of_one_model_brings_its_config_in_the_header(tmp_path, options):
    """`save_lora_adapter` writes PEFT's keys without a prefix and all of PEFT's config; folders in, a folder out."""
    unet().save_pretrained(tmp_path / "unet")
    trained(unet(), UNET, alpha=5, **options).save_lora_adapter(tmp_path / "adapter")
    network = unet()
    network.load_lora_adapter(str(tmp_path / "adapter"), prefix=None, use_safetensors=True)
    network.fuse_lora(safe_fusing=True)
    wanted = {
        key.replace(".base_layer.", "."): value for key, value in network.state_dict().items() if "lora_" not in key
    }
    view = interpolate(tmp_path / "unet", tmp_path / "adapter", 1.0)
    same(view, wanted)
    save_checkpoint(view, tmp_path / "out")
    loaded = UNet2DConditionModel.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(loaded[name], view[name]) for name in view)


def test_one_scale_is_said_once(tmp_path):
    """Diffusers' names with `.alpha` tensors; a config, or one in the header, beside them is refused."""
    state = states(adapter(text=False, alpha=3))
    modules = sorted({key.partition(".lora_")[0] for key in state})
    alphas = {f"{module}.alpha": torch.tensor(6.0) for module in modules}
    network = unet().state_dict()
    view = interpolate(dict(network), state | alphas, 0.5)
    again = interpolate(dict(network), state, 0.5, config={"lora_alpha": 6})
    plain = interpolate(dict(network), state, 0.5)
    assert all(torch.equal(view[name], again[name]) for name in view)
    assert not torch.equal(view["conv_in.weight"], plain["conv_in.weight"])
    with pytest.raises(ConfigError, match="config beside"):
        interpolate(dict(network), state | alphas, 0.5, config={"lora_alpha": 6})
    header = {"lora_adapter_metadata": '{"unet.r": 3, "unet.lora_alpha": 6}'}
    save_file({key: value.contiguous() for key, value in (state | alphas).items()}, tmp_path / "a.safetensors", header)
    with pytest.raises(ConfigError, match="beside the config"):
        interpolate(dict(network), tmp_path / "a.safetensors", 0.5)


def test_nothing_is_left_of_the_adapter_at_zero(tmp_path):
    """alpha = 0 gives the base's file, byte for byte, and halfway lies between."""
    unet().save_pretrained(tmp_path / "unet")
    state = convert_state_dict_to_kohya(states(adapter(text=False)))
    save_file(state, tmp_path / "adapter.safetensors")
    save_checkpoint(interpolate(tmp_path / "unet", tmp_path / "adapter.safetensors", 0.0), tmp_path / "out")
    name = "diffusion_pytorch_model.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "unet" / name).read_bytes()


def test_dora_in_kohyas_names_keeps_its_magnitude():
    """Diffusers drops `dora_scale` with a warning, so it is no oracle: the same adapter with PEFT's keys is."""
    models = adapter(dora=True, text=False)
    state = states(models)
    kohya = convert_state_dict_to_kohya({key: value for key, value in state.items() if "magnitude" not in key})
    for key, value in state.items():
        if "magnitude" in key:
            module = key.removeprefix("unet.").removesuffix(".lora_magnitude_vector")
            rows = value.reshape(-1)
            kohya[f"lora_unet_{module.replace('.', '_')}.dora_scale"] = rows.reshape(
                -1, *[1] * (max(value.ndim, 2) - 1)
            )
    config = {"lora_alpha": 3, "use_dora": True}
    wanted = interpolate(dict(unet().state_dict()), get_peft_model_state_dict(models["unet"]), 0.7, config=config)
    view = interpolate(dict(unet().state_dict()), kohya, 0.7)
    assert view.touched == wanted.touched
    assert all(torch.equal(view[name], wanted[name]) for name in wanted)
    plain = interpolate(dict(unet().state_dict()), {k: v for k, v in kohya.items() if "dora" not in k}, 0.7)
    assert not any(torch.equal(view[name], plain[name]) for name in view.touched)


def test_alpha_beside_the_factors_is_the_scale():
    """Each module has its own alpha, of any dtype; where no module has one it is the rank, as sd-scripts reads it."""
    state = convert_state_dict_to_kohya(states(adapter(text=False)))
    bare = {key: value for key, value in state.items() if not key.endswith(".alpha")}
    dtypes = [torch.float32, torch.bfloat16, torch.float16]
    names = sorted({key.partition(".")[0] for key in state})
    alphas = {f"{name}.alpha": torch.tensor(at + 1.0, dtype=dtypes[at % 3]) for at, name in enumerate(names)}
    network = unet().state_dict()
    modules = {key.removesuffix(".weight").replace(".", "_"): key for key in network if key.endswith(".weight")}
    for given, scales in ((bare | alphas, [(at + 1) / 3 for at in range(len(names))]), (bare, [1.0] * len(names))):
        view = interpolate(dict(network), given, 1.0)
        for name, scale in zip(names, scales, strict=True):
            key = modules[name.removeprefix("lora_unet_")]
            up, down = (given[f"{name}.lora_{end}.weight"].double().flatten(1) for end in ("up", "down"))
            wanted = network[key].double() + scale * (up @ down).reshape(network[key].shape)
            torch.testing.assert_close(view[key].double(), wanted, rtol=ULP, atol=ULP)
    del alphas[f"{names[0]}.alpha"]
    with pytest.raises(MissingFactor, match="no alpha"):
        interpolate(dict(network), bare | alphas, 1.0)


@pytest.mark.parametrize("spelling", ["kohya", "diffusers"])
def test_any_key_lost_or_renamed_is_refused(spelling):
    """Every key in turn: dropped, misspelled, or of another module. Nothing is a silent no-op."""
    state = states(adapter(text=False))
    good = convert_state_dict_to_kohya(dict(state)) if spelling == "kohya" else state
    base = {name: value.detach() for name, value in unet().state_dict().items()}
    plan(base, good)
    for key in list(good)[::5]:
        rest = {name: value for name, value in good.items() if name != key}
        module = key.partition(".lora_" if ".lora_" in key else ".alpha")[0]
        wrong = [rest, rest | {f"{module}x{key.removeprefix(module)}": good[key]}, rest | {key + "x": good[key]}]
        for broken in wrong:
            with pytest.raises(WiseftError):
                plan(base, broken)


def test_sdxl_with_two_text_encoders():
    """lora_te1_ and lora_te2_ go to their encoders, kohya's diffusers-like UNet names to the UNet."""
    models = {
        "unet": trained(sdxl_unet(), [*ATTENTION, "proj_in"], alpha=3),
        "text_encoder": trained(text_encoder(), TEXT, rank=2, alpha=2),
        "text_encoder_2": trained(text_encoder(projected=True), TEXT, rank=4, alpha=4),
    }
    made = {"unet": sdxl_unet(), "text_encoder": text_encoder(), "text_encoder_2": text_encoder(projected=True)}
    whole = base_of(**made)
    wanted = by_diffusers(stable_diffusion(*made.values()), states(models))
    same(interpolate(whole, states(models), 1.0), wanted)
    kohya = convert_state_dict_to_kohya(states(models))
    assert {key.split("_")[1] for key in kohya} == {"unet", "te1", "te2"}
    same(interpolate(whole, kohya, 1.0), wanted)


def test_a_pipelines_folder_with_a_file_of_kohyas(tmp_path, fused):
    """Folder and file in, folder out: what diffusers loads from it is what it fuses itself."""
    stable_diffusion(unet(), text_encoder()).save_pretrained(tmp_path / "pipeline")
    save_file(convert_state_dict_to_kohya(states(adapter())), tmp_path / "kohya.safetensors")
    save_checkpoint(interpolate(tmp_path / "pipeline", tmp_path / "kohya.safetensors", 1.0), tmp_path / "out")
    for name, model in (("unet", UNet2DConditionModel), ("text_encoder", CLIPTextModel)):
        for key, value in model.from_pretrained(tmp_path / "out" / name).state_dict().items():
            torch.testing.assert_close(value, fused[f"{name}.{key}"], rtol=ULP, atol=ULP)
    assert not (tmp_path / "out" / "kohya.safetensors").exists()


def test_parts_for_other_components_are_never_dropped_in_silence(tmp_path):
    """One component as base and an adapter for several: refused, and nothing is written."""
    state = convert_state_dict_to_kohya(states(adapter()))
    with pytest.raises(UnclaimedKey, match="several components"):
        interpolate(dict(unet().state_dict()), state, 1.0)
    with pytest.raises(UnclaimedKey, match="no text_encoder"):
        interpolate(base_of(unet=unet()), state, 1.0)
    unet().save_pretrained(tmp_path / "unet")
    with pytest.raises(UnclaimedKey, match="several components"):
        interpolate(tmp_path / "unet", state, 1.0)
    view = interpolate(open_checkpoint(tmp_path, component="unet"), state, 0.5)
    only = interpolate(tmp_path / "unet", {key: value for key, value in state.items() if "unet" in key}, 0.5)
    assert view.touched == only.touched and all(torch.equal(view[name], only[name]) for name in view)


def test_a_wrong_base_a_missing_factor_and_a_stray_key_are_refused():
    """Every tensor is accounted for, whatever the spelling."""
    good = convert_state_dict_to_kohya(states(adapter(text=False)))
    up = next(key for key in good if key.endswith("lora_up.weight"))
    broken = {
        "renamed": {key.replace("attn1_to_q", "attn1_to_queer"): value for key, value in good.items()},
        "dropped": {key: value for key, value in good.items() if key != up},
        "transposed": good | {up: good[up].transpose(0, 1).contiguous()},
        "stray": good | {"text_projection": torch.ones(2)},
        "alpha": good | {f"{up.partition('.')[0]}.alpha": torch.tensor(0.0)},
        "mid": good | {f"{up.partition('.')[0]}.lora_mid.weight": torch.ones(3, 3, 3, 3)},
        "mixed": good | {"unet.conv_in.lora_A.weight": torch.ones(3, 4, 3, 3)},
    }
    for name, state in broken.items():
        with pytest.raises(WiseftError):
            interpolate(dict(unet().state_dict()), state, 1.0)
            pytest.fail(name)
    with pytest.raises(UnclaimedKey):
        interpolate(dict(text_encoder().state_dict()), good, 1.0)
    with pytest.raises(ConfigError, match="config beside"):
        interpolate(dict(unet().state_dict()), good, 1.0, config={"lora_alpha": 3})
