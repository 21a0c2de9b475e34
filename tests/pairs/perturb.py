"""Every way in which a pair can be made not to fit, derived from its adapter's keys and shapes alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import torch
from pairs.build import PREFIX, Loaded, base_of, base_state, tuned_of
from pairs.pair import Pair, State
from pairs.strangers import MODELS

ROLE = re.compile(
    r"\.(lora_[A-Za-z_]+|hada_\w+|ia3_l|oft_R|vera_lambda_\w+|token_adapter\.trainable_tokens_delta)(\.weight|\.bias)?$"
)
FACTORS = ("lora_A.weight", "lora_B.weight", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector")
MORE_FACTORS = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "vera_lambda_b", "vera_lambda_d")


class Key(NamedTuple):
    """A key taken apart: PEFT's prefix, the module's path, what of the module it is."""

    prefix: str
    module: str
    role: str

    @property
    def text(self) -> str:
        """The key."""
        return f"{self.prefix}{self.module}.{self.role}"


def take_apart(key: str) -> Key:
    """The parts of a key; a saved tensor's role is its last component."""
    prefix = PREFIX if key.startswith(PREFIX) else ""
    path = key.removeprefix(PREFIX)
    found = ROLE.search(path)
    cut = found.start() if found else path.rindex(".")
    return Key(prefix, path[:cut], path[cut + 1 :])


def first_of_each_role(adapter: State) -> dict[str, Key]:
    """One key of every role, from the middle of the file."""
    keys = [take_apart(key) for key in adapter]
    by_role: dict[str, list[Key]] = {}
    for key in keys:
        by_role.setdefault(key.role, []).append(key)
    return {role: some[len(some) // 2] for role, some in by_role.items()}


def moved(adapter: State, old: Key, module: str, *, all_roles: bool = False) -> State:
    """The adapter with one key, or all keys of its module, under another module."""

    def renamed(key: str) -> str:
        part = take_apart(key)
        hit = key == old.text or (all_roles and part.module == old.module)
        return part._replace(module=module).text if hit else key

    return {renamed(key): value for key, value in adapter.items()}


def adapters(adapter: State) -> Iterator[tuple[str, State]]:
    """Adapters that do not fit any more, each with its label."""
    modules = {take_apart(key).module for key in adapter}
    for role, key in first_of_each_role(adapter).items():
        value = adapter[key.text]
        if role == "num_batches_tracked":
            continue  # a counter of batches means nothing for the weights, wherever it is
        yield f"rename/{role}", moved(adapter, key, key.module + "x")
        if role in FACTORS or role in MORE_FACTORS or role == "lora_B.bias":
            yield f"drop/{role}", {name: tensor for name, tensor in adapter.items() if name != key.text}
        if value.ndim == 2 and value.shape[0] != value.shape[1]:
            yield f"transpose/{role}", {**adapter, key.text: value.T.contiguous()}
        if value.ndim and role in FACTORS:
            yield f"widen/{role}", {**adapter, key.text: torch.cat([value, value], dim=-1)}
        numbered = re.sub(r"(?<=\.)\d+(?=\.|$)", "77", key.module, count=1)
        if numbered != key.module:
            yield f"layer/{role}", moved(adapter, key, numbered, all_roles=True)
        head, _, rest = key.module.partition(".")
        if len(modules) > 1 and rest.count(".") >= 2:
            yield f"suffix/{role}", moved(adapter, key, rest, all_roles=True)
            yield f"foreign/{role}", moved(adapter, key, f"another.{rest}", all_roles=True)
            yield f"doubled/{role}", moved(adapter, key, f"{head}.{key.module}", all_roles=True)


def both_spellings(pair: Pair, adapter: State) -> Iterator[tuple[str, State]]:
    """The old spelling and the new one in one file: two changes of one tensor."""
    if pair.respell and "bare" not in pair.name:
        new = tuned_of(pair).spelled_by_peft
        yield "both spellings", {**adapter, **{key: value + 1 for key, value in new.items() if key not in adapter}}


def sites(pair: Pair) -> set[tuple[str, tuple[int, ...]]]:
    """What tuning changes of the base, by the ends of the names, with the shapes either way round."""
    base = base_of(pair, pair.formats[-1])[1]
    tuned = tuned_of(pair).state
    return {
        (tail(name), tuple(sorted(before.shape)))
        for name, before in base.state.items()
        if name not in base.missing and name in tuned and not same(before, tuned[name])
    }


def same(before: torch.Tensor, after: torch.Tensor) -> bool:
    """Of one shape and value."""
    return before.shape == after.shape and torch.equal(before, after)


def tail(name: str) -> str:
    """The last three components, without what only says that it is a language model."""
    return ".".join(name.split(".")[-3:]).removeprefix("language_model.").removeprefix("model.")


def own_state(model: str) -> Loaded:
    """A base as its own class loads it."""
    return base_state(model, "memory", None, (), MODELS[model][0])


def nearest_wrong_base(pair: Pair) -> str:
    """The model that has most of what the adapter changes, by name and shape, but not all."""
    wanted = sites(pair)

    def shared(model: str) -> int:
        return len(
            wanted & {(tail(name), tuple(sorted(value.shape))) for name, value in own_state(model).state.items()}
        )

    scores = {model: shared(model) for model in MODELS if model != pair.model}
    return max((model for model, score in scores.items() if score < len(wanted)), key=lambda model: scores[model])
