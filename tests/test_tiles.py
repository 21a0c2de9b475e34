"""Bits depend on neither tiles, slices nor threads: properties 10 and 11."""

from __future__ import annotations

import contextlib

import pytest
import strategies
import torch
from exact import same_bits
from hypothesis import given
from hypothesis import strategies as st

from wiseft_core import interpolate, interpolate_tensor, tiles

TILES = (1, 2, 3, 7, 16, 64, 1 << 16)
RANKS = (1, 2, 8, 31, 64, 127, 128, 129, 256, 512, 520, 1025)
KEYS = {"A": "m.lora_A.weight", "B": "m.lora_B.weight", "magnitude": "m.lora_magnitude_vector", "value": "m.weight"}
EMBEDDING_KEYS = KEYS | {"A": "m.lora_embedding_A", "B": "m.lora_embedding_B"}


@contextlib.contextmanager
def tile_of(elements):
    """The grid with another size of tile, for the length of a block."""
    before, tiles.TILE = tiles.TILE, elements
    try:
        yield
    finally:
        tiles.TILE = before


@contextlib.contextmanager
def threads(count):
    """torch's thread count, for the length of a block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def view_of(case, alpha):
    """The case through the whole mapping."""
    keys = EMBEDDING_KEYS if case.layout == "embedding" else KEYS
    adapter = {keys[role]: factor for role, factor in case.factors.items()}
    config = {"lora_alpha": case.scale * len(case.factors.get("A", [1]))} if case.family != "full" else None
    base_config = {"model_type": "llama"}
    return interpolate(
        {"m.weight": case.weight}, adapter, alpha, config=config, base_config=base_config, overflow="saturate"
    )


@given(
    strategies.cases(("lora", "dora"), ("linear", "embedding", "convolution"), kind="wild")
    | strategies.cases(("full",), ("whole",), kind="wild"),
    strategies.alphas,
    st.sampled_from(TILES),
    st.integers(-8, 8),
    st.integers(-8, 8),
)
def test_a_slice_has_the_bits_of_the_whole(case, alpha, tile, start, stop):
    """10: get_slice(name)[i:j] equals get_tensor(name)[i:j] for any i and j, over any number of tiles."""
    with tile_of(tile):
        view = view_of(case, alpha)
        whole, part = view.get_tensor("m.weight"), view.get_slice("m.weight")
        assert part.get_shape() == list(whole.shape) and part.get_dtype() == view.spec("m.weight").dtype
        if whole.dim():
            assert same_bits(part[start:stop], whole[start:stop])
            assert same_bits(part[...], whole)
            assert same_bits(part[-1], whole[-1])


@given(strategies.cases(("lora", "full"), kind="dyadic"), strategies.dyadic_alphas, st.sampled_from(TILES))
def test_the_tile_size_does_not_matter_where_sums_are_exact(case, alpha, tile):
    """10: where float64 holds every sum, any tile size gives the same bits, from one element up."""
    whole = interpolate_tensor(**case.arguments, alpha=alpha)
    with tile_of(tile):
        assert same_bits(interpolate_tensor(**case.arguments, alpha=alpha), whole)


@given(strategies.cases(("dora",), kind="wild"), strategies.alphas, st.sampled_from(TILES))
def test_norms_over_many_tiles_are_those_of_the_whole(case, alpha, tile):
    """10: a DoRA whose norms run over several tiles differs by roundings of float64 only, before the last one."""
    if case.weight.dtype == torch.float64:
        return
    whole = interpolate_tensor(**case.arguments, alpha=alpha, output_dtype="fp64", overflow="saturate")
    with tile_of(tile):
        parts = interpolate_tensor(**case.arguments, alpha=alpha, output_dtype="fp64", overflow="saturate")
    size = max(1.0, whole.abs().max().item())
    assert torch.allclose(parts, whole, rtol=1e-11, atol=1e-14 * size)


def random_factors(rank, height, width, dtype, seed=0):
    """A weight with random factors, of the usual sizes."""
    draw = torch.Generator().manual_seed(seed)
    weight = (torch.randn(height, width, generator=draw) * 0.02).to(dtype)
    first = torch.randn(rank, width, generator=draw).to(dtype)
    second = (torch.randn(height, rank, generator=draw) * 0.01).to(dtype)
    return weight, {"A": first, "B": second}


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_row_tiles_do_not_matter_for_narrow_factors(rank, dtype):
    """10: for 16-bit factors float64 sums are exact, so tiles of any number of rows or columns give the same bits."""
    weight, factors = random_factors(rank, 9, 40, dtype, rank)
    whole = interpolate_tensor(weight, factors, 0.3, scale=2.0)
    for tile in (1, 7, 39, 40, 41, 80, 127):
        with tile_of(tile):
            assert same_bits(interpolate_tensor(weight, factors, 0.3, scale=2.0), whole), tile


@pytest.mark.parametrize("rank", RANKS)
def test_row_tiles_do_not_matter_for_float32_factors(rank):
    """10: with random float32 factors, whose sums are not exact, tiles of whole rows still give the same bits."""
    weight, factors = random_factors(rank, 67, 96, torch.float32, rank)
    whole = interpolate_tensor(weight, factors, 0.3, scale=2.0, output_dtype="fp64")
    for rows in (1, 7, 16, 33):
        with tile_of(rows * 96):
            assert same_bits(interpolate_tensor(weight, factors, 0.3, scale=2.0, output_dtype="fp64"), whole), rows


@pytest.mark.parametrize("rank", [1, 40])
@pytest.mark.parametrize("family", ["lora", "dora"])
def test_slices_of_wide_rows_have_the_bits_of_the_whole(family, rank):
    """10: rows wider than a tile, at the real tile size: any rows asked for alone have the bits of the whole."""
    weight, factors = random_factors(rank, 3, tiles.TILE + 1000, torch.float32, rank)
    if family == "dora":
        factors["magnitude"] = weight.norm(dim=1)
    adapter = {KEYS[role]: factor for role, factor in factors.items()}
    view = interpolate({"m.weight": weight}, adapter, 0.3, config={"lora_alpha": rank})
    whole, part = view["m.weight"], view.get_slice("m.weight")
    assert same_bits(part[1:2], whole[1:2])
    assert same_bits(part[1, -1500:], whole[1, -1500:])


@pytest.mark.parametrize("rank", [16, 256, 2048])
@pytest.mark.parametrize("layout", ["linear", "transposed"])
@pytest.mark.parametrize("family", ["lora", "dora"])
def test_threads_do_not_matter(family, layout, rank):
    """11: one, two and three threads give the same bits, float32 factors of rank 2048 included."""
    weight, factors = random_factors(rank, 130, 515, torch.float32, rank)
    if family == "dora":
        factors["magnitude"] = weight.norm(dim=1)
    stored = weight if layout == "linear" else weight.T.contiguous()
    results = []
    for count in (1, 2, 3):
        with threads(count):
            results.append(
                interpolate_tensor(stored, factors, 0.3, family=family, scale=2.0, layout=layout, output_dtype="fp64")
            )
    assert same_bits(results[0], results[1]) and same_bits(results[0], results[2])
