"""The writer: bytes equal to the library's, header last, nothing forgotten."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import safetensors
import torch
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from wiseft_core.errors import CheckpointError, Fault
from wiseft_core.store.files import FILES, Files
from wiseft_core.store.reader import TensorFile
from wiseft_core.store.shards import split_shards
from wiseft_core.store.writer import FLOW, ShardWriter, copy_file, digest_file, write_file
from wiseft_core.types import TensorSpec

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip
SPECS = {"w": TensorSpec("F32", (3, 4)), "b": TensorSpec("BF16", (5,)), "none": TensorSpec("F32", (0, 7))}


def header_of(specs, metadata=None):
    (shard,) = split_shards(specs, max_shard_size=None, metadata=metadata or {})
    return shard.header


@given(
    table=st.dictionaries(
        st.text(st.characters(codec="utf-8"), max_size=5).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 4), max_size=3)),
        max_size=6,
    ),
    seed=st.integers(0, 99),
    metadata=st.sampled_from([{}, {"format": "pt"}]),
)
def test_a_file_has_the_bytes_that_safetensors_writes(tmp_path_factory, table, seed, metadata):
    """For any names, dtypes, shapes and payloads, a single file is the one of `safetensors.torch.save_file`."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (dtype, shape) in table.items():
        kind = DTYPES[dtype]
        count = torch.Size(shape).numel() * kind.itemsize
        draw = torch.randint(0, 2 if dtype == "BOOL" else 256, (count,), generator=generator, dtype=torch.uint8)
        tensors[name] = draw.view(kind).reshape(shape)
    folder = tmp_path_factory.mktemp("bytes")
    save_file(tensors, folder / "theirs", metadata or None)
    specs = {name: TensorSpec(dtype, tuple(shape)) for name, (dtype, shape) in table.items()}
    writer = ShardWriter(folder / "ours", header_of(specs, metadata), FILES)
    for name, tensor in tensors.items():
        writer.write(name, 0, bytes(tensor.reshape(-1).view(torch.uint8).tolist()))
    digest = writer.finish(sync=False)
    assert (folder / "ours").read_bytes() == (folder / "theirs").read_bytes()
    assert digest == blake3((folder / "theirs").read_bytes()).hexdigest()


def test_the_header_comes_last(tmp_path):
    """Until `finish` the file has its full size and starts with eight zero bytes, which the library refuses."""
    header, path = header_of(SPECS), tmp_path / "x.safetensors"
    writer = ShardWriter(path, header, FILES)
    writer.write("w", 0, b"\xff" * 48)
    writer.write("b", 0, b"\xff" * 10)
    before = path.read_bytes()
    assert len(before) == header.size and before[: header.start] == bytes(header.start)
    with pytest.raises(safetensors.SafetensorError):
        safetensors.deserialize(before)
    writer.finish(sync=False)
    assert {name for name, _ in safetensors.deserialize(path.read_bytes())} == set(SPECS)


def test_parts_from_many_threads_and_another_file(tmp_path):
    """Ranges written and copied by several threads in any order make the one file."""
    payload = os.urandom(100_000)
    (tmp_path / "source").write_bytes(b"skip" + payload)
    header = header_of({"copied": TensorSpec("U8", (100_000,)), "written": TensorSpec("U8", (100_000,))})
    writer = ShardWriter(tmp_path / "x", header, FILES)
    source = FILES.open_read(tmp_path / "source")
    starts = range(0, 100_000, 10_000)
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(writer.write, "written", at, memoryview(payload)[at : at + 10_000]) for at in starts]
        jobs += [pool.submit(writer.copy, "copied", source, 4 + at, 10_000, start=at) for at in starts]
        for job in jobs:
            job.result()
    writer.finish(sync=True)
    FILES.close(source)
    assert (tmp_path / "x").read_bytes() == header.raw + payload + payload


def test_a_gap_is_never_finished(tmp_path):
    """A byte that was not written stops `finish`, which names the tensor, and the file stays without a header."""
    writer = ShardWriter(tmp_path / "x", header_of(SPECS), FILES)
    writer.write("w", 0, bytes(47))
    writer.write("b", 0, bytes(10))
    with pytest.raises(RuntimeError, match="'w': 1"):
        writer.finish(sync=False)
    writer.abort()
    writer.abort()
    assert (tmp_path / "x").read_bytes()[:8] == bytes(8)
    with pytest.raises(RuntimeError, match="closed"):
        writer.write("w", 47, b"x")


@pytest.mark.parametrize(("start", "count"), [(-1, 1), (0, 49), (48, 1)])
def test_no_byte_lands_outside_its_tensor(tmp_path, start, count):
    """A range that its tensor does not have is refused before anything is written."""
    writer = ShardWriter(tmp_path / "x", header_of(SPECS), FILES)
    with pytest.raises(IndexError):
        writer.write("w", start, bytes(count))
    with pytest.raises(IndexError):
        writer.copy("w", 0, 0, count, start=start)
    writer.abort()


def test_what_is_there_is_never_overwritten(tmp_path):
    """A file, or a link that somebody placed, is not written through: creation is exclusive."""
    (tmp_path / "victim").write_bytes(b"precious")
    (tmp_path / "link").symlink_to(tmp_path / "victim")
    for name in ("victim", "link"):
        with pytest.raises(Fault):
            ShardWriter(tmp_path / name, header_of(SPECS), FILES)
        with pytest.raises(Fault):
            write_file(tmp_path / name, b"new", FILES, sync=False)
    assert (tmp_path / "victim").read_bytes() == b"precious"


