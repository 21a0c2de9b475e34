"""What `wiseft inspect` shows: an adapter as its header and config say it is. No torch, no tensor is read.

What would be refused is shown as a refusal, beside everything else that can be told.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wiseft_core.cli.output import fields, plural, size, table, tally
from wiseft_core.config import AdapterConfig
from wiseft_core.errors import ConfigError, Unsupported, WiseftError, listed
from wiseft_core.naming.peft import PeftKey, parse_keys
from wiseft_core.schedules import canonical
from wiseft_core.sources import CONFIG_FILE, WEIGHTS_FILE, open_adapter
from wiseft_core.store.checkpoint import open_checkpoint
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
        ranks: How many modules have each rank.
        scales: How many modules have each effective scale, as decimals.
        formula: Where the scale comes from.
        targets: How many modules each name has, layer numbers written as *.
        others: How many tensors of another kind there are (biases, token rows, whole tensors), by kind.
        saved: Names of the modules with whole tensors.
        dtypes: How many tensors have each dtype.
        bytes: Bytes of all tensors.
        base_model: Where the config says the base came from. Nothing is ever fetched from there.
        refusals: Why `interpolate` would refuse it, whatever the base.
    """

    path: str
    method: str
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
        """Modules with low-rank factors."""
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
            "modules": self.modules,
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
            "modules": plural(self.modules, "module") + " with low-rank factors" if self.modules else "",
            "ranks": tally(self.ranks),
            "scales": f"{tally(self.scales)}  ({self.formula})" if self.scales else "",
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
    specs = open_checkpoint(folder / WEIGHTS_FILE).specs
    parsed = _parsed(specs, refusals)
    ranks = _ranks(parsed, specs)
    base_model = said.get("base_model_name_or_path")
    return Inspection(
        path=str(folder),
        method=_method(said, parsed),
        ranks=Counter(ranks.values()),
        scales=_scales(ranks, config, refusals),
        formula="lora_alpha / sqrt(r)" if config is not None and config.use_rslora else "lora_alpha / r",
        targets=Counter(re.sub(r"(?<![^.])\d+(?![^.])", "*", module) for module in ranks),
        others=Counter(KINDS[part.role] for part in parsed.values() if part.role in KINDS),
        saved=tuple(sorted({part.module for part in parsed.values() if part.role == "value"})),
        dtypes=Counter(spec.dtype for spec in specs.values()),
        bytes=sum(spec.nbytes for spec in specs.values()),
        base_model=base_model if isinstance(base_model, str) and base_model else None,
        refusals=tuple(refusals),
    )


def _parsed(specs: Mapping[str, TensorSpec], refusals: list[WiseftError]) -> Mapping[str, PeftKey]:
    """What the keys say; nothing if they contradict each other."""
    try:
        return parse_keys(specs)
    except WiseftError as refusal:
        refusals.append(refusal)
        return {}


def _ranks(parsed: Mapping[str, PeftKey], specs: Mapping[str, TensorSpec]) -> dict[str, int]:
    """Rank of each module with low-rank factors."""
    first = {part.module: key for key, part in parsed.items() if part.role in ("A", "embedding_A")}
    return {module: specs[key].shape[0] for module, key in first.items() if specs[key].shape}


def _scales(ranks: Mapping[str, int], config: AdapterConfig | None, refusals: list[WiseftError]) -> Mapping[str, int]:
    """How many modules have each effective scale, as decimals."""
    found: Counter[str] = Counter()
    problems: list[WiseftError] = []
    if config is None:
        return found
    try:
        config.check_work(ranks)
    except WiseftError as problem:
        refusals.append(problem)
        return found
    for module, rank in ranks.items():
        try:
            found[canonical(config.scale(module, rank))] += 1
        except WiseftError as problem:
            problems.append(problem)
    refusals += problems
    return found


def _method(said: Mapping[str, object], parsed: Mapping[str, PeftKey]) -> str:
    """The field's word for what was trained."""
    roles = {part.role for part in parsed.values()}
    kind = said.get("peft_type", "LORA")
    if kind not in ("LORA", "TRAINABLE_TOKENS"):
        return str(kind)
    low_rank = bool(roles & {"A", "embedding_A"})
    plain = "rsLoRA" if said.get("use_rslora") is True else "LoRA"
    names = [("DoRA" if plain == "LoRA" else "DoRA with rsLoRA's scale") if "magnitude" in roles else plain]
    names = names if low_rank else []
    return " + ".join([*names, *(KINDS[role] for role in KINDS if role in roles)]) or str(kind)
