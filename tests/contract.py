"""What every family must do, whatever its formula: one run of this over each entry of `FAMILIES`.

A new family passes by an entry in `MAKERS` for each form of each of its parameters: the weight and its factors.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import NamedTuple

import pytest
import strategies
import torch
from exact import same_bits
from torch import Tensor

from wiseft_core import errors, interpolate_tensor, tiles
from wiseft_core.families import FAMILIES, Change, Family, Hyper
from wiseft_core.layouts import LAYOUTS

SHAPES = {"linear": (6, 5), "transposed": (5, 6), "embedding": (7, 4), "convolution": (6, 3, 2), "whole": (6, 5)}


class Sample(NamedTuple):
    """A weight with factors for one parameter of a family."""

    family: str
    parameter: str
    layout: str
    weight: Tensor
    factors: dict[str, Tensor]
    settings: Mapping[str, object] = {}

    @property
    def change(self) -> Change:
        """The form that these factors are of."""
        forms = FAMILIES[self.family].forms(self.parameter)
        return next(form for form in forms if form.factors.keys() == self.factors.keys())

    def value(self, alpha: float, **options: object) -> Tensor:
        """W(alpha)."""
        named = {"family": self.family, "parameter": self.parameter, "layout": self.layout, "scale": 1.5}
        named["options"] = self.settings
        return interpolate_tensor(self.weight, options.pop("factors", self.factors), alpha, **named, **options)


class Maker(NamedTuple):
    """How the contract makes a weight with factors: one for each form of each parameter of each family.

    Attributes:
        family: Its name.
        layout: How the weight is stored.
        shape: Shape of the weight.
        factors: Shape of each factor by role; the indices of an integer role themselves.
        parameter: Which of the family's parameters it is.
        settings: Options of the formula, where they are not the defaults.
    """

    family: str
    layout: str
    shape: tuple[int, ...]
    factors: Mapping[str, tuple[int, ...] | Tensor]
    parameter: str = "weight"
    settings: Mapping[str, object] = {}


LOW_RANK = ("linear", "transposed", "embedding", "convolution")
MAKERS: list[Maker] = [
    *(
        Maker(family, layout, SHAPES[layout], strategies.factor_shapes(family, layout, SHAPES[layout], 3))
        for family in ("lora", "dora")
        for layout in LOW_RANK
    ),
    Maker("lora", "whole", (6,), {"bias": (6,)}, "bias"),
    Maker("full", "whole", (6, 5), {"value": (6, 5)}, "*"),
    Maker("tokens", "whole", (6, 5), {"rows": (6, 5)}),
    Maker("loha", "linear", (6, 5), {"w1_a": (6, 3), "w1_b": (3, 5), "w2_a": (6, 3), "w2_b": (3, 5)}),
    Maker("loha", "flat", (6, 3, 2), {"w1_a": (6, 3), "w1_b": (3, 6), "w2_a": (6, 3), "w2_b": (3, 6)}),
    Maker(
        "loha",
        "flat",
        (6, 3, 2, 3),
        {"t1": (4, 4, 2, 3), "w1_a": (4, 6), "w1_b": (4, 3), "t2": (4, 4, 2, 3), "w2_a": (4, 6), "w2_b": (4, 3)},
    ),
    *(
        Maker("lokr", layout, shape, {**first, **second})
        for first in ({"w1": (2, 1)}, {"w1_a": (2, 4), "w1_b": (4, 1)})
        for layout, shape, second in (
            ("linear", (6, 5), {"w2": (3, 5)}),
            ("linear", (6, 5), {"w2_a": (3, 4), "w2_b": (4, 5)}),
            ("flat", (6, 5, 2), {"w2": (3, 5, 2)}),
            ("flat", (6, 5, 2, 3), {"w2": (3, 5, 2, 3)}),
            ("flat", (6, 5, 2, 3), {"w2_a": (3, 4), "w2_b": (4, 30)}),
            ("flat", (6, 5, 2, 3), {"t2": (4, 4, 2, 3), "w2_a": (4, 3), "w2_b": (4, 5)}),
        )
    ),
    *(
        Maker("ia3", layout, shape, {"l": size}, parameter, {"feedforward_modules": inputs})
        for layout, shape, size, inputs, parameter in (
            ("linear", (6, 5), (6, 1), False, "weight"),
            ("linear", (6, 5), (1, 5), True, "weight"),
            ("transposed", (6, 5), (5, 1), False, "weight"),
            ("flat", (5, 3, 2, 3), (1, 5, 1, 1), False, "weight"),
            ("flat", (5, 3, 2, 3), (1, 3, 1, 1), True, "weight"),
            ("flat", (5, 3, 2, 3, 1), (1, 5, 1, 1, 1), False, "weight"),
            ("flat", (5, 3, 2, 3, 1), (1, 3, 1, 1, 1), True, "weight"),
            ("whole", (6,), (6, 1), False, "bias"),
            ("whole", (6,), (1, 6, 1, 1), False, "bias"),
            ("whole", (6,), (1, 6, 1, 1, 1), False, "bias"),
        )
    ),
    Maker("vera", "linear", (6, 5), {"A": (3, 7), "B": (9, 3), "lambda_d": (3,), "lambda_b": (6,)}),
    Maker("vera", "transposed", (6, 5), {"A": (3, 6), "B": (9, 3), "lambda_d": (3,), "lambda_b": (5,)}),
    *(
        Maker("fourierft", layout, (6, 5), {"spectrum": (17,)}, settings={"random_loc_seed": 777})
        for layout in ("linear", "transposed")
    ),
    Maker("adalora", "linear", (6, 5), {"A": (3, 5), "B": (6, 3), "E": (3, 1)}),
    Maker("adalora", "transposed", (6, 5), {"A": (3, 6), "B": (5, 3), "E": (3, 1)}),
    Maker("adalora", "flat", (6, 5, 2), {"A": (3, 10), "B": (6, 3), "E": (3, 1)}),
    *(
        Maker("oft", layout, shape, {"R": (blocks, 3)}, settings={**said, "block_share": blocks == 1})
        for layout, shape, own in (("linear", (5, 9), 3), ("flat", (5, 3, 1, 3), 3), ("embedding", (5, 6), 2))
        for blocks in (own, 1)
        for said in ({"use_cayley_neumann": True, "num_cayley_neumann_terms": 5}, {"use_cayley_neumann": False})
    ),
    *(
        Maker("pissa", layout, (6, 5), {"A": (3, n), "B": (11 - n, 3)})
        for layout, n in (("linear", 5), ("transposed", 6))
    ),
    Maker("olora", "linear", (6, 5), {"A": (3, 5), "B": (6, 3)}),
    Maker("shira", "linear", (6, 5), {"values": (4,), "indices": torch.tensor([[0, 5, 2, 2], [4, 0, 1, 3]])}),
    Maker("ln_tuning", "whole", (6,), {"trained": (6,)}),
    Maker("ln_tuning", "whole", (6,), {"trained": (6,)}, "bias"),
    Maker("ln_tuning", "whole", (6,), {"trained": (6,)}, "running_mean"),
    Maker("ln_tuning", "whole", (6,), {"trained": (6,)}, "running_var"),
]
"""The strategies of the contract."""


def samples() -> list[Sample]:
    """One sample of each maker, with values that float64 sums exactly."""
    found = []
    for family, layout, shape, factors, parameter, settings in MAKERS:
        draw = torch.Generator().manual_seed(len(found))
        weight = torch.randint(4, 9, shape, generator=draw) / 8
        parts = {
            role: size
            if isinstance(size, Tensor)
            else (torch.randint(-4, 5, size, generator=draw) / 8 + 1 / 16).bfloat16()
            for role, size in factors.items()
        }
        found.append(Sample(family, parameter, layout, weight, parts, settings))
    return found


def check_alpha_identities(sample: Sample) -> None:
    """Alpha 0 is the base, alpha 1 the tuned value, and both ends and the middle are on one line."""
    ends = [sample.value(alpha, output_dtype="fp64") for alpha in (0.0, 0.5, 1.0)]
    assert same_bits(sample.value(0.0), sample.weight)
    assert not torch.equal(ends[0], ends[2])
    assert torch.allclose(ends[1], (ends[0] + ends[2]) / 2, rtol=1e-14, atol=1e-15)


def check_tiles(sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut into tiles of any size, the result is the same; DoRA's norms to the last bits of float64."""
    whole = sample.value(0.3)
    for elements in (1, 3, 5, 10, 12):
        monkeypatch.setattr(tiles, "TILE", elements)
        part = sample.value(0.3)
        assert torch.allclose(part, whole, rtol=1e-7, atol=0) if sample.family == "dora" else same_bits(part, whole)


