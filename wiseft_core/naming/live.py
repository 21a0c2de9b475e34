"""The rules of an architecture that the shipped table lacks, read off the transformers that is installed.

Naming room, and the only module that imports transformers: when it is called, never before, and only where the extra
`transformers` has been installed. The model is built without weights, from classes of transformers alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from wiseft_core.naming.links import Link
from wiseft_core.naming.renames import How, Rule, Rules, form, links

LEFT_OUT: Final = (
    "quantization_config",
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_internal",
)
"""What of a config.json could make transformers fetch a kernel or want another package; no name depends on it."""
AXES: Final = ("out", "in")


def live_rules(base_config: Mapping[str, Any]) -> Rules | None:
    """The rules for a base, from transformers itself.

    Args:
        base_config: The base's config.json.

    Returns:
        None where transformers is not installed, does not know the type, or would need the base's own code.
    """
    model = _built(base_config)
    return None if model is None else rules_of_model(model)


def _built(base_config: Mapping[str, Any]) -> Any:
    """The base's model, without weights, or None."""
    if _has_own_code(base_config):
        return None
    try:
        import torch
        import transformers
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING
        from transformers.models.auto.modeling_auto import MODEL_MAPPING
    except ImportError:
        return None
    model_type, architectures = base_config.get("model_type"), base_config.get("architectures")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        return None
    try:
        config = CONFIG_MAPPING[model_type].from_dict(_cleaned(base_config))
        named = architectures[0] if isinstance(architectures, list) and architectures else None
        model_class = MODEL_MAPPING[type(config)] if named is None else getattr(transformers, str(named), None)
        if not isinstance(model_class, type) or not issubclass(model_class, transformers.PreTrainedModel):
            return None
        with torch.device("meta"):
            return model_class(config)
    except Exception:  # whatever a config.json can do to a model's code: it is not known then
        return None


def _cleaned(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without what is left out, also in the configs inside it."""
    return {
        key: _cleaned(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if key not in LEFT_OUT
    }


def _has_own_code(value: object) -> bool:
    """Whether a config.json names code of its own anywhere."""
    if isinstance(value, Mapping):
        return "auto_map" in value or any(map(_has_own_code, value.values()))
    return isinstance(value, list) and any(map(_has_own_code, value))


def rules_of_model(model: Any) -> Rules | None:
    """The rules of a model that was built.

    Args:
        model: A transformers model; no weights are needed.

    Returns:
        None where a parameter's name is also an older name of another one, so that only the whole file could tell.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping

    names = model.state_dict()
    rules = Rules([_rule(transform, model) for transform in get_model_conversion_mapping(model)])
    moved = {}
    for name in names:
        found = links(name, rules)
        if found != (Link(name, across=found[0].across, why=found[0].why),):
            moved[name] = found
    if any(link.parameter in names for found in moved.values() for link in found):
        return None
    return Rules(rules.rules, {form(name) for name in moved}) if moved else rules


def _rule(transform: Any, model: Any) -> Rule:
    """One of transformers' records as ours."""
    kind, operations = type(transform).__name__, getattr(transform, "operations", None)
    scope: tuple[str, ...] = ()
    if transform.scope_prefix is not None:
        inner, outer = (f"{each}." if each else "" for each in (transform.scope_prefix, transform.base_model_prefix))
        scope = tuple(dict.fromkeys((outer + inner, inner)))
    how, why = (None, "") if operations is None else _how(transform, list(operations), model)
    if operations is None and kind not in {"WeightRenaming", "PrefixChange"}:
        why = kind
    return Rule(transform.compiled_sources.pattern, tuple(transform.target_patterns), scope, how, why)


def _how(transform: Any, operations: list[Any], model: Any) -> tuple[How, str]:
    """What a chain of operations does, or why it is not a matter of places."""
    names = [type(operation).__name__ for operation in operations]
    sources, targets, last = len(transform.source_patterns), len(transform.target_patterns), operations[-1]
    experts = names[0] == "MergeModulelist" and operations[0].dim == 0
    sides = _sides(transform, model, experts)
    counted = getattr(last, "num_shards_attribute", None)  # how many there are is told by another file
    how = None
    if counted is None and targets == 1 and names == ["MergeModulelist", "Concatenate"] and experts:
        how = How(experts=True, joins=sides.get(last.dim, ""))
    elif counted is None and targets == 1 and names == ["Concatenate"]:
        how = How(joins=sides.get(last.dim, ""))
    elif names == ["MergeModulelist"] and experts and sources == targets == 1:
        return How(experts=True), ""
    elif names == ["Transpose"] and sources == targets == 1 and {last.dim0, last.dim1} == set(sides):
        return How(across=None if last.check_dims else True), ""
    elif counted is None and names == ["Chunk"] and sources == 1:
        how = How(cuts=sides.get(last.dim, ""))
    return (how, "") if how is not None and (how.joins or how.cuts) else (How(), " > ".join(names))


def _sides(transform: Any, model: Any, experts: bool) -> dict[int, str]:
    """Which dimension of the parameters that a conversion makes is which side of the matrix; empty: they differ."""
    from transformers.pytorch_utils import Conv1D

    back, found = transform.reverse_transform(), set()
    for name, parameter in model.state_dict().items():
        if back.rename_source_key(name)[1] is None:
            continue
        module = model.get_submodule(name.rpartition(".")[0])
        stacked = parameter.dim() == 3 and not hasattr(module, "kernel_size")
        first = 1 if stacked else 0
        across = isinstance(module, Conv1D) or (stacked and getattr(module, "is_transposed", False))
        found.add(((first, AXES[across]), (first + 1, AXES[not across])))
    if not found:  # a part that this model does not have
        found.add(((1, "out"), (2, "in")) if experts else ((0, "out"), (1, "in")))
    return dict(found.pop()) if len(found) == 1 else {}
