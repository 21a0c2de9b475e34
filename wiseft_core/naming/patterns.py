"""The patterns of an adapter's config, matched as PEFT matches them but never by `re`.

Naming room. A pattern comes from a file that anybody may have written, and PEFT gives it to a backtracking engine:
`([a-z_.0-9]+)+!` keeps that busy for hours. Here a pattern is parsed into a small automaton, and all its states advance
together over the path: time is at most states x characters, whatever the pattern.

    matches(p, path)  <=>  re.match(r"(.*\\.)?(" + p + r")$", path)        PEFT 0.21, `get_pattern_key`

Understood: literals, `.`, classes, `\\d \\w \\s` and their negations, escaped punctuation, groups, `|`, `^`, `$`, and
`* + ? {m,n}` (lazy ones too: same language). Everything else is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import groupby
from typing import Final, NamedTuple, TypeVar

from wiseft_core.naming._grammar import DOT, Chars, Choice, Node, Parser, Repeat, unsupported

MAX_LENGTH: Final = 2_000
MAX_STATES: Final = 20_000
T = TypeVar("T")


class State(NamedTuple):
    """Go to any state of `after`: freely, at an `anchor`, or by eating one character of `eats`."""

    after: tuple[int, ...]
    eats: Chars | None = None
    anchor: str = ""


class Pattern(NamedTuple):
    """A compiled pattern.

    Attributes:
        text: The pattern as written.
        states: The automaton; state 0 accepts. Empty where `pieces` say it all.
        start: The state to begin in.
        length: Length of every match of a pattern of plain characters and dots, the usual case.
        pieces: Its plain parts, each with its offset.
    """

    text: str
    states: tuple[State, ...] = ()
    start: int = 0
    length: int = 0
    pieces: tuple[tuple[int, str], ...] = ()


@lru_cache(maxsize=1 << 14)
def compile_pattern(pattern: str) -> Pattern:
    """`pattern` made ready for `matches`.

    Raises:
        ConfigError: It is not a well-formed regular expression.
        Unsupported: It has a construct outside the subset, or is too large.
    """
    if len(pattern) > MAX_LENGTH:
        raise unsupported(pattern, f"{len(pattern)} characters (the limit is {MAX_LENGTH})")
    options = Parser(pattern).whole()
    if len(options) == 1 and all(node == DOT or _plain(node) for node in options[0]):
        return Pattern(pattern, length=len(options[0]), pieces=tuple(_pieces(options[0])))
    builder = _Builder(pattern)
    start = builder.add(Choice(options), 0)
    return Pattern(pattern, tuple(builder.states), start)


def matches(pattern: Pattern, path: str) -> bool:
    """Whether PEFT would match `pattern` to the module at `path`: whole, or from behind any of its dots."""
    if not pattern.states:
        # `$` also holds before a last line break
        return _ends_in(pattern, path, len(path)) or (path[-1:] == "\n" and _ends_in(pattern, path, len(path) - 1))
    ends = {len(path), len(path.removesuffix("\n"))}
    return any(0 in active and position in ends for position, active in enumerate(run(pattern, path)))


def first_match(patterns: Mapping[str, T], path: str) -> tuple[str, T] | None:
    """The first pattern in the mapping's order that matches `path`, with its value, as PEFT chooses."""
    for text, value in patterns.items():
        if matches(compile_pattern(text), path):
            return text, value
    return None


def run(pattern: Pattern, path: str) -> Iterator[set[int]]:
    """The states that are active before each character of `path`, and after the last: linear work, no way back."""
    ends = {len(path), len(path.removesuffix("\n"))}
    active: set[int] = set()
    prefix = True  # PEFT's `(.*\.)?` may begin the pattern at the start and behind each dot, on the first line
    for position in range(len(path) + 1):
        if position and path[position - 1] == "\n":
            prefix = False
        if position == 0 or (prefix and path[position - 1] == "."):
            active.add(pattern.start)
        holds = {"^": position == 0, "$": position in ends, "": True}
        _spread(pattern.states, active, holds)
        yield active
        if position < len(path):
            eaten = (pattern.states[s] for s in active)
            active = {s.after[0] for s in eaten if s.eats is not None and s.eats.has(path[position])}


def _spread(states: tuple[State, ...], active: set[int], holds: Mapping[str, bool]) -> None:
    """Add to `active` all states that are reached without eating; each is visited once."""
    waiting = list(active)
    while waiting:
        state = states[waiting.pop()]
        if state.eats is None and holds[state.anchor]:
            fresh = [s for s in state.after if s not in active]
            active.update(fresh)
            waiting.extend(fresh)


def _plain(node: Node) -> str:
    """The one character that `node` stands for, or "" if there is more to it."""
    return node.literal.replace("\n", "") if isinstance(node, Chars) else ""


def _pieces(nodes: tuple[Node, ...]) -> Iterator[tuple[int, str]]:
    """The runs of plain characters between dots, each with its offset."""
    offset = 0
    for is_plain, run_of in groupby(map(_plain, nodes), bool):
        piece = list(run_of)
        if is_plain:
            yield offset, "".join(piece)
        offset += len(piece)


def _ends_in(pattern: Pattern, path: str, end: int) -> bool:
    """Whether `path[:end]` ends in the fixed `pattern`, and that part begins the path or follows a dot."""
    start = end - pattern.length
    if start < 0 or (start > 0 and path[start - 1] != ".") or "\n" in path[:end]:
        return False
    return all(path.startswith(piece, start + offset) for offset, piece in pattern.pieces)


class _Builder:
    """Turns nodes into states, from the end to the start, so that each knows what comes after it."""

    def __init__(self, text: str) -> None:
        self.text, self.states, self.work = text, [State(())], 0

    def put(self, state: State) -> int:
        """The number of a new state."""
        self.states.append(state)
        return len(self.states) - 1

    def add(self, node: Node, after: int) -> int:
        """The state from which `node` and then `after` is matched."""
        self.work += 1  # empty groups make no state but cost time: count calls, not states
        if self.work > MAX_STATES:
            raise unsupported(self.text, f"more than {MAX_STATES} states when its repetitions are written out")
        if isinstance(node, str):
            return self.put(State((after,), anchor=node))
        if isinstance(node, Chars):
            return self.put(State((after,), eats=node))
        if isinstance(node, Choice):
            return self.put(State(tuple(self.sequence(option, after) for option in node.options)))
        return self.repeat(node, after)

    def sequence(self, nodes: tuple[Node, ...], after: int) -> int:
        """The state from which all of `nodes` and then `after` are matched."""
        for node in reversed(nodes):
            after = self.add(node, after)
        return after

    def repeat(self, node: Repeat, after: int) -> int:
        """The state from which the repetition, written out, and then `after` are matched."""
        end = after
        if node.most is None:
            loop = self.put(State(()))
            self.states[loop] = State((self.add(node.node, loop), end))
            after = loop
        else:
            for _ in range(node.most - node.least):
                after = self.put(State((self.add(node.node, after), end)))
        for _ in range(node.least):
            after = self.add(node.node, after)
        return after
