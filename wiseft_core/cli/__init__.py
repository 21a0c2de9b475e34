"""The street: the `wiseft` command. Verbs, flags, progress and exit codes; what they do is done behind the door.

Nothing is imported here, so that the line about the missing extra costs nothing and needs nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec

NEEDED = ("typer", "rich")
MISSING = "The wiseft command needs typer and rich. Install them with:\n  pip install 'wiseft_core[cli]'"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        argv: The arguments; None for those of this process, which then belongs to the command alone: torch may be
            told to use one thread, because the tiles are what runs in parallel.
    """
    if any(find_spec(name) is None for name in NEEDED):
        print(MISSING, file=sys.stderr)
        return 2
    from wiseft_core.cli.process import run

    return run(sys.argv[1:] if argv is None else list(argv), alone=argv is None)
