"""Read transformers' renames off the installed transformers, check them against it, and write the package's table.

    python tests/renames/generate.py

Every class of every model type is built without weights, small; its rules are written down in our form. A pair of type
and class goes into the table only where our engine agrees with transformers on names (`disagreement`) and where a state
dict of distinct values, turned into the original format by transformers, is put together again by our links to the last
value (`rebuilt`). What is left out, and why, is written to `record.json` beside this file.
"""

from __future__ import annotations

import importlib
import inspect
import json
import logging
import signal
import warnings
from collections import defaultdict
from copy import deepcopy
from multiprocessing import get_context
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    PrefixChange,
    WeightConverter,
    WeightRenaming,
    rename_source_key,
    revert_weight_conversion,
)
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D

from wiseft_core.naming.links import Link
from wiseft_core.naming.live import rules_of_model
from wiseft_core.naming.renames import How, links

TABLE = Path(__file__).parents[2] / "wiseft_core" / "naming" / "transformers.json"
RECORD = Path(__file__).with_name("record.json")
SECONDS = 90
LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers",
          "num_encoder_layers", "num_decoder_layers", "depth")  # fmt: skip
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
FEW, MANY = 4, 12  # twelve experts: the tenth comes after the ninth only in natural order

NEEDED = {
    "autoformer": {"prediction_length": 12}, "informer": {"prediction_length": 12},
    "time_series_transformer": {"prediction_length": 12},
    "aya_vision": {"vision_config": {"num_attention_heads": 16}},
    "chameleon": {"vocabulary_map": {"<image>": 1}},
    "dots1": {"n_routed_experts": 12, "n_shared_experts": 1},
    "esm": {"vocab_size": 33},
    "hunyuan_v1_dense": {"head_dim": 64}, "hunyuan_v1_moe": {"head_dim": 64},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "nemotron": {"num_key_value_heads": 8},
}  # fmt: skip
"""What some types' default configs lack."""


class TooSlow(Exception):
    """A model took too long to build."""


def classes_of(model_type):
    """The names of all model classes whose configuration is that of `model_type`, base model first."""
    config = CONFIG_MAPPING[model_type]
    named = modeling_auto.MODEL_MAPPING_NAMES.get(model_type)
    found = list(named) if isinstance(named, (tuple, list)) else [named] if named else []
    for mapping in (getattr(modeling_auto, each) for each in dir(modeling_auto) if each.endswith("_MAPPING_NAMES")):
        name = mapping.get(model_type) if hasattr(mapping, "get") else None
        found += list(name) if isinstance(name, (tuple, list)) else [name] if name else []
    package = config.__module__.rpartition(".")[0]
    for path in sorted(Path(inspect.getfile(config)).parent.glob("modeling_*.py")):
        module = importlib.import_module(f"{package}.{path.stem}")
        for name, cls in vars(module).items():
            if inspect.isclass(cls) and issubclass(cls, PreTrainedModel) and cls.__module__ == module.__name__:
                own = getattr(cls, "config_class", None) or cls.__annotations__.get("config")
                own = getattr(module, own, None) if isinstance(own, str) else own
                if own is config and not name.endswith("PreTrainedModel"):
                    found.append(name)
    return [name for name in dict.fromkeys(found) if class_named(package, name) is not None]


def class_named(package, name):
    """The model class of that name, from the door of transformers or from the type's own modules."""
    if (cls := getattr(transformers, name, None)) is not None:
        return cls if inspect.isclass(cls) and issubclass(cls, PreTrainedModel) else None
    for path in sorted(Path(importlib.import_module(package).__file__).parent.glob("modeling_*.py")):
        cls = getattr(importlib.import_module(f"{package}.{path.stem}"), name, None)
        if inspect.isclass(cls) and issubclass(cls, PreTrainedModel):
            return cls
    return None


def smaller(said):
    """A config's dict with few layers and some experts, also in the configs inside it."""
    new = {key: smaller(value) if isinstance(value, dict) else value for key, value in said.items()}
    for names, most in ((LAYERS, FEW), (EXPERTS, MANY)):
        for name in names:
            if isinstance(new.get(name), int) and not isinstance(new[name], bool) and new[name] > most:
                new[name] = most
    if isinstance(new.get("first_k_dense_replace"), int):
        new["first_k_dense_replace"] = 1
    for name in ("layer_types", "mlp_layer_types"):
        new.pop(name, None)
    return new


