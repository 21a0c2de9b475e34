"""What is copied shares extents where the file system can, whole blocks of it: the same bytes, the same digest."""

from __future__ import annotations

import os
import subprocess

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from wiseft_core.errors import CheckpointError, Fault
from wiseft_core.store.checker import ShardChecker
from wiseft_core.store.files import BLOCK, FILES, SHARED, Files
from wiseft_core.store.shards import split_shards
from wiseft_core.store.writer import ShardWriter
from wiseft_core.types import TensorSpec


class Sharing(Files):
    """A file system that can share whole blocks, and refuses anything else as the real ones do."""

    def __init__(self, *, can: bool = True) -> None:
        self.can, self.shared, self.written = can, list[tuple[int, int]](), 0

    def clone(self, source, target, path, start=0, offset=0, count=0):
        assert count and not (start % BLOCK or offset % BLOCK or count % BLOCK)
        if self.can:
            self.shared.append((offset, offset + count))
            os.pwrite(target, os.pread(source, count, start), offset)
        return self.can

    def write_at(self, descriptor, buffer, offset, path):
        self.written += memoryview(buffer).nbytes
        super().write_at(descriptor, buffer, offset, path)


def header_of(nbytes):
    """The header of a file with one tensor of so many bytes between two small ones."""
    specs = {"a": TensorSpec("U8", (8,)), "b": TensorSpec("U8", (nbytes,)), "c": TensorSpec("U8", (8,))}
    (shard,) = split_shards(specs, max_shard_size=None, metadata={})
    return shard.header


def copied(folder, payload, offset, files, start=0):
    """A file whose large tensor comes from byte `offset` of another, but for `start` bytes: its header and digest."""
    header = header_of(len(payload))
    (folder / "source").write_bytes(bytes(offset) + payload)
    source = FILES.open_read(folder / "source")
    writer = ShardWriter(folder / "target", header, files)
    try:
        writer.write("a", 0, b"a" * 8)
        writer.write("b", 0, payload[:start])
        writer.copy("b", source, offset + start, len(payload) - start, start=start)
        writer.write("c", 0, b"c" * 8)
        return header, writer.finish(sync=True)
    finally:
        writer.abort()
        FILES.close(source)


def check(folder, header, payload, digest):
    """The file has the bytes and the digest that it must have, whoever put them there."""
    whole = header.raw + b"a" * 8 + payload + b"c" * 8
    assert (folder / "target").read_bytes() == whole
    assert digest == blake3(whole).hexdigest()


def place(header):
    """Where the large tensor lies in the file."""
    return header.start + header.offsets["b"]


