"""Layout of the output: the base's own files, a fresh split, and the index."""

from __future__ import annotations

import json

import pytest
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from hypothesis import given
from hypothesis import strategies as st

from wiseft_core.errors import ConfigError
from wiseft_core.store.header import Header, build_header, parse_header
from wiseft_core.store.shards import index_bytes, index_still_right, keep_shards, parse_size, split_shards
from wiseft_core.types import TensorSpec

BF16 = {name: TensorSpec("BF16", (4, 2)) for name in "abcdef"}


def odd_header(text: str) -> Header:
    """A header as another writer spells it: spaces, its own order, no padding to eight bytes."""
    body = text.encode()
    raw = len(body).to_bytes(8, "little") + body
    end = max(entry["data_offsets"][1] for name, entry in json.loads(text).items() if name != "__metadata__")
    return parse_header(raw, len(raw) + end, "odd")


B_THEN_A = odd_header(
    '{ "b": {"dtype":"F32", "shape":[2], "data_offsets":[0,8]},  "__metadata__": {"z":"1","format":"pt"},'
    ' "a": {"dtype":"BF16", "shape":[2], "data_offsets":[8,12]} }   '
)
C_ALONE = odd_header('{"c":{"dtype":"F16","shape":[1],"data_offsets":[0,2]},"__metadata__":{"format":"pt"}}')
EXISTING = [("one.safetensors", B_THEN_A), ("two.safetensors", C_ALONE)]
SPECS = {**B_THEN_A.specs, **C_ALONE.specs}


def test_kept_shards_have_the_raw_headers():
    """Where no spec changes, every header is the base's byte for byte, however it was spelled."""
    kept = keep_shards(EXISTING, dict(reversed(SPECS.items())), {})
    assert [(shard.name, shard.header.raw) for shard in kept] == [(name, header.raw) for name, header in EXISTING]
    assert index_still_right(EXISTING, kept)


def test_another_dtype_changes_that_header_alone():
    """A tensor with another dtype gives its file a new header, in the old order and with the old metadata."""
    kept = keep_shards(EXISTING, {**SPECS, "b": TensorSpec("BF16", (2,))}, {})
    table = json.loads(kept[0].header.raw[8:])
    assert table == {
        "__metadata__": {"z": "1", "format": "pt"},
        "b": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]},
        "a": {"dtype": "BF16", "shape": [2], "data_offsets": [4, 8]},
    }
    assert kept[1].header.raw == C_ALONE.raw
    assert not index_still_right(EXISTING, kept)


def test_a_new_tensor_joins_the_file_of_its_home():
    """A new tensor comes last in the file of its home, directly or through another new one; else in the last file."""
    head, scale, lost = TensorSpec("F32", (3,)), TensorSpec("F32", ()), TensorSpec("U8", (1,))
    home = {"head": "a", "head.scale": "head"}
    kept = keep_shards(EXISTING, {**SPECS, "head": head, "head.scale": scale, "lost": lost}, home)
    assert list(kept[0].header.specs) == ["b", "a", "head", "head.scale"]
    assert list(kept[1].header.specs) == ["c", "lost"]
    assert kept[0].header.metadata == {"z": "1", "format": "pt"}
    assert not index_still_right(EXISTING, kept)


@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=12), limit=st.integers(4, 120))
def test_a_fresh_split_is_hugging_faces_own(sizes, limit):
    """Names and contents of the files are what huggingface_hub's splitter gives for the same tensors and limit."""
    tensors = {f"t{at}": torch.zeros(size) for at, size in enumerate(sizes)}
    expected = split_torch_state_dict_into_shards(
        tensors, max_shard_size=limit, filename_pattern="model{suffix}.safetensors"
    )
    specs = {name: TensorSpec("F32", tuple(tensor.shape)) for name, tensor in tensors.items()}
    shards = split_shards(specs, max_shard_size=limit, metadata={"format": "pt"})
    assert {s.name: set(s.header.specs) for s in shards} == {
        file: set(names) for file, names in expected.filename_to_tensors.items()
    }
    assert all(shard.header.metadata == {"format": "pt"} for shard in shards)


def test_without_a_limit_there_is_one_file():
    """No limit, or one that is just met, gives one file under the stem; one byte less gives two."""
    assert [s.name for s in split_shards(BF16, max_shard_size=None, metadata={})] == ["model.safetensors"]
    assert [s.name for s in split_shards(BF16, max_shard_size=96, metadata={}, stem="x")] == ["x.safetensors"]
    names = [s.name for s in split_shards(BF16, max_shard_size=95, metadata={})]
    assert names == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert [s.name for s in split_shards({}, max_shard_size=5, metadata={})] == ["model.safetensors"]


def test_the_index_is_spelled_as_transformers_does(tmp_path):
    """For the same tensors and limit, the index equals byte for byte the one that `save_pretrained` writes."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, vocab_size=30,
        max_position_embeddings=8,
    )  # fmt: skip
    model = BertModel(config)
    model.save_pretrained(tmp_path, max_shard_size="1KB")
    specs = {name: TensorSpec("F32", tuple(tensor.shape)) for name, tensor in model.state_dict().items()}
    shards = split_shards(specs, max_shard_size=1000, metadata={"format": "pt"})
    written = index_bytes(shards, {"total_parameters": model.num_parameters(), "total_size": "stale"})
    assert written == (tmp_path / "model.safetensors.index.json").read_bytes()
    for shard in shards:
        assert (tmp_path / shard.name).read_bytes().startswith(shard.header.raw), shard.name


def test_the_index_names_are_ascii():
    """Any name can be in an index: what is not ASCII is escaped, and comes back as it was."""
    shards = split_shards({"gewicht.größe\n": TensorSpec("F32", (1,))}, max_shard_size=None, metadata={})
    data = index_bytes(shards, {})
    assert data.isascii() and data.endswith(b"}\n")
    assert json.loads(data) == {
        "metadata": {"total_size": 4},
        "weight_map": {"gewicht.größe\n": "model.safetensors"},
    }


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("5GB", 5_000_000_000), ("5 gb", 5_000_000_000), ("1.5KB", 1500), ("1KiB", 1024), ("512MiB", 536_870_912),
        ("2GiB", 2_147_483_648), ("3MB", 3_000_000), ("77", 77), ("8B", 8), ("0.1TiB", 109_951_162_777),
        (" 1KB ", 1000),
    ],
)  # fmt: skip
def test_sizes_are_read(text, size):
    """Decimal and binary units, in any case, with a fraction or a space."""
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "0", "0GB", "0.0001KB", "-1GB", "1e9", "5 G B", "5GX", "inf", "nan", "٥GB"])
def test_other_sizes_are_refused(text):
    """What is not a size of at least one byte is a ConfigError that quotes it and shows how to write one."""
    with pytest.raises(ConfigError) as caught:
        parse_size(text)
    assert repr(text) in caught.value.where and "5GB" in caught.value.hint


def test_a_split_file_is_canonical():
    """Each fresh header is the canonical one, so its bytes do not depend on the order inside the file."""
    specs = {"z": TensorSpec("F16", (1,)), "a": TensorSpec("F32", (1,))}
    (shard,) = split_shards(specs, max_shard_size=None, metadata={})
    assert shard.header.raw == build_header(dict(reversed(specs.items())), {}).raw
    assert list(shard.header.specs) == ["a", "z"]
