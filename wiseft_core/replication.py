"""Grown models: layers of the base that stand several times in the tuned one, each with a change of its own.

Joint floor: names, specs and configs only. PEFT shares the weights of the copies, and its merge adds the changes of all
of them to the one that they share; here every copy is a layer, as it was trained.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from wiseft_core.errors import ConfigError, Unsupported, listed
from wiseft_core.types import TensorSpec

LAYER: Final = re.compile(r"((?:[^.]+\.)*(?:layers|layer|h|blocks)\.)(\d{1,6})(\..+)")
"""A tensor of a layer: what it is in, its number, and its name there."""
COUNTS: Final = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
"""Where configs say how many layers there are."""


class Grown(NamedTuple):
    """A base with more layers: its specs, the base tensor of every name that is not its own, and the config's edits."""

    specs: Mapping[str, TensorSpec]
    sources: Mapping[str, str]
    config: Mapping[str, object]


def grown(
    base: Mapping[str, TensorSpec], spans: Sequence[tuple[int, int]], config: Mapping[str, object] | None
) -> Grown:
    """The base with the layers [first, last) of every span, one span after the other.

    Args:
        base: Specs of the base.
        spans: As PEFT's `layer_replication` has them.
        config: The base's config.json.
    Raises:
        ConfigError: The base does not have these layers.
        Unsupported: It has several stacks of layers, or the tuned model has fewer.
    """
    if not spans:
        return Grown(base, {}, {})
    places = {name: found for name in base if (found := LAYER.fullmatch(name))}
    stacks = {found[1] for found in places.values()}
    count = 1 + max((int(found[2]) for found in places.values()), default=-1)
    order = [layer for first, last in spans for layer in range(first, last)]
    if len(stacks) != 1 or len(order) < count:
        raise Unsupported(
            "layer_replication — the tuned model is not the base with layers put in",
            expected="a base with one stack of layers, all of whose places are filled",
            got=f"stacks {listed(stacks)} of {count} layers, {len(order)} layers in the tuned model",
            hint="build the grown model with PEFT, save it, and use that as base",
        )
    if max(order) >= count:
        raise ConfigError(
            "layer_replication",
            expected=f"layers of the base, which has {count}",
            got=f"layer {max(order)}",
            hint="is this the base that the adapter was trained on?",
        )
    (stack,) = stacks
    inside: dict[int, list[str]] = {}
    for found in places.values():
        inside.setdefault(int(found[2]), []).append(found[3])
    specs, sources = dict[str, TensorSpec](), dict[str, str]()
    for name, spec in base.items():
        if name not in places:
            specs[name] = spec
            continue
        layer, rest = int(places[name][2]), places[name][3]
        source = f"{stack}{order[layer]}{rest}"
        if source in base:
            specs[name] = base[source]
            if source != name:
                sources[name] = source
    for layer, of in enumerate(order):
        for rest in inside[of]:
            name = f"{stack}{layer}{rest}"
            if name not in specs:
                specs[name], sources[name] = base[f"{stack}{of}{rest}"], f"{stack}{of}{rest}"
    return Grown(specs, sources, _edits(config or {}, count, order))


def _edits(config: Mapping[str, object], count: int, order: Sequence[int], prefix: str = "") -> dict[str, object]:
    """What a config says of its layers, for the grown model: their number, and whatever it lists for each."""
    found: dict[str, object] = {}
    for key, value in config.items():
        if key in COUNTS and value == count:
            found[prefix + key] = len(order)
        elif isinstance(value, list) and len(value) == count and key in ("layer_types", "mlp_layer_types"):
            found[prefix + key] = [value[layer] for layer in order]
        elif key == "text_config" and isinstance(value, Mapping):
            found |= _edits(value, count, order, f"{prefix}{key}.")
    return found
