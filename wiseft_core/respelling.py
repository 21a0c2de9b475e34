"""Adapters in other spellings, taken in at the boundary: from here on they have PEFT's keys and PEFT's config.

Joint floor. `naming.schemes` says which key is which; here the small tensors that hold a scale are read, shapes that
PEFT has otherwise are changed, and the config is made that PEFT would have saved.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from wiseft_core.config import AdapterConfig
from wiseft_core.errors import ConfigError, ShapeMismatch, Unsupported, WiseftError, listed
from wiseft_core.families import FAMILIES, Family
from wiseft_core.families.lora import OPTIONS
from wiseft_core.layouts import Shape
from wiseft_core.naming.diffusers import METADATA
from wiseft_core.naming.links import Link
from wiseft_core.naming.schemes import Module, Translation, detect, translate
from wiseft_core.naming.targets import exceptions
from wiseft_core.naming.words import COMPONENTS
from wiseft_core.store.checkpoint import Checkpoint
from wiseft_core.store.renamed import Renamed
from wiseft_core.store.strict_json import as_mapping, load_json
from wiseft_core.types import TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

    from wiseft_core.sources import Source

RANKED: Final = ("t1", "t2", "A", "w1_b", "w2_b")
"""The roles whose first axis is the rank, in the order in which they tell it: with a core the others are turned."""


class Respelled(NamedTuple):
    """An adapter as PEFT has it: its tensors under PEFT's keys, its config, and ties that names alone do not show."""

    source: Source
    config: AdapterConfig
    links: Mapping[str, tuple[Link, ...]]


class _Renamed:
    """A source in memory under other names, in other shapes."""

    def __init__(self, source: Source, names: Mapping[str, str], specs: Mapping[str, TensorSpec]) -> None:
        self.source, self.names, self.specs = source, names, specs

    def get_tensor(self, name: str) -> Tensor:
        """The tensor, reshaped."""
        return self.source.get_tensor(self.names[name]).reshape(self.specs[name].shape)

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Elements [start, stop) of the flattened tensor."""
        return self.source.read(self.names[name], start, stop)


def respelled(
    source: Source,
    base: Source | None,
    *,
    config: AdapterConfig | None = None,
    families: Mapping[str, Family] = FAMILIES,
) -> Respelled | None:
    """An adapter in another spelling as PEFT has it; None for what is in PEFT's, or no adapter.

    Args:
        source: The adapter's tensors.
        base: The base. Where it was opened as one component of a pipeline by name, the adapter's other parts are left
            out.
        config: What the caller says of the scale; it wins over what a file in diffusers' spelling says. Kohya's carry
            their own.
        families: The methods to know.

    Raises:
        ConfigError: There is no base, or the file's scale is not a number, or a config was given beside it.
        WiseftError: What `translate` refuses.
    """
    scheme = detect(source.specs) or ("diffusers" if config is None and _header(source) else None)
    if scheme is None:
        return None
    if base is None:
        raise ConfigError(
            f"the adapter is in {scheme}'s spelling",
            expected="the base, whose names settle which modules are meant",
            got="no base",
            hint="give it: base=, or --base on the command line",
        )
    component = base.component if isinstance(base, Checkpoint) else None
    found = translate(source.specs, base.specs, component, scheme=scheme)
    factors = found.factors
    names = {name: factor.key for name, factor in factors.items()}
    specs = {
        name: TensorSpec(source.specs[key].dtype, _shape(role, found.modules[path], source.specs, base.specs))
        for name, (path, role, key) in factors.items()
    }
    as_peft = Renamed(source, names, specs) if isinstance(source, Checkpoint) else _Renamed(source, names, specs)
    has_alphas = any("alpha" in module.keys for module in found.modules.values())
    if config is None:
        config = _config(found, source, families)
    elif has_alphas or scheme != "diffusers":
        raise ConfigError(
            f"a config beside an adapter in {scheme}'s spelling",
            expected="no config: such a file carries its scales",
            got=f"peft_type {config.peft_type}, lora_alpha {config.lora_alpha}",
            hint="leave config out",
        )
    return Respelled(as_peft, config, found.links)


def _shape(role: str, module: Module, specs: Mapping[str, TensorSpec], base: Mapping[str, TensorSpec]) -> Shape:
    """The shape that PEFT gives a factor: those of a 1 by 1 convolution and of a linear layer are one to some tools."""
    shape = specs[module.keys[role]].shape
    axes = len(base[module.base[0]].shape)
    if role == "dora_scale":
        return _magnitude(module, specs, axes)
    if role == "w2" and len(shape) == 3:
        raise Unsupported(
            f"{module.keys[role]} — LoKr of a Conv1d",
            expected="a whole second factor of two or four axes",
            got=f"{list(shape)}",
            hint="PEFT and LyCORIS multiply this one differently: merge it with the tool that made it",
        )
    if (
        role in ("A", "B")
        and len(shape) != axes
        and all(size == 1 for size in shape[2:] + base[module.base[0]].shape[2:])
    ):
        return (*shape[:2], *(1,) * (axes - 2))
    return shape


def _magnitude(module: Module, specs: Mapping[str, TensorSpec], axes: int) -> Shape:
    """The shape that PEFT gives a magnitude for each row of the weight.

    LyCORIS has it for each row with `wd_on_output`, as (out, 1, ...), and else for each column, as (1, in, ...).

    Raises:
        Unsupported: It is for the columns, or may be.
        ShapeMismatch: It is for neither.
    """
    key, shapes = module.keys["dora_scale"], {role: specs[key].shape for role, key in module.keys.items()}
    shape, first, second = shapes["dora_scale"], shapes.get("A", ()), shapes.get("B", ())
    size, rows, columns = math.prod(shape), second[:1], first[1:2]
    if (size,) == rows and (len(shape) == 1 or shape[:1] == rows or columns != rows):
        return (1, size, *(1,) * (axes - 2)) if axes > 2 else (size,)
    if (size,) == columns and len(shape) > 1 and shape[1] == size:
        raise Unsupported(
            f"{key} — a magnitude for each column of the weight",
            expected="DoRA: a magnitude for each row, which LyCORIS trains with wd_on_output",
            got=f"{list(shape)} for a weight of {rows[0]} rows and {size} columns" if rows else f"{list(shape)}",
            hint="merge the adapter with the tool that made it, and give the merged checkpoint",
        )
    raise ShapeMismatch(
        f"{key} — not a magnitude for each row of the weight",
        expected=f"{list(rows)} values",
        got=f"{list(shape)}",
        hint="the adapter file is damaged",
    )


def _config(found: Translation, source: Source, families: Mapping[str, Family]) -> AdapterConfig:
    """The config that PEFT would have saved with such an adapter.

    Raises:
        ConfigError: A scale in the file is not one.
    """
    ranks = {path: rank for path, module in found.modules.items() if (rank := _rank(module, source.specs))}
    usual = Counter(ranks.values()).most_common(1)[0][0] if ranks else 1
    said, options = _metadata(found, source, ranks, families)
    problems: list[WiseftError] = []
    alphas: dict[str, float] = {}
    for path, module in found.modules.items():
        rank = ranks.get(path)
        try:
            alpha = _alpha(module.keys["alpha"], source) if "alpha" in module.keys else said.get(path)
            # LoKr of two whole matrices has no rank, and LyCORIS scales it by 1 whatever its alpha says.
            alphas[path] = float(usual if rank is None else rank if alpha is None else alpha)
        except WiseftError as problem:
            problems.append(problem)
    WiseftError.raise_all(problems)
    default = Counter(alphas.values()).most_common(1)[0][0]
    fields = {
        **options,
        "peft_type": found.method,
        "r": usual,
        "rank_pattern": exceptions(ranks, usual),
        "lora_alpha" if found.method == "LORA" else "alpha": default,
        "alpha_pattern": exceptions(alphas, default),
    }
    return AdapterConfig.from_mapping(fields, f"the adapter, from {found.scheme}'s spelling", families)


def _rank(module: Module, specs: Mapping[str, TensorSpec]) -> int | None:
    """The rank of a module's factors; None where they have none."""
    shapes = {role: specs[key].shape for role, key in module.keys.items()}
    return next((shapes[role][0] for role in RANKED if shapes.get(role)), None)


