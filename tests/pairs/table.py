"""All pairs by name."""

from __future__ import annotations

from pairs import blind, experts, text, vision
from pairs.pair import Pair
from pairs.todo import TODO

PAIRS: dict[str, Pair] = {pair.name: pair for pair in [*text.TABLE, *vision.TABLE, *experts.TABLE, *blind.TABLE]}


def ready() -> list[tuple[str, str]]:
    """The pair and format of every test that must pass."""
    every = [(pair.name, form) for pair in PAIRS.values() for form in pair.formats if not pair.refused]
    return [(name, form) for name, form in every if name not in TODO and f"{name}/{form}" not in TODO]
