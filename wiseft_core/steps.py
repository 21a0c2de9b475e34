"""Steps: which family changes a tensor, in which layout, at which scale.

Joint floor: specs and configs only. Here the shapes of all factors are checked against the weight that they claim.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wiseft_core.config import AdapterConfig
from wiseft_core.errors import (
    ConfigError,
    ConfigNeeded,
    DtypeMismatch,
    MissingFactor,
    ShapeMismatch,
    Unsupported,
    listed,
)
from wiseft_core.families import Change, Family
from wiseft_core.layouts import CONVOLUTION, EMBEDDING, LINEAR, TRANSPOSED, WHOLE, Layout, fit
from wiseft_core.orientation import Orientation
from wiseft_core.sites import Site
from wiseft_core.types import TensorSpec


@dataclass(frozen=True, slots=True)
class StepSpec:
    """One change to one tensor, by names: family, parameter, layout, scale, rank, adapter key of each factor."""

    family: str
    parameter: str
    layout: str
    scale: float
    rank: int | None
    factors: Mapping[str, str]

    def as_dict(self) -> dict[str, Any]:
        """The step as JSON sees it."""
        shown = {"family": self.family, "parameter": self.parameter, "layout": self.layout, "scale": self.scale}
        return {**shown, "rank": self.rank, "factors": dict(self.factors)}


@dataclass(frozen=True, slots=True)
class Scene:
    """All that steps are decided from, besides the site itself."""

    adapter: Mapping[str, TensorSpec]
    config: AdapterConfig | None
    orientation: Orientation
    ranks: Mapping[str, int]
    families: Mapping[str, Family]


def steps_of(site: Site, name: str, spec: TensorSpec, scene: Scene) -> tuple[StepSpec, ...]:
    """The changes that a site makes to the base tensor `name`, in the order in which they apply.

    A saved copy of the base weight comes first, and a low-rank change is added to that.

    Raises:
        MissingFactor, ShapeMismatch, DtypeMismatch, ConfigError, ConfigNeeded, Unsupported: What does not fit.
    """
    factors = dict(site.factors)
    for key in factors.values():
        if not scene.adapter[key].is_float:
            raise DtypeMismatch(
                f"{key} — not a float tensor",
                expected="factors of a float dtype",
                got=f"{scene.adapter[key]}",
                hint="quantised adapters are not supported: save the adapter in bf16, fp16 or fp32",
            )
    steps = []
    if "value" in factors:
        steps.append(_step("full", {"value": factors.pop("value")}, (WHOLE,), site, name, spec, scene))
    if not factors:
        return tuple(steps)
    if "rows" in factors:
        if steps or len(factors) > 1:
            raise Unsupported(
                f"{name} — trained token rows together with another change of the same tensor",
                expected="either trained rows, or a trained or low-rank weight",
                got=f"adapter keys {listed(site.factors.values())}",
                hint="merge one of the two with PEFT first",
            )
        return (_step("tokens", factors, (WHOLE,), site, name, spec, scene),)
    if "bias" in factors:
        _check_flag(scene.config, "lora_bias", factors["bias"])
        return (*steps, _step("lora", factors, (WHOLE,), site, name, spec, scene))
    embedding = any(role.startswith("embedding_") for role in factors)
    if embedding and not factors.keys().isdisjoint(("A", "B")):
        raise Unsupported(
            f"{name} — factors of a linear layer together with those of an embedding",
            expected="one pair of factors",
            got=f"adapter keys {listed(factors.values(), most=4)}",
            hint="the adapter file is damaged: one module is of one kind",
        )
    factors = {role.removeprefix("embedding_"): key for role, key in factors.items()}
    layouts = (EMBEDDING,) if embedding else (LINEAR, TRANSPOSED) if len(spec.shape) == 2 else (CONVOLUTION,)
    return (*steps, _step(_low_rank(factors, site, scene.config), factors, layouts, site, name, spec, scene))


def _low_rank(factors: Mapping[str, str], site: Site, config: AdapterConfig | None) -> str:
    """The family of a low-rank change: DoRA where there is a magnitude, if the config does not say otherwise."""
    said = config.use_dora if config is not None else None
    if "magnitude" in factors:
        _check_flag(config, "use_dora", factors["magnitude"])
        return "dora"
    return "dora" if said else "lora"


def _check_flag(config: AdapterConfig | None, field: str, key: str) -> None:
    """Refuse a factor that the config says is not there."""
    if config is not None and getattr(config, field) is False:
        raise ConfigError(
            f"{key} — the config says {field}: false",
            expected=f"no such tensor, or {field}: true in adapter_config.json",
            got="a tensor that this adapter should not have",
            hint="config and tensors do not belong together: use the config that was saved with them",
        )


def _step(
    family: str,
    factors: Mapping[str, str],
    layouts: tuple[Layout, ...],
    site: Site,
    name: str,
    spec: TensorSpec,
    scene: Scene,
) -> StepSpec:
    """One step, with its factors complete, its layout settled and its scale known."""
    if family not in scene.families:
        raise Unsupported(
            f"{name} — the family {family!r} is not in `families`",
            expected=f"one of {listed(scene.families, most=10)}",
            got=f"{family}",
            hint="pass families=FAMILIES | {...}",
        )
    record = scene.families[family]
    change = record.parameters.get(site.parameter) or record.parameters.get("*")
    if change is None:
        raise Unsupported(
            f"{name} — {family} does not change a parameter called {site.parameter!r}",
            expected=f"one of {listed(record.parameters)}",
            got=f"adapter keys {listed(factors.values())}",
            hint="this adapter was made by a tool that we do not know",
        )
    _complete(change, factors, family, name)
    shapes = {role: scene.adapter[key].shape for role, key in factors.items()}
    fitting = [
        (layout, sizes) for layout in layouts if (sizes := fit(layout, change.factors, shapes, spec.shape)) is not None
    ]
    if not fitting:
        raise _mismatch(family, change, layouts[0], factors, shapes, name, spec)
    layout, sizes = fitting[0]
    if len(fitting) > 1:
        layout = scene.orientation.choose(site, name)
    rank = sizes.get("rank", scene.ranks.get(site.module))
    return StepSpec(family, site.parameter, layout.name, _scale(record, site, rank, name, scene), rank, factors)


def _complete(change: Change, factors: Mapping[str, str], family: str, name: str) -> None:
    """Refuse a site that lacks a factor of its family, or has one too many."""
    missing, extra = change.factors.keys() - factors.keys(), factors.keys() - change.factors.keys()
    if missing or extra:
        raise MissingFactor(
            f"{name} — the factors of {family} are not complete",
            expected=f"the factors {listed(change.factors, most=9)}",
            got=f"adapter keys {listed(factors.values(), most=9)}",
            hint="the adapter file is damaged, or config and tensors do not belong together",
        )


def _scale(record: Family, site: Site, rank: int | None, name: str, scene: Scene) -> float:
    """s of the family's formula, from the config."""
    if not record.needs_scale:
        return 1.0
    if scene.config is None:
        raise ConfigNeeded(
            f"{name} — nothing settles the scale of its low-rank change",
            expected="the adapter's config, or at least its lora_alpha",
            got="no config",
            hint='pass config={"lora_alpha": ...} with the value from training; it is never guessed',
        )
    if rank is None:
        raise MissingFactor(
            f"{name} — a bias trained with B, without the A and B of its module",
            expected=f"factors A and B of {site.module}",
            got=f"adapter keys {listed(site.factors.values())}",
            hint="the adapter file is damaged",
        )
    return scene.config.scale(site.module, rank)


