"""What goes along with the weights, and what is left out and why."""

from __future__ import annotations

import os

import pytest
from blake3 import blake3

from wiseft_core.errors import CheckpointError
from wiseft_core.store import sidecars
from wiseft_core.store.files import FILES
from wiseft_core.store.sidecars import copy_sidecar, plan_sidecars


def fill(folder, *names):
    """Make files that hold their own path."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(str(folder / name))
    return folder


def plan(base, adapter=None, *, copy_code=False, taken=()):
    return plan_sidecars(base, [] if adapter is None else [adapter], copy_code=copy_code, taken=taken, files=FILES)


def test_what_goes_along(tmp_path):
    """Every file beside the weights at any depth, in order; the weights that the run writes are not mentioned."""
    names = ["README.md", "config.json", "1_Pooling/config.json", "a/b/c.txt", ".gitattributes", "vocab.txt"]
    fill(tmp_path, *names, "model.safetensors", "model.safetensors.index.json")
    seen = plan(tmp_path, taken=["model.safetensors", "model.safetensors.index.json"])
    assert seen.copies == tuple(sorted((name, tmp_path / name) for name in names))
    assert seen.left_out == ()


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("pytorch_model.bin", "weights"), ("x.pt", "weights"), ("x.pth", "weights"), ("x.ckpt", "weights"),
        ("tf_model.h5", "weights"), ("onnx/model.onnx", "weights"), ("X.GGUF", "weights"), ("f.msgpack", "weights"),
        ("m.tflite", "weights"), ("rust_model.ot", "weights"), ("other.safetensors", "weights"),
        ("sub/model.safetensors", "weights"), ("m.safetensors.index.fp16.json", "weights"),
        ("pytorch_model.bin.index.json", "weights"), ("modeling.py", "--copy-code"), ("sub/X.PY", "--copy-code"),
        ("wiseft.json", "manifest"), ("sub/wiseft.json", "manifest"), ("wiseft.json/x", "manifest"),
        ("tab\tname", "safe"), ("bidi\u202ename", "safe"),
    ],
)  # fmt: skip
def test_what_is_left_out(tmp_path, name, word):
    """Other weight formats, code, manifests and unsafe names stay behind, listed with a reason and safe to print."""
    fill(tmp_path, name, "config.json")
    seen = plan(tmp_path)
    assert [copied for copied, _ in seen.copies] == ["config.json"]
    ((shown, reason),) = seen.left_out
    assert word in reason and shown.isprintable()


def test_undecodable_names_are_left_out(tmp_path):
    """A name that is not UTF-8 on disk is left out, and told in ASCII."""
    with open(os.fsencode(tmp_path) + b"/bad\xff.txt", "wb"):
        pass
    seen = plan(tmp_path)
    assert seen.copies == () and seen.left_out[0][0] == "bad\\udcff.txt"


def test_code_on_request(tmp_path):
    """`copy_code` takes Python files and nothing else that was left out."""
    fill(tmp_path, "modeling.py", "x.bin")
    seen = plan(tmp_path, copy_code=True)
    assert [name for name, _ in seen.copies] == ["modeling.py"]
    assert [name for name, _ in seen.left_out] == ["x.bin"]


def test_folders_of_tools_are_not_entered(tmp_path):
    """`.git` and `.cache` are listed once, as a whole, at any depth; a link into one is no way around."""
    fill(tmp_path, ".git/config", ".git/objects/aa", "sub/.cache/x", "kept.txt")
    (tmp_path / "token").symlink_to(".git/config")
    seen = plan(tmp_path)
    assert [name for name, _ in seen.copies] == ["kept.txt"]
    assert [name for name, _ in seen.left_out] == [".git", "sub/.cache", "token"]


def test_links_inside_are_dereferenced(tmp_path):
    """A link to a file or folder inside is copied as what it leads to."""
    fill(tmp_path, "real/file.txt")
    (tmp_path / "file").symlink_to("real/file.txt")
    (tmp_path / "folder").symlink_to("real")
    seen = plan(tmp_path)
    real = tmp_path / "real" / "file.txt"
    assert seen.copies == (("file", real), ("folder/file.txt", real), ("real/file.txt", real))


def test_links_out_are_not_followed(tmp_path):
    """A link that leaves the folder, straight or through others, is left out, and so is one that leads nowhere."""
    base, outside = fill(tmp_path / "base", "kept"), fill(tmp_path / "outside", "secret", "more/secret")
    (base / "absolute").symlink_to(outside / "secret")
    (base / "folder").symlink_to(outside)
    (base / "hop").symlink_to("absolute")
    (base / "relative").symlink_to("../outside/secret")
    (base / "dangling").symlink_to("nothing")
    (base / "itself").symlink_to("itself")
    seen = plan(base)
    assert [name for name, _ in seen.copies] == ["kept"]
    assert {name: reason.split(" ", 2)[2] for name, reason in seen.left_out} == {
        **dict.fromkeys(["absolute", "folder", "hop", "relative"], "that leaves the folder"),
        **dict.fromkeys(["dangling", "itself"], "to nothing"),
    }


def test_a_neighbour_with_the_same_start_is_outside(tmp_path):
    """`base-secret` is not inside `base`, though its path starts with it."""
    base = fill(tmp_path / "base", "kept")
    (base / "link").symlink_to(fill(tmp_path / "base-secret", "x") / "x")
    assert [name for name, _ in plan(base).copies] == ["kept"]


def test_links_to_the_blobs_of_a_cache_snapshot_are_followed(tmp_path):
    """In a Hugging Face cache every file is a link to a blob; a blob that is itself a link out is not followed."""
    model = tmp_path / "models--org--name"
    fill(model, "blobs/0a", "blobs/0b")
    fill(tmp_path, "secret")
    (model / "blobs" / "0c").symlink_to(tmp_path / "secret")
    snapshot = model / "snapshots" / "abc"
    (snapshot / "sub").mkdir(parents=True)
    (snapshot / "config.json").symlink_to("../../blobs/0a")
    (snapshot / "sub" / "vocab.txt").symlink_to("../../../blobs/0b")
    (snapshot / "leak").symlink_to("../../blobs/0c")
    (tmp_path / "shortcut").symlink_to(snapshot)
    seen = plan(tmp_path / "shortcut")
    assert seen.copies == (("config.json", model / "blobs" / "0a"), ("sub/vocab.txt", model / "blobs" / "0b"))
    assert [name for name, _ in seen.left_out] == ["leak"]


def test_cycles_end(tmp_path):
    """Links to a folder above, or two folders that link to each other, end the walk instead of the run."""
    fill(tmp_path, "a/x", "b/y")
    (tmp_path / "a" / "up").symlink_to("..")
    (tmp_path / "a" / "over").symlink_to("../b")
    (tmp_path / "b" / "back").symlink_to("../a")
    seen = plan(tmp_path)
    assert [name for name, _ in seen.copies] == ["a/over/y", "a/x", "b/back/x", "b/y"]
    assert {reason for _, reason in seen.left_out} == {"a link to a folder that it is in"}


def test_a_bomb_of_links_is_refused(tmp_path, monkeypatch):
    """Folders that link twice to the next one, over and over, are refused before they fill the disk."""
    monkeypatch.setattr(sidecars, "ENTRY_LIMIT", 500)
    for at in range(30):
        (tmp_path / f"d{at}").mkdir()
        for name in ("left", "right"):
            (tmp_path / f"d{at}" / name).symlink_to(f"../d{at + 1}")
    (tmp_path / "d30").mkdir()
    with pytest.raises(CheckpointError, match="at most 500"):
        plan(tmp_path)


def test_what_is_not_a_file_is_left_out(tmp_path):
    """A FIFO is not opened, which would wait for ever."""
    os.mkfifo(tmp_path / "pipe")
    assert plan(tmp_path).left_out == (("pipe", "not a regular file"),)


def test_the_adapters_tokenizer_replaces_the_bases(tmp_path):
    """All of the base's tokenizer gives way, also files that the adapter lacks, and nothing else of the adapter's."""
    base = fill(tmp_path / "base", "config.json", "merges.txt", "tokenizer.json", "sub/vocab.txt")
    adapter = fill(
        tmp_path / "adapter", "adapter_config.json", "README.md", "tokenizer.json", "chat_template.jinja",
        "additional_chat_templates/tool.jinja", "checkpoint-1/tokenizer.json", "adapter_model.safetensors",
    )  # fmt: skip
    seen = plan(base, adapter)
    assert seen.copies == (
        ("additional_chat_templates/tool.jinja", adapter / "additional_chat_templates" / "tool.jinja"),
        ("chat_template.jinja", adapter / "chat_template.jinja"),
        ("config.json", base / "config.json"),
        ("sub/vocab.txt", base / "sub" / "vocab.txt"),
        ("tokenizer.json", adapter / "tokenizer.json"),
    )
    assert [name for name, _ in seen.left_out] == ["merges.txt", "tokenizer.json"]


def test_pieces_of_a_tokenizer_replace_nothing(tmp_path):
    """An adapter folder without tokenizer.json, tokenizer_config.json or tokenizer.model leaves the base's alone."""
    base = fill(tmp_path / "base", "tokenizer.json")
    adapter = fill(tmp_path / "adapter", "added_tokens.json", "special_tokens_map.json")
    (adapter / "tokenizer.json").symlink_to(fill(tmp_path / "outside", "tokenizer.json") / "tokenizer.json")
    assert plan(base, adapter).copies == (("tokenizer.json", base / "tokenizer.json"),)
    assert plan(base, adapter).left_out == ()


def test_either_folder_may_be_missing(tmp_path):
    """Without a base folder only the adapter's tokenizer is taken; without both, nothing."""
    adapter = fill(tmp_path, "tokenizer_config.json", "config.json")
    assert plan(None, adapter).copies == (("tokenizer_config.json", adapter / "tokenizer_config.json"),)
    assert plan(None).copies == ()


@pytest.mark.parametrize("replace", [None, b"other", b""])
def test_copies_have_the_content_and_a_plain_mode(tmp_path, replace):
    """Content or its replacement arrives, with size and digest; the source's mode does not."""
    (tmp_path / "source").write_bytes(b"content" * 1000)
    (tmp_path / "source").chmod(0o4711)
    (tmp_path / "plain").touch()
    target = tmp_path / "new" / "sub" / "target"
    size, digest = copy_sidecar(tmp_path / "source", target, FILES, sync=False, replace=replace)
    expected = b"content" * 1000 if replace is None else replace
    assert target.read_bytes() == expected and (size, digest) == (len(expected), blake3(expected).hexdigest())
    assert target.stat().st_mode == (tmp_path / "plain").stat().st_mode
