"""A coverage-guided fuzz of everything that reads what a stranger wrote, without files and without torch.

    python tests/hostile/fuzz.py [FOLDER] [-runs=N] [-max_total_time=SECONDS]

Headers, JSON, indexes, configs, manifests, keys, patterns and the plan, in one process. Only `WiseftError` may escape;
anything else ends the run with the input that did it. FOLDER collects inputs that reach something new.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["wiseft_core"]):
    from wiseft_core.binding import bind
    from wiseft_core.config import AdapterConfig
    from wiseft_core.errors import WiseftError
    from wiseft_core.naming.patterns import compile_pattern, matches
    from wiseft_core.naming.peft import format_key, parse_key, parse_keys
    from wiseft_core.schedules import canonical, resolve
    from wiseft_core.store.files import Files
    from wiseft_core.store.header import build_header, header_length, parse_header
    from wiseft_core.store.locate import read_index
    from wiseft_core.store.manifest import parse_manifest
    from wiseft_core.store.shards import parse_size
    from wiseft_core.store.strict_json import load_json
    from wiseft_core.types import BITS, TensorSpec

PATHS = ("model.layers.0.q_proj", "model.embed_tokens", "", "a.b\n", "lm_head")
WORDS = ("model", "layers", "0", "1", "q_proj", "embed_tokens", "lm_head", "weight", "bias", "lora_A", "lora_B",
         "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector", "base_model", "default", "base_layer",
         "modules_to_save", "original_module", "token_adapter", "trainable_tokens_delta", "in_proj_weight", "shared",
         "weight_scale", "running_mean", "num_batches_tracked", "c_attn", "", "_orig_mod")  # fmt: skip


class InMemory(Files):
    """One file that is only bytes."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def open_read(self, path: Path) -> int:
        """No descriptor is needed."""
        return -1

    def identity(self, descriptor: int) -> tuple[int, int, int, int, int]:
        """Its size is all that counts."""
        return 0, 0, len(self.data), 0, 0

    def read_into(self, descriptor: int, buffer: memoryview, offset: int, path: object) -> None:
        """Its bytes."""
        buffer[:] = self.data[offset : offset + len(buffer)]

    def close(self, descriptor: int) -> None:
        """Nothing to close."""


def header(data: bytes) -> None:
    """A header, with a size that fits it and one that does not; what passes is built and read again."""
    raw = struct.pack("<Q", len(data)) + data
    for size in (len(raw) + 128, len(raw)):
        header_length(raw[:8], size, "fuzz")
        found = parse_header(raw, size, "fuzz")
        assert sum(spec.nbytes for spec in found.specs.values()) == found.payload
        again = build_header(found.specs, found.metadata, canonical=False)
        assert again.specs == found.specs


def config(data: bytes) -> None:
    """An adapter's config, and the scale of some modules under it."""
    raw = load_json(data, "fuzz")
    read = AdapterConfig.from_mapping(raw if isinstance(raw, dict) else {"x": raw})
    read.unused_patterns(PATHS)
    for path in PATHS:
        assert canonical(read.scale(path, read.r or 2))
        read.token_rows(path)


def keys(data: bytes) -> None:
    """The keys of an adapter; what is no copy is spelled and parsed again."""
    names = data.decode("utf-8", "replace").split("\n")
    parsed = parse_keys(names)
    for said in parsed.values():
        if said.role != "ignored":
            parse_key(format_key(said))


def pattern(data: bytes) -> None:
    """A pattern, on paths of its own and of others."""
    text, _, path = data.decode("utf-8", "replace").partition("\0")
    compiled = compile_pattern(text)
    for one in (path[:200], *PATHS):
        matches(compiled, one)


