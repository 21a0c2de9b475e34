"""One global prefix, added or stripped: the adapter was trained on another head class than the base was saved from.

Naming room: strings only. A rule applies to the whole adapter or not at all; which rule holds is derived from the two
sets of names, never from a list of known models, and a name that merely ends alike is a suggestion, never a match.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final, NamedTuple

from wiseft_core.errors import nearest


class Rule(NamedTuple):
    """How a name in the adapter becomes a name in the base: `add` goes in front, `strip` comes off the front."""

    add: str = ""
    strip: str = ""

    def __call__(self, name: str) -> str:
        """The base's name for `name`."""
        return self.add + name.removeprefix(self.strip)

    def __str__(self) -> str:
        return f"+{self.add}" if self.add else f"-{self.strip}" if self.strip else "exact"


EXACT = Rule()
SAMPLE: Final = 100
RULES: Final = 10_000


def undone(rule: str, name: str) -> str:
    """The adapter's name for a base's `name`, under a rule as it is written in a plan."""
    if rule.startswith("-"):
        return rule[1:] + name
    return name.removeprefix(rule[1:]) if rule.startswith("+") else name


def rules(required: Collection[str], base: Collection[str]) -> tuple[Rule, ...]:
    """The rules under which every required name is a name of the base: (EXACT,) alone where that holds."""
    if all(name in base for name in required):
        return (EXACT,)
    # What is missing comes first: a rule that does not help is dropped at once, however many there are.
    ordered = sorted(required, key=base.__contains__)
    return tuple(rule for rule in _possible(required, base) if all(rule(name) in base for name in ordered))


def _possible(required: Collection[str], base: Collection[str]) -> list[Rule]:
    """Every prefix of the base to add, and the one to strip that all required names have, sorted."""
    found = {Rule(add=first) for first in _first_components(base)}
    first_of_all = _first_components(required)
    if len(first_of_all) == 1 and all("." in name for name in required):
        found |= {Rule(strip=first) for first in first_of_all}
    return sorted(found)


def nearest_rule(required: Collection[str], base: Collection[str]) -> Rule:
    """The rule that places the most names, of a sample where there are many, to report what is missing under it."""
    sample = sorted(required)[:: 1 + len(required) // SAMPLE]
    found = [EXACT, *_possible(required, base)]
    return max(found[:RULES], key=lambda rule: sum(rule(name) in base for name in sample))


def suggestions(name: str, base: Iterable[str], *, most: int = 3) -> list[str]:
    """Names of the base that look most like `name`: longest common dotted suffix first, then spelling."""
    parts = name.split(".")[::-1]

    def common(other: str) -> int:
        count = 0
        for mine, theirs in zip(parts, reversed(other.split(".")), strict=False):
            if mine != theirs:
                break
            count += 1
        return count

    scored = sorted(((common(other), other) for other in base), key=lambda pair: (-pair[0], pair[1]))
    best = [other for score, other in scored[:most] if score > 1]
    return best or nearest(name, [other for _, other in scored], most=most)


def _first_components(names: Collection[str]) -> set[str]:
    """The first component of every dotted name, with its dot."""
    return {name[: name.index(".") + 1] for name in names if "." in name}
