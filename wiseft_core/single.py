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
from wiseft_core.errors import ConfigError, MissingFactor, ShapeMismatch, listed
from wiseft_core.families import FAMILIES, Change, Family
from wiseft_core.interpolation import check_numbers
from wiseft_core.layouts import LAYOUTS, Layout, fit
from wiseft_core.schedules import check_alpha
from wiseft_core.sources import Memory
from wiseft_core.tiles import Numbers, Step, factor_matrix, grid, measured

T = TypeVar("T")


def interpolate_tensor(
    weight: Tensor,
    factors: Mapping[str, Tensor],
    alpha: float,
    *,
    family: str = "lora",
    scale: float = 1.0,
    layout: str = "linear",
    parameter: str = "weight",
    extrapolate: bool = False,
    overflow: str = "error",
    compute_dtype: torch.dtype = torch.float64,
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
        factors: The family's factors by role.
        alpha: The coefficient, finite and in [0, 1].
        family: A key of `families`.
        scale: s of the family's formula: lora_alpha / rank, or lora_alpha / √rank for rsLoRA.
        layout: How the weight is stored.
        parameter: Which of the family's parameters this is.
        extrapolate: Allow alpha outside [0, 1].
        overflow: "error" or "saturate".
        compute_dtype: torch.float64, or torch.float32 for speed.
        output_dtype: Dtype of the result; None: that of the weight.
        families: The methods to know.
    Raises:
        MissingFactor, ShapeMismatch, ConfigError, BadAlpha, NotFinite: What does not fit.
    Exactness: That of `interpolate`; the same bits as there.
    Source: Wortsman et al. 2022, arXiv:2109.01903, and the family's own.
    """
    coefficient = check_alpha(alpha, "alpha", extrapolate=extrapolate)
    check_numbers(compute_dtype, overflow)
    parameters = _known(families, family, "family").parameters
    change = parameters["*"] if "*" in parameters else _known(parameters, parameter, "parameter")
    tensors = {role: dtypes.as_tensor(factor, role) for role, factor in factors.items()}
    stored, place = dtypes.as_tensor(weight, "weight"), _known(LAYOUTS, layout, "layout")
    shape = tuple(stored.shape)
    sizes = _check_factors(change, place, tensors, shape)
    asked = dtypes.parse_dtype(output_dtype)
    output = stored.dtype if asked is None else dtypes.TORCH_DTYPES[asked]
    numbers = Numbers(compute_dtype, output, overflow, stored.device)
    with torch.no_grad():
        memory = Memory({"weight": stored, **{f"factor {role}": tensor for role, tensor in tensors.items()}})
        whole = {role: axes for role, axes in change.factors.items() if axes != "out in"}
        step = Step(
            change,
            place,
            scale,
            {role: factor_matrix(tensors[role], axes, role, numbers) for role, axes in whole.items()},
            {role: partial(memory.read, f"factor {role}") for role in change.factors.keys() - whole.keys()},
        )
        read = partial(memory.read, "weight")
        steps = measured(shape, (step,), read, numbers)
        result = torch.empty(shape, dtype=output, device=stored.device)
        rows = range(shape[0]) if "row" in sizes else None
        for tile in grid(shape, rows):
            stored_tile = read(tile.start, tile.stop)
            (value,) = tile_values(tile, stored_tile, [Term(steps, rows)], [(coefficient,)], numbers, "weight")
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


def _check_factors(
    change: Change, layout: Layout, tensors: Mapping[str, Tensor], shape: tuple[int, ...]
) -> dict[str, int]:
    """Sizes of the free axes; factors that are not those of the family, or do not fit the weight, are refused."""
    if change.factors.keys() != tensors.keys():
        raise MissingFactor(
            "factors",
            expected=listed(change.factors, most=9),
            got=listed(tensors, most=9) or "none",
            hint="name the factors by role, as in the family's docstring",
        )
    shapes = {role: tuple(tensor.shape) for role, tensor in tensors.items()}
    sizes = fit(layout, change.factors, shapes, shape)
    if sizes is None or sizes.get("row") not in (None, *shape[:1]):
        raise ShapeMismatch(
            f"factors for a {layout.name} weight {list(shape)}",
            expected=", ".join(f"{role} ({axes})" for role, axes in change.factors.items()),
            got=", ".join(f"{role} {list(sizes)}" for role, sizes in shapes.items()),
            hint="see the shapes in the family's docstring; is this the right layout?",
        )
    return sizes
