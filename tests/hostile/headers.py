"""Hostile safetensors headers (T7, T8, T9), for the base's file and the adapter's alike."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator

from hostile.scene import Case, Scene, Table, adapter_tensors, base_tensors, blob, layout

Make = Callable[[Table, bytes], bytes]


def raw(data: bytes) -> Make:
    """A file that is just these bytes."""
    return lambda table, payload: data


def text(change: Callable[[str], str | bytes]) -> Make:
    """The header's text changed, the payload as it was."""

    def make(table: Table, payload: bytes) -> bytes:
        changed = change(json.dumps(table))
        return blob(changed if isinstance(changed, bytes) else changed.encode("utf-8", "surrogatepass"), payload)

    return make


def entry(**changes: object) -> Make:
    """Fields of the first tensor's entry replaced; None removes one."""

    def make(table: Table, payload: bytes) -> bytes:
        first = next(iter(table))
        told = {**table[first], **changes}  # type: ignore[dict-item]
        return blob(table | {first: {key: value for key, value in told.items() if value is not None}}, payload)

    return make


def shifted(begin: int, end: int) -> Make:
    """The first tensor's offsets moved."""

    def make(table: Table, payload: bytes) -> bytes:
        first = next(iter(table))
        old = table[first]["data_offsets"]  # type: ignore[index]
        return entry(data_offsets=[old[0] + begin, old[1] + end])(table, payload)

    return make


def spelled(field: str, value: str) -> Make:
    """A field of the first tensor's entry with a value that JSON's own writer would not spell."""

    def make(table: Table, payload: bytes) -> bytes:
        first = next(iter(table))
        marked = table | {first: {**table[first], field: "@@"}}  # type: ignore[dict-item]
        return blob(json.dumps(marked).replace('"@@"', value).encode(), payload)

    return make


def more(extra: Table, *, front: bool = False) -> Make:
    """More entries in the header, behind the others or in front."""
    return lambda table, payload: blob(extra | table if front else table | extra, payload)


def metadata(value: object) -> Make:
    """The free text of the header."""
    return more({"__metadata__": value})


def twin(table: Table, payload: bytes) -> bytes:
    """Two names for the bytes of the first tensor."""
    return blob(table | {"twin": table[next(iter(table))]}, payload)


def empty(shape: list[int]) -> Make:
    """A tensor without elements at the end."""

    def make(table: Table, payload: bytes) -> bytes:
        at = len(payload)
        return blob(table | {"none": {"dtype": "F32", "shape": shape, "data_offsets": [at, at]}}, payload)

    return make


def many(table: Table, payload: bytes) -> bytes:
    """Five thousand tensors without elements."""
    at = [len(payload)] * 2
    return blob(table | {f"t{n}": {"dtype": "U8", "shape": [0], "data_offsets": at} for n in range(5_000)}, payload)


def packed(dtype: str, shape: list[int], size: int) -> Make:
    """A tensor of a packed dtype behind the others."""

    def make(table: Table, payload: bytes) -> bytes:
        span = [len(payload), len(payload) + size]
        return blob(table | {"packed": {"dtype": dtype, "shape": shape, "data_offsets": span}}, payload + b"\1" * size)

    return make


def doubled(table: Table, payload: bytes) -> bytes:
    """The first tensor's key twice, and the last copy alone is consistent."""
    first = json.dumps(next(iter(table)))
    bad = f'{{{first}: {{"dtype": "U8", "shape": [9], "data_offsets": [0, 9]}}, '
    return blob((bad + json.dumps(table)[1:]).encode(), payload)


