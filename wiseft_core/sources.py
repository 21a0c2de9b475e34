"""Where tensors come from, seen in one way: specs first, then any run of elements.

Joint floor. A checkpoint on disk is read by descriptor, a mapping in memory by view; the verbs do not care which.
Where no base is given, the adapter implies as much of it as its factors tell.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from wiseft_core.config import AdapterConfig
from wiseft_core.config_methods import Method
from wiseft_core.errors import CheckpointError, DtypeMismatch, Unsupported, listed
from wiseft_core.families import FAMILIES, Family
from wiseft_core.naming.links import NOTHING, Link
from wiseft_core.respelling import respelled
from wiseft_core.store import hub
from wiseft_core.store.checkpoint import Checkpoint, open_checkpoint
from wiseft_core.store.excerpt import Excerpt
from wiseft_core.store.files import read_file
from wiseft_core.store.locate import check_bare
from wiseft_core.store.pipelines import PIPELINE_FILE
from wiseft_core.store.strict_json import load_json
from wiseft_core.types import TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

PIECE: Final = 1 << 20
"""Elements of two tensors that are compared at a time."""
BaseLike = Mapping[str, "Tensor"] | str | os.PathLike[str]
"""What can be given as a base: a mapping of names to tensors, a `Checkpoint`, or a path."""


class Source(Protocol):
    """Tensors by name, known by their specs before any is read."""

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Dtype and shape of every tensor, in on-disk or given order."""

    def get_tensor(self, name: str) -> Tensor:
        """The whole tensor, without copying where that is possible."""

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Elements [start, stop) of the flattened tensor, as one axis, not to be written to."""


class Arrays:
    """A source on disk whose elements come as numpy's arrays, of `arrays.CARRIERS`: torch is not needed to read it."""

    def __init__(self, source: Source) -> None:
        self._source, self.specs = source, source.specs

    def get_tensor(self, name: str) -> Tensor:
        """The whole tensor, as torch has it."""
        return self._source.get_tensor(name)

    def read(self, name: str, start: int, stop: int) -> Any:
        """Elements [start, stop) of the flattened tensor."""
        from wiseft_core.arrays import CARRIERS

        source: Any = self._source
        return source.read_bytes(name, start, stop).view(CARRIERS[self.specs[name].dtype])


def has_bytes(source: Source) -> bool:
    """Whether a source is on disk, so that it can be read without torch."""
    return isinstance(source, Checkpoint | Excerpt)


def hold_same(source: Source, first: str, second: str) -> bool:
    """Whether two tensors hold the same, read a piece at a time up to the first difference; a file's without torch."""
    spec = source.specs[first]
    if spec != source.specs[second]:
        return False
    pieces = [(start, min(start + PIECE, spec.numel)) for start in range(0, spec.numel, PIECE)]
    if has_bytes(source):
        stored: Any = source
        return all((stored.read_bytes(first, *run) == stored.read_bytes(second, *run)).all() for run in pieces)
    import torch

    pairs = ((source.read(first, *run), source.read(second, *run)) for run in pieces)
    return all(torch.equal(one, other.to(one.device)) for one, other in pairs)


class Memory:
    """Tensors or arrays in memory, as a source. Nothing is copied that can be shared, and nothing is kept open.

    An array under two names that has to be copied is copied once: it stays one.
    """

    def __init__(self, tensors: Mapping[str, object]) -> None:
        from wiseft_core import dtypes  # torch comes with tensors, not with a plan

        self.tensors: dict[str, Tensor] = {}
        found: dict[object, tuple[object, Tensor]] = {}  # the values too: a place is theirs for as long as they live
        for name, value in tensors.items():
            if not isinstance(name, str):
                raise DtypeMismatch(
                    f"{name!r} — a key of a state dict is not a string",
                    expected="tensor names",
                    got=type(name).__name__,
                    hint="pass a state dict: a mapping of names to tensors",
                )
            place = dtypes.place_of(value)
            if place not in found:
                found[place] = value, dtypes.as_tensor(value, name)
            self.tensors[name] = found[place][1]
        self.specs = {
            name: TensorSpec(dtypes.dtype_name(tensor.dtype), tuple(tensor.shape))
            for name, tensor in self.tensors.items()
        }

    def get_tensor(self, name: str) -> Tensor:
        """The tensor itself."""
        return self.tensors[name]

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Elements [start, stop) of the flattened tensor: a view where it is contiguous."""
        return self.tensors[name].reshape(-1)[start:stop]

    def shared(self) -> tuple[frozenset[str], ...]:
        """Groups of names that are the same memory, as tied parameters in a live state dict are."""
        groups: dict[tuple[object, ...], list[str]] = {}
        for name, tensor in self.tensors.items():
            if tensor.numel():
                place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
                groups.setdefault(place, []).append(name)
        return tuple(frozenset(names) for names in groups.values() if len(names) > 1)


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter: its tensors by key, and its config where there is one.

    Attributes:
        tensors: Factors and trained tensors by the keys that the training library gave them. None of them is written
            to. From `open_adapter` this is a `Checkpoint`.
        config: The adapter's config, or None for one whose file carries all that is needed.
        path: The folder it was read from, or None.
        config_bytes: The content of its adapter_config.json, as it was parsed.
    """

    tensors: Mapping[str, Tensor]
    config: AdapterConfig | None = None
    path: str | None = None
    config_bytes: bytes | None = None