def _mismatch(
    family: str,
    change: Change,
    layout: Layout,
    factors: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    name: str,
    spec: TensorSpec,
) -> ShapeMismatch | Unsupported:
    """The refusal of factors that fit the weight in no layout; grouped convolutions are called by their name."""
    got = ", ".join(f"{role} {list(shape)}" for role, shape in shapes.items())
    first = shapes.get("A", ())
    if (
        len(spec.shape) > 2
        and len(first) == len(spec.shape)
        and first[2:] == spec.shape[2:]
        and first[1] > spec.shape[1]
    ):
        return Unsupported(
            f"{name} — a grouped convolution",
            expected="a convolution with groups = 1",
            got=f"weight {list(spec.shape)}, factors {got}",
            hint="A sees all channels and B is grouped: no one weight equals that change, and PEFT cannot merge it",
        )
    if len(spec.shape) not in layout.ranks:
        wanted = f"a weight with {layout.ranks.start} to {layout.ranks.stop - 1} axes"
    else:
        free = {"rank": first[0] if first else 0, "row": (shapes.get("rows") or (0,))[0]}
        wanted = ", ".join(
            f"{role} ({axes}) = {list(layout.factor_shape(axes, spec.shape, free))}"
            for role, axes in change.factors.items()
        )
    return ShapeMismatch(
        f"{name} — the factors of {family} do not fit",
        expected=f"{wanted} for the base weight {list(spec.shape)}",
        got=f"{got} in {listed(factors.values(), most=1)}",
        hint="is this the base that the adapter was trained on? A resized vocabulary is not supported yet",
    )


def token_rows(site: Site, name: str, spec: TensorSpec, scene: Scene) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The rows that trained tokens replace, ascending, and for each its position in the adapter's tensor.

    Raises:
        ConfigNeeded: The config does not say which rows.
        ConfigError: A row is listed twice, lies outside the table, or their number is not that of the trained rows.
    """
    if scene.config is None:
        raise ConfigNeeded(
            f"{name} — nothing says which rows were trained",
            expected="trainable_token_indices for this embedding in the adapter's config",
            got=f"adapter key {site.factors['rows']}",
            hint="pass the config that was saved with these tensors",
        )
    rows, vocabulary = scene.config.token_rows(site.module), (spec.shape or (0,))[0]
    count = scene.adapter[site.factors["rows"]].shape[0]
    if len(set(rows)) != len(rows) or len(rows) != count or not all(0 <= row < vocabulary for row in rows):
        raise ConfigError(
            f"{name} — trainable_token_indices do not fit",
            expected=f"{count} different rows below {vocabulary}",
            got=f"{len(rows)} rows, {len(set(rows))} of them different, up to {max(rows, default=0)}",
            hint="use the adapter_config.json that was saved with these tensors",
        )
    entries = sorted(range(count), key=lambda entry: rows[entry])
    return tuple(rows[entry] for entry in entries), tuple(entries)
