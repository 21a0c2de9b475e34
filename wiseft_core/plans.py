"""The records of the joint: what is changed of each tensor, and the plan of it all. Names and shapes only, no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from wiseft_core.errors import ShapeMismatch, Unsupported, listed
from wiseft_core.families import Hyper
from wiseft_core.landings import UNCUT, Cut
from wiseft_core.types import TensorSpec


@dataclass(frozen=True, slots=True)
class StepSpec:
    """One change to one tensor, by names.

    Attributes:
        family: Its family.
        parameter: The parameter of the module.
        layout: How that is stored.
        hyper: What the formula reads besides weight and factors.
        rank: The rank of the factors, where they have one.
        factors: The adapter key of each factor by role.
        form: Which of the family's forms it is.
        beside: The base tensor of each role that is another parameter of the module.
        cut: The part of the factors that is used.
    """

    family: str
    parameter: str
    layout: str
    hyper: Hyper
    rank: int | None
    factors: Mapping[str, str]
    form: int = 0
    beside: Mapping[str, str] = field(default_factory=dict)
    cut: Cut = UNCUT

    @property
    def scale(self) -> float:
        """s of the formula."""
        return self.hyper.scale

    def as_dict(self) -> dict[str, Any]:
        """The step as JSON sees it."""
        shown = {"family": self.family, "parameter": self.parameter, "layout": self.layout, "scale": self.scale}
        others: dict[str, Any] = {"beside": dict(self.beside)} if self.beside else {}
        if self.cut != UNCUT:
            others["cut"] = {key: value for key, value in self.cut._asdict().items() if value is not None}
        shown |= {"options": dict(self.hyper.options), "rank": self.rank}
        return {**shown, "factors": dict(self.factors), **others}


class Piece(NamedTuple):
    """A run of a stored tensor that is a tensor of its own to those who change it: an expert, or the rows of `q`.

    Attributes:
        start: Its first element in the flattened tensor.
        shape: Its shape.
        steps: The changes, in the order in which they apply; they see a weight of this shape.
    """

    start: int
    shape: tuple[int, ...]
    steps: tuple[StepSpec, ...]


@dataclass(frozen=True, slots=True)
class Binding:
    """A tensor of the result that tuning changes, and how.

    Attributes:
        name: Its name in the result.
        spec: Dtype and shape of the base tensor that it is made from.
        pieces: What is changed of it, ascending and apart; what lies between them stays. One piece is the rule. Of a
            resized vocabulary they have the new rows: those that the base does not have are as trained, always.
        rows: The rows that are touched, ascending; None for all.
        entries: For each of `rows`, its position along the `row` axis of the adapter's factors.
    """

    name: str
    spec: TensorSpec
    pieces: tuple[Piece, ...]
    rows: tuple[int, ...] | None = None
    entries: tuple[int, ...] = ()

    @property
    def steps(self) -> tuple[StepSpec, ...]:
        """The changes of all pieces."""
        return tuple(step for piece in self.pieces for step in piece.steps)

    def as_dict(self) -> dict[str, Any]:
        """The binding as JSON sees it."""
        rows = {} if self.rows is None else {"rows": list(self.rows)}
        steps = [[step.as_dict() for step in piece.steps] for piece in self.pieces]
        whole = [piece[:2] for piece in self.pieces] == [(0, self.spec.shape)]
        parts = [
            {"start": piece.start, "shape": list(piece.shape), "steps": of_piece}
            for piece, of_piece in zip(self.pieces, steps, strict=True)
        ]
        changes = {"steps": steps[0]} if whole else {"pieces": parts}
        return {"dtype": self.spec.dtype, "shape": list(self.spec.shape), **changes, **rows}


@dataclass(frozen=True, slots=True)
class Plan:
    """What goes where, by which rule, and how many bytes: everything that is known before a weight is read.

    Attributes:
        outputs: Specs of the result, in the base's on-disk order, new tensors last.
        bindings: The touched tensors by name, in the same order.
        new: Tensors that the base does not have, carried as trained at every alpha: output name to adapter key.
        same: Integer tensors that both sides must hold alike: base name to adapter key.
        copies: Adapter keys that must hold the same as another one, which is used: key to key.
        ignored: Adapter keys that mean nothing for the weights (counters, PEFT's own copies of the base).
        sources: For each tensor of the result that is made from a base tensor of another name, that name: the head of
            a model whose embedding was tied to it, the layers of a model that was grown.
        alike: For each name that stays tied to a changed tensor, whether or not the result has both, that tensor.
        untied: The names that are written apart from what they were tied to.
        homes: For each tensor that the base does not have, the base tensor whose file it joins, where there is one.
        config: What changes in the base's config.json, by dotted path.
        rule: The prefix rule: "exact", "+model." or "-bert.".
        notes: What a human should know.
    """

    outputs: Mapping[str, TensorSpec]
    bindings: Mapping[str, Binding]
    new: Mapping[str, str] = field(default_factory=dict)
    same: Mapping[str, str] = field(default_factory=dict)
    copies: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)
    alike: Mapping[str, str] = field(default_factory=dict)
    untied: tuple[str, ...] = ()
    homes: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, object] = field(default_factory=dict)
    rule: str = "exact"
    notes: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of payload that the result has."""
        return sum(spec.nbytes for spec in self.outputs.values())

    def consumed(self) -> dict[str, str]:
        """Each adapter key with the output tensor that it goes to; "" for a key that means nothing."""
        keys = {key: name for name, key in (*self.new.items(), *self.same.items())}
        for name, bound in self.bindings.items():
            keys |= {key: name for step in bound.steps for key in step.factors.values()}
        keys |= {key: keys[used] for key, used in self.copies.items()}
        return keys | dict.fromkeys(self.ignored, "")

    def as_dict(self) -> dict[str, Any]:
        """The plan as JSON sees it (`wiseft plan --json`)."""
        return {
            "format": "wiseft-plan/1",
            "rule": self.rule,
            "tensors": len(self.outputs),
            "bytes": self.nbytes,
            "touched": {name: {**bound.as_dict(), **self._result(bound)} for name, bound in self.bindings.items()},
            "new": dict(self.new),
            "same": dict(self.same),
            "copies": dict(self.copies),
            "ignored": list(self.ignored),
            "sources": dict(self.sources),
            "alike": dict(self.alike),
            "config": dict(self.config),
            "notes": list(self.notes),
        }

    def _result(self, bound: Binding) -> dict[str, Any]:
        """What a touched tensor is in the result, where that is not what the base has: resized, or of another dtype."""
        spec = self.outputs[bound.name]
        return {} if spec == bound.spec else {"result": {"dtype": spec.dtype, "shape": list(spec.shape)}}


def joined(plans: Sequence[Plan]) -> Plan:
    """The plan of several adapters over one base: what any of them touches, and every tensor that any of them brings.

    A single plan stays as it is. Of several, new tensors are in the order of their names, so that the order of the
    adapters does not matter; the steps of a tensor are those of one adapter after the other, though they are summed.

    Raises:
        ShapeMismatch: Two adapters bring a new tensor of one name with different shapes or dtypes.
        Unsupported: They make different models of the base: of other depths, or other vocabularies.
    """
    if len(plans) == 1:
        return plans[0]
    brought: dict[str, TensorSpec] = {}
    for plan in plans:
        for name in plan.new:
            if brought.setdefault(name, plan.outputs[name]) != plan.outputs[name]:
                raise new_twice(name, f"one tensor, {brought[name]} in each", f"{plan.outputs[name]} in one of them")
    _check_one_model(plans)
    kept = {name: _spec(name, plans) for name in plans[0].outputs if name not in plans[0].new}
    bindings = {name: _sum([plan.bindings[name] for plan in plans if name in plan.bindings]) for name in kept}
    return Plan(
        outputs=kept | dict(sorted(brought.items())),
        bindings={name: bound for name, bound in bindings.items() if bound is not None},
        new={name: key for plan in plans for name, key in sorted(plan.new.items())},
        same={name: key for plan in plans for name, key in plan.same.items()},
        copies={key: used for plan in plans for key, used in plan.copies.items()},
        ignored=tuple(sorted(key for plan in plans for key in plan.ignored)),
        sources=plans[0].sources,
        alike={name: other for plan in plans for name, other in plan.alike.items()},
        untied=plans[0].untied,
        homes={name: home for plan in plans for name, home in plan.homes.items()},
        config={key: value for plan in plans for key, value in plan.config.items()},
        rule=", ".join(sorted({plan.rule for plan in plans})),
        notes=tuple(sorted({note for plan in plans for note in plan.notes})),
    )


def _check_one_model(plans: Sequence[Plan]) -> None:
    """Refuse plans for models that differ in more than values."""
    edits: dict[str, object] = {}
    differ = [key for plan in plans for key, value in plan.config.items() if edits.setdefault(key, value) != value]
    if differ or len({frozenset(plan.sources.items()) for plan in plans}) > 1:
        raise Unsupported(
            "the adapters make different models of the base",
            expected="adapters of models with the same layers and the same vocabulary",
            got=listed(differ, most=9) or "other layers in one than in another",
            hint="interpolate each of them, and combine the results as full checkpoints over the larger one",
        )


def _spec(name: str, plans: Sequence[Plan]) -> TensorSpec:
    """The spec of a tensor in the result: as the one that changes it makes it."""
    changed = [plan.outputs[name] for plan in plans if name in plan.bindings]
    return (changed or [plans[0].outputs[name]])[0]


def _sum(bindings: Sequence[Binding]) -> Binding | None:
    """What several adapters do to one tensor; None for no adapter."""
    if not bindings:
        return None
    rows = union_rows([bound.rows for bound in bindings])
    pieces = tuple(piece for bound in bindings for piece in bound.pieces)
    return Binding(bindings[0].name, bindings[0].spec, pieces, rows)


def union_rows(lists: Sequence[tuple[int, ...] | None]) -> tuple[int, ...] | None:
    """The rows that any of several changes touches, ascending; None for all."""
    return None if None in lists else tuple(sorted({row for rows in lists for row in rows or ()}))


def new_twice(name: str, expected: str, got: str) -> ShapeMismatch:
    """The refusal of a tensor that several adapters bring, each its own, and the base does not have."""
    return ShapeMismatch(
        f"{name} — several adapters bring this tensor, which the base does not have",
        expected=expected,
        got=got,
        hint="there is no base value to interpolate from: combine adapters with the same head, or leave one out",
    )
