"""The factors of a step as they are read: whole, or the part that belongs to one piece of a tensor.

Joint floor, above `sources`, `steps` and `tiles`. An adapter may pack the factors of many matrices in one tensor, and
one site may lie over several tensors of the base; a family sees the factors of its own matrix all the same.
"""

from __future__ import annotations

import math
from functools import partial
from threading import Lock
from typing import Final

from wiseft_core.errors import Unsupported
from wiseft_core.families import Change
from wiseft_core.kits import Numbers, Values
from wiseft_core.landings import UNCUT, Cut
from wiseft_core.layouts import LAYOUTS, matrix_shape
from wiseft_core.plans import StepSpec
from wiseft_core.sources import Source, has_bytes
from wiseft_core.tiles import Read, Step, factor_matrix
from wiseft_core.types import TensorSpec

LARGE: Final = 1 << 20
"""Elements of a factor that is not kept in memory, where its rows can be read as tiles need them."""

KEPT: Final = 2
"""Packed factors of one adapter that are kept: those of the two parameters that a layer's experts have."""


class Packed:
    """Factors that have their experts along the fastest axis: read from a file once for all, the last few kept."""

    def __init__(self) -> None:
        self._kept: dict[int, dict[str, Values]] = {}
        self._lock = Lock()

    def __reduce__(self) -> tuple[type[Packed], tuple[()]]:
        """What is kept stays in its process."""
        return Packed, ()

    def __call__(self, source: Source, key: str, experts: int) -> Values:
        """The stored factor (out, rank·experts) as (experts, out, rank)."""
        if not has_bytes(source):  # a view, which nothing needs to keep: what is in memory may change
            return _by_expert(source.get_tensor(key), experts)
        with self._lock:
            kept = self._kept.setdefault(id(source), {})
            found = kept.pop(key, None)
            if found is None:
                found = _by_expert(whole(source, key), experts).contiguous()
            kept[key] = found
            while len(kept) > KEPT:
                del kept[next(iter(kept))]
            return found


def _by_expert(stored: Values, experts: int) -> Values:
    """A packed factor with the experts in front."""
    return stored.reshape(len(stored), -1, experts).permute(2, 0, 1)


def whole(source: Source, key: str) -> Values:
    """A whole tensor, read and not mapped."""
    spec = source.specs[key]
    return source.read(key, 0, spec.numel).reshape(spec.shape)


def read_step(
    source: Source, spec: StepSpec, change: Change, entries: tuple[int, ...], numbers: Numbers, packed: Packed
) -> Step:
    """The step with its factors cut, read, widened, and in the order of the touched rows; none of the base's.

    Args:
        source: The adapter.
        spec: The step.
        change: What its family does.
        entries: For each touched row, its position along the axis `row`.
        numbers: How numbers are treated.
        packed: What is kept of packed factors.
    Raises:
        Unsupported: The family's change of a part is not a part of its change.
        NotFinite: A factor holds a value that is not finite.
    """
    _check(spec, change)
    cut, part = spec.cut, None
    if change.whole and (cut.out or cut.into):
        out, into = spec.hyper.sizes["out"], spec.hyper.sizes["in"]
        cut, part = cut._replace(out=None, into=None), (slice(*(cut.out or (0, out))), slice(*(cut.into or (0, into))))
    factors: dict[str, Values] = {}
    streams: dict[str, Read] = {}
    lines: dict[str, Read] = {}
    for role, key in spec.factors.items():
        axes = change.factors[role]
        if axes == "out in":
            streams[role] = _value(source, key, spec, change)
            continue
        if numbers.compute is None and is_in_lines(spec, role, change, source.specs[key]):
            lines[role] = partial(_lines, source, key)
            continue
        stored = _part(source, key, axes, cut, packed)
        factor = factor_matrix(stored, axes, key, numbers, integer=role in change.integers)
        factors[role] = factor[list(entries)] if axes.startswith("row") else factor
    return Step(change, LAYOUTS[spec.layout], spec.hyper, factors, streams, lines, part=part)


def is_in_lines(spec: StepSpec, role: str, change: Change, stored: TensorSpec) -> bool:
    """Whether a factor is so large that its rows are read as tiles need them, and lies in its file by these rows."""
    return (
        stored.numel > LARGE
        and change.factors[role] == "out rank"
        and spec.cut == UNCUT
        and LAYOUTS[spec.layout].rows == "out"
        and not change.whole
    )


