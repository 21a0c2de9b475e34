"""A checkpoint as one mapping: the values that safetensors reads, from whatever files, or a refusal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from wiseft_core.dtypes import TORCH_DTYPES
from wiseft_core.errors import BindingError, CheckpointError, InputChanged, Unsupported
from wiseft_core.store.checkpoint import open_checkpoint
from wiseft_core.store.header import build_header
from wiseft_core.types import TensorSpec

INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def items() -> dict[str, torch.Tensor]:
    """A tensor of every dtype of torch, an empty one and a scalar; bytes at random, NaN payloads and all."""
    generator = torch.Generator().manual_seed(0)

    def noise(dtype: torch.dtype) -> torch.Tensor:
        return torch.randint(0, 256, (3, 4 * dtype.itemsize), generator=generator, dtype=torch.uint8).view(dtype)

    found = {f"layers.{name}": noise(dtype) for name, dtype in TORCH_DTYPES.items() if name != "BOOL"}
    return {**found, "flags": torch.tensor([True, False]), "empty": torch.zeros(0, 5), "scalar": torch.tensor(2.5)}


def raw(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor."""
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def write_shards(folder, tensors):
    """Two shards and an index, as transformers lays them out."""
    names = sorted(tensors)
    parts = {FIRST: names[::2], SECOND: names[1::2]}
    for shard, inside in parts.items():
        save_file({name: tensors[name] for name in inside}, folder / shard, metadata={"format": "pt"})
    weight_map = {name: shard for shard, inside in parts.items() for name in inside}
    write_index(folder, weight_map, metadata={"total_size": 1})
    return weight_map


def write_index(folder, weight_map, **more):
    """An index with this weight_map."""
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map, **more}), encoding="utf-8")


@pytest.fixture(params=["single", "shards", "file", "snapshot"])
def place(request, tmp_path):
    """The same tensors as one file, as shards, as a file by itself, and as a snapshot of links in a cache."""
    tensors = items()
    (tmp_path / "config.json").write_text('{"model_type": "llama"}', encoding="ascii")
    if request.param == "shards":
        write_shards(tmp_path, tensors)
        return tmp_path, tensors
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    if request.param == "snapshot":
        snapshot = tmp_path / "models--a--b" / "snapshots" / "0123abc"
        snapshot.mkdir(parents=True)
        (tmp_path / "models--a--b" / "refs").mkdir()
        (tmp_path / "models--a--b" / "refs" / "main").write_text("0123abc", encoding="ascii")
        for name in ("model.safetensors", "config.json"):
            (snapshot / name).symlink_to(os.path.join("..", "..", "..", name))
        return tmp_path / "models--a--b", tensors
    return tmp_path / ("model.safetensors" if request.param == "file" else ""), tensors


def test_it_is_the_mapping_that_was_saved(place):
    """Names, specs, config, and every value bit for bit: mapped, sliced, and read in pieces."""
    path, tensors = place
    with open_checkpoint(path) as base:
        assert set(base) == set(base.specs) == set(tensors)
        assert len(base) == len(tensors)
        assert base.config == {"model_type": "llama"}
        assert base.metadata() == {"format": "pt"}
        for name, tensor in tensors.items():
            assert name in base
            assert base[name].dtype == tensor.dtype
            assert base[name].shape == tensor.shape
            assert raw(base[name]) == raw(base.get_tensor(name)) == raw(tensor)
            assert base[name].data_ptr() == base[name].data_ptr()
            pieces = base.specs[name].numel
            joined = b"".join(raw(base.read(name, at, min(at + 2, pieces))) for at in range(0, pieces, 2))
            assert joined == raw(tensor)
            assert base.read(name, 0, pieces).dtype == tensor.dtype
            assert base.file_of(name).header.specs[name] == base.specs[name]
        assert torch.equal(base.get_slice("layers.I64")[1:3], tensors["layers.I64"][1:3])
        base.check_unchanged()


