"""The whole hostile corpus: every case of every kind, by an id of its own."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from hostile import configs, folders, headers, indexes, tensors
from hostile.scene import Case, Scene

__all__ = ["CASES", "Case", "Scene"]


def _numbered() -> Iterator[tuple[str, Case]]:
    """Every case under its id; a number settles which is which where two would have the same."""
    seen: dict[str, int] = {}
    for case in chain(headers.cases(), indexes.cases(), folders.cases(), configs.cases(), tensors.cases()):
        seen[case.id] = seen.get(case.id, 0) + 1
        yield (case.id if seen[case.id] == 1 else f"{case.id} ({seen[case.id]})"), case


CASES: dict[str, Case] = dict(_numbered())
