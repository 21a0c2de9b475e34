"""Where a change lands: how a stored tensor is a matrix (out, in), and what shape each factor then has.

Layout room: shapes only, no torch. A stored tensor is always walked by its own rows (its first axis), because those are
contiguous on disk; a layout says whether these rows run along `out` or along `in`.

The axes of a factor are names. `out` and `in` are those of the matrix; `channel`, `k0`, `k1` and `k2` those of a
convolution's weight behind `out`, 1 where it has fewer; and a digit is itself. Any other name (`rank`, `row`, ...) is
a size that the factors fix among themselves: wherever it stands, it is the same. A `+` behind a name means that many or
more, of which the first are used: `in+` for a factor that modules of different widths share.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

Shape = tuple[int, ...]
OF_WEIGHT: Final = ("out", "in", "channel", "k0", "k1", "k2")
"""The axes whose sizes the weight tells."""


class Layout(NamedTuple):
    """One way to store a matrix (out, in).

    Attributes:
        name: The field's word for it.
        ranks: Numbers of axes that a stored weight may have.
        rows: The axis that the stored rows run along, "out" or "in".
        factor_shape: `factor_shape(axes, weight_shape, sizes)`: the stored shape of a factor with these axes, where
            `sizes` holds the sizes that the weight does not tell; None if the layout has no such factor.
    """

    name: str
    ranks: range
    rows: str
    factor_shape: Callable[[str, Shape, Mapping[str, int]], Shape | None]


def matrix_shape(shape: Shape) -> tuple[int, int]:
    """Stored rows and columns of a tensor: (first axis, all others); a vector is a column, a scalar is 1 by 1."""
    return (shape[0] if shape else 1), math.prod(shape[1:])


def weight_sizes(weight: Shape) -> dict[str, int]:
    """The sizes of `OF_WEIGHT` for a weight that is stored (out, in, ...)."""
    rows, columns = matrix_shape(weight)
    behind = (*weight[1:], 1, 1, 1, 1)[:4] if len(weight) > 2 else (columns, 1, 1, 1)
    return dict(zip(OF_WEIGHT, (rows, columns, *behind), strict=True))


def sizes_of(layout: Layout, weight: Shape) -> dict[str, int]:
    """The sizes of `OF_WEIGHT` for a weight that is stored as the layout has it."""
    return weight_sizes(weight if layout.rows == "out" else weight[::-1])


def _by_rows(axes: str, weight: Shape, sizes: Mapping[str, int]) -> Shape | None:
    """Stored (out, in): each axis by name; a factor with both axes has the weight's own shape."""
    if axes == "out in":
        return weight
    known = {**weight_sizes(weight), **sizes}
    names = (axis.rstrip("+") for axis in axes.split())
    return tuple(int(name) if name.isdigit() else known[name] for name in names)


def _by_columns(axes: str, weight: Shape, sizes: Mapping[str, int]) -> Shape | None:
    """Stored (in, out): the same factors, seen from the transposed weight."""
    return weight if axes == "out in" else _by_rows(axes, weight[::-1], sizes)


def _convolution(axes: str, weight: Shape, sizes: Mapping[str, int]) -> Shape | None:
    """Stored (out, in, *kernel): A is a convolution with the weight's kernel, B and m are padded with ones."""
    ones = (1,) * (len(weight) - 2)
    known: Mapping[str, Shape] = {
        "out in": weight,
        "out": (1, weight[0], *ones),
        "rank in": (sizes.get("rank", 0), *weight[1:]),
        "out rank": (weight[0], sizes.get("rank", 0), *ones),
    }
    return known.get(axes)


LINEAR: Final = Layout("linear", range(2, 3), "out", _by_rows)
"""torch.nn.Linear, stored (out, in)."""
TRANSPOSED: Final = Layout("transposed", range(2, 3), "in", _by_columns)
"""transformers' Conv1D (the GPT-2 family), stored (in, out)."""
EMBEDDING: Final = Layout("embedding", range(2, 3), "in", _by_columns)
"""torch.nn.Embedding, stored (vocabulary, dimension): its change maps one-hot tokens, `in`, to vectors, `out`."""
CONVOLUTION: Final = Layout("convolution", range(3, 6), "out", _convolution)
"""torch.nn.Conv1d, Conv2d, Conv3d with groups = 1, stored (out, in, *kernel), whose factors are convolutions too."""
FLAT: Final = Layout("flat", range(3, 6), "out", _by_rows)
"""The same weights, grouped or not, whose factors are those of the matrix (out, in·kernel)."""
WHOLE: Final = Layout("whole", range(17), "out", _by_rows)
"""Any tensor whose factors have its own shape, or that of a column."""

LAYOUTS: Final[Mapping[str, Layout]] = {
    layout.name: layout for layout in (LINEAR, TRANSPOSED, EMBEDDING, CONVOLUTION, FLAT, WHOLE)
}
"""Every layout, by name."""


def fit(layout: Layout, axes: Mapping[str, str], shapes: Mapping[str, Shape], weight: Shape) -> dict[str, int] | None:
    """Sizes of the free axes ("rank", "row", ...) if every factor has its shape in this layout, else None."""
    if len(weight) not in layout.ranks:
        return None
    sizes: dict[str, int] = {}
    free: set[str] = set()
    for role, names in axes.items():
        split = names.split()
        free |= {axis for axis in split if is_free(axis)}
        for axis, size in zip(split, shapes[role], strict=False):
            if is_free(axis):
                sizes.setdefault(axis, size)
    if free != sizes.keys():  # a factor without axes says nothing of its rank
        return None
    if not all(_is_of(shapes[role], names, layout.factor_shape(names, weight, sizes)) for role, names in axes.items()):
        return None
    return sizes


def is_free(axis: str) -> bool:
    """Whether an axis has a size that the factors alone fix."""
    return not axis.isdigit() and axis.rstrip("+") not in OF_WEIGHT


def _is_of(shape: Shape, names: str, wanted: Shape | None) -> bool:
    """Whether a factor has the shape that its axes ask for, or more along those with a `+`."""
    if "+" not in names or wanted is None or len(shape) != len(wanted):
        return shape == wanted
    return all(
        size == least or (axis.endswith("+") and size > least)
        for axis, size, least in zip(names.split(), shape, wanted, strict=True)
    )
