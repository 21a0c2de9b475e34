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
from wiseft_core.config_fields import option_readers
from wiseft_core.errors import BadAlpha, ConfigError, ConfigNeeded, ShapeMismatch, listed
from wiseft_core.families import FAMILIES, MODULES, Family, Hyper, Options
from wiseft_core.guards import quantized
from wiseft_core.interpolation import check_numbers
from wiseft_core.kits import Numbers
from wiseft_core.layouts import LAYOUTS, Layout, Shape
from wiseft_core.methods import Fit, fits, with_roles
from wiseft_core.schedules import check_alpha
from wiseft_core.sources import Memory
from wiseft_core.spans import Span
from wiseft_core.steps import check_dtypes
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
        options: What else the formula reads from the method's config, by PEFT's names; one that is not given has its
            default, or is refused if it has none.
        layout: How the weight is stored.
        parameter: Which of the family's parameters this is.
        extrapolate: Allow alpha outside [0, 1].
        overflow: "error" or "saturate".
        compute_dtype: "float64", or "float32" for speed.
        output_dtype: Dtype of the result; None: that of the weight.
        families: The methods to know.
    Raises:
        MissingFactor, ShapeMismatch, DtypeMismatch, ConfigError, ConfigNeeded, BadAlpha, NotFinite: What does not fit.
        QuantizedBase: The weight is not of a float dtype.
    Exactness: That of `interpolate`; the same bits as there.
    Source: Wortsman et al. 2022, arXiv:2109.01903, and the family's own.
    """
    coefficient, scale = check_alpha(alpha, "alpha", extrapolate=extrapolate), _checked_scale(scale)
    compute = dtypes.TORCH_DTYPES[check_numbers(compute_dtype, overflow)]
    record = _known(families, family, "family")
    if "*" not in record.parameters:
        _known(record.parameters, parameter, "parameter")
    said = _Said.of(record, options or {})
    tensors = {role: dtypes.as_tensor(factor, role) for role, factor in factors.items()}
    stored, place = dtypes.as_tensor(weight, "weight"), _known(LAYOUTS, layout, "layout")
    memory = Memory({"weight": stored, **{f"factor {role}": tensor for role, tensor in tensors.items()}})
    quantized(["weight"], memory.specs, None)
    shape = tuple(stored.shape)
    _, change, _, sizes = _fit(record, parameter, place, tensors, shape, said)
    names = {role: f"factor {role}" for role in tensors}
    check_dtypes({role: memory.specs[name] for role, name in names.items()}, names, change.integers)
    asked = parse_dtype(output_dtype)
    output = stored.dtype if asked is None else dtypes.TORCH_DTYPES[asked]
    numbers = Numbers(compute, output, overflow, stored.device)
    with torch.no_grad():
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
            expected=f"one of {listed(table, most=20)}" if table else "none",
            got=f"{name!r}",
            hint="see the docstring of interpolate_tensor",
        )
    return table[name]


def _checked_scale(scale: object) -> float:
    """The scale, if it is one finite number."""
    try:
        return check_alpha(scale, "scale", extrapolate=True)
    except BadAlpha as error:
        hint = "give lora_alpha / rank, or what the family's formula has for s"
        raise ConfigError(error.where, expected=error.expected, got=error.got, hint=hint) from None


class _Said(dict[str, object]):
    """Options as a config says them; one that it does not say, and that has no default, is refused when it is read."""

    @classmethod
    def of(cls, record: Family, options: Options) -> _Said:
        """The given options, each read as from a config, and the defaults of the others."""
        kinds = {name: one._replace(kind=bool) if one.kind == MODULES else one for name, one in record.options.items()}
        readers, said = option_readers(kinds), cls()
        for name, value in options.items():
            _known(record.options, name, f"option of {record.name}")
            said[name] = None if value is None else readers[name](value, f"options: {name}")
        default = {name: option.default for name, option in record.options.items() if said.get(name) is None}
        return cls({name: value for name, value in (said | default).items() if value is not None})

    def __missing__(self, name: str) -> object:
        raise ConfigNeeded(
            f"options: {name}",
            expected=f"{name} in options",
            got=f"no {name}",
            hint=f'give options={{"{name}": ...}}, the value used in training: {name} is never guessed',
        )


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