def joined(said, more):
    """A config's dict with other values in it."""
    return said | {
        key: joined(said[key], value) if isinstance(said.get(key), dict) else value for key, value in more.items()
    }


def build(model_type, name):
    """A small model of a class, without weights."""
    config_class = CONFIG_MAPPING[model_type]
    cls, default, first = class_named(config_class.__module__.rpartition(".")[0], name), config_class(), None
    for said in (joined(smaller(default.to_dict()), NEEDED.get(model_type, {})), None):
        try:
            config = config_class() if said is None else config_class.from_dict(said)
            with torch.device("meta"):
                return cls(config)
        except TooSlow:
            raise
        except Exception as error:
            first = first or error
    raise first


def is_stack(model, name, tensor):
    """Whether a parameter is a stack of matrices."""
    return tensor.dim() == 3 and not hasattr(model.get_submodule(name.rpartition(".")[0]), "kernel_size")


def distinct(model):
    """A state dict of small tensors in which no two values are equal, of the model's names and kinds of shapes."""
    found, start, sides = {}, 1, {}
    for name, tensor in model.state_dict().items():
        stack = is_stack(model, name, tensor)
        shape = list(tensor.shape)
        for at, size in enumerate(shape):
            if at < 2 + stack and not (stack and at == 0):
                shape[at] = 12 * (1 + sides.setdefault(size, len(sides)) % 3)
            else:
                shape[at] = min(size, MANY if stack else 2)
        if stack and shape[1] == shape[2]:
            shape[2] += 12  # so that a shape tells whether it lies across
        count = torch.Size(shape).numel()
        found[name] = torch.arange(start, start + count).reshape(shape)
        start += count
    return found


def dimension(model, name, tensor, side):
    """Which dimension of a tensor is a side of the matrix, for parameter `name`."""
    module, stack = model.get_submodule(name.rpartition(".")[0]), is_stack(model, name, tensor)
    across = isinstance(module, Conv1D) or (stack and getattr(module, "is_transposed", False))
    return -2 + ((side == "in") ^ across) if stack or tensor.dim() == 2 else int(side == "in")


def rebuilt(model, disk, rules, wanted):
    """The state dict in memory that our links make of tensors on disk, and the names that they do not make."""
    parts, refused = defaultdict(list), set()
    for name, tensor in disk.items():
        for link in links(name, rules):
            parts[link.parameter].append((link, tensor))
            if link.why:
                refused.add(link.parameter)
    made = {}
    for name, found in parts.items():
        if name in refused or name not in wanted:
            continue
        like, stacks = wanted[name], defaultdict(dict)
        for link, tensor in found:
            if link.own is not None:
                at = dimension(model, name, like, link.own.axis)
                tensor = tensor.chunk(link.own.of, at)[link.own.number]
            if link.across or (link.across is None and tensor.shape != like.shape):
                tensor = tensor.transpose(-1, -2)
            stacks[link.expert][link.part.number if link.part else 0] = tensor
            if link.part is not None and len(stacks[link.expert]) > link.part.of:
                raise AssertionError(f"{name}: too many parts")
        axis = found[0][0].part.axis if found[0][0].part else None
        rows = []
        for number in sorted(stacks, key=lambda number: -1 if number is None else number):
            pieces = [stacks[number][i] for i in sorted(stacks[number])]
            at = dimension(model, name, like, axis) if axis else 0
            if None not in stacks and axis and at >= 0:
                raise AssertionError(f"{name}: experts that are no stack")
            rows.append(torch.cat(pieces, at) if len(pieces) > 1 else pieces[0])
        made[name] = torch.stack(rows) if None not in stacks else rows[0]
    return made, refused


def itself(name, rules):
    """Whether our engine takes a name in memory for the whole of that parameter and of no other."""
    found = links(name, rules)
    return found == (Link(name, across=found[0].across, why=found[0].why),)


