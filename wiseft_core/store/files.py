"""The one seam through which this package touches the file system.

Store room. Every open, read, write, copy, sync and rename goes through a `Files` object that is passed as an argument,
so that a test can inject faults or record and replay the log of operations. Errors of the operating system leave here
as `Fault` (exit 5), a path that is not there or not a regular file as `CheckpointError` (exit 3).
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from wiseft_core.errors import CheckpointError
from wiseft_core.store.faults import faults

Buffer = bytes | bytearray | memoryview

COPY_CHUNK = 1 << 26
FICLONERANGE = 0x4020940D
"""Linux's request that two files share extents (`ioctl_ficlonerange`), with descriptor, start, count and offset."""
SHARED = 1 << 20
"""Bytes from which on it pays to share them: each request is a transaction of the file system."""
BLOCK = 1 << 16
"""Bytes that are whole blocks of any file system that can share."""


class Files:
    """The real file system. Subclass it and override a method to inject a fault or to keep a log."""

    def open_read(self, path: Path) -> int:
        """A descriptor on the regular file at `path`, links followed. A FIFO or device is refused, not waited for."""
        with faults("open it for reading", path):
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                os.close(descriptor)
                raise CheckpointError(
                    f"{path}", expected="a regular file", got="something else", hint="name the file or folder itself"
                )
        return descriptor

    def create(self, path: Path) -> int:
        """A descriptor on a new, empty file at `path`, with the mode that the umask leaves of 0666."""
        with faults("create it", path):
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)

    def open_write(self, path: Path) -> int:
        """A descriptor on a file of ours, to go on writing it."""
        with faults("open it for writing", path):
            return os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)

    def lock(self, path: Path) -> int | None:
        """A descriptor that holds the lock file at `path`, made if need be, or None where somebody else holds it.

        The lock dies with the process, however it ends.
        """
        with faults("lock it", path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                return None
            except BaseException:
                os.close(descriptor)
                raise
        return descriptor

    def identity(self, descriptor: int) -> tuple[int, int, int, int, int]:
        """Device, inode, size, mtime and ctime in ns: they move when somebody changes or replaces the file."""
        seen = os.fstat(descriptor)
        return seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns

    def is_changed(self, descriptor: int, before: tuple[int, ...]) -> bool:
        """Whether a file is not what `identity` said before. To lose its last name, to a rename, is no change."""
        now = self.identity(descriptor)
        replaced = now[:4] == before[:4] and os.fstat(descriptor).st_nlink == 0
        return now != before and not replaced

    def read_into(self, descriptor: int, buffer: memoryview, offset: int, path: object) -> None:
        """Fill `buffer` from `offset`. A file that ends early is an error, never a short result."""
        done = 0
        with faults("read it", path):
            while done < len(buffer):
                count = os.preadv(descriptor, [buffer[done:]], offset + done)
                if count == 0:
                    raise CheckpointError(
                        f"{path}",
                        expected=f"{len(buffer)} bytes at offset {offset}",
                        got=f"the file ends after {done} of them",
                        hint="the file is truncated, or was while it was read: fetch it again",
                    )
                done += count

    def write_at(self, descriptor: int, buffer: Buffer, offset: int, path: object) -> None:
        """Write all of `buffer` at `offset`."""
        view, done = memoryview(buffer).cast("B"), 0
        with faults("write to it", path):
            while done < len(view):
                count = os.pwrite(descriptor, view[done:], offset + done)
                if count == 0:
                    raise OSError(errno.EIO, "nothing was written")
                done += count

    def copy_range(self, source: int, start: int, target: int, offset: int, count: int, path: object) -> None:
        """Copy `count` bytes: share what can be shared, copy inside the kernel where it can, else read and write."""
        low, high = share(self, source, start, target, offset, count, path)
        for first, stop in ((offset, low), (high, offset + count)):
            self._copy(source, start + first - offset, target, first, stop - first, path)

    def _copy(self, source: int, start: int, target: int, offset: int, count: int, path: object) -> None:
        """`copy_range` of what is not shared."""
        done = 0
        with faults("copy into it", path):
            while done < count:
                chunk = min(count - done, COPY_CHUNK)
                try:
                    moved = os.copy_file_range(source, target, chunk, start + done, offset + done)
                except OSError as error:
                    if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF):
                        raise
                    moved = 0
                if moved == 0:  # not supported between these two, or the source ends: reading tells which
                    piece = bytearray(min(chunk, 1 << 20))
                    self.read_into(source, memoryview(piece), start + done, path)
                    self.write_at(target, piece, offset + done, path)
                    moved = len(piece)
                done += moved

    def clone(self, source: int, target: int, path: object, start: int = 0, offset: int = 0, count: int = 0) -> bool:
        """Let a file share whole blocks of another, all from `start` on where `count` is 0.

        False where the file system cannot, and nothing is done.
        """
        with faults("clone into it", path):
            try:
                fcntl.ioctl(target, FICLONERANGE, struct.pack("=qQQQ", source, start, count, offset))
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
                    raise
                return False
        return True

    def allocate(self, descriptor: int, size: int, path: object) -> None:
        """Reserve `size` bytes now, so that a full disk is met before anything is computed."""
        if size == 0:
            return
        with faults("reserve space for it", path):
            try:
                os.posix_fallocate(descriptor, 0, size)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                    raise
                free = shutil.disk_usage(Path(str(path)).parent).free
                if free < size:
                    raise OSError(errno.ENOSPC, "not enough free space") from error
                os.ftruncate(descriptor, size)

    def begin_sync(self, descriptor: int, start: int, count: int) -> None:
        """Have the system begin to write a range to disk, by saying that its cache is not needed; only a hint."""
        if hasattr(os, "posix_fadvise"):
            with suppress(OSError):
                os.posix_fadvise(descriptor, start, count, os.POSIX_FADV_DONTNEED)

    def fsync(self, descriptor: int, path: object) -> None:
        """Force the file to disk. After a failure the file must not be trusted, and is never synced again."""
        with faults("sync it to disk", path):
            os.fsync(descriptor)

    def fsync_folder(self, path: Path) -> None:
        """Force the entries of a folder to disk."""
        with faults("sync the folder to disk", path):
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def close(self, descriptor: int) -> None:
        """Give a descriptor back."""
        os.close(descriptor)

    def mkdir(self, path: Path, mode: int = 0o777) -> None:
        """Make one folder; the umask applies."""
        with faults("create the folder", path):
            os.mkdir(path, mode)

    def make_folders(self, path: Path) -> None:
        """Make a folder and those above it that are missing; the umask applies."""
        with faults("create the folder", path):
            os.makedirs(path, exist_ok=True)

    def list_folder(self, path: Path) -> list[str]:
        """The names in a folder, sorted."""
        with faults("list the folder", path):
            return sorted(os.listdir(path))

    def status(self, path: Path, *, follow: bool = True) -> os.stat_result | None:
        """What is at `path`; None where nothing is, a link to nothing or to itself included."""
        with faults("look at it", path):
            try:
                return os.stat(path, follow_symlinks=follow)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                    return None
                raise

    def resolve(self, path: Path) -> Path:
        """The real path, every link followed; what is missing is kept as it is spelled."""
        with faults("resolve it", path):
            return Path(os.path.realpath(path))

    def rename(self, source: Path, target: Path) -> None:
        """Rename; an empty folder at `target` is replaced, anything else is an error."""
        with faults("publish it by renaming", target):
            os.rename(source, target)

    def unlink(self, path: Path) -> None:
        """Remove one file."""
        with faults("remove it", path):
            os.unlink(path)

    def rmdir(self, path: Path) -> None:
        """Remove one empty folder."""
        with faults("remove it", path):
            os.rmdir(path)

    def remove(self, path: Path) -> None:
        """Remove what is at `path`, a file, a link or a folder with all that is in it."""
        seen = self.status(path, follow=False)
        if seen is not None and stat.S_ISDIR(seen.st_mode):
            self.remove_tree(path)
        elif seen is not None:
            self.unlink(path)

    def remove_tree(self, path: Path) -> None:
        """Remove a folder of ours with all that is in it; links are removed, not followed."""
        with faults("remove it", path):
            if path.exists():
                shutil.rmtree(path)


