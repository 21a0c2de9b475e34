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
from wiseft_core.binding import Binding, Plan
from wiseft_core.errors import DtypeMismatch, WiseftError
from wiseft_core.families import Family
from wiseft_core.layouts import LAYOUTS
from wiseft_core.sources import Memory, Source
from wiseft_core.steps import StepSpec
from wiseft_core.tiles import Numbers, Read, Step, Tile, factor_matrix, grid, measured, not_finite, tile_value


@dataclass(frozen=True, slots=True)
class Prepared:
    """One tensor of the result, ready to be computed tile by tile at a given alpha, by any number of threads."""

    name: str
    shape: tuple[int, ...]
    read: Read
    steps: tuple[Step, ...]
    alpha: float
    rows: Sequence[int] | None
    numbers: Numbers

    def tiles(self) -> Iterator[Tile]:
        """The tiles that differ from what `read` gives: all of them, or those of the touched rows."""
        return grid(self.shape, self.rows)

    def value(self, tile: Tile) -> Tensor:
        """The result's elements [tile.start, tile.stop), rounded once to the output dtype."""
        stored = self.read(tile.start, tile.stop)
        return tile_value(tile, stored, self.steps, self.alpha, self.numbers, self.name)


@dataclass(frozen=True, slots=True)
class Bound:
    """Base, adapter, and the plan that joins them; `config_bytes` is the content of the adapter's config file."""

    base: Source
    adapter: Source
    plan: Plan
    families: Mapping[str, Family]
    compute: torch.dtype
    output_dtype: str | None
    overflow: str
    device: torch.device | None
    config_bytes: bytes | None = None

    def source(self, name: str) -> tuple[Source, str]:
        """Where an output tensor's own bytes are: in the base, or in the adapter for a new one; and under which key."""
        return (self.adapter, self.plan.new[name]) if name in self.plan.new else (self.base, name)

    def is_copy(self, name: str, alpha: float) -> bool:
        """Whether an output tensor is its source's bytes, so that nothing is computed."""
        source, key = self.source(name)
        same = source.specs[key].dtype == self.plan.outputs[name].dtype
        return same and (alpha == 0 or name not in self.plan.bindings)

    def prepare(self, name: str, alpha: float) -> Prepared:
        """Read the factors of one output tensor, and take the pass over it that some families need first."""
        source, key = self.source(name)
        shape, read = source.specs[key].shape, partial(source.read, key)
        numbers = self._numbers(name)
        bound = self.plan.bindings.get(name)
        if bound is None or alpha == 0:
            return Prepared(name, shape, read, (), alpha, None, numbers)
        steps = tuple(self._step(step, bound, numbers) for step in bound.steps)
        if bound.rows is not None and self.base.specs[name].dtype != self.plan.outputs[name].dtype:
            raise DtypeMismatch(
                f"{name} — trained token rows cannot be written in another dtype yet",
                expected=f"{self.base.specs[name].dtype}, as in the base",
                got=f"{self.plan.outputs[name].dtype}",
                hint="leave output_dtype out",
            )
        return Prepared(name, shape, read, measured(shape, steps, read, numbers), alpha, bound.rows, numbers)

    def _numbers(self, name: str) -> Numbers:
        output = dtypes.TORCH_DTYPES[self.plan.outputs[name].dtype]
        return Numbers(self.compute, output, self.overflow, self.device_of(name))

    def device_of(self, name: str) -> torch.device:
        """Where an output tensor is computed: the device that was asked for, else where its source is."""
        source, key = self.source(name)
        if self.device is not None:
            return self.device
        return source.tensors[key].device if isinstance(source, Memory) else torch.device("cpu")

    def _step(self, spec: StepSpec, bound: Binding, numbers: Numbers) -> Step:
        """The step with its factors read, widened, and in the order of the touched rows."""
        record = self.families[spec.family]
        change = record.parameters.get(spec.parameter) or record.parameters["*"]
        factors: dict[str, Tensor] = {}
        streams: dict[str, Read] = {}
        for role, key in spec.factors.items():
            axes = change.factors[role]
            if axes == "out in":
                streams[role] = partial(self.adapter.read, key)
                continue
            factor = factor_matrix(self.whole(key), axes, key, numbers)
            factors[role] = factor[list(bound.entries)] if axes.startswith("row") else factor
        return Step(change, LAYOUTS[spec.layout], spec.scale, factors, streams)

    def whole(self, key: str) -> Tensor:
        """A whole adapter tensor, read and not mapped."""
        spec = self.adapter.specs[key]
        return self.adapter.read(key, 0, spec.numel).reshape(spec.shape)

    def check_values(self, *, factors: bool) -> None:
        """Refuse what only values can tell: adapter values that are not finite, integers that tuning changed.

        Args:
            factors: Also read every tensor of the adapter now; a full checkpoint is checked tile by tile instead.
        """
        problems: list[WiseftError] = []
        for name, key in self.plan.same.items():
            count = self.base.specs[name].numel
            ours, theirs = self.base.read(name, 0, count), self.adapter.read(key, 0, count)
            if not torch.equal(ours.view(torch.uint8), theirs.view(torch.uint8)):
                problems.append(_changed_integers(name, key))
        for key, name in self.plan.consumed().items():
            if factors and name and name not in self.plan.same and not numerics.is_all_finite(self.whole(key)):
                problems.append(not_finite(key))
        WiseftError.raise_all(problems)


def _changed_integers(name: str, key: str) -> DtypeMismatch:
    return DtypeMismatch(
        f"{name} — tuning changed an integer tensor",
        expected="the same integers in base and adapter",
        got=f"other values in adapter key {key}",
        hint="integers cannot be interpolated; remove the tensor from the adapter if it does not matter",
    )
