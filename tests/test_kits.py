"""What numpy computes from files has the bytes that torch computes from them, for everything that numpy may compute."""

from __future__ import annotations

import math
import shutil
import tempfile
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from parted import plan_of, union, whole
from safetensors.torch import save_file
from strategies import DTYPES, LEAST, factor_shapes
from test_tiles import tile_of

from wiseft_core import arrays, compiled, cutting, loops, tiles
from wiseft_core.bound import Bound, Part
from wiseft_core.errors import NotFinite
from wiseft_core.families import FAMILIES, Hyper
from wiseft_core.landings import Cut
from wiseft_core.plans import Piece, StepSpec
from wiseft_core.sources import Memory
from wiseft_core.store.checkpoint import open_checkpoint
from wiseft_core.tasks import Once

CARRIED = tuple(arrays.CARRIERS)
MOST = {"BF16": 127, "F16": 15, "F32": 127, "F64": 1023}
"""Exponents of the largest numbers."""
ALPHAS = (0.0, 1e-300, 0.3, 1.0, 1 - 2.0**-53, -0.7, 2.5)
FORMS = (
    *((family, layout) for family in ("lora", "dora") for layout in ("linear", "transposed", "embedding")),
    ("lora", "convolution"), ("dora", "convolution"), ("bias", "whole"), ("full", "whole"), ("tokens", "whole"),
    ("fused", "linear"), ("chain", "linear"),
)  # fmt: skip
"""What an adapter may do to a tensor: each change that takes arrays, pieces of two, one change after another."""


def values(draw, shape, dtype, kind):
    """A tensor of "plain" numbers, "wild" exponents, any "bits", "zeros" of both signs, the "largest" ones, or one
    "broken" by an element that is not finite."""
    count = math.prod(shape)
    if kind == "bits":
        raw = draw.integers(0, 256, count * DTYPES[dtype].itemsize, np.uint8)
        return torch.from_numpy(raw).view(DTYPES[dtype]).reshape(shape)
    found = draw.standard_normal(count)
    if kind == "wild":
        found = np.ldexp(found, draw.integers(LEAST[dtype] - (800 if dtype == "F64" else 1), MOST[dtype] - 3, count))
    if kind == "zeros":
        found = found * draw.integers(0, 2, count)
    if kind == "largest":
        found = np.copysign(2.0 ** MOST[dtype] * draw.choice([1.0, 1.9], count), found)
    if kind == "broken" and count:
        found[draw.integers(count)] = draw.choice([np.nan, np.inf, -np.inf])
    return torch.from_numpy(found).to(DTYPES[dtype]).reshape(shape)


class Made(NamedTuple):
    """An adapter's tensors, and the pieces of "w" that it touches, with listed rows where it has them."""

    tensors: dict
    touched: tuple


