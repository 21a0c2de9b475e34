"""One coefficient: how it is checked, and how it is written.

Schedules room. Standard library only: numpy's and torch's scalars are taken by what they can do, not by their type.
"""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from typing import Final

from wiseft_core.errors import BadAlpha, ConfigError

FIXED_EXPONENTS: Final = range(-6, 16)
MOST: Final = 1000
"""Numbers that one `spread` may give."""
LARGEST_EXPONENT: Final = 300
"""Beyond it exact arithmetic takes for ever, and no coefficient is meant."""


def canonical(alpha: float) -> str:
    """The one decimal that stands for `alpha` in folder names and manifests.

        float(canonical(alpha)) == alpha, with the fewest digits; -0.0 is "0"

    1.0 is "1" and 1e-3 is "0.001"; below 1e-6 and from 1e16 on it is scientific: "1e-300", "2.5e+16".

    Raises:
        BadAlpha: `alpha` is not a finite number.
    """
    value = check_alpha(alpha, "alpha", extrapolate=True)
    sign, digits, exponent = Decimal(repr(value)).as_tuple()
    text = "".join(map(str, digits)).rstrip("0")
    if not text:
        return "0"
    point = len(digits) + int(exponent)  # how many of the digits stand before the point
    minus = "-" * sign
    if point - 1 not in FIXED_EXPONENTS:
        return f"{minus}{text[0]}{'.' * (len(text) > 1)}{text[1:]}e{point - 1:+d}"
    if point <= 0:
        return f"{minus}0.{'0' * -point}{text}"
    whole, rest = text[:point].ljust(point, "0"), text[point:]
    return f"{minus}{whole}{'.' * bool(rest)}{rest}"


def check_alpha(alpha: object, where: str, *, extrapolate: bool) -> float:
    """`alpha` as a float: a finite real number, in [0, 1] unless `extrapolate`; -0.0 becomes 0.0.

    Numbers of numpy and torch are taken if they have no axis. Booleans and strings are not numbers.

    Raises:
        BadAlpha: Anything else.
    """
    expected = "a finite number" if extrapolate else "a number from 0 to 1"
    try:
        value = _real(alpha)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        value = None
    if value is None:
        got, hint = f"{shown(alpha)} ({type(alpha).__name__})", "give one plain number"
    elif not math.isfinite(value):
        got, hint = str(value), "give a finite number"
    elif not extrapolate and not 0.0 <= value <= 1.0:
        got, hint = repr(value), "0 is the base and 1 the tuned model; to go beyond, say so with extrapolate"
    else:
        return value + 0.0
    raise BadAlpha(where, expected=expected, got=got, hint=hint)


def _real(alpha: object) -> float | None:
    """`alpha` as a float, None if it is not one real number."""
    if isinstance(alpha, bool | complex) or not hasattr(alpha, "__float__") or getattr(alpha, "shape", ()) != ():
        return None
    kind = str(getattr(alpha, "dtype", "float"))
    if "float" not in kind and "int" not in kind:  # arrays of booleans, strings, complex numbers and objects
        return None
    detach = getattr(alpha, "detach", None)  # a learned alpha: torch warns about float() of one
    return float(detach() if callable(detach) else alpha)


def shown(value: object) -> str:
    """`value` as Python spells it, for an error."""
    try:
        return repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, a nest without end
        return "a value too large to show"


def spread(text: str) -> tuple[float, ...]:
    """The coefficients that `text` spells: one number, or START:STOP:STEP with both ends where they are reached.

        START + k·STEP for k = 0, 1, ... up to STOP, rounded once each: "0:1:0.1" is 0, 0.1, 0.2, 0.3, ..., 1

    Raises:
        ValueError: It is not a number, nor three.
        ConfigError: The step leads nowhere, or to more than 1000 numbers.
    """
    if ":" not in text:
        return (float(text),)
    try:
        numbers = [Decimal(number) for number in text.split(":")]
        if any(abs(number.adjusted()) > LARGEST_EXPONENT for number in numbers):
            raise OverflowError
        start, stop, step = map(Fraction, numbers)
        count = (stop - start) / step + 1
    except (ValueError, ArithmeticError):  # not three numbers, not finite ones, huge ones, or a step of zero
        raise ValueError(f"{text!r} is not START:STOP:STEP") from None
    if not 1 <= count < MOST + 1:
        raise ConfigError(
            f"alpha {text}",
            expected=f"a step that leads from START to STOP in at most {MOST} numbers",
            got="the other way" if count < 1 else "more numbers",
            hint="0:1:0.25 gives 0, 0.25, 0.5, 0.75 and 1",
        )
    return tuple(float(start + at * step) for at in range(int(count)))
