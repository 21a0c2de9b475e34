"""What an adapter's config says about its weights: adapter_config.json, or PEFT's `peft_config.to_dict()`.

The joint's reading glasses: no torch, no files. Every field that changes numbers is read strictly, every other field of
PEFT 0.21 is listed as harmless or refused by name, and a field that is not known may stay only if it is not set.
`lora_alpha` ends here: beyond this file there is only `scale`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from wiseft_core.config_fields import EMBEDDING, FIELDS, RENAMED, plain, tokens_by_module, whole, wrong
from wiseft_core.config_methods import Method, refusals
from wiseft_core.errors import ConfigError, ConfigNeeded, Unsupported, WiseftError, listed
from wiseft_core.families import FAMILIES, MODULES, Family, Option, Options
from wiseft_core.families.lora import LORA
from wiseft_core.naming.patterns import compile_pattern, first_match, matches, run

MAX_WORK: Final = 3_000_000
"""States visited by all patterns on all modules."""
PLAIN_PER_STEP: Final = 4
"""Modules that a pattern without states is matched to in the time of one step."""


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """The fields of an adapter's config that change numbers.

        scale = lora_alpha / r, or lora_alpha / sqrt(r) with use_rslora

    `None` means that the config does not say. Patterns keep the order of the file: the first that matches counts.
    """

    peft_type: str = "LORA"
    lora_alpha: float | None = None
    r: int | None = None
    use_rslora: bool = False
    use_dora: bool | None = None
    lora_bias: bool | None = None
    use_bdlora: bool | None = None
    kasa_config: bool | None = None
    bias: str = "none"
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    modules_to_save: tuple[str, ...] = ()
    fan_in_fan_out: bool = False
    task_type: str | None = None
    trainable_token_indices: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    ensure_weight_tying: bool = False
    target_parameters: tuple[str, ...] = ()
    layer_replication: tuple[tuple[int, int], ...] = ()
    base_model: str | None = None
    peft_version: str | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    """What the formulas of other methods read, by PEFT's names; see `Family.options`."""
    fields: Mapping[str, object] = field(default_factory=dict, compare=False, repr=False)
    """Every field as it was given, as JSON has it: what an adapter made from this one is saved with."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant in a config that was not read but built; its method is checked where it is used.

        Raises:
            ConfigError: A field has a value that reading would refuse. All problems come at once.
        """
        problems: list[WiseftError] = []
        for name, reader in FIELDS.items():
            try:
                if getattr(self, name) is not None:
                    reader(plain(getattr(self, name)), f"AdapterConfig: {name}")
            except WiseftError as problem:
                problems.append(problem)
        WiseftError.raise_all(problems)

    @classmethod
    def from_mapping(
        cls, raw: Mapping[str, object], where: str = "config", families: Mapping[str, Family] = FAMILIES
    ) -> AdapterConfig:
        """The config in `raw`: adapter_config.json's object, `peft_config.to_dict()`, or just {"lora_alpha": 16}.

        Args:
            raw: The fields.
            where: What they are of, for errors.
            families: The methods to know.
        Raises:
            ConfigError: A field has a value that cannot be meant. All problems come at once.
            Unsupported: The method, an option or a set field that is not known would change the result.
        """
        if not isinstance(raw, Mapping):
            raise wrong(where, "a mapping of field names to values", raw)
        given = {key: plain(value) for key, value in raw.items()}
        method = Method.of(given.get("peft_type"), f"{where}: peft_type", families)
        kind, start = method.kind, str(given.get("init_lora_weights")).lower()
        problems: list[WiseftError] = []
        options: dict[str, object] = {"init_lora_weights": start} if start in method.starts else {}
        read: dict[str, object] = {"peft_type": kind, "fields": dict(given), "options": options}
        if kind == "TRAINABLE_TOKENS":
            given["trainable_token_indices"] = tokens_by_module(given, where)
        for name, reader in method.readers.items():
            try:
                if given.get(name) is not None:
                    own = RENAMED.get(name, name)
                    (read if own in cls.__dataclass_fields__ else options)[own] = reader(
                        given[name], f"{where}: {name}"
                    )
            except WiseftError as problem:
                problems.append(problem)
        WiseftError.raise_all(problems + refusals(given, method, where))
        return cls(**read)  # type: ignore[arg-type]

    @property
    def trained_class(self) -> object:
        """The class of the model that it was trained on, where PEFT wrote that down."""
        mapping = self.fields.get("auto_mapping")
        return mapping.get("base_model_class") if isinstance(mapping, Mapping) else None

    @property
    def trained_type(self) -> str | None:
        """The model type that it was trained on, where PEFT wrote down the module of transformers that has it."""
        mapping = self.fields.get("auto_mapping")
        library = mapping.get("parent_library") if isinstance(mapping, Mapping) else None
        parts = library.split(".") if isinstance(library, str) else []
        return parts[2] if parts[:2] == ["transformers", "models"] and len(parts) > 2 else None

    def said(self, name: str) -> object:
        """What the config says of a field that changes numbers; None for nothing."""
        return self.options.get(name, getattr(self, name, None))

    def said_at(self, module: str, wanted: Mapping[str, Option]) -> dict[str, object]:
        """What the config says at `module` of each wanted option that it speaks of; defaults are filled in.

        Args:
            module: Path of the module, without `base_model.model.`: patterns are matched against it.
            wanted: Options by name.
        """
        found: dict[str, object] = {}
        for name, option in wanted.items():
            patterns = self.said(option.pattern) if option.pattern is not None else None
            match = first_match(patterns, module) if isinstance(patterns, Mapping) else None
            value = self.said(name) if match is None else match[1]
            if option.kind == MODULES:
                value = _lists(value, module)
            value = option.default if value is None else value
            if value is not None:
                found[name] = value
        return found

    def options_at(self, module: str, wanted: Mapping[str, Option], rank: int | None = None) -> Options:
        """Every wanted option as it is at `module`.

        Args:
            module: As for `said_at`.
            wanted: Options by name; "r" is the rank.
            rank: The rank of the module's factors, as their shapes say; None if they have none.

        Raises:
            ConfigNeeded: The config does not say what is never guessed.
            ConfigError: It asks for another rank than the factors have.
        """
        found = self.said_at(module, wanted)
        if "r" in wanted and rank is not None:
            said = found.get("r")
            if rank < 1 or (said is not None and said != rank):
                match = first_match(self.rank_pattern, module)
                source = "r" if match is None else f"rank_pattern[{match[0]!r}]"
                raise ConfigError(
                    f"rank of {module}",
                    expected=f"{said} ({source} of the config)" if said is not None else "at least 1",
                    got=f"{rank} (shape of the factors)",
                    hint="config and tensors belong to different adapters, or the rank was changed in one of them",
                )
            found["r"] = rank
        for name in wanted.keys() - found.keys():
            raise ConfigNeeded(
                f"scale of {module}" if name == "lora_alpha" else f"{name} of {module}",
                expected=f"{name} in the adapter's config",
                got=f"no {name}",
                hint=f'give config={{"{name}": ...}}, the value used in training: {name} is never guessed',
            )
        return found

    def scale(self, module: str, rank: int) -> float:
        """The factor in front of B·A at `module`, in float64: lora_alpha / rank, or / sqrt(rank) for rsLoRA.

        Args:
            module: Path of the module, without `base_model.model.`: patterns are matched against it.
            rank: The rank of its factors, as their shapes say.

        Raises:
            ConfigNeeded: Neither lora_alpha nor a pattern of alpha_pattern settles it.
            ConfigError: The config asks for another rank than the factors have.
        """
        return LORA.scale(self.options_at(module, LORA.options, rank)) if LORA.scale is not None else 1.0

    def check_work(self, modules: Iterable[str]) -> None:
        """Refuse patterns that would keep a machine busy over `modules`, before the first of them is matched.

        Raises:
            Unsupported: Matching takes more steps than any adapter needs.
        """
        patterns = [compile_pattern(text) for text in self._patterns()]
        paths, work = list(modules), 0
        light = paths[::PLAIN_PER_STEP]
        for pattern in patterns:
            for active in (active for path in paths for active in run(pattern, path)) if pattern.states else [light]:
                work += len(active)
                if work > MAX_WORK:
                    raise Unsupported(
                        f"rank_pattern and alpha_pattern — too much work for {len(paths)} modules",
                        expected=f"at most {MAX_WORK} steps to match them all",
                        got="more",
                        hint="write fewer or simpler patterns: one per group of modules is enough",
                    )

    def unused_patterns(self, modules: Iterable[str]) -> tuple[str, ...]:
        """The keys of rank_pattern and alpha_pattern that match none of `modules`."""
        paths = tuple(modules)
        return tuple(p for p in self._patterns() if not any(matches(compile_pattern(p), path) for path in paths))

    def _patterns(self) -> dict[str, None]:
        """The keys of rank_pattern, alpha_pattern and their like, each once."""
        others = [table for table in self.options.values() if isinstance(table, Mapping)]
        return dict.fromkeys(key for table in (self.rank_pattern, self.alpha_pattern, *others) for key in table)

    def wraps(self, module: str) -> bool:
        """Whether parameters of `module` are listed: the keys of their factors name the module alone, not which."""
        paths = [entry.rpartition(".")[0] for entry in self.target_parameters]
        return any(f".{module}".endswith(f".{path}") for path in paths)

    def token_rows(self, module: str) -> tuple[int, ...]:
        """The rows of `module` that were trained.

        PEFT fits names by their ends, and writes a lone list of tokens for the input embedding whatever its name:
        that is kept as "embed_tokens".

        Raises:
            ConfigError: The config lists no rows for it, or several entries that disagree.
        """
        entries = self.trainable_token_indices
        fitting = {rows for name, rows in entries.items() if module.endswith(name)}
        if not fitting and list(entries) == [EMBEDDING]:
            fitting = {entries[EMBEDDING]}
        if len(fitting) != 1:
            raise ConfigError(
                f"trained rows of {module}",
                expected="one list of token indices for it in the config",
                got=f"{len(fitting)} that fit, among entries for {listed(entries) or 'nothing'}",
                hint="give the config that was saved beside these tensors",
            )
        return fitting.pop()


def _lists(listed: object, module: str) -> bool:
    """Whether an option that lists modules has this one: by the end of its name, or by a pattern, as in PEFT."""
    if isinstance(listed, str):
        return matches(compile_pattern(whole(listed)), module)
    return isinstance(listed, tuple) and module.endswith(listed)