def check_factor_dtypes(sample: Sample) -> None:
    """The same factors in bf16, float32 and float64 give the same bits."""
    for dtype in (torch.float32, torch.float64):
        wide = {role: f.to(dtype) if f.is_floating_point() else f for role, f in sample.factors.items()}
        assert same_bits(sample.value(0.3, factors=wide), sample.value(0.3))


def check_every_factor_counts(sample: Sample) -> None:
    """Each factor is needed, changes the result, and no other is taken."""
    for role, factor in sample.factors.items():
        rest = {other: f for other, f in sample.factors.items() if other != role}
        forms = FAMILIES[sample.family].forms(sample.parameter)
        other_form = any(form.factors.keys() == rest.keys() for form in forms)
        with pytest.raises(errors.ShapeMismatch if other_form else errors.MissingFactor):
            sample.value(0.5, factors=rest)
        other = factor * torch.arange(2, factor.numel() + 2).view_as(factor)  # not one number: length may not count
        other = other if factor.is_floating_point() else factor.flip(-1)
        assert not torch.equal(sample.value(0.5, factors=rest | {role: other}), sample.value(0.5)), role
    with pytest.raises(errors.MissingFactor):
        sample.value(0.5, factors=sample.factors | {"unknown": torch.ones(1)})


def check_shapes(sample: Sample) -> None:
    """Twice the rows (but of a factor that is cut), or one axis too many in any factor, is refused, with its shape."""
    for role, factor in sample.factors.items():
        grown = [] if sample.change.factors[role].split()[0].endswith("+") else [torch.cat([factor, factor])]
        for wrong in (*grown, factor.unsqueeze(0)):
            with pytest.raises(errors.ShapeMismatch, match=re.escape(str(list(wrong.shape)))):
                sample.value(0.5, factors=sample.factors | {role: wrong})


