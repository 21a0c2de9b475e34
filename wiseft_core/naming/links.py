"""Where a tensor on disk lies among the parameters of the model in memory, and how that is said without shapes.

Naming room: strings and small numbers only. A checkpoint and an adapter are both written in names of some version of
the model's code; both are mapped forward, to the parameters that the present code has, and meet there.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple


class Part(NamedTuple):
    """The i-th of n parts along one axis of a matrix.

    Attributes:
        number: Which, from 0.
        of: Of how many; they are of one size where only the number of them is known.
        axis: "out" or "in" of the matrix (out, in).
        rest: The last part is not of the size of the others: each of those has as many rows as the tensor has columns,
            as the q, k and v of a model's own width have, and the last is what is left.
    """

    number: int
    of: int
    axis: str = "out"
    rest: bool = False


class Link(NamedTuple):
    """One tie between a tensor on disk and a parameter in memory: this part of that is this part of the other.

    Attributes:
        parameter: The parameter's name in memory.
        expert: Where the parameter is a stack of matrices, which of them the tensor is: its place in natural order.
        part: Which part of the parameter's matrices the tensor is; None: all.
        own: Which part of the tensor the parameter is, where one tensor on disk is several parameters; None: all.
        across: Whether it is stored transposed relative to the parameter; None: only the shapes tell.
        why: What is done to it that is not a matter of places, "PermuteForRope"; such a tie cannot be followed.
    """

    parameter: str
    expert: int | None = None
    part: Part | None = None
    own: Part | None = None
    across: bool | None = False
    why: str = ""


NOTHING: Final[Mapping[str, tuple[Link, ...]]] = MappingProxyType({})
"""No links by name."""
