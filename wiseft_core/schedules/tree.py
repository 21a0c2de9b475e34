"""A schedule as a file spells it: the tree that TOML and JSON give, read strictly.

Schedules room. Standard library only; the reading of bytes is done elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from wiseft_core.errors import BadAlpha, ConfigError, WiseftError, listed, nearest
from wiseft_core.schedules.depth import ByDepth, by_depth, layer_number, not_a_layer
from wiseft_core.schedules.number import check_alpha, shown
from wiseft_core.types import Alpha, Schedule

KEYS: Final = ("alpha", "by_depth", "for")
DEPTH_KEYS: Final = ("points", "other", "within")


def from_tree(tree: Mapping[str, object], where: str) -> Alpha:
    """The schedule that a tree of plain values spells; in TOML:

        alpha = 0.5                       # every tensor that nothing below names
        [for]
        "model.layers.*.mlp.*" = 0.3
        [by_depth]                        # instead of `alpha`
        points = { 0 = 0.2, 31 = 0.8 }    # layer number = alpha
        other = 0.5
        within = "model.layers"           # optional

    With `for` alone, every tensor that tuning touches has to be matched by it. Ranges are checked when names are
    resolved, as for any alpha.

    Args:
        tree: The outermost table; keys are strings, those of `points` too.
        where: What the tree is, for the errors.

    Raises:
        BadAlpha: A value is not a finite number.
        ConfigError: A key is unknown or missing, a value is of another kind, or two say the same.
    """
    said = _table(tree, where, KEYS)
    defaults = [key for key in ("alpha", "by_depth") if key in said]
    patterns: dict[str, float | Schedule] = {
        pattern: _number(value, f"{where} — for[{pattern!r}]")
        for pattern, value in _table(said.get("for", {}), f"{where} — for").items()
    }
    if "*" in patterns:
        defaults.append('for["*"]')
    if len(defaults) > 1 or not (defaults or patterns):
        raise ConfigError(
            f"{where} — the alpha of all tensors that nothing else names",
            expected='alpha, or by_depth, or a "*" below for',
            got=" and ".join(defaults) or "none, and nothing below for",
            hint="keep one of them" if defaults else "alpha = 0.5 alone is a whole schedule",
        )
    if "alpha" in said:
        patterns["*"] = _number(said["alpha"], f"{where} — alpha")
    if "by_depth" in said:
        patterns["*"] = _by_depth(said["by_depth"], where)
    return patterns["*"] if patterns.keys() == {"*"} else patterns


def _by_depth(value: object, where: str) -> ByDepth:
    """The function that the table `by_depth` spells."""
    at = f"{where} — by_depth"
    said = _table(value, at, DEPTH_KEYS)
    missing = [key for key in ("points", "other") if key not in said]
    if missing:
        raise ConfigError(
            at,
            expected="points, and other for the tensors without a layer number",
            got=f"no {' and no '.join(missing)}",
            hint="other is never guessed: say what embeddings and head should get",
        )
    points = {}
    for key, alpha in _table(said["points"], f"{at}.points").items():
        layer = layer_number(key)
        if layer is None or str(layer) != key:  # "00" beside "0" would be one point
            raise not_a_layer(f"{at}.points", key)
        points[layer] = _number(alpha, f"{at}.points[{key}]")
    other, within = _number(said["other"], f"{at}.other"), said.get("within", "")
    try:
        return by_depth(points, other=other, within=within)  # type: ignore[arg-type]  # it looks at `within` itself
    except ConfigError as problem:
        problem.where = f"{where} — {problem.where}"
        raise


def _table(value: object, where: str, known: Sequence[str] = ()) -> Mapping[str, object]:
    """A table with string keys; if there are `known` ones, with no others."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ConfigError(
            where,
            expected="a table: strings as keys, each with a value",
            got=f"{shown(value)} ({type(value).__name__})",
            hint="see the docstring of `schedules.from_tree` for an example",
        )
    problems: list[WiseftError] = [
        ConfigError(
            f"{where} — {key}",
            expected=f"one of {listed(known)}",
            got="a key that is not known",
            hint=f"the nearest: {', '.join(nearest(key, known, cutoff=0.4) or known)}",
        )
        for key in (value if known else ())
        if key not in known
    ]
    WiseftError.raise_all(problems)
    return value


def _number(value: object, where: str) -> float:
    """A finite number."""
    try:
        return check_alpha(value, where, extrapolate=True)
    except BadAlpha as problem:
        if isinstance(value, Mapping):  # in TOML, dots outside of quotes make tables
            problem.hint = 'put a name with dots in quotes: "model.norm.weight" = 0.5'
        raise
