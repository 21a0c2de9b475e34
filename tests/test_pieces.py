"""Tensors that are changed in pieces: fused experts, fused rows, one adapter module over several base tensors."""

from __future__ import annotations

import weakref
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import pytest
import torch
from folders import same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from parted import full, lora, plan_of, union, view_of, whole
from safetensors.torch import save_file

from wiseft_core import errors, interpolate, open_checkpoint, tiles
from wiseft_core.landings import Cut
from wiseft_core.plans import Piece
from wiseft_core.spans import Place, Span, runs
from wiseft_core.tiles import grid

EXPERTS, OUT, IN, RANK = 3, 6, 5, 2
ALPHAS = [0.0, 0.3, 1.0]


@contextmanager
def tile_of(elements):
    """The grid with another size of tile, for the length of a block."""
    before, tiles.TILE = tiles.TILE, elements
    try:
        yield
    finally:
        tiles.TILE = before


def random(*shape, seed=0, dtype=torch.float32):
    """A tensor that a seed tells."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def wide(tensor):
    """float64 numbers for the oracle."""
    return tensor.double().numpy()


def close(found, exact):
    """Whether a tensor is what float64 gives, rounded once to its dtype, or beside that at a tie."""
    return np.allclose(wide(found), exact, rtol=2.0**-23 if found.dtype == torch.float32 else 2.0**-8, atol=1e-30)


def packed_deltas(a, b, experts):
    """The difference of each expert, element by element, as PEFT packs factors: A expert-slowest, B expert-fastest."""
    a, b = wide(a), wide(b)
    rank = len(a) // experts
    deltas = np.zeros((experts, len(b), a.shape[1]))
    for e in range(experts):
        for k in range(rank):
            deltas[e] += np.outer(b[:, k * experts + e], a[e * rank + k])
    return deltas


def dora(weight, a, b, magnitude, scale):
    """The tuned weight of a DoRA over rows."""
    direction = wide(weight) + scale * (wide(b) @ wide(a))
    return direction * (wide(magnitude) / np.sqrt((direction**2).sum(1)))[:, None]


def experts_case(dtype=torch.float32, layout="linear"):
    """A stack of experts with packed factors, its plan, and the exact difference at alpha 1."""
    base = {"experts": random(EXPERTS, OUT, IN, dtype=dtype)}
    out, size = (OUT, IN) if layout == "linear" else (IN, OUT)
    adapter = {"a": random(EXPERTS * RANK, size, seed=1), "b": random(out, RANK * EXPERTS, seed=2)}
    pieces = tuple(
        Piece(e * OUT * IN, (OUT, IN), (lora("a", "b", 1.5, layout=layout, cut=Cut(EXPERTS, e)),))
        for e in range(EXPERTS)
    )
    delta = 1.5 * packed_deltas(adapter["a"], adapter["b"], EXPERTS)
    exact = delta if layout == "linear" else delta.transpose(0, 2, 1)
    return base, adapter, plan_of(base, {"experts": pieces}), exact


@pytest.mark.parametrize("tile", [1, 4, 7, 30, 1 << 17])
@pytest.mark.parametrize("layout", ["linear", "transposed"])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_packed_experts(layout, alpha, tile):
    """Each expert of a stack gets its own part of the packed factors, in any tiles."""
    base, adapter, plan, exact = experts_case(layout=layout)
    with tile_of(tile):
        found = view_of(base, [(adapter, plan)], [alpha])["experts"]
    assert close(found, wide(base["experts"]) + alpha * exact)
    assert alpha or same_bits(found, base["experts"])


def test_packed_experts_are_those_of_peft():
    """The same as PEFT's own merge of a module with a stacked parameter, `target_parameters`."""
    peft = pytest.importorskip("peft")

    class Experts(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.stack = torch.nn.Parameter(random(EXPERTS, OUT, IN, dtype=torch.float64))

        def forward(self, x):
            return x @ self.stack.transpose(1, 2)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.mlp = Experts()

        def forward(self, x):
            return self.mlp(x)

    config = peft.LoraConfig(r=RANK, lora_alpha=3, target_modules=[], target_parameters=["mlp.stack"])
    model = peft.get_peft_model(Model().double(), config)
    factors = {name.split(".")[-3][-1].lower(): value for name, value in model.named_parameters() if "lora_" in name}
    for seed, factor in enumerate(factors.values()):
        factor.data = random(*factor.shape, seed=seed, dtype=torch.float64)
    adapter = {name: factor.detach().clone() for name, factor in factors.items()}
    base = {"stack": random(EXPERTS, OUT, IN, dtype=torch.float64)}
    layout = "linear" if adapter["a"].shape[1] == IN else "transposed"  # which axis PEFT takes for `in` is its affair
    pieces = tuple(
        Piece(e * OUT * IN, (OUT, IN), (lora("a", "b", 1.5, layout=layout, cut=Cut(EXPERTS, e)),))
        for e in range(EXPERTS)
    )
    found = view_of(base, [(adapter, plan_of(base, {"stack": pieces}))], [1.0])["stack"]
    merged = model.merge_and_unload()
    assert torch.allclose(found, merged.mlp.stack.data, rtol=1e-12, atol=1e-14)
    assert not torch.allclose(found, base["stack"], rtol=1e-3)


@pytest.mark.parametrize("tile", [1, 7, 1 << 17])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_fused_rows_of_different_methods(alpha, tile):
    """A LoRA on the rows of q, a DoRA on those of v: the rows of k between them keep the base's bytes."""
    base = {"qkv": random(12, 7, dtype=torch.bfloat16)}
    adapter = {"qa": random(2, 7, seed=1), "qb": random(4, 2, seed=2)}
    adapter |= {"va": random(2, 7, seed=3), "vb": random(3, 2, seed=4), "vm": random(3, seed=5).abs() + 0.5}
    pieces = (
        Piece(0, (4, 7), (lora("qa", "qb", 2.0),)),
        Piece(63, (3, 7), (lora("va", "vb", 0.5, family="dora", magnitude="vm"),)),
    )
    exact = wide(base["qkv"])
    q = exact[:4] + alpha * 2 * (wide(adapter["qb"]) @ wide(adapter["qa"]))
    v = (1 - alpha) * exact[9:] + alpha * dora(base["qkv"][9:], *(adapter[key] for key in ("va", "vb", "vm")), 0.5)
    with tile_of(tile):
        view = view_of(base, [(adapter, plan_of(base, {"qkv": pieces}))], [alpha])
        found, parts = view["qkv"], view.get_slice("qkv")
        assert close(found[:4], q) and close(found[9:], v)
        assert same_bits(found[4:9], base["qkv"][4:9])
        for start, stop in [(0, 12), (3, 10), (4, 9), (11, 12), (5, 5)]:
            assert same_bits(parts[start:stop], found[start:stop])
    assert alpha or same_bits(found, base["qkv"])


def test_a_piece_has_the_bits_of_the_same_weight_alone():
    """What is computed of the rows of q in a fused tensor is to the last bit what a tensor of these rows would get."""
    base = {"qkv": random(40, 33, dtype=torch.bfloat16)}
    adapter = {"m.lora_A.weight": random(3, 33, seed=1), "m.lora_B.weight": random(16, 3, seed=2)}
    pieces = (Piece(8 * 33, (16, 33), (lora(*adapter, 2.0),)),)
    fused = view_of(base, [(adapter, plan_of(base, {"qkv": pieces}))], [0.3])["qkv"]
    alone = interpolate({"m.weight": base["qkv"][8:24].clone()}, adapter, 0.3, config={"lora_alpha": 6})["m.weight"]
    assert same_bits(fused[8:24], alone)


@pytest.mark.parametrize("axis", ["out", "into"])
def test_one_module_over_two_base_tensors(axis):
    """A module whose weight the base stores as two: each gets its rows of B, or its columns of A."""
    a, b = random(2, 8, seed=1), random(10, 2, seed=2)
    delta = wide(b) @ wide(a)
    parts = {"one": delta[:6], "two": delta[6:]} if axis == "out" else {"one": delta[:, :3], "two": delta[:, 3:]}
    ranges = {"one": (0, 6), "two": (6, 10)} if axis == "out" else {"one": (0, 3), "two": (3, 8)}
    base = {name: random(*part.shape, seed=7) for name, part in parts.items()}
    pieces = {name: whole(base[name].shape, lora("a", "b", cut=Cut(**{axis: ranges[name]}))) for name in base}
    view = view_of(base, [({"a": a, "b": b}, plan_of(base, pieces))], [0.5])
    for name, part in parts.items():
        assert close(view[name], wide(base[name]) + 0.5 * part)


@pytest.mark.parametrize("cut", [Cut(out=(2, 6)), Cut(into=(1, 4)), Cut(out=(2, 6), into=(1, 4)), Cut()])
@pytest.mark.parametrize("layout", ["whole", "transposed"])
@pytest.mark.parametrize("experts", [0, EXPERTS])
def test_parts_of_trained_values(experts, layout, cut):
    """Any part of a trained value, of any expert, stored as it is or the other way round."""
    value = random(EXPERTS, 7, 5, seed=1) if experts else random(7, 5, seed=1)
    matrix = value[1] if experts else value
    part = matrix[slice(*(cut.out or (None,))), slice(*(cut.into or (None,)))]
    part = part.T if layout == "transposed" else part
    base, here = {"w": random(*part.shape, seed=2)}, cut._replace(experts=experts, expert=1 if experts else 0)
    plan = plan_of(base, {"w": whole(part.shape, full("v", layout=layout, cut=here))})
    with tile_of(4):
        for alpha in ALPHAS:
            found = view_of(base, [({"v": value}, plan)], [alpha])["w"]
            assert close(found, (1 - alpha) * wide(base["w"]) + alpha * wide(part))
    assert same_bits(view_of(base, [({"v": value}, plan)], [1.0])["w"], part.contiguous())


def test_an_output_dtype_is_of_the_gaps_too():
    """With another dtype what lies between pieces is cast, and so is a tensor at alpha 0."""
    base, adapter, plan, exact = experts_case()
    kept = (plan.bindings["experts"].pieces[1],)
    plan = plan_of(base, {"experts": kept}, dtype="F64")
    for alpha in ALPHAS:
        found = view_of(base, [(adapter, plan)], [alpha], dtype="F64")["experts"]
        assert torch.equal(found[[0, 2]], base["experts"][[0, 2]].double())
        assert np.allclose(wide(found[1]), wide(base["experts"][1]) + alpha * exact[1], rtol=1e-14)


@pytest.mark.parametrize("tile", [1, 4, 7, 11, 1 << 17])
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_adapters_that_see_different_pieces(method, tile):
    """One adapter changes the whole stack, another one expert of it, a third an odd run: the changes add up."""
    base = experts_case()[0]
    weight, value = base["experts"], random(EXPERTS, OUT, IN, seed=8)
    steps = {"lora": lora("a", "b"), "dora": lora("a", "b", family="dora", magnitude="m")}
    one = {"a": random(RANK, IN, seed=3), "b": random(OUT, RANK, seed=4), "m": random(OUT, seed=5).abs() + 1}
    odd = {"a": random(RANK, 11, seed=6), "b": random(2, RANK, seed=7)}
    plans = [
        plan_of(base, {"experts": whole(weight.shape, full("v"))}),
        plan_of(base, {"experts": (Piece(OUT * IN, (OUT, IN), (steps[method],)),)}),
        plan_of(base, {"experts": (Piece(43, (2, 11), (lora("a", "b"),)),)}),
    ]
    exact = wide(weight) + 0.25 * (wide(value) - wide(weight))
    change = dora(weight[1], one["a"], one["b"], one["m"], 1.0) - wide(weight[1])
    exact[1] += 0.5 * (wide(one["b"]) @ wide(one["a"]) if method == "lora" else change)
    exact.reshape(-1)[43:65] += 0.75 * (wide(odd["b"]) @ wide(odd["a"])).reshape(-1)
    with tile_of(tile):
        parts = list(zip([{"v": value}, one, odd], plans, strict=True))
        view = view_of(base, parts, [0.25, 0.5, 0.75], plan=union(plans))
        other = view_of(base, parts[::-1], [0.75, 0.5, 0.25], plan=union(plans))
        assert np.allclose(wide(view["experts"]), exact, rtol=1e-6, atol=1e-7)
        assert same_bits(view["experts"], other["experts"])
        assert same_bits(view.get_slice("experts")[1:2], view["experts"][1:2])


@pytest.mark.parametrize("shape", [(0, IN), (OUT, 0), (1, IN)])
def test_empty_and_one_row_pieces(shape):
    """A piece without elements changes nothing, one of a single row that row."""
    base = {"w": random(OUT, IN)}
    adapter = {"a": random(RANK, shape[1], seed=1), "b": random(shape[0], RANK, seed=2)}
    view = view_of(base, [(adapter, plan_of(base, {"w": (Piece(2 * IN, shape, (lora("a", "b"),)),)}))], [0.5])
    exact = wide(base["w"])
    exact[2 : 2 + (0 not in shape)] += 0.5 * (wide(adapter["b"]) @ wide(adapter["a"]))[:1] if 0 not in shape else 0
    assert close(view["w"], exact)
    rest = [row for row in range(OUT) if row != 2]
    assert same_bits(view["w"][rest], base["w"][rest])


@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        (lora("a", "b", family="dora", magnitude="m", cut=Cut(into=(0, 2))), (OUT, 2)),
        (lora("a", "b", family="dora", magnitude="m", cut=Cut(experts=2)), (OUT, IN)),
        (lora("a", "b", family="pissa", cut=Cut(out=(0, 2))), (2, IN)),
    ],
)
def test_what_cannot_be_cut_is_refused(spec, shape):
    """Norms over a part of a row, packed magnitudes, a decomposition of a part: refused by name, never wrong."""
    base, adapter = {"w": random(*shape)}, {"a": random(RANK, IN), "b": random(OUT, RANK), "m": random(OUT)}
    view = view_of(base, [(adapter, plan_of(base, {"w": whole(shape, spec)}))], [0.5])
    with pytest.raises(errors.Unsupported, match=spec.family):
        view["w"]


