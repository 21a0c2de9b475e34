"""A shard that is there already, compared with what would be written.

Store room, no torch.
"""

from __future__ import annotations

from pathlib import Path

from wiseft_core.errors import CheckpointError
from wiseft_core.store.files import Files
from wiseft_core.store.header import Header
from wiseft_core.store.writer import ShardWriter


class ShardChecker(ShardWriter):
    """A shard that is there already, in the place of its writer: what would be written is compared with what is.

    Args:
        path: Where it is; it is opened for reading alone.
        header: The header that it should have.
        files: The seam to read through.
    Raises:
        CheckpointError: There is no such file, or its header or, later, another byte of it is another one.
        Fault: The operating system fails.
    """

    def __init__(self, path: Path, header: Header, files: Files) -> None:
        self._begin(path, header, files, header.specs)
        try:
            self._put("the header", 0, memoryview(header.raw))
        finally:
            self._close()

    def _again(self) -> int:
        """A descriptor on the file, to read it alone."""
        return self._files.open_read(self.path)

    def _share(self, source: int, start: int, offset: int, count: int) -> tuple[int, int]:
        """Nothing is shared: every byte is compared."""
        return offset, offset

    def _put(self, name: str, offset: int, view: memoryview, *, is_there: bool = False) -> None:
        """Refuse a file that has not these bytes at `offset`."""
        found = memoryview(bytearray(len(view)))
        self._files.read_into(self._open(), found, offset, self.path)
        if found != view:
            raise CheckpointError(
                f"{self.path} — {name}",
                expected="the bytes that this job would write",
                got="other bytes",
                hint="choose another folder for the output, or remove this one yourself",
            )
