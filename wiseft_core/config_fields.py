"""How one field of an adapter's config is read: strictly, because a wrong number in it is a wrong result.

A reader takes what JSON gives and where it stands, and returns the value or raises ConfigError. A bool is no number, a
string is no list, and every number has a range.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from enum import Enum
from functools import partial
from typing import Final, TypeVar

from wiseft_core.errors import ConfigError, Unsupported, WiseftError
from wiseft_core.families import MODULES, Option
from wiseft_core.naming.patterns import compile_pattern

T = TypeVar("T")
Reader = Callable[[object, str], object]
MAX_RANK: Final = 65_536
MAX_LORA_ALPHA: Final = 1e9
MAX_TOKEN: Final = 2**31
MAX_STATES: Final = 200_000
MAX_LAYERS: Final = 10_000
MAX_PATTERNS: Final = 8_000
"""In one field: two such fields fit the cache of `compile_pattern`."""
MAX_NAMES: Final = 1_000
EMBEDDING: Final = "embed_tokens"


def plain(value: object) -> object:
    """`value` as JSON would have it: enums by value, sets sorted, tuples as lists."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, AbstractSet):
        return sorted(value, key=repr)
    return list(value) if isinstance(value, tuple) else value


def is_unset(value: object) -> bool:
    """Whether a field has the value of an option that is not used."""
    return value is None or (isinstance(value, bool | int | float | str | list | Mapping) and not value)


def wrong(where: str, expected: str, got: object) -> ConfigError:
    """The refusal of a value, with its type."""
    hint = "correct it in the adapter's config"
    try:
        shown = repr(got)
    except (ValueError, RecursionError):  # a number of thousands of digits, a nest without end
        shown = "a value too large to show"
    return ConfigError(where, expected=expected, got=f"{shown} ({type(got).__name__})", hint=hint)


def _flag(value: object, where: str) -> bool:
    """True or false, nothing like them."""
    if not isinstance(value, bool):
        raise wrong(where, "true or false", value)
    return value


def string(value: object, where: str) -> str:
    """A string."""
    if not isinstance(value, str):
        raise wrong(where, "a string", value)
    return value


def _whole(value: object, where: str, least: int, most: int) -> int:
    """A whole number in range."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise wrong(where, f"a whole number from {least} to {most}", value)
    return value


def _lora_alpha(value: object, where: str) -> float:
    """LoRA's alpha: finite, of any sign."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MAX_LORA_ALPHA:
        raise wrong(where, f"a finite number, at most {MAX_LORA_ALPHA:g} in size", value)
    return float(value)


def _bias(value: object, where: str) -> str:
    """Which biases were trained."""
    if value not in ("none", "all", "lora_only"):
        raise wrong(where, "none, all or lora_only", value)
    return str(value)


def _rank(value: object, where: str) -> int:
    """A rank."""
    return _whole(value, where, 1, MAX_RANK)


def _names(value: object, where: str) -> tuple[str, ...]:
    """A list of module names."""
    if not isinstance(value, list) or len(value) > MAX_NAMES:
        raise wrong(where, f"a list of at most {MAX_NAMES} module names", value)
    return tuple(string(name, where) for name in value)


def _mapping(value: object, where: str) -> dict[str, object]:
    """An object with string keys."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise wrong(where, "an object whose keys are strings", value)
    return dict(value)


def _patterns(value: object, where: str, reader: Callable[[object, str], T]) -> dict[str, T]:
    """A mapping of patterns, each of them compiled once so that a bad one is found here."""
    said = _mapping(value, where)
    if len(said) > MAX_PATTERNS:
        raise wrong(where, f"at most {MAX_PATTERNS} patterns", value)
    read = {pattern: reader(one, f"{where}[{pattern!r}]") for pattern, one in said.items()}
    states = 0
    for pattern in read:
        try:
            states += len(compile_pattern(pattern).states)
        except WiseftError as problem:
            problem.where = f"{where}: {problem.where}"
            raise
        if states > MAX_STATES:
            hint = "list the modules by their names instead"
            raise Unsupported(where, expected=f"patterns of at most {MAX_STATES} states", got="more", hint=hint)
    return read


def _rank_pattern(value: object, where: str) -> dict[str, int]:
    """Ranks by pattern."""
    return _patterns(value, where, _rank)


def _alpha_pattern(value: object, where: str) -> dict[str, float]:
    """LoRA's alphas by pattern."""
    return _patterns(value, where, _lora_alpha)


def _tokens(value: object, where: str) -> tuple[int, ...]:
    """The rows of one embedding, in the order of their trained values."""
    if not isinstance(value, list | tuple):
        raise wrong(where, "a list of token indices", value)
    tokens = tuple(_whole(token, where, 0, MAX_TOKEN) for token in value)
    if len(set(tokens)) < len(tokens):
        raise wrong(where, "token indices that are all different", value)
    return tokens


def _token_indices(value: object, where: str) -> dict[str, tuple[int, ...]]:
    """Rows by module; a list alone means the input embedding, as in PEFT."""
    by_module = {EMBEDDING: value} if isinstance(value, list) else _mapping(value, where)
    if len(by_module) > MAX_NAMES:
        raise wrong(where, f"an object of at most {MAX_NAMES} module names", value)
    return {module: _tokens(rows, f"{where}[{module!r}]") for module, rows in by_module.items()}


def _rows(value: object, where: str) -> dict[str, tuple[int, ...]]:
    """Rows by module, as they are once they are read."""
    return _token_indices({module: plain(rows) for module, rows in _mapping(value, where).items()}, where)


