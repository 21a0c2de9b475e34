"""Products of thin matrices, against the dense products that they stand for."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from wiseft_core.lowrank import Pair, decomposed, distance, norm, of_matrix, stacked

SHAPES = [(5, 3, 7), (3, 8, 4), (1, 1, 1), (6, 6, 2), (4, 9, 9)]


def pair(out, rank, width, seed=0):
    """A random product."""
    draw = torch.Generator().manual_seed(seed)
    first = torch.randn(rank, width, generator=draw, dtype=torch.float64)
    return Pair(first, torch.randn(out, rank, generator=draw, dtype=torch.float64))


def dense(one):
    """What it multiplies to."""
    return one.second.numpy() @ one.first.numpy()


def test_stacked_is_the_sum_in_any_order():
    """The same bits for every permutation, equal blocks among them."""
    pairs = [pair(4, rank, 5, seed=rank) for rank in (1, 2, 3, 2)]
    first, *others = [stacked(list(order)) for order in itertools.permutations(pairs)]
    assert np.allclose(dense(first), sum(map(dense, pairs)), atol=1e-13)
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("shape", SHAPES)
def test_decomposed_is_the_same_product_balanced_and_ordered(shape):
    """Both factors share each singular value, and in a column of U the largest element is positive."""
    one = pair(*shape)
    for found in (decomposed(one), of_matrix(torch.from_numpy(dense(one)))):
        values = np.linalg.svd(dense(one), compute_uv=False)[: found.rank]
        assert np.allclose(dense(found), dense(one), atol=1e-12)
        assert np.allclose(found.first.square().sum(1), values, atol=1e-12)
        assert np.allclose(found.second.square().sum(0), values, atol=1e-12)
        assert all(column[column.abs().argmax()] > 0 for column in found.second.T if column.norm() > 1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_norm_and_distance_are_frobenius(shape):
    """Of the product, and of the difference to its first components in float32; exact storage has distance 0."""
    one = pair(*shape)
    assert np.isclose(norm(one), np.linalg.norm(dense(one)), rtol=1e-13)
    for rank in range(1, one.rank + 1):
        stored = one.part(0, rank).to(torch.float32)
        wanted = np.linalg.norm(dense(stored.to(torch.float64)) - dense(one))
        assert np.isclose(distance(one, stored), wanted, rtol=1e-6)
        coarse = Pair(stored.first + 0.5, stored.second - 0.25)
        assert np.isclose(
            distance(one, coarse), np.linalg.norm(dense(coarse.to(torch.float64)) - dense(one)), rtol=1e-13
        )
    rounded = one.to(torch.float32).to(torch.float64)
    assert distance(rounded, rounded.to(torch.float32)) == 0.0
    assert norm(Pair(one.first * 0, one.second)) == 0.0
