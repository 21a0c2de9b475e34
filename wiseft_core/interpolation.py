"""The verb: base and adapter in, interpolated weights out.

Verb floor. Everything that can be refused is refused here, at the call; tensors are computed when they are asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from wiseft_core.arrays import flushes_denormals
from wiseft_core.bound import Bound, Part
from wiseft_core.checking import check_values
from wiseft_core.config import AdapterConfig
from wiseft_core.errors import ConfigError, of_adapter
from wiseft_core.families import FAMILIES, Family
from wiseft_core.planning import bind_sources
from wiseft_core.plans import Plan, joined
from wiseft_core.sources import Adapter, BaseLike, Source, Tuned, as_source, as_tuned, hold_same
from wiseft_core.statedict import StateDict
from wiseft_core.types import Alpha, parse_dtype

if TYPE_CHECKING:
    import torch


def interpolate(
    base: BaseLike,
    adapter: Adapter | BaseLike,
    alpha: Alpha,
    *,
    config: AdapterConfig | Mapping[str, object] | None = None,
    base_config: Mapping[str, object] | None = None,
    tied: str = "untie",
    extrapolate: bool = False,
    overflow: str = "error",
    compute_dtype: torch.dtype | str = "float64",
    output_dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    families: Mapping[str, Family] = FAMILIES,
) -> StateDict:
    """WiSE-FT of a base with its adapter, or with a full fine-tuned checkpoint, tensor by tensor.

        W(alpha) = (1 - alpha)·W_base + alpha·W_tuned

    for every tensor that tuning changed: low-rank deltas, DoRA, trained heads, biases and token rows alike.

    Shapes:
        Every tensor keeps the base's shape. Dtypes F64, F32, BF16, F16, F8_E4M3 and F8_E5M2 are computed with; any
        other is copied.
    Args:
        base: A mapping of names to tensors or numpy arrays (a live `state_dict()` too), a `Checkpoint`, or a path.
        adapter: The same with PEFT's keys as saved or live, or those of diffusers, kohya or LyCORIS; an `Adapter`, a
            path, or a full checkpoint.
        alpha: A number; a function of the name, such as `schedules.by_depth` makes; or a mapping of names or glob
            patterns to either. Finite, in [0, 1].
        config: The adapter's config: an `AdapterConfig`, the dict of adapter_config.json, `peft_config.to_dict()`, or
            just {"lora_alpha": 16}. Needed where the adapter does not bring it; it wins over the one that it brings.
        base_config: The base's config.json as a dict. It settles square transposed weights and tied embeddings, and is
            read by itself where the base is a folder.
        tied: What becomes of an embedding and a head that are one tensor of the base, where tuning makes them differ:
            "untie" writes both, and config.json says so; "share" adds both changes to the one, as PEFT's merge does. In
            a full checkpoint they are one where they share memory, where its own config.json ties them, or where it
            stores but one of them: then they stay one. With "share" it must hold the same under both names.
        extrapolate: Allow alpha outside [0, 1].
        overflow: "error", or "saturate": a finite result beyond the dtype's largest number becomes that number.
        compute_dtype: "float64" is exact; "float32" is faster and may be one unit off in the last place.
        output_dtype: Dtype of every float tensor of the result; None: each keeps its own.
        device: Where touched tensors are computed and returned; None: where the base is.
        families: The methods to know.
    Returns:
        A lazy, read-only mapping in the base's on-disk order.
    Raises:
        ConfigNeeded, ConfigError, BadAlpha, UnusedPattern: A value that cannot be meant, or that is missing.
        UnclaimedKey, MissingFactor, AmbiguousName, ShapeMismatch, DtypeMismatch: Adapter and base do not fit.
        Unsupported: Recognised and refused by name: tied embeddings, quantised bases, unknown methods, ...
        CheckpointError, Fault: A file is missing, malformed or cannot be read.
        NotFinite: The adapter holds NaN or infinity.
    Exactness: |out - exact| <= 0.5 ulp + 2^-48·(rank + 4)·(|W| + |c|·sum |B||A|) for low-rank deltas; 0.5 ulp +
        2^-50·(|W| + |W_tuned|) for whole tensors; for DoRA see `families.dora`. alpha = 0 gives the base's bytes,
        alpha = 1 the tuned weight rounded once.
    Source: Wortsman et al. 2022, arXiv:2109.01903.
    Example:
        >>> base = {"proj.weight": torch.zeros(2, 3)}
        >>> adapter = {"proj.lora_A.weight": torch.ones(1, 3), "proj.lora_B.weight": torch.ones(2, 1)}
        >>> interpolate(base, adapter, 0.5, config={"lora_alpha": 4})["proj.weight"]
        tensor([[2., 2., 2.],
                [2., 2., 2.]])
    """
    source = as_source(base)
    tuned = as_tuned(adapter, config, source, families)
    bound = bound_of(
        source,
        [tuned],
        base_config=base_config,
        tied=tied,
        overflow=overflow,
        compute_dtype=compute_dtype,
        output_dtype=output_dtype,
        device=device,
        families=families,
    )
    view = StateDict(bound, (alpha,), extrapolate=extrapolate)
    check_values(bound, [tuned.complete])
    return view


def bound_of(
    source: Source,
    tuned: Sequence[Tuned],
    *,
    base_config: Mapping[str, object] | None,
    overflow: str,
    compute_dtype: torch.dtype | str,
    output_dtype: torch.dtype | str | None,
    device: torch.device | str | None,
    families: Mapping[str, Family],
    tied: str = "untie",
) -> Bound:
    """A base and the adapters over it, bound; arguments as for `interpolate`. Values are still to be checked."""
    dtype = parse_dtype(output_dtype)
    if base_config is not None and not isinstance(base_config, Mapping):
        raise ConfigError(
            "base_config",
            expected="a mapping: what config.json holds",
            got=type(base_config).__name__,
            hint="load the file with json.load, or give the base by its folder, where it is found",
        )
    plans = list[Plan]()
    options: dict[str, Any] = {"base_config": base_config, "tied": tied, "output_dtype": dtype, "families": families}
    options["agree"] = cache(partial(hold_same, source))  # the base's two tensors are read once for all adapters
    for number, one in enumerate(tuned, start=1):
        with of_adapter(number, len(tuned)):
            plans.append(bind_sources(source, one, **options))
    apart = {name for plan in plans for name in plan.untied}
    if any(apart - {*plan.untied} for plan in plans):  # one of them takes a tie apart: all must
        plans = [bind_sources(source, one, **options, apart=apart) for one in tuned]
    place = _place(device)
    compute = check_numbers(compute_dtype, overflow)
    if place is not None and place.type == "mps":  # it knows no float64
        compute = "F32"
    parts = tuple(Part(one.source, plan, one.config_bytes) for one, plan in zip(tuned, plans, strict=True))
    return Bound(source, parts, joined(plans), families, compute, dtype, overflow, place, tied)


def sweep(
    base: BaseLike,
    adapter: Adapter | BaseLike,
    alphas: Iterable[Alpha],
    *,
    config: AdapterConfig | Mapping[str, object] | None = None,
    base_config: Mapping[str, object] | None = None,
    tied: str = "untie",
    extrapolate: bool = False,
    overflow: str = "error",
    compute_dtype: torch.dtype | str = "float64",
    output_dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    families: Mapping[str, Family] = FAMILIES,
) -> list[StateDict]:
    """Interpolate at several alphas with one binding: a list of lazy views, in the order of `alphas`.

        [interpolate(base, adapter, alpha, ...) for alpha in alphas]

    Base and adapter are opened, bound and checked once.

    Args:
        base: As for `interpolate`, like every argument but `alphas`.
        adapter: See `interpolate`.
        alphas: Any number of coefficients, each as `interpolate` takes it.
        config: See `interpolate`.
        base_config: See `interpolate`.
        tied: See `interpolate`.
        extrapolate: See `interpolate`.
        overflow: See `interpolate`.
        compute_dtype: See `interpolate`.
        output_dtype: See `interpolate`.
        device: See `interpolate`.
        families: See `interpolate`.
    Raises:
        WiseftError: See `interpolate`.
    """
    wanted = list(alphas)
    if not wanted:
        return []
    view = interpolate(
        base,
        adapter,
        wanted[0],
        config=config,
        base_config=base_config,
        tied=tied,
        extrapolate=extrapolate,
        overflow=overflow,
        compute_dtype=compute_dtype,
        output_dtype=output_dtype,
        device=device,
        families=families,
    )
    return [view, *(view.at(alpha) for alpha in wanted[1:])]


def _place(device: torch.device | str | None) -> torch.device | None:
    """A device that torch knows, that is there, and that gives back what it computes: "meta" does not.

    Raises:
        ConfigError: It is not.
    """
    if device is None:
        return None
    import torch

    try:
        tried = torch.ones(1, device=device)
        (tried + tried).item()
        return tried.device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f"device {device}",
            expected="a device that torch can compute on here",
            got=str(error).splitlines()[0],
            hint="leave it out to compute on the processor",
        ) from error


def check_numbers(compute_dtype: torch.dtype | str, overflow: str) -> str:
    """The name of the dtype to compute in; a dtype or policy that cannot be meant is refused, and a thread that flushes
    subnormal numbers to zero."""
    compute = parse_dtype(compute_dtype)
    if compute not in ("F64", "F32"):
        raise ConfigError(
            "compute_dtype",
            expected="float64 or float32",
            got=f"{compute_dtype}",
            hint="leave it out for exact results",
        )
    if overflow not in ("error", "saturate"):
        raise ConfigError(
            "overflow",
            expected='"error" or "saturate"',
            got=f"{overflow!r}",
            hint="leave it out to be told of overflow",
        )
    if flushes_denormals():
        raise ConfigError(
            "torch.set_flush_denormal(True) is on in this thread",
            expected="subnormal numbers that are kept: results are promised to the last bit",
            got="subnormal numbers that are flushed to zero",
            hint="call torch.set_flush_denormal(False) before",
        )
    return compute
