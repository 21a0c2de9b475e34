"""The coefficient of each tensor: given as one number, by name or glob, or by a function, and resolved per name.

Schedules room. Standard library only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from wiseft_core.errors import ConfigError, UnusedPattern, WiseftError, listed, nearest
from wiseft_core.schedules.depth import ByDepth
from wiseft_core.schedules.number import check_alpha
from wiseft_core.types import Alpha, Schedule

LISTING: Final = "`wiseft plan --json` lists the tensors that tuning touches"


def resolve(alpha: Alpha, names: Sequence[str], *, extrapolate: bool = False) -> dict[str, float]:
    """The coefficient of each of `names`, in their order.

    Args:
        alpha: A number for all; a function, asked once per name; or a mapping whose keys are names or globs (`*` any
            run of characters, `?` one) and whose values are numbers or functions. A name beats every glob; among globs
            the one with most literal characters wins.
        names: The tensors that tuning touches.
        extrapolate: Allow coefficients outside [0, 1].

    Raises:
        BadAlpha: A coefficient is not a finite number in range.
        UnusedPattern: A key matches no name, two globs that give a name different coefficients are equally specific, or
            a `by_depth` finds its `within` in no name.
        ConfigError: No key matches one of the names, or a key is not a string.
    """
    _check_depths(alpha.values() if isinstance(alpha, Mapping) else [alpha], names)
    if isinstance(alpha, Mapping):
        return _by_pattern(alpha, names, extrapolate)
    if callable(alpha):
        return {name: check_alpha(alpha(name), f"alpha({name!r})", extrapolate=extrapolate) for name in names}
    return dict.fromkeys(names, check_alpha(alpha, "alpha", extrapolate=extrapolate))


def frozen(alpha: Alpha) -> Alpha:
    """What `resolve` has taken, with plain numbers of its own: a tensor or a mapping may be changed by who gave it."""
    if isinstance(alpha, Mapping):
        return _numbers(alpha, extrapolate=True)
    return alpha if callable(alpha) else check_alpha(alpha, "alpha", extrapolate=True)


def _numbers(alpha: Mapping[str, float | Schedule], *, extrapolate: bool) -> dict[str, float | Schedule]:
    """A mapping's values, the numbers of them checked."""
    return {
        key: value if callable(value) else check_alpha(value, f"alpha[{key!r}]", extrapolate=extrapolate)
        for key, value in alpha.items()
    }


def _check_depths(values: Iterable[object], names: Sequence[str]) -> None:
    """Refuse a schedule by depth whose `within` is in no name: it would give `other` to all of them."""
    for value in values:
        if isinstance(value, ByDepth) and value.within and names and not value.reaches(names):
            near = nearest(value.within, {name.rpartition(".")[0] for name in names}, cutoff=0.4)
            raise UnusedPattern(
                f"by_depth.within {value.within!r}",
                expected=f"components with a layer number behind them in one of the {len(names)} touched names",
                got="no name that has them",
                hint=f"names such as {listed(near)}" if near else LISTING,
            )


def _by_pattern(alpha: Mapping[str, float | Schedule], names: Sequence[str], extrapolate: bool) -> dict[str, float]:
    """`resolve` for a mapping, all problems at once."""
    wrong = [key for key in alpha if not isinstance(key, str)]
    if wrong:
        raise ConfigError(
            "alpha", expected="tensor names or globs as keys", got=listed(map(repr, wrong)), hint="quote the names"
        )
    values = _numbers(alpha, extrapolate=extrapolate)
    known = set(names)
    globs = [key for key in values if key not in known and ("*" in key or "?" in key)]
    used, problems = known & values.keys(), list[WiseftError]()
    resolved, unmatched = dict[str, float](), list[str]()
    for name in names:
        fitting = [glob for glob in globs if _fits(glob, name)]
        used.update(fitting)
        best = [name] if name in values else _most_specific(fitting)
        if not best:
            unmatched.append(name)
            continue
        asked = {id(values[key]): key for key in best}  # a function is asked once: it may not say the same twice
        given = [_given(values[key], key, name, extrapolate) for key in asked.values()]
        resolved[name] = given[0]
        if len(set(given)) > 1:
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


def _given(value: float | Schedule, key: str, name: str, extrapolate: bool) -> float:
    """The coefficient that the value of `key` gives to `name`."""
    if callable(value):
        return check_alpha(value(name), f"alpha[{key!r}]({name!r})", extrapolate=extrapolate)
    return value


def _most_specific(globs: Sequence[str]) -> list[str]:
    """Those of `globs` with most literal characters."""
    most = max(map(_literals, globs), default=0)
    return [glob for glob in globs if _literals(glob) == most]


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
            hint=f"the nearest: {', '.join(near)}" if near else LISTING,
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
