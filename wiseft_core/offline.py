"""From a state dict to a checkpoint on disk: plan, tasks, publish.

Verb floor, the only one that writes models. Untouched tensors are copied as they are, touched ones computed tile by
tile; the output appears under its name complete, or not at all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from wiseft_core import executors, loops, ranges
from wiseft_core.errors import CheckpointError, NotFinite
from wiseft_core.excerpts import check_sendable
from wiseft_core.executors import Task
from wiseft_core.jobs import Job, check_size, digests_beside, plan_job, report_of
from wiseft_core.record import check_resumable, finished, job_of, manifest_of, other_job, places
from wiseft_core.report import Report
from wiseft_core.running import Run
from wiseft_core.sources import BaseLike, Source
from wiseft_core.statedict import StateDict
from wiseft_core.store.checker import ShardChecker
from wiseft_core.store.files import FILES, Files
from wiseft_core.store.manifest import MANIFEST, Manifest
from wiseft_core.store.publish import Staging
from wiseft_core.store.shards import Shard
from wiseft_core.store.sidecars import copy_sidecar
from wiseft_core.store.writer import ShardWriter, write_file
from wiseft_core.tasks import Counter, Progress, Target, fill

if TYPE_CHECKING:
    from torch import Tensor

Written = Mapping[str, tuple[int, str]]
"""Size and digest of each file, by its name in the output."""


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
    memory: int | str | None = None,
    executor: Executor | None = None,
) -> Report:
    """Write weights as a folder of safetensors files, complete or not at all.

    A view over a checkpoint keeps that checkpoint's shards, header bytes and the files beside them; where nothing
    touches a tensor its bytes are copied as they are and never decoded. The manifest `wiseft.json` is the commit
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
        memory: Use fewer threads where the process would need more resident memory than this ("512MB"), which
            includes what it has now. The bits do not depend on it.
        executor: Who computes, in the place of threads of this process: a ThreadPoolExecutor, a ProcessPoolExecutor,
            Dask's `client.get_executor()`, or anything of `concurrent.futures`' interface. Other processes read the
            inputs and write the output by its paths, on a file system that all share; both are published from here. The
            bits do not depend on it.
    Returns:
        What was written, and which files beside the base were left out.
    Raises:
        CheckpointError: `path` is not absent or empty, or overlaps an input.
        ConfigError: What is to be resumed is another job (another input, alpha, policy or version), or the output would
            be larger than `max_bytes`, or one thread needs more than `memory`, or tensors in memory are to be computed
            by other processes.
        Fault: The operating system failed a call: no space, no permission, an I/O error; or the executor lost its
            workers. No output is left.
        InputChanged: An input changed while it was read. No output is left.
        Locked: Another process writes to the same output.
        NotFinite: A result is not finite, or does not fit its dtype. No output is left.
    """
    out, run = Path(path), Run.of(FILES, threads, progress, sync, executor, memory)
    job = plan_job({"": state_dict}, like, max_shard_size, copy_code, run.files)
    check_job(job, run, max_bytes)
    run = run.within(memory, job)
    if is_finished(job, out, run, resume=resume):
        return report_of(job, out, {}, "this job is finished already: nothing was written")
    with staging_for(job, out, run, resume=resume) as staging:
        written = write_outputs(job, staging, run)
        staging.publish()
    return report_of(job, out, {name: size for name, (size, _) in written[""].items()})


def check_job(job: Job, run: Run, max_bytes: int | str | None, *, outputs: int = 1) -> None:
    """Refuse an output that is larger than was allowed, and a job that its executor cannot do."""
    check_size(job, max_bytes, outputs=outputs)
    if run.is_sent:
        check_sendable(list(job.views.values()))


def is_finished(job: Job, out: Path, run: Run, *, resume: bool) -> bool:
    """Whether a job that may be resumed is found whole at OUT; what a stopped run left beside it is removed.

    Raises:
        ConfigError: It cannot be resumed, or what is at OUT is of another job.
        InputChanged: An input changed while it was compared.
    """
    if resume:
        check_resumable(job.view)
    if not (resume and out.is_dir()):
        return False
    for folder, view in job.views.items():
        there = finished(out / folder, view, run.files, synced=run.sync)
        if there is None:
            return False
        _check_same(job, folder, out, there, run)
    Staging(out, run.files, sync=run.sync, inputs=()).settle()
    return True


def _check_same(job: Job, folder: str, out: Path, there: Manifest, run: Run) -> None:
    """Refuse a whole output that is not, byte for byte, what this job would write: nothing else tells two bases apart.

    Raises:
        ConfigError: It is the output of another job.
        InputChanged: An input changed while it was compared.
    """
    shards, beside = {shard.name for shard in job.shards}, digests_beside(job, run.files)
    if beside != {entry.file: entry.blake3 for entry in there.outputs if entry.file not in shards}:
        raise other_job(out / folder, "other files, or other content of a file beside the weights")
    try:
        with job.watched():
            _compare(job.shards, out / folder, job.views[folder], run.files, run.threads, run.progress)
    except (CheckpointError, NotFinite) as error:
        raise other_job(out / folder, f"{error.where}: {error.got}") from error


def staging_for(job: Job, out: Path, run: Run, *, resume: bool) -> Staging:
    """The place where the outputs of a job are made."""
    overlap = [place for source in job.inputs() for place in places(source)]
    identity = None
    if resume:
        headers = [shard.header.raw for shard in job.shards]
        identity = b"".join(
            folder.encode() + job_of(view, headers, run.files, synced=run.sync) for folder, view in job.views.items()
        )
    return Staging(out, run.files, sync=run.sync, inputs=overlap, job=identity)


def write_outputs(job: Job, staging: Staging, run: Run) -> dict[str, Written]:
    """Write every output of a job into the staging folder, each with its manifest; what was written, by folder.

    Raises:
        InputChanged: An input changed while it was read.
        WiseftError: As for `save_checkpoint`.
    """
    with job.watched():
        digests = _write_shards(job, staging, run)
        written: dict[str, Written] = {
            folder: digests[folder] | write_beside(job, staging.folder / folder, run) for folder in job.views
        }
    for folder, view in job.views.items():
        manifest = manifest_of(view, written[folder], run.files, synced=run.sync)
        write_file(staging.folder / folder / MANIFEST, manifest, run.files, run.sync)
    return written


def _write_shards(job: Job, staging: Staging, run: Run) -> dict[str, dict[str, tuple[int, str]]]:
    """Write every shard that is not finished; size and digest of each, by folder and file name."""
    digests, targets = dict(staging.finished), list[list[Target]]()
    for place in dict.fromkeys(Path(view, shard.name).parent for view in job.views for shard in job.shards):
        if place != Path():
            run.files.make_folders(staging.folder / place)
    try:
        # All space is reserved before anything is computed, so that a full disk is met first.
        for shard in job.shards:
            same, group = job.file_like(shard), list[Target]()
            targets.append(group)
            for folder, view in job.views.items():
                if str(Path(folder, shard.name)) not in digests:
                    path = staging.folder / folder / shard.name
                    writer = ShardWriter(path, shard.header, run.files, same, digested=not run.is_sent, synced=run.sync)
                    group.append(Target(writer, view))

        def finished(writer: ShardWriter, digest: str) -> None:
            name = str(writer.path.relative_to(staging.folder))
            digests[name] = digest
            staging.record(name, digest)

        if run.is_sent and run.executor is not None:
            done = Counter(run.progress, _to_write(targets))
            ranges.fill([group for group in targets if group], run.executor, done, finished, sync=run.sync)
        else:
            run_tasks(targets, lambda writer: finished(writer, writer.finish(run.sync)), run)
    except BaseException:
        for target in chain.from_iterable(targets):
            target.writer.abort()
        raise
    return {
        folder: {shard.name: (shard.header.size, digests[str(Path(folder, shard.name))]) for shard in job.shards}
        for folder in job.views
    }


def run_tasks(
    targets: Sequence[Sequence[Target]], finish: Callable[[ShardWriter], None], run: Run, only: Set[str] | None = None
) -> None:
    """Fill shards that are open, and finish each; arguments as for `tasks.fill`."""
    every = list(chain.from_iterable(targets))
    cloned = [target.writer for target in every if target.writer.is_whole]
    rest = [[target for target in group if not target.writer.is_whole] for group in targets]
    done = Counter(run.progress, _to_write(rest, only))
    is_due = loops.expect(_to_compute(rest))
    lanes: Iterable[Iterator[Task]] = chain(
        [iter([loops.load])] if is_due else [],
        (iter([partial(finish, writer)]) for writer in cloned),
        fill([group for group in rest if group], done, finish, only=only, copies_first=is_due),
    )
    if isinstance(run.executor, ThreadPoolExecutor):
        executors.run(lanes, run.executor, window=2 * run.executor._max_workers)
        return
    with ThreadPoolExecutor(run.threads) as pool:
        executors.run(lanes, pool, window=2 * run.threads)


def _to_write(targets: Sequence[Sequence[Target]], only: Set[str] | None = None) -> int:
    """Bytes of payload that are still to be written."""
    return sum(
        spec.nbytes
        for target in chain.from_iterable(targets)
        if not target.writer.is_whole
        for name, spec in target.writer.header.specs.items()
        if only is None or name in only
    )


def _to_compute(targets: Sequence[Sequence[Target]]) -> int:
    """About how many elements are still to be computed; counted no further than what compiled loops are loaded for."""
    views = {id(target.view): target.view for target in chain.from_iterable(targets)}
    return sum(view.bound.work(loops.AFTER) for view in views.values() if isinstance(view, StateDict))


def _compare(
    shards: Sequence[Shard],
    folder: Path,
    view: StateDict | Source,
    files: Files,
    threads: int,
    progress: Progress | None,
) -> None:
    """Compare the shards in a folder with what would be written; nothing is.

    Raises:
        CheckpointError: One is missing, or has another byte.
        WiseftError: As for what would be written.
    """
    targets: list[Target] = []
    done = Counter(progress, sum(shard.header.payload for shard in shards))
    try:
        for shard in shards:
            targets.append(Target(ShardChecker(folder / shard.name, shard.header, files), view))
        with ThreadPoolExecutor(threads) as pool:
            executors.run(fill([[target] for target in targets], done, ShardWriter.abort), pool, window=2 * threads)
    finally:
        for target in targets:
            target.writer.abort()


def write_beside(job: Job, folder: Path, run: Run) -> dict[str, tuple[int, str]]:
    """Write index and sidecar files; size and digest of each, by file name."""
    written = {}
    for name, content in job.indexes.items():
        written[name] = (len(content), write_file(folder / name, content, run.files, run.sync))
    for name, source in job.sidecars.copies:
        replace = job.replacement(name, source)
        written[name] = copy_sidecar(source, folder / name, run.files, run.sync, replace)
    return written
