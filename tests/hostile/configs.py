"""Hostile adapter configs: text that is no config (T8), wrong fields (T9), patterns (T11), places (T17)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator

from hostile.scene import CONFIG, Case, Scene


def said(**changes: object) -> Callable[[Scene], None]:
    """Fields of the config set."""
    return lambda scene: scene.configure(**changes)


def spelled(field: str, value: str) -> Callable[[Scene], object]:
    """A field with a value that JSON's own writer would not spell."""
    told = json.dumps(CONFIG | {field: "@@"}).replace('"@@"', value)
    return lambda scene: scene.fields.write_text(told)


def written(data: bytes) -> Callable[[Scene], object]:
    """The whole file."""
    return lambda scene: scene.fields.write_bytes(data)


NUMBERS: tuple[object, ...] = (-1, 0, True, False, 1, 2.0, 1.5, "2", "16", [2], {"a": 2}, 1 << 70, 65_537, -(1 << 70))
ALPHAS: tuple[object, ...] = (True, "16", [3], {"a": 3}, 1 << 70, 1e300, -1e10, 10**400)
SPELLINGS = ("NaN", "Infinity", "-Infinity", "1e999", "9" * 5000, "-" + "9" * 5000)
WRONG: dict[str, tuple[object, ...]] = {
    "use_rslora": (0, 1, "true", [], "", 0.0),
    "use_dora": (1, "false", ["x"], {"a": 1}),
    "lora_bias": (1, "no"),
    "fan_in_fan_out": (1, "true"),
    "ensure_weight_tying": ("x", 2),
    "bias": ("some", 1, True, ["none"], {"none": 1}, "NONE", "\x1b[31m"),
    "peft_type": (1, True, ["LORA"], {}),
    "task_type": (1, ["CAUSAL_LM"]),
    "base_model_name_or_path": (1, ["a"], {"a": "b"}),
    "peft_version": (0.21, ["0.21"]),
    "modules_to_save": ("lm_head", 1, {"a": 1}, [1], [None], [["a"]], [{"a": 1}]),
    "rank_pattern": ("q_proj", 2, ["q_proj"], {"q_proj": "2"}, {"q_proj": True}, {"q_proj": -1}, {"q_proj": 1 << 70},
                     {"q_proj": None}, {"q_proj": [2]}),
    "alpha_pattern": ("q_proj", 2, ["q_proj"], {"q_proj": "2"}, {"q_proj": True}, {"q_proj": None}),
    "trainable_token_indices": ("all", 1, [-1], [True], ["1"], [1.5], [1 << 40], [1, 1], {"embed_tokens": 1},
                                {"embed_tokens": None}, [[1]]),
    "init_lora_weights": (1, 2.5, ["pissa"], {"a": 1}),
    "target_parameters": ("a.b", 1, [1], ["a.b"], ["x"] * 2_000),
    "layer_replication": ("all", 1, [1], [[0]], [[2, 1]], [[0, 1 << 40]], [[0, 9_000], [0, 9_000]], [[-1, 2]]),
}  # fmt: skip
UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "peft_type": ("XLORA", "PREFIX_TUNING", "lora", "\x1b]0;x\7", "X" * 100_000, "os.system"),
    "init_lora_weights": ("pissa_niter_16", "loftq", "corda", "\u202eevil"),
    "use_qalora": (True, "yes"),
    "layer_replication": ([[0, 4]],),
    "not_a_field": (1, "x", [0], {"a": {}}, True),
    "__class__": ("os.system",),
    "\x1b[2J": (1,),
    "alora_invocation_tokens": ([1],),
}
BAD_PATTERNS = (
    "(", ")", "[", "[a", "*", "+a", "a**", "a{2,1}", "(?P<", "\\", "[z-a]", "(?P<a>x)(?P=a)", "(?=q_proj)", "(?<=q)x",
    "(?i)q_proj", "(a)\\1", "q_proj\\b", "\\Zq", "(?>q_proj)", "q++", "a{1001}", "(((((((a{99}){99}){99}){99}){99}))",
    "(" * 60 + "a" + ")" * 60, "a" * 3000, "(" * 100_000, "(?#x)q_proj",
)  # fmt: skip
SLOW_PATTERNS = (
    "([a-z_.0-9]+)+!", "(a+)+$", "(.*)*x", "(.*.*.*.*.*.*)*z", "(x+x+)+y", "(.|.)*!", "(a|a|a|a)*b", "(.?){500}z",
    "(()*)*z", "((a*)*)*b", "(.{0,1000}){0,9}z", "([^z]*){40}z",
)  # fmt: skip
"""Well-formed, some of them endless for a backtracking engine, and fitting no module: unused, or too large."""
TEXTS: dict[str, bytes] = {
    "no bytes": b"", "an array": b"[]", "a string": b'"LORA"', "null": b"null", "a number": b"1e5", "spaces": b" " * 99,
    "not JSON": b"peft_type: LORA", "cut": b'{"peft_type": "LORA"', "NUL": bytes(512), "bad UTF-8": b'{"r": "\xff"}',
    "UTF-16": json.dumps(CONFIG).encode("utf-16"), "a byte-order mark": b"\xef\xbb\xbf" + json.dumps(CONFIG).encode(),
    "two documents": json.dumps(CONFIG).encode() * 2, "a comment": b"// x\n" + json.dumps(CONFIG).encode(),
    "a field twice": b'{"r": 2, "r": 4, "lora_alpha": 3}', "half a surrogate": b'{"r": 2, "x": "\\ud83d"}',
    "nested arrays": b"[" * 100_000, "nested objects": b'{"a":' * 100_000, "a closed nest": b"[" * 500 + b"]" * 500,
    "a nest in a field": json.dumps(CONFIG).encode()[:-1] + b', "x": ' + b'{"a":' * 900 + b"1" + b"}" * 901,
    "9 MB": b'{"r": 2, "x": "' + b"a" * (9 << 20) + b'"}',
    "a pickle": b"\x80\x04\x95cposix\nsystem\n(S'false'\ntR.",
}  # fmt: skip
TAKEN: dict[str, dict[str, object]] = {
    "a base on the net": {"base_model_name_or_path": "https://example.invalid/model"},
    "a base elsewhere on this machine": {"base_model_name_or_path": "/etc/passwd"},
    "a base with an escape sequence": {"base_model_name_or_path": "\x1b]0;x\7\u202e"},
    "a base of a megabyte": {"base_model_name_or_path": "x/" * (1 << 19)},
    "code to import": {"auto_mapping": {"base_model_class": "X", "parent_library": "os"}},
    "a module to import": {"megatron_core": "os.system", "megatron_config": {"a": 1}},
    "target_modules as a regex": {"target_modules": "([a-z_.0-9]+)+!"},
    "target_modules as a bomb": {"target_modules": ["(a+)+$"] * 1000},
    "layers_pattern as a regex": {"layers_pattern": ["([a-z.]+)+!"], "layers_to_transform": [0]},
    "unknown fields that are not set": {"x": None, "\x1b[2J": False, "y": [], "z": {}},
}
"""What is not read as numbers: never opened, never fetched, never run, never matched."""


