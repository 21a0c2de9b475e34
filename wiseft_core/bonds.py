"""What is tied in a base: by the memory of a live model, and by what its config.json says of an embedding and a head.

Joint floor: names, specs and configs only.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from wiseft_core.guards import EMBEDDINGS, HEADS, is_of, is_untied, rows_follow, tie_flag
from wiseft_core.naming.renames import links
from wiseft_core.naming.table import Tie, rules_of, tied_of
from wiseft_core.types import TensorSpec

Tied = Literal["untie", "share"]
"""What becomes of a tied embedding that tuning changes."""
Agree = Callable[[str, str], bool]
"""Whether two tensors of the base hold the same."""


class Bond(NamedTuple):
    """Names that are one tensor of the model.

    Attributes:
        source: The name that the base has.
        other: The one that is the same tensor; the base has it too, or it is added as an alias.
        alias: Whether it was added.
        flagged: Whether they are an embedding and its head, which config.json ties and unties.
        stored: Whether the base has each with bytes of its own: they are one tensor only if these agree.
        follows: Whether token rows trained at an embedding are those of its head too.
        model: What the names of its model begin with.
    """

    source: str
    other: str
    alias: bool
    flagged: bool = True
    stored: bool = False
    follows: bool = True
    model: str = ""


def bonds_of(
    base: Mapping[str, TensorSpec],
    config: Mapping[str, object] | None,
    shared: Iterable[Collection[str]],
    brought: Collection[str],
    tied: Tied,
    *,
    complete: bool = False,
) -> tuple[Bond, ...]:
    """What is tied in a base: what shares memory, and what config.json ties besides.

    Args:
        base: Specs of the base.
        config: Its config.json.
        shared: Groups of names that share memory.
        brought: What tuning changes: with `share`, a head that nothing else names is known by it.
        tied: See `ties.settle`.
        complete: It is all of a full checkpoint, which says itself what differs: two names that the base
            stores are one only where its config says so outright, and a name that neither side stores is none.
    """
    groups = [[name for name in base if name in group] for group in shared]
    flag = tie_flag(config)
    pairs = list(_told(base, config))
    if not pairs and tied == "share" and flag is not False:
        known = set(itertools.chain(*groups))
        embeddings = [name for name in base if is_of(name, EMBEDDINGS) and name not in known]
        heads = sorted(name for name in brought if is_of(name, HEADS) and name not in base)
        pairs = [(embeddings[0], head) for head in heads] if len(embeddings) == 1 else []
    more = [pair for pair in pairs if not any({*pair} <= {*group} for group in groups)]
    for pair in more:
        if complete and not (flag if pair[1] in base else pair[1] in brought):
            continue
        met = [group for group in groups if not {*pair}.isdisjoint(group)]
        groups = [group for group in groups if group not in met]
        groups.append(list(dict.fromkeys([*itertools.chain(*met), *pair])))
    found = [bond for group in groups for bond in _bonds(group, base, pairs, more)]
    return tuple(bond._replace(follows=rows_follow(config)) for bond in found)


def joined_names(bonds: Iterable[Bond]) -> list[frozenset[str]]:
    """The groups of names that are one tensor."""
    groups = defaultdict[str, set[str]](set)
    for bond in bonds:
        groups[bond.source] |= {bond.source, bond.other}
    return [frozenset(group) for group in groups.values()]


def _bonds(
    names: Sequence[str],
    base: Collection[str],
    pairs: Sequence[tuple[str, str]],
    more: Sequence[tuple[str, str]],
) -> Iterator[Bond]:
    """The bonds of names that are one tensor: by `pairs` of the config, of which memory lacks `more`."""
    flagged = any({*pair} <= {*names} for pair in pairs) or _is_pair(names)
    source, *others = names
    for other in others:
        apart = any(other in pair for pair in more)
        yield Bond(source, other, other not in base, flagged, stored=apart and other in base)


def agreed(bonds: Iterable[Bond], touched: Collection[str], agree: Agree) -> tuple[Bond, ...]:
    """The bonds without those of two stored tensors that differ: transformers ties these no more, whatever it is told.

    Args:
        bonds: What is tied, if so.
        touched: What tuning changes: values are compared there only.
        agree: Compares.
    """
    return tuple(
        bond
        for bond in bonds
        if not bond.stored or {bond.source, bond.other}.isdisjoint(touched) or agree(bond.source, bond.other)
    )


def _told(base: Mapping[str, TensorSpec], config: Mapping[str, object] | None) -> Iterator[tuple[str, str]]:
    """What config.json ties, by the names that the base has: those on disk where both would do.

    A head that is stored nowhere is tied whatever is told: else it would be random. Flags are wrong there in models of
    several configs.
    """
    for tie in tied_of(config):
        source = next((name for name in (tie.source_on_disk, tie.source) if name in base), "")
        if not source:
            continue
        head = _stored_head(tie, source, base, config)
        is_lost = not head and not is_of(tie.head, EMBEDDINGS)
        if is_lost or not is_untied(config):
            yield source, head or (tie.head_on_disk if source == tie.source_on_disk else tie.head)


def _stored_head(tie: Tie, source: str, base: Mapping[str, TensorSpec], config: Mapping[str, object] | None) -> str:
    """The name, of today or of old, under which a base has the head of a tie; "" for none."""
    for name in (tie.head_on_disk, tie.head):
        if name in base:
            return name
    rules = rules_of(config)
    alike = [name for name, spec in base.items() if spec == base[source] and name != source]
    heads = (name for name in alike if rules and any(link.parameter == tie.head for link in links(name, rules)))
    return next(heads, "")


def _is_pair(names: Iterable[str]) -> bool:
    """Whether names are, by their looks, an embedding and its head, rather than one module of several layers."""
    modules = {["", *name.split(".")][-2] for name in names if name.rpartition(".")[2] == "weight"}
    return len(modules) > 1 and not modules.isdisjoint(EMBEDDINGS | HEADS)
