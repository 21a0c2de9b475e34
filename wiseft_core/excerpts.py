"""As much of a job as one task is about, for another process: what it computes from, and nothing else.

Verb floor, below `ranges`. What cannot be sent is refused before anything is written.
"""

from __future__ import annotations

import multiprocessing.reduction
from collections.abc import Collection, Sequence, Set
from dataclasses import replace

from wiseft_core.bound import Bound, Part
from wiseft_core.errors import ConfigError, Unsupported
from wiseft_core.families import FAMILIES, Family
from wiseft_core.plans import Plan
from wiseft_core.sources import Source
from wiseft_core.statedict import StateDict
from wiseft_core.store.checkpoint import Checkpoint
from wiseft_core.store.excerpt import Excerpt


def check_sendable(views: Sequence[StateDict | Source]) -> None:
    """Refuse what other processes cannot read or compute.

    Raises:
        ConfigError: Tensors in memory.
        Unsupported: A family of the user's that is not in a module which others can import.
    """
    for view in views:
        bound = view.bound if isinstance(view, StateDict) else None
        sources = [view] if bound is None else [bound.base, *(part.adapter for part in bound.parts)]
        if not all(isinstance(source, Checkpoint) for source in sources):
            raise ConfigError(
                "executor",
                expected="a base and an adapter that were opened from files, which other processes can read",
                got="tensors in memory",
                hint="save them first and give their paths, or use threads",
            )
    own = _own_families(bound) if bound is not None else {}
    try:
        multiprocessing.reduction.ForkingPickler.dumps(own)
    except Exception as error:  # pickling runs the objects' own code
        raise Unsupported(
            "families — a family that cannot be sent to another process",
            expected="functions that a module has by their names, and every process can import",
            got=f"{', '.join(own)}: {error}",
            hint="define the functions at the top of a module, or use threads",
        ) from error


def _own_families(bound: Bound) -> dict[str, Family]:
    """The families that are not the package's own."""
    return {name: family for name, family in bound.families.items() if FAMILIES.get(name) is not family}


def only(bound: Bound, names: Set[str]) -> Bound:
    """As much of a bound as is about some tensors of the result, for another process."""
    keys: dict[int, set[str]] = {id(bound.base): set()}
    parts = list[Part]()
    for part in bound.parts:
        bindings = {name: part.plan.bindings[name] for name in names if name in part.plan.bindings}
        new = {name: part.plan.new[name] for name in names if name in part.plan.new}
        steps = [step for binding in bindings.values() for step in binding.steps]
        factors = [key for step in steps for key in step.factors.values()]
        keys[id(bound.base)] |= {other for step in steps for other in step.beside.values()}
        adapter = _excerpt(part.adapter, [*factors, *new.values()])
        parts.append(Part(adapter, Plan({name: part.plan.outputs[name] for name in bindings}, bindings, new)))
    homes = {name: bound.source(name) for name in names}
    keys[id(bound.base)] |= {key for source, key in homes.values() if source is bound.base}
    plan = Plan(
        {name: bound.plan.outputs[name] for name in names},
        {},
        {name: bound.plan.new[name] for name in names if name in bound.plan.new},
        sources={name: bound.plan.sources[name] for name in names if name in bound.plan.sources},
    )
    own = _own_families(bound)
    return replace(bound, base=_excerpt(bound.base, keys[id(bound.base)]), parts=tuple(parts), plan=plan, families=own)


def _excerpt(source: Source, names: Collection[str]) -> Source:
    """Some tensors of a source, which is on disk."""
    return Excerpt.of(source, sorted(names)) if isinstance(source, Checkpoint) else source
