"""A diffusers pipeline is one checkpoint: its names carry the component, its files keep their own bytes."""

from __future__ import annotations

import json
import os
import shutil
import signal

import pytest
import torch
from components import (
    FIRST,
    INDEX,
    LISTED,
    QUERY,
    SECOND,
    TEXT,
    UP,
    cache_snapshot,
    components,
    read_pipeline,
    whole,
    write_json,
    write_lora,
    write_pipeline,
)
from faults import seam
from folders import same_bits, tree, write_adapter
from safetensors.torch import load_file, save_file

from wiseft_core import (
    combine,
    interpolate,
    open_checkpoint,
    plan,
    save_checkpoint,
    save_sweep,
    sweep,
    verify,
)
from wiseft_core.errors import CheckpointError, QuantizedBase, Unsupported, WiseftError
from wiseft_core.evaluation import Metric

WEIGHTS = [
    "text_encoder/model.safetensors", f"unet/{FIRST}", f"unet/{SECOND}", "vae/diffusion_pytorch_model.safetensors",
]  # fmt: skip


@pytest.fixture
def base(tmp_path):
    """A pipeline."""
    return write_pipeline(tmp_path / "base")


@pytest.fixture
def lora(tmp_path):
    """A LoRA on two modules of its unet."""
    return write_lora(tmp_path / "lora")


def without_manifest(folder):
    """Every file of an output but the manifest."""
    return {name: data for name, data in tree(folder).items() if name != "wiseft.json"}


def tuned(weights, adapter, alpha, prefix="base_model.model.", scale=2.0):
    """W + alpha·s·B·A in float64, by torch, for every module of an adapter."""
    found = dict(weights)
    factors = load_file(adapter / "adapter_model.safetensors")
    for key in (key for key in factors if key.endswith("lora_A.weight")):
        module = key.removeprefix(prefix).removesuffix(".lora_A.weight")
        delta = factors[key.replace("lora_A", "lora_B")].double() @ factors[key].double()
        weight = found[f"{module}.weight"]
        found[f"{module}.weight"] = (weight.double() + alpha * scale * delta).to(weight.dtype)
    return found


def test_it_is_one_mapping_of_all_components(base):
    """Names with the component in front, values bit for bit, however they are asked for; configs by component."""
    expected = whole()
    with open_checkpoint(base) as found:
        assert set(found) == set(expected) and len(found) == len(expected)
        assert found.components == ("text_encoder", "unet", "vae")
        assert [file.name for file in found.files] == WEIGHTS
        assert found.config is None and found.folder == base
        assert found.configs["text_encoder"]["model_type"] == "clip_text_model" and len(found.configs) == 3
        assert found.indexes == {f"unet/{INDEX}": {"total_size": 1}}
        for name, tensor in expected.items():
            assert same_bits(found[name], tensor) and same_bits(found.get_slice(name)[:], tensor)
            assert same_bits(found.read(name, 0, tensor.numel()), tensor.reshape(-1))


def test_a_component_alone_has_its_own_names(base, lora, tmp_path):
    """By `component=` and by the path of the sub-folder; an adapter without the component's name fits it."""
    adapter = write_adapter(
        tmp_path / "bare",
        {key.replace("unet.", ""): value for key, value in load_file(lora / "adapter_model.safetensors").items()},
    )
    for found in (open_checkpoint(base, component="unet"), open_checkpoint(base / "unet")):
        assert set(found) == set(components()["unet"]) and found.components == ()
        assert found.configs == {"": found.config} and found.config["sample_size"] == 8
        out = tmp_path / f"out-{found.path.name}"
        save_checkpoint(interpolate(found, adapter, 0.5), out)
        assert sorted(without_manifest(out)) == ["config.json", FIRST, SECOND, INDEX]
        expected = tuned(components()["unet"], adapter, 0.5)
        written = load_file(out / FIRST) | load_file(out / SECOND)
        assert all(torch.allclose(written[name], expected[name], rtol=1e-6) for name in expected)


def test_alpha_0_is_the_pipeline_byte_for_byte(base, lora, tmp_path):
    """Every file of every component, and every file that is no model's, in the same place."""
    save_checkpoint(interpolate(base, lora, 0), tmp_path / "out")
    assert without_manifest(tmp_path / "out") == tree(base)


