"""One safetensors file, opened once: the checked header, and ranges of payload read into the caller's own buffers.

Store room, no torch. Nothing here maps the file: under a map, a file that somebody truncates kills the process. The
descriptor that the header was read from is the one that everything else is read from.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from wiseft_core.errors import CheckpointError, InputChanged
from wiseft_core.store.files import FILES, Files
from wiseft_core.store.header import HEADER_LIMIT, LENGTH, Header, header_length, parse_header
from wiseft_core.types import TensorSpec


class Descriptor:
    """A descriptor on a file to read, given back with the last reference to this."""

    def __init__(self, path: Path, files: Files) -> None:
        self.number = files.open_read(path)
        weakref.finalize(self, files.close, self.number)


class TensorFile:
    """A safetensors file with its header checked. Any number of threads may read from it at once.

    Attributes:
        path: The file, as it was given.
        name: Its name in the folder of the checkpoint: of a component of a pipeline, with the component's folder.
        header: What it says of its tensors.
        descriptor: The one descriptor that everything is read from; closed by `close`, or with the last reference.
    """

    def __init__(self, path: Path, header: Header, descriptor: int, identity: tuple[int, ...], files: Files) -> None:
        self.path, self.name, self.header, self.descriptor = path, path.name, header, descriptor
        self.identity, self._files = identity, files
        self._close = weakref.finalize(self, files.close, descriptor)

    @classmethod
    def open(cls, path: Path, files: Files = FILES, *, limit: int = HEADER_LIMIT) -> Self:
        """Open the file at `path`, links followed, and check its header.

        Args:
            path: A safetensors file.
            files: The seam to open and read through.
            limit: The longest header to accept, in bytes.
        Raises:
            CheckpointError: There is no such regular file, or it is not a whole safetensors file.
            Fault: The operating system cannot read it.
        """
        descriptor = files.open_read(path)
        try:
            identity = files.identity(descriptor)
            size = identity[2]
            first = bytearray(min(LENGTH, size))
            files.read_into(descriptor, memoryview(first), 0, path)
            raw = bytearray(header_length(bytes(first), size, f"{path}", limit=limit))
            files.read_into(descriptor, memoryview(raw), 0, path)
            return cls(path, parse_header(bytes(raw), size, f"{path}"), descriptor, identity, files)
        except BaseException:
            files.close(descriptor)
            raise

    def join(self, component: str) -> None:
        """Become a file of a pipeline: its name and those of its tensors start with the component."""
        self.name, self.header = f"{component}/{self.name}", self.header.under(f"{component}.")

    def spec(self, name: str) -> TensorSpec:
        """Dtype and shape of a tensor."""
        return self.header.specs[name]

    def offset_of(self, name: str) -> int:
        """Where the payload of a tensor starts in the file."""
        return self.header.start + self.header.offsets[name]

    def read_into(self, buffer: memoryview, name: str, start: int) -> None:
        """Fill `buffer`, a view of bytes, with payload of a tensor, from its byte `start` on.

        Raises:
            IndexError: The tensor does not have all these bytes.
            CheckpointError: The file ends early: it was truncated after its header was read.
            Fault: The operating system cannot read it.
        """
        self.check_open()
        length = self.header.specs[name].nbytes
        if not 0 <= start <= start + buffer.nbytes <= length:
            raise IndexError(f"bytes {start} to {start + buffer.nbytes} of {name!r}, which has {length}")
        self._files.read_into(self.descriptor, buffer, self.offset_of(name) + start, self.path)

    def check_open(self) -> None:
        """Do nothing before `close`; afterwards the number of the descriptor may be somebody else's.

        Raises:
            ValueError: The file is closed, as Python's own files say it.
        """
        if not self._close.alive:
            raise ValueError(f"read from a closed file: {self.path}")

    def check_unchanged(self) -> None:
        """Do nothing where the file is as it was when it was opened.

        Raises:
            InputChanged: Somebody wrote to it, truncated it or linked to it. One that was replaced by a rename is as it
                was: the descriptor keeps the old one.
        """
        self.check_open()
        if self._files.is_changed(self.descriptor, self.identity):
            raise InputChanged(
                f"{self.path} — changed while it was read",
                expected=f"size, mtime and ctime as at opening: {self.identity[2:]}",
                got=f"{self._files.identity(self.descriptor)[2:]}",
                hint="do not write to inputs while wiseft runs; run again once they are at rest",
            )

    def close(self) -> None:
        """Give the descriptor back. Closing twice does nothing."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"TensorFile({str(self.path)!r}, {len(self.header.specs)} tensors, {self.header.payload} bytes)"


def check_union(shards: Sequence[TensorFile], weight_map: Mapping[str, str] | None, where: Path) -> None:
    """Refuse a tensor in two files, and any difference between the headers and the index."""
    if weight_map is None:
        return
    problems: list[CheckpointError] = []
    homes: dict[str, str] = {}

    def refuse(name: str, expected: str, got: str) -> None:
        hint = "index and shards are of different versions: fetch them all again"
        problems.append(CheckpointError(f"{where} — {name}", expected=expected, got=got, hint=hint))

    for shard in shards:
        for name in shard.header.specs:
            listed_in = weight_map.get(name)
            if name in homes:
                refuse(name, "a tensor in one file", f"in {homes[name]} and in {shard.name}")
            elif listed_in != shard.name:
                refuse(name, f"in {listed_in}, says the index" if listed_in else "in the index", f"in {shard.name}")
            homes[name] = shard.name
    for name in (name for name in weight_map if name not in homes):
        refuse(name, f"in {weight_map[name]}, says the index", "not in the header of that file, nor of another")
    CheckpointError.raise_all(problems)