@given(
    nbytes=st.sampled_from([SHARED, SHARED + BLOCK, SHARED + 2 * BLOCK, 3 * SHARED]),
    more=st.integers(0, BLOCK - 1),
    start=st.integers(0, 2 * BLOCK),
    aside=st.sampled_from([0, 0, 0, BLOCK, 1, 8, 4096]),
    can=st.booleans(),
)
def test_the_blocks_that_are_whole_in_both_are_shared(tmp_path_factory, nbytes, more, start, aside, can):
    """All whole blocks, and only where both files have them alike, and a megabyte of them; the rest is written."""
    folder, payload = tmp_path_factory.mktemp("shared"), os.urandom(nbytes + more)
    lies, files = place(header_of(len(payload))), Sharing(can=can)
    header, digest = copied(folder, payload, lies + aside, files, start)
    check(folder, header, payload, digest)
    low, high = -(-(lies + start) // BLOCK) * BLOCK, (lies + len(payload)) // BLOCK * BLOCK
    wanted = [(low, high)] if can and aside % BLOCK == 0 and high - low >= SHARED else []
    assert files.shared == wanted
    assert files.written == header.size - sum(high - low for low, high in wanted)


@given(start=st.integers(0, 2 * BLOCK), count=st.integers(0, 2 * SHARED), more=st.sampled_from([0, BLOCK, 1]))
def test_a_copy_without_a_digest_shares_the_same(tmp_path_factory, start, count, more):
    """As other processes copy: what is shared is not written, and the ends before and behind it are."""
    folder, files = tmp_path_factory.mktemp("copied"), Sharing()
    content = os.urandom(start + more + count)
    (folder / "source").write_bytes(content)
    source, target = FILES.open_read(folder / "source"), FILES.create(folder / "target")
    try:
        files.copy_range(source, start + more, target, start, count, folder / "target")
    finally:
        FILES.close(source)
        FILES.close(target)
    assert (folder / "target").read_bytes() == (bytes(start) + content[start + more :] if count else b"")
    low, high = -(-start // BLOCK) * BLOCK, (start + count) // BLOCK * BLOCK
    assert files.shared == ([(low, high)] if more % BLOCK == 0 and high - low >= SHARED else [])


def test_a_real_file_system_shares_or_does_nothing(tmp_path):
    """On whatever the tests run on."""
    payload = os.urandom(3 * SHARED + 5)
    lies = place(header_of(len(payload)))
    header, digest = copied(tmp_path, payload, lies, FILES)
    check(tmp_path, header, payload, digest)


@pytest.mark.long
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may mount")
@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_extents_are_shared_on_a_file_system_that_can(tmp_path, kind):
    """What the file system says is used: next to nothing for a copy of 8 MB."""
    image, folder = tmp_path / "image", tmp_path / "mounted"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(400 << 20)
    try:
        subprocess.run([f"mkfs.{kind}", image], check=True, capture_output=True)
        subprocess.run(["mount", "-o", "loop", image, folder], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no {kind} here: {error}")
    try:
        payload = os.urandom(8 << 20)
        lies = place(header_of(len(payload)))
        header, digest = copied(folder, payload, lies, FILES)
        check(folder, header, payload, digest)
        source, target = FILES.open_read(folder / "source"), FILES.create(folder / "copied")
        FILES.copy_range(source, 3, target, 3, len(payload), folder / "copied")
        assert (folder / "copied").read_bytes()[3:] == (folder / "source").read_bytes()[3 : 3 + len(payload)]
        os.fsync(target)
        FILES.close(source)
        FILES.close(target)
        extents = {name: shared_bytes(folder / name) for name in ("target", "copied")}
        assert all(8 << 20 >= count > (8 << 20) - 3 * BLOCK for count in extents.values()), extents
    finally:
        subprocess.run(["umount", folder], check=True, capture_output=True)


def shared_bytes(path):
    """Bytes of a file in extents that the system reports as shared."""
    said = subprocess.run(["filefrag", "-v", "-b1", path], check=True, capture_output=True, text=True).stdout
    lines = [line.split(":") for line in said.splitlines()]
    return sum(int(parts[3]) for parts in lines if len(parts) > 4 and "shared" in parts[-1])


def test_to_compare_shares_nothing(tmp_path):
    """A file that is only compared is not written to, and another byte in the middle of it is found."""
    payload = os.urandom(2 * SHARED)
    lies = place(header_of(len(payload)))
    header, _ = copied(tmp_path, payload, lies, FILES)
    changed = bytearray((tmp_path / "target").read_bytes())
    changed[lies + SHARED] ^= 1
    for content, is_same in ((bytes((tmp_path / "target").read_bytes()), True), (bytes(changed), False)):
        (tmp_path / "target").write_bytes(content)
        files = Sharing()
        source, checker = FILES.open_read(tmp_path / "source"), ShardChecker(tmp_path / "target", header, files)
        try:
            if is_same:
                checker.copy("b", source, lies, len(payload))
            else:
                with pytest.raises(CheckpointError, match="other bytes"):
                    checker.copy("b", source, lies, len(payload))
        finally:
            FILES.close(source)
            checker.abort()
        assert (tmp_path / "target").read_bytes() == content and not files.shared and not files.written


def test_a_disk_that_is_full_of_extents_is_an_error(tmp_path, monkeypatch):
    """To share takes space of its own: where there is none that is said, and the file not finished."""

    def full(descriptor, request, argument):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("wiseft_core.store.files.fcntl.ioctl", full)
    payload = os.urandom(2 * SHARED)
    with pytest.raises(Fault, match="ENOSPC"):
        copied(tmp_path, payload, place(header_of(len(payload))), FILES)
