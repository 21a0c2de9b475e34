"""The verb that reads headers only: what would be done, and why not.

Verb floor; torch is not imported for paths and checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from wiseft_core import guards
from wiseft_core.binding import bind
from wiseft_core.config import AdapterConfig
from wiseft_core.errors import Unsupported, listed
from wiseft_core.families import FAMILIES, Family
from wiseft_core.plans import Plan
from wiseft_core.sources import Adapter, BaseLike, Memory, Source, Tuned, as_source, as_tuned
from wiseft_core.store.checkpoint import Checkpoint
from wiseft_core.vocabulary import edits


def plan(
    base: BaseLike,
    adapter: Adapter | BaseLike,
    *,
    config: AdapterConfig | Mapping[str, object] | None = None,
    base_config: Mapping[str, object] | None = None,
    tied: str = "untie",
    output_dtype: str | None = None,
    families: Mapping[str, Family] = FAMILIES,
) -> Plan:
    """What goes where, by which rule, and how many bytes: from headers and configs alone.

    Args:
        base: As for `interpolate`.
        adapter: As for `interpolate`.
        config: As for `interpolate`: it wins over the one that the adapter brings.
        base_config: As for `interpolate`.
        tied: As for `interpolate`.
        output_dtype: Dtype of every float tensor of the result, in safetensors' names; None: each keeps its own.
        families: As for `interpolate`.
    Raises:
        WiseftError: Everything that `interpolate` refuses before it reads a value.
    """
    source = as_source(base)
    tuned = as_tuned(adapter, config, source.specs, families)
    return bind_sources(source, tuned, base_config=base_config, tied=tied, output_dtype=output_dtype, families=families)


def bind_sources(
    source: Source,
    tuned: Tuned,
    *,
    base_config: Mapping[str, object] | None,
    tied: str,
    output_dtype: str | None,
    families: Mapping[str, Family],
    apart: bool = False,
) -> Plan:
    """`bind` for opened sources: the base's own config.json is used where none is given.

    Raises:
        WiseftError: As for `bind`; and what the configs of a pipeline's components say against it.
    """
    read = source.config if isinstance(source, Checkpoint) else None
    found = bind(
        source.specs,
        tuned.source.specs,
        config=tuned.config,
        base_config=base_config if base_config is not None else read,
        shared=source.shared() if isinstance(source, Memory) else (),
        complete=tuned.complete,
        output_dtype=output_dtype,
        tied=tied,
        apart=apart,
        families=families,
    )
    return _of_components(found, source) if isinstance(source, Checkpoint) and source.components else found


def _of_components(found: Plan, base: Checkpoint) -> Plan:
    """The plan of a pipeline, with what the config of each component says and what changes in it.

    Raises:
        QuantizedBase: A component that is touched stores codes.
        Unsupported: config.json would change, and of which component is not known.
    """
    if found.config:
        raise Unsupported(
            f"{listed(found.config)} — the adapter changes the config of a model",
            expected="one model, whose config.json follows",
            got=f"a pipeline of {listed(base.components, most=9)}",
            hint="open that component alone: --component NAME, or open_checkpoint(path, component=NAME)",
        )
    changes: dict[str, object] = {}
    for component in base.components:
        prefix, config = f"{component}.", base.configs.get(component)
        own = {name: spec for name, spec in found.outputs.items() if name.startswith(prefix)}
        touched = [name for name in own if name in found.bindings and name in base.specs]
        guards.quantized(touched, base.specs, config)
        resized = {name: own[name].shape for name in touched if own[name].shape != base.specs[name].shape}
        changes |= {prefix + path: value for path, value in edits(resized, own, base.specs, config).items()}
    return replace(found, config=changes)
