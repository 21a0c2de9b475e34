"""What an adapter's config says about its weights: adapter_config.json, or PEFT's `peft_config.to_dict()`.

The joint's reading glasses: no torch, no files. Every field that changes numbers is read strictly, every other field of
PEFT 0.21 is listed as harmless or refused by name, and a field that is not known may stay only if it is not set.
`lora_alpha` ends here: beyond this file there is only `scale`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from wiseft_core.config_fields import EMBEDDING, READERS, RENAMED, is_unset, plain, string, tokens_by_module, wrong
from wiseft_core.errors import ConfigError, ConfigNeeded, Unsupported, WiseftError, listed
from wiseft_core.naming.patterns import compile_pattern, first_match, matches, run

MAX_WORK: Final = 3_000_000
"""States visited by all patterns on all modules."""
PLAIN_PER_STEP: Final = 4
"""Modules that a pattern without states is matched to in the time of one step."""
SUPPORTED: Final = ("LORA", "TRAINABLE_TOKENS")
PROMPT_METHODS: Final = frozenset(
    ["PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE", "ADAPTION_PROMPT"]
)

HARMLESS: Final[Mapping[str, Mapping[str, str]]] = {
    "any": {
        "auto_mapping": "how PEFT finds the model's class",
        "revision": "of the base model: its files are given by the user",
        "inference_mode": "whether gradients flow",
        "merge_weights": "a switch of the first PEFT versions, for running only",
    },
    "LORA": {
        "target_modules": "the keys of the adapter are the truth",
        "exclude_modules": "the keys of the adapter are the truth",
        "layers_to_transform": "the keys of the adapter are the truth",
        "layers_pattern": "the keys of the adapter are the truth",
        "lora_dropout": "active in training only",
        "megatron_config": "how layers are split over devices",
        "megatron_core": "a module name for the same",
        "runtime_config": "never saved, changes speed only",
        "qalora_group_size": "read with use_qalora only, which is refused",
        "loftq_config": "read with init_lora_weights='loftq' only, which is refused",
        "corda_config": "read with init_lora_weights='corda' only, which is refused",
        "lora_ga_config": "read with init_lora_weights='lora_ga' only, which is refused",
        "eva_config": "how the first values were found; its ranks are in rank_pattern",
    },
    "TRAINABLE_TOKENS": {
        "init_weights": "the first values, before training",
        "target_modules": "read with token_indices, into trainable_token_indices",
        "token_indices": "read with target_modules, into trainable_token_indices",
    },
}
"""Fields that do not change what the adapter's tensors mean, by method, each with the reason."""

REFUSED: Final[Mapping[str, str]] = {
    "use_qalora": "QALoRA pools the input in groups: its delta is not a LoRA delta, and PEFT does not merge it either",
    "use_bdlora": "BD-LoRA keeps block-diagonal factors as one narrow matrix",
    "arrow_config": "Arrow routes between adapters by the input: there is no one delta",
    "kasa_config": "KaSA truncates the base's singular values when it loads: its base is not the base file",
    "velora_config": "VeLoRA saves a projection beside its factors, which is not read here",
    "monteclora_config": "MonteCLoRA saves sampler states beside its factors, which are not read here",
    "alora_invocation_tokens": "aLoRA acts only behind certain tokens: there is no one delta",
    "layer_replication": "the tuned model has more layers than the base file",
    "target_parameters": "the keys do not name the parameter that they change",
}
"""Fields of LoRA that are refused where they are set, each with the reason."""