def _check(spec: StepSpec, change: Change) -> None:
    """Refuse a part of a change that cannot be computed from a part of its factors."""
    cut, got = spec.cut, ""
    if (cut.out or cut.into) and change.whole and change.tuned is not None:
        got = "a change that is of a whole matrix, over a weight that is only a part of it"
    elif cut.into and change.measure is not None:
        got = "norms over whole rows, of a weight that has only a part of each"
    elif cut != UNCUT and change.beside:
        got = "a change that depends on another parameter, cut in parts"
    elif cut.experts and not {*change.factors.values()} <= {"rank in", "out rank", "out in"}:
        got = "factors that are not known to be packed"
    if got:
        raise Unsupported(
            f"{', '.join(spec.factors.values())} — {spec.family} cannot be cut to this part of the base",
            expected="a base that stores the adapter's modules one by one",
            got=got,
            hint="merge this adapter with the library that trained it",
        )


def _part(source: Source, key: str, axes: str, cut: Cut, packed: Packed) -> Values:
    """A stored factor, or the part of it that is meant, with one axis per name in `axes`."""
    if cut == UNCUT:
        return whole(source, key)
    spec, names = source.specs[key], axes.split()
    if cut.experts and axes == "out rank":
        stored = packed(source, key, cut.experts)[cut.expert]
    elif cut.experts:
        size = spec.numel // cut.experts
        run = source.read(key, cut.expert * size, (cut.expert + 1) * size)
        stored = run.reshape(spec.shape[0] // cut.experts, *spec.shape[1:])
    else:
        stored = whole(source, key)
    kept = tuple(stored.shape[: len(names) - 1])
    stored = stored.reshape(*kept, math.prod(stored.shape[len(kept) :]))
    ranges = {"out": cut.out, "in": cut.into}
    return stored[tuple(slice(*(ranges.get(name.rstrip("+")) or (None,))) for name in names)]


def _value(source: Source, key: str, spec: StepSpec, change: Change) -> Read:
    """A reader of a trained value, or of the part of it that is meant, in the order in which the weight is stored.

    What lies together in the file is read as it is asked for; anything else is read now.
    """
    cut, layout, stored = spec.cut, LAYOUTS[spec.layout], source.specs[key]
    start = cut.expert * stored.numel // cut.experts if cut.experts else 0
    height, width = matrix_shape(stored.shape[1:] if cut.experts else stored.shape)
    across = layout.rows == "in"
    turned = across and layout.name not in change.layouts  # the value is (out, in), whatever the base's order
    along, down = (cut.out, cut.into) if across and not turned else (cut.into, cut.out)
    (top, bottom), (left, right) = down or (0, height), along or (0, width)
    if not turned and (left, right) == (0, width):
        return partial(_read, source, key, start + top * width)
    block = source.read(key, start + top * width, start + bottom * width).reshape(-1, width)[:, left:right]
    return partial(_taken, (block.T if turned else block).reshape(-1))


def _read(source: Source, key: str, offset: int, start: int, stop: int) -> Values:
    """Elements [start, stop) behind an offset."""
    return source.read(key, offset + start, offset + stop)


def _lines(source: Source, key: str, top: int, bottom: int) -> Values:
    """Rows [top, bottom) of a tensor, with what its other axes have."""
    shape = source.specs[key].shape
    width = math.prod(shape[1:])
    return source.read(key, top * width, bottom * width).reshape(bottom - top, *shape[1:])


def _taken(values: Values, start: int, stop: int) -> Values:
    """Elements [start, stop) of a tensor of one axis."""
    return values[start:stop]


def shifted(read: Read, offset: int) -> Read:
    """A reader of what lies behind an offset."""
    return lambda start, stop: read(offset + start, offset + stop)


def extended(source: Source, key: str, start: int, stop: int) -> Values:
    """Elements [start, stop) of a tensor, 0 where it ends before."""
    known = source.specs[key].numel
    stored = source.read(key, min(start, known), min(stop, known))
    if stop <= known:
        return stored
    import torch

    return torch.cat([stored, stored.new_zeros(stop - max(start, known))])
