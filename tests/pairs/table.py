"""All pairs by name."""

from __future__ import annotations

from pairs import blind, experts, text, vision
from pairs.pair import Pair

PAIRS: dict[str, Pair] = {pair.name: pair for pair in [*text.TABLE, *vision.TABLE, *experts.TABLE, *blind.TABLE]}


def ready() -> list[tuple[str, str]]:
    """Every pair that is placed, with each of its formats."""
    return [(pair.name, form) for pair in PAIRS.values() for form in pair.formats if not pair.refused]