def plan(data: bytes) -> None:
    """Base and adapter made of the words that mean something, with shapes and dtypes at random."""
    draw = atheris.FuzzedDataProvider(data)

    def name() -> str:
        return ".".join(WORDS[draw.ConsumeIntInRange(0, len(WORDS) - 1)] for _ in range(draw.ConsumeIntInRange(1, 5)))

    def spec() -> TensorSpec:
        dtype = (*BITS, *["F32"] * 40)[draw.ConsumeIntInRange(0, len(BITS) + 39)]
        return TensorSpec(dtype, tuple(draw.ConsumeIntInRange(0, 5) for _ in range(draw.ConsumeIntInRange(0, 4))))

    base = {name(): spec() for _ in range(draw.ConsumeIntInRange(0, 8))}
    adapter = {name(): spec() for _ in range(draw.ConsumeIntInRange(0, 4))}
    for target in list(base)[: draw.ConsumeIntInRange(0, 4)]:
        module = target.rpartition(".")[0]
        shape, rank = base[target].shape, draw.ConsumeIntInRange(0, 3)
        out, wide = (*shape, 1, 1)[:2]
        adapter[f"base_model.model.{module}.lora_A.weight"] = TensorSpec("F32", (rank, wide))
        adapter[f"base_model.model.{module}.lora_B.weight"] = TensorSpec("F32", (out, rank))
    raw = {"lora_alpha": 2, "modules_to_save": [name()] if draw.ConsumeBool() else None}
    raw |= {"trainable_token_indices": {name(): [0, draw.ConsumeIntInRange(0, 5)]} if draw.ConsumeBool() else None}
    raw |= {"use_dora": draw.ConsumeBool() or None, "rank_pattern": {name(): 2} if draw.ConsumeBool() else {}}
    said = AdapterConfig.from_mapping(raw) if draw.ConsumeBool() else None
    beside = {"tie_word_embeddings": draw.ConsumeBool(), "model_type": "gpt2"} if draw.ConsumeBool() else None
    found = bind(base, adapter, config=said, base_config=beside, complete=said is None and draw.ConsumeBool())
    assert set(found.consumed()) == set(adapter)
    assert set(base) <= set(found.outputs)
    json.dumps(found.as_dict(), allow_nan=False)


def schedule(data: bytes) -> None:
    """Coefficients by pattern, and sizes."""
    draw = atheris.FuzzedDataProvider(data)
    number, text = draw.ConsumeFloat(), draw.ConsumeUnicode(40)
    parse_size(draw.ConsumeUnicodeNoSurrogates(12))
    resolve({text: number, "*": 0.5}, PATHS, extrapolate=True)


TARGETS: tuple[Callable[[bytes], object], ...] = (
    header,
    config,
    keys,
    pattern,
    plan,
    schedule,
    lambda data: load_json(data, "fuzz"),
    lambda data: read_index(Path("fuzz.json"), InMemory(data)),
    lambda data: parse_manifest(data, "fuzz"),
)
SEEDS: tuple[tuple[int, bytes], ...] = (
    (0, b'{"__metadata__":{"a":"b"},"x":{"dtype":"F32","shape":[4,8],"data_offsets":[0,128]}}'),
    (0, b'{"x":{"dtype":"BF16","shape":[0],"data_offsets":[0,0]},"y":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}'),
    (1, b'{"peft_type":"LORA","r":2,"lora_alpha":3.5,"use_rslora":true,"rank_pattern":{"q_proj":2},"bias":"none"}'),
    (1, b'{"peft_type":"TRAINABLE_TOKENS","token_indices":[1,2],"target_modules":["embed_tokens"]}'),
    (1, b'{"alpha_pattern":{"^a.(b|[c-e])+\\\\d{1,2}$":1},"init_lora_weights":"pissa","modules_to_save":["lm_head"]}'),
    (
        2,
        b"base_model.model.m.q.lora_A.weight\nm.q.lora_B.default.weight\nmodules_to_save.x.weight\nbase_layer.weight",
    ),
    (3, b"(a|b*?)[^x-z]{1,3}\\.layers\\.\\d+$\0model.layers.12"),
    (4, bytes(range(1, 120))),
    (5, bytes(range(60))),
    (6, b'[1, -2.5e3, "\\u00e9\\ud83d\\ude00", null, {"a": {}}]'),
    (7, b'{"metadata":{"total_size":1},"weight_map":{"a":"model-00001-of-00002.safetensors"}}'),
    (8, b'{"format":"wiseft/1","wiseft":"0","alpha":{"*":"0.5"},"adapters":[],"inputs":[],"outputs":[],"policy":{}}'),
)


def one_input(data: bytes) -> None:
    """The first byte chooses what reads the rest."""
    if not data:
        return
    try:
        TARGETS[data[0] % len(TARGETS)](data[1:])
    except WiseftError as problem:
        text = str(problem)
        assert all(char.isprintable() or char == "\n" for char in text), ascii(text)
        json.dumps(problem.as_dict(), allow_nan=False)


def seed(folder: Path) -> None:
    """Put the sound inputs into `folder`, to start from."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (target, data) in enumerate(SEEDS):
        (folder / f"seed-{number}").write_bytes(bytes([target]) + data)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        if not argument.startswith("-"):
            seed(Path(argument))
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
