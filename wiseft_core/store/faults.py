"""Errors of the operating system as errors of ours, with what to do about them.

Store room. Exit 5 as `Fault`; a path that is not there is the user's, and a `CheckpointError` (exit 3).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from wiseft_core.errors import CheckpointError, Fault

HINTS = {
    errno.ENOSPC: "free some space on that disk, or write somewhere else",
    errno.EDQUOT: "the quota of that disk is used up",
    errno.EROFS: "that file system is read-only: write somewhere else",
    errno.EACCES: "check the permissions of that path",
    errno.EPERM: "check the permissions of that path",
    errno.EIO: "the disk or network below reports an error: check it before you trust what it holds",
    errno.EFBIG: "the file size limit of this process or file system is too small",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}


@contextmanager
def faults(action: str, path: object) -> Iterator[None]:
    """Turn an OSError raised inside into our error that names `action` and `path`.

    A path with a NUL in it, or one that the file system's encoding cannot spell, is as one that is not there.
    """
    try:
        yield
    except (CheckpointError, Fault):
        raise
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path}", expected="a path that exists", got="no such file or folder", hint="check the spelling"
        ) from error
    except ValueError as error:
        if not (isinstance(error, UnicodeEncodeError) or "\0" in str(path)):
            raise
        raise CheckpointError(
            f"{path}", expected="a path that can exist", got=f"{error}", hint="check the spelling"
        ) from error
    except OSError as error:
        code = error.errno or 0
        raise Fault(
            f"{path} — cannot {action}",
            expected=f"the operating system to {action}",
            got=f"{errno.errorcode.get(code, code)}: {os.strerror(code) if code else error}",
            hint=HINTS.get(code, "see the message of the operating system above"),
        ) from error
