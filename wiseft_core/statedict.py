"""The result of a verb: a read-only, lazy mapping from names to tensors.

Joint floor. Nothing is computed before a tensor is asked for, and nothing that was computed is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakValueDictionary

from wiseft_core.blending import Share
from wiseft_core.bound import Bound
from wiseft_core.errors import BadAlpha, ConfigError, WiseftError, of_adapter
from wiseft_core.plans import Plan
from wiseft_core.schedules import frozen, resolve
from wiseft_core.store.checkpoint import Checkpoint
from wiseft_core.types import Alpha, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor


class StateDict(Mapping[str, "Tensor"]):
    """Interpolated weights by name, in the base's on-disk order, new tensors last.

    An untouched name is the base's own storage, memory-mapped if the base was opened from a path, and so is a touched
    one where its alpha is 0 and its dtype stays: not to be written into. Any other touched one is computed at each
    access, without grad, and not kept. Safe to use from many threads at once.

    Attributes:
        plan: What goes where, with `notes` that a human should know.
        alpha: The coefficient as it was given; of a combination, a tuple with that of each adapter.
        given: The same as a tuple always.
        alphas: For each adapter, the coefficient of each name that it touches.
        extrapolate: Whether alpha may lie outside [0, 1].
        touched: The names that tuning changes, in order.
    """

    def __init__(self, bound: Bound, alphas: Sequence[Alpha], *, extrapolate: bool = False) -> None:
        self._bound = bound
        given, self.extrapolate = tuple(alphas), extrapolate
        self.alphas: tuple[Mapping[str, float], ...] = tuple(self._resolved(given))
        self.given: tuple[Alpha, ...] = tuple(map(frozen, given))  # what is recorded is what was computed with
        WiseftError.raise_all(list(self._torn()))
        self._tied: WeakValueDictionary[str, Tensor] = WeakValueDictionary()

    def _torn(self) -> Iterator[WiseftError]:
        """The refusals of names that stay one tensor and have different coefficients."""
        for name, other in self.plan.alike.items():
            if name in self.plan.outputs and self.share(name) != self.share(other):
                yield BadAlpha(
                    f"{name} — one tensor with {other}, and another alpha",
                    expected="one alpha for all names of a tensor that stays tied",
                    got=f"{[*self.share(name)]} and {[*self.share(other)]}",
                    hint='give both names the same alpha; where tuning makes them differ, tied="untie" writes both',
                )

    def _resolved(self, given: Sequence[Alpha]) -> Iterator[Mapping[str, float]]:
        """For each adapter, the coefficient of each name that it touches."""
        for number, (alpha, part) in enumerate(zip(given, self._bound.parts, strict=True), start=1):
            with of_adapter(number, len(given)):
                yield resolve(alpha, list(part.plan.bindings), extrapolate=self.extrapolate)

    @property
    def bound(self) -> Bound:
        """Base, adapter and plan, for the verbs that stream."""
        return self._bound

    @property
    def plan(self) -> Plan:
        """What goes where, by which rule."""
        return self._bound.plan

    @property
    def alpha(self) -> Alpha | tuple[Alpha, ...]:
        """The coefficient that was given, numbers as floats; of a combination, a tuple with that of each adapter."""
        return self.given[0] if len(self.given) == 1 else self.given

    @property
    def touched(self) -> tuple[str, ...]:
        """The names that tuning changes, in order."""
        return tuple(self.plan.bindings)

    def at(self, alpha: Alpha | Sequence[Alpha]) -> StateDict:
        """The same binding at another alpha: nothing is read, bound or checked again.

        Args:
            alpha: The coefficient; of a combination, a sequence with that of each adapter.
        Raises:
            BadAlpha, UnusedPattern: As for `interpolate`.
            ConfigError: Not one coefficient for each adapter of a combination.
        """
        several = isinstance(alpha, Sequence) and not isinstance(alpha, str)
        if len(self._bound.parts) == 1 and not several:
            return StateDict(self._bound, (cast(Alpha, alpha),), extrapolate=self.extrapolate)
        if not isinstance(alpha, Sequence) or len(alpha) != len(self._bound.parts):
            raise ConfigError(
                "alpha of a combination",
                expected=f"a sequence of {len(self._bound.parts)} coefficients, one for each adapter",
                got=f"{alpha!r}",
                hint="give them in the order in which the adapters were given",
            )
        return StateDict(self._bound, alpha, extrapolate=self.extrapolate)

    def share(self, name: str) -> Share:
        """The coefficient that each adapter has for a tensor; 0 where it does not touch it."""
        return tuple(alphas.get(name, 0.0) for alphas in self.alphas)

    def is_copy(self, name: str) -> bool:
        """Whether a tensor is its source's bytes, so that nothing is computed."""
        return self._bound.is_copy(name, self.share(name))

    def __getitem__(self, name: str) -> Tensor:
        """The tensor called `name`; see `get_tensor`."""
        return self.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.plan.outputs)

    def __len__(self) -> int:
        return len(self.plan.outputs)

    def __contains__(self, name: object) -> bool:
        return name in self.plan.outputs

    def __eq__(self, other: object) -> bool:
        """Whether it is the same object: to compare mappings by content would compute the whole model."""
        return self is other

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"<StateDict of {len(self)} tensors, {len(self.plan.bindings)} touched, alpha {self.alpha!r}>"

    def spec(self, name: str) -> TensorSpec:
        """Dtype and shape of a tensor, without computing it."""
        return self.plan.outputs[name]

    def metadata(self) -> dict[str, str]:
        """The metadata of the base's header; empty for a base in memory."""
        base = self._bound.base
        return dict(base.metadata()) if isinstance(base, Checkpoint) else {}

    def get_tensor(self, name: str, *, out: Tensor | None = None) -> Tensor:
        """One tensor: computed if touched, unless its alpha is 0; else the own storage of base or adapter.

            W_base + alpha·(W_tuned - W_base), rounded once

        Args:
            name: A name of the base, or of a new tensor.
            out: Where to put the result instead: a contiguous tensor of the same shape and dtype, a parameter too.
        Raises:
            KeyError: No such name.
            NotFinite: A result is not finite or does not fit its dtype, and only the values could tell.
            ConfigError: `out` has another shape or dtype, or is not contiguous.
        """
        spec = self.plan.outputs[name]
        if self.is_copy(name):
            source, key = self._bound.source(name)
            tensor = source.get_tensor(key)
            return tensor if out is None else _copied(tensor, _checked(out, spec, name))
        one = self._one_of(name)
        if out is None and (held := self._tied.get(one)) is not None:
            return held
        result = self._place(spec, name) if out is None else _checked(out, spec, name)
        self._fill(name, result, 0, spec.numel)
        if out is None and one:
            self._tied[one] = result
        return result

    def _one_of(self, name: str) -> str:
        """What a tensor that is tied to another one is called among them; "" for one that is not.

        Both names give one object while either is held, as the base's do.
        """
        other = self.plan.alike.get(name, name)
        is_tied = name != other or other in self.plan.alike.values()
        return other if is_tied and self.share(name) == self.share(other) else ""

    def get_slice(self, name: str) -> Slice:
        """A part of one tensor by indexing, computing only the tiles that hold it."""
        return Slice(self.plan.outputs[name], self._rows(name))

    def _rows(self, name: str) -> Callable[[int, int], Tensor]:
        """A function that gives stored rows [top, bottom) of a tensor."""
        spec = self.plan.outputs[name]
        width = spec.numel // spec.shape[0] if spec.shape and spec.shape[0] else 0

        def rows(top: int, bottom: int) -> Tensor:
            if not spec.shape:  # one number, which is no row
                return self.get_tensor(name)
            if self.is_copy(name):
                source, key = self._bound.source(name)
                return source.get_tensor(key)[top:bottom]
            part = self._place(TensorSpec(spec.dtype, (bottom - top, *spec.shape[1:])), name)
            self._fill(name, part, top * width, bottom * width)
            return part

        return rows

    def _place(self, spec: TensorSpec, name: str) -> Tensor:
        """An empty result on the device where this tensor is computed."""
        import torch

        from wiseft_core.dtypes import TORCH_DTYPES

        return torch.empty(spec.shape, dtype=TORCH_DTYPES[spec.dtype], device=self._bound.device_of(name))

    def _fill(self, name: str, result: Tensor, start: int, stop: int) -> None:
        """Put elements [start, stop) of a tensor into `result`, tile by tile."""
        import torch

        with torch.no_grad():
            prepared, flat = self._bound.prepare(name, [self.share(name)]), result.view(-1)
            reached = start
            for tile in prepared.tiles():
                low, high = max(tile.start, start), min(tile.stop, stop)
                if low < high:
                    if reached < low:  # what lies between
                        flat[reached - start : low - start] = prepared.read(reached, low)
                    flat[low - start : high - start] = prepared.value(tile)[low - tile.start : high - tile.start]
                    reached = high
            if reached < stop:
                flat[reached - start :] = prepared.read(reached, stop)


