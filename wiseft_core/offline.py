"""From a state dict to a checkpoint on disk: plan, tasks, publish.

Verb floor, the only one that writes. Untouched tensors are copied by the kernel, touched ones computed tile by tile;
the output appears under its name complete, or not at all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from blake3 import blake3
from torch import Tensor

from wiseft_core import dtypes, executors
from wiseft_core.errors import CheckpointError, ConfigError, NotFinite, listed
from wiseft_core.record import check_resumable, finished, job_of, manifest_of, other_job, places, sources
from wiseft_core.report import Report
from wiseft_core.sources import BaseLike, Memory, Source, as_source
from wiseft_core.statedict import StateDict
from wiseft_core.store.checkpoint import Checkpoint
from wiseft_core.store.files import FILES, Files, read_file
from wiseft_core.store.manifest import MANIFEST, Manifest
from wiseft_core.store.publish import Staging
from wiseft_core.store.shards import Shard, index_bytes, index_still_right, keep_shards, parse_size, split_shards
from wiseft_core.store.sidecars import Sidecars, copy_sidecar, plan_sidecars
from wiseft_core.store.strict_json import as_mapping, read_json
from wiseft_core.store.writer import ShardWriter, digest_file, write_file
from wiseft_core.tasks import Counter, Progress, compare, fill

INDEX_FILE: Final = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class Job:
    """All that is decided before a byte is written: the shards of the output and where each tensor comes from."""

    view: StateDict | Source
    shards: tuple[Shard, ...]
    like: Checkpoint | None
    sidecars: Sidecars
    index: bytes | None


def save_checkpoint(
    state_dict: Mapping[str, Tensor],
    path: str | os.PathLike[str],
    *,
    like: BaseLike | None = None,
    max_shard_size: int | str | None = None,
    copy_code: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
    sync: bool = True,
    resume: bool = False,
    max_bytes: int | str | None = None,
) -> Report:
    """Write weights as a folder of safetensors files, complete or not at all.

    A view over a checkpoint keeps that checkpoint's shards, header bytes and the files beside them; where nothing
    touches a tensor its bytes are copied by the kernel and never decoded. The manifest `wiseft.json` is the commit
    record. Memory does not grow with the model.

    Args:
        state_dict: What `interpolate` gave, or any mapping of names to tensors.
        path: The output folder: absent or empty, and neither inside nor around an input.
        like: A checkpoint or its path whose shards, metadata and sidecar files to follow; None: the view's own base.
        max_shard_size: Cut new shards of at most this many bytes ("5GB"); None: keep those that there are.
        copy_code: Also copy *.py files that lie beside the base's weights.
        threads: Threads that compute; None: as many as there are processors. The bits do not depend on it.
        progress: Told of bytes done and bytes in all.
        sync: Force everything to disk before publishing; without, the manifest does not claim it.
        resume: Keep what is finished if the run stops, and go on where a stopped run of the same job was: shards that
            have their digest still are not computed again. A finished output of the same job, compared with it byte for
            byte, is left as it is.
        max_bytes: Refuse, before anything is written, an output with more bytes of weights than this ("200GB").
    Returns:
        What was written, and which files beside the base were left out.
    Raises:
        CheckpointError: `path` is not absent or empty, or overlaps an input.
        ConfigError: What is to be resumed is another job (another input, alpha, policy or version), or the output would
            be larger than `max_bytes`.
        Fault: The operating system failed a call: no space, no permission, an I/O error. No output is left.
        InputChanged: An input changed while it was read. No output is left.
        Locked: Another process writes to the same output.
        NotFinite: A result is not finite, or does not fit its dtype. No output is left.
    """
    out, files = Path(path), FILES
    job = _plan_job(state_dict, like, max_shard_size, copy_code, files)
    inputs = [*sources(job.view), *([] if job.like is None else [job.like])]
    _check_size(job, max_bytes)
    if resume:
        check_resumable(job.view)
    identity = job_of(job.view, [shard.header.raw for shard in job.shards], files, synced=sync) if resume else None
    there = finished(out, job.view, files, synced=sync) if resume and out.is_dir() else None
    if there is not None:
        _check_same(job, out, there, inputs, files, threads or executors.default_threads(), progress)
        Staging(out, files, sync=sync, inputs=()).settle()
        return _report(job, out, {}, "this job is finished already: nothing was written")
    overlap = [place for source in inputs for place in places(source)]
    with Staging(out, files, sync=sync, inputs=overlap, job=identity) as staging:
        try:
            digests = _write_shards(job, staging, files, threads or executors.default_threads(), progress, sync)
        except (CheckpointError, NotFinite):
            for source in inputs:  # what ends early or is not finite now, and was not when planned, has changed
                source.check_unchanged()
            raise
        digests |= _write_beside(job, staging.folder, files, sync)
        for source in inputs:
            source.check_unchanged()
        write_file(staging.folder / MANIFEST, manifest_of(job.view, digests, files, synced=sync), files, sync)
        staging.publish()
    return _report(job, out, {name: size for name, (size, _) in digests.items()})


def _plan_job(
    state_dict: Mapping[str, Tensor],
    like: BaseLike | None,
    max_shard_size: int | str | None,
    copy_code: bool,
    files: Files,
) -> Job:
    """Decide shards, headers, sidecars and index from specs alone."""
    bound = state_dict.bound if isinstance(state_dict, StateDict) else None
    source: Source = bound.base if bound is not None else Memory(state_dict)
    specs = bound.plan.outputs if bound is not None else source.specs
    followed = as_source(like) if like is not None else source
    model = followed if isinstance(followed, Checkpoint) else None
    homes = bound.plan.homes if bound is not None else {}
    if model is not None and max_shard_size is None:
        missing = [name for name in model.specs if name not in specs]
        if missing:
            raise ConfigError(
                f"{listed(missing)} — in `like`, and not in what is to be written",
                expected="every tensor of the checkpoint whose shards are to be kept",
                got=f"{len(missing)} missing",
                hint="pass max_shard_size to cut new shards instead",
            )
        shards = keep_shards([(file.name, file.header) for file in model.files], specs, homes)
    else:
        metadata = model.metadata() if model is not None else {"format": "pt"}
        limit = parse_size(max_shard_size) if isinstance(max_shard_size, str) else max_shard_size
        shards = split_shards(specs, max_shard_size=limit, metadata=metadata)
    adapter = bound.adapter if bound is not None and isinstance(bound.adapter, Checkpoint) else None
    taken = [*(file.name for file in model.files), *filter(None, [model.index_name])] if model is not None else []
    sidecars = plan_sidecars(
        model.folder if model is not None else None,
        adapter.path.parent if adapter is not None else None,
        copy_code=copy_code,
        taken=taken,
        files=files,
    )
    view = state_dict if isinstance(state_dict, StateDict) else source
    return Job(view, shards, model, sidecars, _index(shards, model, files))


def _index(shards: Sequence[Shard], like: Checkpoint | None, files: Files) -> bytes | None:
    """The index of the output: the followed one's own bytes where they are still right, None for a single file."""
    if like is None or like.index_name is None:
        return index_bytes(shards, {}) if len(shards) > 1 else None
    if like.folder is not None and index_still_right([(file.name, file.header) for file in like.files], shards):
        return read_file(like.folder / like.index_name, files)
    gained = sum(len(shard.header.specs) for shard in shards) != len(like.specs)
    # transformers' count of parameters is theirs to make: it is kept only while it is still right.
    kept = {key: value for key, value in like.index_metadata.items() if not (gained and key == "total_parameters")}
    return index_bytes(shards, kept)