def _layers(value: object, where: str) -> tuple[tuple[int, int], ...]:
    """Spans [first, last) of the base's layers, which make up the tuned model's one after the other."""
    if not isinstance(value, list | tuple) or len(value) > MAX_NAMES:
        raise wrong(where, f"a list of at most {MAX_NAMES} spans of layers", value)
    spans = []
    for span in value:
        if not isinstance(span, list | tuple) or len(span) != 2:
            raise wrong(where, "spans of layers, each [first, last)", span)
        first, last = (_whole(end, where, 0, MAX_LAYERS) for end in span)
        if first >= last:
            raise wrong(where, "spans of at least one layer", span)
        spans.append((first, last))
    if sum(last - first for first, last in spans) > MAX_LAYERS:
        raise wrong(where, f"at most {MAX_LAYERS} layers in all", value)
    return tuple(spans)


def tokens_by_module(given: Mapping[str, object], where: str) -> dict[str, object]:
    """The rows that TRAINABLE_TOKENS spreads over two fields, in LoRA's form."""
    targets = given.get("target_modules") or EMBEDDING
    modules = _names([targets] if isinstance(targets, str) else targets, f"{where}: target_modules")
    return dict.fromkeys(modules, given.get("token_indices"))


def _number(value: object, where: str) -> float:
    """A finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise wrong(where, "a finite number", value)
    return float(value)


def _count(value: object, where: str) -> int:
    """A whole number: a size, a count or a seed."""
    return _whole(value, where, 0, 2**63)


def _modules(value: object, where: str) -> tuple[str, ...] | str:
    """Modules by the ends of their names, or by a pattern of whole names."""
    if isinstance(value, list):
        return _names(value, where)
    _patterns({whole(string(value, where)): 1}, where, _rank)
    return str(value)


def whole(pattern: str) -> str:
    """A pattern that fits whole paths only, as `re.fullmatch` does."""
    return f"^({pattern})"


def _word(kinds: tuple[object, ...], why: str) -> Reader:
    """A reader of one of a few values, and the reason for refusing others, if there is one."""

    def read(value: object, where: str) -> object:
        if any(value is kind or (value == kind and type(value) is type(kind)) for kind in kinds):
            return value
        problem = wrong(where, " or ".join(map(repr, kinds)), value)
        if not why:
            raise problem
        hint = "merge this adapter with the library that trained it, and give the merged checkpoint in its place"
        hint = f"save it with {where.rpartition(' ')[2]}=True, or {hint}" if kinds == (True,) else hint
        raise Unsupported(where, expected=problem.expected, got=f"{problem.got} — {why}", hint=hint)

    return read


KINDS: Final[Mapping[object, Reader]] = {bool: _flag, int: _count, float: _number, MODULES: _modules}
"""How each kind of option is read."""


def option_readers(options: Mapping[str, Option]) -> dict[str, Reader]:
    """How a family's options are read, and the patterns that override them."""
    readers: dict[str, Reader] = {}
    for name, option in options.items():
        reader = _rank if name == "r" else KINDS.get(option.kind) or _word(option.kind, option.why)
        readers[name] = reader
        if option.pattern is not None:
            readers[option.pattern] = partial(_patterns, reader=reader)
    return readers


def _trained_biases(value: object, where: str) -> str:
    """Which biases were trained, in any method's words."""
    said = string(value, where)
    if said not in ("none", "all") and not said.endswith("_only"):
        raise wrong(where, "none, all or ..._only", value)
    return said


def _part(*known: str) -> Reader:
    """A reader of a part of a config that is there or not: true where it is an object of these fields, none needed."""

    def read(value: object, where: str) -> bool:
        if value is False:
            return False
        strange = {name for name, one in _mapping(value, where).items() if name not in known and not is_unset(one)}
        if strange:
            raise wrong(where, f"an object of {', '.join(known)}", value)
        return True

    return read


RENAMED: Final = {"base_model_name_or_path": "base_model"}
READERS: Final[Mapping[str, dict[str, Reader]]] = {
    "any": {"task_type": string, "base_model_name_or_path": string, "peft_version": string},
    "LORA": {
        "lora_alpha": _lora_alpha,
        "r": _rank,
        "use_rslora": _flag,
        "use_dora": _flag,
        "lora_bias": _flag,
        "bias": _bias,
        "rank_pattern": _rank_pattern,
        "alpha_pattern": _alpha_pattern,
        "modules_to_save": _names,
        "fan_in_fan_out": _flag,
        "trainable_token_indices": _token_indices,
        "ensure_weight_tying": _flag,
        "target_parameters": _names,
        "layer_replication": _layers,
        "use_bdlora": _part("target_modules_bd_a", "target_modules_bd_b", "nblocks", "match_strict"),
        "kasa_config": _part("beta", "gamma"),
    },
    "TRAINABLE_TOKENS": {"trainable_token_indices": _token_indices},
    "others": {"bias": _trained_biases, "modules_to_save": _names, "fan_in_fan_out": _flag},
}
"""How each field that changes numbers is read, by method; what the others read besides, their families say."""
FIELDS: Final[Mapping[str, Reader]] = {
    **{RENAMED.get(name, name): reader for name, reader in (READERS["any"] | READERS["LORA"]).items()},
    "peft_type": string,
    "lora_alpha": _number,
    "alpha_pattern": partial(_patterns, reader=_number),
    "bias": _trained_biases,
    "trainable_token_indices": _rows,
    "use_bdlora": _flag,
    "kasa_config": _flag,
}
"""What may stand in each field of a config that was built and not read, whatever its method."""
