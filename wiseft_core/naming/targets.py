"""Which modules an adapter is for, spelled as PEFT's config spells it: the shortest words that fit exactly.

Naming room. PEFT fits a name `t` of `target_modules` to every module that is called `t` or ends in `.t`, a string of it
as a regular expression to the whole path, and a pattern of `rank_pattern` as `naming.patterns` says.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import Final, TypeVar

Number = TypeVar("Number", int, float)
NOTHING: Final = "dummy-target-modules"
"""PEFT's word for an adapter without a low-rank module."""


def modules_of(names: Iterable[str]) -> set[str]:
    """The paths of all modules that hold the tensors `names`, directly or below other modules."""
    found: set[str] = set()
    for name in names:
        path = name.rpartition(".")[0]
        while path and path not in found:
            found.add(path)
            path = path.rpartition(".")[0]
    return found


def targets(wanted: Collection[str], modules: Collection[str]) -> list[str] | str:
    """`target_modules` that fits the `wanted` of a model's modules and no other.

    Last components where they do ("q_proj"), else paths, else one regular expression.
    """
    if not wanted:
        return NOTHING
    others = set(modules) - set(wanted)
    taken = {_leaf(path) for path in others}
    names = {leaf if (leaf := _leaf(path)) not in taken else path for path in wanted}
    ends = {end for path in others for end in _ends(path)}
    return "|".join(map(_escaped, sorted(wanted))) if names & ends else sorted(names)


def exceptions(values: Mapping[str, Number], default: Number) -> dict[str, Number]:
    """A pattern for every module whose value is not the default: last components where all with that one agree."""
    by_leaf: defaultdict[str, set[Number]] = defaultdict(set)
    for path, value in values.items():
        by_leaf[_leaf(path)].add(value)
    ends = {end for path in values for end in _ends(path)}
    found: dict[str, Number] = {}
    for path, value in values.items():
        if value == default:
            continue
        if len(by_leaf[_leaf(path)]) == 1:
            found[_escaped(_leaf(path))] = value
        else:  # `^` keeps it from another module that ends in the same path
            found["^" * (path in ends) + _escaped(path)] = value
    return found


def _leaf(path: str) -> str:
    """A module's own name, without its path."""
    return path.rpartition(".")[2]


def _ends(path: str) -> list[str]:
    """What `path` ends in behind each of its dots."""
    return [path[at + 1 :] for at, char in enumerate(path) if char == "."]


def _escaped(text: str) -> str:
    """`text` as a regular expression that fits nothing else."""
    return "".join(char if char.isalnum() or char == "_" else f"\\{char}" for char in text)
