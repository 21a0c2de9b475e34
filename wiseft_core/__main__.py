"""`python -m wiseft_core`: the same as `wiseft`."""

from __future__ import annotations

import sys


def start() -> int:
    """Run the command with the working directory off the import path.

    `python -m` puts it first, where a downloaded folder with a `torch.py` in it would be run as code.
    """
    if not sys.flags.safe_path and sys.path and _is_here(sys.path[0]):
        del sys.path[0]
    from wiseft_core.cli import main

    return main()


def _is_here(entry: str) -> bool:
    """Whether an entry of the import path is the working directory."""
    import os

    try:
        return entry == "" or os.path.samefile(entry, ".")
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(start())
