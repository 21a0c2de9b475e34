"""Methods: what the table of families says of an adapter's keys, and which family, and which form of it, is meant.

Joint floor: records, specs and configs only; nothing here knows any one method.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Final, NamedTuple

from wiseft_core.config import AdapterConfig
from wiseft_core.errors import MissingFactor, Unsupported, listed
from wiseft_core.families import Change, Family
from wiseft_core.layouts import LAYOUTS, Layout, Shape, fit, sizes_of
from wiseft_core.naming.peft import SUFFIXES, Suffix, suffix_of
from wiseft_core.sites import WRAPPER, Site
from wiseft_core.types import TensorSpec

CARRIED: Final = frozenset({"value", "rows"})
"""The roles of what comes with every method: whole tensors, and token rows."""
START: Final = "init_lora_weights"
"""The field of a variant that takes from the base what its factors start as."""


def suffixes(families: Mapping[str, Family], config: AdapterConfig | None) -> tuple[Suffix, ...]:
    """The ends of keys that make factors: those of the config's method, or of all methods where there is no config."""
    own = [record for record in families.values() if config is None or record.peft == config.peft_type]
    found = [
        suffix_of(key, meaning, record.peft, record.group) for record in own for key, meaning in record.keys.items()
    ]
    return (*SUFFIXES, *dict.fromkeys(found))


def family_of(site: Site, roles: AbstractSet[str], config: AdapterConfig | None, families: Mapping[str, Family]) -> str:
    """The family of a site: of the method that has such keys, and of the variant that the config asks for.

    A start takes nothing from an embedding, and nothing more from a saved copy of the base, which lacks it already.

    Raises:
        Unsupported: The config is of another method, or asks for two variants.
    """
    method = site.method or "LORA"
    if config is not None and site.method and config.peft_type != method:
        raise Unsupported(
            f"{site.target} — factors of {method} with a config of {config.peft_type}",
            expected="tensors and config of one method",
            got=f"adapter keys {listed(site.factors.values())}, peft_type {config.peft_type}",
            hint="use the adapter_config.json that was saved with these tensors",
        )
    own = {key: one for key, one in families.items() if one.peft == method and one.forms(site.parameter)}
    if any(role == "value" or role.startswith("embedding_") for role in site.factors):
        own = {key: one for key, one in own.items() if START not in one.variant}
    asked = [key for key, one in own.items() if config is not None and one.variant and _says(config, one, {True})]
    if len(asked) > 1:
        raise Unsupported(
            f"{site.target} — {' and '.join(asked)} at once",
            expected="a config that asks for one of them",
            got=f"{', '.join(f'{name}: {value!r}' for key in asked for name, value in own[key].variant.items())}",
            hint="merge this adapter with the library that trained it, and give the merged checkpoint in its place",
        )
    possible = asked or [key for key, one in own.items() if config is None or _says(config, one, {True, None})]
    fitting = [key for key in possible if any(form.own == roles for form in own[key].forms(site.parameter))]
    return next(iter((*fitting, *possible)), method.lower())


def _says(config: AdapterConfig, record: Family, answers: AbstractSet[bool | None]) -> bool:
    """Whether the config's answers to what makes a variant are among these; None: it does not say."""
    said = {name: config.said(name) for name in record.variant}
    return {None if said[name] is None else said[name] == value for name, value in record.variant.items()} <= answers


class Fit(NamedTuple):
    """A form that factors fit, with its place among the family's forms, the layout, and the sizes of its axes."""

    form: int
    change: Change
    layout: Layout
    sizes: dict[str, int]


def with_roles(
    record: Family, parameter: str, factors: Mapping[str, str], name: str, *, beside: bool = False
) -> dict[int, Change]:
    """The family's forms that have these roles, by their places; with `beside` those of the base are given too.

    Raises:
        MissingFactor: None has: a factor is missing, or one is too many.
    """
    forms = record.forms(parameter)
    found = {
        at: form for at, form in enumerate(forms) if factors.keys() == (form.factors.keys() if beside else form.own)
    }
    if found:
        return found
    raise MissingFactor(
        f"{name} — the factors of {record.name} are not complete",
        expected=f"the factors {' or '.join(dict.fromkeys(listed(form.own, most=9) for form in forms))}",
        got=f"adapter keys {listed(factors.values(), most=9)}",
        hint="the adapter file is damaged, or config and tensors do not belong together",
    )


