"""Resized vocabularies: an embedding and a head that were saved with more rows, or fewer, than the base has.

Joint floor: names, specs and configs only. What both have is interpolated; rows that the base does not have are as
trained at every alpha, and config.json follows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from wiseft_core.errors import ShapeMismatch, WiseftError, listed
from wiseft_core.guards import EMBEDDINGS, HEADS
from wiseft_core.layouts import Shape
from wiseft_core.types import TensorSpec

SIZE: Final = "vocab_size"
LOGITS: Final = "final_logits_bias"
"""BART's bias over the vocabulary: (1, words)."""


def is_of_vocabulary(name: str) -> bool:
    """Whether a tensor is the weight or the bias of an embedding or of a head over the vocabulary."""
    *_, module, parameter = ["", *name.split(".")]
    return module in EMBEDDINGS | HEADS and parameter in ("weight", "bias")


def is_resized(target: str, weight: Shape, saved: Shape) -> bool:
    """Whether a saved tensor is that of an embedding or head with another number of rows."""
    return saved != weight and len(saved) == len(weight) and saved[1:] == weight[1:] and is_of_vocabulary(target)


def stem(name: str) -> str:
    """What a class of transformers is called without its head: "Llama" of "LlamaForCausalLM" and of "LlamaModel"."""
    return re.split(r"(?<=[a-z0-9])(?:For[A-Z]|Model$|LMHead|PreTrained)", name, maxsplit=1)[0]


def check_class(resized: Iterable[str], trained: object, config: Mapping[str, object] | None) -> None:
    """Refuse a resized vocabulary over a base of another class: any embedding of that width would seem resized.

    Args:
        resized: Names of resized tensors.
        trained: The class that the adapter says it was trained on; None where it does not.
        config: The base's config.json.
    Raises:
        ShapeMismatch: The base says that it is of another class.
    """
    names, resized = (config or {}).get("architectures"), list(resized)
    if not resized or not isinstance(trained, str) or not isinstance(names, list) or not names:
        return
    if stem(str(names[0])) != stem(trained):
        raise ShapeMismatch(
            f"{listed(resized)} — another vocabulary, and another class of model",
            expected=f"a base of the class that the adapter was trained on, {trained}",
            got=f"{names[0]}",
            hint="is this the base that the adapter was trained on? If so, merge it with PEFT",
        )


def edits(
    resized: Mapping[str, Shape],
    outputs: Mapping[str, TensorSpec],
    base: Mapping[str, TensorSpec],
    config: Mapping[str, object] | None,
) -> dict[str, object]:
    """What changes in config.json for resized tensors, by dotted path.

    Args:
        resized: The new shapes, by name.
        outputs: The result, by name.
        base: The base.
        config: The base's config.json.
    Raises:
        ShapeMismatch: They disagree, or a tensor over the vocabulary keeps its old size.
    """
    if not resized:
        return {}
    sizes = {shape[0] for shape in resized.values()}
    old = {base[name].shape[0] for name in resized if name in base}
    stale = [name for name, spec in outputs.items() if name not in resized and _rows(name, spec.shape) in old]
    if len(sizes) > 1 or len(old) > 1 or stale:
        WiseftError.raise_all([_disagreement(resized, stale)])
    (size,) = sizes
    return {path: size for path, said in _sizes(config or {}) if said in old}


def _rows(name: str, shape: Shape) -> int | None:
    """How many words a tensor over the vocabulary is for; None for any other."""
    if name.rpartition(".")[2] == LOGITS:
        return shape[-1] if shape else None
    return shape[0] if shape and is_of_vocabulary(name) else None


def _sizes(config: Mapping[str, object]) -> Iterable[tuple[str, object]]:
    """Where a config says how large the vocabulary is: at the top, and in the config of the text model."""
    for prefix, place in (("", config), ("text_config.", config.get("text_config"))):
        if isinstance(place, Mapping) and SIZE in place:
            yield prefix + SIZE, place[SIZE]


def _disagreement(resized: Mapping[str, Shape], stale: Iterable[str]) -> ShapeMismatch:
    return ShapeMismatch(
        f"{listed(resized)} — a resized vocabulary that not all tensors follow",
        expected="every embedding and head over the vocabulary saved with the same number of rows",
        got=", ".join(f"{name} {list(shape)}" for name, shape in resized.items()) + f"; as before: {listed(stale)}",
        hint="train with save_embedding_layers=True, or merge the adapter with PEFT",
    )