def _alpha(key: str, source: Source) -> float:
    """The alpha that a tensor of one value holds."""
    value = float(source.read(key, 0, 1)) if source.specs[key].numel == 1 else math.nan
    if math.isfinite(value) and value:
        return value
    raise ConfigError(
        f"{key} — not an alpha",
        expected="one finite number other than 0, which means the rank to some tools and nothing to others",
        got=f"{value}" if source.specs[key].numel == 1 else f"{source.specs[key]}",
        hint="take the adapter that the training wrote, or leave this tensor out: then alpha is the rank",
    )


def _metadata(
    found: Translation, source: Source, ranks: Mapping[str, int], families: Mapping[str, Family]
) -> tuple[dict[str, float], dict[str, object]]:
    """lora_alpha of each module as the header of a file says it, and what else it says for all of them.

    Raises:
        ConfigError, CheckpointError, Unsupported: It says what cannot be meant, or differs between components.
    """
    raw = _header(source)
    if not raw:
        return {}, {}
    alphas_too = [module.keys["alpha"] for module in found.modules.values() if "alpha" in module.keys]
    if alphas_too:  # diffusers refuses both together as well
        raise ConfigError(
            f"{listed(alphas_too)} — a scale beside the config in the file's header",
            expected=f"one of the two: {METADATA}, or an alpha for each module",
            got="both",
            hint="the adapter file was put together from two: take the one that the training wrote",
        )
    table = as_mapping(load_json(raw.encode(), METADATA), METADATA)
    configs: dict[str, AdapterConfig] = {}
    alphas: dict[str, float] = {}
    for path, module in found.modules.items():
        if module.component not in configs:
            configs[module.component] = _of_component(table, module.component, families)
        alphas[path] = configs[module.component].options_at(module.spelled, OPTIONS, ranks.get(path))["lora_alpha"]
    stabilised = {config.use_rslora for config in configs.values()}
    if len(stabilised) > 1:
        raise Unsupported(
            f"{METADATA} — components that scale differently",
            expected="use_rslora alike for all components",
            got=f"parts for {listed(configs)}",
            hint="take one component at a time: component=",
        )
    return alphas, {"use_rslora": True} if stabilised == {True} else {}


def _header(source: Source) -> str:
    """What diffusers wrote of the config into a file's header; "" where it did not."""
    return source.metadata().get(METADATA, "") if isinstance(source, Checkpoint) else ""


def _of_component(table: Mapping[str, object], component: str, families: Mapping[str, Family]) -> AdapterConfig:
    """The config of one component: its fields have the component's name in front, where there is one."""
    for word, meant in COMPONENTS.items():
        if meant == component and any(name.startswith(f"{word}.") for name in table):
            own = {name.removeprefix(f"{word}."): value for name, value in table.items() if name.startswith(f"{word}.")}
            return AdapterConfig.from_mapping(own, f"{METADATA} of {word}", families)
    return AdapterConfig.from_mapping(table, METADATA, families)