def check_closure(sample: Sample) -> None:
    """What is linear is: half of that factor at alpha 1 is the result at alpha 0.5."""
    role = sample.change.linear
    if role is None:
        return
    half = sample.factors | {role: sample.factors[role].double() * 0.5}
    ends = [sample.value(1.0, factors=half, output_dtype="fp64"), sample.value(0.5, output_dtype="fp64")]
    assert torch.allclose(*ends, rtol=1e-13, atol=1e-15)


def check_inputs_stay(sample: Sample) -> None:
    """The functions of a family own the tile they are given, and nothing else."""
    before = [tensor.clone() for tensor in (sample.weight, *sample.factors.values())]
    sample.value(0.3)
    sample.value(1.0)
    after = (sample.weight, *sample.factors.values())
    assert all(same_bits(left, right) for left, right in zip(before, after, strict=True))


def check_surroundings(sample: Sample) -> None:
    """Where torch makes new tensors by default, and what it computes matrices in, is no part of any formula."""
    thirds = {role: f.float() / 3 if f.is_floating_point() else f for role, f in sample.factors.items()}
    sample = sample._replace(weight=sample.weight / 3, factors=thirds)  # numbers that bfloat16 does not have
    for dtype in ("float64", "float32"):
        wanted = sample.value(0.3, compute_dtype=dtype)
        with torch.device("meta"), torch.autocast("cpu", dtype=torch.bfloat16):
            found = sample.value(0.3, compute_dtype=dtype)
        assert same_bits(found, wanted)


