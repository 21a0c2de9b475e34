"""Tied embeddings: one tensor of the base that is two parameters of the model, the embedding and the head.

Joint floor: names, specs and configs only. Where tuning makes the two differ, `untie` writes both and says so in
config.json; `share` makes of the one tensor what PEFT's merge makes of it, both changes added. Where tuning changes
both alike, they stay one. A full checkpoint says itself whether the two are one there: each that is not is interpolated
with the one tensor of the base, and `share` asks it to hold the same under both names.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, cast

from wiseft_core.bonds import Bond, Tied
from wiseft_core.config import AdapterConfig
from wiseft_core.errors import ConfigError, Unsupported, listed
from wiseft_core.guards import EMBEDDINGS, FLAG, inside, is_of, may_be_tied, tied_refusal
from wiseft_core.ruled import Placed
from wiseft_core.sites import Site, covers
from wiseft_core.types import TensorSpec


class Settled(NamedTuple):
    """What became of the ties.

    Attributes:
        placed: The places, with those of shared changes at every name that has them.
        kept: The aliases that stay, as tensors of the result.
        copies: Adapter keys that must hold the same as another one (its transpose where the shapes are turned).
        untied: What is written apart.
        alike: Names that are the same tensor as another one, which the result has.
        notes: What a human should know.
    """

    placed: tuple[Placed, ...]
    kept: tuple[str, ...] = ()
    copies: Mapping[str, str] = {}
    untied: tuple[Bond, ...] = ()
    alike: Mapping[str, str] = {}
    notes: tuple[str, ...] = ()


def settle(
    bonds: Sequence[Bond],
    placed: Sequence[Placed],
    config: AdapterConfig | None,
    tied: Tied,
    *,
    apart: Collection[str],
    twins: Sequence[Collection[str]] | None = None,
) -> Settled:
    """Decide what a tied tensor becomes.

    Args:
        bonds: What is tied.
        placed: Where the sites land.
        config: The adapter's config.
        tied: "untie" or "share".
        apart: Names to write apart even where they are changed alike: another adapter needs it.
        twins: Of a full checkpoint, the groups of keys that are one tensor there; None for an adapter.
    Raises:
        Unsupported: More than two parameters are tied, and tuning makes them differ.
    """
    touched = {one.name for one in placed}
    active = [bond for bond in bonds if bond.other in apart or {bond.source, bond.other} & touched]
    settled = Settled(tuple(placed))
    for source in dict.fromkeys(bond.source for bond in active):
        group = [bond for bond in bonds if bond.source == source]
        is_apart = any(bond.other in apart for bond in group)
        settled = _settled(settled, group, config, tied, apart=is_apart, twins=twins)
    off = {bond.model for bond in settled.untied if bond.flagged}
    lost = {bond.other for bond in bonds if bond.alias and bond.flagged and bond.model in off} - {*settled.kept}
    return settle(bonds, placed, config, tied, apart={*apart, *lost}, twins=twins) if lost else settled


def _settled(
    before: Settled,
    group: Sequence[Bond],
    config: AdapterConfig | None,
    tied: Tied,
    *,
    apart: bool,
    twins: Sequence[Collection[str]] | None,
) -> Settled:
    """What becomes of all that is tied to one tensor, besides what is settled already."""
    names = [group[0].source, *(bond.other for bond in group)]
    mine = {name: [one for one in before.placed if one.name == name] for name in names}
    rest = [one for one in before.placed if one.name not in mine]
    changed = [those for those in mine.values() if those]
    alike, copies = _alike(changed, config, heads=_heads(group)) if twins is None else _stored_alike(changed, twins)
    absent = {bond.other for bond in group if bond.alias}
    if tied == "share" or (alike is not None and not apart):
        both = alike if alike is not None else _added(changed)
        copies = copies if alike is not None else _same_copies(changed)
        placed = [_at(one, name) for name in names if name not in absent for one in both]
        return before._replace(
            placed=(*rest, *placed),
            copies={**before.copies, **copies},
            alike={**before.alike, **dict.fromkeys(names[1:], names[0])},
            notes=(*before.notes, f"{' and '.join(names)} are one tensor, and stay one"),
        )
    if len(group) > 1:
        if twins is None or alike is not None or absent or not all(mine.values()):
            raise _many(group)
        note = f"{' and '.join(names)} were one tensor: each is written as it was tuned, and {FLAG} is as it was"
        each = tuple(bond._replace(flagged=False) for bond in group)
        return before._replace(untied=(*before.untied, *each), notes=(*before.notes, note))
    (bond,) = group
    before = before._replace(
        kept=(*before.kept, bond.other) if bond.alias else before.kept,
        copies={**before.copies, **copies},
        untied=(*before.untied, bond),
    )
    if alike is not None:
        return before._replace(placed=(*rest, *(_at(one, name) for name in names for one in alike)))
    first, second = mine.values()
    first, second = _with_copy(first, second, bond.source, config), _with_copy(second, first, bond.other, config)
    second = _with_rows(second, first, bond.other) if bond.follows else second
    then = f"{FLAG} is false" if bond.flagged else "a model that shares them loads but one"
    note = f"{bond.source} and {bond.other} were one tensor: both are written, and {then}"
    return before._replace(placed=(*rest, *first, *second), notes=(*before.notes, note))


def _heads(group: Sequence[Bond]) -> set[str]:
    """The names whose token rows, where PEFT trains them there, are not those of the others: it asks the embedding."""
    apart = {name for bond in group if not bond.follows for name in bond[:2]}
    return {bond.other for bond in group if not is_of(bond.other, EMBEDDINGS)} | apart


def _alike(
    changed: Sequence[Sequence[Placed]], config: AdapterConfig | None, *, heads: Collection[str]
) -> tuple[list[Placed] | None, dict[str, str]]:
    """The changes that all names have, where they are changed alike, and the keys that repeat them; None where not.

    Token rows are those of all, but for rows that one of `heads` alone has.
    """
    first, *others = [*changed] or [[]]
    mine = first[0].site.factors if first else {}
    same = all(one.site.factors.keys() == mine.keys() for those in changed for one in those)
    if "rows" in mine and same and not (first[0].name in heads and not others):
        return [*first], {key: mine[role] for other in others for role, key in other[0].site.factors.items()}
    biases = all(one.site.parameter == "bias" for those in changed for one in those)
    if config is None or not (config.ensure_weight_tying or (config.bias == "all" and biases)):
        return None, {}
    pairs = {"value": "value", "A": "embedding_B", "B": "embedding_A"}
    found = dict[str, str]()
    for theirs in (other[0].site.factors for other in others):
        repeated = {key: mine[pairs.get(role, "")] for role, key in theirs.items() if pairs.get(role) in mine}
        if len(repeated) != len(theirs):
            return None, {}
        found |= repeated
    return [*first], found


def _stored_alike(
    changed: Sequence[Sequence[Placed]], twins: Iterable[Collection[str]]
) -> tuple[list[Placed] | None, dict[str, str]]:
    """As `_alike` of a full checkpoint: it stores the tensor under one of the names, or it has them tied itself."""
    keys = {key for those in changed for one in those for key in one.site.factors.values()}
    if len(changed) > 1 and not any(keys <= {*group} for group in twins):
        return None, {}
    return [*itertools.chain(*changed[:1])], _same_copies(changed)


def _same_copies(changed: Sequence[Sequence[Placed]]) -> dict[str, str]:
    """The saved copies of one tensor under its names: they must be the same."""
    keys = [one.site.factors["value"] for those in changed for one in those if "value" in one.site.factors]
    return dict.fromkeys(keys[1:], keys[0]) if keys else {}


def _added(changed: Iterable[Sequence[Placed]]) -> list[Placed]:
    """The changes of all, one after the other; a copy of the tensor that several have counts once, and first."""
    ordered = sorted(itertools.chain(*changed), key=lambda one: "value" not in one.site.factors)
    seen = False
    found = []
    for one in ordered:
        factors = dict(one.site.factors)
        if seen:
            factors.pop("value", None)
        seen = seen or "value" in factors
        if factors:
            found.append(one._replace(site=replace(one.site, factors=factors)))
    return found


def _with_copy(
    own: Sequence[Placed], others: Sequence[Placed], name: str, config: AdapterConfig | None
) -> list[Placed]:
    """The changes at one name; a copy of the tensor saved under the other one is a copy of this one too.

    Not so a copy that was trained: PEFT gives each module of modules_to_save a tensor of its own.
    """
    if any("value" in one.site.factors for one in own):
        return list(own)
    saved = () if config is None else config.modules_to_save
    for one in others:
        key = one.site.factors.get("value")
        if key is not None and not any(covers(entry, one.site.module) for entry in saved):
            copy = Site(one.site.module, one.site.parameter, {"value": key})
            mine = [
                each._replace(site=replace(each.site, factors={"value": key, **each.site.factors})) for each in own[:1]
            ]
            return [*mine, *own[1:]] if own else [_at(one._replace(site=copy), name)]
    return list(own)


def _with_rows(own: Sequence[Placed], others: Sequence[Placed], name: str) -> list[Placed]:
    """The changes at a head, upon the token rows of its embedding."""
    rows = [one for one in others if "rows" in one.site.factors]
    if not rows or any("rows" in one.site.factors for one in own):
        return list(own)
    key = {"rows": rows[0].site.factors["rows"]}
    mine = [one._replace(site=replace(one.site, factors={**key, **one.site.factors})) for one in own[:1]]
    return [*mine, *own[1:]] if own else [_at(rows[0], name)]


def follow(placed: Sequence[Placed], bonds: Iterable[Bond]) -> list[Placed]:
    """The places, with the token rows of embeddings at their heads too.

    PEFT asks config.json alone whether a head follows its embedding, so it trains the rows of both though they differ.

    Args:
        placed: Where the sites land.
        bonds: What config.json ties.
    """
    found = list(placed)
    for bond in bonds:
        first, second = ([one for one in found if one.name == name] for name in (bond.source, bond.other))
        found = [one for one in found if one.name != bond.other] + _with_rows(second, first, bond.other)
    return found


def _at(one: Placed, name: str) -> Placed:
    """The same place under another name."""
    landings = tuple(landing._replace(name=name) for landing in one.landed.landings)
    return one._replace(landed=one.landed._replace(landings=landings))


def edits(config: Mapping[str, object] | None) -> dict[str, object]:
    """What changes in config.json where a tie is undone."""
    if config is None:
        return {}
    return {FLAG: False, **{f"{path}{FLAG}": False for path, inner in inside(config) if FLAG in inner}}


def check(
    prefix: str,
    bonds: Sequence[Bond],
    touched: Iterable[str],
    base: Mapping[str, TensorSpec],
    config: Mapping[str, object] | None,
    tied: Tied,
) -> None:
    """Refuse tuning that touches what may be tied, where nothing says to what.

    Args:
        prefix: What the names of the model begin with in `bonds`; the others are without it.
        bonds: What is tied.
        touched: What tuning changes.
        base: Specs of the base.
        config: Its config.json.
        tied: See `settle`.
    Raises:
        TiedEmbeddings: It is tied, or may be, and the name of the head is not known.
    """
    known = {name for bond in bonds for name in (bond.source, bond.other)}
    for name in touched if tied == "untie" else ():
        why = "" if prefix + name in known else may_be_tied(name, base, config)
        if why:
            raise tied_refusal(prefix + name, why)


def as_tied(value: str) -> Tied:
    """The argument `tied`, checked.

    Raises:
        ConfigError: It is neither.
    """
    if value in ("untie", "share"):
        return cast(Tied, value)
    raise ConfigError("tied", expected='"untie" or "share"', got=f"{value!r}", hint="leave it out to untie")


def _many(bonds: Sequence[Bond]) -> Unsupported:
    names = {name for bond in bonds for name in (bond.source, bond.other)}
    return Unsupported(
        f"{listed(names)} — tuning makes tied parameters differ, and more than two of them are tied",
        expected="an embedding and a head that are tied to each other alone",
        got=f"{len(names)} names for one tensor",
        hint='choose tied="share" (--tied share): the changes of all are added to the one tensor, as PEFT merges it',
    )