def test_a_packed_factor_is_read_once(monkeypatch, tmp_path):
    """The factor that has all experts along its fastest axis is not read again from its file for each of them."""
    base, adapter, plan, _ = experts_case()
    save_file(adapter, tmp_path / "adapter.safetensors")
    view, seen = view_of(base, [(open_checkpoint(tmp_path / "adapter.safetensors"), plan)], [0.5]), []
    source = view.bound.parts[0].adapter
    read = source.read
    monkeypatch.setattr(source, "read", lambda *args: seen.append(args) or read(*args))
    assert view["experts"].shape == (EXPERTS, OUT, IN)
    assert [stop - start for key, start, stop in seen if key == "b"] == [adapter["b"].numel()]
    assert [stop - start for key, start, stop in seen if key == "a"] == [RANK * IN] * EXPERTS


def test_a_packed_factor_in_memory_may_change():
    """As any other tensor there: each access computes from the values at that time."""
    base, adapter, plan, exact = experts_case()
    view = view_of(base, [(adapter, plan)], [1.0])
    assert close(view["experts"], wide(base["experts"]) + exact)
    adapter["b"].mul_(2)
    assert close(view["experts"], wide(base["experts"]) + 2 * exact)


def test_factors_of_pieces_are_not_all_in_memory(monkeypatch):
    """One thread holds the factors of one piece at a time, and the next ones while it makes them."""
    base, adapter, plan, _ = experts_case()
    view, made, most = view_of(base, [(adapter, plan)], [0.5]), [], []
    step = type(view.bound).step

    def counted(self, *args):
        found = step(self, *args)
        made.append(weakref.ref(found.factors["A"]))
        most.append(sum(one() is not None for one in made))
        return found

    monkeypatch.setattr(type(view.bound), "step", counted)
    assert view["experts"].shape == (EXPERTS, OUT, IN)
    assert len(most) == EXPERTS and max(most) <= 2


