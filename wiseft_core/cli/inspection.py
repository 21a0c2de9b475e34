"""What `wiseft inspect` shows: an adapter as its header and config say it is. No torch, no tensor is read.

What would be refused is shown as a refusal, beside everything else that can be told.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wiseft_core.cli.output import fields, plural, size, table, tally
from wiseft_core.config import AdapterConfig
from wiseft_core.config_fields import plain
from wiseft_core.errors import ConfigError, Unsupported, WiseftError, listed
from wiseft_core.families import FAMILIES
from wiseft_core.methods import CARRIED, family_of, ranks, suffixes
from wiseft_core.naming.peft import PeftKey, parse_keys
from wiseft_core.naming.schemes import HINT, SCHEMES, detect
from wiseft_core.schedules import canonical
from wiseft_core.sites import Site, collect
from wiseft_core.sources import CONFIG_FILE, WEIGHTS_FILE, open_adapter
from wiseft_core.store.checkpoint import open_checkpoint
from wiseft_core.store.hub import found as found_at
from wiseft_core.store.strict_json import as_mapping, read_json
from wiseft_core.types import TensorSpec

KINDS = {"bias": "biases trained with B", "rows": "token rows", "value": "whole tensors"}
TARGETS_SHOWN = 30


@dataclass(frozen=True, slots=True)
class Inspection:
    """What an adapter is.

    Attributes:
        path: Its folder.
        method: The method's name, or what the config calls a method that is not supported.
        options: What else the config says that the method's formula reads, by PEFT's names; not for LoRA.
        factors: How many factors of each role there are.
        ranks: How many modules have each rank, where the method has one.
        scales: How many modules have each effective scale, as decimals.
        formula: Where the scale comes from.
        targets: How many modules each name has, layer numbers written as *.
        others: How many tensors of another kind there are (biases, token rows, whole tensors), by kind.
        saved: Names of the modules with whole tensors, other than a bias alone.
        dtypes: How many tensors have each dtype.
        bytes: Bytes of all tensors.
        base_model: Where the config says the base came from. Nothing is ever fetched from there.
        refusals: Why `interpolate` would refuse it, whatever the base.
        spelling: The tool whose spelling its keys have.
    """

    path: str
    method: str
    spelling: str = "peft"
    options: Mapping[str, object] = field(default_factory=dict)
    factors: Mapping[str, int] = field(default_factory=dict)
    ranks: Mapping[int, int] = field(default_factory=dict)
    scales: Mapping[str, int] = field(default_factory=dict)
    formula: str = ""
    targets: Mapping[str, int] = field(default_factory=dict)
    others: Mapping[str, int] = field(default_factory=dict)
    saved: tuple[str, ...] = ()
    dtypes: Mapping[str, int] = field(default_factory=dict)
    bytes: int = 0
    base_model: str | None = None
    refusals: tuple[WiseftError, ...] = ()

    @property
    def modules(self) -> int:
        """Modules with factors."""
        return sum(self.targets.values())

    @property
    def exit_code(self) -> int:
        """That of the first refusal, or 0."""
        return self.refusals[0].exit_code if self.refusals else 0

    def as_dict(self) -> dict[str, Any]:
        """The inspection as JSON sees it."""
        return {
            "format": "wiseft-inspect/1",
            "path": self.path,
            "method": self.method,
            "spelling": self.spelling,
            "options": dict(self.options),
            "modules": self.modules,
            "factors": dict(self.factors),
            "ranks": {str(rank): count for rank, count in self.ranks.items()},
            "scales": dict(self.scales),
            "scale_formula": self.formula,
            "targets": dict(self.targets),
            "others": dict(self.others),
            "saved_modules": list(self.saved),
            "dtypes": dict(self.dtypes),
            "bytes": self.bytes,
            "base_model_name_or_path": self.base_model,
            "refusals": [refusal.as_dict() for refusal in self.refusals],
        }

    def text(self) -> str:
        """The inspection for a human."""
        values = {
            "adapter": self.path,
            "method": self.method,
            "spelling": "" if self.spelling == "peft" else self.spelling,
            "options": ", ".join(f"{name} {json.dumps(value)}" for name, value in self.options.items()),
            "modules": plural(self.modules, "module") + " with factors" if self.modules else "",
            "factors": tally(self.factors),
            "ranks": tally(self.ranks),
            "scales": f"{tally(self.scales)}  ({self.formula})" if self.formula and self.scales else tally(self.scales),
            "besides": ", ".join(f"{count} {kind}" for kind, count in self.others.items()),
            "whole": listed(self.saved, most=10),
            "tensors": f"{tally(self.dtypes)}, {size(self.bytes)}",
            "base": f"{self.base_model} (as the config says; not opened)" if self.base_model else "",
        }
        rows = sorted(self.targets.items())
        lines = [fields(values)]
        if rows:
            lines += ["", table(("target", "modules"), rows[:TARGETS_SHOWN])]
        if len(rows) > TARGETS_SHOWN:
            lines.append(f"and {len(rows) - TARGETS_SHOWN} more")
        return "\n".join(lines)


def inspect_adapter(path: Path) -> Inspection:
    """Look at the adapter at `path`.

    Raises:
        CheckpointError: There is no adapter, or it is damaged.
        Unsupported: Its weights are not in a safetensors file.
        Fault: The operating system cannot read it.
    """
    path = found_at(path)
    if (spelled := _spelled(path)) is not None:
        return spelled
    folder = path.parent if path.name == WEIGHTS_FILE else path
    refusals: list[WiseftError] = []
    config: AdapterConfig | None = None
    try:
        config = open_adapter(path).config
    except (ConfigError, Unsupported) as refusal:
        if not (folder / WEIGHTS_FILE).exists():
            raise
        refusals.append(refusal)
    said = as_mapping(read_json(folder / CONFIG_FILE), f"{folder / CONFIG_FILE}")
    kind = str(said.get("peft_type") or "LORA")
    specs = open_checkpoint(folder / WEIGHTS_FILE).specs
    parsed, sites = _parsed(specs, kind, refusals)
    found = ranks(sites, specs, FAMILIES)
    if config is not None:  # a stack's factors have a rank for each matrix, and only the base tells how many
        found = {module: None if config.wraps(module) else rank for module, rank in found.items()}
    families = _families(sites, config, refusals)
    base_model = said.get("base_model_name_or_path")
    return Inspection(
        path=str(folder),
        method=_method(kind, said, parsed, families),
        options={} if kind == "LORA" or config is None else _options(kind, config),
        factors=Counter(part.role for part in parsed.values() if part.role not in (*CARRIED, "ignored")),
        ranks=Counter(rank for rank in found.values() if rank is not None),
        scales=_scales(found, families, config, refusals),
        formula=_formula(kind, config),
        targets=Counter(re.sub(r"(?<![^.])\d+(?![^.])", "*", module) for module in found),
        others=Counter(KINDS[part.role] for part in parsed.values() if part.role in KINDS and not part.method),
        saved=tuple(sorted({part.module for part in parsed.values() if _is_saved(part)})),
        dtypes=Counter(spec.dtype for spec in specs.values()),
        bytes=sum(spec.nbytes for spec in specs.values()),
        base_model=base_model if isinstance(base_model, str) and base_model else None,
        refusals=tuple(refusals),
    )


def _spelled(path: Path) -> Inspection | None:
    """An adapter in another spelling than PEFT's: what its keys say; None for one of PEFT's, or one that is none."""
    folder = path if path.is_dir() else path.parent
    if path.name == WEIGHTS_FILE or (path.is_dir() and (folder / CONFIG_FILE).exists()):
        return None
    try:
        specs = open_checkpoint(path).specs
    except WiseftError:
        return None  # not a checkpoint at all: then it is refused as an adapter
    scheme = detect(specs)
    if scheme is None:
        return None
    words = {key: word for key in specs if (word := SCHEMES[scheme].parse(key)) is not None}
    expected = "keys of LoRA, DoRA, LoHa or LoKr"
    strange = [Unsupported(f"{k} — {w.why}", expected=expected, got=k, hint=HINT) for k, w in words.items() if w.why]
    methods = {word.method for word in words.values()} - {""}
    doubled = any(word.role in ("magnitude", "dora_scale") for word in words.values())
    sizes = {word.module: specs[key].shape[0] for key, word in words.items() if word.role == "A" and specs[key].shape}
    modules = {(word.component, word.module) for word in words.values()}
    return Inspection(
        path=str(path),
        method=" + ".join(sorted(methods)) if methods != {"LORA"} else "DoRA" if doubled else "LoRA",
        spelling=scheme,
        factors=Counter(word.role for word in words.values() if word.role != "alpha"),
        ranks=Counter(sizes.values()),
        formula="alpha / r, of the file's .alpha",
        targets=Counter(re.sub(r"(?<![^._])\d+(?![^._])", "*", ".".join(filter(None, each))) for each in modules),
        dtypes=Counter(spec.dtype for spec in specs.values()),
        bytes=sum(spec.nbytes for spec in specs.values()),
        refusals=tuple(strange),
    )


def _parsed(
    specs: Mapping[str, TensorSpec], kind: str, refusals: list[WiseftError]
) -> tuple[Mapping[str, PeftKey], tuple[Site, ...]]:
    """What the keys say, and the parameters that they speak of; nothing if they contradict each other."""
    try:
        parsed = parse_keys(specs, suffixes=suffixes(FAMILIES, AdapterConfig(peft_type=kind)))
        return parsed, collect(parsed)
    except WiseftError as refusal:
        refusals.append(refusal)
        return {}, ()


def _is_saved(part: PeftKey) -> bool:
    """Whether a key is a whole tensor of a module that was saved: a bias of bias="all" and a prompt are of none."""
    return part.role == "value" and part.parameter != "bias" and bool(part.module)


def _families(sites: Iterable[Site], config: AdapterConfig | None, refusals: list[WiseftError]) -> dict[str, str]:
    """The family of each module whose weight has factors, as far as it can be told."""
    found: dict[str, str] = {}
    for site in sites:
        roles = {role.removeprefix("embedding_") for role in site.factors.keys() - CARRIED}
        if roles and site.parameter == "weight":
            try:
                found[site.module] = family_of(site, roles, config, FAMILIES)
            except WiseftError as refusal:
                refusals.append(refusal)
    return found


def _scales(
    sizes: Mapping[str, int | None],
    families: Mapping[str, str],
    config: AdapterConfig | None,
    refusals: list[WiseftError],
) -> Mapping[str, int]:
    """How many modules have each effective scale, as decimals; none where the method has no scale."""
    found: Counter[str] = Counter()
    problems: list[WiseftError] = []
    if config is None:
        return found
    try:
        config.check_work(sizes)
    except WiseftError as problem:
        refusals.append(problem)
        return found
    for module, family in families.items():
        if config.wraps(module):
            continue
        try:
            record = FAMILIES[family]
            options = config.options_at(module, record.options, sizes.get(module))
            if record.scale is not None:
                found[canonical(record.scale(options))] += 1
        except WiseftError as problem:
            problems.append(problem)
    refusals += problems
    return found


def _formula(kind: str, config: AdapterConfig | None) -> str:
    """Where the scale of a LoRA comes from."""
    if kind != "LORA":
        return ""
    return "lora_alpha / sqrt(r)" if config is not None and config.use_rslora else "lora_alpha / r"


def _options(kind: str, config: AdapterConfig) -> dict[str, object]:
    """What the config says, or leaves at PEFT's default, of what the formulas of a method read."""
    found: dict[str, object] = {}
    for record in FAMILIES.values():
        for name, option in record.options.items() if record.peft == kind else ():
            said = config.said(name)
            fixed = isinstance(option.kind, tuple) and len(option.kind) == 1
            found |= {} if fixed else {name: plain(option.default if said is None else said)}
            pattern = config.said(option.pattern) if option.pattern is not None else None
            found |= {str(option.pattern): plain(pattern)} if pattern else {}
    return {name: value for name, value in found.items() if value is not None}


def _method(kind: str, said: Mapping[str, object], parsed: Mapping[str, PeftKey], families: Mapping[str, str]) -> str:
    """The field's word for what was trained."""
    if kind not in ("LORA", "TRAINABLE_TOKENS"):
        return kind
    roles = {part.role for part in parsed.values()}
    rooted = said.get("use_rslora") is True
    words = {"lora": "rsLoRA" if rooted else "LoRA", "dora": "DoRA with rsLoRA's scale" if rooted else "DoRA"}
    names = [words.get(family, family) for family in sorted(set(families.values()))]
    return " + ".join([*names, *(KINDS[role] for role in KINDS if role in roles)]) or kind
