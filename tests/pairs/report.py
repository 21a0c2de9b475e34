"""What the package makes of every pair today: `python tests/pairs/report.py [name ...]`, for development."""

from __future__ import annotations

import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from pairs.build import tuned_of
from pairs.judge import check
from pairs.table import PAIRS

from wiseft_core import WiseftError


def verdict(name: str, form: str) -> str:
    """ "right", or the refusal, or what is wrong."""
    try:
        for alpha in (1.0, 0.0, 0.5):
            check(PAIRS[name], form, alpha)
    except WiseftError as error:
        return f"refused   {type(error).__name__}: {error.where[:150]}"
    except AssertionError as error:
        return f"WRONG     {str(error)[:300]!r}"
    except Exception as error:
        return f"CRASH     {type(error).__name__}: {str(error)[:200]!r}"
    return "right"


def main() -> None:
    """One line for each pair and format whose name holds one of the arguments; without arguments for all."""
    torch.set_num_threads(1)
    for name in [n for n in PAIRS if not sys.argv[1:] or any(a in n for a in sys.argv[1:])]:
        start = time.time()
        try:
            tuned_of(PAIRS[name])
        except Exception:
            print(f"{name:40} NOT BUILT {traceback.format_exc()[-700:]}", flush=True)
            continue
        built = time.time() - start
        for form in PAIRS[name].formats:
            start = time.time()
            said = verdict(name, form)
            print(f"{name + '/' + form:40} {said}   [{built:.1f} + {time.time() - start:.1f} s]", flush=True)


if __name__ == "__main__":
    main()
