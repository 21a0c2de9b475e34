"""A plan together with the bytes it speaks of: what every verb computes from.

Joint floor. A `Bound` is made once for a base and an adapter; switching alpha costs nothing, because nothing in here
depends on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from wiseft_core import arrays, kits
from wiseft_core.blending import Each, Share, Term, tile_change, tile_values
from wiseft_core.cutting import Packed, extended, read_step, shifted, whole
from wiseft_core.errors import Unsupported, listed
from wiseft_core.families import Change, Family
from wiseft_core.kits import Numbers, Values
from wiseft_core.layouts import matrix_shape
from wiseft_core.plans import Binding, Piece, Plan, StepSpec
from wiseft_core.sources import Arrays, Memory, Source, has_bytes
from wiseft_core.spans import Place, Span, runs, united
from wiseft_core.tiles import Read, Step, measured

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Prepared:
    """One tensor of one or several results, ready to be computed tile by tile, by any number of threads.

    Attributes:
        name: Its name.
        shape: Its shape.
        read: Reads the base's elements; those that the base does not have are 0.
        terms: What each adapter that has a share does to it.
        shares: For each result, the coefficient of each term.
        spans: The elements that differ from what `read` gives.
        known: How many elements the base has. Those behind are as tuned, whatever the share.
        numbers: Dtypes, device and policy.
    """

    name: str
    shape: tuple[int, ...]
    read: Read
    terms: tuple[Term, ...]
    shares: tuple[Share, ...]
    spans: tuple[Span, ...]
    known: int
    numbers: Numbers

    def tiles(self) -> Iterator[Span]:
        """The tiles that differ from what `read` gives: all of them, or those of `spans`."""
        return runs(self.spans, [term.places for term in self.terms], Place.of(0, self.shape))

    def values(self, tile: Span) -> list[Values]:
        """For each result, its elements [tile.start, tile.stop), rounded once to the output dtype."""
        shares = self.shares if tile.start < self.known else [(1.0,) * len(share) for share in self.shares]
        return tile_values(tile, self.read(*tile), self.terms, shares, self.numbers, self.name)

    def value(self, tile: Span) -> Values:
        """`values` for the only result."""
        (value,) = self.values(tile)
        return value

    def change(self, tile: Span) -> Values:
        """For the only result, what is added to the base there, in the compute dtype."""
        (share,) = self.shares
        return tile_change(tile, self.read(*tile), self.terms, share, self.numbers)


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
    compute: str
    output_dtype: str | None
    overflow: str
    device: torch.device | None
    tied: str = "untie"
    packed: Packed = field(default_factory=Packed, repr=False, compare=False)

    def source(self, name: str) -> tuple[Source, str]:
        """Where an output tensor's own bytes are: in the base, or in an adapter for a new one; and under which key.

        Of a tensor that tuning has made larger the base has the first elements.
        """
        for part in self.parts if name in self.plan.new else ():
            if name in part.plan.new:
                return part.adapter, part.plan.new[name]
        return self.base, self.plan.sources.get(name, name)

    def is_copy(self, name: str, share: Share) -> bool:
        """Whether an output tensor is its source's bytes, so that nothing is computed."""
        source, key = self.source(name)
        return not any(share) and source.specs[key] == self.plan.outputs[name]

    def is_grown(self, name: str) -> bool:
        """Whether tuning has made a tensor larger than the base has it."""
        source, key = self.source(name)
        return source.specs[key].numel < self.plan.outputs[name].numel

    def spans(self, name: str, shares: Sequence[Share]) -> tuple[Span, ...]:
        """The elements of a tensor that differ from its source's bytes in any of the results."""
        (source, key), output = self.source(name), self.plan.outputs[name]
        known = source.specs[key].numel
        if source.specs[key].dtype != output.dtype:
            return united([Span(0, output.numel)], known)
        bindings = [self.parts[at].plan.bindings[name] for at in self._active(name, shares)]
        changed = [span for binding in bindings if any(map(any, shares)) for span in spans_of(binding)]
        return united([*changed, Span(min(known, output.numel), output.numel)], known)

    def tiles(self, name: str, shares: Sequence[Share]) -> Iterator[Span]:
        """The tiles of `spans`, known before anything is read."""
        matrices = [places(self.parts[at].plan.bindings[name]) for at in self._active(name, shares)]
        return runs(self.spans(name, shares), matrices, Place.of(0, self.plan.outputs[name].shape))

    def prepare(self, name: str, shares: Sequence[Share], *, in_arrays: bool = False) -> Prepared:
        """One output tensor, ready to be computed. Factors are read when a tile first needs them.

        Args:
            name: The tensor.
            shares: For each result, the coefficient of each part; 0 for a part that does not touch the tensor.
            in_arrays: Compute in numpy's arrays, which needs `in_arrays(name)`, and gives the same bits.
        """
        (source, key), shape = self.source(name), self.plan.outputs[name].shape
        known, active = source.specs[key].numel, self._active(name, shares)
        if in_arrays:
            source, numbers = Arrays(source), Numbers(None, self.plan.outputs[name].dtype, self.overflow, None)
        else:
            numbers = self.numbers(name)
        read: Read = partial(extended, source, key)
        bindings = [self.parts[at].plan.bindings[name] for at in active]
        # Tiles that suit several matrices, or end where the base does, may hold less than whole rows of one.
        gridded = len({places(binding) for binding in bindings}) < 2 and not self.is_grown(name)
        terms = [self._term(self.parts[at], name, read, numbers, gridded=gridded) for at in active]
        kept = tuple(tuple(share[at] for at in active) for share in shares)
        return Prepared(name, shape, read, tuple(terms), kept, self.spans(name, shares), known, numbers)

    def in_arrays(self, name: str) -> bool:
        """Whether numpy alone can compute a tensor: from files, in dtypes that it has, by changes that take arrays."""
        (source, key), output = self.source(name), self.plan.outputs[name]
        if self.compute != "F64" or self.device is not None or not has_bytes(source) or self.is_grown(name):
            return False
        if not {source.specs[key].dtype, output.dtype} <= arrays.CARRIERS.keys():
            return False
        return all(
            has_bytes(part.adapter) and all(self._takes_arrays(part, step) for step in part.plan.bindings[name].steps)
            for part in self.parts
            if name in part.plan.bindings
        )

    def work(self, most: int) -> int:
        """How many elements of one result numpy computes; counted no further than just beyond `most`."""
        count = 0
        for name in self.plan.bindings:
            count += self.plan.outputs[name].numel if self.in_arrays(name) else 0
            if count > most:
                break
        return count

    def _takes_arrays(self, part: Part, spec: StepSpec) -> bool:
        """`in_arrays` of one step."""
        stored = {part.adapter.specs[key].dtype for key in spec.factors.values()}
        return self.change(spec).arrays and not spec.cut.experts and stored <= arrays.CARRIERS.keys()

    def _active(self, name: str, shares: Sequence[Share]) -> list[int]:
        """The parts that have a share in any of the results, or bring rows that the base does not have."""
        grown = self.is_grown(name)
        columns = enumerate(zip(*shares, strict=True))
        return [at for at, column in columns if any(column) or (grown and name in self.parts[at].plan.bindings)]

    def _term(self, part: Part, name: str, read: Read, numbers: Numbers, *, gridded: bool) -> Term:
        """What one adapter does to one tensor."""
        binding = part.plan.bindings[name]
        pieces = [piece for piece in binding.pieces if 0 not in piece.shape]
        if self.is_grown(name) and (binding.rows or any(self.change(one.steps[0]).value is None for one in pieces)):
            raise Unsupported(
                f"{name} — rows that the base does not have, and not all of them are saved with the adapter",
                expected="the whole resized tensor in the adapter",
                got=f"{listed(dict.fromkeys(step.family for step in binding.steps))}",
                hint="resize the base's vocabulary first, or save the adapter with save_embedding_layers=True",
            )

        def steps(at: int) -> tuple[Step, ...]:
            return self.steps(part, binding, pieces[at], read, numbers, gridded=gridded)

        return Term(places(binding), Each(steps), binding.rows)

    def steps(
        self, part: Part, binding: Binding, piece: Piece, read: Read, numbers: Numbers, *, gridded: bool = True
    ) -> tuple[Step, ...]:
        """The steps of one piece, with their factors read and the pass taken that some families need first.

        Args:
            part: The adapter.
            binding: What it does to the tensor.
            piece: The piece.
            read: Reads the base's elements of the whole tensor.
            numbers: How numbers are treated.
            gridded: As for `measured`.
        """
        steps = [self.step(part, spec, binding, numbers, piece) for spec in piece.steps]
        return measured(piece.shape, steps, shifted(read, piece.start), numbers, gridded=gridded)

    def numbers(self, name: str) -> Numbers:
        """How the numbers of an output tensor are treated."""
        from wiseft_core.dtypes import TORCH_DTYPES  # torch comes with tensors, not with arrays

        output = TORCH_DTYPES[self.plan.outputs[name].dtype]
        return Numbers(TORCH_DTYPES[self.compute], output, self.overflow, self.device_of(name))

    def device_of(self, name: str) -> torch.device:
        """Where an output tensor is computed: the device that was asked for, else where its source is."""
        import torch

        source, key = self.source(name)
        if self.device is not None:
            return self.device
        return source.tensors[key].device if isinstance(source, Memory) else torch.device("cpu")

    def change(self, spec: StepSpec) -> Change:
        """What the family of a step does to its parameter."""
        return self.families[spec.family].forms(spec.parameter)[spec.form]

    def step(self, part: Part, spec: StepSpec, binding: Binding, numbers: Numbers, piece: Piece) -> Step:
        """A step of a piece with its factors read, widened, and in the order of the touched rows."""
        change = self.change(spec)
        adapter = Arrays(part.adapter) if numbers.compute is None else part.adapter
        step = read_step(adapter, spec, change, binding.entries, numbers, self.packed)
        if not spec.beside:
            return step
        if (piece.start, piece.shape) != (0, binding.spec.shape):
            raise Unsupported(
                f"{binding.name} — {spec.family} depends on another parameter of its module",
                expected="a base that stores the module's parameters one by one",
                got="a part of a fused tensor",
                hint="merge this adapter with the library that trained it",
            )
        others = {}
        for role, name in spec.beside.items():
            stored = whole(self.base, name)
            others[role] = kits.widen(stored, numbers)
        return replace(step, factors={**step.factors, **others})


def places(binding: Binding) -> tuple[Place, ...]:
    """Where the matrices lie that a binding changes, but for empty ones."""
    return tuple(Place.of(piece.start, piece.shape) for piece in binding.pieces if 0 not in piece.shape)


def spans_of(binding: Binding) -> Iterator[Span]:
    """The elements that a binding changes."""
    if binding.rows is None:
        yield from (Span(place.start, place.stop) for place in places(binding))
    else:
        _, width = matrix_shape(binding.spec.shape)
        yield from (Span(row * width, (row + 1) * width) for row in binding.rows)
