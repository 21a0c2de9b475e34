"""Steps: which family changes a tensor, in which layout, at which scale.

Joint floor: specs and configs only. Here the shapes of all factors are checked against the weight that they claim.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

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
from wiseft_core.families import Change, Family, Hyper
from wiseft_core.layouts import LAYOUTS, is_free
from wiseft_core.methods import beside, family_of, fits, with_roles
from wiseft_core.orientation import Orientation
from wiseft_core.sites import Site
from wiseft_core.types import TensorSpec

INTEGERS = ("U8", "I16", "I32", "I64")
"""The dtypes that factors of integers have."""


class Cut(NamedTuple):
    """The part of a site's factors that one piece of the base needs: a site may lie over several pieces.

    Attributes:
        experts: How many matrices the factors pack, as PEFT packs those of a parameter (E, out, in): A (E·rank, in)
            has expert after expert, B (out, rank·E) has the expert as its fastest axis. 0: one matrix, not packed.
            A whole trained tensor is (E, ...) itself.
        expert: Which of them.
        out: The rows [first, last) along the factors' axis `out`; None: all.
        into: The same along the axis `in`.
    """

    experts: int = 0
    expert: int = 0
    out: tuple[int, int] | None = None
    into: tuple[int, int] | None = None


UNCUT: Final = Cut()
"""All of the factors."""


@dataclass(frozen=True, slots=True)
class StepSpec:
    """One change to one tensor, by names.

    Attributes:
        family: Its family.
        parameter: The parameter of the module.
        layout: How that is stored.
        hyper: What the formula reads besides weight and factors.
        rank: The rank of the factors, where they have one.
        factors: The adapter key of each factor by role.
        form: Which of the family's forms it is.
        beside: The base tensor of each role that is another parameter of the module.
        cut: The part of the factors that is used.
    """

    family: str
    parameter: str
    layout: str
    hyper: Hyper
    rank: int | None
    factors: Mapping[str, str]
    form: int = 0
    beside: Mapping[str, str] = field(default_factory=dict)
    cut: Cut = UNCUT

    @property
    def scale(self) -> float:
        """s of the formula."""
        return self.hyper.scale

    def as_dict(self) -> dict[str, Any]:
        """The step as JSON sees it."""
        shown = {"family": self.family, "parameter": self.parameter, "layout": self.layout, "scale": self.scale}
        others: dict[str, Any] = {"beside": dict(self.beside)} if self.beside else {}
        if self.cut != UNCUT:
            others["cut"] = {key: value for key, value in self.cut._asdict().items() if value is not None}
        shown |= {"options": dict(self.hyper.options), "rank": self.rank}
        return {**shown, "factors": dict(self.factors), **others}


@dataclass(frozen=True, slots=True)
class Scene:
    """All that steps are decided from, besides the site itself."""

    adapter: Mapping[str, TensorSpec]
    config: AdapterConfig | None
    orientation: Orientation
    ranks: Mapping[str, int]
    families: Mapping[str, Family]
    base: Mapping[str, TensorSpec]
    replaced: frozenset[str]


def steps_of(site: Site, name: str, spec: TensorSpec, scene: Scene) -> tuple[StepSpec, ...]:
    """The changes that a site makes to the base tensor `name`, in the order in which they apply.

    A saved copy of the base weight comes first, and another change is added to that. A companion that its method
    leaves alone has none.

    Raises:
        MissingFactor, ShapeMismatch, DtypeMismatch, ConfigError, ConfigNeeded, Unsupported: What does not fit.
    """
    factors = dict(site.factors)
    steps: tuple[StepSpec, ...] = ()
    if "value" in factors:
        steps = _step("full", {"value": factors.pop("value")}, ("whole",), site, name, spec, scene)
    if not factors:
        return steps
    if "rows" in factors:
        if steps or len(factors) > 1:
            raise Unsupported(
                f"{name} — trained token rows together with another change of the same tensor",
                expected="either trained rows, or a trained or low-rank weight",
                got=f"adapter keys {listed(site.factors.values())}",
                hint="merge one of the two with PEFT first",
            )
        return _step("tokens", factors, ("whole",), site, name, spec, scene)
    if not site.method:
        _check_flags(scene.config, factors)
    embedding = {role for role in factors if role.startswith("embedding_")}
    if embedding and {f"embedding_{role}" for role in factors} & embedding:
        raise Unsupported(
            f"{name} — factors of a linear layer together with those of an embedding",
            expected="one pair of factors",
            got=f"adapter keys {listed(factors.values(), most=4)}",
            hint="the adapter file is damaged: one module is of one kind",
        )
    factors = {role.removeprefix("embedding_"): key for role, key in factors.items()}
    family = family_of(site, factors.keys(), scene.config, scene.families)
    layouts = ("embedding",) if embedding else tuple(name for name in LAYOUTS if name != "embedding")
    return (*steps, *_step(family, factors, layouts, site, name, spec, scene))


def _check_flags(config: AdapterConfig | None, factors: Mapping[str, str]) -> None:
    """Refuse a factor of LoRA that the config says is not there."""
    for role, flag in (("bias", "lora_bias"), ("magnitude", "use_dora")):
        if role in factors and config is not None and getattr(config, flag) is False:
            raise ConfigError(
                f"{factors[role]} — the config says {flag}: false",
                expected=f"no such tensor, or {flag}: true in adapter_config.json",
                got="a tensor that this adapter should not have",
                hint="config and tensors do not belong together: use the config that was saved with them",
            )


def _step(
    family: str,
    factors: Mapping[str, str],
    layouts: tuple[str, ...],
    site: Site,
    name: str,
    spec: TensorSpec,
    scene: Scene,
) -> tuple[StepSpec, ...]:
    """The one step, with its factors complete, its layout settled and its numbers known; none for no change."""
    if family not in scene.families:
        raise Unsupported(
            f"{name} — the family {family!r} is not in `families`",
            expected=f"one of {listed(scene.families, most=10)}",
            got=f"{family}",
            hint="pass families=FAMILIES | {...}",
        )
    record = scene.families[family]
    if not record.forms(site.parameter):
        raise Unsupported(
            f"{name} — {family} does not change a parameter called {site.parameter!r}",
            expected=f"one of {listed(record.parameters)}",
            got=f"adapter keys {listed(factors.values())}",
            hint="this adapter was made by a tool that we do not know",
        )
    said = {} if scene.config is None else scene.config.said_at(site.module, record.options)
    forms = with_roles(record, site.parameter, factors, name)
    meant = {at: form for at, form in forms.items() if form.when is None or form.when(said)}
    if not meant and site.companion:
        return ()
    _check_dtypes(factors, meant or forms, scene)
    others = beside(meant.values(), site, name, scene.base, scene.replaced)
    shapes = {role: scene.adapter[key].shape for role, key in factors.items()}
    shapes |= {role: scene.base[other].shape for role, other in others.items()}
    fitting = fits(meant, shapes, spec.shape, layouts)
    if not fitting:
        raise _mismatch(family, next(iter((meant or forms).values())), layouts, factors, shapes, name, spec)
    chosen = fitting[0]
    if len(fitting) > 1:
        layout = scene.orientation.choose(site, name)
        chosen = next((fit for fit in fitting if fit.layout == layout), chosen)
    rank = chosen.sizes.get("rank", scene.ranks.get(site.module))
    hyper = _hyper(record, site, rank, chosen.sizes, name, scene)
    others = {role: others[role] for role in chosen.change.beside}
    return (StepSpec(family, site.parameter, chosen.layout.name, hyper, rank, factors, chosen.form, others),)


def _check_dtypes(factors: Mapping[str, str], forms: Mapping[int, Change], scene: Scene) -> None:
    """Refuse factors that no form can compute with."""
    integers = {role for form in forms.values() for role in form.integers}
    for role, key in factors.items():
        if not scene.adapter[key].is_float and not (role in integers and scene.adapter[key].dtype in INTEGERS):
            raise DtypeMismatch(
                f"{key} — not a float tensor",
                expected="factors of a float dtype",
                got=f"{scene.adapter[key]}",
                hint="quantised adapters are not supported: save the adapter in bf16, fp16 or fp32",
            )


def _hyper(record: Family, site: Site, rank: int | None, sizes: Mapping[str, int], name: str, scene: Scene) -> Hyper:
    """What the family's formula reads besides weight and factors, from the config."""
    if not record.options:
        return Hyper(sizes=sizes)
    if scene.config is None:
        what, least, needed = "scale of its low-rank change", ", or at least its lora_alpha", '{"lora_alpha": ...}'
        if record.peft != "LORA":
            what, least, needed = f"numbers of {record.name}", "", f'{{"peft_type": "{record.peft}", ...}}'
        raise ConfigNeeded(
            f"{name} — nothing settles the {what}",
            expected=f"the adapter's config{least}",
            got="no config",
            hint=f"pass config={needed} with the value from training; it is never guessed",
        )
    if rank is None and record.peft == "LORA":
        raise MissingFactor(
            f"{name} — a bias trained with B, without the A and B of its module",
            expected=f"factors A and B of {site.module}",
            got=f"adapter keys {listed(site.factors.values())}",
            hint="the adapter file is damaged",
        )
    options = scene.config.options_at(site.module, record.options, rank)
    return Hyper(1.0 if record.scale is None else record.scale(options), options, sizes)


def _mismatch(
    family: str,
    change: Change,
    layouts: tuple[str, ...],
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
    possible = [LAYOUTS[one] for one in change.layouts if one in layouts] or [LAYOUTS[change.layouts[0]]]
    layout = next((one for one in possible if len(spec.shape) in one.ranks), possible[0])
    if len(spec.shape) not in layout.ranks:
        wanted = f"a weight with {layout.ranks.start} to {layout.ranks.stop - 1} axes"
    else:
        free = dict.fromkeys((axis for axes in change.factors.values() for axis in axes.split()), 0)
        free |= {
            axis: size
            for role, axes in change.factors.items()
            for axis, size in zip(axes.split(), shapes[role], strict=False)
        }
        free = {axis: size for axis, size in free.items() if is_free(axis)}
        wanted = ", ".join(
            f"{role} ({axes}) = {list(layout.factor_shape(axes, spec.shape, free) or ())}"
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
