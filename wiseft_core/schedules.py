"""The WiSE-FT coefficient: how it is checked, written, and given per tensor name.

Schedules room. Standard library only: numpy's and torch's scalars are taken by what they can do, not by their type.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Final

from wiseft_core.errors import BadAlpha, ConfigError, UnusedPattern, WiseftError, listed, nearest
from wiseft_core.types import Alpha

FIXED_EXPONENTS: Final = range(-6, 16)


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
        got, hint = f"{alpha!r} ({type(alpha).__name__})", "give one plain number"
    elif not math.isfinite(value):
        got, hint = str(value), "give a finite number"
    elif not extrapolate and not 0.0 <= value <= 1.0:
        got, hint = repr(value), "0 is the base and 1 the tuned model; to go beyond, say so with extrapolate"
    else:
        return value + 0.0
    raise BadAlpha(where, expected=expected, got=got, hint=hint)


def resolve(alpha: Alpha, names: Sequence[str], *, extrapolate: bool = False) -> dict[str, float]:
    """The coefficient of each of `names`, in their order.

    Args:
        alpha: A number for all; a function, asked once per name; or a mapping whose keys are names or globs (`*` any
            run of characters, `?` one). A name beats every glob; among globs the one with most literal characters wins.
        names: The tensors that tuning touches.
        extrapolate: Allow coefficients outside [0, 1].

    Raises:
        BadAlpha: A coefficient is not a finite number in range.
        UnusedPattern: A key matches no name, or two globs with different coefficients are equally specific.
        ConfigError: No key matches one of the names, or a key is not a string.
    """
    if isinstance(alpha, Mapping):
        return _by_pattern(alpha, names, extrapolate)
    if callable(alpha):
        return {name: check_alpha(alpha(name), f"alpha({name!r})", extrapolate=extrapolate) for name in names}
    return dict.fromkeys(names, check_alpha(alpha, "alpha", extrapolate=extrapolate))


def _real(alpha: object) -> float | None:
    """`alpha` as a float, None if it is not one real number."""
    if isinstance(alpha, bool | complex) or not hasattr(alpha, "__float__") or getattr(alpha, "shape", ()) != ():
        return None
    kind = str(getattr(alpha, "dtype", "float"))
    if "float" not in kind and "int" not in kind:  # arrays of booleans, strings, complex numbers and objects
        return None
    detach = getattr(alpha, "detach", None)  # a learned alpha: torch warns about float() of one
    return float(detach() if callable(detach) else alpha)


def _by_pattern(alpha: Mapping[str, float], names: Sequence[str], extrapolate: bool) -> dict[str, float]:
    """`resolve` for a mapping, all problems at once."""
    wrong = [key for key in alpha if not isinstance(key, str)]
    if wrong:
        raise ConfigError(
            "alpha", expected="tensor names or globs as keys", got=listed(map(repr, wrong)), hint="quote the names"
        )
    values = {key: check_alpha(value, f"alpha[{key!r}]", extrapolate=extrapolate) for key, value in alpha.items()}
    known = set(names)
    globs = [key for key in values if key not in known and ("*" in key or "?" in key)]
    used, problems = known & values.keys(), list[WiseftError]()
    resolved, unmatched = dict[str, float](), list[str]()
    for name in names:
        fitting = [glob for glob in globs if _fits(glob, name)]
        used.update(fitting)
        if name in values:
            resolved[name] = values[name]
        elif not fitting:
            unmatched.append(name)
        else:
            most = max(map(_literals, fitting))
            best = [glob for glob in fitting if _literals(glob) == most]
            resolved[name] = values[best[0]]
            if len({values[glob] for glob in best}) > 1:
                problems.append(_tie(name, best))
    problems += _unused([key for key in values if key not in used], names)
    if unmatched:
        problems.append(
            ConfigError(
                "alpha — tensors without a coefficient",
                expected="a key for every tensor that tuning touches",
                got=f"none for {listed(unmatched)}",
                hint='add a "*" key for all others',
            )
        )
    WiseftError.raise_all(problems)
    return resolved


def _tie(name: str, globs: Sequence[str]) -> WiseftError:
    return UnusedPattern(
        f"alpha for {name}",
        expected="one glob that is more specific than the others",
        got=f"{listed(map(repr, globs))} with different coefficients",
        hint="give that tensor by its full name",
    )


def _unused(keys: Sequence[str], names: Sequence[str]) -> Iterator[WiseftError]:
    """An error for each key that matches nothing."""
    for key in keys:
        near = nearest(key, names, cutoff=0.4)
        yield UnusedPattern(
            f"alpha[{key!r}]",
            expected=f"a name or glob of one of the {len(names)} tensors that tuning touches",
            got="no tensor that it matches",
            hint=f"the nearest: {', '.join(near)}" if near else "`plan` lists the tensors that tuning touches",
        )


def _literals(glob: str) -> int:
    """How specific a glob is."""
    return len(glob) - glob.count("*") - glob.count("?")


def _fits(glob: str, name: str) -> bool:
    """Whether `glob` matches all of `name`. Only the last star is ever reconsidered: at most len · len steps."""
    at, begun, star = 0, 0, -1
    for_glob = 0
    while at < len(name):
        if for_glob < len(glob) and glob[for_glob] == "*":
            star, begun = for_glob, at
            for_glob += 1
        elif for_glob < len(glob) and glob[for_glob] in ("?", name[at]):
            for_glob += 1
            at += 1
        elif star >= 0:
            begun += 1
            for_glob, at = star + 1, begun
        else:
            return False
    return set(glob[for_glob:]) <= {"*"}
