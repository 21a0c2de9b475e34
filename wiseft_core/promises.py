"""What a config says of its adapter, held against the tensors that came with it.

Joint floor: names only. PEFT refuses an adapter that lacks what its config promises, or warns; here the base's values
would stay, and nobody would know.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from wiseft_core.bonds import Bond
from wiseft_core.config import AdapterConfig
from wiseft_core.config_fields import EMBEDDING
from wiseft_core.errors import BindingError, ConfigError, UnusedPattern, WiseftError, listed
from wiseft_core.ruled import Placed
from wiseft_core.sites import Site, covers


def check_promises(
    config: AdapterConfig | None,
    sites: Sequence[Site],
    placed: Sequence[Placed],
    base: Collection[str],
    bonds: Sequence[Bond],
) -> None:
    """Refuse an adapter without tensors, or without those that its config says were trained of this base.

    Args:
        config: The adapter's config.
        sites: What there are tensors of.
        placed: Where they are in the base.
        base: The base's names.
        bonds: Names that are one tensor: PEFT may save it under the other one.
    Raises:
        BindingError: There are no tensors.
        ConfigError: All that is missing, and each entry that matches nothing.
    """
    if not sites:
        raise BindingError(
            "the adapter — it has no tensors",
            expected="tensors that change something",
            got="none",
            hint="was it saved without gathering what is spread over several devices (ZeRO-3, FSDP)? Save it again",
        )
    if config is not None:
        problems = [*_lacking(config, sites, placed, base, bonds), *_unused(config, placed)]
        WiseftError.raise_all(problems)


def _lacking(
    config: AdapterConfig, sites: Sequence[Site], placed: Sequence[Placed], base: Collection[str], bonds: Sequence[Bond]
) -> Iterator[WiseftError]:
    """What was trained and did not come along.

    An entry for a module that the base does not have promises nothing: PEFT lists every head that a task may have.
    """
    twins = {bond.source: bond.other for bond in bonds} | {bond.other: bond.source for bond in bonds}
    tokens = [name for name, rows in config.trainable_token_indices.items() if rows]
    promised = [(entry, "modules_to_save", "value") for entry in config.modules_to_save]
    for entry, field, role in (*promised, *((name, "trainable_token_indices", "rows") for name in tokens)):
        having = [site.module for site in sites if role in site.factors]
        is_theirs = having and role == "rows" and entry == EMBEDDING  # PEFT's word for any input embedding
        if is_theirs or any(covers(entry, module) for module in having):
            continue
        wanted = [name for name in base if covers(entry, name.rpartition(".")[0])]
        saved = {landing.name for one in placed if role in one.site.factors for landing in one.landed.landings}
        if (wanted or entry == EMBEDDING) and not any(twins.get(name) in saved for name in wanted):
            yield _missing(f"{entry!r} of {field}", f"trained values of {listed(wanted) if wanted else 'an embedding'}")
    if config.lora_bias and not any("bias" in site.factors for site in sites):
        yield _missing("lora_bias: true", "a bias with the factors of a module")


def _missing(what: str, expected: str) -> ConfigError:
    """A promise that is not kept."""
    return ConfigError(
        f"adapter_config.json — {what}, and the adapter has no such tensors",
        expected=expected,
        got="none",
        hint="use the file that was saved with this config, or take the entry out if it was not trained",
    )


def _unused(config: AdapterConfig, placed: Sequence[Placed]) -> Iterator[WiseftError]:
    """Patterns, and parameters of this base that were targeted, that match nothing of the adapter."""
    modules = {one.path for one in placed if one.site.factors.keys() != {"value"}}
    paths = {f".{path}" for one in placed for path in (one.path, one.site.target)}
    unused = dict.fromkeys(config.unused_patterns(sorted(modules)), "rank_pattern or alpha_pattern")
    for entry in config.target_parameters:
        if not any(path.endswith(f".{entry}") for path in paths):
            unused[entry] = "target_parameters"
    for entry, where in unused.items():
        yield UnusedPattern(
            f"adapter_config.json — {entry!r} of {where} matches nothing of the adapter",
            expected="entries that each match a module or a parameter with factors",
            got=f"modules such as {listed(modules)}",
            hint="the adapter's tensors and its config do not belong together, or the entry can be removed",
        )
