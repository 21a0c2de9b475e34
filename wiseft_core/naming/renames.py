"""transformers' renames: a name on disk, or in an adapter of any version, to the parameters that it is in memory.

Naming room: strings only. A base and an adapter are mapped by the same rules, and meet at the parameters. The rules are
data (`naming.table`), read off an installed transformers, with the meaning they have there:

1. Every renaming is tried in order, each on what the ones before have left: the first match of its pattern is found,
   and the first occurrence of the matched text replaced (not always the same place; so it is in transformers).
2. Then at most one conversion, the first whose pattern is found: a stack of experts, parts that follow each other.

A rule with a scope sees only what comes after that prefix. Patterns are ours, never an adapter's.

Source: transformers 5.23, core_model_loading.py, `rename_source_key`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

from wiseft_core.naming.links import Link, Part

LONGEST: Final = 500
"""A longer name is no parameter's: it stays as it is, and no pattern is kept busy with it."""
REMEMBERED: Final = 1 << 14
DIGITS: Final = "".join(c for c in map(chr, range(0x80, 0x20000)) if unicodedata.category(c) == "Nd")[:LONGEST]
"""Digits of other scripts: `\\d` and `\\w` take them for digits, and no rule spells one out."""
DIGIT: Final = re.compile(r"\d")
NUMBER: Final = re.compile(r"(?<![^.])[0-9]+(?![^.])")
"""The index of a module in a list: a whole component."""
INDEX: Final = re.compile(r"(?<![^.])\d+(?![^.])")
COUNTED: Final = re.compile(r"\(\?P<g[0-9]+>|\\d|(?<!\\)[A-Za-z_][0-9]+")
"""What may hold a digit in a pattern that cannot tell one index of a module from another of as many digits."""


class How(NamedTuple):
    """What a conversion does to the tensors.

    Attributes:
        experts: One matrix for each number in the name; they are stacked in natural order.
        joins: The axis, "out" or "in", along which the sources follow each other in the parameter; "": one source.
        cuts: The axis along which the source is cut into its targets, of one size; "": one target.
        across: As `Link.across`.
    """

    experts: bool = False
    joins: str = ""
    cuts: str = ""
    across: bool | None = False


class Rule(NamedTuple):
    """A renaming or a conversion.

    Attributes:
        pattern: A regular expression: one group "g0", "g1", ... for each source; a group inside it is "\\1".
        to: What replaces the matched text; of a conversion, for each target.
        scope: The prefixes under which alone it holds, the first that fits; (): everywhere.
        how: What a conversion does; None: a renaming.
        why: What it does that is no matter of places.
    """

    pattern: str
    to: tuple[str, ...]
    scope: tuple[str, ...] = ()
    how: How | None = None
    why: str = ""


class Rules:
    """The rules of one architecture, ready to be applied."""

    def __init__(self, rules: Sequence[Rule], kept: Collection[str] = ()) -> None:
        """Compile.

        Args:
            rules: All renamings and conversions, in transformers' order.
            kept: Names in memory that the rules would rename, and that transformers therefore leaves alone: as `form`.
        """
        self.rules, self.kept = tuple(rules), frozenset(kept)
        compiled = [_Compiled(rule) for rule in self.rules]
        self._renamings = [each for each in compiled if each.rule.how is None]
        self._conversions = [each for each in compiled if each.rule.how is not None]
        # Where no pattern spells out an index, names that differ in their indexes alone take the same way.
        self._uniform = not any(DIGIT.search(COUNTED.sub("", rule.pattern)) for rule in self.rules)
        self._known: dict[str, tuple[_Found, ...] | None] = {}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rules) and (self.rules, self.kept) == (other.rules, other.kept)

    def __hash__(self) -> int:
        return hash((self.rules, self.kept))

    def plain(self, name: str) -> tuple[Link, ...]:
        """`links`, with nothing remembered."""
        if self.kept and form(name) in self.kept:
            return (Link(name),)
        return tuple(found.filled({}) for found in self._mapped(name)[0])

    def remembered(self, name: str) -> tuple[Link, ...]:
        """`links`, where a name that differs from an earlier one in its indexes alone is not worked out again."""
        if not self._uniform or not name.isascii() or (self.kept and form(name) in self.kept):
            return self.plain(name)
        indexes = "".join(NUMBER.findall(name))
        letters = iter(DIGITS)
        shape = NUMBER.sub(lambda number: "".join(next(letters) for _ in number[0]), name)
        try:
            known = self._known[shape]
        except KeyError:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            mapped, sure = self._mapped(shape)
            known = self._known[shape] = mapped if sure else None
        if known is None:
            return self.plain(name)
        digits = dict(zip(map(ord, DIGITS), indexes, strict=False))
        return tuple(found.filled(digits) for found in known)

    def _mapped(self, name: str) -> tuple[tuple[_Found, ...], bool]:
        """What `name` is, and whether each text was replaced where it was found, whatever its indexes."""
        sure, why = True, ""
        for renaming in self._renamings:
            if (hit := renaming.find(name)) is not None:
                name, sure, why = hit.renamed, sure and hit.sure, why or renaming.rule.why
        for conversion in self._conversions:
            if (hit := conversion.find(name)) is not None:
                return conversion.linked(hit, why), sure and hit.sure
        return (_Found(Link(name, why=why)),), sure


