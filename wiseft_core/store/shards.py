"""Which tensor goes into which file: the base's own shards again, or a fresh split, and the index over them.

Store room, pure: headers in, headers out, no file is touched. The writer lays its files out by what it gets here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from wiseft_core.errors import CheckpointError, ConfigError, listed
from wiseft_core.store.header import Header, build_header
from wiseft_core.types import TensorSpec

UNITS: Final[Mapping[str, int]] = {
    "": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40,
}  # fmt: skip
_SIZE: Final = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?) ?([A-Za-z]{0,3})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of weights to write: its name in the folder, and its header."""

    name: str
    header: Header


def keep_shards(
    existing: Sequence[tuple[str, Header]], specs: Mapping[str, TensorSpec], home: Mapping[str, str]
) -> tuple[Shard, ...]:
    """The files of `existing` again, holding `specs`.

    A file that holds what it held keeps its header byte for byte. Another one keeps its metadata and its order, and
    what is new in it comes last; one of which nothing is left is left out.

    Args:
        existing: Name and header of each file of the base, in the base's order; at least one.
        specs: What to write: tensors that the base has, with another dtype or shape perhaps, and new ones.
        home: For a new tensor, the tensor whose file it joins; those not in it join the last file, of a pipeline the
            last of their component.
    Raises:
        CheckpointError: A changed header cannot be stored in a safetensors file, or a new tensor is of no component.
    """
    place = {name: at for at, (_, header) in enumerate(existing) for name in header.specs}
    last = {header.prefix: at for at, (_, header) in enumerate(existing)}
    gained: list[dict[str, TensorSpec]] = [{} for _ in existing]
    for name, spec in specs.items():
        if name not in place:
            prefix = _prefix_of(name, last)
            at = place.get(home.get(name, ""))
            place[name] = last[prefix] if at is None or existing[at][1].prefix != prefix else at
            gained[place[name]][name] = spec
    shards = []
    for (file, header), new in zip(existing, gained, strict=True):
        held = {name: specs[name] for name in header.specs if name in specs} | new
        same = held == header.specs
        if held or same:
            changed = header if same else _header(held, header.metadata, header.prefix, canonical=False)
            shards.append(Shard(file, changed))
    return tuple(shards)


def split_shards(
    specs: Mapping[str, TensorSpec],
    *,
    max_shard_size: int | None,
    stem: str = "model",
    metadata: Mapping[str, str],
    component: str = "",
) -> tuple[Shard, ...]:
    """A fresh layout of `specs`: one file where it fits, else files filled in order.

    Args:
        specs: What to write, in order.
        max_shard_size: The most bytes of tensors in one file; a larger tensor gets a file of its own. None: no limit.
        stem: What the file names start with.
        metadata: What each header carries.
        component: The component of a pipeline that all of them belong to, and are named after.
    Raises:
        CheckpointError: A name or the metadata cannot be stored in a safetensors file.
    Source: huggingface_hub 1.x, serialization/_base.py, split_state_dict_into_shards_factory, so that names and
        contents of the files are what `save_pretrained` would have given.
    """
    groups: list[dict[str, TensorSpec]] = []
    current: dict[str, TensorSpec] = {}
    filled = 0
    for name, spec in specs.items():
        if max_shard_size is not None and spec.nbytes > max_shard_size:
            groups.append({name: spec})
            continue
        if max_shard_size is not None and filled + spec.nbytes > max_shard_size:
            groups.append(current)
            current, filled = {}, 0
        current[name] = spec
        filled += spec.nbytes
    if current or not groups:
        groups.append(current)
    total = len(groups)
    names = [f"{stem}-{at:05d}-of-{total:05d}" for at in range(1, total + 1)] if total > 1 else [stem]
    folder, prefix = (f"{component}/", f"{component}.") if component else ("", "")
    return tuple(
        Shard(f"{folder}{name}.safetensors", _header(group, metadata, prefix))
        for name, group in zip(names, groups, strict=True)
    )


def by_component(specs: Mapping[str, TensorSpec], components: Sequence[str]) -> dict[str, dict[str, TensorSpec]]:
    """The tensors of each component of a pipeline.

    Raises:
        CheckpointError: A tensor is of none.
    """
    prefixes = {f"{component}.": component for component in components}
    found: dict[str, dict[str, TensorSpec]] = {component: {} for component in components}
    for name, spec in specs.items():
        found[prefixes[_prefix_of(name, prefixes)]][name] = spec
    return found


def _prefix_of(name: str, prefixes: Collection[str]) -> str:
    """The prefix of the files that a tensor can go into: its component's, or none where there are no components."""
    found = "" if "" in prefixes else name[: name.find(".") + 1]
    if found not in prefixes:
        raise CheckpointError(
            f"{name} — of no component of the pipeline",
            expected=f"a name that starts with {listed(prefixes, most=9)}",
            got=name,
            hint="a tensor is written into the folder of its component: name it after one",
        )
    return found


def _header(
    specs: Mapping[str, TensorSpec], metadata: Mapping[str, str], prefix: str, *, canonical: bool = True
) -> Header:
    """The header of a file whose names on disk lack the prefix that they have in `specs`."""
    if not prefix:
        return build_header(specs, metadata, canonical=canonical)
    bare = {name.removeprefix(prefix): spec for name, spec in specs.items()}
    return build_header(bare, metadata, canonical=canonical).under(prefix)


def index_bytes(shards: Sequence[Shard], metadata: Mapping[str, object]) -> bytes:
    """The index over `shards` of one folder, spelled as transformers writes it.

    Args:
        shards: The files.
        metadata: What the index says beside "total_size", the bytes of payload, which is always counted afresh.
    """
    total = sum(shard.header.payload for shard in shards)
    index = {
        "metadata": {**metadata, "total_size": total},
        "weight_map": {
            name.removeprefix(shard.header.prefix): shard.name.rpartition("/")[2]
            for shard in shards
            for name in shard.header.specs
        },
    }
    return (json.dumps(index, indent=2, sort_keys=True) + "\n").encode("ascii")


def index_still_right(existing: Sequence[tuple[str, Header]], shards: Sequence[Shard]) -> bool:
    """Whether the base's own index describes `shards`, so that its bytes can be copied: no header has changed."""
    before = [(name, header.raw) for name, header in existing]
    return before == [(shard.name, shard.header.raw) for shard in shards]


def parse_size(given: int | str) -> int:
    """A number of bytes, as it is or spelled: "5GB", "512 MiB", "1.5gb".

    KB, MB, GB and TB are powers of 1000; KiB, MiB, GiB and TiB powers of 1024. Case does not matter.

    Raises:
        ConfigError: It is not a size of at least one byte.
    """
    match = _SIZE.fullmatch(given.strip()) if isinstance(given, str) else None
    unit = UNITS.get(match[2].upper()) if match else None
    spelled = int(Fraction(match[1]) * unit) if match and unit else 0
    size = given if isinstance(given, int) and not isinstance(given, bool) else spelled
    if size < 1:
        raise ConfigError(
            f"size {given!r}",
            expected="a number of bytes and a unit: KB, MB, GB, TB, KiB, MiB, GiB or TiB",
            got=f"{given!r}",
            hint="write 5GB or 512MiB",
        )
    return size