def _check_size(job: Job, limit: int | str | None) -> None:
    """Refuse an output that is larger than was allowed: a small adapter can ask for a huge one."""
    most = parse_size(limit) if isinstance(limit, str) else limit
    size = sum(shard.header.size for shard in job.shards)
    if most is not None and size > most:
        raise ConfigError(
            "the size of the output",
            expected=f"at most {most} bytes, as was asked for",
            got=f"{size} bytes of weights",
            hint="allow more, or look at the base: is it the one that was meant?",
        )


def _check_same(
    job: Job,
    out: Path,
    there: Manifest,
    inputs: Sequence[Checkpoint],
    files: Files,
    threads: int,
    progress: Progress | None,
) -> None:
    """Refuse a whole output that is not, byte for byte, what this job would write: nothing else tells two bases apart.

    Raises:
        ConfigError: It is the output of another job.
        InputChanged: An input changed while it was compared.
    """
    shards, beside = {shard.name for shard in job.shards}, _digests_beside(job, files)
    if beside != {entry.file: entry.blake3 for entry in there.outputs if entry.file not in shards}:
        raise other_job(out, "other files, or other content of a file beside the weights")
    try:
        compare(job.shards, out, job.view, files, threads, progress)
    except (CheckpointError, NotFinite) as error:
        for source in inputs:
            source.check_unchanged()
        raise other_job(out, f"{error.where}: {error.got}") from error


