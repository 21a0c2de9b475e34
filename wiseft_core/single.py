"""The verb for one weight: the maths alone, without names, files or configs.

Verb floor. The same tiles and the same arithmetic as for whole checkpoints, and so the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from wiseft_core import dtypes
from wiseft_core.blending import Term, tile_values
from wiseft_core.errors import ConfigError, ShapeMismatch, listed
from wiseft_core.families import FAMILIES, Family, Hyper, Options
from wiseft_core.interpolation import check_numbers
from wiseft_core.kits import Numbers
from wiseft_core.layouts import LAYOUTS, Layout, Shape
from wiseft_core.methods import Fit, fits, with_roles
from wiseft_core.schedules import check_alpha
from wiseft_core.sources import Memory
from wiseft_core.spans import Span
from wiseft_core.tiles import Step, factor_matrix, grid, measured
from wiseft_core.types import parse_dtype

T = TypeVar("T")


def interpolate_tensor(
    weight: Tensor,
    factors: Mapping[str, Tensor],
    alpha: float,
    *,
    family: str = "lora",
    scale: float = 1.0,
    options: Options | None = None,
    layout: str = "linear",
    parameter: str = "weight",
    extrapolate: bool = False,
    overflow: str = "error",
    compute_dtype: torch.dtype | str = "float64",
    output_dtype: torch.dtype | str | None = None,
    families: Mapping[str, Family] = FAMILIES,
) -> Tensor:
    """The maths alone: one weight, its factors, one alpha.

        W(alpha) = (1 - alpha)·W + alpha·W_tuned(W, factors, scale)

    Shapes:
        weight as the layout stores it: (out, in) for "linear", (in, out) for "transposed", (vocabulary, dimension) for
        "embedding", (out, in, *kernel) for "convolution", any for "whole". Factors as PEFT stores them for that layout,
        by role: "A" and "B" for lora, with "magnitude" for dora, "value" for full, "rows" for tokens, where the weight
        is the listed rows alone. Returns the weight's shape.
    Args:
        weight: The base weight, of a float dtype.
        factors: The family's factors by role, and what else of the module its formula reads (`Change.beside`).
        alpha: The coefficient, finite and in [0, 1].
        family: A key of `families`.
        scale: s of the family's formula: lora_alpha / rank, or lora_alpha / √rank for rsLoRA.
        options: What else the formula reads from the method's config, by PEFT's names; None: their defaults.
        layout: How the weight is stored.
        parameter: Which of the family's parameters this is.
        extrapolate: Allow alpha outside [0, 1].
        overflow: "error" or "saturate".
        compute_dtype: "float64", or "float32" for speed.
        output_dtype: Dtype of the result; None: that of the weight.
        families: The methods to know.
    Raises:
        MissingFactor, ShapeMismatch, ConfigError, BadAlpha, NotFinite: What does not fit.
    Exactness: That of `interpolate`; the same bits as there.
    Source: Wortsman et al. 2022, arXiv:2109.01903, and the family's own.
    """
    coefficient = check_alpha(alpha, "alpha", extrapolate=extrapolate)
    compute = dtypes.TORCH_DTYPES[check_numbers(compute_dtype, overflow)]
    record = _known(families, family, "family")
    if "*" not in record.parameters:
        _known(record.parameters, parameter, "parameter")
    said = {name: option.default for name, option in record.options.items()} | dict(options or {})
    tensors = {role: dtypes.as_tensor(factor, role) for role, factor in factors.items()}
    stored, place = dtypes.as_tensor(weight, "weight"), _known(LAYOUTS, layout, "layout")
    shape = tuple(stored.shape)
    _, change, _, sizes = _fit(record, parameter, place, tensors, shape, said)
    asked = parse_dtype(output_dtype)
    output = stored.dtype if asked is None else dtypes.TORCH_DTYPES[asked]
    numbers = Numbers(compute, output, overflow, stored.device)
    with torch.no_grad():
        memory = Memory({"weight": stored, **{f"factor {role}": tensor for role, tensor in tensors.items()}})
        whole = {role: axes for role, axes in change.factors.items() if axes != "out in"}
        step = Step(
            change,
            place,
            Hyper(scale, said, sizes),
            {
                role: factor_matrix(tensors[role], axes, role, numbers, integer=role in change.integers)
                for role, axes in whole.items()
            },
            {role: partial(memory.read, f"factor {role}") for role in change.factors.keys() - whole.keys()},
        )
        read = partial(memory.read, "weight")
        steps = measured(shape, (step,), read, numbers)
        result = torch.empty(shape, dtype=output, device=stored.device)
        rows = range(shape[0]) if "row" in sizes else None
        term = Term.of(shape, steps, rows)
        for tile in grid(shape, rows):
            stored_tile = read(tile.start, tile.stop)
            (value,) = tile_values(
                Span(tile.start, tile.stop), stored_tile, [term], [(coefficient,)], numbers, "weight"
            )
            result.view(-1)[tile.start : tile.stop] = value
    return result


def _known(table: Mapping[str, T], name: str, what: str) -> T:
    """The entry of a table, or the refusal that lists what there is."""
    if name not in table:
        raise ConfigError(
            f"{what}",
            expected=f"one of {listed(table, most=20)}",
            got=f"{name!r}",
            hint="see the docstring of interpolate_tensor",
        )
    return table[name]


def _fit(
    record: Family, parameter: str, layout: Layout, tensors: Mapping[str, Tensor], weight: Shape, options: Options
) -> Fit:
    """The form that is meant; factors that are not those of the family, or do not fit the weight, are refused."""
    forms = {
        at: form
        for at, form in with_roles(record, parameter, dict.fromkeys(tensors, "factors"), "factors", beside=True).items()
        if form.when is None or form.when(options)
    }
    shapes = {role: tuple(tensor.shape) for role, tensor in tensors.items()}
    found = [one for one in fits(forms, shapes, weight, [layout.name]) if one.sizes.get("row") in (None, *weight[:1])]
    if len(found) != 1:
        axes = {role: names for form in forms.values() for role, names in form.factors.items()}
        raise ShapeMismatch(
            f"factors for a {layout.name} weight {list(weight)}",
            expected=", ".join(f"{role} ({names})" for role, names in axes.items()),
            got=", ".join(f"{role} {list(sizes)}" for role, sizes in shapes.items()),
            hint="see the shapes in the family's docstring; is this the right layout?",
        )
    return found[0]