def cases() -> Iterator[Case]:
    """All of them."""
    for name, data in TEXTS.items():
        yield Case(f"config: {name}", "config text", "T8", written(data))
    yield Case("config: 70 MB, sparse", "config text", "T8", lambda scene: os.truncate(scene.fields, 70_000_000))
    for value in NUMBERS:
        yield Case(f"r = {value!r:.30}", "config field", "T9", said(r=value))
    for value in ALPHAS:
        yield Case(f"lora_alpha = {value!r:.30}", "config field", "T9", said(lora_alpha=value))
    for field in ("r", "lora_alpha", "lora_dropout"):
        for value in SPELLINGS:
            yield Case(f"{field} = {value[:12]}", "config field", "T8", spelled(field, value))
    for codes, table in (((3,), WRONG), ((4,), UNSUPPORTED)):
        for field, values in table.items():
            for value in values:
                yield Case(f"{field} = {value!r:.30}", "config field", "T9", said(**{field: value}), codes)
    for pattern in BAD_PATTERNS:
        bad = said(rank_pattern={pattern: 2})
        yield Case(f"rank_pattern {pattern[:30]}", "config pattern", "T11", bad, (3, 4))
    for pattern in SLOW_PATTERNS:
        slow = said(alpha_pattern={pattern: 2})
        yield Case(f"alpha_pattern {pattern[:30]}", "config pattern", "T11", slow, (3, 4))
    many = {f"(x|y)*{n}.*z": 2 for n in range(1000)}
    yield Case("rank_pattern of 1000 slow patterns", "config pattern", "T11", said(rank_pattern=many), (3, 4))
    plain = {f"layers.{n}.x": 2 for n in range(20_000)}
    yield Case("rank_pattern of 20000 plain patterns", "config pattern", "T11", said(rank_pattern=plain), (3, 4))
    for name, fields in TAKEN.items():
        yield Case(f"config: {name}", "config place", "T17", said(**fields), (0,))
