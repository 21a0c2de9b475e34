"""The joint: base specs, adapter specs and config become a plan, or an error that names everything that does not fit.

Names and shapes only; no tensor is read and torch is not imported. Every adapter tensor is consumed exactly once, as a
factor, as a new tensor, or by name as one that means nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from wiseft_core import guards
from wiseft_core.config import AdapterConfig
from wiseft_core.errors import ShapeMismatch, UnusedPattern, WiseftError, listed
from wiseft_core.families import FAMILIES, Family
from wiseft_core.methods import companions, suffixes
from wiseft_core.naming.peft import UNUSED, PeftKey, parse_keys
from wiseft_core.orientation import Orientation
from wiseft_core.sites import Placement, collect, copies, place
from wiseft_core.steps import Scene, StepSpec, steps_of, token_rows
from wiseft_core.types import TensorSpec


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
            resized vocabulary the piece has the new shape: rows that the base does not have are as trained, always.
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
            "touched": {name: bound.as_dict() for name, bound in self.bindings.items()},
            "new": dict(self.new),
            "same": dict(self.same),
            "ignored": list(self.ignored),
            "notes": list(self.notes),
        }


def bind(
    base: Mapping[str, TensorSpec],
    adapter: Mapping[str, TensorSpec],
    *,
    config: AdapterConfig | None = None,
    base_config: Mapping[str, object] | None = None,
    shared: Sequence[frozenset[str]] = (),
    complete: bool = False,
    output_dtype: str | None = None,
    families: Mapping[str, Family] = FAMILIES,
) -> Plan:
    """Find the base tensor of every adapter tensor, or say why not.

    Args:
        base: Specs of the base, in on-disk order.
        adapter: Specs of the adapter, by its own keys.
        config: The adapter's config; None for a full checkpoint, or where the adapter needs none.
        base_config: The base's config.json: it settles square transposed weights and tied embeddings.
        shared: Groups of base names that share memory.
        complete: The adapter is a full checkpoint: it must cover the base.
        output_dtype: Dtype of every float tensor of the result; None: each keeps its own.
        families: The methods to know.
    Raises:
        BindingError, ShapeMismatch, ConfigError, Unsupported: Everything that does not fit, all of it at once.
    """
    parsed = parse_keys(adapter, suffixes=suffixes({} if complete else families, config))
    if config is not None:
        config.check_work({part.module for part in parsed.values()})
    placed = place(collect(parsed), base, adapter, config=config, base_config=base_config, complete=complete)
    placed = replace(placed, sites={**placed.sites, **companions(placed.sites, base, families)})
    touched = [name for name in (*placed.sites, *placed.new) if name not in placed.same]
    if not complete:
        guards.tied(touched, base, base_config, shared)
    guards.quantized([name for name in touched if name in base], base, base_config)
    orientation = Orientation.of(placed.sites, base, adapter, config, base_config)
    replaced = frozenset(name for name, site in placed.sites.items() if "value" in site.factors)
    scene = Scene(adapter, config, orientation, _ranks(placed, adapter), families, base, replaced)
    bindings = _bind_sites(placed, scene)
    _check_patterns(config, parsed)
    outputs = {name: _output(spec, output_dtype) for name, spec in base.items()}
    outputs |= {name: _output(adapter[key], output_dtype) for name, key in placed.new.items()}
    used = dict.fromkeys(step.family for bound in bindings.values() for step in bound.steps)
    notes = [families[name].note for name in used if families[name].note]
    if placed.new:
        notes.append(f"not in the base, carried as trained at every alpha: {listed(placed.new, most=10)}")
    return Plan(
        outputs=outputs,
        bindings={name: bindings[name] for name in base if name in bindings},
        new=placed.new,
        same=placed.same,
        copies=copies(parsed),
        ignored=tuple(sorted(key for key, part in parsed.items() if part.role in UNUSED)),
        homes=_homes(placed.new, base),
        rule=str(placed.rule),
        notes=tuple(notes),
    )


def joined(plans: Sequence[Plan]) -> Plan:
    """The plan of several adapters over one base: what any of them touches, and every tensor that any of them brings.

    A single plan stays as it is. Of several, new tensors are in the order of their names, so that the order of the
    adapters does not matter; the steps of a tensor are those of one adapter after the other, though they are summed.

    Raises:
        ShapeMismatch: Two adapters bring a new tensor of one name with different shapes or dtypes.
    """
    if len(plans) == 1:
        return plans[0]
    brought: dict[str, TensorSpec] = {}
    for plan in plans:
        for name in plan.new:
            if brought.setdefault(name, plan.outputs[name]) != plan.outputs[name]:
                raise new_twice(name, f"one tensor, {brought[name]} in each", f"{plan.outputs[name]} in one of them")
    kept = {name: spec for name, spec in plans[0].outputs.items() if name not in plans[0].new}
    bindings = {name: _sum([plan.bindings[name] for plan in plans if name in plan.bindings]) for name in kept}
    return Plan(
        outputs=kept | dict(sorted(brought.items())),
        bindings={name: bound for name, bound in bindings.items() if bound is not None},
        new={name: key for plan in plans for name, key in sorted(plan.new.items())},
        same={name: key for plan in plans for name, key in plan.same.items()},
        copies={key: used for plan in plans for key, used in plan.copies.items()},
        ignored=tuple(sorted(key for plan in plans for key in plan.ignored)),
        homes={name: home for plan in plans for name, home in plan.homes.items()},
        rule=", ".join(sorted({plan.rule for plan in plans})),
        notes=tuple(sorted({note for plan in plans for note in plan.notes})),
    )


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


def _bind_sites(placed: Placement, scene: Scene) -> dict[str, Binding]:
    """Steps of every placed site; all problems are collected before any is raised."""
    bindings: dict[str, Binding] = {}
    problems: list[WiseftError] = []
    for name, site in placed.sites.items():
        if name in placed.same:
            continue
        try:
            spec = scene.base[name]
            steps = steps_of(site, name, spec, scene)
            rows = token_rows(site, name, spec, scene) if "rows" in site.factors else (None, ())
            if steps:
                bindings[name] = Binding(name, spec, (Piece(0, spec.shape, steps),), *rows)
        except WiseftError as error:
            problems.append(error)
    WiseftError.raise_all(problems)
    return bindings


def _ranks(placed: Placement, adapter: Mapping[str, TensorSpec]) -> dict[str, int]:
    """Rank of each module that has a factor A: a bias trained with B is scaled by its module's rank."""
    keys = {one.module: one.factors["A"] for one in placed.sites.values() if "A" in one.factors and not one.method}
    return {module: adapter[key].shape[0] for module, key in keys.items() if adapter[key].shape}