def test_what_belongs_to_each_kind_of_place(tmp_path):
    """A folder has sidecars, a file by itself has none; only shards have an index."""
    write_shards(tmp_path, items())
    with open_checkpoint(tmp_path) as base:
        assert (base.folder, base.indexes) == (tmp_path, {INDEX: {"total_size": 1}})
        assert [file.name for file in base.files] == [FIRST, SECOND]
        assert base.config is None
        assert f"{len(items())} tensors, 2 files" in repr(base)
    with open_checkpoint(str(tmp_path / FIRST)) as base:
        assert (base.folder, base.indexes) == (None, {})
        assert set(base) == set(load_file(tmp_path / FIRST))


def test_the_order_is_that_on_disk(tmp_path):
    """By the name of the file, then by offset, whatever the order in the index."""
    weight_map = write_shards(tmp_path, {"b": torch.ones(1), "a": torch.ones(1, dtype=torch.int8), "c": torch.ones(1)})
    assert weight_map == {"a": FIRST, "c": FIRST, "b": SECOND}
    write_index(tmp_path, dict(reversed(weight_map.items())))
    with open_checkpoint(tmp_path) as base:
        assert list(base) == list(base.specs) == ["c", "a", "b"]


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        (lambda m: m.pop("a"), "expected  in the index"),
        (lambda m: m.update(ghost=FIRST), "ghost"),
        (lambda m: m.update(a=SECOND), f"in {SECOND}, says the index"),
        (lambda m: m.update(ghost="model-00003-of-00003.safetensors"), "missing shard"),
    ],
)
def test_an_index_that_disagrees_is_refused(tmp_path, change, fragment):
    """The headers are the truth: a tensor more, less, elsewhere, or in a shard that is not there."""
    tensors = {"a": torch.ones(2), "b": torch.ones(3), "c": torch.ones(1)}
    weight_map = write_shards(tmp_path, tensors)
    change(weight_map)
    write_index(tmp_path, weight_map)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path)
    assert fragment in str(caught.value)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    """Both files are named."""
    save_file({"a": torch.ones(2)}, tmp_path / FIRST)
    save_file({"a": torch.ones(2), "b": torch.ones(2)}, tmp_path / SECOND)
    write_index(tmp_path, {"a": FIRST, "b": SECOND})
    with pytest.raises(CheckpointError, match=f"in {FIRST} and in {SECOND}"):
        open_checkpoint(tmp_path)