def test_alpha_1_is_tuned_in_its_component_and_nowhere_else(base, lora, tmp_path):
    """The formula in the unet; the bytes of the other components; headers as they were; verified from files."""
    out = tmp_path / "out"
    report = save_checkpoint(interpolate(base, lora, 1), out)
    expected, written = tuned(whole(), lora, 1), read_pipeline(out)
    assert written.keys() == expected.keys() and report.touched == 2
    for name, tensor in expected.items():
        torch.testing.assert_close(written[name], tensor, rtol=1e-6, atol=1e-6)
        assert same_bits(written[name], whole()[name]) == (name not in (f"unet.{QUERY}.weight", f"unet.{UP}.weight"))
    for name in WEIGHTS:
        start = 8 + int.from_bytes((base / name).read_bytes()[:8], "little")
        assert (out / name).read_bytes()[:start] == (base / name).read_bytes()[:start]
    manifest = json.loads((out / "wiseft.json").read_text())
    assert [entry["file"] for entry in manifest["inputs"] if entry["role"] == "base"] == WEIGHTS
    assert {entry["file"] for entry in manifest["outputs"]} == set(without_manifest(out))
    checked = verify(out, base=base, adapter=lora)
    assert checked.ok and checked.checks["tensors computed"] == 2
    with (out / WEIGHTS[1]).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x7f")
    assert {problem.file for problem in verify(out, base=base, adapter=lora).problems} == {WEIGHTS[1]}


def test_another_pipeline_in_the_adapters_place(base, tmp_path):
    """Original WiSE-FT over whole pipelines: half-way between the two in every component."""
    other = write_pipeline(tmp_path / "other")
    file = other / "vae" / "diffusion_pytorch_model.safetensors"
    moved = load_file(file)
    save_file(moved | {"conv_in.weight": moved["conv_in.weight"] + 2}, file, {"format": "pt"})
    view = interpolate(base, other, 0.5)
    torch.testing.assert_close(view["vae.conv_in.weight"], whole()["vae.conv_in.weight"] + 1)
    assert same_bits(view["unet.conv_in.weight"], whole()["unet.conv_in.weight"])


def test_two_towers_in_one_sum(base, lora, tmp_path):
    """`combine` of a LoRA on the unet and one on the text encoder is both, each where it belongs."""
    text = write_lora(tmp_path / "text", f"text_encoder.{TEXT}")
    expected = tuned(tuned(whole(), lora, 0.5), text, 0.25)
    save_checkpoint(combine(base, [(lora, 0.5), (text, 0.25)]), tmp_path / "out")
    written = read_pipeline(tmp_path / "out")
    assert all(torch.allclose(written[name], expected[name], rtol=1e-6) for name in expected)
    assert verify(tmp_path / "out", base=base, adapter=[text, lora]).ok


def test_new_shards_are_cut_within_each_component(base, lora, tmp_path):
    """Named as diffusers and transformers name them, each component with an index of its own, of names without it."""
    out = tmp_path / "out"
    save_checkpoint(interpolate(base, lora, 0.5), out, max_shard_size=100)
    expected, written = tuned(whole(), lora, 0.5), read_pipeline(out)
    assert written.keys() == expected.keys()
    assert all(torch.allclose(written[name], expected[name], rtol=1e-6) for name in expected)
    for part, stem in (("text_encoder", "model"), ("unet", "diffusion_pytorch_model")):
        index = json.loads((out / part / f"{stem}.safetensors.index.json").read_text())
        assert index["weight_map"].keys() == components()[part].keys()
        for name, file in index["weight_map"].items():
            assert file.startswith(f"{stem}-0000") and name in load_file(out / part / file)
    assert verify(out, base=base, adapter=lora).ok


def test_another_dtype_is_said_in_each_config_that_says_one(base, lora, tmp_path):
    """Of every component; a config that says none stays byte for byte."""
    out = tmp_path / "out"
    save_checkpoint(interpolate(base, lora, 0.5, output_dtype=torch.bfloat16), out)
    assert json.loads((out / "text_encoder" / "config.json").read_text())["dtype"] == "bfloat16"
    assert json.loads((out / "unet" / "config.json").read_text()) == {
        "_class_name": "UNet2DConditionModel", "sample_size": 8
    }  # fmt: skip
    assert {value.dtype for value in read_pipeline(out).values()} == {torch.bfloat16, torch.int64}
    assert json.loads((out / "unet" / INDEX).read_text())["weight_map"].keys() == components()["unet"].keys()
    assert verify(out, base=base, adapter=lora).ok


