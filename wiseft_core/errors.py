"""Every way in which this package says no.

Ground floor: standard library only. Each error says where, what was expected, what was got and what to do, in four
lines, and carries the same as fields; its `exit_code` is what the `wiseft` command returns.

    WiseftError
    ├── ConfigError (ValueError)          3   a field or argument has a value that cannot be meant
    │   ├── ConfigNeeded                  3   nothing settles the scale
    │   ├── BadAlpha                      3   alpha is not a finite number in the allowed range
    │   └── UnusedPattern                 3   a pattern matches nothing, or two tie
    ├── Unsupported (NotImplementedError) 4   recognised, and refused by name
    │   ├── TiedEmbeddings                4
    │   ├── QuantizedBase                 4
    │   └── UndecidableOrientation        4
    ├── BindingError (KeyError)           3   adapter and base do not fit by name
    │   ├── UnclaimedKey                  3   an adapter tensor that lands nowhere
    │   ├── MissingFactor                 3   a factor that its method needs is not there
    │   └── AmbiguousName                 3   more than one place fits
    ├── ShapeMismatch (ValueError)        3
    ├── DtypeMismatch (TypeError)         3
    ├── CheckpointError (OSError)         3   a file is missing, malformed or in the way
    ├── NotFinite (ArithmeticError)       3   a value that is not finite, or would not be in the output's dtype
    ├── EvaluationFailed                  1   the user's command did not give the metrics it was run for
    ├── Fault (OSError)                   5   the operating system failed a call
    ├── InputChanged                      6   an input changed while it was read
    └── Locked                            7   somebody else writes the same output
"""

from __future__ import annotations

import difflib
import itertools
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

SHOWN_IN_FULL = 5
NEAR_LENGTH, NEAR_NAMES, NEAR_COMPARED = 200, 5_000, 20


def show(text: object, *, limit: int = 200) -> str:
    """`text` made safe for a terminal: control, bidi and unprintable characters escaped, cut at `limit`."""
    # Cut first: escaping only makes it longer, and a name may have megabytes.
    start = str(text)[: limit + 1]
    plain = "".join(c if c.isprintable() and unicodedata.category(c) != "Cf" else ascii(c)[1:-1] for c in start)
    return plain if len(plain) <= limit else plain[: limit - 1] + "…"


def listed(items: Iterable[object], *, most: int = 3) -> str:
    """The first few of `items`, sorted and safe to print, and how many more there are."""
    texts = sorted(map(str, items))
    more = len(texts) - most
    return ", ".join(map(show, texts[:most])) + (f" and {more} more" if more > 0 else "")


def nearest(name: str, names: Iterable[str], *, most: int = 3, cutoff: float = 0.6) -> list[str]:
    """Those of `names` that are spelled most like `name`. Bounded: comparing is slow, and names come from files."""
    close = difflib.SequenceMatcher(b=name[:NEAR_LENGTH])
    scored = []
    for other in itertools.islice(names, NEAR_NAMES):
        close.set_seq1(other[:NEAR_LENGTH])
        if close.real_quick_ratio() >= cutoff and (score := close.quick_ratio()) >= cutoff:
            scored.append((score, other))
    found = []
    for _, other in sorted(scored, reverse=True)[:NEAR_COMPARED]:
        close.set_seq1(other[:NEAR_LENGTH])
        if (score := close.ratio()) >= cutoff:
            found.append((score, other))
    return [other for _, other in sorted(found, reverse=True)[:most]]