def disagreement(names, transforms, rules, model):
    """A name that transformers itself renames to something else than our engine does; None: there is none."""
    renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
    converters = [each for each in transforms if isinstance(each, WeightConverter)]
    memory = model.state_dict()
    for name in names:
        theirs, _ = rename_source_key(name, renamings, converters)
        ours = links(name, rules)
        if theirs not in memory and name in memory:
            theirs = name  # as the loader does
        if not any(link.why for link in ours) and ours[0].parameter != theirs:
            return f"{name}: {ours[0].parameter} here, {theirs} in transformers"
        if ours != rules.plain(name):
            return f"{name}: remembered otherwise"
    return None


def sub_types(said, path=""):
    """The model types of the configs inside a config, by dotted field."""
    found = {}
    for key, value in sorted(said.items()):
        if isinstance(value, dict):
            if isinstance(value.get("model_type"), str):
                found[path + key] = value["model_type"]
            found |= sub_types(value, f"{path}{key}.")
    return found


def ties_of(model, transforms):
    """Pairs of tied parameters as [head in memory, head on disk, source in memory, source on disk]."""
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.config.tie_word_embeddings = True
    try:
        tied = model.get_expanded_tied_weights_keys(all_submodels=True)
    except Exception:
        return []
    names = model.state_dict()
    pairs = [(head, source) for head, source in tied.items() if head in names and source in names]
    if len(pairs) > FEW:  # heads of detectors, one for each layer: not word embeddings
        return []
    back = [each.reverse_transform() for each in transforms[::-1] if not isinstance(each, PrefixChange)]
    renamings = [each for each in back if isinstance(each, WeightRenaming)]

    def disk(name):
        for renaming in renamings:
            name, _ = renaming.rename_source_key(name)
        return name

    return [[head, disk(head), source, disk(source)] for head, source in sorted(pairs)]


def seen(model_type, name):
    """One entry of the table, checked; raises with the reason where it cannot go in."""
    model = build(model_type, name)
    rules = rules_of_model(model)
    if rules is None:
        raise AssertionError("a parameter's name is also an older name of another one")
    wanted = distinct(model)
    full = get_model_conversion_mapping(model)
    transforms = get_model_conversion_mapping(model, add_legacy=False)
    if moved := [name for name in wanted if not itself(name, rules)]:
        raise AssertionError(f"not idempotent: {moved[0]} -> {links(moved[0], rules)}")
    # Conversions that are refused anyway read sizes that our small tensors do not have.
    back = [
        each.reverse_transform()
        for each, rule in zip(transforms, rules.rules, strict=False)
        if rule.why and rule.how is not None
    ]
    plain = {
        name: tensor for name, tensor in wanted.items() if not any(each.rename_source_key(name)[1] for each in back)
    }
    modules = dict(model.named_modules())
    entry = {
        "rules": rules.rules,
        "kept": sorted(rules.kept),
        "subs": sub_types(model.config.to_dict()),
        "prefix": model.base_model_prefix,
        "ties": [],
        "conv1d": sorted({path.rpartition(".")[2] for path, module in modules.items() if isinstance(module, Conv1D)}),
        "transposed": any(getattr(module, "is_transposed", False) for module in modules.values()),
    }
    names = set(wanted)
    for kept in (
        [each for each in transforms if not isinstance(each, PrefixChange)],
        transforms,
        full,
    ):
        model._weight_conversions = deepcopy(kept)
        try:
            disk = revert_weight_conversion(model, dict(plain))
        except Exception as error:
            if kept is transforms or kept is full:
                continue
            raise AssertionError(f"not reverted: {error}") from error
        names |= set(disk)
        if (wrong := disagreement(sorted(names), full, rules, model)) is not None:
            raise AssertionError(wrong)
        made, refused = rebuilt(model, disk, rules, plain)
        missing = [name for name in plain if name not in made and name not in refused]
        other = [name for name in made if not torch.equal(made[name], plain[name])]
        if kept is not transforms and kept is not full and (missing or other):
            raise AssertionError(f"not rebuilt: {(missing or other)[0]}, {len(missing)} missing, {len(other)} other")
        if kept is transforms:
            entry["whole"] = not (missing or other)
    entry["ties"] = ties_of(model, transforms)
    return entry


