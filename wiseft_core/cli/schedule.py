"""What `--alpha`, `--alpha-for` and `--schedule` say together: one alpha, or one for each tensor."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from wiseft_core.errors import CheckpointError, ConfigError
from wiseft_core.schedules import check_alpha, from_tree
from wiseft_core.store.files import read_file
from wiseft_core.store.strict_json import as_mapping, load_json
from wiseft_core.types import Alpha, Schedule

LIMIT: Final = 1 << 20
DOTS: Final = 100
"""In one line of TOML: the parser keeps n² / 2 words for a key of n dotted parts."""


def read_schedule(path: Path) -> Alpha:
    """The schedule in a file, spelled as in `schedules.from_tree`.

    Args:
        path: A .toml or .json file of at most 1 MiB.

    Raises:
        CheckpointError: There is no such file, it is too large, or it is malformed.
        ConfigError: Its name has another ending, or what it says cannot be meant.
    """
    where = str(path)
    if path.suffix not in (".toml", ".json"):
        raise ConfigError(
            f"{where} — not a schedule",
            expected="a file whose name ends in .toml or .json",
            got=f"the ending {path.suffix!r}" if path.suffix else "a name without an ending",
            hint="write the schedule as TOML, or give one number with --alpha",
        )
    data = read_file(path, limit=LIMIT)
    if path.suffix == ".toml":
        return from_tree(_toml(data, where), where)
    try:
        tree = as_mapping(load_json(data, where), where)
    except CheckpointError as problem:  # the reader's own hint is for files that a program wrote
        problem.with_hint('write {"alpha": 0.5, "for": {"lm_head.weight": 1}}, say')
        raise
    return from_tree(tree, where)


def combined(alpha: float | None, alpha_for: Sequence[str], file: Path | None) -> Alpha:
    """The one schedule that the options spell together.

    Args:
        alpha: For every tensor that nothing else names.
        alpha_for: "PATTERN=A" for the tensors that a name or glob matches, split at the last "=".
        file: Brings patterns, and an alpha for the rest unless `alpha` is given.

    Raises:
        CheckpointError: See `read_schedule`.
        ConfigError: Neither `alpha` nor `file` is given, an entry is malformed, or one pattern is given twice.
    """
    if alpha is None and file is None:
        raise ConfigError(
            "alpha",
            expected="--alpha A or --schedule FILE",
            got="--alpha-for alone" if alpha_for else "neither",
            hint="give --alpha: 0 is the base, 1 the tuned model",
        )
    said = [] if file is None else [(str(file), _by_pattern(read_schedule(file)))]
    said += [] if alpha is None else [(f"--alpha {alpha}", {"*": alpha})]
    said += [(f"--alpha-for {entry}", _entry(entry)) for entry in alpha_for]
    values, homes = dict[str, float | Schedule](), dict[str, str]()
    for origin, part in said:
        for pattern, value in part.items():
            if pattern in homes:
                raise ConfigError(
                    f"alpha for {pattern!r}" + (", all tensors that nothing else names" if pattern == "*" else ""),
                    expected="one alpha for each name or glob",
                    got=f"one from {homes[pattern]} and one from {origin}",
                    hint="leave one of them out",
                )
            values[pattern], homes[pattern] = value, origin
    return values["*"] if values.keys() == {"*"} else values


def _by_pattern(alpha: Alpha) -> Mapping[str, float | Schedule]:
    """Any alpha as a mapping."""
    return alpha if isinstance(alpha, Mapping) else {"*": alpha}


def _entry(text: str) -> Mapping[str, float]:
    """What one --alpha-for says."""
    pattern, _, value = text.rpartition("=")
    try:
        number = float(value)
    except ValueError:
        number = None
    if not pattern or number is None:
        raise ConfigError(
            f"--alpha-for {text}",
            expected="PATTERN=A: a name or glob, and a number behind the last =",
            got=f"the pattern {pattern!r} and the value {value!r}" if "=" in text else "no =",
            hint="give --alpha-for 'lm_head.weight=1', say, in quotes for the sake of the shell",
        )
    return {pattern: check_alpha(number, f"--alpha-for {text}", extrapolate=True)}


def _toml(data: bytes, where: str) -> Mapping[str, object]:
    """The table that a TOML document spells."""
    try:
        text = data.decode("utf-8")
        if max(line.count(".") for line in text.split("\n")) <= DOTS:
            return tomllib.loads(text)
        problem = f"more than {DOTS} dots in one line"
    except RecursionError:
        problem = "nested too deep"
    except ValueError as error:  # not UTF-8, not TOML, or a number of thousands of digits
        problem = str(error)
    raise CheckpointError(
        f"{where} — refused as TOML",
        expected="TOML 1.0 in UTF-8, with names and globs in quotes",
        got=problem,
        hint='write alpha = 0.5, then [for], then "lm_head.weight" = 1 each on its line, say',
    )
