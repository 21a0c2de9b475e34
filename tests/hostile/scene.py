"""A small model and its adapter, written byte by byte, and what a hostile case does to them.

No library writes these files: what they could not spell is what is wanted.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

Entry = tuple[str, list[int], bytes]
Table = dict[str, object]

MODULES = {"model.q_proj": (6, 4), "model.v_proj": (3, 4)}
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "bias": "none", "target_modules": ["q_proj", "v_proj"]}
BASE_CONFIG = {"model_type": "llama", "tie_word_embeddings": False}
SECRET = b"the operator's secret\n"
KEY = "base_model.model.{}.lora_{}.weight"
Q_A, Q_B = KEY.format("model.q_proj", "A"), KEY.format("model.q_proj", "B")
EMBEDDING = "base_model.model.model.embed_tokens"


def floats(*shape: int, first: float = 0.5) -> Entry:
    """An F32 tensor of small, different values."""
    count = 1
    for size in shape:
        count *= size
    return "F32", list(shape), struct.pack(f"<{count}f", *(first + at / 8 for at in range(count)))


def base_tensors() -> dict[str, Entry]:
    """The tensors of the base."""
    tensors = {"model.embed_tokens.weight": floats(8, 4), "model.norm.weight": floats(4)}
    tensors |= {f"{module}.weight": floats(*shape) for module, shape in MODULES.items()}
    return tensors | {"lm_head.weight": floats(8, 4, first=2.0)}


def adapter_tensors() -> dict[str, Entry]:
    """A LoRA of rank 2 on both projections."""
    tensors = {}
    for module, (out, wide) in MODULES.items():
        tensors[KEY.format(module, "A")] = floats(2, wide)
        tensors[KEY.format(module, "B")] = floats(out, 2, first=-0.25)
    return tensors


def layout(tensors: Mapping[str, Entry]) -> tuple[Table, bytes]:
    """The header's table of `tensors`, in their order, and the payload."""
    table: Table = {}
    payload = b""
    for name, (dtype, shape, data) in tensors.items():
        table[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(payload), len(payload) + len(data)]}
        payload += data
    return table, payload


def blob(header: object, payload: bytes = b"", *, length: int | None = None) -> bytes:
    """A safetensors file: `header` as it is where it is bytes, else as JSON; `length` may lie about it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + payload


def stored(tensors: Mapping[str, Entry]) -> bytes:
    """A sound file of `tensors`."""
    return blob(*layout(tensors))


@dataclass(frozen=True)
class Scene:
    """The folders of a case: base, adapter, and a file beside them that nobody may read or change."""

    root: Path

    @property
    def base(self) -> Path:
        """The folder of the base."""
        return self.root / "base"

    @property
    def adapter(self) -> Path:
        """The folder of the adapter."""
        return self.root / "adapter"

    @property
    def secret(self) -> Path:
        """What a link or a name may try to reach."""
        return self.root / "secret" / "model.safetensors"

    @property
    def weights(self) -> Path:
        """The base's one file."""
        return self.base / "model.safetensors"

    @property
    def factors(self) -> Path:
        """The adapter's file."""
        return self.adapter / "adapter_model.safetensors"

    @property
    def fields(self) -> Path:
        """The adapter's config."""
        return self.adapter / "adapter_config.json"

    @classmethod
    def write(cls, root: Path) -> Scene:
        """A sound scene."""
        scene = cls(root)
        for folder in (scene.base, scene.adapter, scene.secret.parent):
            folder.mkdir(parents=True)
        scene.weights.write_bytes(stored(base_tensors()))
        (scene.base / "config.json").write_text(json.dumps(BASE_CONFIG))
        scene.factors.write_bytes(stored(adapter_tensors()))
        scene.fields.write_text(json.dumps(CONFIG))
        scene.secret.write_bytes(SECRET)
        return scene

    def configure(self, **changes: object) -> None:
        """Set fields of the adapter's config."""
        self.fields.write_text(json.dumps(CONFIG | changes))

    def add_to_base(self, tensors: Mapping[str, Entry]) -> None:
        """Write the base again with more tensors, or others."""
        self.weights.write_bytes(stored(base_tensors() | dict(tensors)))

    def add_to_adapter(self, tensors: Mapping[str, Entry], *, without: tuple[str, ...] = ()) -> None:
        """Write the adapter again with more tensors, or others, and without some."""
        kept = {name: entry for name, entry in adapter_tensors().items() if name not in without}
        self.factors.write_bytes(stored(kept | dict(tensors)))

    def shard(self) -> dict[str, str]:
        """Turn the base into two shards and an index; the map of the index."""
        tensors = base_tensors()
        homes = {}
        for at, names in enumerate((list(tensors)[:2], list(tensors)[2:]), 1):
            file = f"model-{at:05}-of-00002.safetensors"
            (self.base / file).write_bytes(stored({name: tensors[name] for name in names}))
            homes |= dict.fromkeys(names, file)
        self.weights.unlink()
        self.write_index({"metadata": {}, "weight_map": homes})
        return homes

    def write_index(self, index: object) -> None:
        """The index of the base; bytes are written as they are."""
        data = index if isinstance(index, bytes) else json.dumps(index).encode()
        (self.base / "model.safetensors.index.json").write_bytes(data)


@dataclass(frozen=True)
class Case:
    """One crafted input.

    Attributes:
        name: What is wrong with it.
        group: Its kind, for the tally.
        threat: Its number in the list of threats.
        spoil: Makes a sound scene hostile.
        codes: The exit codes that are right; 0 where it is harmless and taken.
        flags: More of the command line.
        alpha: The coefficient, as it is typed.
        seconds: How long it may take.
    """

    name: str
    group: str
    threat: str
    spoil: Callable[[Scene], object]
    codes: tuple[int, ...] = (3,)
    flags: tuple[str, ...] = field(default=())
    alpha: str = "0.5"
    seconds: float = 2.0

    @property
    def id(self) -> str:
        """A name that is safe on a terminal."""
        return f"{self.threat}-{self.group}-{ascii(self.name)[1:-1]}"