def _digests_beside(job: Job, files: Files) -> dict[str, str]:
    """The digest that index and sidecar files would have, by file name."""
    digests = {}
    if job.index is not None:
        digests[_index_name(job)] = blake3(job.index).hexdigest()
    for name, source in job.sidecars.copies:
        replace = _new_config(source, job.view) if name == "config.json" else None
        descriptor = files.open_read(source)
        try:
            size = files.identity(descriptor)[2]
            own = digest_file(descriptor, size, files, source) if replace is None else blake3(replace).hexdigest()
            digests[name] = own
        finally:
            files.close(descriptor)
    return digests


def _index_name(job: Job) -> str:
    """The file name of the output's index."""
    return job.like.index_name if job.like is not None and job.like.index_name else INDEX_FILE


def _write_shards(
    job: Job, staging: Staging, files: Files, threads: int, progress: Progress | None, sync: bool
) -> dict[str, tuple[int, str]]:
    """Write every shard that is not finished; size and digest of each, by file name."""
    digests = dict(staging.finished)
    writers: list[ShardWriter] = []
    try:
        # All space is reserved before anything is computed, so that a full disk is met first.
        for shard in job.shards:
            if shard.name not in digests:
                writers.append(ShardWriter(staging.folder / shard.name, shard.header, files))
        done = Counter(progress, sum(writer.header.payload for writer in writers))

        def finish(writer: ShardWriter) -> None:
            digests[writer.path.name] = writer.finish(sync)
            staging.record(writer.path.name, digests[writer.path.name])

        with ThreadPoolExecutor(threads) as pool:
            executors.run(fill(writers, job.view, done, finish), pool, window=2 * threads)
    except BaseException:
        for writer in writers:
            writer.abort()
        raise
    return {shard.name: (shard.header.size, digests[shard.name]) for shard in job.shards}


def _write_beside(job: Job, folder: Path, files: Files, sync: bool) -> dict[str, tuple[int, str]]:
    """Write index and sidecar files; size and digest of each, by file name."""
    written = {}
    if job.index is not None:
        name = _index_name(job)
        written[name] = (len(job.index), write_file(folder / name, job.index, files, sync))
    for name, source in job.sidecars.copies:
        replace = _new_config(source, job.view) if name == "config.json" else None
        written[name] = copy_sidecar(source, folder / name, files, sync, replace)
    return written


def _new_config(source: Path, view: StateDict | Source) -> bytes | None:
    """config.json with the dtype that was asked for, None where its bytes stay."""
    asked = view.bound.output_dtype if isinstance(view, StateDict) else None
    if asked is None:
        return None
    config = as_mapping(read_json(source), str(source))
    name = str(dtypes.TORCH_DTYPES[asked]).removeprefix("torch.")
    changed = {key: name for key in ("dtype", "torch_dtype") if key in config}
    return (json.dumps({**config, **changed}, indent=2, ensure_ascii=False) + "\n").encode()


def _report(job: Job, out: Path, sizes: Mapping[str, int], *notes: str) -> Report:
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
