"""The verb that reads headers only: what would be done, and why not.

Verb floor; torch is not imported for paths and checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping

from wiseft_core.binding import bind
from wiseft_core.config import AdapterConfig
from wiseft_core.families import FAMILIES, Family
from wiseft_core.models import Config
from wiseft_core.plans import Plan
from wiseft_core.sources import Adapter, BaseLike, Memory, Source, Tuned, as_source, as_tuned
from wiseft_core.store.checkpoint import Checkpoint


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
    tuned = as_tuned(adapter, config, source, families)
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
        WiseftError: As for `bind`.
    """
    read = source.config if isinstance(source, Checkpoint) else None
    return bind(
        source.specs,
        tuned.source.specs,
        config=tuned.config,
        base_config=base_config if base_config is not None else read,
        shared=source.shared() if isinstance(source, Memory) else (),
        complete=tuned.complete,
        output_dtype=output_dtype,
        tied=tied,
        apart=apart,
        known=tuned.links,
        components=_configs(source, base_config),
        families=families,
    )


def _configs(source: Source, given: Config) -> dict[str, Config]:
    """The config.json of each component of a pipeline, or the one that is given; empty for any other base."""
    if not isinstance(source, Checkpoint):
        return {}
    return {name: given if given is not None else source.configs.get(name) for name in source.components}
