"""The subset of regular expressions that adapter configs may use, and its parser.

Naming room. Python's own rules decide what is a literal and what is not, so that a pattern means here what it means to
`re`, or is refused by name.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from wiseft_core.errors import ConfigError, Unsupported, WiseftError

MAX_REPEAT: Final = 1_000
MAX_DEPTH: Final = 50
HINT: Final = "list the modules by their names instead"

ANCHORS: Final = ("^", "$")
QUANTIFIERS: Final = {"*": (0, None), "+": (1, None), "?": (0, 1)}
CATEGORIES: Final = "dws"
CONTROLS: Final = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "a": "\a"}
EXTENSIONS: Final = {
    "=": "a lookahead", "!": "a negative lookahead", "<=": "a lookbehind", "<!": "a negative lookbehind",
    "P<": "a named group", "P=": "a named backreference", "(": "a conditional", ">": "an atomic group",
    "#": "a comment",
}  # fmt: skip


class Chars(NamedTuple):
    """A set of characters: ranges and categories (d, w, s; upper case for the complement), or all but those."""

    ranges: tuple[tuple[str, str], ...]
    categories: str = ""
    negated: bool = False

    @property
    def literal(self) -> str:
        """The one character that is in the set, or "" if there may be others."""
        low, high = self.ranges[0] if len(self.ranges) == 1 and not self.categories and not self.negated else ("", "_")
        return low if low == high else ""

    def has(self, char: str) -> bool:
        """Whether `char` is in the set."""
        inside = any(low <= char <= high for low, high in self.ranges)
        return (inside or any(_in_category(char, c) for c in self.categories)) is not self.negated


class Repeat(NamedTuple):
    """`node`, at least `least` and at most `most` times (None: any number)."""

    node: Node
    least: int
    most: int | None


class Choice(NamedTuple):
    """One of several sequences; a group without `|` has one."""

    options: tuple[tuple[Node, ...], ...]


Node = Chars | Repeat | Choice | str
"""What a pattern parses to; a string is an anchor."""

DOT: Final = Chars((("\n", "\n"),), negated=True)


def _in_category(char: str, category: str) -> bool:
    """Membership in `\\d`, `\\w`, `\\s` over Unicode, or in their complements."""
    kind = category.lower()
    inside = char.isdecimal() if kind == "d" else char.isspace() if kind == "s" else char.isalnum() or char == "_"
    return inside is category.islower()


def unsupported(pattern: str, what: str) -> WiseftError:
    """The refusal of `pattern`, which has `what` in it."""
    return Unsupported(f"pattern '{pattern}'", expected="the plain subset of regular expressions", got=what, hint=HINT)


class Parser:
    """Recursive descent over one pattern, with Python's own rules for what is a literal and what is not."""

    def __init__(self, text: str) -> None:
        self.text, self.at, self.depth = text, 0, 0

    def malformed(self, got: str) -> WiseftError:
        """The refusal of a pattern that `re` would not compile either."""
        return ConfigError(
            f"pattern '{self.text}'",
            expected="a well-formed regular expression",
            got=f"{got} at character {self.at}",
            hint="correct it in adapter_config.json, or " + HINT,
        )

    def take(self, wanted: str) -> bool:
        """Step over `wanted` if it comes next."""
        found = self.text.startswith(wanted, self.at)
        self.at += len(wanted) if found else 0
        return found

    def next(self, inside: str) -> str:
        """The next character, stepped over; there has to be one."""
        if self.at >= len(self.text):
            raise self.malformed(f"an end inside {inside}")
        self.at += 1
        return self.text[self.at - 1]

    def whole(self) -> tuple[tuple[Node, ...], ...]:
        """The whole pattern, as the options of its outermost choice."""
        options = self.options()
        if self.at < len(self.text):
            raise self.malformed("an unbalanced )")
        return options

    def options(self) -> tuple[tuple[Node, ...], ...]:
        """Sequences separated by `|`."""
        found = [self.sequence()]
        while self.take("|"):
            found.append(self.sequence())
        return tuple(found)

    def sequence(self) -> tuple[Node, ...]:
        """Atoms with their quantifiers, one after the other."""
        nodes: list[Node] = []
        while self.at < len(self.text) and self.text[self.at] not in "|)":
            nodes.append(self.quantified(self.atom()))
        return tuple(nodes)

    def atom(self) -> Node:
        """What a quantifier can apply to: a character, class, group or escape; or an anchor."""
        char = self.next("the pattern")
        if char == "(":
            return self.group()
        if char == "[":
            return self.bracket()
        if char == "\\":
            return self.escape()
        if char in QUANTIFIERS or (char == "{" and self.is_bounds()):
            raise self.malformed("nothing to repeat")
        return DOT if char == "." else char if char in ANCHORS else Chars(((char, char),))

    def group(self) -> Node:
        """The rest of a group whose parenthesis was just taken."""
        if self.take("?") and not self.take(":"):
            kinds = [kind for start, kind in EXTENSIONS.items() if self.text.startswith(start, self.at)]
            raise unsupported(self.text, f"{kinds[0] if kinds else 'a flag or extension'} (?{self.text[self.at :][:2]}")
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise unsupported(self.text, f"more than {MAX_DEPTH} groups inside each other")
        options = self.options()
        self.depth -= 1
        if not self.take(")"):
            raise self.malformed("a group that is not closed")
        return Choice(options)

    def quantified(self, node: Node) -> Node:
        """`node` with the quantifier that follows it, if one does."""
        bounds = self.bounds()
        if bounds is None:
            return node
        least, most = bounds
        if isinstance(node, str):
            raise self.malformed(f"a repeated {node}")
        if max(least, most or 0) > MAX_REPEAT:
            raise unsupported(self.text, f"a repetition of more than {MAX_REPEAT} times")
        if most is not None and most < least:
            raise self.malformed("a repetition whose bounds are in the wrong order")
        if self.take("+"):
            raise unsupported(self.text, "a possessive quantifier")
        self.take("?")
        if self.bounds() is not None:
            raise self.malformed("a repeated repetition")
        return Repeat(node, least, most)

    def bounds(self) -> tuple[int, int | None] | None:
        """The quantifier that comes next, stepped over. A brace that is none is a literal, as in `re`."""
        for sign, bounds in QUANTIFIERS.items():
            if self.take(sign):
                return bounds
        inside, brace, _ = self.text[self.at + 1 :].partition("}")
        low, comma, high = inside.partition(",")
        if not (brace and inside and self.text.startswith("{", self.at)):
            return None
        if not all(c in "0123456789" for c in low + high):
            return None
        self.at += len(inside) + 2
        least = int(low or 0)
        return least, (int(high) if high else None) if comma else least

    def is_bounds(self) -> bool:
        """Whether the brace just taken would begin a quantifier."""
        here = self.at
        self.at -= 1
        found = self.bounds() is not None
        self.at = here
        return found

    def escape(self) -> Chars:
        """The rest of an escape whose backslash was just taken."""
        char = self.next("an escape")
        if char.lower() in CATEGORIES:
            return Chars((), char)
        if char in CONTROLS:
            return Chars(((CONTROLS[char],) * 2,))
        if char.isascii() and char.isalnum():
            known = char in "bBAZxuUN" or char.isdigit()
            kind = "a backreference or octal escape" if char.isdigit() else "the escape"
            raise unsupported(self.text, f"{kind} \\{char}") if known else self.malformed(f"a bad escape \\{char}")
        return Chars(((char, char),))

    def bracket(self) -> Chars:
        """The rest of a class whose bracket was just taken."""
        negated = self.take("^")
        ranges: list[tuple[str, str]] = []
        categories = ""
        first = True
        while first or not self.take("]"):
            first = False
            low = self.member()
            if self.text.startswith("-", self.at) and not self.text.startswith("-]", self.at):
                self.at += 1
                high = self.member()
                if low.categories or high.categories or high.ranges < low.ranges:
                    raise self.malformed("a bad range in a class")
                ranges.append((low.ranges[0][0], high.ranges[0][0]))
            else:
                ranges.extend(low.ranges)
                categories += low.categories
        return Chars(tuple(ranges), categories, negated)

    def member(self) -> Chars:
        """One character or category inside brackets."""
        char = self.next("a class")
        return self.escape() if char == "\\" else Chars(((char, char),))