def check_record(family: Family) -> None:
    """The record is whole: axes from the vocabulary, one of delta and tuned, a paper, and docstrings that say all."""
    assert family.source and family.parameters
    for change in (form for name in family.parameters for form in family.forms(name)):
        assert (change.delta is None) != (change.tuned is None)
        assert change.measure is None or change.tuned is not None
        assert change.layouts and set(change.layouts) <= set(LAYOUTS)
        assert {change.linear, change.value} - {None} <= change.factors.keys()
        assert change.integers <= change.factors.keys()
        assert change.linear is None or change.delta is not None
        check_docstring(change)
        for alpha in (0.0, 0.3, 0.5, 1.0, -0.7, 1.6):
            check_closed(change, alpha, options_of(family, change))


def options_of(family: Family, change: Change) -> Mapping[str, object]:
    """The options of a form: as its first maker has them, else PEFT's."""
    own = (one for one in MAKERS if one.family == family.name and one.factors.keys() == change.factors.keys())
    usual = {name: option.default for name, option in family.options.items()}
    return usual | dict(next((one.settings for one in own), {}))


def check_closed(change: Change, alpha: float, options: Mapping[str, object] | None = None) -> None:
    """Where the record gives other factors for the interpolated value, they give it, to 1e-12."""
    assert change.rescaled is None or change.value is None
    if change.rescaled is None and change.value is None:
        return
    draw, sizes = torch.Generator().manual_seed(5), {"out": 6, "in": 5, "rank": 3, "row": 6}
    if not {axis for axes in change.factors.values() for axis in axes.split()} <= sizes.keys():
        return  # axes of its own: PEFT merges what it was rescaled to in tests/families/test_against_peft.py
    hyper = Hyper(1.5, options or {}, sizes)
    factors = {
        role: torch.randn([sizes[axis] for axis in axes.split()], generator=draw, dtype=torch.float64)
        for role, axes in change.factors.items()
    }
    shape = change.delta(factors, hyper).shape if change.delta else (6, 5)
    weight, before = torch.randn(shape, generator=draw, dtype=torch.float64), copy.deepcopy(factors)

    def tuned(parts: Mapping[str, Tensor]) -> Tensor:
        if change.delta:
            return weight + hyper.scale * change.delta(parts, hyper)
        return change.tuned(weight, parts, hyper, None).reshape(weight.shape)

    wanted = (1 - alpha) * weight + alpha * tuned(factors)
    if change.value is not None:
        changed = {change.value: wanted.reshape(factors[change.value].shape)}
    else:
        try:
            changed = change.rescaled(factors, alpha, lambda parts: change.measure(weight, factors | parts, hyper))
        except errors.Unsupported:
            assert alpha < 0  # a method may have none below the base; inside [0, 1] it may not refuse
            return
    assert all(part.shape == factors[role].shape for role, part in changed.items())
    assert torch.allclose(tuned(factors | changed), wanted, rtol=1e-12, atol=1e-12)
    assert all(same_bits(before[role], factors[role]) for role in factors)


def check_docstring(change: Change) -> None:
    """Formula, shapes, exactness and source, with every role named, and a word on whether the change is closed."""
    text = (change.delta or change.tuned).__doc__ or ""
    for word in ("Shapes:", "Exactness:", "Closed:", "Source:", "Returns"):
        assert word in text, word
    assert re.search(r"\n\n {8}\S", text), "a formula, indented, after the first line"
    assert all(re.search(rf"\b{role}\b", text) for role in change.factors)