def as_source(tensors: BaseLike) -> Source:
    """A path opened, a checkpoint as it is, any other mapping as memory."""
    if isinstance(tensors, Checkpoint):
        return tensors
    if isinstance(tensors, str | os.PathLike):
        return open_checkpoint(tensors)
    if isinstance(tensors, Mapping):
        return Memory(tensors)
    raise DtypeMismatch(
        f"{type(tensors).__name__} — not something to read tensors from",
        expected="a mapping of names to tensors, a Checkpoint, or a path",
        got=type(tensors).__name__,
        hint="for a live model pass model.state_dict()",
    )


CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"


def open_adapter(
    path: str | os.PathLike[str], *, name: str | None = None, families: Mapping[str, Family] = FAMILIES
) -> Adapter:
    """Open an adapter that PEFT saved: `adapter_config.json` with `adapter_model.safetensors`.

    Args:
        path: The folder, or the safetensors file inside it; or a name on the hub, as for `open_checkpoint`.
        name: A named adapter, saved in the sub-folder of that name.
        families: The methods to know.
    Raises:
        CheckpointError: Something is missing or malformed, or the folder holds several adapters and none is named.
        ConfigError: `name` is not a bare name.
        Unsupported: The weights are pickled, or the config asks for what is not supported.
    """
    folder = hub.found(path)
    folder = folder.parent if folder.name == WEIGHTS_FILE else folder
    if name is not None:
        check_bare("the adapter's name", name)
        folder = folder / name
    if not (folder / CONFIG_FILE).exists():
        inside = sorted(entry.parent.name for entry in folder.glob(f"*/{CONFIG_FILE}")) if folder.is_dir() else []
        raise CheckpointError(
            f"{folder} — no {CONFIG_FILE} here",
            expected="a folder that PEFT's save_pretrained wrote",
            got=f"adapters in sub-folders: {listed(inside, most=9)}" if inside else "no such file",
            hint=f"give one of them: {folder / min(inside)}" if inside else "check the path",
        )
    if not (folder / WEIGHTS_FILE).exists() and (folder / "adapter_model.bin").exists():
        raise Unsupported(
            f"{folder / 'adapter_model.bin'} — a pickle, which can run code when it is loaded",
            expected=WEIGHTS_FILE,
            got="adapter_model.bin",
            hint="load the adapter with PEFT and save it again: PeftModel.save_pretrained writes safetensors",
        )
    content = read_file(folder / CONFIG_FILE)
    raw = load_json(content, str(folder / CONFIG_FILE))
    if not isinstance(raw, Mapping):
        raise CheckpointError(
            f"{folder / CONFIG_FILE} — not a JSON object",
            expected="the fields of a PEFT config",
            got=type(raw).__name__,
            hint="use the file that PEFT saved with the adapter",
        )
    config = AdapterConfig.from_mapping(raw, str(folder / CONFIG_FILE), families)
    return Adapter(open_checkpoint(folder / WEIGHTS_FILE), config, str(folder), content)


class Tuned(NamedTuple):
    """What tuning left: its tensors, its config, whether it is a full checkpoint, its config file's content, and links:
    what some names are, of the base or as it has them, where the two do not hold the same."""

    source: Source
    config: AdapterConfig | None
    complete: bool
    config_bytes: bytes | None = None
    links: Mapping[str, tuple[Link, ...]] = NOTHING


def as_tuned(
    adapter: Adapter | BaseLike,
    config: AdapterConfig | Mapping[str, object] | None,
    base: Source | None,
    families: Mapping[str, Family] = FAMILIES,
) -> Tuned:
    """An adapter or a full fine-tuned checkpoint, from whatever was given. A given `config` wins over the file's.

    Another tool's spelling becomes PEFT's for this base. All parts of an adapter for several components are meant, but
    where the base was opened as one component of a pipeline by name.
    """
    if config is None or isinstance(config, AdapterConfig):
        given = config
    else:  # whatever is no mapping is refused there
        given = AdapterConfig.from_mapping(config, families=families)
    adapter = opened(adapter, families)
    brought, content = (adapter.config, adapter.config_bytes) if isinstance(adapter, Adapter) else (None, None)
    if (meant := given or brought) is not None:
        Method.of(meant.peft_type, "config: peft_type", families)
    source = as_source(adapter.tensors if isinstance(adapter, Adapter) else adapter)
    if found := respelled(source, base, config=meant, families=families):
        return Tuned(found.source, found.config, False, links=found.links)
    covers = isinstance(source, Checkpoint) or base is None or base.specs.keys() <= source.specs.keys()
    return Tuned(source, meant, given is None and covers and not isinstance(adapter, Adapter), content)


def opened(adapter: Adapter | BaseLike, families: Mapping[str, Family] = FAMILIES) -> Adapter | Mapping[str, Tensor]:
    """A path opened, as an adapter or as a full checkpoint, whichever it holds; anything else as it is."""
    if not isinstance(adapter, str | os.PathLike):
        return adapter
    place = hub.found(adapter)
    if place.is_dir():
        is_adapter = (place / CONFIG_FILE).exists() or not _holds_model(place)
    else:
        is_adapter = place.name == WEIGHTS_FILE
    return open_adapter(place, families=families) if is_adapter else open_checkpoint(place)


def _holds_model(folder: Path) -> bool:
    """Whether a folder holds weights of a model rather than of an adapter."""
    weights = any(entry.name != WEIGHTS_FILE for entry in folder.glob("*.safetensors*"))
    return weights or (folder / PIPELINE_FILE).exists()
