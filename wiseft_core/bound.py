"""A plan together with the bytes it speaks of: what every verb computes from.

Joint floor. A `Bound` is made once for a base and an adapter; switching alpha costs nothing, because nothing in here
depends on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from wiseft_core import dtypes, numerics
from wiseft_core.blending import Share, Term, tile_change, tile_values
from wiseft_core.errors import DtypeMismatch, WiseftError
from wiseft_core.families import Change, Family
from wiseft_core.layouts import LAYOUTS
from wiseft_core.plans import Binding, Plan, new_twice, union_rows
from wiseft_core.sources import Memory, Source
from wiseft_core.steps import StepSpec
from wiseft_core.tiles import Numbers, Read, Step, Tile, factor_matrix, grid, measured, not_finite


@dataclass(frozen=True, slots=True)
class Prepared:
    """One tensor of one or several results, ready to be computed tile by tile, by any number of threads.

    Attributes:
        name: Its name.
        shape: Its shape.
        read: Reads the base's elements.
        terms: What each adapter that has a share does to it.
        shares: For each result, the coefficient of each term.
        rows: The rows that differ from what `read` gives; None for all.
        numbers: Dtypes, device and policy.
    """

    name: str
    shape: tuple[int, ...]
    read: Read
    terms: tuple[Term, ...]
    shares: tuple[Share, ...]
    rows: Sequence[int] | None
    numbers: Numbers

    def tiles(self) -> Iterator[Tile]:
        """The tiles that differ from what `read` gives: all of them, or those of the touched rows."""
        return grid(self.shape, self.rows)

    def values(self, tile: Tile) -> list[Tensor]:
        """For each result, its elements [tile.start, tile.stop), rounded once to the output dtype."""
        stored = self.read(tile.start, tile.stop)
        return tile_values(tile, stored, self.terms, self.shares, self.numbers, self.name)

    def value(self, tile: Tile) -> Tensor:
        """`values` for the only result."""
        (value,) = self.values(tile)
        return value

    def change(self, tile: Tile) -> Tensor:
        """For the only result, what is added to the base there, in the compute dtype: (rows, columns) of the tile."""
        (share,) = self.shares
        return tile_change(tile, self.read(tile.start, tile.stop), self.terms, share, self.numbers)


@dataclass(frozen=True, slots=True)
class Part:
    """One adapter of a bound: its tensors, how it fits the base, and the content of its config file."""

    adapter: Source
    plan: Plan
    config_bytes: bytes | None = None


@dataclass(frozen=True, slots=True)
class Bound:
    """A base, the adapters over it, and the plan that joins them."""

    base: Source
    parts: tuple[Part, ...]
    plan: Plan
    families: Mapping[str, Family]
    compute: torch.dtype
    output_dtype: str | None
    overflow: str
    device: torch.device | None

    def source(self, name: str) -> tuple[Source, str]:
        """Where an output tensor's own bytes are: in the base, or in an adapter for a new one; and under which key."""
        for part in self.parts if name in self.plan.new else ():
            if name in part.plan.new:
                return part.adapter, part.plan.new[name]
        return self.base, name

    def is_copy(self, name: str, share: Share) -> bool:
        """Whether an output tensor is its source's bytes, so that nothing is computed."""
        source, key = self.source(name)
        return not any(share) and source.specs[key].dtype == self.plan.outputs[name].dtype

    def rows(self, name: str, shares: Sequence[Share]) -> tuple[int, ...] | None:
        """The rows of a tensor that differ from its source's bytes in any of the results, ascending; None for all."""
        source, key = self.source(name)
        bindings = [self.parts[at].plan.bindings[name] for at in _active(shares)]
        if not bindings or source.specs[key].dtype != self.plan.outputs[name].dtype:
            return None
        return union_rows([bound.rows for bound in bindings])

    def prepare(self, name: str, shares: Sequence[Share]) -> Prepared:
        """Read the factors of one output tensor, and take the pass over it that some families need first.

        Args:
            name: The tensor.
            shares: For each result, the coefficient of each part; 0 for a part that does not touch the tensor.
        """
        source, key = self.source(name)
        shape, read = source.specs[key].shape, partial(source.read, key)
        numbers, active = self.numbers(name), _active(shares)
        terms = tuple(self._term(self.parts[at], name, shape, read, numbers) for at in active)
        kept = tuple(tuple(share[at] for at in active) for share in shares)
        return Prepared(name, shape, read, terms, kept, self.rows(name, shares), numbers)

    def _term(self, part: Part, name: str, shape: tuple[int, ...], read: Read, numbers: Numbers) -> Term:
        """What one adapter does to one tensor."""
        bound = part.plan.bindings[name]
        steps = tuple(self.step(part, step, bound, numbers) for step in bound.steps)
        return Term(measured(shape, steps, read, numbers), bound.rows)

    def numbers(self, name: str) -> Numbers:
        """How the numbers of an output tensor are treated."""
        output = dtypes.TORCH_DTYPES[self.plan.outputs[name].dtype]
        return Numbers(self.compute, output, self.overflow, self.device_of(name))

    def device_of(self, name: str) -> torch.device:
        """Where an output tensor is computed: the device that was asked for, else where its source is."""
        source, key = self.source(name)
        if self.device is not None:
            return self.device
        return source.tensors[key].device if isinstance(source, Memory) else torch.device("cpu")

    def change(self, spec: StepSpec) -> Change:
        """What the family of a step does to its parameter."""
        return self.families[spec.family].forms(spec.parameter)[spec.form]

    def step(self, part: Part, spec: StepSpec, bound: Binding, numbers: Numbers) -> Step:
        """The step with its factors read, widened, and in the order of the touched rows."""
        change = self.change(spec)
        factors: dict[str, Tensor] = {}
        streams: dict[str, Read] = {}
        for role, key in spec.factors.items():
            axes = change.factors[role]
            if axes == "out in":
                streams[role] = partial(part.adapter.read, key)
                continue
            factor = factor_matrix(whole(part, key), axes, key, numbers, integer=role in change.integers)
            factors[role] = factor[list(bound.entries)] if axes.startswith("row") else factor
        for role, name in spec.beside.items():
            specs = self.base.specs[name]
            stored = self.base.read(name, 0, specs.numel).reshape(specs.shape)
            factors[role] = numerics.widen(stored.to(numbers.device), numbers.compute)
        return Step(change, LAYOUTS[spec.layout], spec.hyper, factors, streams)

    def check_values(self, complete: Sequence[bool]) -> None:
        """Refuse what only values can tell: adapter values that are not finite, integers that tuning changed.

        Args:
            complete: For each part, whether it is a full checkpoint: that is checked tile by tile instead of now.
        """
        problems: list[WiseftError] = []
        for part, is_complete in zip(self.parts, complete, strict=True):
            for name, key in part.plan.same.items():
                count = self.base.specs[name].numel
                ours, theirs = self.base.read(name, 0, count), part.adapter.read(key, 0, count)
                if not same_bytes(ours, theirs):
                    problems.append(_changed_integers(name, key))
            problems += [
                _other_copy(key, used)
                for key, used in part.plan.copies.items()
                if not same_bytes(whole(part, key), whole(part, used))
            ]
            for key, name in () if is_complete else part.plan.consumed().items():
                if name and name not in part.plan.same and not numerics.is_all_finite(whole(part, key)):
                    problems.append(not_finite(key))
        WiseftError.raise_all(problems + self._new_twice())

    def _new_twice(self) -> list[WiseftError]:
        """What is wrong with tensors that the base does not have and several adapters bring: they must be the same."""
        problems: list[WiseftError] = []
        for name in self.plan.new:
            first, *rest = [whole(part, part.plan.new[name]) for part in self.parts if name in part.plan.new]
            if not all(same_bytes(first, other) for other in rest):
                problems.append(new_twice(name, "one tensor, the same values in each", "other values in one of them"))
        return problems


def same_bytes(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have one shape and dtype, and hold the same bytes."""
    return (
        one.shape == other.shape
        and one.dtype == other.dtype
        and torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))
    )


def _active(shares: Sequence[Share]) -> list[int]:
    """The parts that have a share in any of the results."""
    return [at for at, column in enumerate(zip(*shares, strict=True)) if any(column)]


def whole(part: Part, key: str) -> Tensor:
    """A whole adapter tensor, read and not mapped."""
    spec = part.adapter.specs[key]
    return part.adapter.read(key, 0, spec.numel).reshape(spec.shape)


def _other_copy(key: str, used: str) -> DtypeMismatch:
    return DtypeMismatch(
        f"{key} — another value than what it is a copy of",
        expected=f"the values of {used}, which all modules share",
        got="others",
        hint="the adapter file is damaged, or was put together from several",
    )


def _changed_integers(name: str, key: str) -> DtypeMismatch:
    return DtypeMismatch(
        f"{name} — tuning changed an integer tensor",
        expected="the same integers in base and adapter",
        got=f"other values in adapter key {key}",
        hint="integers cannot be interpolated; remove the tensor from the adapter if it does not matter",
    )
