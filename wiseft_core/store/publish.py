"""An output folder that is complete or absent, whatever happens on the way.

Store room. Everything is written into a private sibling of OUT, `.NAME.wiseft-staging/`, and appears as OUT by one
rename. A lock in the sibling keeps a second writer out and dies with the process, so that the leftovers of a run that
was killed are known for what they are, and the next run removes them.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Self

from wiseft_core.errors import CheckpointError, Fault, Locked, WiseftError
from wiseft_core.signals import signals_held
from wiseft_core.store.files import Files
from wiseft_core.store.journal import JOURNAL, Journal

_LOCK: Final = "lock"
_TRIES: Final = 100


class Staging:
    """A context in which an output is made; what is not published on leaving it is removed.

    Args:
        out: Where the output is to appear: a path where nothing is, or an empty folder.
        files: The seam to work through.
        sync: Force files and folders to disk.
        inputs: Device and inode of the folders and files that OUT must not be and must not lie in. (Being empty or
            absent, it contains none.)
        job: What decides the output's bytes, for a run that may be resumed: what it finishes is kept if it stops, and
            what an earlier run of the same job finished is used. None: start afresh, and keep nothing.
    Raises:
        CheckpointError: OUT is not empty, is or lies in an input, or has no folder to be in.
        ConfigError: A stopped run of another job is to be resumed.
        Locked: Somebody else is writing the same OUT.
        Fault: The operating system fails.
    """

    def __init__(
        self, out: Path, files: Files, *, sync: bool, inputs: Sequence[tuple[int, int]], job: bytes | None = None
    ) -> None:
        named = out.name not in ("", "..")
        # The name itself is not resolved: a link at OUT is refused, not followed.
        self.out = files.resolve(out.parent) / out.name if named else files.resolve(out)
        self._files, self._sync, self._inputs = files, sync, frozenset(inputs)
        self._shell = self.out.parent / f".{self.out.name}.wiseft-staging"
        self._journal = None if job is None else Journal(self._shell, job, files, sync=sync)
        self._descriptor: int | None = None
        self._published = False
        self.finished: dict[str, str] = {}
        """Digests of the shards that an earlier run of this job finished."""

    def record(self, name: str, digest: str) -> None:
        """Note that a shard is whole, for a run that resumes this one."""
        if self._journal is not None:
            self._journal.record(name, digest)

    @property
    def folder(self) -> Path:
        """The folder to write the output into."""
        return self._shell / "out"

    def __enter__(self) -> Self:
        self._check_place()
        self._check_free()
        try:
            with signals_held():  # a lock that nobody knows of yet would be kept until this process ends
                self._begin()
        except BaseException:
            with signals_held(), suppress(WiseftError, OSError):
                if self._descriptor is None:
                    self._files.rmdir(self._shell)  # ours and without a lock yet, or not empty
                self._leave()
            raise
        return self

    def _begin(self) -> None:
        """Take the lock, and make the folder to write into."""
        self._take()
        self._check_free()  # somebody may have finished the same OUT while we came for the lock
        if self._journal is not None:
            self.finished = self._journal.begin(self.folder)
        else:
            self._files.remove_tree(self.folder)  # what a run left that was killed
            self._files.mkdir(self.folder)

    def publish(self) -> None:
        """Make everything that was written appear as OUT, at once, and durably if `sync`.

        Raises:
            CheckpointError: Something came to be at OUT meanwhile.
            Fault: The operating system fails; OUT is not there then.
        """
        if self._sync:
            self._sync_folders(self.folder)
        try:
            self._files.rename(self.folder, self.out)
        except Fault as fault:
            if _code(fault) in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise self._in_the_way("something that came while we wrote") from fault
            raise
        if self._sync:
            try:
                self._files.fsync_folder(self.out.parent)
            except BaseException:
                with suppress(WiseftError, OSError):
                    self._files.rename(self.out, self.folder)
                raise
        self._published = True

    def settle(self) -> None:
        """End what a run left that was stopped after it had published: make OUT durable if `sync`, remove the rest.

        Raises:
            Locked: That run, or another, is at it still.
            Fault: The operating system fails.
        """
        if self._files.status(self._shell, follow=False) is None:
            return
        self._take()
        try:
            if self._sync:
                self._files.fsync_folder(self.out.parent)
            self._clean()
        finally:
            self._release()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep every other writer out while what was published is worked on, by the lock that made it.

        Raises:
            Locked: Somebody else holds it.
            Fault: The operating system fails.
        """
        try:
            with signals_held():
                self._take()
            yield
        finally:
            with signals_held(), suppress(WiseftError, OSError):  # leftovers spoil nothing: the next run removes them
                if self._descriptor is None:  # a folder that we made and could not lock goes, another's is not empty
                    self._files.rmdir(self._shell)
                self._clean()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            with signals_held():
                self._leave()
        except (WiseftError, OSError):
            # Neither the first error nor a finished output is spoilt by leftovers: the next run removes them.
            if kind is None and not self._published:
                raise
        finally:
            self._release()  # also where a signal came before the leaving had begun

    def _check_place(self) -> None:
        """Refuse an OUT without a folder to be in, and one that is or lies in an input, whatever it is called."""
        parent = self._files.status(self.out.parent)
        if parent is None or not stat.S_ISDIR(parent.st_mode):
            raise CheckpointError(
                f"{self.out} — no folder to write it in",
                expected=f"a folder at {self.out.parent}",
                got="nothing there" if parent is None else "something else",
                hint=f"make it first: mkdir -p {self.out.parent}",
            )
        for place in (self.out, *self.out.parents):
            seen = self._files.status(place)
            if seen is not None and (seen.st_dev, seen.st_ino) in self._inputs:
                raise CheckpointError(
                    f"{self.out} — the output would be written into an input",
                    expected="an output apart from every input: inputs are never written to",
                    got=f"{place} is an input",
                    hint="choose another folder for the output",
                )

    def _check_free(self) -> None:
        """Refuse an OUT with anything at it but an empty folder."""
        seen = self._files.status(self.out, follow=False)
        if seen is None:
            return
        if not stat.S_ISDIR(seen.st_mode):
            raise self._in_the_way("a link" if stat.S_ISLNK(seen.st_mode) else "something that is not a folder")
        count = len(self._files.list_folder(self.out))
        if count:
            raise self._in_the_way(f"a folder with {count} entries")

    def _in_the_way(self, got: str) -> CheckpointError:
        return CheckpointError(
            f"{self.out} — something is there already",
            expected="nothing, or an empty folder",
            got=got,
            hint="choose another folder for the output, or remove this one yourself",
        )

    def _take(self) -> None:
        """Make the shell, or find the one of another run, and hold the lock in it."""
        for _ in range(_TRIES):
            self._make_shell()
            try:
                descriptor = self._files.lock(self._shell / _LOCK)
            except CheckpointError:  # its last owner removed the shell since: start over
                continue
            if descriptor is None:
                break
            self._descriptor = descriptor
            seen = self._files.status(self._shell / _LOCK, follow=False)
            if seen is not None and (seen.st_dev, seen.st_ino) == self._files.identity(descriptor)[:2]:
                return
            self._release()  # the lock that we got is of a shell that is gone
        raise Locked(
            f"{self.out} — another process is writing it",
            expected=f"nobody else to hold {self._shell / _LOCK}",
            got="it is held",
            hint="wait until the other run ends, or choose another folder for the output",
        )

    def _make_shell(self) -> None:
        """A private folder of ours beside OUT. One that another user put there could be changed under our hands."""
        try:
            self._files.mkdir(self._shell, 0o700)
        except Fault as fault:
            if _code(fault) != errno.EEXIST:
                raise
        seen = self._files.status(self._shell, follow=False)
        if seen is not None and not (stat.S_ISDIR(seen.st_mode) and seen.st_uid == os.geteuid()):
            raise CheckpointError(
                f"{self._shell} — in the way of our staging folder",
                expected="nothing there, or a folder of your own that a stopped run left",
                got=f"something of user {seen.st_uid}",
                hint="remove it, or choose another folder for the output",
            )

    def _sync_folders(self, folder: Path) -> None:
        """Force the entries of a folder and of those in it to disk, the innermost first."""
        for name in self._files.list_folder(folder):
            seen = self._files.status(folder / name, follow=False)
            if seen is not None and stat.S_ISDIR(seen.st_mode):
                self._sync_folders(folder / name)
        self._files.fsync_folder(folder)

    def _leave(self) -> None:
        """Remove what is ours, or keep it for a run that resumes this one."""
        if self._journal is not None and not self._published:
            self._release()
        else:
            self._clean()

    def _clean(self) -> None:
        """Remove what is ours. The lock goes before its folder, and is held until both are gone."""
        if self._descriptor is None:
            return
        try:
            self._files.remove_tree(self.folder)
            self._files.remove_tree(self._shell / JOURNAL)
            self._files.unlink(self._shell / _LOCK)
            try:
                self._files.rmdir(self._shell)
            except Fault as fault:  # another run made its own lock in it since: the folder is theirs now
                if _code(fault) not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
        finally:
            self._release()

    def _release(self) -> None:
        """Give the lock back, once."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            self._files.close(descriptor)


def _code(fault: Fault) -> int | None:
    """The errno behind a fault."""
    return getattr(fault.__cause__, "errno", None)
