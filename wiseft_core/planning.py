"""The verb that reads headers, and two tensors that may be one: what would be done, and why not.

Verb floor; torch is not imported for paths and checkpoints.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from wiseft_core.binding import bind
from wiseft_core.bonds import Agree, joined_names
from wiseft_core.config import AdapterConfig
from wiseft_core.errors import show
from wiseft_core.families import FAMILIES, Family
from wiseft_core.models import Config, Models, all_bonds
from wiseft_core.plans import Plan
from wiseft_core.sources import Adapter, BaseLike, Memory, Source, Tuned, as_source, as_tuned, hold_same
from wiseft_core.store.checkpoint import Checkpoint
from wiseft_core.types import parse_dtype
from wiseft_core.vocabulary import stem

if TYPE_CHECKING:
    import torch


def plan(
    base: BaseLike,
    adapter: Adapter | BaseLike,
    *,
    config: AdapterConfig | Mapping[str, object] | None = None,
    base_config: Mapping[str, object] | None = None,
    tied: str = "untie",
    output_dtype: torch.dtype | str | None = None,
    families: Mapping[str, Family] = FAMILIES,
) -> Plan:
    """What goes where, by which rule, and how many bytes: from headers and configs alone.

    But where a base stores an embedding and a head that its config may tie, and tuning touches one of them, their
    values say whether they are one tensor: those two are read, up to the first difference.

    Args:
        base: As for `interpolate`.
        adapter: As for `interpolate`.
        config: As for `interpolate`: it wins over the one that the adapter brings.
        base_config: As for `interpolate`.
        tied: As for `interpolate`.
        output_dtype: As for `interpolate`.
        families: As for `interpolate`.
    Raises:
        WiseftError: Everything that `interpolate` refuses before it reads a value.
    """
    source = as_source(base)
    tuned = as_tuned(adapter, config, source, families)
    dtype = parse_dtype(output_dtype)
    return bind_sources(source, tuned, base_config=base_config, tied=tied, output_dtype=dtype, families=families)


def bind_sources(
    source: Source,
    tuned: Tuned,
    *,
    base_config: Mapping[str, object] | None,
    tied: str,
    output_dtype: str | None,
    families: Mapping[str, Family],
    apart: Collection[str] = (),
    agree: Agree | None = None,
) -> Plan:
    """`bind` for opened sources: the base's own config.json is used where none is given, and its own values.

    Raises:
        WiseftError: As for `bind`.
    """
    read = source.config if isinstance(source, Checkpoint) else None
    found = bind(
        source.specs,
        tuned.source.specs,
        config=tuned.config,
        base_config=base_config if base_config is not None else read,
        shared=source.shared() if isinstance(source, Memory) else (),
        complete=tuned.complete,
        twins=_twins(tuned.source) if tuned.complete else (),
        output_dtype=output_dtype,
        tied=tied,
        apart=apart,
        agree=agree or partial(hold_same, source),
        known=tuned.links,
        components=_configs(source, base_config),
        families=families,
    )
    return replace(found, notes=(*found.notes, *_doubts(source, tuned, base_config)))


def _twins(tuned: Source) -> list[frozenset[str]]:
    """The names of a full checkpoint that are one tensor: they share memory, or its own config.json ties them."""
    if isinstance(tuned, Memory):
        return list(tuned.shared())
    models = Models(tuned.config, _configs(tuned, None)) if isinstance(tuned, Checkpoint) else Models(None)
    return joined_names(all_bonds(tuned.specs, models, (), (), "untie", complete=True))


def _doubts(source: Source, tuned: Tuned, base_config: Config) -> Iterator[str]:
    """What speaks against this base: it is the tuned one, or the adapter names another one, or another model class."""
    if (files := _inodes(source)) and files == _inodes(tuned.source):
        yield "base and tuned model are the same files: nothing changes at any alpha"
    config = tuned.config
    if config is None:
        return
    here = named(source.path) if isinstance(source, Checkpoint) else ""
    said = (config.base_model or "").rstrip("/").rpartition("/")[2]
    if here and said and here != said:
        yield f"the adapter says that it was trained on {show(config.base_model)}; this base is called {show(here)}"
    read = base_config if base_config is not None or not isinstance(source, Checkpoint) else source.config
    classes, trained = (read or {}).get("architectures"), config.trained_class
    if isinstance(classes, list) and classes and isinstance(trained, str) and stem(str(classes[0])) != stem(trained):
        yield f"the adapter says that it was trained on a {show(trained)}; this base is a {show(classes[0])}"


def _inodes(source: Source) -> set[tuple[int, int]]:
    """What tells the files of a checkpoint from those of another; nothing for what is in memory."""
    files = source.files if isinstance(source, Checkpoint) else ()
    seen = (os.fstat(file.descriptor) for file in files)
    return {(one.st_dev, one.st_ino) for one in seen}


def named(path: Path) -> str:
    """What a checkpoint is called: its folder, or its repository in a Hugging Face cache."""
    parts = path.absolute().parts
    if "snapshots" in parts[1:]:
        return parts[parts.index("snapshots") - 1].rpartition("--")[2]
    return path.absolute().stem if path.suffix == ".safetensors" else path.absolute().name


def _configs(source: Source, given: Config) -> dict[str, Config]:
    """The config.json of each component of a pipeline, or the one that is given; empty for any other base."""
    if not isinstance(source, Checkpoint):
        return {}
    return {name: given if given is not None else source.configs.get(name) for name in source.components}
