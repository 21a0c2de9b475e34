"""What may stand in an adapter's config: the methods, and for each the fields that are read, harmless or refused.

Joint floor: no torch, no files. Every field of PEFT 0.21 is read strictly, listed as harmless with the reason, or
refused with one; a field that is not known may stay only if it is not set.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Final, NamedTuple

from wiseft_core.config_fields import READERS, Reader, is_unset, option_readers, string, wrong
from wiseft_core.errors import Unsupported, WiseftError, listed
from wiseft_core.families import Family

PROMPTS: Final = "it trains prompts: there is no weight delta to interpolate"
METHODS_REFUSED: Final[Mapping[str, str]] = {
    "PROMPT_TUNING": PROMPTS,
    "MULTITASK_PROMPT_TUNING": PROMPTS,
    "P_TUNING": PROMPTS,
    "PREFIX_TUNING": PROMPTS,
    "CPT": PROMPTS,
    "CARTRIDGE": PROMPTS,
    "ADAPTION_PROMPT": PROMPTS,
    "XLORA": "it mixes LoRA adapters by gates that read the input: there is no one delta",
    "POLY": "it mixes its factors by the task that comes with each input: there is no one delta",
    "LILY": "it mixes its factors by a router that reads the input: there is no one delta",
    "SHADOW": "it runs a small network beside the model, which reads the input: there is no weight delta",
    "ADAMSS": "its factors belong to clusters of rows that are not saved: they cannot be found again for certain",
}
"""Methods of PEFT that are refused, each with the reason."""

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
        "velora_config": "how VeLoRA saves memory in the backward pass: its delta is LoRA's",
        "monteclora_config": "how MonteCLoRA draws A around its mean in training: that mean is what is saved",
        "eva_config": "how the first values were found; its ranks are in rank_pattern",
    },
    "others": {
        "target_modules": "the keys of the adapter are the truth",
        "exclude_modules": "the keys of the adapter are the truth",
        "layers_to_transform": "the keys of the adapter are the truth",
        "layers_pattern": "the keys of the adapter are the truth",
        "init_weights": "the first values, before training",
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
    "arrow_config": "Arrow routes between adapters by the input: there is no one delta",
    "alora_invocation_tokens": "aLoRA acts only behind certain tokens: there is no one delta",
}
"""Fields of LoRA that are refused where they are set, each with the reason."""

PLAIN_STARTS: Final = frozenset({"gaussian", "eva", "orthogonal", "mica", "true", "false"})
REWRITES: Final[Mapping[str, str]] = {
    "pissa_niter": "PiSSA with a randomised decomposition whose seed is not saved: it cannot be found again",
    "corda": "CorDA subtracts components from the base that need its calibration data to find again",
    "lora_ga": "LoRA-GA offsets the base by its first factors, which are not saved",
    "loftq": "LoftQ trains on a quantised copy of the base",
}
"""Values of init_lora_weights after which the adapter does not belong to the base file alone."""

NO_CHECKPOINT: Final = "no checkpoint stands for it, a merged one neither: use it with the library that trained it"
MERGED: Final = "merge this adapter with the library that trained it, and give the merged checkpoint in its place"
CONVERTED: Final = "convert it to plain LoRA when saving: path_initial_model_for_weight_conversion of save_pretrained"
HINTS: Final[Mapping[str, str]] = {
    **{
        kind: "nothing to do: the weights of the base are unchanged"
        for kind, why in METHODS_REFUSED.items()
        if why == PROMPTS
    },
    "XLORA": "interpolate one of the LoRA adapters that it mixes",
    "POLY": NO_CHECKPOINT,
    "LILY": NO_CHECKPOINT,
    "SHADOW": NO_CHECKPOINT,
    "ADAMSS": "merge it in the process that trained it, and give the merged checkpoint in its place",
    "use_qalora": "train without it: the weights of no plain checkpoint stand for it",
    "arrow_config": "interpolate one of the adapters that it routes between",
    "alora_invocation_tokens": NO_CHECKPOINT,
    "pissa_niter": CONVERTED,
    "corda": CONVERTED,
    "lora_ga": CONVERTED,
    "loftq": "merge it into the quantised copy that it was trained on, and give the merged checkpoint in its place",
}
"""What to do about a method, a field or a start that is refused, where it is not to merge."""


class Method(NamedTuple):
    """What may stand in a config of one method."""

    kind: str
    readers: dict[str, Reader]
    harmless: frozenset[str]
    starts: frozenset[object]

    @classmethod
    def of(cls, value: object, where: str, families: Mapping[str, Family]) -> Method:
        """Gather what tables and families say of a method.

        Raises:
            ConfigError, Unsupported: The value is no method's name, or that of one that is not supported.
        """
        kind = _peft_type(value, where, families)
        table = kind if kind in READERS else "others"
        own = [record for record in families.values() if record.peft == kind]
        readers = {name: reader for record in own for name, reader in option_readers(record.options).items()}
        harmless = {name for names in (HARMLESS["any"], HARMLESS[table], *(r.harmless for r in own)) for name in names}
        starts = {record.variant["init_lora_weights"] for record in own if "init_lora_weights" in record.variant}
        return cls(kind, readers | READERS["any"] | READERS[table], frozenset(harmless), frozenset(starts))


def _peft_type(value: object, where: str, families: Mapping[str, Family]) -> str:
    """The method, if it is one of those supported."""
    kind = "LORA" if value is None else string(value, where)
    supported = ["LORA", "TRAINABLE_TOKENS", *sorted({record.peft for record in families.values()} - {"", "LORA"})]
    if kind in supported:
        return kind
    reason = METHODS_REFUSED.get(kind, "not a method of PEFT 0.21")
    expected, got = f"one of {', '.join(supported)}", f"{kind} — {reason}"
    raise Unsupported(where, expected=expected, got=got, hint=HINTS.get(kind, MERGED))


def refusals(given: Mapping[str, object], method: Method, where: str) -> list[WiseftError]:
    """An error for each field that is set and would change the result in a way not supported."""
    known = {"peft_type", *method.readers, *method.harmless}
    problems: list[WiseftError] = []
    for name, value in given.items():
        if method.kind == "LORA" and name == "init_lora_weights" and not is_unset(value):
            problems += _start(value, f"{where}: {name}", method.starts)
        elif name in known or is_unset(value):
            continue
        elif method.kind == "LORA" and name in REFUSED:
            got, hint = f"{value!r} — {REFUSED[name]}", HINTS.get(name, MERGED)
            problems.append(Unsupported(f"{where}: {name}", expected="not set", got=got, hint=hint))
        else:
            expected = f"a field of {method.kind} in PEFT 0.21, or not set"
            hint = "remove it if it does not change the result"
            problems.append(Unsupported(f"{where}: {name}", expected=expected, got=repr(value), hint=hint))
    return problems


def _start(value: object, where: str, known: Set[object]) -> list[WiseftError]:
    """What is wrong with init_lora_weights: starts that rewrite the base, or are not known."""
    if not isinstance(value, bool | str):
        return [wrong(where, "true, false or a method's name", value)]
    start = str(value).lower()
    if start in PLAIN_STARTS or start in known:
        return []
    names = [name for name in REWRITES if start == name or start.startswith(f"{name}_")]
    expected = f"true, false or one of {listed((PLAIN_STARTS | known) - {'true', 'false'}, most=9)}"
    got, hint = "not known: it may rewrite the base", f"set it to true if it leaves the base alone, else {MERGED}"
    if names:
        got, hint = REWRITES[names[0]], HINTS[names[0]]
    return [Unsupported(where, expected=expected, got=f"{value!r} — {got}", hint=hint)]