def every(model_type):
    """All entries of a model type: name -> entry, or the reason why not."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)

    def stop(*_):
        raise TooSlow(f"more than {SECONDS} s")

    signal.signal(signal.SIGALRM, stop)
    try:
        names = classes_of(model_type)
    except Exception as error:
        return model_type, {"": f"{type(error).__name__}: {str(error).splitlines()[0][:150]}"}
    found = {}
    for name in names:
        signal.alarm(SECONDS)
        try:
            found[name] = seen(model_type, name)
        except (Exception, SystemExit) as error:
            lines = str(error).strip().splitlines() or [""]
            found[name] = f"{type(error).__name__}: {lines[0][:200]}"
        finally:
            signal.alarm(0)
    return model_type, found


def tabled(found):
    """The table's JSON, from all entries that were seen."""
    rules, lists, kept, subs, ties = {}, {}, {}, {}, {}

    def numbered(known, value):
        return known.setdefault(json.dumps(value), len(known))

    def rule_of(rule):
        how = rule.how and {k: v for k, v in rule.how._asdict().items() if v != How._field_defaults[k]}
        said = {"pattern": rule.pattern, "to": rule.to} | ({} if how is None else {"how": how})
        number = numbered(rules, said | ({"why": rule.why} if rule.why else {}))
        return [number, *rule.scope] if rule.scope else number

    types = {}
    for model_type, entries in found.items():
        good = {name: entry for name, entry in entries.items() if isinstance(entry, dict)}
        if not good:
            continue
        base = modeling_auto.MODEL_MAPPING_NAMES.get(model_type)
        types[model_type] = said = {
            "base": base if base in good else None,
            "classes": {
                name: [
                    numbered(lists, [rule_of(rule) for rule in entry["rules"]]),
                    numbered(kept, entry["kept"]),
                    numbered(subs, entry["subs"]),
                    numbered(ties, entry["ties"]),
                    entry["prefix"],
                ]
                for name, entry in good.items()
            },
        }
        if conv1d := sorted({leaf for entry in good.values() for leaf in entry["conv1d"]}):
            said["conv1d"] = conv1d
        if any(entry["transposed"] for entry in good.values()):
            said["transposed"] = True
    return {
        "transformers": transformers.__version__,
        **{name: [json.loads(each) for each in known]
           for name, known in {"rules": rules, "lists": lists, "kept": kept, "subs": subs, "ties": ties}.items()},
        "types": types,
    }  # fmt: skip


def written(table):
    """The table as text: one line for each rule, list and type."""
    lines = []
    for key, value in table.items():
        if isinstance(value, str):
            lines.append(f"{json.dumps(key)}: {json.dumps(value)}")
            continue
        inner = [json.dumps(each, separators=(",", ":")) for each in value] if isinstance(value, list) else [
            f"{json.dumps(name)}:{json.dumps(each, separators=(',', ':'))}" for name, each in value.items()
        ]  # fmt: skip
        left, right = "[]" if isinstance(value, list) else "{}"
        lines.append(f"{json.dumps(key)}: {left}\n" + ",\n".join(inner) + f"\n{right}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def recorded(found):
    """What was checked and what was left out, as JSON."""
    good = [entry for entries in found.values() for entry in entries.values() if isinstance(entry, dict)]
    return {
        "transformers": transformers.__version__,
        "torch": torch.__version__.partition("+")[0],
        "types": sum(any(isinstance(entry, dict) for entry in entries.values()) for entries in found.values()),
        "pairs": len(good),
        "left out": {
            f"{model_type} {name}".strip(): entry
            for model_type, entries in sorted(found.items())
            for name, entry in (entries or {"": "no model class"}).items()
            if isinstance(entry, str)
        },
        "not rebuilt from names with the prefixes of old": sorted(
            f"{model_type} {name}"
            for model_type, entries in found.items()
            for name, entry in entries.items()
            if isinstance(entry, dict) and not entry.get("whole", True)
        ),
    }


def seen_all(types):
    """The entries of all classes of these types."""
    with get_context("spawn").Pool(2, maxtasksperchild=25) as pool:
        found = dict(pool.imap_unordered(every, types))
    return {model_type: found[model_type] for model_type in sorted(found)}


def main():
    """Write the table and the record."""
    found = seen_all(list(CONFIG_MAPPING_NAMES))
    TABLE.write_text(written(tabled(found)))
    RECORD.write_text(json.dumps(recorded(found), indent=1) + "\n")


if __name__ == "__main__":
    main()
