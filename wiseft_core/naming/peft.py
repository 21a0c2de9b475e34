"""How PEFT spells the tensors of an adapter, as saved and in a live model.

Naming room. Both spellings mean the same tensor:

    saved   base_model.model.X.lora_A.weight            (`base_model.model.` may be missing)
    live    base_model.model.X.lora_A.default.weight    (the adapter's name in it)

A live model also shows its own tensors, under the names of PEFT's wrappers (`X.base_layer.weight`), and copies that
were never trained. Every key parses: a tuner that is not known here gives a "value" of a module that no base has
(`X.hada_w1_a`, `X.lora_C.weight`), which is refused later as unclaimed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from wiseft_core.errors import AmbiguousName, BindingError, WiseftError, listed

PREFIX: Final = "base_model.model."
MODEL: Final = "base_model."
COMPILED: Final = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
IGNORED: Final = "ignored"
CARRIED: Final = "carried"
UNUSED: Final = frozenset({IGNORED, CARRIED})
"""The roles of what means nothing for the weights."""
COUNTER: Final = "num_batches_tracked"


class PeftKey(NamedTuple):
    """What an adapter key says.

    Attributes:
        module: Path of the module in the base model. Of factors below a `base_layer` (PEFT nests them for
            `target_parameters` and attention), and below more than one, it keeps that component: such a path fits no
            base module, because the key does not say which parameter is meant.
        parameter: The parameter of the module that it changes.
        role: "A", "B", "embedding_A", "embedding_B", "magnitude", "bias" (the bias of B), "rows", "value" (a whole
            tensor), "ignored" (a copy that was not trained) or "carried" (read in training only, and saved).
        adapter: The adapter's name, where the key carries one.
        wrapped: For "value", that it was below `base_layer`; for "rows", that it was below `token_adapter`.
        method: PEFT's word for the method that has such keys; "" for LoRA and for what comes with every method.
        shared: Whether it is a tensor of the whole model, a factor of many modules.
        group: Which modules share it, or share what this one does; "" where all do.
    """

    module: str
    parameter: str
    role: str
    adapter: str | None
    wrapped: bool = False
    method: str = ""
    shared: bool = False
    group: str = ""


class Suffix(NamedTuple):
    """The end of a key that makes it a factor: `stem`, then the adapter's name if live, then `leaf`.

    The stem of a `shared` one stands below the model itself, or below a module as a copy of that. A leaf "*" is the
    name of a group of modules, with the adapter's name behind it; `group` gives the group that a module is in.
    """

    stem: str
    leaf: str
    role: str
    parameter: str = "weight"
    method: str = ""
    shared: bool = False
    group: Callable[[str], str] | None = None


READ_IN_TRAINING: Final = (
    ("lora_velora_embed", ""),
    ("lora_monteclora_sampler", "std_prior"),
    ("lora_monteclora_sampler", "gaussian_var_prior"),
    ("lora_monteclora_sampler", "expert_weights"),
    ("lora_monteclora_sampler", "expert_weights_prior"),
)
"""Stems and leaves of what LoRA's variants keep beside its factors: their deltas do not depend on it."""
SUFFIXES: Final = (
    Suffix("lora_A", "weight", "A"),
    Suffix("lora_B", "weight", "B"),
    Suffix("lora_B", "bias", "bias", "bias"),
    Suffix("lora_embedding_A", "", "embedding_A"),
    Suffix("lora_embedding_B", "", "embedding_B"),
    Suffix("lora_magnitude_vector", "", "magnitude"),
    Suffix("lora_magnitude_vector", "weight", "magnitude"),
    Suffix("lora_diag", "", "diag"),
    *(Suffix(stem, leaf, CARRIED, leaf or stem) for stem, leaf in READ_IN_TRAINING),
    Suffix("trainable_tokens_delta", "", "rows"),
    Suffix("trainable_tokens_original", "", IGNORED),
)
"""The keys of LoRA, and those that may come with every method; the other families bring their own."""


def suffix_of(key: str, meaning: str, method: str, group: Callable[[str], str] | None = None) -> Suffix:
    """A family's spelling as a suffix: "oft_R.weight" and "R", "base_model.vera_A" and "A", "x" and "bias trained"."""
    tail = key.removeprefix(MODEL)
    stem, _, leaf = tail.partition(".")
    parameter, _, role = meaning.rpartition(" ")
    return Suffix(stem, leaf, role, parameter or "weight", method, tail != key, group)


def parse_key(key: str, suffixes: Sequence[Suffix] = SUFFIXES) -> PeftKey:
    """The meaning of one key: as saved, with or without `base_model.model.`, or of a live model."""
    parts = [part for part in key.split(".") if part not in COMPILED] or [key]
    if ".".join(parts).startswith(PREFIX):
        parts = parts[2:]
    return _factor(parts, suffixes) or _value(parts)