LIE = struct.Struct("<Q").pack
NOT_WHOLE: dict[str, Make] = {
    "an empty file": raw(b""),
    "one byte": raw(b"\0"),
    "seven bytes": raw(b"\2\0\0\0\0\0\0"),
    "eight zero bytes": raw(bytes(8)),
    "a full-length file of zeros": lambda table, payload: bytes(len(blob(table, payload))),
    "all bits set": raw(b"\xff" * 512),
    "a header of length 1": raw(LIE(1) + b"{" + bytes(64)),
    "a length of 2^63": lambda table, payload: blob(table, payload, length=1 << 63),
    "a length of 2^64 - 1": lambda table, payload: blob(table, payload, length=(1 << 64) - 1),
    "a length above the format's limit": lambda table, payload: blob(table, payload, length=100_000_001),
    "a length one too long": lambda table, payload: blob(table, b"", length=len(json.dumps(table)) + 1),
    "a length one too short": lambda table, payload: blob(table, payload, length=len(json.dumps(table)) - 1),
    "a length in the other byte order": lambda table, payload: struct.pack(">Q", 99) + blob(table, payload)[8:],
    "cut in the header": lambda table, payload: blob(table, payload)[:40],
    "cut by one byte": lambda table, payload: blob(table, payload)[:-1],
    "no payload": lambda table, payload: blob(table),
    "one byte too many": lambda table, payload: blob(table, payload) + b"\0",
    "a page too many": lambda table, payload: blob(table, payload) + bytes(4096),
    "a Git LFS pointer": raw(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"),
    "a pickle": raw(b"\x80\x02cposix\nsystem\nq\0X\2\0\0\0idq\1\x85q\2Rq\3."),
    "a zip file": raw(b"PK\3\4" + bytes(60)),
    "a web page": raw(b"<!DOCTYPE html><html><body>401</body></html>"),
}
NOT_JSON: dict[str, Make] = {
    "an array": raw(blob([])),
    "a string": raw(blob("x")),
    "null": raw(blob(b"null")),
    "a number": raw(blob(b"12")),
    "spaces alone": raw(blob(b" " * 64)),
    "not JSON": raw(blob(b"hello, world")),
    "single quotes": text(lambda told: told.replace('"', "'")),
    "a comment": text(lambda told: "{/**/" + told[1:]),
    "a trailing comma": text(lambda told: told[:-1] + ",}"),
    "two documents": text(lambda told: told + told),
    "words behind the JSON": text(lambda told: told + " and more"),
    "a byte-order mark": text(lambda told: b"\xef\xbb\xbf" + told.encode()),
    "UTF-16": text(lambda told: told.encode("utf-16-le")),
    "bad UTF-8": text(lambda told: told.encode()[:-1] + b', "\xff\xfe": 1}'),
    "an overlong slash": text(lambda told: told.encode()[:-1] + b', "\xc0\xaf": 1}'),
    "trailing NUL": text(lambda told: told + "\0\0"),
    "a raw line break in a name": text(lambda told: told[:-1] + ', "a\nb": 1}'),
    "a raw escape in a name": text(lambda told: told[:-1] + ', "\x1b]0;x\7": 1}'),
    "half a surrogate as a name": text(lambda told: told[:-1] + ', "\\ud800": {}}'),
    "half a surrogate as a raw name": text(lambda told: told[:-1] + ', "\ud800": {}}'),
    "half a surrogate in the metadata": metadata({"a": "\udfff"}),
    "nested arrays": text(lambda told: "[" * 50_000),
    "nested objects": text(lambda told: '{"a":' * 50_000),
    "a closed nest": text(lambda told: told[:-1] + ', "x": ' + "[" * 900 + "]" * 900 + "}"),
    "a nest in the metadata": metadata({"a": json.loads("[" * 200 + "]" * 200)}),
    "NaN": spelled("shape", "[NaN]"),
    "Infinity": spelled("shape", "[Infinity]"),
    "1e999": spelled("shape", "[1e999]"),
    "a number of 5000 digits": spelled("data_offsets", f"[0, {'9' * 5000}]"),
    "a number of 4000 digits": spelled("data_offsets", f"[0, {'9' * 4000}]"),
    "a key twice": doubled,
    "a field twice": text(lambda told: told.replace('"dtype"', '"dtype": "F32", "dtype"', 1)),
    "metadata twice": text(lambda told: '{"__metadata__": {}, "__metadata__": {}, ' + told[1:]),
    "a key of the metadata twice": text(lambda told: '{"__metadata__": {"a": "b", "a": "c"}, ' + told[1:]),
}
WRONG: dict[str, Make] = {
    "metadata with a number": metadata({"a": 1}),
    "metadata with null": metadata({"a": None}),
    "metadata with an object": metadata({"a": {"b": "c"}}),
    "metadata as an array": metadata(["a"]),
    "metadata as a string": metadata("a"),
    "an entry that is null": more({"x": None}),
    "an entry that is an array": more({"x": [1, 2]}),
    "an entry that is a number": more({"x": 1e23}),
    "no dtype": entry(dtype=None),
    "no shape": entry(shape=None),
    "no offsets": entry(data_offsets=None),
    "an unknown dtype": entry(dtype="F128"),
    "a dtype in lower case": entry(dtype="f32"),
    "a dtype that is a list": entry(dtype=["F32"]),
    "a dtype that is an object": entry(dtype={"F32": 1}),
    "a dtype with an escape sequence": entry(dtype="\x1b[31mF32"),
    "a dtype of a megabyte": entry(dtype="F" * (1 << 20)),
    "a wider dtype": entry(dtype="F64"),
    "a shape of 1e23": spelled("shape", "[1e23]"),
    "a shape of floats": entry(shape=[8.0, 4.0]),
    "a shape of strings": entry(shape=["8", "4"]),
    "a shape of true": entry(shape=[True, 32]),
    "a shape with null": entry(shape=[8, None]),
    "a negative shape": entry(shape=[-8, -4]),
    "a shape that is a number": entry(shape=32),
    "a shape that is a string": entry(shape="84"),
    "a nested shape": entry(shape=[[8], [4]]),
    "a shape that wraps at 2^64": entry(shape=[1 << 32, 1 << 32]),
    "a shape that wraps to the right size": entry(shape=[(1 << 62) + 8, 4]),
    "a shape of 2^64": entry(shape=[1 << 64]),
    "a shape that overflows before a zero": empty([1 << 49, 1 << 49, 0]),
    "a shape that overflows behind a zero": empty([0, 1 << 49, 1 << 49]),
    "seventeen axes": empty([0] * 17),
    "a hundred thousand axes": entry(shape=[1] * 100_000),
    "one offset": entry(data_offsets=[0]),
    "three offsets": entry(data_offsets=[0, 1, 2]),
    "offsets that are floats": entry(data_offsets=[0.0, 128.0]),
    "offsets that are strings": entry(data_offsets=["0", "128"]),
    "offsets that are true": entry(data_offsets=[False, 128]),
    "offsets of 2^70": shifted(1 << 70, 1 << 70),
    "negative offsets": shifted(-128, -128),
    "offsets the wrong way round": entry(data_offsets=[128, 0]),
    "an overlap": shifted(4, 4),
    "a longer range": shifted(0, 4),
    "a shorter range": shifted(0, -4),
    "two names for one range": twin,
    "a hole at the end": entry(shape=[0], data_offsets=[0, 0]),
    "half a byte of F4": packed("F4", [3], 2),
    "half a byte of F6": packed("F6_E2M3", [3], 3),
}
TAKEN: dict[str, Make] = {
    "leading spaces": text(lambda told: "    " + told),
    "line breaks as padding": text(lambda told: told + "\n\t\r "),
    "no metadata: null": text(lambda told: '{"__metadata__": null, ' + told[1:]),
    "escape sequences in the metadata": metadata({"\x1b]0;x\7": "\x9b31m"}),
    "four megabytes of metadata": metadata({"a": "b" * (4 << 20)}),
}
UNCLAIMED: dict[str, Make] = {
    "packed codes": packed("F4", [4], 2),
    "five thousand tensors": many,
    "a tensor without elements": empty([0, 7]),
}
"""Sound, though odd: taken beside the base's tensors, refused as keys of an adapter."""


def cases() -> Iterator[Case]:
    """Every header, as the base's and as the adapter's."""
    for role, tensors in (("base", base_tensors), ("adapter", adapter_tensors)):
        table, payload = layout(tensors())
        extra = (0,) if role == "base" else (3, 4)
        for kind, threat, codes, makes in (
            ("file", "T7", (3,), NOT_WHOLE),
            ("json", "T8", (3,), NOT_JSON),
            ("entry", "T9", (3,), WRONG),
            ("odd", "T7", (0,), TAKEN),
            ("odd", "T7", extra, UNCLAIMED),
        ):
            for name, make in makes.items():
                yield Case(f"{role}: {name}", f"header {kind}", threat, spoiler(role, make(table, payload)), codes)
        yield Case(f"{role}: sparse, 40 MB of header", "header file", "T7", sparse(role))


def spoiler(role: str, data: bytes) -> Callable[[Scene], object]:
    """Puts `data` in the place of a file."""
    return lambda scene: (scene.weights if role == "base" else scene.factors).write_bytes(data)


def sparse(role: str) -> Callable[[Scene], object]:
    """A file that takes no room and says that its header has 40 MB."""

    def spoil(scene: Scene) -> None:
        with (scene.weights if role == "base" else scene.factors).open("wb") as file:
            file.write(LIE(40_000_000) + b"{")
            file.truncate(50_000_000)

    return spoil
