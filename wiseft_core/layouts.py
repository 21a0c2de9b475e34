"""Where a change lands: how a stored tensor is a matrix (out, in), and what shape each factor then has.

Layout room: shapes only, no torch. A stored tensor is always walked by its own rows (its first axis), because those are
contiguous on disk; a layout says whether these rows run along `out` or along `in`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

Shape = tuple[int, ...]


class Layout(NamedTuple):
    """One way to store a matrix (out, in).

    Attributes:
        name: The field's word for it.
        ranks: Numbers of axes that a stored weight may have.
        rows: The axis that the stored rows run along, "out" or "in".
        factor_shape: `factor_shape(axes, weight_shape, sizes)`: the stored shape of a factor with these axes, where
            `sizes` holds the sizes that the weight does not tell ("rank", "row").
    """

    name: str
    ranks: range
    rows: str
    factor_shape: Callable[[str, Shape, Mapping[str, int]], Shape]


def matrix_shape(shape: Shape) -> tuple[int, int]:
    """Stored rows and columns of a tensor: (first axis, all others); a vector is a column, a scalar is 1 by 1."""
    return (shape[0] if shape else 1), math.prod(shape[1:])


def _by_rows(axes: str, weight: Shape, sizes: Mapping[str, int]) -> Shape:
    """Stored (out, in): each axis by name; a factor with both axes has the weight's own shape."""
    if axes == "out in":
        return weight
    rows, columns = matrix_shape(weight)
    known = {"out": rows, "in": columns, **sizes}
    return tuple(known[axis] for axis in axes.split())


def _by_columns(axes: str, weight: Shape, sizes: Mapping[str, int]) -> Shape:
    """Stored (in, out): the same factors, seen from the transposed weight."""
    return weight if axes == "out in" else _by_rows(axes, weight[::-1], sizes)


def _convolution(axes: str, weight: Shape, sizes: Mapping[str, int]) -> Shape:
    """Stored (out, in, *kernel): A is a convolution with the weight's kernel, B and m are padded with ones."""
    ones = (1,) * (len(weight) - 2)
    known: Mapping[str, Shape] = {
        "out in": weight,
        "out": (1, weight[0], *ones),
        "rank in": (sizes.get("rank", 0), *weight[1:]),
        "out rank": (weight[0], sizes.get("rank", 0), *ones),
    }
    return known[axes]


LINEAR: Final = Layout("linear", range(2, 3), "out", _by_rows)
"""torch.nn.Linear, stored (out, in)."""
TRANSPOSED: Final = Layout("transposed", range(2, 3), "in", _by_columns)
"""transformers' Conv1D (the GPT-2 family), stored (in, out)."""
EMBEDDING: Final = Layout("embedding", range(2, 3), "in", _by_columns)
"""torch.nn.Embedding, stored (vocabulary, dimension): its change maps one-hot tokens, `in`, to vectors, `out`."""
CONVOLUTION: Final = Layout("convolution", range(3, 6), "out", _convolution)
"""torch.nn.Conv1d, Conv2d, Conv3d with groups = 1, stored (out, in, *kernel)."""
WHOLE: Final = Layout("whole", range(17), "out", _by_rows)
"""Any tensor whose factors have its own shape, or that of a column."""

LAYOUTS: Final[Mapping[str, Layout]] = {
    layout.name: layout for layout in (LINEAR, TRANSPOSED, EMBEDDING, CONVOLUTION, WHOLE)
}
"""Every layout, by name."""


def fit(layout: Layout, axes: Mapping[str, str], shapes: Mapping[str, Shape], weight: Shape) -> dict[str, int] | None:
    """Sizes of the free axes ("rank", "row") if every factor has its shape in this layout, else None."""
    if len(weight) not in layout.ranks:
        return None
    sizes: dict[str, int] = {}
    for role, names in axes.items():
        for position, axis in enumerate(names.split()):
            if axis in ("rank", "row") and position < len(shapes[role]):
                sizes.setdefault(axis, shapes[role][position])
    free = {axis for names in axes.values() for axis in names.split()} & {"rank", "row"}
    if free != sizes.keys():  # a factor without axes says nothing of its rank
        return None
    if any(shapes[role] != layout.factor_shape(names, weight, sizes) for role, names in axes.items()):
        return None
    return sizes