def _check_patterns(config: AdapterConfig | None, parsed: Mapping[str, PeftKey]) -> None:
    """Refuse a rank or alpha pattern that matches no module of the adapter."""
    if config is None:
        return
    modules = {part.module for part in parsed.values() if part.role not in {"value", *UNUSED}}
    such = f"modules such as {listed(modules)}"
    WiseftError.raise_all(
        [
            UnusedPattern(
                f"adapter_config.json — the pattern {pattern!r} matches no module of the adapter",
                expected="rank_pattern and alpha_pattern entries that each match a module with factors",
                got=such,
                hint="the adapter's tensors and its config do not belong together, or the entry can be removed",
            )
            for pattern in config.unused_patterns(sorted(modules))
        ]
    )


def _output(spec: TensorSpec, dtype: str | None) -> TensorSpec:
    """The spec of a result: floats take the asked dtype, anything else stays as it is."""
    return TensorSpec(dtype, spec.shape) if dtype is not None and spec.is_float else spec


def _homes(new: Mapping[str, str], base: Mapping[str, TensorSpec]) -> dict[str, str]:
    """For each new tensor, the last base tensor of its own module, if the base has that module."""
    if not new:
        return {}
    last = {module: name for name in base if (module := name.rpartition(".")[0])}
    return {name: last[module] for name in new if (module := name.rpartition(".")[0]) in last}
