"""What is decided before a byte is written: shards, headers, index, and the files beside them.

Verb floor, below `offline`: from specs and folders alone. Outputs at several alphas share one job.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Final

from blake3 import blake3

from wiseft_core.bound import Bound
from wiseft_core.errors import CheckpointError, ConfigError, NotFinite, listed
from wiseft_core.record import folder_of, sources
from wiseft_core.report import Report
from wiseft_core.sources import BaseLike, Memory, Source, as_source
from wiseft_core.statedict import StateDict
from wiseft_core.store.checkpoint import CONFIG_FILE, Checkpoint
from wiseft_core.store.files import Files, read_file
from wiseft_core.store.locate import stem_of
from wiseft_core.store.reader import TensorFile
from wiseft_core.store.shards import (
    Shard,
    by_component,
    index_bytes,
    index_still_right,
    keep_shards,
    parse_size,
    split_shards,
)
from wiseft_core.store.sidecars import Sidecars, plan_sidecars
from wiseft_core.store.strict_json import as_mapping, read_json
from wiseft_core.store.writer import digest_file
from wiseft_core.types import TORCH_NAMES, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

INDEX_SUFFIX: Final = ".safetensors.index.json"


@dataclass(frozen=True, slots=True)
class Job:
    """All that is decided before a byte is written.

    Attributes:
        views: What to write, by the folder below OUT that it goes to; "" for OUT itself. Several are views over one
            binding, and have the same shards, headers and files beside them.
        shards: The files of weights of each output.
        like: The checkpoint whose layout is followed.
        sidecars: The files that go along.
        indexes: The content of each index, by its name in the output: of a pipeline, each component may have one.
    """

    views: Mapping[str, StateDict | Source]
    shards: tuple[Shard, ...]
    like: Checkpoint | None
    sidecars: Sidecars
    indexes: Mapping[str, bytes]

    @property
    def view(self) -> StateDict | Source:
        """Any of the views, for what is the same in all."""
        return next(iter(self.views.values()))

    @property
    def config_files(self) -> frozenset[str]:
        """The names that the config of a model has in the output: of a pipeline, of each component."""
        components = self.like.components if self.like is not None else ()
        return frozenset(f"{component}/{CONFIG_FILE}" for component in components) or frozenset({CONFIG_FILE})

    def replacement(self, name: str, source: Path) -> bytes | None:
        """What a file beside the weights becomes in the output, None where its bytes stay."""
        component = name.rpartition("/")[0]
        return new_config(source, self.view, component) if name in self.config_files else None

    def inputs(self) -> list[Checkpoint]:
        """Every checkpoint on disk that is read from."""
        return [*sources(self.view), *([] if self.like is None else [self.like])]

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Refuse inputs that have changed by the end; one that fails to be read, or is not finite, may have changed.

        Raises:
            InputChanged: An input is not what it was when it was opened.
        """
        try:
            yield
        except (CheckpointError, NotFinite):
            self._check_unchanged()
            raise
        self._check_unchanged()

    def _check_unchanged(self) -> None:
        """Do nothing where every input is as it was when it was opened."""
        for source in self.inputs():
            source.check_unchanged()

    def file_like(self, shard: Shard) -> TensorFile | None:
        """The base's file that a shard is a copy of in every output, header and all."""
        views = [view for view in self.views.values() if isinstance(view, StateDict) and view.bound.base is self.like]
        for file in self.like.files if self.like is not None and views else ():
            if file.name == shard.name and file.header.raw == shard.header.raw:
                same = all(
                    view.is_copy(name) and view.bound.source(name)[1] == name
                    for name in shard.header.specs
                    for view in views
                )
                return file if same else None
        return None


def plan_job(
    views: Mapping[str, Mapping[str, Tensor]],
    like: BaseLike | None,
    max_shard_size: int | str | None,
    copy_code: bool,
    files: Files,
) -> Job:
    """Decide shards, headers, sidecars and index from specs alone."""
    first = next(iter(views.values()))
    bound = first.bound if isinstance(first, StateDict) else None
    source: Source = bound.base if bound is not None else Memory(first)
    specs = bound.plan.outputs if bound is not None else source.specs
    followed = as_source(like) if like is not None else source
    model = followed if isinstance(followed, Checkpoint) else None
    homes = bound.plan.homes if bound is not None else {}
    if model is not None and max_shard_size is None:
        missing = [name for name in model.specs if name not in specs]
        if missing and model is not source:  # what a plan leaves out of its own base it means to
            raise ConfigError(
                f"{listed(missing)} — in `like`, and not in what is to be written",
                expected="every tensor of the checkpoint whose shards are to be kept",
                got=f"{len(missing)} missing",
                hint="pass max_shard_size to cut new shards instead",
            )
        shards = keep_shards([(file.name, file.header) for file in model.files], specs, homes)
    else:
        limit = None if max_shard_size is None else parse_size(max_shard_size)
        shards = _fresh(specs, model, limit)
    taken = [*(file.name for file in model.files), *model.indexes] if model is not None else []
    sidecars = plan_sidecars(
        model.folder if model is not None else None,
        [] if bound is None else adapter_folders(bound),
        copy_code=copy_code,
        taken=taken,
        files=files,
        pipeline=model is not None and bool(model.components),
    )
    kept = {folder: view if isinstance(view, StateDict) else source for folder, view in views.items()}
    return Job(kept, shards, model, sidecars, _indexes(shards, model, files))