def form(name: str) -> str:
    """A name with its indexes left out.

    Args:
        name: A tensor's name.
    """
    return NUMBER.sub("#", name)


def links(name: str, rules: Rules) -> tuple[Link, ...]:
    """What a tensor is among the parameters in memory.

    Args:
        name: The tensor's name on disk, or one that an adapter is for. A parameter's own name gives that parameter.
        rules: The rules of the architecture.

    Returns:
        A link for each parameter that the tensor is, or is a part of; `Link.expert` is the number in the name.
    """
    return rules.remembered(name) if len(name) <= LONGEST else (Link(name),)


class _Found(NamedTuple):
    """A link whose expert is still written as it is in the name."""

    link: Link
    expert: str = ""

    def filled(self, digits: dict[int, str]) -> Link:
        """The link, with the name's own digits."""
        parameter, _, part, own, across, why = self.link
        expert = self.expert.translate(digits)
        return Link(parameter.translate(digits), int(expert) if expert else None, part, own, across, why)


class _Hit(NamedTuple):
    """Where a rule fits a name: `source` is which of its sources did."""

    renamed: str
    source: int
    text: str
    sure: bool


class _Compiled:
    """A rule with its regular expression."""

    def __init__(self, rule: Rule) -> None:
        self.rule, self.regex = rule, re.compile(rule.pattern)

    def find(self, name: str) -> _Hit | None:
        """Where the rule fits `name`, if it does."""
        prefix = next((prefix for prefix in self.rule.scope or ("",) if name.startswith(prefix)), None)
        seen = name[len(prefix or "") :]
        found = None if prefix is None else self.regex.search(seen)
        if found is None or found.lastgroup is None:
            return None
        text, target = found[0], self.rule.to[0]
        if "\\1" in target:
            target = target.replace("\\1", found[self.regex.groupindex[found.lastgroup] + 1])
        sure = DIGIT.sub("0", seen).find(DIGIT.sub("0", text)) == found.start()
        renamed = (prefix or "") + seen.replace(text, target, 1)
        return _Hit(renamed, int(found.lastgroup[1:]), text, sure)

    def linked(self, hit: _Hit, why: str) -> tuple[_Found, ...]:
        """The links of a name that a conversion fits."""
        rule, how = self.rule, self.rule.how or How()
        why, expert = why or rule.why, ""
        if how.experts:
            numbers = INDEX.findall(hit.text)
            expert = numbers[0] if len(numbers) == 1 else ""
            why = why or "" if expert else "no single number of an expert"
        part = Part(hit.source, len(self.regex.groupindex), how.joins) if how.joins else None
        # Where there are several targets, the renamed text has the first.
        before, _, after = hit.renamed.partition(rule.to[0])
        names = [before + target + after for target in rule.to] if len(rule.to) > 1 else [hit.renamed]
        return tuple(
            _Found(
                Link(
                    parameter=name,
                    part=part,
                    own=Part(number, len(names), how.cuts) if how.cuts else None,
                    across=how.across,
                    why=why,
                ),
                expert,
            )
            for number, name in enumerate(names)
        )
