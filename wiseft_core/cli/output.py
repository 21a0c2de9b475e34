"""What a run says: reports and JSON on stdout, errors in four lines on stderr, everything safe for a terminal."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TextIO, TypeVar

from wiseft_core.errors import Fault, WiseftError, show
from wiseft_core.store.faults import faults

Key = TypeVar("Key")
UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB")


class Closed(BaseException):
    """Nobody reads stdout any more (`wiseft plan ... | head`)."""


def say(text: str) -> None:
    """Lines on stdout. What its encoding cannot spell is escaped; names in `text` have been through `show`."""
    _write(text, sys.stdout)


def say_json(value: Mapping[str, object]) -> None:
    """One JSON object on stdout, in ASCII: no name in it can reach the terminal raw."""
    _write(json.dumps(value, indent=2, allow_nan=False), sys.stdout)


def complain(error: WiseftError, *, as_json: bool = False) -> None:
    """An error and all others of its pass: one JSON object on stdout, else four lines each on stderr.

    Where neither can be written, the exit code alone tells.
    """
    if as_json:
        with suppress(Closed, Fault):
            say_json(error.as_dict())
            return
    with suppress(Closed, Fault):
        _write(str(error), sys.stderr)


def _write(text: str, stream: TextIO | None) -> None:
    """`text` and a line break, at once; nothing where the stream was closed before Python began.

    Raises:
        Closed: Its reader is gone.
        Fault: It cannot be written.
    """
    if stream is None:
        return
    encoding = stream.encoding or "utf-8"
    with faults("print to it", "stdout"):
        try:
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
            stream.flush()
        except BrokenPipeError as error:
            raise Closed from error


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns as wide as their widest cell; a column of numbers is set to the right."""
    cells = [[show(cell) for cell in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    right = [bool(rows) and all(isinstance(row[at], int | float) for row in rows) for at in range(len(head))]
    lines = [
        "  ".join(cell.rjust(width) if to_right else cell.ljust(width) for cell, width, to_right in line)
        for line in (zip(row, widths, right, strict=True) for row in cells)
    ]
    return "\n".join(line.rstrip() for line in lines)


def fields(values: Mapping[str, object]) -> str:
    """One line per field, the names in a column; a field with nothing to say is left out."""
    width = max(map(len, values), default=0)
    return "\n".join(f"{name:<{width}}  {show(text, limit=1000)}" for name, text in values.items() if text)


def size(count: float) -> str:
    """A number of bytes as a human reads it, in powers of 1000: "4.2 GB"."""
    digits = 0
    for unit in UNITS[:-1]:
        if round(count, digits) < 1000:
            return f"{count:.{digits}f} {unit}"
        count, digits = count / 1000, 1
    return f"{count:.1f} {UNITS[-1]}"


def tally(counts: Mapping[Key, int], *, most: int = 8) -> str:
    """Distinct values with how often each occurs, the most frequent first: "8 ×28, 16 ×2"."""
    ordered = Counter(counts).most_common()
    more = f" and {len(ordered) - most} more" if len(ordered) > most else ""
    return ", ".join(f"{value} ×{count}" for value, count in ordered[:most]) + more


def plural(count: int, noun: str) -> str:
    """A number and its noun: "1 tensor", "2 tensors"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
