"""The joint: base specs, adapter specs and config become a plan, or an error that names everything that does not fit.

Names and shapes only; no tensor is read and torch is not imported. Every adapter tensor is consumed exactly once, as a
factor, as a new tensor, or by name as one that means nothing.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from wiseft_core import guards
from wiseft_core.bonds import Agree, Bond, Tied, agreed, joined_names
from wiseft_core.config import AdapterConfig
from wiseft_core.errors import BindingError, DtypeMismatch, ShapeMismatch, WiseftError, listed
from wiseft_core.families import FAMILIES, Family
from wiseft_core.methods import suffixes, with_companions
from wiseft_core.models import Config, Models, all_bonds, all_edits, grown_by, placement
from wiseft_core.naming.links import NOTHING, Link
from wiseft_core.naming.peft import UNUSED, parse_keys
from wiseft_core.orientation import Orientation
from wiseft_core.plans import Binding, Piece, Plan
from wiseft_core.promises import check_promises
from wiseft_core.rows import by_source, token_rows
from wiseft_core.ruled import Placed, Placement
from wiseft_core.scene import Scene
from wiseft_core.sites import collect, copies
from wiseft_core.steps import at, steps_of
from wiseft_core.ties import as_tied, check, follow, settle
from wiseft_core.types import TensorSpec
from wiseft_core.vocabulary import is_resized


def bind(
    base: Mapping[str, TensorSpec],
    adapter: Mapping[str, TensorSpec],
    *,
    config: AdapterConfig | None = None,
    base_config: Mapping[str, object] | None = None,
    shared: Sequence[frozenset[str]] = (),
    complete: bool = False,
    twins: Sequence[Collection[str]] = (),
    output_dtype: str | None = None,
    tied: str = "untie",
    apart: Collection[str] = (),
    agree: Agree | None = None,
    known: Mapping[str, tuple[Link, ...]] = NOTHING,
    components: Mapping[str, Config] | None = None,
    families: Mapping[str, Family] = FAMILIES,
) -> Plan:
    """Find the base tensor of every adapter tensor, or say why not.

    Args:
        base: Specs of the base, in on-disk order.
        adapter: Specs of the adapter, by its own keys.
        config: The adapter's config; None for a full checkpoint, or where the adapter needs none.
        base_config: The base's config.json: it settles square transposed weights and tied embeddings.
        shared: Groups of base names that share memory.
        complete: The adapter is a full checkpoint: it must cover the base.
        twins: Groups of its keys that are one tensor there.
        output_dtype: Dtype of every float tensor of the result; None: each keeps its own.
        tied: What becomes of an embedding and a head that are one tensor, where tuning makes them differ: "untie"
            writes both, "share" adds both changes to the one.
        apart: Names that are tied to another one and are to be written apart in any case.
        agree: Tells whether two tensors of the base that its config ties hold the same, so that they are tied indeed;
            None: those of the same dtype and shape do.
        known: What some names, of the base or as the adapter has them, are where their spelling alone does not show it.
        components: Of a pipeline, the config.json of each component; the names of the base begin with the component's.
        families: The methods to know.
    Raises:
        BindingError, ShapeMismatch, ConfigError, Unsupported: Everything that does not fit, all of it at once.
    """
    parsed = parse_keys(adapter, suffixes=suffixes({} if complete else families, config))
    if config is not None:
        config.check_work({part.module for part in parsed.values()})
    sites = with_companions(collect(parsed), families)
    models = Models(base_config, components)
    model = grown_by(config, base, models)
    brought = [*(site.target for site in sites), *apart]
    bonds = all_bonds(model.specs, models, shared, brought, as_tied(tied), complete=complete)
    specs = dict(model.specs) | {bond.other: model.specs[bond.source] for bond in bonds if bond.alias}
    placed = placement(sites, specs, models, known, adapter, config)
    found, same = _counters(placed.placed, specs, adapter)
    held = agreed(bonds, {*apart, *(one.name for one in found)}, agree or (lambda one, other: base[one] == base[other]))
    WiseftError.raise_all([*_new_problems(placed.new, adapter), *(_uncovered(base, placed, held) if complete else [])])
    told = [bond for bond in bonds if guards.tie_flag(models.of(bond.source).config) and bond not in held]
    settled = settle(held, follow(found, told), config, as_tied(tied), apart=apart, twins=twins if complete else None)
    touched = dict.fromkeys(landing.name for one in settled.placed for landing in one.landed.landings)
    if not complete:
        _check_ties([*touched, *placed.new], bonds, models, specs, as_tied(tied))
    for one in models.all:
        guards.quantized(sorted(one.own(touched)), one.own(specs), one.config)
    scene = _scene(found, settled.untied, adapter, config, models, families, specs)
    bindings = _bindings([part for one in settled.placed for part in by_source(one, scene)], scene)
    if not complete:
        check_promises(config, sites, found, specs, bonds)
    left_out = {bond.other for bond in bonds if bond.alias} - {*settled.kept}
    sources = {**model.sources, **{bond.other: bond.source for bond in bonds if bond.other in settled.kept}}
    result = {name: _resized(spec, bindings.get(name)) for name, spec in specs.items() if name not in left_out}
    result |= {name: adapter[key] for name, key in placed.new.items()}
    return Plan(
        outputs={name: _output(spec, output_dtype) for name, spec in result.items()},
        bindings={name: bindings[name] for name in result if name in bindings},
        new=placed.new,
        same=same,
        copies={**copies(parsed), **settled.copies},
        ignored=tuple(sorted(key for key, part in parsed.items() if part.role in UNUSED)),
        sources=sources,
        alike=settled.alike,
        homes=_homes(placed.new, base) | {name: source for name, source in sources.items() if name not in base},
        config={**model.config, **all_edits(models, bindings, result, specs, settled.untied, config)},
        rule=placed.rule,
        untied=tuple(bond.other for bond in settled.untied),
        notes=tuple(_notes(bindings, placed, settled.notes, families)),
    )


def _scene(
    found: Sequence[Placed],
    untied: Iterable[Bond],
    adapter: Mapping[str, TensorSpec],
    config: AdapterConfig | None,
    models: Models,
    families: Mapping[str, Family],
    base: Mapping[str, TensorSpec],
) -> Scene:
    """What the steps of all places are decided from."""
    orientations = {one.prefix: Orientation.of(found, adapter, config, one.config) for one in models.all}
    return Scene(
        adapter,
        config,
        lambda name: orientations[models.of(name).prefix],
        _ranks(found, adapter),
        families,
        base,
        frozenset(one.name for one in found if "value" in one.site.factors),
        frozenset(name for bond in untied for name in (bond.source, bond.other)),
    )


def _check_ties(
    touched: Iterable[str],
    bonds: Sequence[Bond],
    models: Models,
    base: Mapping[str, TensorSpec],
    tied: Tied,
) -> None:
    """Refuse changes of what may be tied in one of the models, to a tensor whose name is not known."""
    names = dict.fromkeys(touched)
    aliases = {bond.other for bond in bonds if bond.alias}
    known = {name: spec for name, spec in base.items() if name not in aliases} if aliases else base
    for one in models.all:
        check(one.prefix, bonds, one.own(names), one.own(known), one.config, tied)


def _notes(
    bindings: Mapping[str, Binding], placed: Placement, tied: Iterable[str], families: Mapping[str, Family]
) -> Iterator[str]:
    """What a human should know of a plan."""
    used = dict.fromkeys(step.family for bound in bindings.values() for step in bound.steps)
    yield from (families[name].note for name in used if families[name].note)
    if placed.new:
        yield f"not in the base, carried as trained at every alpha: {listed(placed.new, most=10)}"
    yield from tied
    if any(one.site.twice for one in placed.placed):
        yield "the output projection of torch's attention counts twice, as PEFT 0.21 trains and merges it"


def _counters(
    placed: Sequence[Placed], base: Mapping[str, TensorSpec], adapter: Mapping[str, TensorSpec]
) -> tuple[list[Placed], dict[str, str]]:
    """The places without whole tensors of integers or codes, and these by the names of the base.

    There is nothing to interpolate in them, so both sides must agree.

    Raises:
        ShapeMismatch: They do not even in dtype or shape.
    """
    kept, same, problems = list[Placed](), dict[str, str](), list[WiseftError]()
    for one in placed:
        key = one.site.factors.get("value")
        if key is None or len(one.site.factors) > 1 or adapter[key].is_float:
            kept.append(one)
            continue
        same[one.name] = key
        if base[one.name] != adapter[key]:
            problems.append(
                ShapeMismatch(
                    f"{one.name} — an integer tensor differs in dtype or shape",
                    expected=f"{base[one.name]} as in the base",
                    got=f"{adapter[key]}",
                    hint="integers cannot be interpolated: both sides must hold the same",
                )
            )
    WiseftError.raise_all(problems)
    return kept, same


def _new_problems(new: Mapping[str, str], adapter: Mapping[str, TensorSpec]) -> list[WiseftError]:
    """What is wrong with tensors that the base does not have."""
    return [
        DtypeMismatch(
            f"{name} — a new tensor that is not a float",
            expected="new tensors of a float dtype",
            got=f"{adapter[key]}",
            hint="the base does not have this tensor: is this the base that the adapter was trained on?",
        )
        for name, key in new.items()
        if not adapter[key].is_float
    ]


def _uncovered(base: Mapping[str, TensorSpec], placed: Placement, bonds: Sequence[Bond]) -> list[WiseftError]:
    """Base tensors that a full checkpoint does not have, under no name that they are tied to."""
    held = {landing.name for one in placed.placed for landing in one.landed.landings}
    held.update(*(names for names in joined_names(bonds) if names & held))
    missing = [name for name in base if name not in held]
    if not missing:
        return []
    return [
        BindingError(
            f"{listed(missing)} — the tuned checkpoint lacks {len(missing)} tensor(s) of the base",
            expected="a full fine-tuned checkpoint with every tensor of the base",
            got=f"{len(held)} of {len(base)}",
            hint="is this the checkpoint that was tuned from this base? An adapter needs its adapter_config.json",
        )
    ]


def _bindings(found: Sequence[Placed], scene: Scene) -> dict[str, Binding]:
    """The changes of every touched tensor; all problems are collected before any is raised."""
    pieces: defaultdict[str, list[Piece]] = defaultdict(list)
    rows: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    problems: list[WiseftError] = []
    for one in found:
        try:
            steps = steps_of(one, scene)
            weight = scene.weight(one)
            if "rows" in one.site.factors:
                rows[one.name] = token_rows(one, scene)
        except WiseftError as error:
            problems.append(error)
            continue
        for landing in one.landed.landings if steps else ():
            shape = weight if weight != one.landed.shape else landing.shape
            piece = Piece(landing.start, shape, tuple(at(step, landing) for step in steps))
            here = pieces[landing.name]
            before = here.pop() if here and here[-1][:2] == piece[:2] else None  # both changes of a tied tensor
            here.append(piece if before is None else piece._replace(steps=(*before.steps, *piece.steps)))
    WiseftError.raise_all(problems)
    ordered = {name: tuple(sorted(those, key=lambda piece: piece.start)) for name, those in pieces.items()}
    return {
        name: Binding(name, scene.base[name], those, *rows.get(name, (None, ()))) for name, those in ordered.items()
    }


def _ranks(found: Sequence[Placed], adapter: Mapping[str, TensorSpec]) -> dict[str, int]:
    """Rank of each module that has a factor A: a bias trained with B is scaled by its module's rank."""
    sites = [one.site for one in found if not one.packed and not one.site.method]
    keys = {site.module: site.factors["A"] for site in sites if "A" in site.factors}
    return {module: adapter[key].shape[0] for module, key in keys.items() if adapter[key].shape}


def _output(spec: TensorSpec, dtype: str | None) -> TensorSpec:
    """The spec of a result: floats take the asked dtype, anything else stays as it is."""
    return TensorSpec(dtype, spec.shape) if dtype is not None and spec.is_float else spec


def _resized(spec: TensorSpec, bound: Binding | None) -> TensorSpec:
    """The spec of a base tensor with the number of rows that its vocabulary has in the result."""
    pieces, reached = () if bound is None else bound.pieces, 0
    for piece in pieces:
        if piece.start != reached or piece.shape[1:] != spec.shape[1:]:
            return spec
        reached += math.prod(piece.shape)
    shape = (sum(math.prod(piece.shape[:1]) for piece in pieces), *spec.shape[1:])
    return TensorSpec(spec.dtype, shape) if bound is not None and is_resized(bound.name, spec.shape, shape) else spec


def _homes(new: Mapping[str, str], base: Mapping[str, TensorSpec]) -> dict[str, str]:
    """For each new tensor, the last base tensor of its own module, if the base has that module."""
    if not new:
        return {}
    last = {module: name for name in base if (module := name.rpartition(".")[0])}
    return {name: last[module] for name in new if (module := name.rpartition(".")[0]) in last}
