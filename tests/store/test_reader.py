"""One file, opened once: what is read is what safetensors reads, and a file that moves is noticed."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
import torch
from safetensors.torch import save, save_file

from wiseft_core.errors import CheckpointError, InputChanged
from wiseft_core.store.files import Files
from wiseft_core.store.reader import TensorFile
from wiseft_core.types import TensorSpec


@pytest.fixture
def tensors():
    """A wide tensor, an empty one and a scalar."""
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(64, 33, generator=generator).to(torch.bfloat16)
    return {"wide": wide, "empty": torch.zeros(0, 3), "scalar": torch.tensor(7)}


@pytest.fixture
def path(tmp_path, tensors):
    """The file that safetensors writes for them."""
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path / "model.safetensors"


def payload_of(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor, by NumPy."""
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def test_every_range_is_read_as_it_is_stored(path, tensors):
    """Whole tensors, pieces of them, and nothing at all, at the offsets that the file has."""
    with TensorFile.open(path) as file:
        stored = path.read_bytes()
        assert file.name == "model.safetensors"
        assert file.spec("wide") == TensorSpec("BF16", (64, 33))
        assert file.header.size == len(stored)
        for name, tensor in tensors.items():
            expected = payload_of(tensor)
            at = file.offset_of(name)
            assert stored[at : at + len(expected)] == expected
            for start, stop in {(0, len(expected)), (1, 7), (len(expected), len(expected))}:
                if stop <= len(expected):
                    buffer = bytearray(stop - start)
                    file.read_into(memoryview(buffer), name, start)
                    assert buffer == expected[start:stop]


@pytest.mark.parametrize(("start", "length"), [(-1, 4), (0, 9), (8, 1), (9, 0)])
def test_a_range_outside_the_tensor_is_refused(path, start, length):
    """A neighbour's bytes are never given out."""
    with TensorFile.open(path) as file, pytest.raises(IndexError, match="scalar"):
        file.read_into(memoryview(bytearray(length)), "scalar", start)


def test_many_threads_read_at_once(path, tensors):
    """Readers share no position."""
    expected = payload_of(tensors["wide"])

    def piece(start: int) -> bool:
        buffer = bytearray(66)
        file.read_into(memoryview(buffer), "wide", start)
        return bytes(buffer) == expected[start : start + 66]

    with TensorFile.open(path) as file, ThreadPoolExecutor(4) as pool:
        assert all(pool.map(piece, [row * 66 for row in range(64)] * 5))


def test_an_unchanged_file_passes(path):
    """Reading is no change."""
    with TensorFile.open(path) as file:
        file.read_into(memoryview(bytearray(8)), "scalar", 0)
        file.check_unchanged()


@pytest.mark.parametrize("act", ["overwrite", "truncate", "append"])
def test_a_change_is_noticed(path, act):
    """Whatever somebody does to the file, check_unchanged says so, with exit code 6."""
    with TensorFile.open(path) as file:
        with path.open("r+b") as other:
            other.seek(0, os.SEEK_END)
            end = other.tell()
            if act == "overwrite":
                other.seek(end - 1)
                other.write(b"\x01")
            elif act == "truncate":
                other.truncate(end - 1)
            else:
                other.write(b"\x01")
        os.utime(path, ns=(1, 1))
        with pytest.raises(InputChanged) as caught:
            file.check_unchanged()
        assert "do not write to inputs" in caught.value.hint
        assert str(path) in caught.value.where
        assert pickle.loads(pickle.dumps(caught.value)).exit_code == 6


@pytest.mark.parametrize("written", [False, True])
def test_a_replaced_file_is_the_one_that_was_opened(path, written):
    """A rename onto the path leaves the open file as it was; a write to it before that is noticed still."""
    with TensorFile.open(path) as file:
        time.sleep(0.05)  # the grain of ctime, which is all that moves
        if written:
            path.write_bytes(path.read_bytes())
        (path.parent / "new").write_bytes(b"another")
        os.replace(path.parent / "new", path)
        with pytest.raises(InputChanged) if written else nullcontext():
            file.check_unchanged()


def test_a_file_cut_after_opening_is_an_error_not_a_signal(path):
    """What would kill a process that maps the file is a CheckpointError here."""
    with TensorFile.open(path) as file:
        os.truncate(path, file.offset_of("wide") + 10)
        with pytest.raises(CheckpointError, match="the file ends after 10"):
            file.read_into(memoryview(bytearray(100)), "wide", 0)


@pytest.mark.parametrize("keep", [0, 3, 8, 40, -1])
def test_a_truncated_file_is_not_opened(path, keep):
    """Cut in the length, in the header or in the payload."""
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="truncated"):
        TensorFile.open(path)


def test_a_header_over_the_limit_is_not_read(path):
    """The limit is checked before the header is allocated, and can be set."""
    with pytest.raises(CheckpointError, match="2 to 64 bytes"):
        TensorFile.open(path, limit=64)


def test_a_fifo_or_a_folder_is_refused_and_not_waited_for(tmp_path):
    """Opening returns at once with an error."""
    os.mkfifo(tmp_path / "model.safetensors")
    for path in (tmp_path / "model.safetensors", tmp_path, tmp_path / "none"):
        with pytest.raises(CheckpointError):
            TensorFile.open(path)


def test_links_are_followed(path, tmp_path):
    """A link as in a cache's snapshot is read, and keeps its own name."""
    link = tmp_path / "link.safetensors"
    link.symlink_to(path)
    with TensorFile.open(link) as file:
        assert (file.name, len(file.header.specs)) == ("link.safetensors", 3)


class Counted(Files):
    """Files that remember which descriptors are open."""

    def __init__(self) -> None:
        self.opened = 0
        self.closed = 0

    def open_read(self, path):
        self.opened += 1
        return super().open_read(path)

    def close(self, descriptor):
        self.closed += 1
        super().close(descriptor)


def test_a_file_is_opened_once_and_always_closed(path):
    """One descriptor per file, given back by close, by a refusal, and by the garbage collector."""
    files = Counted()
    with TensorFile.open(path, files) as file:
        file.read_into(memoryview(bytearray(8)), "scalar", 0)
    file.close()
    assert (files.opened, files.closed) == (1, 1)
    TensorFile.open(path, files)
    assert (files.opened, files.closed) == (2, 2)
    path.write_bytes(b"not safetensors at all")
    with pytest.raises(CheckpointError):
        TensorFile.open(path, files)
    assert (files.opened, files.closed) == (3, 3)


def test_a_closed_file_is_not_read(path):
    """The number of a closed descriptor may belong to another file by now."""
    file = TensorFile.open(path)
    file.close()
    for use in (file.check_unchanged, lambda: file.read_into(memoryview(bytearray(1)), "scalar", 0)):
        with pytest.raises(ValueError, match="closed file"):
            use()


def test_reading_needs_no_torch(path, tmp_path):
    """Headers and payload are read in a process that never imports torch or NumPy."""
    code = (
        "import sys; from pathlib import Path; from wiseft_core.store.reader import TensorFile\n"
        f"file = TensorFile.open(Path({str(path)!r})); buffer = bytearray(8)\n"
        "file.read_into(memoryview(buffer), 'scalar', 0)\n"
        "print(int.from_bytes(buffer, 'little'), sorted({'torch', 'numpy', 'safetensors'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("7 []\n", "")


def test_the_file_without_tensors(tmp_path):
    """An empty mapping is a file too."""
    (tmp_path / "model.safetensors").write_bytes(save({}))
    with TensorFile.open(tmp_path / "model.safetensors") as file:
        assert dict(file.header.specs) == {}
        assert "0 tensors" in repr(file)
