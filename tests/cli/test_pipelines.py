"""The command walks a pipeline, takes one component of it, and reads names on the hub."""

from __future__ import annotations

import json
import shlex

import pytest
from components import INDEX, QUERY, cache_snapshot, components, read_pipeline, whole, write_lora, write_pipeline
from folders import tree, write_adapter
from safetensors.torch import load_file, save_file

from wiseft_core import open_adapter
from wiseft_core.cli import main
from wiseft_core.errors import ConfigError

MODULES = ("text_encoder/model.safetensors", f"unet/{INDEX}", "vae/diffusion_pytorch_model.safetensors")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A pipeline, a LoRA for it and one for its unet alone, in the working folder."""
    monkeypatch.chdir(tmp_path)
    write_pipeline(tmp_path / "base")
    write_lora(tmp_path / "lora")
    factors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    write_adapter(tmp_path / "bare", {key.replace("unet.", ""): value for key, value in factors.items()})
    return tmp_path


def next_step(capsys) -> list[str]:
    """The command line that a report ends with, without the program."""
    return shlex.split(capsys.readouterr().out.strip().splitlines()[-1])[1:]


def test_a_pipeline_is_planned_written_and_verified(place, capsys):
    """Each report leads to the next command: plan, interpolate, verify."""
    assert main(["plan", "base", "lora"]) == 0
    line = [word if word != "OUT" else "out" for word in next_step(capsys)]
    assert main([*line[:-1], "0", "--quiet"]) == 0
    assert {name: data for name, data in tree(place / "out").items() if name != "wiseft.json"} == tree(place / "base")
    assert main(["interpolate", "base", "lora", "half", "--alpha", "0.5"]) == 0
    assert main(next_step(capsys)) == 0
    assert read_pipeline(place / "half").keys() == whole().keys()
    capsys.readouterr()
    assert main(["plan", "base", "lora", "--json"]) == 0
    assert f"unet.{QUERY}.weight" in json.loads(capsys.readouterr().out)["touched"]
    assert all((place / "half" / name).exists() for name in MODULES)


def test_one_component_of_a_pipeline(place, capsys):
    """`--component` in every verb that takes a base; what is written is that component alone."""
    assert main(["plan", "base", "bare", "--component", "unet"]) == 0
    assert next_step(capsys)[-2:] == ["--component", "unet"]
    assert main(["interpolate", "base", "bare", "out", "--alpha", "0.5", "--component", "unet"]) == 0
    step = next_step(capsys)
    assert step[-2:] == ["--component", "unet"] and main(step) == 0
    assert {name for name in tree(place / "out") if "/" in name} == set()
    assert main(["sweep", "base", "bare", "all", "--alpha", "0:1:0.5", "--component", "unet"]) == 0
    assert tree(place / "all" / "alpha-0.5") == tree(place / "out")
    assert main(["combine", "base", "sum", "--adapter", "bare=0.5", "--component", "unet"]) == 0
    assert tree(place / "sum") == tree(place / "out")
    assert main(["rescale", "bare", "less", "--alpha", "0.5", "--base", "base", "--component", "unet"]) == 0
    capsys.readouterr()
    assert main(["interpolate", "base", "bare", "none", "--alpha", "0.5", "--component", "uent"]) == 3
    assert "uent" in capsys.readouterr().err and not (place / "none").exists()


def test_a_variant_of_a_pipeline(place, capsys):
    """`--variant`, kept in the command that comes next."""
    half = {name: value.half() if value.is_floating_point() else value for name, value in components()["vae"].items()}
    save_file(half, place / "base" / "vae" / "diffusion_pytorch_model.fp16.safetensors")
    assert main(["interpolate", "base", "lora", "out", "--alpha", "0", "--variant", "fp16"]) == 0
    step = next_step(capsys)
    assert step[-2:] == ["--variant", "fp16"] and main(step) == 0
    assert (place / "out" / "vae" / "diffusion_pytorch_model.fp16.safetensors").exists()


def test_names_on_the_hub(place, capsys, monkeypatch):
    """Base and adapter by name, a named adapter in a repository of several, and a name that is not in the cache."""
    monkeypatch.setenv("HF_HUB_CACHE", str(place / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    cache_snapshot(place / "cache", "org/sd", place / "base")
    (place / "several").mkdir()
    (place / "lora").rename(place / "several" / "mine")
    cache_snapshot(place / "cache", "me/loras", place / "several", revision="v1")
    line = ["interpolate", "org/sd", "me/loras@v1", "out", "--alpha", "0.5", "--adapter-name", "mine"]
    assert main(line) == 0
    assert main(next_step(capsys)) == 0
    assert main(["inspect", "me/loras@v1", "--adapter-name", "mine"]) == 0
    assert main(["combine", "org/sd", "sum", "--adapter", f"{place / 'several' / 'mine'}=0.5"]) == 0
    assert tree(place / "sum")[f"unet/{INDEX}"] == tree(place / "out")[f"unet/{INDEX}"]
    capsys.readouterr()
    assert main(["plan", "org/other", "me/loras@v1", "--json"]) == 3
    said = json.loads(capsys.readouterr().out)
    assert "models--org--other" in said["got"] and "hf download org/other" in said["hint"]


def test_a_path_is_never_taken_for_a_name_on_the_hub(place, capsys, monkeypatch):
    """A named adapter that is not in its folder, and a path that begins with a dot, though the cache has such names."""
    monkeypatch.setenv("HF_HUB_CACHE", str(place / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    cache_snapshot(place / "cache", "org/sd", place / "base")
    cache_snapshot(place / "cache", "bare/mine", place / "lora")
    (place / "lora" / "yours").mkdir()
    (place / "lora" / "yours" / "adapter_config.json").write_text("{}")
    for adapter, said in (("bare", "no adapters in sub-folders"), ("lora", "adapters called yours")):
        assert main(["inspect", adapter, "--adapter-name", "mine", "--json"]) == 3
        assert json.loads(capsys.readouterr().out)["got"] == said
    for name in ("", ".", "..", "../lora", str(place / "lora")):
        assert main(["inspect", "bare", "--adapter-name", name]) == 3
        assert "not a bare name" in capsys.readouterr().err
        with pytest.raises(ConfigError, match="not a bare name"):
            open_adapter("bare", name=name)
    assert main(["plan", "org/sd", "lora"]) == 0
    for path in ("./org/sd", "org//sd", "org/./sd", "org/sd/"):
        capsys.readouterr()
        assert main(["plan", path, "lora", "--json"]) == 3
        assert "hf download" not in capsys.readouterr().out