def test_files_that_the_index_does_not_name_are_not_opened(tmp_path):
    """A damaged stray beside the shards is nobody's business."""
    write_shards(tmp_path, items())
    (tmp_path / "model-00003-of-00003.safetensors").write_bytes(b"not safetensors")
    open_checkpoint(tmp_path).close()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_fifo_is_refused_and_not_waited_for(tmp_path, name):
    """Weights and config alike."""
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(CheckpointError, match="regular file"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("text", ["[]", '{"a": 1, "a": 2}', '{"a": NaN}', ""])
def test_a_config_that_is_not_strict_json_is_refused(tmp_path, text):
    """The error names config.json."""
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(text, encoding="ascii")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        open_checkpoint(tmp_path)


def test_a_name_that_is_not_there(tmp_path):
    """The mapping says KeyError, `get` gives the default, and get_tensor names the nearest."""
    save_file({"model.layers.0.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as base:
        with pytest.raises(KeyError) as plain:
            base["model.layers.1.weight"]
        assert plain.type is KeyError
        assert base.get("nothing") is None
        assert "nothing" not in base
        with pytest.raises(BindingError, match=r"nearest names: model\.layers\.0\.weight"):
            base.get_tensor("model.layers.1.weight")


def test_dtypes_that_torch_does_not_know_can_be_listed_but_not_loaded(tmp_path):
    """F6 opens, and is refused by name where a value is asked for."""
    header = build_header({"six": TensorSpec("F6_E2M3", (4,)), "a": TensorSpec("F32", (1,))}, {})
    (tmp_path / "model.safetensors").write_bytes(header.raw + bytes(header.payload))
    with open_checkpoint(tmp_path) as base:
        assert base.specs["six"] == TensorSpec("F6_E2M3", (4,))
        assert base["a"].tolist() == [0.0]
        for use in (lambda: base["six"], lambda: base.read("six", 0, 4)):
            with pytest.raises(Unsupported, match="six"):
                use()


@pytest.mark.parametrize(("start", "stop"), [(-1, 1), (0, 13), (3, 2), (13, 13)])
def test_elements_outside_the_tensor_are_refused(tmp_path, start, stop):
    """A neighbour's values are never given out."""
    save_file({"a": torch.ones(3, 4), "b": torch.ones(9)}, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as base, pytest.raises(IndexError, match="'a'"):
        base.read("a", start, stop)


def test_half_a_byte_is_not_read(tmp_path):
    """F4 is read by pairs."""
    save_file(items(), tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as base, pytest.raises(IndexError, match="F4"):
        base.read("layers.F4", 1, 4)


@given(st.data())
def test_any_range_is_the_slice_of_the_flat_tensor(tmp_path_factory, data):
    """read(start, stop) is what NumPy gives for flat[start:stop], in memory of its own."""
    folder = tmp_path_factory.mktemp("range")
    values = torch.arange(60, dtype=torch.int16).reshape(3, 4, 5)
    save_file({"other": torch.ones(3), "a": values}, folder / "model.safetensors")
    start, stop = sorted(data.draw(st.tuples(st.integers(0, 60), st.integers(0, 60))))
    with open_checkpoint(folder) as base:
        piece = base.read("a", start, stop)
        assert piece.numpy().tolist() == list(range(start, stop))
        piece.zero_()
        assert base["a"].flatten().tolist() == list(range(60))


def test_maps_belong_to_the_file_that_was_opened(tmp_path):
    """A file renamed over the path changes nothing: header and values stay of one file. The change is reported."""
    save_file({"a": torch.tensor([1.0, 2.0])}, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as base:
        save_file({"z": torch.zeros(9), "a": torch.tensor([8.0, 9.0])}, tmp_path / "new")
        os.replace(tmp_path / "new", tmp_path / "model.safetensors")
        assert base["a"].tolist() == base.read("a", 0, 2).tolist() == [1.0, 2.0]


def test_a_write_is_reported(tmp_path):
    """check_unchanged covers every shard."""
    write_shards(tmp_path, items())
    with open_checkpoint(tmp_path) as base:
        os.utime(tmp_path / SECOND, ns=(1, 1))
        with pytest.raises(InputChanged, match=SECOND):
            base.check_unchanged()


def test_many_threads_share_one_map(tmp_path):
    """The first access from eight threads gives one memory."""
    save_file({"a": torch.arange(1000)}, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as base, ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda _: base["a"].data_ptr(), range(64)))) == 1


def test_tensors_outlive_the_checkpoint_that_gave_them(tmp_path):
    """After close nothing more is given out, and what was given stays."""
    save_file({"a": torch.arange(4)}, tmp_path / "model.safetensors")
    base = open_checkpoint(tmp_path)
    kept = base["a"]
    base.close()
    base.close()
    assert kept.tolist() == [0, 1, 2, 3]
    for use in (lambda: base["a"], lambda: base.read("a", 0, 1), base.check_unchanged):
        with pytest.raises(ValueError, match="closed file"):
            use()


def test_checkpoints_are_equal_when_they_are_one(tmp_path):
    """No comparison loads a model."""
    save_file({"a": torch.arange(4)}, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as one, open_checkpoint(tmp_path) as two:
        assert one == one
        assert one != two
        assert len({one, two}) == 2


def test_headers_need_no_torch(tmp_path):
    """Opening, specs, config and the index are had without importing torch; the first value imports it."""
    write_shards(tmp_path, items())
    code = (
        "import sys; from wiseft_core.store.checkpoint import open_checkpoint\n"
        f"base = open_checkpoint({str(tmp_path)!r}); base.metadata(), base.config, repr(base), base.check_unchanged()\n"
        "before = {'torch', 'numpy', 'safetensors'} & set(sys.modules); base['scalar']\n"
        "print(len(base.specs), sorted(before), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == (f"{len(items())} [] True\n", "")
