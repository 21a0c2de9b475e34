"""How an adapter that was computed is written down: PEFT's keys and config for low-rank factors and whole tensors.

Joint floor. Everything that `combine` touches has a place: factors at their modules, other tensors of those modules
below `base_layer`, and any other tensor with its whole module in modules_to_save.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final, NamedTuple, TypeVar

from torch import Tensor

from wiseft_core.bound import Part
from wiseft_core.config import AdapterConfig
from wiseft_core.errors import AmbiguousName, Unsupported, listed
from wiseft_core.layouts import EMBEDDING, TRANSPOSED, Layout
from wiseft_core.lowrank import Pair
from wiseft_core.methods import suffixes
from wiseft_core.naming.peft import PeftKey, format_key, parse_key
from wiseft_core.naming.prefix import undone
from wiseft_core.naming.targets import exceptions, modules_of, targets
from wiseft_core.places import TASK_HEADS
from wiseft_core.sites import chain, covers
from wiseft_core.sources import Adapter
from wiseft_core.statedict import StateDict

T = TypeVar("T")
USUAL_RANK: Final = 8
"""PEFT's own, for an adapter without factors."""
PLAIN: Final[Mapping[str, object]] = {
    "peft_type": "LORA",
    "inference_mode": True,
    "lora_dropout": 0.0,
    "init_lora_weights": True,
    "use_rslora": False,
    "use_dora": False,
    "lora_bias": False,
}
"""Fields of every adapter that is written here: LoRA and no more."""


class Factors(NamedTuple):
    """What an adapter adds to one weight, at scale 1, and how that weight is stored."""

    layout: Layout
    pair: Pair


def adapter_of(view: StateDict, factors: Mapping[str, Factors], configs: Sequence[AdapterConfig]) -> Adapter:
    """The adapter with these factors by base name, and with every other tensor that the view changes.

    Args:
        view: The combination.
        factors: For each weight that becomes low-rank, its factors.
        configs: The configs of the adapters that were combined: what all of them say is kept.
    Raises:
        AmbiguousName: The adapters see the model under different prefixes.
        Unsupported: PEFT cannot save a module without saving one that has factors.
    """
    names = _spelled(view)
    at = {_module(names[name]): name for name in factors}
    whole = {name for name in names if name not in factors and (name in view.plan.new or any(view.share(name)))}
    beside = {name for name in whole if _module(names[name]) in at}
    modules, task = modules_of(names.values()), _agreed(config.task_type for config in configs)
    heads = [entry for entry in TASK_HEADS.get(task or "", ()) if any(path.endswith(entry) for path in modules)]
    if any(covers(entry, path) for entry in heads for path in at):
        task, heads = None, []  # PEFT would save that head as a whole
    offered = {entry for config in configs for entry in config.modules_to_save}
    saved = _saved({_module(names[name]) for name in whole - beside}, at, offered, heads)
    tensors = _factor_tensors(view, at, factors)
    for name, spelled in names.items():
        module, parameter = _module(spelled), spelled.rpartition(".")[2]
        one = view.plan.alike.get(name, name)  # PEFT saves what is tied once more
        if name in beside or (one in whole and one not in beside) or any(covers(entry, module) for entry in saved):
            value = view[one] if one == name else view[one].clone()
            tensors[format_key(PeftKey(module, parameter, "value", None, name in beside))] = value
    tied = any(source in factors or source in whole for source in view.plan.alike.values())
    fields = {
        **PLAIN,
        **({"ensure_weight_tying": True} if tied else {}),
        "task_type": task,
        "base_model_name_or_path": _agreed(config.base_model for config in configs),
        **_ranks({module: factors[name].pair.rank for module, name in at.items()}),
        "target_modules": targets(at, modules),
        "modules_to_save": saved or None,
        "bias": "lora_only" if beside else "none",
        "fan_in_fan_out": any(one.layout == TRANSPOSED for one in factors.values()),
    }
    return Adapter(tensors, AdapterConfig.from_mapping(fields))


