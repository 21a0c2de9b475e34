"""The verb that folds alpha into the adapter itself: an adapter in, an adapter of the same kind out.

Verb floor. Every change of an adapter is closed under interpolation in its own way, which its family knows; what is not
closed is refused by name. Weights are walked tile by tile, the adapter's own tensors are held whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from wiseft_core import dtypes, numerics
from wiseft_core.blending import Term
from wiseft_core.bound import Bound, Prepared, places, spans_of
from wiseft_core.checking import check_values, same_bytes
from wiseft_core.config import AdapterConfig
from wiseft_core.cutting import extended, shifted, whole
from wiseft_core.errors import ConfigError, NotFinite, Unsupported, WiseftError, listed
from wiseft_core.families import FAMILIES, Factors, Family
from wiseft_core.implied import forms_of, implied_base
from wiseft_core.interpolation import bound_of
from wiseft_core.kits import Values
from wiseft_core.landings import UNCUT, Cut
from wiseft_core.layouts import matrix_shape
from wiseft_core.made import Made
from wiseft_core.methods import suffixes
from wiseft_core.naming.peft import parse_keys, saved_keys
from wiseft_core.plans import Binding, Piece, StepSpec
from wiseft_core.sites import collect
from wiseft_core.sources import Adapter, BaseLike, as_source, as_tuned
from wiseft_core.spans import united
from wiseft_core.statedict import StateDict
from wiseft_core.tiles import total_of
from wiseft_core.types import Alpha, TensorSpec


def rescale(
    adapter: Adapter | BaseLike,
    alpha: Alpha,
    *,
    config: AdapterConfig | Mapping[str, object] | None = None,
    base: BaseLike | None = None,
    base_config: Mapping[str, object] | None = None,
    extrapolate: bool = False,
    output_dtype: torch.dtype | str | None = None,
    families: Mapping[str, Family] = FAMILIES,
) -> Adapter:
    """An adapter of the same kind and rank that makes of the base what interpolating with the given one does.

        W_tuned(rescaled) = (1 - alpha)·W_base + alpha·W_tuned(adapter)

    LoRA: B' = alpha·B, and b' = alpha·b with lora_bias. DoRA: B' = diag(alpha·g / h)·B and m' = h·‖W + s·B'·A‖, with
    g = m / ‖W + s·B·A‖ and h = (1 - alpha) + alpha·g. Whole tensors, biases and token rows: the interpolated values.
    Tensors that the base does not have are carried as trained. The config stays.

    Shapes:
        Those of the adapter's own tensors. What is computed of factors is float32, or float64 where the factor is;
        whole tensors have the base's dtype; all else keeps its bytes.
    Args:
        adapter: As for `interpolate`, but not a full checkpoint.
        alpha: As for `interpolate`. Without a base, tensors are called as the adapter calls them: "module.weight".
        config: As for `interpolate`.
        base: As for `interpolate`. None is enough where the factors alone say what is added, and to a weight of which
            shape: LoRA, LoHa, AdaLoRA, VeRA; names and shapes are then not checked against it.
        base_config: As for `interpolate`.
        extrapolate: Allow alpha outside [0, 1].
        output_dtype: Dtype of everything that is computed; None: see above.
        families: As for `interpolate`.
    Returns:
        An adapter with PEFT's keys, for `save_adapter`; what alpha does not change, as LoRA's A, is the given memory.
    Raises:
        ConfigError: A tensor needs the base and there is none, or the adapter is a full checkpoint.
        Unsupported: A change has no closed form: OFT, or DoRA over a weight that was saved with the adapter.
        NotFinite: Alpha leaves the base no part in a row of a DoRA, a row has no norm, or a result does not fit.
        WiseftError: As for `interpolate`.
    Exactness: Computed in float64, each factor rounded once; m' is that of the rounded B'. With float32 factors a tuned
        weight is off by at most 2^-23·(|W(alpha)| + |alpha·s|·sum |B||A|), for DoRA relative to whole rows of these.
    Source: Wortsman et al. 2022, arXiv:2109.01903; DoRA: arXiv:2402.09353, eq. 5, solved for B' and m'.
    Example:
        >>> adapter = {"proj.lora_A.weight": torch.ones(1, 3), "proj.lora_B.weight": torch.ones(2, 1)}
        >>> rescaled = rescale(adapter, 0.5, config={"lora_alpha": 4})
        >>> rescaled.tensors["base_model.model.proj.lora_B.weight"]
        tensor([[0.5000],
                [0.5000]])
    """
    source = None if base is None else as_source(base)
    tuned = as_tuned(adapter, config, source, families)
    if tuned.complete:
        _refuse_checkpoint()
    if tuned.links:
        raise Unsupported(
            f"{listed(tuned.links)} — adapter and base do not split these weights alike",
            expected="a base in the layout that the adapter was trained on: PEFT's keys name one module of it each",
            got="weights that one of them joins and the other keeps apart",
            hint="rescale it over the base in the other layout, or interpolate the whole model instead",
        )
    spelling = suffixes(families, tuned.config)
    parsed = parse_keys(tuned.source.specs, suffixes=spelling)
    if source is None:
        meant = [(site.target, *forms_of(site, tuned, families)) for site in collect(parsed)]
        never = [(name, family) for name, family, forms in meant if forms and not any(form.closed for form in forms)]
        WiseftError.raise_all([_open(*one) for one in never])  # before a base is asked for: it would not help
        source = implied_base(tuned, parsed, families)
        base_config = {"model_type": ""}  # whichever way round a square weight is, its factors are the same
    bound = bound_of(
        source,
        [tuned],
        base_config=base_config,
        overflow="error",
        compute_dtype="float64",
        output_dtype=output_dtype,
        device=None,
        families=families,
    )
    view = StateDict(bound, (alpha,), extrapolate=extrapolate)
    changed = rescaled_tensors(view)
    tensors = {
        saved: changed[key] if key in changed else whole(bound.parts[0].adapter, key)
        for key, saved in saved_keys(parsed, spelling).items()
    }
    return Made(tensors, tuned.config, view=view)


def rescaled_tensors(view: StateDict) -> dict[str, Tensor]:
    """The adapter's tensors that are others at the view's alpha, by their keys.

    Raises:
        Unsupported: A change has no closed form, or none for all the parts of the base that it is made in.
        NotFinite: As for `rescale`.
    """
    bound, uses = view.bound, _uses(view)
    WiseftError.raise_all([problem for use in uses.values() for problem in _open_use(bound, use)])
    check_values(bound, [False])
    changed: dict[str, Tensor] = {}
    with torch.no_grad():
        for use in uses.values():
            changed |= _rescaled(bound, use)
    adapter = bound.parts[0].adapter
    for key, used in ((key, used) for key, used in bound.plan.copies.items() if used in changed):
        turned = not same_bytes(whole(adapter, key), whole(adapter, used))  # else the same, stored once more
        changed[key] = changed[used].mT.contiguous() if turned else changed[used]
    return changed


def _refuse_checkpoint() -> None:
    raise ConfigError(
        "the adapter — a full checkpoint, or tensors without a config",
        expected="an adapter, with its config where it is in memory",
        got="tensors that would replace those of the base",
        hint="interpolate makes a checkpoint from two; for an adapter in memory pass config=",
    )


class _Use(NamedTuple):
    """One step of an adapter, and every place of the base that it changes.

    Attributes:
        spec: The step, at the first of its places.
        binding: The tensor of that.
        piece: The piece of that.
        over: The steps before it there.
        alpha: The coefficient there.
        alphas: The coefficients at all of its places.
        places: The base tensors that these lie in, each with the piece and the cut.
    """

    spec: StepSpec
    binding: Binding
    piece: Piece
    over: int
    alpha: float
    alphas: set[float]
    places: set[tuple[str, int, tuple[int, ...], Cut]]


def _uses(view: StateDict) -> dict[tuple[str, ...], _Use]:
    """The steps of an adapter by their factors' keys: one may change several tensors, or several pieces of one."""
    found: dict[tuple[str, ...], _Use] = {}
    for name, alpha in view.alphas[0].items():
        binding = view.bound.parts[0].plan.bindings[name]
        for piece in () if name in view.plan.alike else binding.pieces:  # what is tied is changed once
            for over, spec in enumerate(piece.steps):
                key = (spec.parameter, *spec.factors.values())
                use = found.setdefault(key, _Use(spec, binding, piece, over, alpha, set(), set()))
                use.alphas.add(alpha)
                use.places.add((view.bound.source(name)[1], piece.start, piece.shape, spec.cut))
    return found


