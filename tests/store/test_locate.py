"""Which file is meant: the names of transformers and diffusers, one candidate or a refusal."""

from __future__ import annotations

import json
import os

import pytest

from wiseft_core.errors import CheckpointError, ConfigError, Unsupported
from wiseft_core.store.locate import Place, locate, read_index


def touch(folder, *names):
    """Empty files of these names: no header is read here."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"")


NOISE = ("config.json", "tokenizer.json", "README.md", "adapter_notes.txt", ".hidden.safetensors", "training_args.bin")


@pytest.mark.parametrize(
    ("names", "choice", "expected"),
    [
        (["model.safetensors"], {}, "model.safetensors"),
        (["model.safetensors", "pytorch_model.bin"], {}, "model.safetensors"),
        (["model.safetensors", "consolidated.safetensors"], {}, "model.safetensors"),
        (["model.safetensors", "adapter_model.safetensors", "adapter_config.json"], {}, "model.safetensors"),
        (["model.safetensors", "model.fp16.safetensors"], {}, "model.safetensors"),
        (["model.safetensors", "model.fp16.safetensors"], {"variant": "fp16"}, "model.fp16.safetensors"),
        (["model.safetensors.index.json", "model-00001-of-00001.safetensors"], {}, "model.safetensors.index.json"),
        (
            ["model.safetensors.index.fp16.json", "model.fp16-00001-of-00002.safetensors", "model.safetensors"],
            {"variant": "fp16"},
            "model.safetensors.index.fp16.json",
        ),
        (["diffusion_pytorch_model.safetensors"], {}, "diffusion_pytorch_model.safetensors"),
        (
            ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.non_ema.safetensors"],
            {"variant": "non_ema"},
            "diffusion_pytorch_model.non_ema.safetensors",
        ),
        (["diffusion_pytorch_model.safetensors.index.json"], {}, "diffusion_pytorch_model.safetensors.index.json"),
        (["consolidated.safetensors"], {}, "consolidated.safetensors"),
        (["a.safetensors", "b.safetensors"], {"weights": "b.safetensors"}, "b.safetensors"),
        (
            ["model.safetensors", "model.safetensors.index.json"],
            {"weights": "model.safetensors.index.json"},
            "model.safetensors.index.json",
        ),
    ],
)
def test_the_file_that_is_meant(tmp_path, names, choice, expected):
    """Among these names and the usual noise, exactly this one."""
    touch(tmp_path, *names, *NOISE)
    assert locate(tmp_path, **choice) == Place(tmp_path / expected, tmp_path)


@pytest.mark.parametrize(
    ("names", "named"),
    [
        (["model.safetensors", "model.safetensors.index.json"], ["model.safetensors", "model.safetensors.index.json"]),
        (["model.safetensors", "diffusion_pytorch_model.safetensors"], ["diffusion_pytorch_model.safetensors"]),
        (["a.safetensors", "b.safetensors"], ["a.safetensors", "b.safetensors"]),
    ],
)
def test_two_that_could_be_meant_are_both_named(tmp_path, names, named):
    """Nothing is guessed: the candidates and --weights are in the message."""
    touch(tmp_path, *names)
    with pytest.raises(CheckpointError, match="more than one file") as caught:
        locate(tmp_path)
    assert all(name in caught.value.got for name in named)
    assert "--weights" in caught.value.hint


@pytest.mark.parametrize(
    ("names", "choice", "fragment"),
    [
        ([], {}, "an empty folder"),
        (["notes.txt"], {}, "save_pretrained"),
        (["training_args.bin", "optimizer.pt"], {}, "save_pretrained"),
        (["adapter_config.json", "adapter_model.safetensors"], {}, "an adapter"),
        (["adapter_config.json", "adapter_model.bin"], {}, "an adapter"),
        (["model.fp16.safetensors"], {}, "variant='fp16'"),
        (["model.safetensors"], {"variant": "fp16"}, "leave out the variant"),
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], {}, "shards need their index"),
        (["model_index.json"], {}, "unet or transformer"),
    ],
)
def test_a_folder_without_weights_says_why(tmp_path, names, choice, fragment):
    """The likeliest reason is in the message, and what to do."""
    touch(tmp_path, *names)
    with pytest.raises(CheckpointError, match="no weights here") as caught:
        locate(tmp_path, **choice)
    assert fragment in str(caught.value)


@pytest.mark.parametrize("suffix", ["bin", "pt", "pth", "ckpt", "gguf", "h5", "msgpack"])
def test_other_formats_are_recognised_and_refused(tmp_path, suffix):
    """In a folder, by itself, and chosen: exit code 4, and how to convert."""
    touch(tmp_path, f"pytorch_model.{suffix}", "config.json")
    for path, choice in (
        (tmp_path, {}),
        (tmp_path / f"pytorch_model.{suffix}", {}),
        (tmp_path, {"weights": f"pytorch_model.{suffix}"}),
    ):
        with pytest.raises(Unsupported) as caught:
            locate(path, **choice)
        assert caught.value.exit_code == 4
        assert "safe_serialization=True" in caught.value.hint


def test_a_file_by_itself_has_no_folder(tmp_path):
    """A file is taken whatever it is called; an index brings its folder."""
    touch(tmp_path, "any name", "model.safetensors.index.json", "config.json")
    assert locate(tmp_path / "any name") == Place(tmp_path / "any name", None)
    index = tmp_path / "model.safetensors.index.json"
    assert locate(index) == Place(index, tmp_path)
    assert locate(index).is_index
    with pytest.raises(CheckpointError, match="another JSON file"):
        locate(tmp_path / "config.json")
    with pytest.raises(ConfigError, match="variant and weights"):
        locate(index, variant="fp16", weights="x")


def test_a_component_is_a_sub_folder(tmp_path):
    """Only the named sub-folder is looked at; one that is not there is named in the error."""
    touch(tmp_path / "unet", "diffusion_pytorch_model.safetensors")
    touch(tmp_path, "model_index.json")
    assert locate(tmp_path, component="unet").folder == tmp_path / "unet"
    with pytest.raises(CheckpointError, match="transformer"):
        locate(tmp_path, component="transformer")


@pytest.mark.parametrize("argument", ["component", "variant", "weights"])
@pytest.mark.parametrize("value", ["", ".", "..", "../x", "/etc/passwd", "a/b", "a\\b", "a\0b"])
def test_choices_are_bare_names(tmp_path, argument, value):
    """No choice leads out of the folder."""
    touch(tmp_path, "model.safetensors")
    with pytest.raises(ConfigError, match=f"{argument} — not a bare name"):
        locate(tmp_path, **{argument: value})


def test_a_path_that_is_not_there(tmp_path):
    """A hub's name is not looked up, and the message says so."""
    with pytest.raises(CheckpointError, match="nothing is downloaded"):
        locate(tmp_path / "org" / "model")