def test_a_new_tensor_goes_into_the_files_of_its_component(base, tmp_path):
    """Into the last of them, by its name without the component; one of no component is refused."""
    more = whole() | {"unet.extra.weight": torch.ones(2)}
    save_checkpoint(more, tmp_path / "out", like=base)
    assert torch.equal(load_file(tmp_path / "out" / "unet" / SECOND)["extra.weight"], torch.ones(2))
    index = json.loads((tmp_path / "out" / "unet" / INDEX).read_text())
    assert index["weight_map"]["extra.weight"] == SECOND
    for size in (None, "1GB"):
        with pytest.raises(CheckpointError, match="of no component"):
            save_checkpoint(whole() | {"extra": torch.ones(2)}, tmp_path / "none", like=base, max_shard_size=size)
    assert not (tmp_path / "none").exists()


def test_a_sweep_and_its_best_are_what_each_alpha_gives_alone(base, lora, tmp_path):
    """keep="all" and keep="best" write a pipeline's folders as `save_checkpoint` does; leftovers of CMD are removed."""

    def judge(place):
        assert load_file(place / "unet" / FIRST) and (place / "model_index.json").exists()
        (place / "unet" / "left").mkdir()
        (place / "unet" / "left" / "over.txt").write_text("x")
        return {"score": float(load_file(place / "unet" / SECOND)[f"{QUERY}.weight"].double().sum())}

    views = sweep(base, lora, [0, 0.5, 1])
    save_sweep(views, tmp_path / "all")
    found = save_sweep(views, tmp_path / "best", evaluate=judge, metrics=[Metric("score", "max")], keep="best")
    for alpha in (0, 0.5, 1):
        save_checkpoint(interpolate(base, lora, alpha), tmp_path / f"one-{alpha}")
        assert tree(tmp_path / "all" / f"alpha-{alpha}") == tree(tmp_path / f"one-{alpha}")
    best = found.best.folder
    assert tree(tmp_path / "best" / best) == tree(tmp_path / "all" / best)


def test_a_folder_that_was_swapped_for_a_link_is_noticed(base, lora, tmp_path):
    """An evaluation that moves a component away and links to it gets nothing removed there."""

    def judge(place):
        (place / "unet").rename(tmp_path / "moved")
        (tmp_path / "moved" / "mine.txt").write_text("keep")
        (place / "unet").symlink_to(tmp_path / "moved")
        return {"score": 1.0}

    views = sweep(base, lora, [0, 1])
    with pytest.raises(CheckpointError, match="changed while it was evaluated"):
        save_sweep(views, tmp_path / "out", evaluate=judge, metrics=[Metric("score", "max")], keep="best")
    assert (tmp_path / "moved" / "mine.txt").read_text() == "keep"


def test_a_variant_of_the_components_that_have_it(base, lora, tmp_path):
    """fp16 where a component has it, the plain file elsewhere; what was written is verified by itself."""
    save_file(
        {"conv_in.weight": torch.ones(3, 2, 3, 3).half()}, base / "vae" / "diffusion_pytorch_model.fp16.safetensors"
    )
    found = open_checkpoint(base, variant="fp16")
    assert found.specs["vae.conv_in.weight"].dtype == "F16" and found.specs["unet.conv_in.weight"].dtype == "F32"
    save_checkpoint(interpolate(found, lora, 0), tmp_path / "out")
    assert not (tmp_path / "out" / "vae" / "diffusion_pytorch_model.safetensors").exists()
    assert verify(tmp_path / "out", base=found, adapter=lora).ok
    with pytest.raises(CheckpointError, match="no component has the variant 'bf16'"):
        open_checkpoint(base, variant="bf16")


def test_a_snapshot_in_a_cache(base, lora, tmp_path):
    """Links to blobs: the same output as from plain files; a component of a snapshot takes its config along."""
    snapshot = cache_snapshot(tmp_path, "org/name", base)
    root = snapshot.parents[1]
    save_checkpoint(interpolate(base, lora, 0.5), tmp_path / "plain")
    for at, place in enumerate((root, snapshot)):
        save_checkpoint(interpolate(place, lora, 0.5), tmp_path / f"out-{at}")
        assert tree(tmp_path / f"out-{at}") == tree(tmp_path / "plain")
    with open_checkpoint(root, component="vae") as vae:
        report = save_checkpoint(dict(vae), tmp_path / "vae", like=vae)
    assert sorted(report.files) == ["config.json", "diffusion_pytorch_model.safetensors"] and report.left_out == ()


@pytest.mark.parametrize("name", ["../x", "/etc", ".", "..", "", "a/b", "a\\b", "a.b", "-x", "a\n", "é", "x" * 101])
def test_no_component_leads_out_of_the_folder(base, name, tmp_path):
    """Whatever model_index.json calls a component, nothing but a folder beside it is looked at."""
    write_json(tmp_path / "x" / "config.json", {})
    save_file(components()["vae"], tmp_path / "x" / "model.safetensors")
    write_json(base / "model_index.json", LISTED | {name: ["diffusers", "X"]})
    with pytest.raises(CheckpointError, match="bare name of a folder"):
        open_checkpoint(base)