def _open_use(bound: Bound, use: _Use) -> list[WiseftError]:
    """The refusals of what has no closed form."""
    change, name = bound.change(use.spec), use.binding.name
    if not change.closed:
        return [_open(name, use.spec.family)]
    if use.over and change.delta is None:
        return [_open(name, use.spec.family, over_saved=True)]
    if use.over and bound.is_grown(name):
        return [_open(name, f"{use.spec.family} of rows that the base does not have: these are as trained, always")]
    if len(use.alphas) > 1:
        return [_open(name, f"{use.spec.family} with one of several alphas ({listed(map(str, sorted(use.alphas)))})")]
    parted = len(use.places) > 1 or use.spec.cut != UNCUT or use.spec.layout not in change.layouts
    if change.linear is None and (parted or (bound.is_grown(name) and change.value is None)):
        return [_open(name, f"{use.spec.family} in several parts of the base")]
    return []


def _open(name: str, family: str, *, over_saved: bool = False) -> Unsupported:
    """The refusal of a change without a closed form."""
    got, hint = f"{family}, whose factors cannot express it", "interpolate the whole model instead"
    if over_saved:
        got = f"{family} over a weight that was saved with the adapter"
        hint += ", or train with save_embedding_layers=False"
    where, expected = f"{name} — no adapter of this kind is the interpolation", "a change closed under interpolation"
    return Unsupported(where, expected=expected, got=got, hint=hint)