def parse_keys(
    keys: Iterable[str], adapter: str | None = None, suffixes: Sequence[Suffix] = SUFFIXES
) -> Mapping[str, PeftKey]:
    """The meaning of all keys of one adapter, by key, in their order.

    Args:
        keys: The keys of an adapter file, of `get_peft_model_state_dict`, or of a live model's `state_dict`.
        suffixes: The ends of keys that make factors.
        adapter: Which adapter is meant, where the keys name several; the others are then "ignored". Keys that name
            none belong to every choice.

    Raises:
        AmbiguousName: The keys name several adapters and none is chosen, or two keys mean the same tensor.
        BindingError: The keys name adapters, and the chosen one is not among them.
    """
    parsed = {key: parse_key(key, suffixes) for key in keys}
    names = {p.adapter for p in parsed.values() if p.adapter is not None}
    if adapter is None and len(names) > 1:
        raise AmbiguousName(
            "adapter keys name several adapters",
            expected="one adapter",
            got=listed(names, most=10),
            hint="say which one is meant by its name",
        )
    if adapter is not None and names and adapter not in names:
        raise BindingError(
            f"adapter {adapter!r}",
            expected=f"one of {listed(names, most=10)}",
            got="no key with that name",
            hint="check the spelling of the adapter's name",
        )
    parsed = {k: p if adapter is None or p.adapter in (None, adapter) else _ignore(p) for k, p in parsed.items()}
    plain = {(p.module, p.parameter) for k, p in parsed.items() if p.role == "value" and not _is_copy(k, p)}
    parsed = {k: _ignore(p) if _is_copy(k, p) and p[:2] in plain else p for k, p in parsed.items()}
    WiseftError.raise_all(list(_clashes(parsed)))
    return parsed


def format_key(parsed: PeftKey, suffixes: Sequence[Suffix] = SUFFIXES) -> str:
    """The key as PEFT would save it: `parse_key` of it gives `parsed` again, without the adapter's name.

    Raises:
        BindingError: The key is of a copy that PEFT does not save.
    """
    if parsed.role == "value":
        tail = ["base_layer", parsed.parameter] if parsed.wrapped else [parsed.parameter]
    else:
        own = [s for s in reversed(suffixes) if s.method == parsed.method and s.role != IGNORED]
        tails = {(s.role, s.parameter): [s.stem, s.leaf] for s in own}
        if (parsed.role, parsed.parameter) not in tails:
            raise BindingError(
                f"a key of {parsed.module}.{parsed.parameter}",
                expected=f"a role out of {listed({s.role for s in own}, most=10)}, value",
                got=f"role {parsed.role!r}",
                hint="leave out what was not trained: PEFT saves no such key",
            )
        tail = [part if part != "*" else parsed.group for part in tails[parsed.role, parsed.parameter]]
        tail = ["token_adapter", *tail] if parsed.wrapped else tail
    prefix = MODEL if parsed.shared else PREFIX
    return prefix + ".".join(part for part in [parsed.module, *tail] if part)


def saved_keys(parsed: Mapping[str, PeftKey], suffixes: Sequence[Suffix] = SUFFIXES) -> dict[str, str]:
    """The key that PEFT would save each tensor under, by its own key; copies that were not trained are left out.

    Counters of training steps go along: they mean nothing for the weights, but PEFT saves them with their module.
    """
    return {
        key: format_key(said._replace(role="value") if said.role == IGNORED else said, suffixes)
        for key, said in parsed.items()
        if said.role != IGNORED or (said.parameter == COUNTER and "original_module" not in key.split("."))
    }


def _factor(parts: list[str], suffixes: Sequence[Suffix]) -> PeftKey | None:
    """What a key says that ends as a factor does; None for others."""
    for named in (False, True):
        for suffix in suffixes:
            leaf = suffix.leaf.split(".") if suffix.leaf else []
            at = len(parts) - 1 - named - len(leaf)
            if at < 0 or parts[at] != suffix.stem or (leaf != ["*"] and parts[len(parts) - len(leaf) :] != leaf):
                continue
            module = parts[:at]
            wrapped = suffix.stem.startswith("trainable_tokens") and module[-1:] == ["token_adapter"]
            module = module[:-1] if wrapped else module
            shared = suffix.shared and module in ([], ["base_model"])
            path = "" if shared else ".".join(module)
            adapter, group = parts[at + 1] if named else None, suffix.group(path) if suffix.group is not None else ""
            if leaf == ["*"]:
                adapter, group = parts[at + 2] if named else None, parts[at + 1]
            return PeftKey(path, suffix.parameter, suffix.role, adapter, wrapped, suffix.method, shared, group)
    return None


def _value(parts: list[str]) -> PeftKey:
    """What any other key says: a whole tensor, or a copy of one."""
    *path, parameter = parts
    role, adapter = "value", None
    if "original_module" in path:
        role = IGNORED
        path.remove("original_module")
    if "modules_to_save" in path:
        at = path.index("modules_to_save")
        adapter = path[at + 1] if at + 1 < len(path) else None
        path[at : at + (1 if adapter is None else 2)] = []
    if parameter == COUNTER:  # a counter of training steps, not a weight
        role = IGNORED
    path = [part for part in path if part != "token_adapter"]
    wrapped = path.count("base_layer") == 1
    if wrapped:
        path.remove("base_layer")
    return PeftKey(".".join(path), parameter, role, adapter, wrapped)


def _is_copy(key: str, parsed: PeftKey) -> bool:
    """Whether `key` may be a second copy: PEFT saves bias="all" below `modules_to_save`, and at `X.bias` too."""
    return parsed.role == "value" and "modules_to_save" in key.split(".")


def _ignore(parsed: PeftKey) -> PeftKey:
    return parsed._replace(role=IGNORED)


def _clashes(parsed: Mapping[str, PeftKey]) -> Iterator[WiseftError]:
    """An error for each tensor that more than one key means."""
    keys: defaultdict[tuple[str, str, str, str], list[str]] = defaultdict(list)
    for key, said in parsed.items():
        if said.role != IGNORED:
            keys[said.module, said.parameter, said.role, said.group].append(key)
    for (module, parameter, role, _), same in keys.items():
        if len(same) > 1:
            yield AmbiguousName(
                f"{role} of {module}.{parameter}",
                expected="one adapter key for it",
                got=listed(same),
                hint="keep one of them: as saved and live names, or two wrappers, are mixed",
            )
