"""Landings: the runs of base tensors that one site changes, each with the part of the site's factors that it takes.

Joint floor, on top of `views`: names and shapes only. A site may cover one tensor, one of several that make up its
parameter, a run of a tensor that several sites share, or a matrix of a stack.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from wiseft_core.layouts import Shape, matrix_shape
from wiseft_core.naming.links import Link, Part
from wiseft_core.views import Held, Parameter, Range


class Cut(NamedTuple):
    """The part of a site's factors that one piece of the base needs: a site may lie over several pieces.

    Attributes:
        experts: How many matrices the factors pack, as PEFT packs those of a parameter (E, out, in): A (E·rank, in)
            has expert after expert, B (out, rank·E) has the expert as its fastest axis. 0: one matrix, not packed.
            A whole trained tensor is (E, ...) itself.
        expert: Which of them.
        out: The rows [first, last) along the factors' axis `out`; None: all.
        into: The same along the axis `in`.
    """

    experts: int = 0
    expert: int = 0
    out: tuple[int, int] | None = None
    into: tuple[int, int] | None = None


UNCUT: Final = Cut()
"""All of the factors."""


class Landing(NamedTuple):
    """A run of a base tensor that a site changes.

    Attributes:
        name: The base tensor.
        start: The first element of the run.
        shape: The shape of the run as it is stored.
        cut: The part of the site's factors for it.
        across: Whether it is stored transposed relative to the parameter; None: only shapes can tell.
    """

    name: str
    start: int
    shape: Shape
    cut: Cut = UNCUT
    across: bool | None = False


class Landed(NamedTuple):
    """Where a site lands: the shape of the weight that its factors change, in memory, and the runs that hold it."""

    shape: Shape
    landings: tuple[Landing, ...]


class Astray(Exception):
    """A site that has a parameter, of which no run of the base can be given; the message says why."""


def land(links: Sequence[Link], parameters: Mapping[str, Parameter], *, packed: bool = False) -> Landed:
    """Where a site with these links lands.

    Args:
        links: What the site's name is in memory; every parameter is there.
        parameters: The parameters of the base.
        packed: The site's factors pack the matrices of a stack.
    Raises:
        Astray: The base cannot be followed there, or what is meant is no run of a tensor.
    """
    if len(links) == 1 and not packed and (whole := _as_stored(links[0], parameters[links[0].parameter])):
        return whole
    found: list[tuple[Landing, tuple[int, int]]] = []
    reached = 0
    for link in sorted(links, key=lambda link: link.own.number if link.own else 0):
        parameter = parameters[link.parameter]
        if parameter.why:
            raise Astray(f"{link.parameter}: {parameter.why}")
        is_stack = packed or link.expert is not None
        if is_stack and len(parameter.shape) != 3:
            raise Astray(f"{link.parameter} {list(parameter.shape)} is no stack of matrices")
        matrix = parameter.shape[1:] if is_stack else parameter.shape
        rows, columns = _range(link.part, matrix, "out"), _range(link.part, matrix, "in")
        for one in _matrices(parameter, link.expert, packed):
            landing = _landing(one, matrix, rows, columns, reached if link.own else None)
            if landing is not None:
                found.append((landing, (parameter.shape[0], one.expert or 0) if packed else (0, 0)))
        reached += rows[1] - rows[0]
        shape = matrix
        if link.part is not None:
            along = 0 if link.part.axis == "out" else 1
            first, last = (rows, columns)[along]
            shape = (*matrix[:along], last - first, *matrix[along + 1 :])
    if any(link.own for link in links):
        shape = (reached, *shape[1:])
    if not found:
        raise Astray(f"nothing of {links[0].parameter} is meant")
    return Landed(shape, tuple(_whole(landing, shape, *experts) for landing, experts in found))


def _as_stored(link: Link, parameter: Parameter) -> Landed | None:
    """What `land` gives for a parameter that is one tensor of the base as it is: by far the most are."""
    if link[1:4] != (None, None, None) or parameter.why or len(parameter.held) != 1:
        return None
    name, start, shape, *parts, across = parameter.held[0]
    return Landed(parameter.shape, (Landing(name, start, shape, UNCUT, across),)) if parts == [None] * 3 else None


def _range(part: Part | None, matrix: Shape, axis: str) -> Range:
    """The rows or columns of a matrix that a part of it is."""
    size = (*matrix, 1, 1)[0 if axis == "out" else 1]
    if part is None or part.axis != axis:
        return 0, size
    if size % part.of:
        raise Astray(f"{size} rows or columns are no {part.of} equal parts")
    return part.number * size // part.of, (part.number + 1) * size // part.of


def _matrices(parameter: Parameter, expert: int | None, packed: bool) -> Iterator[Held]:
    """The parts of a parameter that hold an expert, or each of them; a stack on disk is taken apart."""
    if expert is not None and not packed and parameter.held and parameter.held[0].expert is not None:
        at = bisect_left(parameter.held, expert, key=_expert_of)  # in their order, and there may be hundreds
        yield from itertools.takewhile(lambda held: held.expert == expert, itertools.islice(parameter.held, at, None))
        return
    for held in parameter.held:
        if not packed and expert is None:
            yield held
        elif held.expert is not None:
            if packed:
                yield held
        else:
            size = matrix_shape(held.shape)[1]
            for number in range(held.shape[0]) if packed else [expert or 0]:
                if number >= held.shape[0]:
                    raise Astray(f"expert {number} of {held.name}, which has {held.shape[0]}")
                run = (held.start + number * size, held.shape[1:])
                yield Held(held.name, *run, number, held.out, held.into, held.across)


def _expert_of(held: Held) -> int:
    """Which matrix of a stack a part is of."""
    return -1 if held.expert is None else held.expert


def _landing(held: Held, matrix: Shape, rows: Range, columns: Range, reached: int | None) -> Landing | None:
    """What of a run lies in these rows and columns of the parameter's matrix, and which part of the site that is."""
    out, into = held.out or (0, matrix[0] if matrix else 1), held.into or (0, (*matrix, 1, 1)[1])
    top, bottom = max(out[0], rows[0]), min(out[1], rows[1])
    left, right = max(into[0], columns[0]), min(into[1], columns[1])
    if top >= bottom or left >= right:
        return Landing(held.name, held.start, held.shape, UNCUT, held.across) if 0 in matrix else None
    start, shape = held.start, held.shape
    if (left, right) != into or ((top, bottom) != out and held.across is not False):
        raise Astray(f"columns of {held.name} as it is stored are no one run of it")
    if (top, bottom) != out:
        start += (top - out[0]) * matrix_shape(shape)[1]
        shape = (bottom - top, *shape[1:])
    offset = (reached or 0) - rows[0]
    cut = Cut(out=(top + offset, bottom + offset), into=(left - columns[0], right - columns[0]))
    return Landing(held.name, start, shape, cut, held.across)


def _whole(landing: Landing, shape: Shape, experts: int, expert: int) -> Landing:
    """The same with cuts only where they leave something out, and with the matrix of a stack that it is."""
    cut = landing.cut
    out = None if cut.out == (0, (*shape, 1)[0]) else cut.out
    into = None if cut.into == (0, (*shape, 1, 1)[1]) else cut.into
    kept = UNCUT if not experts and out is None is into else Cut(experts, expert, out, into)
    return Landing(landing.name, landing.start, landing.shape, kept, landing.across)
