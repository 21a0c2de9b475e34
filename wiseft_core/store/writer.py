"""Files written so that a torn one cannot be mistaken for a whole one.

Store room, no torch: payloads are buffers, or ranges of other files. Called with paths inside the staging folder of
`publish.py`. The space is reserved first and the header comes last: until then a file starts with eight zero bytes,
a header of no length, which no reader accepts.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from pathlib import Path
from threading import Lock
from typing import Final, Self

from blake3 import blake3

from wiseft_core.store.faults import faults
from wiseft_core.store.files import Buffer, Files, share
from wiseft_core.store.header import Header
from wiseft_core.store.reader import TensorFile
from wiseft_core.store.trail import Trail

CHUNK: Final = 1 << 20
"""Bytes read at once to digest a file: what is read is still in the processor's cache then."""
FLOW: Final = 8 << 20
"""Bytes after which the system is told to begin to write, so that there is little to wait for at the end."""
COPY: Final = 1 << 19
"""Bytes copied at once: they are in the cache of one core while they are read, written and digested."""

_NOTHING: Final = (sys.maxsize, 0, 0)


class ShardWriter:
    """One safetensors file in the making. Any number of threads may write to different parts of it at once.

    The file is open from the first write to `finish` only: a job may make more files than a process may have open.

    Args:
        path: Where it is made; nothing may be there.
        header: Its header; all the space is reserved now.
        files: The seam to write through.
        same: A file that it will be a copy of: where the file system can, the two share their extents, and `is_whole`
            says that no payload is missing.
        digested: Digest what is written as it comes; without, `finish` reads it all.
        synced: It will be synced: let the disk begin early.
    Raises:
        Fault: The operating system refuses, for want of space above all.
    """

    _left: dict[str, int]
    _descriptor: int | None
    _trail: Trail | None

    def __init__(
        self,
        path: Path,
        header: Header,
        files: Files,
        same: TensorFile | None = None,
        *,
        digested: bool = True,
        synced: bool = False,
    ) -> None:
        self._begin(path, header, files, header.specs)
        self._flows = synced
        self._descriptor = files.create(path)
        try:
            self.inode = files.identity(self._descriptor)[1]
            if same is not None and files.clone(same.descriptor, self._descriptor, path):
                self._left, self.is_whole = dict.fromkeys(self._left, 0), True
            else:
                files.allocate(self._descriptor, header.size, path)
                self._trail = Trail(header.raw, self._read) if digested else None
        finally:
            self._close()

    @classmethod
    def again(cls, path: Path, header: Header, files: Files, names: Collection[str]) -> Self:
        """A file that is whole, to write some of its tensors again: not to be published meanwhile, its header stands.

        Args:
            path: Where it is.
            header: Its header.
            files: The seam to write through.
            names: The tensors to write again; the others keep their bytes.
        """
        writer = cls.__new__(cls)
        writer._begin(path, header, files, names)
        return writer

    def _begin(self, path: Path, header: Header, files: Files, names: Collection[str]) -> None:
        """What every writer starts from: the bytes that are still to be written, those of `names`."""
        self.path, self.header, self._files = path, header, files
        self._left = {name: spec.nbytes if name in names else 0 for name, spec in header.specs.items()}
        self._lock, self._descriptor, self._trail = Lock(), None, None
        self._ended = self.is_whole = self._flows = False
        self._fresh = _NOTHING

    def write(self, name: str, start_byte: int, buffer: Buffer) -> None:
        """Put `buffer` at byte `start_byte` of the payload of a tensor.

        Raises:
            IndexError: The tensor does not have all these bytes.
            Fault: The operating system fails to write them.
        """
        view = memoryview(buffer).cast("B")
        self._put(name, self._claim(name, start_byte, len(view)), view)

    def copy(
        self, name: str, source_descriptor: int, source_offset: int, nbytes: int, *, start: int = 0, origin: object = ""
    ) -> None:
        """Copy `nbytes` from the file `origin` at `source_offset` to byte `start` of the payload of a tensor.

        Raises:
            IndexError: The tensor does not have all these bytes.
            CheckpointError: The source ends early.
            Fault: The operating system fails to copy them.
        """
        # The kernel would copy page by page, and what it copied would have to be read again for the digest.
        at, buffer = self._claim(name, start, nbytes), memoryview(bytearray(min(COPY, nbytes)))
        shift, stop = source_offset - at, at + nbytes
        low, high = self._share(source_descriptor, source_offset, at, nbytes)
        while at < stop:
            edge = next((edge for edge in (low, high) if at < edge), stop)
            piece = buffer[: min(COPY - at % COPY, edge - at)]  # whole pages, but for the ends
            self._files.read_into(source_descriptor, piece, at + shift, origin or f"the source of {name}")
            self._put(name, at, piece, is_there=low <= at < high)
            at += len(piece)

    def wrote(self, name: str, nbytes: int) -> None:
        """Count bytes of a tensor that another process has written."""
        self._claim(name, 0, nbytes)

    def finish(self, sync: bool) -> str:
        """Write the header, force the file to disk if `sync`, close it, and give its digest as on disk.

        Raises:
            RuntimeError: A byte of payload was not written, or one was written twice: a fault of the caller.
            Fault: The operating system fails.
        """
        descriptor, size = self._complete(), self.header.size
        if sync:
            self._files.fsync(descriptor, self.path)
        trail, self._trail = self._trail, None
        digest = digest_file(descriptor, size, self._files, self.path) if trail is None else trail.end(size)
        self.abort()
        return digest

    def pause(self) -> None:
        """`finish` for a file that will be written again: nothing is digested or synced."""
        self._complete()
        self.abort()

    def _complete(self) -> int:
        """Write the header, once there is a payload for it; the descriptor."""
        self.check_whole()
        descriptor = self._open()
        self._files.write_at(descriptor, self.header.raw, 0, self.path)
        return descriptor

    def check_whole(self) -> None:
        """Refuse a payload of which a byte was not written, or one twice: a fault of the caller."""
        gaps = {name: left for name, left in self._left.items() if left}
        if gaps:
            raise RuntimeError(f"{self.path}: bytes not written exactly once, by tensor: {gaps}")

    def abort(self) -> None:
        """Give the file up and close it as it is, once no thread writes any more. After `finish` it does nothing."""
        self._ended = True
        self._close()

    def _close(self) -> None:
        """Close the descriptor, if it is open."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with faults("close it", self.path):
                self._files.close(descriptor)

    def _open(self) -> int:
        """The descriptor of a file that is still in the making."""
        with self._lock:
            if self._ended:
                raise RuntimeError(f"{self.path}: written to after it was closed")
            if self._descriptor is None:
                self._descriptor = self._again()
            return self._descriptor

    def _again(self) -> int:
        """A descriptor on the file, to go on with it."""
        return self._files.open_write(self.path)

    def _share(self, source: int, start: int, offset: int, count: int) -> tuple[int, int]:
        """Share what is possible of bytes that are to be copied; from and to where in the file that was done."""
        return share(self._files, source, start, self._open(), offset, count, self.path)

    def _put(self, name: str, offset: int, view: memoryview, *, is_there: bool = False) -> None:
        """Put bytes of a tensor at `offset` of the file, if they are not there yet."""
        if not is_there:
            self._files.write_at(self._open(), view, offset, self.path)
        if self._trail is not None:
            self._trail.add(offset, view)
        if self._flows and not is_there:
            self._flow(offset, offset + len(view))

    def _flow(self, start: int, stop: int) -> None:
        """Let the disk begin with what was written since it was told so last, if that is enough."""
        with self._lock:
            low, high, count = self._fresh
            low, high, count = min(low, start), max(high, stop), count + stop - start
            self._fresh = (low, high, count) if count < FLOW else _NOTHING
        if count >= FLOW:
            self._files.begin_sync(self._open(), low, high - low)

    def _read(self, buffer: memoryview, offset: int) -> None:
        """Read back what was written."""
        self._files.read_into(self._open(), buffer, offset, self.path)

    def _claim(self, name: str, start: int, count: int) -> int:
        """Count `count` bytes of a tensor as written; where in the file they go."""
        length = self.header.specs[name].nbytes
        if not 0 <= start <= start + count <= length:
            raise IndexError(f"bytes {start} to {start + count} of {name!r}, which has {length}")
        with self._lock:
            self._left[name] -= count
        return self.header.start + self.header.offsets[name] + start


def write_file(path: Path, data: bytes, files: Files, sync: bool) -> str:
    """Write a small file, force it to disk if `sync`, and give its digest.

    Raises:
        Fault: Something is at `path` already, or the operating system fails.
    """
    descriptor = files.create(path)
    try:
        files.write_at(descriptor, data, 0, path)
        return _settle(descriptor, len(data), files, sync, path)
    finally:
        files.close(descriptor)


def copy_file(source: int, size: int, path: Path, files: Files, sync: bool) -> str:
    """Write a file with the first `size` bytes of an open one, force it to disk if `sync`, and give its digest.

    Raises:
        CheckpointError: The source ends early.
        Fault: Something is at `path` already, or the operating system fails.
    """
    descriptor = files.create(path)
    try:
        files.copy_range(source, 0, descriptor, 0, size, path)
        return _settle(descriptor, size, files, sync, path)
    finally:
        files.close(descriptor)


def digest_file(descriptor: int, size: int, files: Files, path: object = "an open file") -> str:
    """The BLAKE3 digest, in hex, of the first `size` bytes of an open file, read piece by piece."""
    digest, buffer = blake3(), memoryview(bytearray(min(CHUNK, size)))
    for start in range(0, size, CHUNK):
        piece = buffer[: min(CHUNK, size - start)]
        files.read_into(descriptor, piece, start, path)
        digest.update(piece)
    return digest.hexdigest()


def _settle(descriptor: int, size: int, files: Files, sync: bool, path: Path) -> str:
    """Force a whole file to disk if `sync`; its digest, read back."""
    if sync:
        files.fsync(descriptor, path)
    return digest_file(descriptor, size, files, path)
