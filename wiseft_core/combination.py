"""The verb that adds up what several adapters changed, in one rounding.

Verb floor. One base, any number of adapters of any method; each is bound on its own, and their changes are summed tile
by tile.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from wiseft_core.bound import Bound
from wiseft_core.checking import check_values
from wiseft_core.errors import ConfigError, Unsupported, WiseftError, listed, of_adapter
from wiseft_core.families import FAMILIES, Family
from wiseft_core.interpolation import bound_of
from wiseft_core.landings import UNCUT
from wiseft_core.plans import StepSpec
from wiseft_core.sources import Adapter, BaseLike, Source, Tuned, as_source, as_tuned
from wiseft_core.statedict import StateDict
from wiseft_core.types import Alpha

if TYPE_CHECKING:
    import torch


def combine(
    base: BaseLike,
    adapters: Iterable[tuple[Adapter | BaseLike, Alpha]],
    *,
    base_config: Mapping[str, object] | None = None,
    tied: str = "untie",
    extrapolate: bool = False,
    overflow: str = "error",
    compute_dtype: torch.dtype | str = "float64",
    output_dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    families: Mapping[str, Family] = FAMILIES,
) -> StateDict:
    """The base with the WiSE-FT changes of several adapters, added up and rounded once.

        W = W_base + sum over the adapters of alpha_i·(W_tuned_i - W_base)

    Each W_tuned_i is what adapter i alone makes of the base, whatever its method and rank. The order of the adapters
    does not matter to any byte, and one adapter gives what `interpolate` gives.

    Shapes:
        Every tensor keeps the base's shape.
    Args:
        base: As for `interpolate`.
        adapters: Pairs of an adapter and its coefficient, each as `interpolate` takes them. An adapter in memory that
            needs a config is given as an `Adapter`.
        base_config: As for `interpolate`.
        tied: As for `interpolate`.
        extrapolate: Allow coefficients outside [0, 1], to subtract an adapter for example.
        overflow: As for `interpolate`.
        compute_dtype: As for `interpolate`.
        output_dtype: As for `interpolate`.
        device: As for `interpolate`.
        families: As for `interpolate`.
    Returns:
        A lazy, read-only mapping as `interpolate` gives it; its `at` takes one coefficient for each adapter.
    Raises:
        ConfigError: There is no adapter, or the adapters say that they were trained on different bases.
        ShapeMismatch, NotFinite: Adapters bring different tensors that the base does not have.
        Unsupported: One adapter resizes a tensor that another one changes too.
        WiseftError: As for `interpolate`, with the number of the adapter.
    Exactness: |out - exact| <= 0.5 ulp + 2^-48 times the sum over the adapters of (rank + 4)·(|W| + |c|·sum |B||A|), in
        the worst case of any order; whole tensors and DoRA likewise add up their bounds.
    Source: Wortsman et al. 2022, arXiv:2109.01903; the sum of differences is task arithmetic, Ilharco et al. 2023,
        arXiv:2212.04089.
    Example:
        >>> base = {"proj.weight": torch.zeros(1, 2)}
        >>> ones = {"proj.weight": torch.ones(1, 2)}
        >>> combine(base, [(ones, 0.5), ({"proj.weight": torch.full((1, 2), 8.0)}, 0.25)])["proj.weight"]
        tensor([[2.5000, 2.5000]])
    """
    pairs, source = list(adapters), as_source(base)
    tuned = all_tuned([adapter for adapter, _ in pairs], source, families)
    bound = bound_of(
        source,
        tuned,
        base_config=base_config,
        tied=tied,
        overflow=overflow,
        compute_dtype=compute_dtype,
        output_dtype=output_dtype,
        device=device,
        families=families,
    )
    check_resized(bound)
    view = StateDict(bound, [alpha for _, alpha in pairs], extrapolate=extrapolate)
    check_values(bound, [one.complete for one in tuned])
    return view


def all_tuned(adapters: Sequence[Adapter | BaseLike], source: Source, families: Mapping[str, Family]) -> list[Tuned]:
    """Several adapters of one base, opened.

    Raises:
        ConfigError: There is none, or they say that they were trained on different bases.
        WiseftError: One of them cannot be opened; with its number.
    """
    if not adapters:
        raise ConfigError(
            "adapters", expected="at least one adapter with its alpha", got="none", hint="there is nothing to combine"
        )
    tuned = list[Tuned]()
    for number, adapter in enumerate(adapters, start=1):
        with of_adapter(number, len(adapters)):
            tuned.append(as_tuned(adapter, None, source, families))
    check_bases(tuned)
    return tuned


def check_bases(tuned: Sequence[Tuned]) -> None:
    """Refuse adapters whose configs name different bases: the sum of their changes is a change of neither.

    A base is known by the last part of its name, so that a hub's name and a local folder can be one.

    Raises:
        ConfigError: They do.
    """
    names = {one.config.base_model for one in tuned if one.config is not None and one.config.base_model}
    models = {name.rstrip("/").rpartition("/")[2] for name in names}
    if len(models) > 1:
        raise ConfigError(
            "the adapters were trained on different bases",
            expected="one base_model_name_or_path in their configs",
            got=listed(names, most=5),
            hint="combine adapters of one base only; if these are two names of one model, write one into both configs",
        )


def check_resized(bound: Bound) -> None:
    """Refuse adapters of which one resizes a tensor that another one changes: rows without a base cannot be added up.

    Raises:
        Unsupported: There are such.
    """
    problems: list[WiseftError] = []
    for name in bound.plan.bindings:
        plans = [part.plan for part in bound.parts if name in part.plan.bindings]
        source, key = bound.source(name)
        if len(plans) > 1 and any(plan.outputs[name].shape != source.specs[key].shape for plan in plans):
            problems.append(
                Unsupported(
                    f"{name} — several adapters change this tensor, and one of them resizes it",
                    expected="a resized vocabulary in one adapter, and none that changes the same tensor",
                    got=listed(dict.fromkeys(f"{plan.outputs[name]}" for plan in plans)),
                    hint="interpolate the adapter with the resized vocabulary first, and combine over the result",
                )
            )
    WiseftError.raise_all(problems)


def check_plain(bound: Bound) -> None:
    """Refuse adapters that change anything but whole tensors of the base, each with all of its factors.

    Raises:
        Unsupported: One does: no adapter of modules says that.
    """
    names = [name for name in bound.plan.bindings if not _is_plain(bound, name)]
    WiseftError.raise_all([_parted(name) for name in names])


def _is_plain(bound: Bound, name: str) -> bool:
    """Whether adapters change a tensor as one weight, with all of their factors, under its name and in its shape."""
    bindings = [part.plan.bindings[name] for part in bound.parts if name in part.plan.bindings]
    shape, pieces = bound.plan.outputs[name].shape, [piece for binding in bindings for piece in binding.pieces]
    return (
        bound.source(name)[1] == name
        and len(pieces) == len(bindings)
        and all((piece.start, piece.shape) == (0, shape) == (0, bound.base.specs[name].shape) for piece in pieces)
        and all(step.cut == UNCUT and _is_named(name, step) for piece in pieces for step in piece.steps)
    )


def _is_named(name: str, step: StepSpec) -> bool:
    """Whether a step's keys name the parameter that it changes: not those of torch's attention, and of parameters."""
    return "value" in step.factors or name.rpartition(".")[2] == step.parameter


def _parted(name: str) -> Unsupported:
    return Unsupported(
        f"{name} — the base stores this weight otherwise than the adapter sees it",
        expected="a base tensor for every module of the adapters, of one name and one shape",
        got="a fused, shared or resized tensor, or one that its module's name does not tell",
        hint="combine into a checkpoint, without making an adapter of it",
    )
