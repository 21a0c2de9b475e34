"""An adapter's config as it is saved: every field that it came with, and those without which PEFT would not load it.

Joint floor: names and configs only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields

from wiseft_core.config import AdapterConfig
from wiseft_core.config_fields import RENAMED, plain
from wiseft_core.families import FAMILIES, Family
from wiseft_core.naming.patterns import first_match
from wiseft_core.naming.peft import PeftKey


def completed(
    config: AdapterConfig,
    parsed: Mapping[str, PeftKey],
    ranks: Mapping[str, int | None],
    families: Mapping[str, Family] = FAMILIES,
) -> tuple[dict[str, object], tuple[str, ...]]:
    """The fields of adapter_config.json, and the names of those that the config did not have.

    A field that is there stays as it is, null too: a config that PEFT wrote has them all.

    Args:
        config: The adapter's config.
        parsed: The meaning of the adapter's keys.
        ranks: The modules with factors, each with its rank where these have one.
        families: The methods to know.
    """
    given = dict(config.fields)
    read = AdapterConfig.from_mapping(given, families=families)
    if read != config:  # made by hand, or changed since it was read
        given |= _changed_fields(config, read)
    needed: dict[str, object] = {"peft_type": config.peft_type}
    if config.peft_type != "TRAINABLE_TOKENS":
        own = [record for record in families.values() if record.peft == config.peft_type]
        needed |= _from_ranks(config, ranks, own) | _from_roles(config, parsed)
    missing = {name: value for name, value in needed.items() if name not in given}
    return given | missing, tuple(sorted(missing))


def _changed_fields(config: AdapterConfig, read: AdapterConfig) -> dict[str, object]:
    """The fields of a config that are not as they were read, as JSON spells them."""
    names = {own: name for name, own in RENAMED.items()}
    own = {
        names.get(field.name, field.name): plain(getattr(config, field.name))
        for field in fields(config)
        if field.compare and field.name != "options" and getattr(config, field.name) != getattr(read, field.name)
    }
    options = {name: value for name, value in config.options.items() if read.options.get(name) != value}
    return own | {name: plain(value) for name, value in options.items()}


def _from_ranks(config: AdapterConfig, ranks: Mapping[str, int | None], own: Sequence[Family]) -> dict[str, object]:
    """What the modules and their ranks say of a method's config, where that is not the default of PEFT."""
    found: dict[str, object] = {"target_modules": sorted(ranks)}
    sizes = {module: rank for module, rank in ranks.items() if rank is not None}
    if not sizes or config.said("r") is not None or not any("r" in (*one.options, *one.harmless) for one in own):
        return found
    found["r"] = rank = Counter(sizes.values()).most_common(1)[0][0]
    others = {
        f"^{module}".replace(".", r"\."): size
        for module, size in sizes.items()
        if size != rank and first_match(config.rank_pattern, module) is None
    }
    if others:
        found["rank_pattern"] = others
    return found


def _from_roles(config: AdapterConfig, parsed: Mapping[str, PeftKey]) -> dict[str, object]:
    """What the kinds of tensors say of it."""
    found: dict[str, object] = {}
    lora = config.peft_type == "LORA"
    roles = {said.role for said in parsed.values()}
    if lora:
        found |= {field: True for field, role in (("use_dora", "magnitude"), ("lora_bias", "bias")) if role in roles}
    values = [said for said in parsed.values() if said.role == "value"]
    heads = {said.module for said in values if not said.wrapped and said.parameter != "bias"}
    if heads:
        found["modules_to_save"] = sorted(heads)
    biases = [said for said in values if said.parameter == "bias" and said.module not in heads]
    if biases:
        found["bias"] = "lora_only" if lora and all(said.wrapped for said in biases) else "all"
    return found