@pytest.mark.parametrize("text", ["", "[]", '{"unet": ["a", "b"], "unet": ["a", "b"]}', "{" * 300, '{"a": NaN}'])
def test_a_model_index_that_is_no_strict_json_is_refused(base, text):
    """As every other JSON from a stranger."""
    (base / "model_index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"model_index\.json"):
        open_checkpoint(base)


def _missing(base):
    shutil.rmtree(base / "vae")


def _without_weights(base):
    (base / "text_encoder" / "model.safetensors").unlink()


def _outside(base):
    (base / "vae").rename(base.parent / "vae")
    (base / "vae").symlink_to(base.parent / "vae")


def _file(base):
    shutil.rmtree(base / "vae")
    (base / "vae").write_text("")


def _beside(base):
    save_file({"w": torch.ones(1)}, base / "model.safetensors")


def _lost_shard(base):
    (base / "unet" / SECOND).unlink()


@pytest.mark.parametrize(
    ("spoil", "fragment"),
    [
        (_missing, "no such folder"),
        (_without_weights, "weights beside the config"),
        (_outside, "a link that leaves it"),
        (_file, "something else"),
        (_beside, "--weights model.safetensors"),
        (_lost_shard, "missing shard"),
    ],
)
def test_a_pipeline_that_is_not_whole_is_refused(base, lora, tmp_path, spoil, fragment):
    """Nothing is written, and one whole component can still be had alone."""
    spoil(base)
    with pytest.raises(CheckpointError) as caught:
        save_checkpoint(interpolate(base, lora, 0.5), tmp_path / "out")
    assert fragment in str(caught.value) and not (tmp_path / "out").exists()
    other = "vae" if spoil in (_lost_shard, _without_weights) else "text_encoder"
    assert set(open_checkpoint(base, component=other)) == set(components()[other])


def test_a_component_in_another_format_is_refused(base, lora):
    """A safety checker with nothing but a pickle: it could not go along, so nothing does."""
    write_json(base / "safety_checker" / "config.json", {})
    (base / "safety_checker" / "pytorch_model.bin").write_bytes(b"\x80")
    assert plan(base, lora).outputs.keys() == whole().keys()  # model_index.json leaves it null
    write_json(base / "model_index.json", LISTED | {"safety_checker": ["stable_diffusion", "Checker"]})
    with pytest.raises(Unsupported, match="safety_checker") as caught:
        open_checkpoint(base)
    assert "--component" in caught.value.hint


def test_the_config_of_a_component_says_that_it_is_quantised(base, lora, tmp_path):
    """Refused where tuning touches that component, and there alone."""
    write_json(base / "unet" / "config.json", {"quantization_config": {"quant_method": "bitsandbytes"}})
    with pytest.raises(QuantizedBase, match="quantised"):
        interpolate(base, lora, 0.5)
    text = write_lora(tmp_path / "text", f"text_encoder.{TEXT}")
    assert interpolate(base, text, 0.5).touched == (f"text_encoder.{TEXT}.weight",)


def test_other_files_beside_a_pipeline(base, lora, tmp_path):
    """A single file in the root, weights of no listed component, an adapter's tokenizer: left out, and told."""
    save_file({"w": torch.ones(1)}, base / "tiny_v1.safetensors")
    save_file({"w": torch.ones(1)}, base / "vae" / "old.safetensors")
    write_json(base / "vae_1_0" / "config.json", {})
    save_file({"w": torch.ones(1)}, base / "vae_1_0" / "diffusion_pytorch_model.safetensors")
    write_json(lora / "tokenizer.json", {})
    report = save_checkpoint(interpolate(base, lora, 0.5), tmp_path / "out")
    assert {name for name, _ in report.left_out} == {
        "tiny_v1.safetensors", "tokenizer.json", "vae/old.safetensors", "vae_1_0/diffusion_pytorch_model.safetensors"
    }  # fmt: skip
    single = open_checkpoint(base, weights="tiny_v1.safetensors")
    save_checkpoint(interpolate(single, single, 0), tmp_path / "single")
    assert sorted(tree(tmp_path / "single")) == ["tiny_v1.safetensors", "wiseft.json"]
    assert verify(tmp_path / "single").ok


def test_an_adapter_that_fits_two_towers_alike_is_refused(base, tmp_path):
    """Without the component in its keys, and with a second text encoder of the same shapes: nothing is guessed."""
    shutil.copytree(base / "text_encoder", base / "text_encoder_2")
    write_json(base / "model_index.json", LISTED | {"text_encoder_2": ["transformers", "CLIPTextModel"]})
    bare = {
        f"base_model.model.{TEXT}.lora_{side}.weight": torch.ones(shape)
        for side, shape in (("A", (2, 4)), ("B", (6, 2)))
    }
    adapter = write_adapter(tmp_path / "bare", bare)
    with pytest.raises(WiseftError, match="text_encoder_2"):
        interpolate(base, adapter, 0.5)


def test_a_kill_at_every_operation_of_a_pipeline(base, lora, tmp_path):
    """Absent or whole, and the run that resumes gives the very same bytes, in the folders of all components."""
    place = seam.Place(base, lora, tmp_path / "out")
    log, expected = seam.operations(place)
    for number in seam.changing(log):
        before = seam.killer(number)
        child = seam.fork(lambda before=before: place.save(seam.Unsynced(before)))
        assert seam.ended(child) == -signal.SIGKILL
        assert place.left() in (None, expected), log[number - 1]
        place.save(seam.Unsynced(lambda *_: None))
        assert place.left() == expected, log[number - 1]
        assert place.beside() == []
        shutil.rmtree(place.out)


def test_a_resumed_run_keeps_the_shards_that_are_finished(base, lora, tmp_path):
    """Stopped before it is published: the shards of every component are kept where they lie, and not computed again."""
    place = seam.Place(base, lora, tmp_path / "out")
    log, expected = seam.operations(place)
    assert seam.ended(seam.fork(lambda: place.save(seam.Unsynced(seam.killer(log.index("rename")))))) == -signal.SIGKILL
    kept = {name: (place.shell / "out" / name).stat().st_ino for name in WEIGHTS}
    place.save()
    assert place.left() == expected
    assert {name: (place.out / name).stat().st_ino for name in WEIGHTS} == kept


def test_a_variant_of_a_plain_folder_is_verified_by_itself(base, lora, tmp_path):
    """The output has the variant's file alone, and `verify` looks for it there."""
    save_file(components()["vae"], base / "vae" / "diffusion_pytorch_model.fp16.safetensors", {"format": "pt"})
    with open_checkpoint(base, component="vae", variant="fp16") as vae:
        save_checkpoint(interpolate(vae, vae, 0), tmp_path / "out")
    assert (tmp_path / "out" / "diffusion_pytorch_model.fp16.safetensors").exists()
    assert verify(tmp_path / "out").ok
    (tmp_path / "out" / "diffusion_pytorch_model.fp16.safetensors").unlink()
    assert not verify(tmp_path / "out").ok


def test_several_models_under_one_name(base, tmp_path):
    """MultiControlNetModel keeps its others in folders with _1, _2 behind the name, which nothing lists."""
    for name in ("controlnet", "controlnet_1", "controlnet_2", "controlnet_4"):
        shutil.copytree(base / "vae", base / name)
    write_json(base / "model_index.json", LISTED | {"controlnet": ["diffusers", "MultiControlNetModel"]})
    found = open_checkpoint(base)
    assert [name for name in found.components if "control" in name] == ["controlnet", "controlnet_1", "controlnet_2"]
    write_json(base / "model_index.json", LISTED | {"controlnet": ["diffusers", "ControlNetModel"]})
    assert [name for name in open_checkpoint(base).components if "control" in name] == ["controlnet"]


def test_a_resized_vocabulary_is_followed_in_the_config_of_its_component(base, tmp_path):
    """A text encoder whose saved embedding has more rows: its config says so, and no other one."""
    name, config = "text_model.token_embedding", {"model_type": "clip_text_model", "vocab_size": 5}
    save_file({f"{name}.weight": torch.ones(5, 4)}, base / "text_encoder" / "model.safetensors", {"format": "pt"})
    write_json(base / "text_encoder" / "config.json", config)
    write_json(base / "vae" / "config.json", {"vocab_size": 5})
    saved = {f"base_model.model.text_encoder.{name}.weight": torch.full((7, 4), 3.0)}
    adapter = write_adapter(tmp_path / "lora", saved, modules_to_save=[name])
    view = interpolate(base, adapter, 0.5)
    save_checkpoint(view, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "text_encoder" / "config.json").read_text()) == config | {"vocab_size": 7}
    assert (tmp_path / "out" / "vae" / "config.json").read_bytes() == (base / "vae" / "config.json").read_bytes()
    written = load_file(tmp_path / "out" / "text_encoder" / "model.safetensors")[f"{name}.weight"]
    assert torch.equal(written, torch.tensor([2.0] * 5 + [3.0] * 2)[:, None].expand(7, 4))
