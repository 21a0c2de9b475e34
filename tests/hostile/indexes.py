"""Hostile indexes: names that lead out of the folder (T1), text that is no index (T8), lies about the shards (T10)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from hostile.scene import Case, Entry, Scene, base_tensors, floats, stored

NAMES = (
    "../secret/model.safetensors", "../../secret/model.safetensors", "/etc/passwd", "/etc/model.safetensors",
    "./model-00001-of-00002.safetensors", "a/../model-00001-of-00002.safetensors", "a/b.safetensors",
    "..\\secret\\model.safetensors", "\\\\server\\share\\x.safetensors", "C:x.safetensors", "C:\\x.safetensors",
    "file:///etc/x.safetensors", "https://example.invalid/x.safetensors", "x.safetensors\0.txt", "\0.safetensors",
    "x\n.safetensors", "\x1b[2Jx.safetensors", "\u202ex.safetensors", "~/x.safetensors", "$HOME.safetensors",
    "-x.safetensors", ".safetensors", ".hidden.safetensors", "..", ".", "", " ", "x.safetensors ", "x.bin", "x.pt",
    "x.safetensors/", "model.safetensors.index.json", "config.json", "é.safetensors", "CON", "a" * 300 + ".safetensors",
    "x.SAFETENSORS", "x.safetensors\n",
)  # fmt: skip
MAPS: dict[str, object] = {
    "null": None, "a list": ["x"], "a string": "x.safetensors", "a number": 7, "empty": {},
    "a number as file": {"lm_head.weight": 1}, "null as file": {"lm_head.weight": None},
    "a list as file": {"lm_head.weight": ["model-00001-of-00002.safetensors"]},
    "an object as file": {"lm_head.weight": {"file": "x.safetensors"}},
    "true as file": {"lm_head.weight": True},
}  # fmt: skip


def cases() -> Iterator[Case]:
    """Indexes that lead out of the folder, that are not indexes, or that lie about the shards."""

    def named(file: str) -> Callable[[Scene], None]:
        return lambda scene: scene.write_index({"weight_map": scene.shard() | {"lm_head.weight": file}})

    def mapped(value: object) -> Callable[[Scene], None]:
        def spoil(scene: Scene) -> None:
            homes = scene.shard()
            scene.write_index({"weight_map": homes | value if isinstance(value, dict) and value else value})

        return spoil

    def written(data: bytes) -> Callable[[Scene], None]:
        def spoil(scene: Scene) -> None:
            scene.shard()
            scene.write_index(data)

        return spoil

    for name in NAMES:
        yield Case(f"shard named {name[:40]}", "index name", "T1", named(name))
    for name, value in MAPS.items():
        yield Case(f"weight_map: {name}", "index shape", "T8", mapped(value))
    texts = {
        "no bytes": b"", "an array": b"[]", "no weight_map": b"{}", "cut": b'{"weight_map": {"a":', "NUL": bytes(64),
        "nested": b"[" * 60_000, "closed nest": b'{"metadata":' + b'{"a":' * 300 + b"1" + b"}" * 301,
        "a key twice": b'{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}',
        "a map twice": b'{"weight_map": {}, "weight_map": {"a": "x.safetensors"}}',
        "NaN": b'{"metadata": {"total_size": NaN}, "weight_map": {"a": "x.safetensors"}}',
        "half a surrogate": b'{"weight_map": {"\\ud800": "x.safetensors"}}', "UTF-16": "{}".encode("utf-16"),
        "5000 digits": b'{"metadata": {"total_size": ' + b"1" * 5000 + b'}, "weight_map": {"a": "x.safetensors"}}',
        "metadata as a list": b'{"metadata": [1], "weight_map": {"a": "x.safetensors"}}',
    }  # fmt: skip
    for name, data in texts.items():
        yield Case(f"index: {name}", "index text", "T8", written(data))
    for name, spoil in LIES.items():
        yield Case(f"index: {name}", "index lie", "T10", spoil)
    yield Case("index: 70 MB, sparse", "index text", "T8", huge_index)
    yield Case("index: thousands of missing shards", "index lie", "T10", thousands)


def relist(change: Callable[[dict[str, str]], dict[str, str]]) -> Callable[[Scene], None]:
    """The map of a sharded base changed."""
    return lambda scene: scene.write_index({"weight_map": change(scene.shard())})


def in_shard(number: int, change: Callable[[dict[str, Entry]], dict[str, Entry]]) -> Callable[[Scene], None]:
    """The tensors of one shard changed, the index as it was."""

    def spoil(scene: Scene) -> None:
        homes = scene.shard()
        file = f"model-{number:05}-of-00002.safetensors"
        tensors = {name: entry for name, entry in base_tensors().items() if homes[name] == file}
        (scene.base / file).write_bytes(stored(change(tensors)))

    return spoil


def lost(scene: Scene) -> None:
    """A shard that is listed and not there."""
    scene.shard()
    (scene.base / "model-00002-of-00002.safetensors").unlink()


def swapped(scene: Scene) -> None:
    """Both shards under each other's name."""
    scene.shard()
    one, two = sorted(scene.base.glob("*.safetensors"))
    data = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(data)


def both(scene: Scene) -> None:
    """A whole file beside an index."""
    whole = scene.weights.read_bytes()
    scene.shard()
    scene.weights.write_bytes(whole)


def self_named(scene: Scene) -> None:
    """Two shards that are one file."""
    scene.shard()
    one, two = sorted(scene.base.glob("*.safetensors"))
    two.unlink()
    two.hardlink_to(one)


def huge_index(scene: Scene) -> None:
    """An index that takes no room and would take much memory."""
    scene.shard()
    os.truncate(scene.base / "model.safetensors.index.json", 70_000_000)


def thousands(scene: Scene) -> None:
    """Two thousand shards, none of them there."""
    scene.shard()
    scene.write_index({"weight_map": {f"t{n}": f"s{n}.safetensors" for n in range(2000)}})


LIES: dict[str, Callable[[Scene], None]] = {
    "a shard that is not there": lost,
    "shards under each other's name": swapped,
    "a whole file beside it": both,
    "one file as two shards": self_named,
    "a tensor in the wrong shard": relist(lambda homes: homes | {"lm_head.weight": min(homes.values())}),
    "a tensor that no shard has": relist(lambda homes: homes | {"x": min(homes.values())}),
    "a tensor left out": relist(lambda homes: {name: file for name, file in homes.items() if name != "lm_head.weight"}),
    "a shard left out": relist(lambda homes: {n: file for n, file in homes.items() if file == min(homes.values())}),
    "a tensor in two shards": in_shard(1, lambda told: told | {"lm_head.weight": floats(8, 4)}),
    "a tensor that the index lacks": in_shard(1, lambda told: told | {"x": floats(1)}),
    "a shard that lacks a tensor": in_shard(2, lambda told: dict(list(told.items())[1:])),
    "an empty shard": in_shard(2, lambda told: {}),
}