def test_the_root_of_a_cached_repository_leads_to_its_main_snapshot(tmp_path):
    """refs/main is followed where it names a snapshot, and nowhere else."""
    root = tmp_path / "models--org--name"
    touch(root / "snapshots" / "abc123", "model.safetensors")
    touch(root / "snapshots" / "def456", "model.safetensors")
    touch(root / "refs")
    (root / "refs" / "main").write_text("def456\n", encoding="ascii")
    assert locate(root).folder == root / "snapshots" / "def456"
    for hostile in ("../../..", "", "/etc", "a/b", "x" * 300):
        (root / "refs" / "main").write_text(hostile, encoding="ascii")
        with pytest.raises(CheckpointError, match="main"):
            locate(root)
    (root / "refs" / "main").unlink()
    with pytest.raises(CheckpointError, match="main"):
        locate(root)


HOSTILE = ["../x", "/etc/x", "C:x", "\\\\srv\\x", "a/../b", "a\0", ".", "..", "", "-x", ".x", "a b", "a" * 200, "a\n"]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_shard_outside_the_folder_is_refused(tmp_path, name):
    """No index leads to a file that is not beside it."""
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"w": f"{name}.safetensors"}}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="bare name") as caught:
        read_index(path)
    assert "weight_map, w" in caught.value.where


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ('{"weight_map": {"w": "model.bin"}}', "'model.bin'"),
        ('{"weight_map": {"w": "x.safetensors\\n"}}', "bare name"),
        ('{"weight_map": {"w": 1}}', "bare name"),
        ('{"weight_map": {"w": null}}', "bare name"),
        ('{"weight_map": {}}', "no tensors"),
        ('{"weight_map": []}', "not a JSON object"),
        ("{}", "not a JSON object"),
        ("[]", "not a JSON object"),
        ('{"weight_map": {"w": "a.safetensors", "w": "b.safetensors"}}', "said twice in one object: w"),
        ('{"weight_map": {"w": "a.safetensors"}, "metadata": 3}', "not a JSON object"),
        ('{"weight_map": ', "Expecting value"),
    ],
)
def test_an_index_that_is_none_is_refused(tmp_path, text, fragment):
    """Every other fault of an index is a CheckpointError that names it."""
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError) as caught:
        read_index(path)
    assert fragment in str(caught.value)
    assert str(path) in caught.value.where


def test_a_large_index_is_read(tmp_path):
    """Indexes have outgrown the 8 MiB that a config gets."""
    path = tmp_path / "model.safetensors.index.json"
    weight_map = {f"model.layers.{i}.{'x' * 100}": "model-00001-of-00001.safetensors" for i in range(80_000)}
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}), encoding="ascii")
    assert os.path.getsize(path) > 8 << 20
    assert read_index(path).weight_map == weight_map