def test_descriptors_are_given_back(tmp_path):
    """After success, failure and giving up, every descriptor that was opened has been closed."""

    class Balance(Files):
        open_now = 0

        def open_write(self, path):
            self.open_now += 1
            return super().open_write(path)

        def create(self, path):
            self.open_now += 1
            return super().create(path)

        def close(self, descriptor):
            self.open_now -= 1
            super().close(descriptor)

        def allocate(self, descriptor, size, path):
            if path.name == "full":
                raise Fault("full")

    files = Balance()
    with pytest.raises(Fault):
        ShardWriter(tmp_path / "full", header_of(SPECS), files)
    ShardWriter(tmp_path / "given up", header_of(SPECS), files).abort()
    ShardWriter(tmp_path / "empty", header_of({}), files).finish(sync=False)
    write_file(tmp_path / "small", b"1", files, sync=False)
    with pytest.raises(CheckpointError), (tmp_path / "small").open("rb") as source:
        copy_file(source.fileno(), 2, tmp_path / "copy", files, sync=False)
    assert files.open_now == 0


def test_a_file_that_is_written_again(tmp_path):
    """Named tensors get other bytes, wholly and once; the rest stays, and cannot be written. A pause is no end."""
    path, header = tmp_path / "x", header_of(SPECS)
    writer = ShardWriter(path, header, FILES)
    writer.write("w", 0, b"w" * 48)
    writer.write("b", 0, b"b" * 10)
    writer.pause()
    assert path.read_bytes() == header.raw + b"w" * 48 + b"b" * 10
    with pytest.raises(RuntimeError, match="closed"):
        writer.write("w", 0, b"x")
    again = ShardWriter.again(path, header, FILES, {"b"})
    again.write("b", 0, b"c" * 9)
    with pytest.raises(RuntimeError, match="'b': 1"):
        again.pause()
    again.write("b", 9, b"c")
    digest = again.finish(sync=True)
    assert path.read_bytes() == header.raw + b"w" * 48 + b"c" * 10
    assert digest == blake3(path.read_bytes()).hexdigest()
    other = ShardWriter.again(path, header, FILES, {"b"})
    other.write("b", 0, b"d" * 10)
    other.write("w", 0, b"d")
    with pytest.raises(RuntimeError, match="'w': -1"):
        other.finish(sync=False)
    other.abort()


@pytest.mark.parametrize("can", [True, False])
def test_a_clone_is_whole_where_the_file_system_can(tmp_path, can):
    """No space is reserved and no payload wanted then; otherwise it is a writer like any other."""
    calls = []

    class Cloning(Files):
        def clone(self, source, target, path):
            calls.append("clone")
            if can:
                os.pwrite(target, os.pread(source, 1000, 0), 0)
            return can

        def allocate(self, descriptor, size, path):
            calls.append("allocate")
            super().allocate(descriptor, size, path)

    first = ShardWriter(tmp_path / "x", header_of(SPECS), FILES)
    first.write("w", 0, b"w" * 48)
    first.write("b", 0, b"b" * 10)
    digest = first.finish(sync=False)
    with TensorFile.open(tmp_path / "x") as same:
        writer = ShardWriter(tmp_path / "y", same.header, Cloning(), same)
    assert writer.is_whole == can and calls == (["clone"] if can else ["clone", "allocate"])
    if not can:
        writer.write("w", 0, b"w" * 48)
        writer.write("b", 0, b"b" * 10)
    assert writer.finish(sync=False) == digest
    assert (tmp_path / "y").read_bytes() == (tmp_path / "x").read_bytes()


@pytest.mark.parametrize("size", [0, 1, (4 << 20) - 1, 4 << 20, (4 << 20) + 1])
def test_digests_are_blake3_of_the_content(tmp_path, size):
    """Whatever the size against the piece that is read at once, the digest is the one of the whole content."""
    data = os.urandom(size)
    assert write_file(tmp_path / "x", data, FILES, sync=False) == blake3(data).hexdigest()
    descriptor = FILES.open_read(tmp_path / "x")
    assert digest_file(descriptor, size, FILES) == blake3(data).hexdigest()
    assert copy_file(descriptor, size, tmp_path / "y", FILES, sync=True) == blake3(data).hexdigest()
    FILES.close(descriptor)
    assert (tmp_path / "y").read_bytes() == data


@pytest.mark.parametrize("synced", [True, False])
def test_the_disk_begins_before_the_end(tmp_path, synced):
    """Of a file that will be synced, all but the last few megabytes are handed to the disk as they come, each once."""
    told = []

    class Told(Files):
        def begin_sync(self, descriptor, start, count):
            told.append((start, start + count))
            super().begin_sync(descriptor, start, count)

    piece = bytes(range(256)) * 4096
    header = header_of({"w": TensorSpec("U8", (len(piece) * 20,))})
    writer = ShardWriter(tmp_path / "a", header, Told(), synced=synced)
    for number in range(20):
        writer.write("w", number * len(piece), piece)
    digest = writer.finish(synced)

    assert digest == blake3((tmp_path / "a").read_bytes()).hexdigest()
    assert (len(told) > 0) == synced
    if synced:
        assert [stop for _, stop in told[:-1]] == [start for start, _ in told[1:]]
        assert told[0][0] == header.start and header.size - told[-1][1] < FLOW