PLAIN_STARTS: Final = frozenset({"gaussian", "eva", "orthogonal", "mica", "true", "false"})
REWRITES: Final[Mapping[str, str]] = {
    "pissa": "PiSSA subtracts the base's largest singular components from it before training",
    "olora": "OLoRA subtracts a QR product from the base before training",
    "corda": "CorDA subtracts components from the base that need its calibration data to find again",
    "lora_ga": "LoRA-GA offsets the base by its first factors, which are not saved",
    "loftq": "LoftQ trains on a quantised copy of the base",
}
"""Values of init_lora_weights after which the adapter does not belong to the base file alone."""


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
    bias: str = "none"
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    modules_to_save: tuple[str, ...] = ()
    fan_in_fan_out: bool = False
    task_type: str | None = None
    trainable_token_indices: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    ensure_weight_tying: bool = False
    base_model: str | None = None
    peft_version: str | None = None
    fields: Mapping[str, object] = field(default_factory=dict, compare=False, repr=False)
    """Every field as it was given, as JSON has it: what an adapter made from this one is saved with."""

    @classmethod
    def from_mapping(cls, raw: Mapping[str, object], where: str = "config") -> AdapterConfig:
        """The config in `raw`: adapter_config.json's object, `peft_config.to_dict()`, or just {"lora_alpha": 16}.

        Raises:
            ConfigError: A field has a value that cannot be meant. All problems come at once.
            Unsupported: The method, an option or a set field that is not known would change the result.
        """
        if not isinstance(raw, Mapping):
            raise wrong(where, "a mapping of field names to values", raw)
        given = {key: plain(value) for key, value in raw.items()}
        kind = _peft_type(given.get("peft_type"), f"{where}: peft_type")
        readers = READERS["any"] | READERS[kind]
        problems: list[WiseftError] = []
        read: dict[str, object] = {"peft_type": kind, "fields": dict(given)}
        if kind == "TRAINABLE_TOKENS":
            given["trainable_token_indices"] = tokens_by_module(given, where)
        for name, reader in readers.items():
            try:
                if given.get(name) is not None:
                    read[RENAMED.get(name, name)] = reader(given[name], f"{where}: {name}")
            except WiseftError as problem:
                problems.append(problem)
        WiseftError.raise_all(problems + _refusals(given, kind, where))
        return cls(**read)  # type: ignore[arg-type]

    def scale(self, module: str, rank: int) -> float:
        """The factor in front of B·A at `module`, in float64: lora_alpha / rank, or / sqrt(rank) for rsLoRA.

        Args:
            module: Path of the module, without `base_model.model.`: patterns are matched against it.
            rank: The rank of its factors, as their shapes say.

        Raises:
            ConfigNeeded: Neither lora_alpha nor a pattern of alpha_pattern settles it.
            ConfigError: The config asks for another rank than the factors have.
        """
        by_rank, by_alpha = first_match(self.rank_pattern, module), first_match(self.alpha_pattern, module)
        said = self.r if by_rank is None else by_rank[1]
        lora_alpha = self.lora_alpha if by_alpha is None else by_alpha[1]
        if rank < 1 or (said is not None and said != rank):
            source = "r" if by_rank is None else f"rank_pattern[{by_rank[0]!r}]"
            raise ConfigError(
                f"rank of {module}",
                expected=f"{said} ({source} of the config)" if said is not None else "at least 1",
                got=f"{rank} (shape of the factors)",
                hint="config and tensors belong to different adapters, or the rank was changed in one of them",
            )
        if lora_alpha is None:
            raise ConfigNeeded(
                f"scale of {module}",
                expected="lora_alpha in the adapter's config",
                got="no lora_alpha",
                hint='give config={"lora_alpha": ...}, the value used in training: lora_alpha is never guessed',
            )
        return lora_alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def check_work(self, modules: Iterable[str]) -> None:
        """Refuse patterns that would keep a machine busy over `modules`, before the first of them is matched.

        Raises:
            Unsupported: Matching takes more steps than any adapter needs.
        """
        patterns = [compile_pattern(text) for text in dict.fromkeys([*self.rank_pattern, *self.alpha_pattern])]
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
        patterns = dict.fromkeys([*self.rank_pattern, *self.alpha_pattern])
        return tuple(p for p in patterns if not any(matches(compile_pattern(p), path) for path in paths))

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


def _peft_type(value: object, where: str) -> str:
    """The method, if it is one of those supported."""
    kind = "LORA" if value is None else string(value, where)
    if kind in SUPPORTED:
        return kind
    got = kind
    hint = "merge this adapter with the library that trained it, and give the merged checkpoint in its place"
    if kind in PROMPT_METHODS:
        got = f"{kind} — it trains prompts: there is no weight delta to interpolate"
        hint = "nothing to do here: the weights of the base are unchanged"
    raise Unsupported(where, expected=" or ".join(SUPPORTED), got=got, hint=hint)


def _refusals(given: Mapping[str, object], kind: str, where: str) -> list[WiseftError]:
    """An error for each field that is set and would change the result in a way not supported."""
    tables = (READERS["any"], READERS[kind], HARMLESS["any"], HARMLESS[kind])
    known = {"peft_type"}.union(*tables)
    problems: list[WiseftError] = []
    for name, value in given.items():
        if name in known or is_unset(value):
            continue
        if kind == "LORA" and name == "init_lora_weights":
            problems += _start(value, f"{where}: {name}")
        elif kind == "LORA" and name in REFUSED:
            got, hint = f"{value!r} — {REFUSED[name]}", "train without it, or merge with PEFT where it can"
            problems.append(Unsupported(f"{where}: {name}", expected="not set", got=got, hint=hint))
        else:
            expected, hint = f"a field of {kind} in PEFT 0.21, or not set", "remove it if it does not change the result"
            problems.append(Unsupported(f"{where}: {name}", expected=expected, got=repr(value), hint=hint))
    return problems


def _start(value: object, where: str) -> list[WiseftError]:
    """What is wrong with init_lora_weights: starts that rewrite the base, or are not known."""
    if not isinstance(value, bool | str):
        return [wrong(where, "true, false or a method's name", value)]
    start = str(value).lower()
    if start in PLAIN_STARTS:
        return []
    reasons = [reason for name, reason in REWRITES.items() if start == name or start.startswith(f"{name}_")]
    hint = "convert the adapter to plain LoRA when saving (path_initial_model_for_weight_conversion), where PEFT can"
    got = f"{value!r} — {reasons[0] if reasons else 'not known: it may rewrite the base'}"
    return [Unsupported(where, expected=f"true, false or one of {listed(PLAIN_STARTS, most=9)}", got=got, hint=hint)]
