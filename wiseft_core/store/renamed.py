"""A checkpoint on disk under other names: the same files and bytes, and where it is asked for, other shapes.

Store room. What reads it need not know; the files, their digests and their identity are those of the original.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wiseft_core.store.checkpoint import Checkpoint
from wiseft_core.types import TensorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


class Renamed(Checkpoint):
    """Some tensors of a checkpoint, each under a name of its own.

    Attributes:
        original: The checkpoint that they are in.
        names: The original's name of each.
    """

    def __init__(self, original: Checkpoint, names: Mapping[str, str], specs: Mapping[str, TensorSpec]) -> None:
        self.__dict__ |= original.__dict__  # its files, its folder, its maps: all that it knows of itself
        self.original, self.names, self.specs = original, dict(names), dict(specs)
        self._homes = {name: original.file_of(known) for name, known in self.names.items()}

    def place_of(self, name: str) -> tuple[int, int, Path]:
        """The descriptor of the file that holds the tensor, the tensor's first byte in it, and its path."""
        return self.original.place_of(self.names[name])

    def get_tensor(self, name: str) -> Tensor:
        """The tensor, mapped from its file."""
        return self.original.get_tensor(self.names.get(name, name)).reshape(self.specs[name].shape)

    def get_slice(self, name: str) -> Any:
        """A lazy view of the tensor, in the shape that it has in the file."""
        return self.original.get_slice(self.names[name])

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Elements `start` to `stop` of the flattened tensor."""
        return self.original.read(self.names[name], start, stop)

    def read_bytes(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """The bytes of elements `start` to `stop`."""
        return self.original.read_bytes(self.names[name], start, stop)
