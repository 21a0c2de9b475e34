"""One working folder that goes from alpha to alpha, for those who have no room for an output of each.

Verb floor, below `sweeping`. Only what tuning touches is written again; the best is published, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import replace
from pathlib import Path

from wiseft_core.errors import CheckpointError, EvaluationFailed
from wiseft_core.evaluation import Evaluation, best
from wiseft_core.jobs import Job, report_of
from wiseft_core.judging import Judge, SweepReport, changed, state_of
from wiseft_core.offline import run_tasks, staging_for, write_beside
from wiseft_core.record import manifest_of
from wiseft_core.running import Run
from wiseft_core.statedict import StateDict
from wiseft_core.store.manifest import MANIFEST
from wiseft_core.store.publish import Staging
from wiseft_core.store.shards import Shard
from wiseft_core.store.writer import ShardWriter, write_file
from wiseft_core.tasks import Target


def keep_best(job: Job, out: Path, run: Run, judge: Judge) -> SweepReport:
    """Make, evaluate and keep one output at a time; publish the best.

    Args:
        job: A job with a view for each folder.
        out: The folder to make.
        run: How it is run.
        judge: What is asked of each output, a metric at least.
    Raises:
        EvaluationFailed: Every evaluation failed.
        CheckpointError: The evaluation changed the weights of the output that it was to read.
        InputChanged: An input changed meanwhile.
    """
    evaluations = list[Evaluation]()
    with staging_for(job, out, run, resume=False) as staging:
        work = _Work(job, staging, run)
        for folder in job.views:
            work.become(folder)
            evaluations.append(judge.judged(folder.removeprefix("alpha-"), work.folder, work.shards, run.files))
            work.check()
        winner = best(evaluations, judge.metrics[0])
        if winner is None or winner.folder is None:
            EvaluationFailed.raise_all([error for one in evaluations if (error := one.error) is not None])
            raise TypeError("an evaluation without metrics has an error")
        work.become(winner.folder)
        sizes = work.finish()
        found = tuple(one if one is winner else replace(one, folder=None) for one in evaluations)
        judge.write(staging.folder, found, run.files, run.sync)
        staging.publish()
    judge.draw(found, run.files, run.sync)
    report = report_of(job, out / winner.folder, sizes)
    return SweepReport(str(out), (report,), found, judge.metrics, judge.command)


class _Work:
    """The working folder: which output it is now, and how it becomes another."""

    def __init__(self, job: Job, staging: Staging, run: Run) -> None:
        self._job, self._staging, self._run = job, staging, run
        self._now, self.shards = "", [shard.name for shard in job.shards]
        self._seen: Mapping[str, tuple[int, ...]] = {}

    @property
    def folder(self) -> Path:
        """Where the output is that it is now."""
        return self._staging.folder / self._now

    def become(self, folder: str) -> None:
        """Make it the output of another folder: all weights at first, then the touched tensors only."""
        if folder == self._now:
            return
        place, files, view = self._staging.folder / folder, self._run.files, self._job.views[folder]
        touched: Set[str] | None = None
        if self._now:
            files.rename(self.folder, place)
            touched = view.plan.bindings.keys() if isinstance(view, StateDict) else frozenset()
        else:
            for below in dict.fromkeys((place / shard.name).parent for shard in self._job.shards):
                files.make_folders(below)
        self._now = folder
        targets = [
            [Target(self._open(shard, touched), view)]
            for shard in self._job.shards
            if touched is None or not touched.isdisjoint(shard.header.specs)
        ]
        with self._job.watched():
            self._fill(targets, touched)
            self._write_beside()
        self._seen = self._look()

    def _open(self, shard: Shard, touched: Set[str] | None) -> ShardWriter:
        """A new shard, or one to write some tensors of again."""
        if touched is None:
            return ShardWriter(self.folder / shard.name, shard.header, self._run.files, digested=False)
        return ShardWriter.again(self.folder / shard.name, shard.header, self._run.files, touched)

    def _fill(self, targets: list[list[Target]], touched: Set[str] | None) -> None:
        """Run the tasks; whatever happens, no descriptor stays open."""
        try:
            run_tasks(targets, ShardWriter.pause, self._run, touched)
        finally:
            for (target,) in targets:
                target.writer.abort()

    def _write_beside(self) -> dict[str, tuple[int, str]]:
        """Put the files beside the weights there, and nothing else: an evaluation may have left or changed some."""
        self._clear("")
        return write_beside(self._job, self.folder, self._run)

    def _clear(self, below: str) -> None:
        """Remove everything in a folder but the shards, which of a pipeline lie in folders of their own."""
        for entry in self._run.files.list_folder(self.folder / below):
            name = below + entry
            if any(shard.startswith(f"{name}/") for shard in self.shards):
                self._clear(f"{name}/")
            elif name not in self.shards:
                self._run.files.remove(self.folder / name)

    def check(self) -> None:
        """Refuse to go on where somebody else has written to the weights."""
        if self._look() != self._seen:
            raise changed(CheckpointError, self.folder)

    def _look(self) -> dict[str, tuple[int, ...]]:
        """What would tell that somebody had."""
        return state_of(self.folder, self.shards, self._run.files)

    def finish(self) -> dict[str, int]:
        """Make it a whole output with its manifest, without what an evaluation left in it; the size of each file."""
        files, sync = self._run.files, self._run.sync
        writers = [ShardWriter.again(self.folder / one.name, one.header, files, ()) for one in self._job.shards]
        try:
            written = {
                str(writer.path.relative_to(self.folder)): (writer.header.size, writer.finish(sync))
                for writer in writers
            }
        finally:
            for writer in writers:
                writer.abort()
        with self._job.watched():
            written |= self._write_beside()
        manifest = manifest_of(self._job.views[self._now], written, files, synced=sync)
        write_file(self.folder / MANIFEST, manifest, files, sync)
        return {name: size for name, (size, _) in written.items()}