class Slice:
    """A lazy part of a tensor, with the words of safetensors' slices."""

    def __init__(self, spec: TensorSpec, rows: Callable[[int, int], Tensor]) -> None:
        self._spec, self._rows = spec, rows

    def get_shape(self) -> list[int]:
        """The whole tensor's shape."""
        return list(self._spec.shape)

    def get_dtype(self) -> str:
        """The tensor's dtype, in safetensors' names."""
        return self._spec.dtype

    def __getitem__(self, index: Any) -> Tensor:
        """What `tensor[index]` gives; with a slice or number in front, only those rows are computed."""
        parts = index if isinstance(index, tuple) else (index,)
        if not self._spec.shape:
            return self._rows(0, 1)[index]
        height, first = self._spec.shape[0], parts[0] if parts else slice(None)
        if isinstance(first, slice) and first.step in (None, 1):
            top, bottom, _ = first.indices(height)
            return self._rows(top, max(top, bottom))[(slice(None), *parts[1:])]
        if isinstance(first, int) and not isinstance(first, bool) and -height <= first < height:
            return self._rows(first % height, first % height + 1)[(0, *parts[1:])]
        return self._rows(0, height)[index]


def _checked(out: Tensor, spec: TensorSpec, name: str) -> Tensor:
    """`out` if the result fits it."""
    from wiseft_core import dtypes

    if tuple(out.shape) != spec.shape or dtypes.TORCH_DTYPES[spec.dtype] != out.dtype or not out.is_contiguous():
        raise ConfigError(
            f"{name} — `out` does not fit",
            expected=f"a contiguous tensor {spec}",
            got=f"{out.dtype} {list(out.shape)}, contiguous: {out.is_contiguous()}",
            hint="make it with torch.empty(shape, dtype=...)",
        )
    return out


def _copied(tensor: Tensor, out: Tensor) -> Tensor:
    """`out` with the values of a tensor; no gradient flows from what is stored."""
    import torch

    with torch.no_grad():
        return out.copy_(tensor)
