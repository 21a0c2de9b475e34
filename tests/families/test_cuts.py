"""A module whose weight the base stores as several tensors: each family gives each its part, or refuses to."""

from __future__ import annotations

import pytest
import torch
from contract import Sample
from families.test_contract import SAMPLES as EVERY
from parted import plan_of, view_of, whole

from wiseft_core import errors, tiles
from wiseft_core.families import FAMILIES, Hyper
from wiseft_core.landings import Cut
from wiseft_core.layouts import LAYOUTS
from wiseft_core.methods import fits
from wiseft_core.plans import StepSpec

SAMPLES = [one for one in EVERY if one.weight.dim() == 2 and "rows" not in one.factors]
CUTS = [Cut(out=(0, 2)), Cut(out=(2, 4)), Cut(into=(1, 3)), Cut(out=(1, 4), into=(0, 2))]


def part_of(stored, layout, cut):
    """The rows `out` and columns `in` of a stored matrix."""
    out, into = slice(*(cut.out or (None,))), slice(*(cut.into or (None,)))
    return stored[into, out] if LAYOUTS[layout].rows == "in" else stored[out, into]


def spec_of(sample, cut):
    """The step that a sample's factors are, cut, and its form."""
    record = FAMILIES[sample.family]
    shapes = {role: tuple(factor.shape) for role, factor in sample.factors.items()}
    options = {name: option.default for name, option in record.options.items()} | dict(sample.settings)
    forms = {
        at: form
        for at, form in enumerate(record.forms(sample.parameter))
        if form.factors.keys() == shapes.keys() and (form.when is None or form.when(options))
    }
    ((form, change, _, sizes),) = fits(forms, shapes, tuple(sample.weight.shape), [sample.layout])
    own = {role: role for role in change.own}
    beside = {role: f"beside {role}" for role in change.beside}
    hyper = Hyper(1.5, options, sizes)
    return StepSpec(sample.family, sample.parameter, sample.layout, hyper, None, own, form, beside, cut), change


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("sample", SAMPLES, ids=lambda s: "-".join([*s[:3], *s.factors]))
@pytest.mark.parametrize("tile", [3, 1 << 17])
def test_a_part_is_that_of_the_whole(sample: Sample, cut: Cut, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a part of the weight becomes by the cut factors is that part of what the whole becomes by all of them."""
    spec, change = spec_of(sample, cut)
    weight = part_of(sample.weight, sample.layout, cut).contiguous()
    base = {"w": weight} | {f"beside {role}": sample.factors[role] for role in change.beside}
    adapter = {role: sample.factors[role] for role in spec.factors}
    view = view_of(base, [(adapter, plan_of(base, {"w": whole(weight.shape, spec)}))], [0.3])
    monkeypatch.setattr(tiles, "TILE", tile)
    if change.beside or (change.whole and change.tuned is not None) or (cut.into and change.measure is not None):
        with pytest.raises(errors.Unsupported, match=f"{sample.family} cannot be cut"):
            view["w"]
    else:
        wanted = part_of(sample.value(0.3), sample.layout, cut)
        assert torch.allclose(view["w"].double(), wanted.double(), rtol=1e-6, atol=1e-8)