class WiseftError(Exception):
    """Base of every error raised on purpose by this package.

    Args:
        where: The file, tensor or argument that is at fault, and what is wrong with it.
        expected: What would have been right.
        got: What was found instead.
        hint: What the user can do about it.
        others: Further problems found in the same pass; they are printed after this one.
    """

    exit_code = 3

    def __init__(
        self, where: str, *, expected: str = "", got: str = "", hint: str = "", others: Sequence[WiseftError] = ()
    ) -> None:
        super().__init__(where)
        self.where, self.expected, self.got, self.hint = where, expected, got, hint
        self.others = tuple(others)

    def __str__(self) -> str:
        """All problems of the pass, the first few in full: KeyError's repr and OSError's errno form are not wanted."""
        problems = [self, *self.others]
        text = "\n".join(problem.lines() for problem in problems[:SHOWN_IN_FULL])
        more = len(problems) - SHOWN_IN_FULL
        return text + (f"\nand {more} more" if more > 0 else "")

    def lines(self) -> str:
        """This problem alone, in four lines: where, expected, got, hint."""
        rows = [f"{type(self).__name__}: {show(self.where, limit=1000)}"]
        for label, value in (("expected", self.expected), ("got", self.got), ("hint", self.hint)):
            rows.append(f"  {label:<9} {show(value, limit=1000) or '-'}")
        return "\n".join(rows)

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON sees them (`--json`)."""
        own = {"error": type(self).__name__, "where": self.where, "expected": self.expected, "got": self.got}
        return {**own, "hint": self.hint, "exit_code": self.exit_code, "others": [o.as_dict() for o in self.others]}

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors cross process boundaries whole: the keyword-only fields are kept."""
        return _rebuild, (type(self), self.where, self.expected, self.got, self.hint, self.others)

    @classmethod
    def raise_all(cls, problems: Sequence[WiseftError]) -> None:
        """Raise the first of `problems` with the others attached; do nothing when there is none."""
        if problems:
            first = problems[0]
            first.others = (*first.others, *problems[1:])
            raise first

    def with_hint(self, hint: str) -> Self:
        """The same error with another hint, for a caller who knows more than the place that raised it."""
        self.hint = hint
        return self


@contextmanager
def of_adapter(number: int, count: int) -> Iterator[None]:
    """Let errors raised inside say which of several adapters they are about."""
    try:
        yield
    except WiseftError as error:
        for problem in (error, *error.others) if count > 1 else ():
            problem.where = f"adapter {number} of {count}: {problem.where}"
        raise


def _rebuild(
    kind: type[WiseftError], where: str, expected: str, got: str, hint: str, others: Sequence[WiseftError]
) -> WiseftError:
    return kind(where, expected=expected, got=got, hint=hint, others=others)


class ConfigError(WiseftError, ValueError):
    """A config field or an argument has a value that cannot be meant."""


class ConfigNeeded(ConfigError):
    """Nothing settles the scale of a low-rank delta: `lora_alpha` is never guessed."""


class BadAlpha(ConfigError):
    """The WiSE-FT coefficient is not a finite number in the allowed range."""


class UnusedPattern(ConfigError):
    """A pattern matches no touched tensor, or two equally specific ones match the same."""


class Unsupported(WiseftError, NotImplementedError):
    """Recognised for what it is, and refused by name because the result would be wrong or is not defined yet."""

    exit_code = 4


class TiedEmbeddings(Unsupported):
    """Tuning touches an embedding that the model shares with its output head."""


class QuantizedBase(Unsupported):
    """The base stores codes, not values: adding a delta to codes is silently wrong."""


class UndecidableOrientation(Unsupported):
    """A square weight may be stored (out, in) or (in, out), and nothing at hand settles which."""


class BindingError(WiseftError, KeyError):
    """Adapter and base do not fit together by name."""


class UnclaimedKey(BindingError):
    """An adapter tensor that lands on no base tensor."""


class MissingFactor(BindingError):
    """A factor that the adapter's method needs is not in the adapter."""


class AmbiguousName(BindingError):
    """More than one place fits, and they are different places."""


class ShapeMismatch(WiseftError, ValueError):
    """A factor does not fit the weight that it names."""


class DtypeMismatch(WiseftError, TypeError):
    """A tensor has a dtype that cannot be computed with here."""


class CheckpointError(WiseftError, OSError):
    """A checkpoint or adapter on disk is missing, malformed, inconsistent or in the way."""


class NotFinite(WiseftError, ArithmeticError):
    """A value is not finite, or a finite result does not fit the output's dtype."""


class EvaluationFailed(WiseftError):
    """The user's command was run on an output, and did not give the metrics that were asked for."""

    exit_code = 1


class Fault(WiseftError, OSError):
    """The operating system failed a call: no space, no permission, an I/O error."""

    exit_code = 5


class InputChanged(WiseftError, RuntimeError):
    """An input file changed while it was being read."""

    exit_code = 6


class Locked(WiseftError, RuntimeError):
    """Another process is writing the same output."""

    exit_code = 7
