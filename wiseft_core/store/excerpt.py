"""Some tensors of checkpoints on disk, as another process reads them: by path, place and identity of their files.

Store room. It is small and crosses process boundaries whole; files are opened where it is read, and no header is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

from wiseft_core.errors import InputChanged
from wiseft_core.store.checkpoint import Checkpoint
from wiseft_core.store.files import FILES
from wiseft_core.store.reader import Descriptor
from wiseft_core.types import BITS, TensorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


class Place(NamedTuple):
    """Where a tensor is: the number of its file, and its first byte in that."""

    file: int
    offset: int


@dataclass(frozen=True)
class Excerpt:
    """Tensors by name; `read` and `get_tensor` as a `Checkpoint` has them.

    Attributes:
        specs: Dtype and shape of each.
        places: Where each is.
        files: Path and identity of each file.
    """

    specs: Mapping[str, TensorSpec]
    places: Mapping[str, Place]
    files: tuple[tuple[str, tuple[int, ...]], ...]
    _open: dict[int, Descriptor] = field(default_factory=dict, repr=False, compare=False)
    _lock: Any = field(default_factory=Lock, repr=False, compare=False)

    @classmethod
    def of(cls, source: Checkpoint, names: Iterable[str]) -> Excerpt:
        """Some tensors of a checkpoint."""
        wanted, numbers, specs = dict.fromkeys(names), dict[Path, int](), dict[str, TensorSpec]()
        places, files = dict[str, Place](), list[tuple[str, tuple[int, ...]]]()
        for name in wanted:
            file = source.file_of(name)
            if file.path not in numbers:
                numbers[file.path] = len(files)
                files.append((str(file.path.absolute()), file.identity))
            specs[name] = source.specs[name]
            places[name] = Place(numbers[file.path], source.place_of(name)[1])
        return cls(specs, places, tuple(files))

    def __reduce__(self) -> tuple[Any, ...]:
        """What is open stays in the process that opened it."""
        return Excerpt, (self.specs, self.places, self.files)

    def place_of(self, name: str) -> tuple[int, int, Path]:
        """The descriptor of the file that holds a tensor, the tensor's first byte in it, and its path."""
        number, offset = self.places[name]
        return self._descriptor(number), offset, Path(self.files[number][0])

    def get_tensor(self, name: str) -> Tensor:
        """The whole tensor, in memory of its own."""
        spec = self.specs[name]
        return self.read(name, 0, spec.numel).reshape(spec.shape)

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Elements `start` to `stop` of the flattened tensor.

        Raises:
            InputChanged: The file is not what it was when the job was planned.
            CheckpointError, Fault: It cannot be read.
        """
        import torch

        from wiseft_core.dtypes import TORCH_DTYPES

        dtype, payload = TORCH_DTYPES[self.specs[name].dtype], self.read_bytes(name, start, stop)
        return torch.from_numpy(payload).view(dtype) if payload.size else torch.empty(0, dtype=dtype, device="cpu")

    def read_bytes(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """The bytes of elements `start` to `stop`, without torch.

        Raises:
            InputChanged, CheckpointError, Fault: As for `read`.
        """
        import numpy as np

        bits, (descriptor, offset, path) = BITS[self.specs[name].dtype], self.place_of(name)
        payload = np.empty((stop - start) * bits // 8, np.uint8)
        FILES.read_into(descriptor, payload.data, offset + start * bits // 8, path)
        return payload

    def _descriptor(self, number: int) -> int:
        """A descriptor on a file, opened once, that is known to be the one that was meant."""
        with self._lock:
            if number not in self._open:
                path, identity = self.files[number]
                held = Descriptor(Path(path), FILES)
                # Another machine may have another number for the device.
                if (seen := FILES.identity(held.number))[1:] != identity[1:]:
                    raise InputChanged(
                        f"{path} — not the file that the job was planned for",
                        expected=f"inode, size, mtime and ctime as at opening: {identity[1:]}",
                        got=f"{seen[1:]}",
                        hint="do not write to inputs while wiseft runs; run again once they are at rest",
                    )
                self._open[number] = held
            return self._open[number].number
