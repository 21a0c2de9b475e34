"""What is known of transformers' architectures: the shipped table, read when it is first asked, and kept.

Naming room. The table holds what a script of ours read off one version of transformers and checked against it; an
architecture that it lacks is not known here, and nothing is guessed for it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any, Final, NamedTuple

from wiseft_core.naming.renames import How, Rule, Rules

TOWERS: Final = ("vision_config", "audio_config")
"""The configs of models inside a model that are always bare models."""
PAIRS: Final = ("encoder-decoder", "vision-encoder-decoder", "speech-encoder-decoder")
"""Model types that are any encoder with any decoder."""
CAUSAL: Final = ("ForCausalLM", "LMHeadModel", "GenerationDecoder")
"""Ends of the class names of causal language models, of which a type has one."""


class Tie(NamedTuple):
    """Two parameters that are one where the config ties them.

    Attributes:
        head: The one that is left out of a checkpoint, in memory.
        head_on_disk: Its name where it is written.
        source: The one that is written, in memory.
        source_on_disk: Its name there.
    """

    head: str
    head_on_disk: str
    source: str
    source_on_disk: str


class Architecture(NamedTuple):
    """A model class with a configuration of one type.

    Attributes:
        rules: How its tensors are renamed on their way to memory.
        ties: What is tied where `tie_word_embeddings` says so.
        prefix: transformers' `base_model_prefix`, the name of the bare model inside a model with a head.
        conv1d: The last components of its modules whose weight is stored (in, out).
        transposed: Whether its stacked experts are stored (in, out).
    """

    rules: Rules
    ties: tuple[Tie, ...]
    prefix: str
    conv1d: frozenset[str]
    transposed: bool


def architecture_of(base_config: Mapping[str, Any] | None) -> Architecture | None:
    """What is known of a base.

    Args:
        base_config: The base's config.json.

    Returns:
        None where the table does not have its model type and class, or not with the models inside it.
    """
    model_type = (base_config or {}).get("model_type")
    said = _table()["types"].get(model_type) if isinstance(model_type, str) else None
    if base_config is None or said is None or "auto_map" in base_config:
        return None
    classes, named = said["classes"], base_config.get("architectures")
    name = named[0] if isinstance(named, list) and named else said["base"]
    if not isinstance(name, str) or name not in classes:
        return None
    rules, kept, subs, ties, prefix = classes[name]
    if not all(_like(base_config, field.split("."), usual) for field, usual in _table()["subs"][subs].items()):
        return None
    return Architecture(
        _rules(rules, kept), _ties(ties), prefix, frozenset(said.get("conv1d", ())), said.get("transposed", False)
    )


def rules_of(base_config: Mapping[str, Any] | None) -> Rules | None:
    """The rules of a base, or None where they are not known.

    Args:
        base_config: The base's config.json.
    """
    found = architecture_of(base_config)
    return None if found is None else found.rules


def tied_of(base_config: Mapping[str, Any] | None) -> tuple[Tie, ...]:
    """What is tied in a base whose config says that its embeddings are; nothing where that is not known.

    Args:
        base_config: The base's config.json.
    """
    found = architecture_of(base_config)
    return _decoder_ties(base_config) or (() if found is None else found.ties)


def _decoder_ties(base_config: Mapping[str, Any] | None) -> tuple[Tie, ...]:
    """What is tied in the decoder of an encoder with any decoder: it is that type's causal language model."""
    said, inner = base_config or {}, (base_config or {}).get("decoder")
    if said.get("model_type") not in PAIRS or not isinstance(inner, Mapping):
        return ()
    model_type = inner.get("model_type")
    known = _table()["types"].get(model_type, {"classes": {}}) if isinstance(model_type, str) else {"classes": {}}
    causal = [name for name in known["classes"] if name.endswith(CAUSAL)]
    found = architecture_of({**inner, "architectures": causal[:1]}) if causal else None
    return () if found is None else tuple(Tie(*(f"decoder.{name}" for name in tie)) for tie in found.ties)


def transposed_experts(base_config: Mapping[str, Any] | None) -> bool | None:
    """Whether the stacked experts of a base are stored (in, out), or None where that is not known.

    Args:
        base_config: The base's config.json.
    """
    found = architecture_of(base_config)
    return None if found is None else found.transposed


def _like(config: object, field: list[str], usual: str) -> bool:
    """Whether a config inside a config brings the same rules with it as the type that the table saw there."""
    for key in field:
        config = config.get(key) if isinstance(config, Mapping) else config
    if not isinstance(config, Mapping):
        return config is None  # transformers takes the usual one
    other = config.get("model_type", usual)
    if other == usual:
        return True
    tower = field[-1] in TOWERS
    lists = _lists(other, tower) if isinstance(other, str) else set()
    return len(lists) == 1 and lists == _lists(usual, tower)


def _lists(model_type: str, bare: bool) -> set[tuple[int, ...]]:
    """The lists of rules that the classes of a type have, or its bare model alone; none where it is not known."""
    said = _table()["types"].get(model_type, {"base": None, "classes": {}})
    names = [said["base"]] if bare else said["classes"]
    return {tuple(said["classes"][name][:3]) for name in names if name}


@cache
def _table() -> dict[str, Any]:
    """The table, as it was read."""
    found: dict[str, Any] = json.loads((files(__package__) / "transformers.json").read_text(encoding="utf-8"))
    return found


@cache
def _rules(number: int, kept: int) -> Rules:
    """One list of rules, and the names that they leave alone."""
    table, found = _table(), []
    for each in table["lists"][number]:
        at, *scope = each if isinstance(each, list) else [each]
        said = table["rules"][at]
        how = How(**said["how"]) if "how" in said else None
        found.append(Rule(said["pattern"], tuple(said["to"]), tuple(scope), how, said.get("why", "")))
    return Rules(found, table["kept"][kept])


@cache
def _ties(number: int) -> tuple[Tie, ...]:
    """One list of ties."""
    return tuple(Tie(*each) for each in _table()["ties"][number])
