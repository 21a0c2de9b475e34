"""Names on the hub: an existing path wins, then the local cache by its layout, then a download that may be refused."""

from __future__ import annotations

import sys
from fnmatch import fnmatchcase
from pathlib import Path
from types import ModuleType

import pytest
import torch
from components import FIRST, cache_snapshot, components, read_pipeline, write_pipeline
from folders import low_rank, same_bits, tree, weights, write_adapter, write_base
from safetensors.torch import save_file

from wiseft_core import interpolate, open_adapter, open_checkpoint, plan, save_checkpoint, verify
from wiseft_core.errors import CheckpointError, Unsupported
from wiseft_core.store.hub import FETCHED, cache_folder, parse_name
from wiseft_core.store.sidecars import TOKENIZER

MAIN, OLD = "a" * 40, "b" * 40
MODULE = "model.layers.0.q_proj"
SPLIT = [["model.embed_tokens.weight"], [name for name in weights() if name != "model.embed_tokens.weight"]]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, in an environment and a working folder of its own, offline."""
    for name in ("HF_HOME", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "cache"


def scene(tmp_path: Path) -> tuple[Path, Path]:
    """A sharded base and an adapter, as plain folders."""
    base = write_base(tmp_path / "plain", weights(), SPLIT)
    return base, write_adapter(tmp_path / "lora", low_rank(weights(), [MODULE]))


class Hub(ModuleType):
    """A huggingface_hub that has one function, which copies a folder into the cache or fails."""

    def __init__(self, act) -> None:
        super().__init__("huggingface_hub")
        self.calls: list[tuple[str, dict[str, object]]] = []
        self.act = act

    def snapshot_download(self, name: str, **options: object) -> str:
        self.calls.append((name, options))
        return str(self.act(name))


@pytest.fixture
def online(cache, monkeypatch):
    """Puts a fake huggingface_hub into place that does what it is told."""

    def install(act) -> Hub:
        monkeypatch.delenv("HF_HUB_OFFLINE")
        hub = Hub(act)
        monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
        return hub

    return install


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/model", ("org/model", "main")),
        ("Org-1/My.Model_2@v1.0", ("Org-1/My.Model_2", "v1.0")),
        ("org/model@refs/pr/3", ("org/model", "refs/pr/3")),
        (f"org/model@{OLD}", ("org/model", OLD)),
        ("model", None),
        ("org/model/", None),
        ("./org/model", None),
        ("/org/model", None),
        ("~/model", None),
        ("org/sub/model", None),
        ("org/model@", None),
        ("org/model@../../x", None),
        ("org/model@a//b", None),
        ("org/model@a/", None),
        ("../model", None),
        ("org/..", None),
        ("org--x/model", None),
        ("org/model\n", None),
        ("org/mödel", None),
        ("folder/model.safetensors", None),
        ("folder/pytorch_model.bin", None),
        ("folder/model.safetensors.index.json", None),
    ],
)
def test_what_is_a_name(text, expected):
    """An organisation and a model, with a revision perhaps; everything else can only be a path."""
    assert parse_name(text) == expected


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"HF_HUB_CACHE": "/a", "HF_HOME": "/b"}, "/a"),
        ({"HUGGINGFACE_HUB_CACHE": "/c", "HF_HOME": "/b"}, "/c"),
        ({"HF_HOME": "/b", "XDG_CACHE_HOME": "/d"}, "/b/hub"),
        ({"XDG_CACHE_HOME": "/d"}, "/d/huggingface/hub"),
        ({}, "/home/me/.cache/huggingface/hub"),
        ({"HF_HOME": "~/x"}, "/home/me/x/hub"),
        ({"HF_HUB_CACHE": "$HOME/y"}, "/home/me/y"),
    ],
)
def test_where_the_cache_is(cache, monkeypatch, variables, expected):
    """As huggingface_hub reads its environment."""
    monkeypatch.delenv("HF_HUB_CACHE")
    for name, value in ({"HOME": "/home/me"} | variables).items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(expected)


def test_names_are_taken_wherever_a_path_is(cache, tmp_path):
    """Base and adapter by name give the very bytes that the folders give; the output says nothing of the cache."""
    base, adapter = scene(tmp_path)
    cache_snapshot(cache, "org/base", base)
    cache_snapshot(cache, "me/lora", adapter)
    save_checkpoint(interpolate(base, adapter, 0.5), tmp_path / "one")
    save_checkpoint(interpolate("org/base", "me/lora@main", 0.5), tmp_path / "two")
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert verify(tmp_path / "two", base="org/base", adapter="me/lora").ok
    assert plan("org/base", "me/lora").bindings.keys() == {f"{MODULE}.weight"}
    assert open_adapter("me/lora").config is not None
    assert same_bits(interpolate("org/base", "org/base", 1)["lm_head.weight"], weights()["lm_head.weight"])


def test_a_revision_is_a_branch_a_tag_or_a_commit(cache, tmp_path):
    """Each by its reference; a commit by its snapshot, with no reference at all."""
    for seed, (commit, revision) in enumerate([(MAIN, "main"), (OLD, "v1"), ("c" * 40, "refs/pr/2"), ("d" * 40, None)]):
        cache_snapshot(cache, "org/base", write_base(tmp_path / f"{seed}", weights(seed)), commit, revision)
    for seed, name in enumerate(["org/base", "org/base@v1", "org/base@refs/pr/2", f"org/base@{'d' * 40}"]):
        assert same_bits(open_checkpoint(name)["lm_head.weight"], weights(seed)["lm_head.weight"])
    with pytest.raises(CheckpointError, match="v2"):
        open_checkpoint("org/base@v2")


def test_a_path_that_exists_wins(cache, tmp_path):
    """A folder of that name in the working folder is the base, whatever the cache holds; a broken link is no name."""
    cache_snapshot(cache, "org/base", write_base(tmp_path / "cached", weights(1)))
    (tmp_path / "work" / "org").mkdir()
    (tmp_path / "work" / "org" / "base").symlink_to(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="no such file or folder"):
        open_checkpoint("org/base")
    (tmp_path / "work" / "org" / "base").unlink()
    write_base(tmp_path / "work" / "org" / "base", weights(0))
    assert same_bits(open_checkpoint("org/base")["lm_head.weight"], weights(0)["lm_head.weight"])


def test_a_pipeline_by_name(cache, tmp_path):
    """All components, or one of them, or a snapshot that lacks a shard of one."""
    base = write_pipeline(tmp_path / "sd")
    snapshot = cache_snapshot(cache, "org/sd", base)
    assert set(open_checkpoint("org/sd")) == set(read_pipeline(base))
    assert set(open_checkpoint("org/sd", component="vae")) == set(components()["vae"])
    (snapshot / "unet" / FIRST).unlink()
    with pytest.raises(CheckpointError, match="incomplete") as caught:
        open_checkpoint("org/sd")
    assert f"unet/{FIRST}" in caught.value.got


def test_what_is_not_there_is_refused_and_says_where_it_was_looked_for(cache, monkeypatch):
    """Offline, and without the extra: what to do is in the hint, and nothing is imported or fetched."""
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match="not here") as caught:
        open_checkpoint("org/model@v1")
    assert str(cache / "models--org--model") in caught.value.got
    assert "HF_HUB_OFFLINE" in caught.value.hint and "hf download org/model --revision v1" in caught.value.hint
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with pytest.raises(CheckpointError) as caught:
        open_adapter("org/model")
    assert "wiseft_core[hub]" in caught.value.hint and caught.value.exit_code == 3


@pytest.mark.parametrize("value", ["1", "ON", "yes", "True"])
@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_means_that_nothing_is_asked(online, monkeypatch, variable, value):
    """In every spelling that huggingface_hub takes."""
    hub = online(lambda name: pytest.fail("asked"))
    monkeypatch.setenv(variable, value)
    with pytest.raises(CheckpointError, match="not here"):
        open_checkpoint("org/model")
    assert hub.calls == []


@pytest.mark.parametrize("spoil", ["shard", "blob", "weights"])
def test_an_incomplete_snapshot_is_never_half_read(cache, online, tmp_path, spoil):
    """A shard that its index names, a link to nothing, no weights at all: refused offline, completed online."""
    base, _ = scene(tmp_path)
    snapshot = cache_snapshot(cache, "org/base", base)
    shard = snapshot / "model-00002-of-00002.safetensors"
    if spoil == "blob":
        shard.resolve().unlink()
    elif spoil == "shard":
        shard.unlink()
    else:
        for file in snapshot.glob("model*"):
            file.unlink()
    with pytest.raises(CheckpointError, match="incomplete") as caught:
        open_checkpoint("org/base")
    assert ("a .safetensors file" if spoil == "weights" else shard.name) in caught.value.got
    assert "hf download org/base" in caught.value.hint

    whole = cache_snapshot(cache.parent / "other", "org/base", base)
    hub = online(lambda name: whole)
    assert set(open_checkpoint("org/base")) == set(weights())
    assert len(hub.calls) == 1
    hub.act = lambda name: snapshot  # what huggingface_hub gives where it cannot reach the hub
    with pytest.raises(CheckpointError, match="incomplete"):
        open_checkpoint("org/base")


def test_what_is_downloaded(cache, online, tmp_path):
    """One call for the name, its revision and weights, configs and tokenizers alone, into the same cache; then none."""
    base, _ = scene(tmp_path)
    hub = online(lambda name: cache_snapshot(cache, name, base, OLD, "v1"))
    for _ in range(2):
        assert set(open_checkpoint("org/base@v1")) == set(weights())
    ((name, options),) = hub.calls
    assert (name, options["revision"], Path(options["cache_dir"])) == ("org/base", "v1", cache)
    assert options["allow_patterns"] == list(FETCHED)
    wanted = [*TOKENIZER, "config.json", "model-00001-of-00002.safetensors", "unet/config.json", "tokenizer/merges.txt"]
    assert [name for name in wanted if not any(fnmatchcase(name, pattern) for pattern in FETCHED)] == []
    unwanted = ["pytorch_model.bin", "modeling_x.py", "model.onnx", "x.gguf", "flax_model.msgpack", "image.png"]
    assert [name for name in unwanted if any(fnmatchcase(name, pattern) for pattern in FETCHED)] == []


def test_a_download_that_fails_is_our_error(cache, online):
    """No network, no such repository, no permission: the words of huggingface_hub, in one line, as a refusal."""

    def fail(name):
        raise RuntimeError("404 Client Error.\n\nRepository Not Found")

    online(fail)
    with pytest.raises(CheckpointError, match="not here") as caught:
        open_checkpoint("org/model")
    assert "RuntimeError: 404 Client Error. Repository Not Found" in caught.value.got
    assert "hf auth login" in caught.value.hint


def test_a_hostile_cache(cache, tmp_path):
    """A reference that names no snapshot, an index that names a file elsewhere: refused; a pickle: unsupported."""
    base, _ = scene(tmp_path)
    snapshot = cache_snapshot(cache, "org/base", base)
    reference = cache / "models--org--base" / "refs" / "main"
    for text in ("../..", "/etc", "", "a/b", "\0"):
        reference.write_text(text)
        with pytest.raises(CheckpointError, match="main"):
            open_checkpoint("org/base")
    reference.write_text(MAIN)
    index = snapshot / "model.safetensors.index.json"
    index.unlink()
    index.write_text('{"weight_map": {"w": "../x.safetensors"}}')
    with pytest.raises(CheckpointError, match="bare name"):
        open_checkpoint("org/base")
    (tmp_path / "pickle").mkdir()
    (tmp_path / "pickle" / "pytorch_model.bin").write_bytes(b"\x80")
    cache_snapshot(cache, "org/pickle", tmp_path / "pickle")
    with pytest.raises(Unsupported, match="pickles can run code"):
        open_checkpoint("org/pickle")


def test_only_a_name_is_looked_up(online, tmp_path):
    """A path that is not there, absolute or to a file, asks nobody."""
    hub = online(lambda name: pytest.fail("asked"))
    save_file({"w": torch.ones(1)}, tmp_path / "x.safetensors")
    for path in (tmp_path / "org" / "model", "missing", "org/model.safetensors", "./org/model", "a/b/c"):
        with pytest.raises(CheckpointError, match="nothing is downloaded"):
            open_checkpoint(path)
    assert hub.calls == []
