"""What is recognised and refused, because adding a delta there would be silently wrong.

Joint floor: names, specs and the base's config only.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Final

from wiseft_core.errors import QuantizedBase, TiedEmbeddings, WiseftError, listed
from wiseft_core.types import TensorSpec

SCALES: Final = (
    "weight_scale", "weight_scale_inv", "weight_scale_2", "scale", "scales", "weight_zero_point", "zero_point",
    "qzeros", "absmax", "SCB", "weight_format", "input_scale", "scale_weight",
)  # fmt: skip
"""Last components of the tensors that quantised formats keep beside a weight."""
EMBEDDINGS: Final = frozenset({
    "embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings", "token_embedding", "shared", "tokens_embed",
})  # fmt: skip
"""Module names that language models give their input embedding."""
HEADS: Final = frozenset({"lm_head", "embed_out", "output", "output_projection", "decoder", "predictions", "cls"})
"""Module names that language models give their output head."""
HEAD_CLASSES: Final = ("ForCausalLM", "LMHeadModel", "ForMaskedLM", "ForConditionalGeneration", "ForPreTraining")
"""Ends of the class names whose models have an output head over the vocabulary."""
FLAG: Final = "tie_word_embeddings"


def quantized(touched: Collection[str], specs: Mapping[str, TensorSpec], config: Mapping[str, object] | None) -> None:
    """Refuse a base that stores codes where tuning touches it.

    Raises:
        QuantizedBase: config.json says so, a scale lies beside a touched weight, or a touched weight is not a float.
    """
    problems: list[WiseftError] = []
    said = (config or {}).get("quantization_config")
    if said and touched:
        method = said.get("quant_method", "not named") if isinstance(said, Mapping) else said
        problems.append(_quantized("config.json — quantization_config", f"quantisation method {method}"))
    for name in touched:
        module, _, parameter = name.rpartition(".")
        beside = [f"{module}.{scale}" for scale in SCALES if scale != parameter and f"{module}.{scale}" in specs]
        beside += [other for other in (f"{name}_scale", f"{name}.absmax", f"{name}_scale_inv") if other in specs]
        if beside and _is_weight(parameter):
            problems.append(_quantized(name, f"{specs[name]} with {listed(set(beside))} beside it"))
        elif not specs[name].is_float:
            problems.append(_quantized(name, f"{specs[name]}"))
    WiseftError.raise_all(problems)


def _is_weight(parameter: str) -> bool:
    """Whether a parameter name is one that quantised formats keep scales for."""
    return parameter not in ("bias", *SCALES)


def _quantized(where: str, got: str) -> QuantizedBase:
    return QuantizedBase(
        f"{where} — the base is quantised",
        expected="float weights (F64, F32, BF16, F16, or plain F8 without scales)",
        got=got,
        hint="interpolate onto the unquantised checkpoint, then quantise the result again",
    )


def may_be_tied(name: str, base: Mapping[str, TensorSpec], config: Mapping[str, object] | None) -> str:
    """Why a tensor that tuning changes must be taken for tied, embedding or head; empty if it is not.

    Args:
        name: Its name, in the base or not.
        base: Specs of the base.
        config: The base's config.json, or None.
    """
    embeds, heads = _is_module(name, EMBEDDINGS), any(_heads([name], base))
    if embeds or (heads and name not in base):
        return _why_tied(base, config)
    if heads and tie_flag(config):
        return "config.json says tie_word_embeddings: true"
    return ""


def tie_flag(config: Mapping[str, object] | None) -> bool | None:
    """`tie_word_embeddings` as the base's config says it, at the top or of the text model; None: not said."""
    if config is None:
        return None
    text = config.get("text_config")
    for place in (config, text if isinstance(text, Mapping) else {}):
        flag = place.get(FLAG)
        if isinstance(flag, bool):
            return flag
    return None


def is_untied(config: Mapping[str, object] | None) -> bool:
    """Whether a base's config unties its embedding, and none of the configs inside ties it again."""
    return (config or {}).get(FLAG) is False and not any(inner.get(FLAG) for _, inner in inside(config))


def rows_follow(config: Mapping[str, object] | None) -> bool:
    """Whether PEFT trains token rows of an embedding at its head too: it asks the flag at the top, or the text's."""
    text = (config or {}).get("text_config")
    return (config or {}).get(FLAG) is not False or (isinstance(text, Mapping) and text.get(FLAG) is True)


def inside(config: Mapping[str, object] | None, path: str = "") -> Iterator[tuple[str, Mapping[str, object]]]:
    """The configs of the models inside a model, each with its dotted path and a dot."""
    for key, inner in (config or {}).items():
        if isinstance(inner, Mapping):
            yield f"{path}{key}.", inner
            yield from inside(inner, f"{path}{key}.")


def _why_tied(base: Mapping[str, TensorSpec], config: Mapping[str, object] | None) -> str:
    """Why an input embedding must be taken for tied; empty if it is not."""
    flag = tie_flag(config)
    has_head = any(_heads(base, base))
    if flag is not None:
        # Encoders without a head keep transformers' default flag, and it means nothing there.
        return "config.json says tie_word_embeddings: true" if flag and (has_head or _head_class(config)) else ""
    if config is not None:
        return "a language model whose config.json does not untie the head" if _head_class(config) else ""
    return "" if has_head else "the base has no output head, and there is no base_config to say whether that is tied"


def _head_class(config: Mapping[str, object] | None) -> bool:
    """Whether config.json names a class with an output head over the vocabulary."""
    names = (config or {}).get("architectures")
    return isinstance(names, list) and any(str(name).endswith(HEAD_CLASSES) for name in names)


def _heads(names: Iterable[str], base: Mapping[str, TensorSpec]) -> Iterator[str]:
    """The weights of heads: those called so with a row for every word, as an embedding has; attention has others."""
    called = [name for name in names if is_of(name, HEADS)]
    words = {spec.shape[:1] for name, spec in base.items() if _is_module(name, EMBEDDINGS)} if called else set()
    return (name for name in called if name not in base or not words or base[name].shape[:1] in words)


def is_of(name: str, modules: frozenset[str]) -> bool:
    """Whether a name is of the weight of a module that is called so."""
    return name.endswith(".weight") and _is_module(name, modules)


def _is_module(name: str, modules: frozenset[str]) -> bool:
    """Whether a tensor belongs directly to a module with one of these names."""
    return modules.isdisjoint(name.split(".")[-2:-1]) is False


def tied_refusal(name: str, got: str) -> TiedEmbeddings:
    """The refusal of a change to a tied tensor whose other name is not known."""
    return TiedEmbeddings(
        f"{name} — tuning touches a tied embedding",
        expected="an embedding and a head that are two tensors, or a model whose name for the head is known",
        got=got,
        hint='choose tied="share" (--tied share) to change the one tensor, as PEFT merges it, or pass base_config',
    )