def _rescaled(bound: Bound, use: _Use) -> dict[str, Tensor]:
    """The adapter's tensors that change for one step, by adapter key."""
    value = bound.change(use.spec).value
    if value is None:
        return _factors(bound, use)
    return {use.spec.factors[value]: _interpolated(bound, use, use.spec.factors[value])}


def _factors(bound: Bound, use: _Use) -> dict[str, Tensor]:
    """The factors that change, in the closed form of their family, by adapter key."""
    part, spec, name, alpha = bound.parts[0], replace(use.spec, cut=UNCUT), use.binding.name, use.alpha
    numbers, specs = bound.numbers(name), part.adapter.specs
    step = bound.step(part, spec, use.binding, numbers, use.piece)

    def stored(values: Factors) -> dict[str, Tensor]:
        """Factors as they will be stored: rounded once, whatever does not fit refused."""
        return {
            role: _fitting(value, _dtype(bound, specs[spec.factors[role]]), spec.factors[role])
            for role, value in values.items()
        }

    def total(changed: Factors) -> Values:
        """The whole weight's measure with some factors changed."""
        wide = {role: numerics.widen(value, numbers.compute) for role, value in stored(changed).items()}
        with_them = replace(step, factors={**step.factors, **wide})
        read = partial(bound.base.read, bound.source(name)[1])
        return total_of(with_them, use.piece.shape, (), shifted(read, use.piece.start), numbers)

    linear = step.change.linear
    try:
        if linear is not None:
            found = stored({linear: step.factors[linear] * alpha})
        elif step.change.rescaled is not None:
            found = stored(step.change.rescaled(step.factors, alpha, total))
        else:
            raise TypeError("a change without a closed form was let through")
    except NotFinite as error:
        error.where = f"{name} — {error.where}"
        raise
    return {spec.factors[role]: value.reshape(specs[spec.factors[role]].shape) for role, value in found.items()}


def _dtype(bound: Bound, spec: TensorSpec) -> torch.dtype:
    """The dtype that a changed factor is stored in: float32 at least, for bfloat16 loses 2^-9 of the change."""
    return dtypes.TORCH_DTYPES[bound.output_dtype or ("F64" if spec.dtype == "F64" else "F32")]


def _fitting(values: Tensor, dtype: torch.dtype, key: str) -> Tensor:
    """A factor rounded once, if all its values are finite and fit."""
    if numerics.is_all_finite(values) and not numerics.overflows(values, dtype).any():
        return numerics.round_once(values, dtype)
    raise NotFinite(
        f"{key} — a rescaled factor does not fit its dtype",
        expected=f"finite numbers of {dtypes.dtype_name(dtype)}",
        got="infinity, NaN, or a number beyond the largest",
        hint="choose an alpha beside this one, or a wider output_dtype such as fp64",
    )


def _interpolated(bound: Bound, use: _Use, key: str) -> Tensor:
    """A whole tensor, or the trained rows of one, interpolated with the base's own, in the base's dtype."""
    part, binding, piece = bound.parts[0], replace(use.binding, pieces=(use.piece,)), use.piece
    numbers, (source, own) = bound.numbers(binding.name), bound.source(binding.name)
    if len(piece.steps) > 1:  # more is added to it: rounded to the base's dtype now, the sum would be rounded twice
        numbers = replace(numbers, output=_dtype(bound, binding.spec))
    steps = (bound.step(part, use.spec, binding, numbers, piece),)
    known, whole_of = source.specs[own].numel, bound.plan.outputs[binding.name].shape
    term = Term(places(binding), lambda at: steps, binding.rows)
    spans, read = united(spans_of(binding), known), partial(extended, source, own)
    prepared = Prepared(binding.name, whole_of, read, (term,), ((use.alpha,),), spans, known, numbers)
    result = torch.empty(part.adapter.specs[key].shape, dtype=numbers.output, device=numbers.device)
    entries, width = dict(zip(binding.rows or (), binding.entries, strict=True)), matrix_shape(whole_of)[1]
    for tile in prepared.tiles():
        start = tile.start - piece.start
        if binding.rows is not None:
            row, left = divmod(tile.start, width)
            start = entries[row] * width + left
        result.view(-1)[start : start + tile.stop - tile.start] = prepared.value(tile)
    return result
