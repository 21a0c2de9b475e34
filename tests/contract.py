"""What every family must do, whatever its formula: one run of this over each entry of `FAMILIES`.

A new family passes by an entry in `SAMPLES`: the layouts and a maker of the factors of a weight.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import pytest
import strategies
import torch
from exact import same_bits
from torch import Tensor

from wiseft_core import errors, interpolate_tensor, tiles
from wiseft_core.families import Change, Family

SHAPES = {"linear": (6, 5), "transposed": (5, 6), "embedding": (7, 4), "convolution": (6, 3, 2), "whole": (6, 5)}


class Sample(NamedTuple):
    """A weight with factors for one parameter of a family."""

    family: str
    parameter: str
    layout: str
    weight: Tensor
    factors: dict[str, Tensor]

    def value(self, alpha: float, **options: object) -> Tensor:
        """W(alpha)."""
        named = {"family": self.family, "parameter": self.parameter, "layout": self.layout, "scale": 1.5}
        return interpolate_tensor(self.weight, options.pop("factors", self.factors), alpha, **named, **options)


def low_rank(family: str, layout: str, shape: tuple[int, ...]) -> Mapping[str, tuple[int, ...]]:
    """Shapes of the factors of LoRA and DoRA."""
    return strategies.factor_shapes(family, layout, shape, 3)


MAKERS: dict[tuple[str, str], tuple[tuple[str, ...], Callable[..., Mapping[str, tuple[int, ...]]]]] = {
    ("lora", "weight"): (("linear", "transposed", "embedding", "convolution"), low_rank),
    ("dora", "weight"): (("linear", "transposed", "embedding", "convolution"), low_rank),
    ("lora", "bias"): (("whole",), lambda family, layout, shape: {"bias": shape[:1]}),
    ("full", "*"): (("whole",), lambda family, layout, shape: {"value": shape}),
    ("tokens", "weight"): (("whole",), lambda family, layout, shape: {"rows": shape}),
}
"""Layouts and factor shapes for each parameter of each family."""


def samples() -> list[Sample]:
    """One sample of each family, parameter and layout, with values that float64 sums exactly."""
    found = []
    for (family, parameter), (layouts, shapes) in MAKERS.items():
        for layout in layouts:
            draw = torch.Generator().manual_seed(len(found))
            shape = SHAPES[layout][:1] if parameter == "bias" else SHAPES[layout]
            weight = torch.randint(4, 9, shape, generator=draw) / 8
            parts = {
                role: (torch.randint(-4, 5, size, generator=draw) / 8).bfloat16()
                for role, size in shapes(family, layout, shape).items()
            }
            found.append(Sample(family, parameter, layout, weight, parts))
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
        wide = {role: factor.to(dtype) for role, factor in sample.factors.items()}
        assert same_bits(sample.value(0.3, factors=wide), sample.value(0.3))


def check_every_factor_counts(sample: Sample) -> None:
    """Each factor is needed, changes the result, and no other is taken."""
    for role, factor in sample.factors.items():
        rest = {other: f for other, f in sample.factors.items() if other != role}
        with pytest.raises(errors.MissingFactor):
            sample.value(0.5, factors=rest)
        assert not torch.equal(sample.value(0.5, factors=rest | {role: factor * 2}), sample.value(0.5)), role
    with pytest.raises(errors.MissingFactor):
        sample.value(0.5, factors=sample.factors | {"unknown": torch.ones(1)})


def check_shapes(sample: Sample) -> None:
    """One row or one axis too many in any factor is refused, with both shapes told."""
    for role, factor in sample.factors.items():
        for wrong in (torch.cat([factor, factor]), factor.unsqueeze(0)):
            with pytest.raises(errors.ShapeMismatch, match=re.escape(str(list(wrong.shape)))):
                sample.value(0.5, factors=sample.factors | {role: wrong})


def check_inputs_stay(sample: Sample) -> None:
    """The functions of a family own the tile they are given, and nothing else."""
    before = [tensor.clone() for tensor in (sample.weight, *sample.factors.values())]
    sample.value(0.3)
    sample.value(1.0)
    after = (sample.weight, *sample.factors.values())
    assert all(same_bits(left, right) for left, right in zip(before, after, strict=True))


def check_record(family: Family) -> None:
    """The record is whole: axes from the vocabulary, one of delta and tuned, a paper, and docstrings that say all."""
    assert family.source and family.parameters
    for change in (form for name in family.parameters for form in family.forms(name)):
        assert (change.delta is None) != (change.tuned is None)
        assert change.measure is None or change.tuned is not None
        assert {axis for axes in change.factors.values() for axis in axes.split()} <= {"out", "in", "rank", "row"}
        check_docstring(change)


def check_docstring(change: Change) -> None:
    """Formula, shapes, exactness and source, with every role named."""
    text = (change.delta or change.tuned).__doc__ or ""
    for word in ("Shapes:", "Exactness:", "Source:", "Returns"):
        assert word in text, word
    assert re.search(r"\n\n {8}\S", text), "a formula, indented, after the first line"
    assert all(re.search(rf"\b{role}\b", text) for role in change.factors)
