"""A checkpoint on disk as one read-only mapping of names to tensors, whatever its files.

Store room. Specs, offsets and `read` need no map; `get_tensor` and `get_slice` serve the in-memory API from maps
that safetensors opens. Torch is imported when the first value is asked for: headers do without.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Self

from wiseft_core.errors import BindingError, CheckpointError, Unsupported, listed, nearest
from wiseft_core.store import hub
from wiseft_core.store.files import FILES, Files
from wiseft_core.store.locate import Place, read_index
from wiseft_core.store.pipelines import find
from wiseft_core.store.reader import TensorFile, check_union
from wiseft_core.store.strict_json import as_mapping, read_json
from wiseft_core.types import BITS, TensorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

CONFIG_FILE = "config.json"


class Checkpoint(Mapping[str, "Tensor"]):
    """A checkpoint whose headers have been read and agree with its index. `open_checkpoint` makes them.

    Values are mapped from the file: do not write to the file while they live. Two checkpoints are equal when they are
    one object. Use it as a context manager, or leave its files to the garbage collector.

    Attributes:
        path: What was opened.
        folder: The folder whose other files belong to the checkpoint; None where a single file was opened.
        files: Its files, in the order of their names; of a pipeline, with the folder of the component in front.
        components: The components of a pipeline, sorted: the first parts of its tensors' names. Else none.
        specs: Dtype and shape by name, in the order on disk: by file, then by offset.
        configs: What config.json beside the weights says, by component; of a checkpoint that is not a pipeline by "".
        config: The config of a checkpoint that is not a pipeline, or None.
        indexes: What each index says of the whole, such as total_size, by its file name.
        component: The component of a pipeline that it was asked to be; None where none was named.
    """

    component: str | None = None

    def __init__(
        self,
        path: Path,
        files: Sequence[TensorFile],
        *,
        folder: Path | None = None,
        configs: Mapping[str, Mapping[str, object]] | None = None,
        indexes: Mapping[str, Mapping[str, object]] | None = None,
    ) -> None:
        self.path, self.folder = path, folder
        self.files = tuple(files)
        self.configs, self.indexes = dict(configs or {}), dict(indexes or {})
        self.config = self.configs.get("")
        prefixes = dict.fromkeys(file.header.prefix for file in self.files)
        self.components = tuple(prefix.removesuffix(".") for prefix in prefixes if prefix)
        specs = {name: spec for file in files for name, spec in file.header.specs.items()}
        self.specs: Mapping[str, TensorSpec] = specs
        self._homes = {name: file for file in files for name in file.header.specs}
        self._maps, self._lock = dict[TensorFile, Any](), Lock()

    def file_of(self, name: str) -> TensorFile:
        """The file that holds a tensor."""
        return self._homes[name]

    def place_of(self, name: str) -> tuple[int, int, Path]:
        """The descriptor of the file that holds a tensor, the tensor's first byte in it, and its path."""
        return self._homes[name].descriptor, self._homes[name].offset_of(name), self._homes[name].path

    def metadata(self) -> dict[str, str]:
        """The metadata in the header of the first file."""
        return dict(self.files[0].header.metadata)

    def get_tensor(self, name: str) -> Tensor:
        """The tensor `name`, mapped from its file: the same memory at every call.

        Raises:
            BindingError: There is no such tensor; a `KeyError` with the nearest names.
            Unsupported: Torch has no dtype for it.
        """
        if name not in self._homes:
            near = nearest(name, self.specs)
            raise BindingError(
                f"{name} — no such tensor in {self.path}",
                expected=f"one of its {len(self.specs)} names",
                got=name,
                hint=f"nearest names: {listed(near)}" if near else "list(checkpoint) gives the names",
            )
        self._dtype_of(name)
        tensor: Tensor = self._map_of(name).get_tensor(self._stored(name))
        return tensor

    def get_slice(self, name: str) -> Any:
        """A lazy view of a tensor with safetensors' words: `get_shape()`, `get_dtype()` and `[i:j]`."""
        return self._map_of(name).get_slice(self._stored(name))

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Elements `start` to `stop` of a tensor, read from the file into memory of their own.

        Shapes:
            Returns (stop - start,): the tensor flattened, in its stored dtype. F4 comes as torch has it, two to an
            item, so that there `start` and `stop` are even.
        Raises:
            IndexError: The tensor does not have all these elements, or they do not start and end at whole bytes.
            Unsupported: Torch has no dtype for it.
            CheckpointError: The file was truncated after it was opened.
            Fault: The operating system cannot read it.
        """
        import torch

        dtype = self._dtype_of(name)
        payload = self.read_bytes(name, start, stop)
        return torch.from_numpy(payload).view(dtype) if payload.size else torch.empty(0, dtype=dtype, device="cpu")

    def read_bytes(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """The bytes of elements `start` to `stop`, as `read` has them, without torch.

        Raises:
            IndexError, CheckpointError, Fault: As for `read`.
        """
        import numpy as np

        spec = self.specs[name]
        first, last = start * BITS[spec.dtype], stop * BITS[spec.dtype]
        if not 0 <= start <= stop <= spec.numel or first % 8 or last % 8:
            raise IndexError(f"elements {start} to {stop} of {name!r}, which is {spec}")
        payload = np.empty((last - first) // 8, np.uint8)
        self._homes[name].read_into(payload.data, name, first // 8)
        return payload

    def check_unchanged(self) -> None:
        """Do nothing where every file is as it was when it was opened.

        Raises:
            InputChanged: One is not.
        """
        for file in self.files:
            file.check_unchanged()

    def close(self) -> None:
        """Close the files. Tensors that were given out stay valid."""
        with self._lock:
            self._maps.clear()
        for file in self.files:
            file.close()

    def _stored(self, name: str) -> str:
        """What a tensor is called in its file."""
        return name.removeprefix(self._homes[name].header.prefix)

    def _dtype_of(self, name: str) -> Any:
        """Torch's dtype for a tensor."""
        from wiseft_core.dtypes import TORCH_DTYPES

        spec = self.specs[name]
        if spec.dtype not in TORCH_DTYPES:
            raise Unsupported(
                f"{name} — torch has no dtype for its values",
                expected=f"one of {', '.join(TORCH_DTYPES)}",
                got=f"{spec}",
                hint="such tensors are copied from file to file, and cannot be loaded",
            )
        return TORCH_DTYPES[spec.dtype]

    def _map_of(self, name: str) -> Any:
        """The map of the file that holds `name`, opened at first use."""
        from safetensors import safe_open

        file = self._homes[name]
        with self._lock:
            file.check_open()
            if file not in self._maps:
                # By descriptor: the path may lead to another file by now, with other offsets.
                held = f"/proc/self/fd/{file.descriptor}"
                self._maps[file] = safe_open(held if os.path.exists(held) else file.path, framework="pt")
            return self._maps[file]

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._homes:
            raise KeyError(name)
        return self.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)

    def __contains__(self, name: object) -> bool:
        return name in self.specs

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        size = sum(file.header.payload for file in self.files)
        return f"Checkpoint({str(self.path)!r}: {len(self)} tensors, {len(self.files)} files, {size:,} bytes)"


