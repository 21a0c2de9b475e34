"""Steps: which family changes a tensor, in which layout, at which scale.

Joint floor: specs and configs only. Here the shapes of all factors are checked against the weight that they claim.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

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
from wiseft_core.landings import Landing
from wiseft_core.layouts import LAYOUTS, Layout, Shape, is_free
from wiseft_core.methods import START, beside, fits, with_roles
from wiseft_core.plans import StepSpec
from wiseft_core.ruled import Placed
from wiseft_core.scene import Scene
from wiseft_core.types import TensorSpec
from wiseft_core.vocabulary import is_of_vocabulary

INTEGERS = ("U8", "I16", "I32", "I64")
"""The dtypes that factors of integers have."""


def steps_of(placed: Placed, scene: Scene) -> tuple[StepSpec, ...]:
    """The changes that a site makes to the weight that it lands on, in the order in which they apply, not cut yet.

    A saved copy of the base weight comes first, and another change is added to that. A companion that its method
    leaves alone has none.

    Raises:
        MissingFactor, ShapeMismatch, DtypeMismatch, ConfigError, ConfigNeeded, Unsupported: What does not fit.
    """
    site, name = placed.site, placed.name
    factors = dict(site.factors)
    steps: tuple[StepSpec, ...] = ()
    if "value" in factors:
        steps = _step("full", {"value": factors.pop("value")}, ("whole",), placed, scene)
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
        return _step("tokens", factors, ("whole",), placed, scene)
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
    family = scene.family(site, factors)
    _check_start(family, placed, scene)
    layouts = ("embedding",) if embedding else tuple(name for name in LAYOUTS if name != "embedding")
    return (*steps, *_step(family, factors, layouts, placed, scene))


def _check_start(family: str, placed: Placed, scene: Scene) -> None:
    """Refuse a head that takes from a tied tensor what it starts as: the embedding was trained without that too."""
    if placed.name in scene.untied and family in scene.families and START in scene.families[family].variant:
        raise Unsupported(
            f"{placed.name} — {family} of a head that is tied to the embedding",
            expected="a head of its own, or one whose base was saved with the adapter",
            got=f"adapter keys {listed(placed.site.factors.values())}: PEFT has rewritten the embedding along with it",
            hint='choose tied="share" (--tied share), as PEFT merges it, or save it with save_embedding_layers=True',
        )


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
    placed: Placed,
    scene: Scene,
) -> tuple[StepSpec, ...]:
    """The one step, with its factors complete, its layout settled and its numbers known; none for no change."""
    site, name = placed.site, placed.name
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
    said = {} if scene.config is None else scene.config.said_at(placed.path, record.options)
    kind = (family, layouts, repr(said), *scene.kind(placed, factors))
    if kind in scene.known:
        return (replace(scene.known[kind], factors=factors),)
    forms = with_roles(record, site.parameter, factors, name)
    meant = {at: form for at, form in forms.items() if form.when is None or form.when(said)}
    if not meant and site.companion:
        return ()
    integers = {role for form in (meant or forms).values() for role in form.integers}
    check_dtypes({role: scene.adapter[key] for role, key in factors.items()}, factors, integers)
    others = beside(meant.values(), site, name, scene.base, scene.replaced)
    shapes = {role: placed.unpacked(role, scene.adapter[key].shape) for role, key in factors.items()}
    shapes |= {role: scene.base[other].shape for role, other in others.items()}
    weight = scene.weight(placed)
    fitting = fits(meant, shapes, weight, layouts)
    if not fitting:
        raise _mismatch(family, next(iter((meant or forms).values())), layouts, factors, shapes, name, weight)
    chosen = fitting[0]
    if len(fitting) > 1:
        layout = scene.orientation(placed.name).choose(placed)
        chosen = next((fit for fit in fitting if fit.layout == layout), chosen)
    rank = chosen.sizes.get("rank", scene.ranks.get(site.module))
    hyper = _hyper(record, placed, rank, chosen.sizes, name, scene)
    others = {role: others[role] for role in chosen.change.beside}
    _check_parts(family, chosen.change, chosen.layout, placed)
    step = StepSpec(family, site.parameter, chosen.layout.name, hyper, rank, factors, chosen.form, others)
    if len(fitting) == 1 and not others:  # else names count too
        scene.known[kind] = step
    return (step,)


def at(step: StepSpec, landing: Landing) -> StepSpec:
    """A step of a site as it is at one of the runs where that lands: cut, and in the orientation stored there."""
    layout, cut = LAYOUTS[step.layout], landing.cut
    if cut == step.cut and not landing.across:
        return step
    if layout.rows == "in":
        cut = cut._replace(out=cut.into, into=cut.out)
    stored = {"linear": "transposed", "transposed": "linear", "whole": "transposed"}
    return replace(step, layout=stored[layout.name] if landing.across else layout.name, cut=cut)


def _check_parts(family: str, change: Change, layout: Layout, placed: Placed) -> None:
    """Refuse a change that cannot be made to a part of its weight alone: its rows are measured whole."""
    cuts = [landing.cut for landing in placed.landed.landings]
    in_parts = any(cut.out or cut.into for cut in cuts)
    many = len(cuts) > 1 or in_parts or placed.packed
    torn = any(cut.out if layout.rows == "in" else cut.into for cut in cuts)
    if (many and change.beside) or (in_parts and change.whole) or (torn and change.measure is not None):
        raise Unsupported(
            f"{placed.site.target} — {family} over a weight that the base stores in {len(cuts)} parts",
            expected="a change that is made row by row",
            got=f"parts of {listed({landing.name for landing in placed.landed.landings})}",
            hint="load the base with transformers and save it with save_original_format=False, then use that as base",
        )


def check_dtypes(factors: Mapping[str, TensorSpec], names: Mapping[str, str], integers: Collection[str]) -> None:
    """Refuse factors that no form can compute with.

    Args:
        factors: Their specs, by role.
        names: What each is called in an error.
        integers: The roles that hold integers.
    """
    for role, spec in factors.items():
        if not spec.is_float and not (role in integers and spec.dtype in INTEGERS):
            raise DtypeMismatch(
                f"{names[role]} — not a float tensor",
                expected="factors of a float dtype",
                got=f"{spec}",
                hint="quantised adapters are not supported: save the adapter in bf16, fp16 or fp32",
            )


def _hyper(
    record: Family, placed: Placed, rank: int | None, sizes: Mapping[str, int], name: str, scene: Scene
) -> Hyper:
    """What the family's formula reads besides weight and factors, from the config."""
    site = placed.site
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
    options = scene.config.options_at(placed.path, record.options, rank)
    scale = 1.0 if record.scale is None else record.scale(options)
    return Hyper(scale * 2 if site.twice else scale, options, sizes)