places = st.lists(st.tuples(st.integers(0, 4), st.integers(1, 4), st.integers(1, 5)), max_size=4)


@settings(max_examples=200)
@given(st.lists(places, max_size=3), st.integers(1, 12), st.lists(st.integers(0, 60), max_size=6))
def test_tiles_are_whole_rows_or_parts_of_one(matrices, most, cuts):
    """Whatever matrices lie there, the tiles cover the spans in order, each whole rows or a part of one of each."""
    terms = []
    for found in matrices:
        at, term = 0, []
        for gap, height, width in found:
            term.append(Place(at + gap, height, width))
            at = term[-1].stop
        terms.append(tuple(term))
    edges = sorted({*cuts})
    spans = [Span(*pair) for pair in list(pairwise(edges))[::2]]
    with tile_of(most):
        found = list(runs(spans, terms, Place(0, 12, 5)))
    assert [at for span in found for at in range(*span)] == [at for span in spans for at in range(*span)]
    for tile in found:
        for place in (place for term in terms for place in term):
            inside = place.start <= tile.start and tile.stop <= place.stop
            assert inside or tile.stop <= place.start or place.stop <= tile.start
            first, last = tile.start - place.start, tile.stop - place.start
            rows = first % place.width == 0 and last % place.width == 0
            assert not inside or rows or first // place.width == (last - 1) // place.width


@given(st.integers(0, 9), st.integers(0, 9), st.integers(1, 30))
def test_one_whole_piece_has_the_grid_of_the_tensor(height, width, most):
    """The rule: a tensor that is one matrix is cut as its grid says, so that its bits are those of any other way."""
    own = Place(0, height, width)
    with tile_of(most):
        assert [tuple(tile) for tile in runs([Span(0, height * width)], [(own,)] if height * width else [], own)] == [
            tile[:2] for tile in grid((height, width))
        ]
