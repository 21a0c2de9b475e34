"""Plans and views made by hand: tensors in pieces, of other names, of other sizes."""

from __future__ import annotations

from wiseft_core.bound import Bound, Part
from wiseft_core.families import FAMILIES, Hyper
from wiseft_core.landings import Cut
from wiseft_core.plans import Binding, Piece, Plan, StepSpec
from wiseft_core.sources import as_source
from wiseft_core.statedict import StateDict
from wiseft_core.types import TensorSpec


def lora(a, b, scale=1.0, *, layout="linear", family="lora", cut=None, **others):
    """A step with the factors at these keys."""
    factors = {"A": a, "B": b, **others}
    return StepSpec(family, "weight", layout, Hyper(scale), None, factors, cut=cut or Cut())


def full(key, *, layout="whole", cut=None):
    """A step with a trained value."""
    return StepSpec("full", "weight", layout, Hyper(), None, {"value": key}, cut=cut or Cut())


def whole(shape, *steps):
    """The piece that is a whole tensor."""
    return (Piece(0, tuple(shape), steps),)


def plan_of(base, pieces, *, dtype=None, shapes=None, sources=None, drop=(), **others):
    """A plan that changes these pieces by output name.

    Args:
        base: Base tensors.
        pieces: The pieces of each touched output; (pieces, rows, entries) for listed rows.
        dtype: The dtype of everything.
        shapes: Outputs with another shape.
        sources: As in a plan.
        drop: Base tensors that the output does not have.
        others: Other fields of the plan.
    """
    specs = as_source(base).specs
    sources = sources or {}
    made = {name: specs[name] for name in specs if name not in drop}
    made |= {name: specs[origin] for name, origin in sources.items()}
    outputs = {
        name: TensorSpec(dtype or spec.dtype, tuple((shapes or {}).get(name, spec.shape)))
        for name, spec in made.items()
    }
    bindings = {}
    for name, found in pieces.items():
        given, *rest = found if isinstance(found[0], tuple) and isinstance(found[0][0], Piece) else (found,)
        bindings[name] = Binding(name, specs[sources.get(name, name)], tuple(given), *rest)
    return Plan(outputs, bindings, sources=sources, **others)


def view_of(base, parts, alphas, *, plan=None, dtype=None):
    """A view over a base and pairs of an adapter and its plan; `plan` is that of all, None for a single one."""
    source = as_source(base)
    found = tuple(Part(as_source(adapter), one) for adapter, one in parts)
    bound = Bound(source, found, plan or parts[0][1], FAMILIES, "F64", dtype, "error", None)
    return StateDict(bound, tuple(alphas))


def union(plans):
    """The plan of several adapters, for the tests: what any of them touches."""
    bindings = {}
    for plan in plans:
        for name, bound in plan.bindings.items():
            before = bindings[name].pieces if name in bindings else ()
            bindings[name] = Binding(name, bound.spec, before + bound.pieces)
    return Plan(plans[0].outputs, bindings)
