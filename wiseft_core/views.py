"""Views of a base: which run of which of its tensors holds which part of each parameter that the model has in memory.

Joint floor: names and shapes only. Seen as on disk, every tensor is a parameter. Seen as in memory, tensors are
renamed, stacked, joined and split as the model's code does when it loads them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from wiseft_core.layouts import Shape, matrix_shape
from wiseft_core.naming.links import Link, Part
from wiseft_core.types import TensorSpec

Range = tuple[int, int]
"""Rows or columns [first, last) of a matrix."""
Links = Callable[[str], tuple[Link, ...]]
"""What a name on disk is in memory."""


class Held(NamedTuple):
    """A part of a parameter, and the run of a base tensor that holds it.

    Attributes:
        name: The base tensor.
        start: The first element of the run.
        shape: The shape of the run as it is stored.
        expert: Which matrix of a stack it is; None: all of the parameter.
        out: Which rows of the matrix; None: all.
        into: Which columns; None: all.
        across: Whether it is stored transposed; None: only shapes can tell.
    """

    name: str
    start: int
    shape: Shape
    expert: int | None = None
    out: Range | None = None
    into: Range | None = None
    across: bool | None = False


class Parameter(NamedTuple):
    """A parameter in memory.

    Attributes:
        shape: Its shape there.
        held: Where its parts are.
        why: Why it cannot be followed: what is done to it, or what is missing; empty where it can.
    """

    shape: Shape
    held: tuple[Held, ...]
    why: str = ""


@dataclass(frozen=True)
class View:
    """A base, seen as on disk or as in memory.

    Attributes:
        name: "disk" or "memory".
        parameters: Its parameters by name.
        links: What an adapter's name is in this view.
        modules: The parameters directly in each module, by its path.
    """

    name: str
    parameters: Mapping[str, Parameter]
    links: Links
    modules: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @cached_property
    def words(self) -> frozenset[str]:
        """The names that modules have, each without its path."""
        return frozenset(word for module in self.modules for word in module.split("."))

    def holds(self, path: str) -> bool:
        """Whether anything lies in a module of this path."""
        return any(name.startswith(f"{path}.") for name in self.parameters)


def identity(name: str) -> tuple[Link, ...]:
    """A name that is the same in memory as on disk."""
    return (Link(name),)


def disk_view(base: Mapping[str, TensorSpec]) -> View:
    """The base as it is on disk."""
    parameters = {name: Parameter(spec.shape, (Held(name, 0, spec.shape),)) for name, spec in base.items()}
    return View("disk", parameters, identity, _modules(parameters))


def memory_view(base: Mapping[str, TensorSpec], links: Links) -> View:
    """The base as the model's code has it in memory."""
    ties: defaultdict[str, list[tuple[Link, str]]] = defaultdict(list)
    for name in base:
        for link in links(name):
            ties[link.parameter].append((link, name))
    parameters = {name: _parameter(found, base) for name, found in ties.items()}
    return View("memory", parameters, links, _modules(parameters))


def _modules(names: Mapping[str, Parameter]) -> dict[str, list[str]]:
    """The parameters directly in each module."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        found[name.rpartition(".")[0]].append(name)
    return dict(found)


def _parameter(ties: Sequence[tuple[Link, str]], base: Mapping[str, TensorSpec]) -> Parameter:
    """A parameter from all that is tied to it."""
    why = next((link.why for link, _ in ties if link.why), "")
    shapes = [base[name].shape for _, name in ties]
    if why:
        return Parameter(shapes[0], (), why)
    if len(ties) == 1 and ties[0][0].expert is None and ties[0][0].part is None:
        link, name = ties[0]
        run = _run(link.own, shapes[0])
        if run is None:
            return Parameter(shapes[0], (), f"{link.own} of a tensor {list(shapes[0])}")
        shape = run[1][::-1] if link.across else run[1]
        return Parameter(shape, (Held(name, *run, across=link.across),))
    return _stack(ties, base)


def _run(own: Part | None, shape: Shape) -> tuple[int, Shape] | None:
    """The first element and the shape of a part of a tensor; None where it is not one run."""
    if own is None:
        return 0, shape
    columns = matrix_shape(shape)[1]
    if own.axis != "out" or not shape:
        return None
    if own.rest:
        first, last = own.number * columns, shape[0] if own.number == own.of - 1 else (own.number + 1) * columns
        return (first * columns, (last - first, *shape[1:])) if first < last <= shape[0] else None
    if shape[0] % own.of:
        return None
    rows = shape[0] // own.of
    return own.number * rows * columns, (rows, *shape[1:])


def _stack(ties: Sequence[tuple[Link, str]], base: Mapping[str, TensorSpec]) -> Parameter:
    """A parameter that several tensors make up: a matrix for each expert, each joined from its parts."""
    by_expert: defaultdict[int | None, list[tuple[Link, str]]] = defaultdict(list)
    for link, name in ties:
        by_expert[link.expert].append((link, name))
    held: list[Held] = []
    shapes: set[Shape] = set()
    first = base[ties[0][1]].shape
    if any(link.own is not None for link, _ in ties):
        return Parameter(first, (), "tensors that are split and joined again")
    order = sorted(by_expert, key=lambda expert: -1 if expert is None else expert)
    if order not in ([None], list(range(len(order)))):
        return Parameter(first, (), f"experts {order[:1]} to {order[-1:]}, of which there are {len(order)}")
    for expert in order:
        found = _joined(expert, by_expert[expert], base)
        if found is None:
            return Parameter(first, (), f"parts that do not join: {', '.join(name for _, name in by_expert[expert])}")
        held += found[1]
        shapes.add(found[0])
    if len(shapes) > 1:
        return Parameter(first, (), "experts of different shapes")
    (shape,) = shapes
    return Parameter(shape if order == [None] else (len(order), *shape), tuple(held))


def _joined(
    expert: int | None, ties: Sequence[tuple[Link, str]], base: Mapping[str, TensorSpec]
) -> tuple[Shape, list[Held]] | None:
    """One matrix joined from its parts: its shape in memory, and where they are; None where they do not fit."""
    ordered = sorted(ties, key=lambda tie: tie[0].part.number if tie[0].part else 0)
    parts = [link.part for link, _ in ordered]
    if parts == [None]:
        ((link, name),) = ordered
        shape = base[name].shape
        return (shape[::-1] if link.across else shape), [Held(name, 0, shape, expert, across=link.across)]
    known = [part for part in parts if part is not None]
    axes = {part.axis for part in known}
    if [part.number for part in known] != list(range(known[0].of if known else 0)) or len(axes) != 1:
        return None
    along, held, reached = (0 if axes == {"out"} else 1), list[Held](), 0
    rest = set()
    for link, name in ordered:
        stored = base[name].shape
        shape = stored[::-1] if link.across else stored
        if len(shape) <= along or (link.across and len(shape) != 2):
            return None
        span = (reached, reached + shape[along])
        reached = span[1]
        rest.add((*shape[:along], *shape[along + 1 :]))
        out, into = (span, None) if along == 0 else (None, span)
        held.append(Held(name, 0, stored, expert, out, into, link.across))
    if len(rest) != 1:
        return None
    (other,) = rest
    return (*other[:along], reached, *other[along:]), held