def _fresh(specs: Mapping[str, TensorSpec], model: Checkpoint | None, limit: int | None) -> tuple[Shard, ...]:
    """New shards, named as the model's files are, and of a pipeline in the folder of each component."""
    if model is None:
        return split_shards(specs, max_shard_size=limit, metadata={"format": "pt"})
    found = list[Shard]()
    for component, own in by_component(specs, model.components).items() if model.components else [("", specs)]:
        first = next(file for file in model.files if not component or file.name.startswith(f"{component}/"))
        found += split_shards(
            own,
            max_shard_size=limit,
            stem=stem_of(first.name),
            metadata=first.header.metadata,
            component=component,
        )
    return tuple(found)


def adapter_folders(bound: Bound) -> list[Path]:
    """The folders of the adapters that were opened from disk, of those that have one for themselves."""
    return [folder for part in bound.parts if (folder := folder_of(part.adapter)) is not None]


def _indexes(shards: Sequence[Shard], like: Checkpoint | None, files: Files) -> dict[str, bytes]:
    """The indexes of the output: the followed one's own bytes where they are still right, none for a single file."""
    found = dict[str, bytes]()
    for folder, group in groupby(shards, lambda shard: _folder(shard.name)):
        own = list(group)
        name = next((name for name in like.indexes if _folder(name) == folder), None) if like is not None else None
        if like is not None and name is not None:
            found[name] = _index(name, own, like, files)
        elif len(own) > 1:
            found[f"{folder}{stem_of(own[0].name)}{INDEX_SUFFIX}"] = index_bytes(own, {})
    return found


def _index(name: str, shards: Sequence[Shard], like: Checkpoint, files: Files) -> bytes:
    """The content of an index that the followed checkpoint has too, over the shards beside it."""
    before = [(file.name, file.header) for file in like.files if _folder(file.name) == _folder(name)]
    if like.folder is not None and index_still_right(before, shards):
        return read_file(like.folder / name, files)
    gained = sum(len(shard.header.specs) for shard in shards) != sum(len(header.specs) for _, header in before)
    # transformers' count of parameters is theirs to make: it is kept only while it is still right.
    kept = {key: value for key, value in like.indexes[name].items() if not (gained and key == "total_parameters")}
    return index_bytes(shards, kept)


def _folder(name: str) -> str:
    """What stands before a file's own name: nothing, or the component's folder."""
    return name[: name.rfind("/") + 1]


def check_size(job: Job, limit: int | str | None, *, outputs: int = 1) -> None:
    """Refuse an output that is larger than was allowed: a small adapter can ask for a huge one."""
    most = None if limit is None else parse_size(limit)
    size = sum(shard.header.size for shard in job.shards) * outputs
    if most is not None and size > most:
        raise ConfigError(
            "the size of the output",
            expected=f"at most {most} bytes, as was asked for",
            got=f"{size} bytes of weights",
            hint="allow more, or look at the base: is it the one that was meant?",
        )


def digests_beside(job: Job, files: Files) -> dict[str, str]:
    """The digest that index and sidecar files would have, by file name."""
    digests = {name: blake3(content).hexdigest() for name, content in job.indexes.items()}
    for name, source in job.sidecars.copies:
        replace = job.replacement(name, source)
        descriptor = files.open_read(source)
        try:
            size = files.identity(descriptor)[2]
            own = digest_file(descriptor, size, files, source) if replace is None else blake3(replace).hexdigest()
            digests[name] = own
        finally:
            files.close(descriptor)
    return digests


def new_config(source: Path, view: StateDict | Source, component: str = "") -> bytes | None:
    """config.json with the dtype that was asked for and what the plan changes, None where its bytes stay."""
    asked, edits = (view.bound.output_dtype, view.plan.config) if isinstance(view, StateDict) else (None, {})
    prefix = f"{component}." if component else ""
    edits = {path.removeprefix(prefix): value for path, value in edits.items() if path.startswith(prefix)}
    if asked is None and not edits:
        return None
    config = dict(as_mapping(read_json(source), str(source)))
    if asked is not None:
        name = TORCH_NAMES[asked]
        config |= {key: name for key in ("dtype", "torch_dtype") if key in config}
    for path, value in edits.items():
        config = _edited(config, path.split("."), value)
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()


def _edited(config: Mapping[str, object], path: Sequence[str], value: object) -> dict[str, object]:
    """A config with another value at a path; order and everything else stay."""
    first, *rest = path
    inner = config.get(first)
    return {**config, first: _edited(inner if isinstance(inner, Mapping) else {}, rest, value) if rest else value}


def report_of(job: Job, out: Path, sizes: Mapping[str, int], *notes: str) -> Report:
    """What was written."""
    plan = job.view.plan if isinstance(job.view, StateDict) else None
    return Report(
        path=str(out),
        tensors=sum(len(shard.header.specs) for shard in job.shards),
        touched=len(plan.bindings) if plan is not None else 0,
        new=tuple(plan.new) if plan is not None else (),
        bytes=sum(sizes.values()),
        files=tuple(sorted(sizes)),
        left_out=job.sidecars.left_out,
        notes=(*(plan.notes if plan is not None else ()), *notes),
    )