def made(draw, form, layout, shape, rank, dtype, kind):
    """An adapter of a form for a weight of this shape; its keys are the roles."""
    scale = float(draw.choice([1.0, 2.0, 16 / 3, -1.5]))

    def tensors(**shapes):
        return {role: values(draw, size, dtype, kind) for role, size in shapes.items()}

    def step(family, *roles, parameter="weight", layout="whole"):
        return StepSpec(family, parameter, layout, Hyper(scale), None, {role: role for role in roles})

    if form == "bias":
        return Made(tensors(bias=shape), whole(shape, step("lora", "bias", parameter="bias")))
    if form == "full":
        return Made(tensors(value=shape), whole(shape, step("full", "value")))
    if form == "tokens":
        rows = sorted(draw.choice(shape[0], draw.integers(1, shape[0] + 1), replace=False).tolist())
        entries = tuple(draw.permutation(len(rows)).tolist())
        touched = (whole(shape, step("tokens", "rows")), tuple(rows), entries)
        return Made(tensors(rows=(len(rows), *shape[1:])), touched)
    if form == "fused":  # with a gap between the two
        (height, width), first = shape, max(1, shape[0] // 3)
        last = max(0, height - first - 1)
        pieces = (
            Piece(0, (first, width), (step("lora", "A", "B", layout="linear"),)),
            Piece((height - last) * width, (last, width), (step("full", "value"),)),
        )
        return Made(tensors(A=(rank, width), B=(first, rank), value=(last, width)), pieces)
    low_rank = factor_shapes("lora" if form == "lora" else "dora", layout, shape, rank)
    if form == "chain":
        steps = [step("full", "value"), step("lora", "A", "B", layout=layout), step("dora", *low_rank, layout=layout)]
        return Made(tensors(value=shape, **low_rank), whole(shape, *steps))
    return Made(tensors(**low_rank), whole(shape, step(form, *low_rank, layout=layout)))


def on_disk(folder, base, adapters, output=None, overflow="error"):
    """A bound of files."""
    save_file(base, folder / "base.safetensors")
    source, parts = open_checkpoint(folder / "base.safetensors"), []
    for number, one in enumerate(adapters):
        save_file(one.tensors, folder / f"{number}.safetensors")
        plan = plan_of(source, {"w": one.touched}, dtype=output)
        parts.append(Part(open_checkpoint(folder / f"{number}.safetensors"), plan))
    plan = union([part.plan for part in parts]) if len(parts) > 1 else parts[0].plan
    return Bound(source, tuple(parts), plan, FAMILIES, "F64", output, overflow, None)


def in_bytes(computed, kind):
    """What was computed, as bytes."""
    assert type(computed) is kind
    return computed.tobytes() if kind is np.ndarray else computed.view(torch.uint8).numpy().tobytes()


def outcome(bound, shares, kind):
    """The bytes of each tile for each share, or what the refusal says."""
    try:
        prepared = bound.prepare("w", shares, in_arrays=kind is np.ndarray)
        found = [in_bytes(one, kind) for tile in prepared.tiles() for one in prepared.values(tile)]
        if len(shares) == 1:  # NaN has no sign to keep here
            changes = [np.asarray(prepared.change(tile)) for tile in prepared.tiles()]
            found += [np.where(np.isnan(change), np.nan, change).tobytes() for change in changes]
        return found
    except NotFinite as error:
        return type(error), error.where, error.expected, error.got, error.hint


def both(bound, shares):
    """The outcome by arrays, with and without compiled loops, and by tensors; numpy has nothing to say meanwhile."""
    assert bound.in_arrays("w")
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        before = np.geterr()
        pair = outcome(bound, shares, np.ndarray), outcome(bound, shares, torch.Tensor)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(loops._LOOPS, "found", compiled)
            assert outcome(bound, shares, np.ndarray) == pair[0]
        assert np.geterr() == before
    return pair


def shape_of(draw, form, layout, sizes):
    """A shape that a form can have in a layout."""
    height, width = (int(draw.choice(sizes)) for _ in range(2))
    if form == "bias":
        return (height,)
    if layout == "convolution":
        return (height, width, *draw.integers(1, 4, draw.integers(1, 3)).tolist())
    return (height, width)


SEEN = Counter()


def check(folder, seed, forms, base, output, factor, *, kinds, tile, sizes, rank, alphas, overflow="saturate"):
    """One tensor that all `forms` change, both ways; `tile` is larger where there would be too many."""
    draw, (form, layout) = np.random.default_rng(seed), forms[0]
    shape = shape_of(draw, form, layout, sizes)
    adapters = [made(draw, *one, shape, rank, factor, kinds[1]) for one in forms]
    place = Path(tempfile.mkdtemp(dir=folder))
    bound = on_disk(place, {"w": values(draw, shape, base, kinds[0])}, adapters, output, overflow)
    with tile_of(max(tile, math.prod(shape) // 30)):
        found, wanted = both(bound, alphas)
    assert found == wanted
    SEEN["values" if isinstance(found, list) else found[3].split()[0]] += 1
    shutil.rmtree(place)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One place for the files of many examples."""
    return tmp_path_factory.mktemp("kits")


def test_every_change_that_takes_arrays_is_here():
    """A family that says so must come by here."""
    said = {
        (family.name, parameter)
        for family in FAMILIES.values()
        for parameter in family.parameters
        if any(change.arrays for change in family.forms(parameter))
    }
    assert said == {("lora", "weight"), ("lora", "bias"), ("dora", "weight"), ("full", "*"), ("tokens", "weight")}


@pytest.mark.parametrize("output", CARRIED)
@pytest.mark.parametrize("base", CARRIED)
def test_arrays_give_the_bytes_of_tensors(base, output, folder):
    """Every dtype to every dtype, every change in every layout, any bits in the base, several alphas at once."""
    shares = [(alpha,) for alpha in ALPHAS]
    for seed, form in enumerate(FORMS):
        for kind, tile, rank in (("plain", tiles.TILE, 16), ("bits", 24, 1), ("zeros", 7, 2)):
            check(
                folder, seed, [form], base, output, CARRIED[seed % 4], kinds=(kind, "plain"), tile=tile,
                sizes=(1, 2, 5, 16, 19), rank=rank, alphas=shares,
            )  # fmt: skip


one_form = st.sampled_from(FORMS).map(lambda form: [form])
of_a_matrix = st.sampled_from([form for form in FORMS if form[0] != "bias" and form[1] in ("whole", "linear")])
several_forms = st.lists(of_a_matrix, min_size=2, max_size=4)
coefficients = st.sampled_from(ALPHAS) | st.floats(-2, 2)


@settings(max_examples=400)
@given(
    seed=st.integers(0, 2**32),
    forms=one_form | several_forms,
    dtypes=st.tuples(*[st.sampled_from(CARRIED)] * 3),
    kinds=st.tuples(
        st.sampled_from(("plain", "wild", "bits", "zeros", "largest")),
        st.sampled_from(("plain", "plain", "plain", "wild", "zeros", "largest", "broken")),
    ),
    tile=st.sampled_from((1, 3, 16, 100, tiles.TILE)),
    rank=st.sampled_from((0, 1, 2, 16, 129, 300)),
    overflow=st.sampled_from(("error", "saturate")),
    data=st.data(),
)
def test_arrays_and_tensors_agree_on_anything(seed, forms, dtypes, kinds, tile, rank, overflow, data, folder):
    """One adapter or several, values of any kind, any tile: the same bytes, or the same refusal."""
    alphas = data.draw(st.lists(st.tuples(*[coefficients] * len(forms)), min_size=1, max_size=4))
    check(
        folder, seed, forms, *dtypes, kinds=kinds, tile=tile, sizes=(1, 2, 3, 16, 17, 40), rank=rank, alphas=alphas,
        overflow=overflow,
    )  # fmt: skip


def test_values_and_refusals_were_compared():
    """A broken adapter, a lost direction and an overflow among them: the two tests above left none of them out."""
    if SEEN["values"]:
        assert SEEN["values"] > 600 and min(SEEN["NaN"], SEEN["norms"]) > 3
        assert sum(SEEN.values()) - SEEN["values"] - SEEN["NaN"] - SEEN["norms"] > 3


@pytest.mark.parametrize("form", [("lora", "linear"), ("dora", "linear"), ("dora", "embedding"), ("full", "whole")])
@pytest.mark.parametrize("base", ["BF16", "F64"])
def test_at_the_real_size_of_tiles(form, base, folder):
    """Several tiles of many blocks each, of odd sizes; and rows that are longer than one."""
    for number, shape in enumerate([(701, 1507), (2, tiles.TILE + 33)]):
        draw = np.random.default_rng(number)
        one = made(draw, *form, shape, 33, "F32", "plain")
        place = Path(tempfile.mkdtemp(dir=folder))
        found, wanted = both(on_disk(place, {"w": values(draw, shape, base, "plain")}, [one]), [(0.3,), (1.0,)])
        assert isinstance(found, list) and len(found) >= 4
        assert found == wanted
        shutil.rmtree(place)


@pytest.mark.parametrize("layout", ["linear", "convolution", "transposed", "embedding"])
@pytest.mark.parametrize("family", ["lora", "dora"])
def test_factors_that_are_read_by_rows(family, layout, folder, monkeypatch):
    """Where a factor is too large to be kept, and a tile is whole rows or a part of one: the same bytes."""
    read = []
    monkeypatch.setattr(cutting, "LARGE", 0)
    monkeypatch.setattr(cutting, "_lines", lambda *given, real=cutting._lines: read.append(given[2:]) or real(*given))
    for seed in range(6):
        for tile in (1, 7, 64, tiles.TILE):
            check(
                folder, seed, [(family, layout)], "BF16", "F32", "F16", kinds=("plain", "plain"), tile=tile,
                sizes=(1, 5, 16, 40), rank=3, alphas=[(0.3,), (1.0,)],
            )  # fmt: skip
    assert bool(read) == (layout in ("linear", "convolution"))


def test_a_factor_that_is_read_by_rows_and_is_not_finite_is_refused(folder, monkeypatch):
    """With the role and the rows, before a tile of them is finished."""
    monkeypatch.setattr(cutting, "LARGE", 0)
    draw = np.random.default_rng(0)
    one = made(draw, "lora", "linear", (6, 4), 2, "F32", "plain")
    one.tensors["B"][4, 1] = math.nan
    bound = on_disk(Path(tempfile.mkdtemp(dir=folder)), {"w": values(draw, (6, 4), "F32", "plain")}, [one])
    kind, where, *_ = outcome(bound, [(0.5,)], np.ndarray)
    assert kind is NotFinite and "factor B, rows 0 to 6" in where


@pytest.mark.parametrize("base", CARRIED)
def test_every_value_of_the_base_passes_alike(base, folder):
    """All bit patterns of 16 bits, and as many upper halves of the wider: what nothing is added to keeps its bits."""
    item = DTYPES[base].itemsize
    raw = np.arange(2**16, dtype=np.uint64) << np.uint64(8 * item - 16)
    if item > 2:
        raw |= np.arange(2**16, dtype=np.uint64) % np.uint64(3)  # NaN with the last bits alone, subnormals
    stored = raw.astype(f"u{item}")
    weight = torch.from_numpy(stored.view(np.uint8)).view(DTYPES[base]).reshape(256, 256)
    zeros = {"A": torch.zeros(2, 256), "B": torch.ones(256, 2)}
    step = StepSpec("lora", "weight", "linear", Hyper(), None, {"A": "A", "B": "B"})
    place = Path(tempfile.mkdtemp(dir=folder))
    found, wanted = both(on_disk(place, {"w": weight}, [Made(zeros, whole((256, 256), step))]), [(1.0,), (0.3,)])
    assert found == wanted == [stored.tobytes()] * 2


def test_results_do_not_share_what_one_changes(folder):
    """The values of each alpha beside others are those of it alone, in float64 too, whatever the order."""
    draw = np.random.default_rng(0)
    weight = torch.tensor([[-0.0, 0.0, -0.0, 1.0]], dtype=torch.float64).repeat(3, 1)
    one = Made(
        {"value": torch.zeros(3, 4)},
        whole((3, 4), StepSpec("full", "weight", "whole", Hyper(), None, {"value": "value"})),
    )
    other = made(draw, "lora", "linear", (3, 4), 2, "F32", "zeros")
    bound = on_disk(Path(tempfile.mkdtemp(dir=folder)), {"w": weight}, [one, other])
    shares = [(a, b) for a in (1.0, 0.0, 0.3) for b in (0.0, 1.0, 0.3)]
    together = outcome(bound, shares, np.ndarray)
    untouched = weight.numpy().tobytes()
    assert together == [outcome(bound, [share], np.ndarray)[0] if any(share) else untouched for share in shares]
    assert together[::-1] == outcome(bound, shares[::-1], np.ndarray)


def small(folder, base="F32", factor="F32"):
    """A bound of files that arrays can compute."""
    draw = np.random.default_rng(0)
    one = made(draw, "lora", "linear", (6, 4), 2, factor, "plain")
    return on_disk(Path(tempfile.mkdtemp(dir=folder)), {"w": values(draw, (6, 4), base, "plain")}, [one])


def test_arrays_are_for_what_is_on_disk(folder):
    """Only torch computes what is in memory, in float8 or float32, on a device, from packed factors."""
    bound = small(folder)
    assert bound.in_arrays("w") and isinstance(
        Once(bound, "w", [(0.5,)])().value(next(bound.tiles("w", [(0.5,)]))), np.ndarray
    )
    (part,) = bound.parts
    memory = Memory({name: part.adapter.get_tensor(name) for name in part.adapter.specs})
    others = [
        replace(bound, base=Memory({"w": bound.base.get_tensor("w")})),
        replace(bound, parts=(replace(part, adapter=memory),)),
        replace(bound, compute="F32"),
        replace(bound, device=torch.device("cpu")),
        replace(
            bound,
            plan=plan_of(bound.base, {"w": part.plan.bindings["w"].pieces}, dtype="F8_E5M2"),
            output_dtype="F8_E5M2",
        ),
        small(folder, base="F8_E5M2"),
        small(folder, factor="F8_E4M3"),
    ]
    (piece,) = part.plan.bindings["w"].pieces
    for change in ({"family": "pissa"}, {"cut": Cut(2, 1)}):
        changed = whole((6, 4), replace(piece.steps[0], **change))
        plan = plan_of(bound.base, {"w": changed})
        others.append(replace(bound, plan=plan, parts=(replace(part, plan=plan),)))
    for number, other in enumerate(others):
        assert not other.in_arrays("w"), number
    for other in others[:5]:
        tile = next(other.tiles("w", [(0.5,)]))
        assert isinstance(Once(other, "w", [(0.5,)])().value(tile), torch.Tensor)
