"""Products of two thin matrices: stacked, cut to a rank, and measured, without ever forming what they multiply to.

Ground floor: torch and nothing else of the package. All of it is float64; a product of rank K costs memory and time of
(out + in)·K numbers, through QR of its two factors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Pair(NamedTuple):
    """The matrix second @ first.

    Shapes:
        first (rank, in); second (out, rank).
    """

    first: Tensor
    second: Tensor

    @property
    def rank(self) -> int:
        """The inner size."""
        return self.first.shape[0]

    def to(self, dtype: torch.dtype) -> Pair:
        """Both factors rounded once to float64 or float32."""
        return Pair(self.first.to(dtype).contiguous(), self.second.to(dtype).contiguous())

    def part(self, start: int, stop: int | None = None) -> Pair:
        """Components [start, stop) of the inner axis."""
        return Pair(self.first[start:stop], self.second[:, start:stop])


def stacked(pairs: Sequence[Pair]) -> Pair:
    """The sum of the products as one product, exactly; the same bits in whatever order they come.

        sum of second_i @ first_i = [second_1 second_2 ...] @ [first_1; first_2; ...]

    The blocks are in the order of their bytes.
    """
    ordered = sorted(pairs, key=lambda pair: tuple(factor.numpy().tobytes() for factor in pair))
    return Pair(torch.cat([pair.first for pair in ordered]), torch.cat([pair.second for pair in ordered], dim=1))


def decomposed(pair: Pair) -> Pair:
    """The same product by its singular values, as `of_matrix` gives it.

    Source: QR of both factors, and the singular values of the small product in between.
    """
    (left, upper), (right, lower) = torch.linalg.qr(pair.second), torch.linalg.qr(pair.first.T)
    inner = of_matrix(upper @ lower.T)
    return _signed(inner.first @ right.T, left @ inner.second)


def of_matrix(matrix: Tensor) -> Pair:
    """A matrix (out, in) as a product by its singular values, largest first: its first R components are the best ones.

        second = U·√S        first = √S·Vᵀ        in each column of U the largest element is positive

    Source: Eckart & Young 1936, The approximation of one matrix by another of lower rank, Psychometrika 1.
    """
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    root = values.sqrt()
    return _signed(root.unsqueeze(1) * right, left * root)


def _signed(first: Tensor, second: Tensor) -> Pair:
    """The same product, each column of `second` with its largest element positive."""
    if second.numel():
        signs = second.gather(0, second.abs().argmax(dim=0, keepdim=True)).sign()
        first, second = first * signs.T, second * signs
    return Pair(first, second)


def norm(pair: Pair) -> float:
    """Frobenius norm of the product."""
    upper, lower = torch.linalg.qr(pair.second).R, torch.linalg.qr(pair.first.T).R
    return float(torch.linalg.matrix_norm(upper @ lower.T))


def distance(exact: Pair, stored: Pair) -> float:
    """Frobenius norm of the difference between a product and its first components, rounded.

        second' @ first' - second @ first = (second' - second) @ first + second' @ (first' - first) - what is left out

    with `second` and `first` cut to the components that are kept: so no two large numbers are subtracted, and what is
    stored exactly has no error.
    """
    kept, left_out = exact.part(0, stored.rank), exact.part(stored.rank)
    first, second = stored.first.double(), stored.second.double()
    firsts = torch.cat([kept.first, first - kept.first, left_out.first])
    seconds = torch.cat([second - kept.second, second, -left_out.second], dim=1)
    return norm(Pair(firsts, seconds))