def open_checkpoint(
    path: str | os.PathLike[str],
    *,
    component: str | None = None,
    variant: str | None = None,
    weights: str | None = None,
    files: Files = FILES,
) -> Checkpoint:
    """Open a checkpoint: read its headers and its config, and check that they agree. No tensor is read.

    A diffusers pipeline is one checkpoint, in which the name of a tensor starts with that of its component:
    `unet.conv_in.weight`.

    Args:
        path: A folder with `model.safetensors`, `model.safetensors.index.json` or diffusers' names for them, or with
            one other .safetensors file; a pipeline, which has a `model_index.json`; a repository or snapshot in a
            Hugging Face cache; a single file; or, where no such path is, a name on the hub: `org/model`, or
            `org/model@revision`.
        component: The sub-folder that holds the model: of a pipeline this component alone, by its own names.
        variant: The variant to open, "fp16" for `model.fp16.safetensors`; in a pipeline of each component that has it.
        weights: The file to open where the folder holds several.
        files: The seam to the file system.
    Raises:
        CheckpointError: Something is missing, malformed or ambiguous, or index and headers disagree.
        Unsupported: The weights are not in safetensors files.
        ConfigError: `component`, `variant` or `weights` is not a bare name.
        Fault: The operating system cannot read a file.
    """
    given = hub.found(path, files)
    root, places = find(given, component=component, variant=variant, weights=weights, files=files)
    configs, indexes = dict[str, Mapping[str, object]](), dict[str, Mapping[str, object]]()
    shards = list[TensorFile]()
    with ExitStack() as opened:
        for part, place in places.items():
            beside = place.file.parent / CONFIG_FILE
            if os.path.lexists(beside):
                configs[part] = as_mapping(read_json(beside, files), f"{beside}")
            index = read_index(place.file, files) if place.is_index else None
            if index is not None:
                indexes[f"{part}/{place.file.name}" if part else place.file.name] = index.metadata
            found = [opened.enter_context(file) for file in _open_files(place, index and index.weight_map, files)]
            check_union(found, index and index.weight_map, place.file)
            for file in found if part else ():
                file.join(part)
            shards += found
        opened.pop_all()
    whole = Checkpoint(given, shards, folder=root, configs=configs, indexes=indexes)
    whole.component = component
    return whole


def _open_files(place: Place, weight_map: Mapping[str, str] | None, files: Files) -> Iterator[TensorFile]:
    """The files of the weights, in the order of their names; all that are missing are reported together."""
    if weight_map is None:
        yield TensorFile.open(place.file, files)
        return
    paths = [place.file.parent / shard for shard in sorted(set(weight_map.values()))]
    CheckpointError.raise_all(
        [
            CheckpointError(
                f"{path} — missing shard",
                expected=f"the file that {place.file.name} names",
                got="no such file",
                hint="fetch the missing file: the checkpoint is not complete without it",
            )
            for path in paths
            if not path.exists()
        ]
    )
    for path in paths:
        yield TensorFile.open(path, files)
