"""JSON from strangers: what is not plain JSON is refused before anybody reads a value of it.

Store room, standard library only. Python's own parser lets duplicate keys, NaN, infinities, lone surrogates and any
depth pass, and fails with four kinds of exception. Here there is one.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from wiseft_core.errors import CheckpointError, listed, show
from wiseft_core.store.files import FILES, Files, read_file

JSON_LIMIT: Final = 8 << 20
DEPTH_LIMIT: Final = 128
"""As deep as safetensors' own parser goes; far below where Python's recursion ends."""


class _Refused(ValueError):
    """What is wrong with a document, in words; `load_json` adds where."""


def load_json(data: bytes, where: str, *, limit: int = JSON_LIMIT) -> object:
    """The value that `data` spells, as Python's own types.

    Args:
        data: A JSON document in UTF-8, white space around it allowed.
        where: What the document is, for the error.
        limit: The most bytes it may have.
    Raises:
        CheckpointError: It is too long, not UTF-8 or not JSON, nests deeper than 128, says a key twice in one object,
            or holds NaN, an infinity, a number too large for its type, or half of a surrogate pair.
    """
    try:
        _check_length(len(data), limit)
        text = data.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_unique, parse_float=_finite, parse_constant=_finite)
        _check_depth(value)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        problem = f"nested deeper than {DEPTH_LIMIT}"
    except UnicodeDecodeError as error:
        problem = f"not UTF-8 at byte {error.start}"
    except UnicodeEncodeError:
        problem = "half of a surrogate pair in a string"
    except ValueError as error:
        problem = str(error)
    else:
        return value
    raise CheckpointError(
        f"{where} — refused as JSON",
        expected=f"strict JSON in UTF-8, at most {limit} bytes, each key once, finite numbers only",
        got=problem,
        hint="the file is damaged or was written by hand: fetch or export it again",
    ) from None


def read_json(path: Path, files: Files = FILES, *, limit: int = JSON_LIMIT) -> object:
    """The value in the JSON file at `path`, under the rules of `load_json`; a larger file is not read at all.

    Raises:
        CheckpointError: No regular file is there, or `load_json` refuses what it holds.
        Fault: The operating system cannot read it.
    """
    return load_json(read_file(path, files, limit=limit), f"{path}", limit=limit)


def as_mapping(value: object, where: str) -> Mapping[str, object]:
    """`value` where it is a JSON object.

    Raises:
        CheckpointError: It is something else.
    """
    if isinstance(value, dict):
        return value
    raise CheckpointError(
        f"{where} — not a JSON object",
        expected="an object: names and values in braces",
        got=f"{'null' if value is None else type(value).__name__}",
        hint="the file is damaged or was written by hand: fetch or export it again",
    )


def _check_length(length: int, limit: int) -> None:
    if length > limit:
        raise _Refused(f"{length} bytes")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """The object of `pairs`, each key once."""
    found = dict(pairs)
    if len(found) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise _Refused(f"said twice in one object: {listed(key for key in counts if counts[key] > 1)}")
    return found


def _finite(text: str) -> float:
    """The number that `text` spells: NaN and Infinity come here by name, 1e999 by its size."""
    value = float(text)
    if not math.isfinite(value):
        raise _Refused(f"the number {show(text, limit=40)}, which is not finite")
    return value


def _check_depth(value: object) -> None:
    """Refuse what nests too deep, level by level, without recursion."""
    level = [value]
    for _ in range(DEPTH_LIMIT):
        inside = (node.values() if isinstance(node, dict) else node for node in level if isinstance(node, (dict, list)))
        level = [child for children in inside for child in children if isinstance(child, (dict, list))]
        if not level:
            return
    raise _Refused(f"nested deeper than {DEPTH_LIMIT}")