def _mismatch(
    family: str,
    change: Change,
    layouts: tuple[str, ...],
    factors: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    name: str,
    weight: Shape,
) -> ShapeMismatch | Unsupported:
    """The refusal of factors that fit the weight in no layout; grouped convolutions are called by their name."""
    got = ", ".join(f"{role} {list(shape)}" for role, shape in shapes.items())
    first = shapes.get("A", ())
    if len(weight) > 2 and len(first) == len(weight) and first[2:] == weight[2:] and first[1] > weight[1]:
        return Unsupported(
            f"{name} — a grouped convolution",
            expected="a convolution with groups = 1",
            got=f"weight {list(weight)}, factors {got}",
            hint="A sees all channels and B is grouped: no one weight equals that change, and PEFT cannot merge it",
        )
    possible = [LAYOUTS[one] for one in change.layouts if one in layouts] or [LAYOUTS[change.layouts[0]]]
    layout = next((one for one in possible if len(weight) in one.ranks), possible[0])
    if len(weight) not in layout.ranks:
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
            f"{role} ({axes}) = {list(layout.factor_shape(axes, weight, free) or ())}"
            for role, axes in change.factors.items()
        )
    return ShapeMismatch(
        f"{name} — the factors of {family} do not fit",
        expected=f"{wanted} for the base weight {list(weight)}",
        got=f"{got} in {listed(factors.values(), most=1)}",
        hint="is this the base that the adapter was trained on?"
        + (" A resized vocabulary must have been saved whole with it." if is_of_vocabulary(name) else ""),
    )
