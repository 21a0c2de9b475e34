"""`python -m wiseft_core`: the same as `wiseft`."""

from __future__ import annotations

import os
import sys
from contextlib import suppress


def start() -> int:
    """Run the command with the working directory off the import path.

    `python -m` puts it first, where a downloaded folder with a `torch.py` in it would be run as code. The process ends
    at once: nothing of ours waits for its end, and to take torch apart lasts a tenth of a second.
    """
    if not sys.flags.safe_path and sys.path and _is_here(sys.path[0]):
        del sys.path[0]
    from wiseft_core.cli import main

    code = main()
    with suppress(OSError, ValueError, AttributeError):  # what cannot be flushed is told of as at the end of any Python
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _is_here(entry: str) -> bool:
    """Whether an entry of the import path is the working directory."""
    try:
        return entry == "" or os.path.samefile(entry, ".")
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(start())