def _factor_tensors(view: StateDict, at: Mapping[str, str], factors: Mapping[str, Factors]) -> dict[str, Tensor]:
    """The factors in the shapes and by the keys of their modules; `at` has the base name of each module."""
    tensors: dict[str, Tensor] = {}
    for module, name in at.items():
        layout, (first, second) = factors[name]
        shape, sizes, kind = view.spec(name).shape, {"rank": len(first)}, "embedding_" * (layout == EMBEDDING)
        for role, axes, factor in (("A", "rank in", first), ("B", "out rank", second)):
            key = format_key(PeftKey(module, "weight", kind + role, None))
            stored = layout.factor_shape(axes, shape, sizes)
            if stored is None:
                raise TypeError(f"{layout.name} has no place for {axes}")
            tensors[key] = factor.reshape(stored)
    return tensors


def _ranks(ranks: Mapping[str, int]) -> dict[str, object]:
    """The fields that give each module its rank, and scale 1."""
    count = Counter(ranks.values())
    usual = max(count, key=lambda rank: (count[rank], rank), default=USUAL_RANK)
    pattern = exceptions(ranks, usual)
    return {"r": usual, "lora_alpha": usual, "rank_pattern": pattern, "alpha_pattern": pattern}


def _spelled(view: StateDict) -> dict[str, str]:
    """Every tensor of the result, with its name as the adapters see the model.

    Raises:
        AmbiguousName: They see it differently.
    """
    parts: tuple[Part, ...] = view.bound.parts
    rules = {part.plan.rule for part in parts if part.plan.bindings} or {"exact"}
    if len(rules) > 1:
        raise AmbiguousName(
            "the adapters see the model under different prefixes",
            expected="adapters that were trained on one class of model, so that one adapter fits the same model",
            got=f"the prefix rules {listed(rules, most=9)} from adapter to base",
            hint="combine them into a checkpoint, without making an adapter of them",
        )
    (rule,) = rules
    known = {family: suffixes({family: record}, None) for family, record in view.bound.families.items()}
    seen = {
        _module(name): said.module
        for part in parts
        for name, bound in part.plan.bindings.items()
        for step in bound.steps
        for key in step.factors.values()
        if not (said := parse_key(key, known[step.family])).shared
    }
    outputs = (*view.plan.outputs, *view.plan.alike)
    names = {name: name if name in view.plan.new else undone(rule, name) for name in outputs}
    for name in view.plan.outputs:
        module, parameter = _module(name), name.rpartition(".")[2]
        if name not in view.plan.new and module in seen:
            names[name] = f"{seen[module]}.{parameter}" if seen[module] else parameter
    return names


def _module(name: str) -> str:
    """The path of a tensor's module."""
    return name.rpartition(".")[0]


def _saved(
    loose: Collection[str], targeted: Collection[str], offered: Iterable[str], heads: Sequence[str]
) -> list[str]:
    """Entries of modules_to_save that wrap all the `loose` modules, and none that has factors.

    The adapters' own entries where they do, else a module's path. PEFT takes the outermost module that an entry fits.

    Raises:
        Unsupported: A path would wrap a module with factors too.
    """
    usable = sorted(entry for entry in offered if not any(covers(entry, path) for path in targeted))
    chosen = set(heads)
    for path in sorted(loose, key=lambda path: (len(path), path)):
        if any(covers(entry, path) for entry in chosen):
            continue
        found = [entry for outer in chain(path) for entry in usable if outer.endswith(entry)]
        entry = found[0] if found else path
        kept = [target for target in targeted if covers(entry, target)]
        if kept:
            raise Unsupported(
                f"{path} — PEFT cannot save this module as a whole in one adapter with the factors of {listed(kept)}",
                expected=f"no module with factors whose path ends in {entry}, or lies in such a module",
                got=f"the entry {entry!r} of modules_to_save would take both",
                hint="combine into a checkpoint instead, or give one of the two a coefficient of 0",
            )
        chosen.add(entry)
    return sorted(chosen)


def _agreed(values: Iterable[T | None]) -> T | None:
    """The one value that is said; None where nothing is, or different things are."""
    said = {value for value in values if value is not None}
    return said.pop() if len(said) == 1 else None