FILES = Files()


def share(files: Files, source: int, start: int, target: int, offset: int, count: int, path: object) -> tuple[int, int]:
    """Let two files share what they can of `count` bytes that are to be copied: the blocks that are whole in both.

    From and to which byte of the target that was done; twice the same where the file system cannot, the bytes do not
    lie in blocks alike, or are too few.
    """
    low, high = offset + -offset % BLOCK, offset + count - (offset + count) % BLOCK
    is_worth = high - low >= SHARED and (offset - start) % BLOCK == 0
    if is_worth and files.clone(source, target, path, start + low - offset, low, high - low):
        return low, high
    return offset, offset


def names_below(folder: Path, files: Files, prefix: str = "") -> Iterator[str]:
    """Relative names of all that is in a folder, at any depth; links are not entered."""
    for name in files.list_folder(folder):
        seen = files.status(folder / name, follow=False)
        if seen is not None and stat.S_ISDIR(seen.st_mode):
            yield from names_below(folder / name, files, f"{prefix}{name}/")
        else:
            yield prefix + name


def read_file(path: Path, files: Files = FILES, *, limit: int = 64 << 20) -> bytes:
    """The content of a small regular file.

    Raises:
        CheckpointError: There is none, or it is larger than `limit`.
        Fault: The operating system cannot read it.
    """
    descriptor = files.open_read(path)
    try:
        size = files.identity(descriptor)[2]
        if size > limit:
            raise CheckpointError(
                f"{path} — too large",
                expected=f"at most {limit} bytes",
                got=f"{size} bytes",
                hint="is this the right file? A config, an index or a manifest is far smaller",
            )
        data = bytearray(size)
        files.read_into(descriptor, memoryview(data), 0, path)
        return bytes(data)
    finally:
        files.close(descriptor)