def fits(forms: Mapping[int, Change], shapes: Mapping[str, Shape], weight: Shape, layouts: Sequence[str]) -> list[Fit]:
    """Every way in which factors of these shapes change a weight of this one."""
    found = []
    for at, form in forms.items():
        for layout in (LAYOUTS[name] for name in layouts if name in form.layouts):
            sizes = fit(layout, form.factors, shapes, weight)
            if sizes is None:
                continue
            sizes |= sizes_of(layout, weight)
            if form.fits is None or form.fits(sizes):
                found.append(Fit(at, form, layout, sizes))
    return found


def ranks(
    sites: Iterable[Site], adapter: Mapping[str, TensorSpec], families: Mapping[str, Family]
) -> dict[str, int | None]:
    """The modules with factors of a method, each with its rank where these have such an axis."""
    found: dict[str, int | None] = {}
    for site in sites:
        factors = {role.removeprefix("embedding_"): key for role, key in site.factors.items() if role not in CARRIED}
        own = [record for record in families.values() if record.peft == (site.method or "LORA")]
        forms = [form for record in own for form in record.forms(site.parameter) if factors.keys() <= form.own]
        if not factors or not forms:
            continue
        axes = min(forms, key=lambda form: len(form.factors)).factors
        sizes = [dict(zip(axes[role].split(), adapter[key].shape, strict=False)) for role, key in factors.items()]
        rank = next((size["rank"] for size in sizes if "rank" in size), None)
        found[site.module] = found.get(site.module) if rank is None else rank
    return found


def _own(record: Family) -> set[str]:
    """The parameters that a family has keys for."""
    return {suffix_of(key, meaning, record.peft).parameter for key, meaning in record.keys.items()}


def beside(
    forms: Iterable[Change], site: Site, name: str, base: Mapping[str, object], replaced: AbstractSet[str]
) -> dict[str, str]:
    """The base tensor of each role that is another parameter of the module.

    Raises:
        MissingFactor: The base lacks it.
        Unsupported: The adapter replaces it: which of the two is meant, it does not say.
    """
    found: dict[str, str] = {}
    for role, parameter in ((role, parameter) for form in forms for role, parameter in form.beside.items()):
        found[role] = other = f"{name.removesuffix(site.parameter)}{parameter}"
        if other not in base:
            raise MissingFactor(
                f"{name} — its change depends on {other}",
                expected=f"a base tensor {other}",
                got="none of that name",
                hint="give the base that the adapter was trained on",
            )
        if other in replaced:
            raise Unsupported(
                f"{name} — its change depends on {other}, which the adapter replaces",
                expected=f"{other} as the base has it",
                got="a trained copy in the adapter",
                hint="merge this adapter with the library that trained it",
            )
    return found


def with_companions(sites: Sequence[Site], families: Mapping[str, Family]) -> tuple[Site, ...]:
    """The sites, and those of the parameters that change along with another one's factors, where the base has them.

    Raises:
        Unsupported: Such a tensor was trained by itself too.
    """
    given = {site.target: site for site in sites}
    found: dict[str, Site] = {}
    for site in given.values():
        for record in families.values() if site.method else ():
            for parameter in record.parameters.keys() - _own(record) if record.peft == site.method else ():
                roles = {role for form in record.forms(parameter) for role in form.factors} & site.factors.keys()
                if roles:
                    one = Site(site.module, parameter, {role: site.factors[role] for role in roles}, site.method, True)
                    found[one.target] = one if one.target not in given else _over(given[one.target], one, site)
    return (*(site for site in sites if site.target not in found), *found.values())


def _over(copy: Site, companion: Site, site: Site) -> Site:
    """A companion whose parameter the adapter has too: as a live model shows it, below its wrapper."""
    if copy.factors.keys() != {"value"} or WRAPPER not in copy.factors["value"]:
        raise Unsupported(
            f"{companion.target} — trained by itself, and changed by the factors of {site.module} too",
            expected="one change of a tensor",
            got=f"adapter keys {listed([*copy.factors.values(), *site.factors.values()])}",
            hint="merge one of the two with PEFT first",
        )
    return replace(companion, factors={**copy.factors, **companion.factors})
