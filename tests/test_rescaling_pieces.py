"""Rescaling an adapter that changes the base in pieces: once for all of them, or refused."""

from __future__ import annotations

import pytest
import torch
from parted import full, lora, plan_of, view_of, whole

from wiseft_core import errors
from wiseft_core.landings import Cut
from wiseft_core.plans import Piece
from wiseft_core.rescaling import rescaled_tensors

OUT, IN = 4, 6


def random(*shape, seed=0):
    """A tensor that a seed tells."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pieces_of(kind):
    """A base, an adapter, and a plan in which one module of the adapter is several pieces of the base."""
    adapter = {"a": random(6, IN, seed=1), "b": random(OUT, 6, seed=2), "m": random(OUT, seed=3).abs() + 0.5}
    if kind == "experts":
        base = {"w": random(3, OUT, IN)}
        pieces = tuple(Piece(e * OUT * IN, (OUT, IN), (lora("a", "b", cut=Cut(3, e)),)) for e in range(3))
        return base, adapter, plan_of(base, {"w": pieces})
    if kind == "two tensors":
        base = {"w": random(1, IN), "u": random(3, IN)}
        ranges = {"w": Cut(out=(0, 1)), "u": Cut(out=(1, 4))}
        return base, adapter, plan_of(base, {k: whole(base[k].shape, lora("a", "b", cut=ranges[k])) for k in base})
    base = {"w": random(9, IN)}
    step = lora("a", "b", family="dora", magnitude="m")
    if kind == "tied dora":
        return base, adapter, plan_of(base, {"v": (Piece(2 * IN, (OUT, IN), (step,)),)}, sources={"v": "w"})
    return base, adapter, plan_of(base, {"w": (Piece(2 * IN, (OUT, IN), (step,)),)})


@pytest.mark.parametrize("kind", ["experts", "two tensors", "dora rows", "tied dora"])
def test_the_rescaled_adapter_gives_the_same(kind):
    """At alpha 1 the rescaled factors make of the base what the given ones make at alpha."""
    base, adapter, plan = pieces_of(kind)
    view = view_of(base, [(adapter, plan)], [0.3])
    changed = rescaled_tensors(view)
    assert changed.keys() == ({"b", "m"} if "dora" in kind else {"b"})
    assert all(changed[key].shape == adapter[key].shape for key in changed)
    again = view_of(base, [(adapter | changed, plan)], [1.0])
    for name in view:
        assert torch.allclose(view[name], again[name], rtol=1e-12, atol=1e-14)
        assert name in plan.bindings or torch.equal(view[name], base[name])


def test_a_resized_vocabulary_is_rescaled():
    """Rows of the base interpolate, the others are as trained."""
    base, adapter = {"w": random(5, IN)}, {"v": random(8, IN, seed=1)}
    plan = plan_of(base, {"w": whole((8, IN), full("v"))}, shapes={"w": (8, IN)})
    (value,) = rescaled_tensors(view_of(base, [(adapter, plan)], [0.25])).values()
    assert torch.allclose(value[:5], 0.75 * base["w"] + 0.25 * adapter["v"][:5])
    assert torch.equal(value[5:], adapter["v"][5:])


def test_parts_with_alphas_of_their_own_are_refused():
    """One factor cannot have two coefficients."""
    base, adapter, plan = pieces_of("two tensors")
    rescaled_tensors(view_of(base, [(adapter, plan)], [{"w": 0.5, "u": 0.5}]))
    with pytest.raises(errors.Unsupported, match="several alphas"):
        rescaled_tensors(view_of(base, [(adapter, plan)], [{"w": 0.5, "u": 0.25}]))


@pytest.mark.parametrize("kind", ["cut value", "shared value", "cut dora", "turned value"])
def test_what_one_factor_cannot_say_is_refused(kind):
    """A trained value or a DoRA over several parts, or stored the other way round: refused, never wrong."""
    base = {"w": random(4, IN), "u": random(4, IN, seed=1)}
    adapter = {"v": random(8, IN), "a": random(2, IN), "b": random(8, 2), "m": random(8).abs() + 1}
    rows = {"w": Cut(out=(0, 4)), "u": Cut(out=(4, 8))}
    steps = {
        "cut value": {name: full("v", cut=cut) for name, cut in rows.items()},
        "shared value": dict.fromkeys(base, full("v", cut=Cut())),
        "cut dora": {name: lora("a", "b", family="dora", magnitude="m", cut=cut) for name, cut in rows.items()},
        "turned value": {"w": full("v", layout="transposed")},
    }[kind]
    if kind == "shared value":
        adapter["v"] = random(4, IN)
    if kind == "turned value":
        adapter["v"] = random(IN, 4)
    plan = plan_of(base, {name: whole(base[name].shape, step) for name, step in steps.items()})
    with pytest.raises(errors.Unsupported, match="several parts"):
        rescaled_tensors(view_of(base, [(adapter, plan)], [0.5]))
