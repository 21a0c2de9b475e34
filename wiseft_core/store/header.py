"""The safetensors header: read with limits and checked against the file's size, or laid out and written.

Store room, no torch. The format: 8 bytes of length (little endian), that many bytes of JSON padded with spaces, then
the payload. The library's own parser has no limits on rank or duplicates and cannot write a header ahead of its data;
it is the oracle of the tests. Readers and writers call this file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

from wiseft_core.errors import CheckpointError
from wiseft_core.store.strict_json import as_mapping, load_json
from wiseft_core.types import BITS, TensorSpec

LENGTH: Final = 8
"""Bytes that say how long the JSON is."""
HEADER_LIMIT: Final = 32 << 20
FORMAT_LIMIT: Final = 100_000_000
"""The longest JSON that safetensors itself reads."""
TENSOR_LIMIT: Final = 1_000_000
RANK_LIMIT: Final = 16
SIZE_LIMIT: Final = 1 << 48

_INT: Final = frozenset({int})
_METADATA: Final = "__metadata__"
_DAMAGED: Final = "the file is damaged, or whatever wrote it is at fault: fetch or export it again"
_RANK: Final = {dtype: rank for rank, dtype in enumerate(BITS)}


@dataclass(frozen=True, slots=True)
class Header:
    """A header that has passed every check.

    Attributes:
        specs: Dtype and shape by name, in the order of their offsets.
        offsets: Where each tensor starts, relative to the payload.
        metadata: The free text that the file carries, in its own order.
        payload: Bytes of payload.
        raw: The length and the JSON with its padding, exactly as on disk.
        prefix: What stands in front of the names on disk here: the component of a pipeline that the file belongs to.
    """

    specs: Mapping[str, TensorSpec]
    offsets: Mapping[str, int]
    metadata: Mapping[str, str]
    payload: int
    raw: bytes
    prefix: str = ""

    @property
    def start(self) -> int:
        """Where the payload starts in the file."""
        return len(self.raw)

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return self.start + self.payload

    def under(self, prefix: str) -> Header:
        """The header of the very same bytes, with `prefix` in front of every name."""
        specs = {prefix + name: spec for name, spec in self.specs.items()}
        offsets = {prefix + name: offset for name, offset in self.offsets.items()}
        return replace(self, specs=specs, offsets=offsets, prefix=prefix)


def header_length(first: bytes, size: int, where: str, *, limit: int = HEADER_LIMIT) -> int:
    """Bytes of the header, its length field included, as the first 8 bytes of a file of `size` bytes say.

    Raises:
        CheckpointError: The file is too short, or the header longer than the file or than `limit`.
    """
    length = int.from_bytes(first, "little")
    if len(first) == LENGTH and 2 <= length <= min(limit, size - LENGTH):
        return LENGTH + length
    if first == b"version ":
        got, hint = "a Git LFS pointer, not the file it stands for", "run `git lfs pull` where you cloned it"
    elif len(first) < LENGTH or length <= limit:
        got, hint = f"{length} bytes of header in a file of {size} bytes", "the file is truncated: fetch it again"
    else:
        got, hint = f"{length} bytes of header", "is this a safetensors file?"
    raise CheckpointError(
        f"{where} — not a whole safetensors file",
        expected=f"a header of 2 to {limit} bytes, and a file that holds it",
        got=got,
        hint=hint,
    )


def parse_header(raw: bytes, size: int, where: str) -> Header:
    """The header in `raw`, checked against a file of `size` bytes: its tensors tile the payload exactly.

    Args:
        raw: The first bytes of the file, as many as `header_length` says.
        size: Bytes of the whole file.
        where: The file, for the error.
    Raises:
        CheckpointError: The JSON is not strict; a tensor has an unknown dtype, a rank above 16, a size above 2^48, or
            offsets that do not match its shape; tensors overlap or leave a hole; the file is longer or shorter than
            its tensors; the metadata is not text. All bad tensors of a file are reported together.
    Source: github.com/huggingface/safetensors, README.md, "Format".
    """
    text = f"{where} — header"
    if (length := header_length(raw[:LENGTH], len(raw), where, limit=len(raw))) != len(raw):
        raise _bad(text, f"{length} bytes", f"{len(raw)}")
    table = dict(as_mapping(load_json(raw[LENGTH:], text, limit=len(raw)), text))
    metadata = _metadata(table.pop(_METADATA, None), where)
    if len(table) > TENSOR_LIMIT:
        raise _bad(text, f"at most {TENSOR_LIMIT} tensors", f"{len(table)}")
    entries: list[tuple[int, int, str, TensorSpec]] = []
    problems: list[CheckpointError] = []
    for name, entry in table.items():
        try:
            entries.append(_entry(name, entry, where))
        except CheckpointError as error:
            problems.append(error)
    CheckpointError.raise_all(problems)
    # Sorted by their ranges alone: tensors without elements share offsets, and stay in the header's order.
    entries.sort(key=lambda entry: entry[:2])
    _check_tiling(entries, size - len(raw), where)
    specs = {name: spec for _, _, name, spec in entries}
    return Header(specs, {name: begin for begin, _, name, _ in entries}, metadata, size - len(raw), raw)


def build_header(specs: Mapping[str, TensorSpec], metadata: Mapping[str, str], *, canonical: bool = True) -> Header:
    """The header of a file that holds `specs` without gaps.

    Args:
        specs: Dtype and shape by name.
        metadata: Free text to carry; an empty one leaves no trace.
        canonical: Lay out as safetensors' own writer does, wide dtypes first and then by name, with the metadata by
            name: the bytes do not depend on the order of the arguments. Else keep the order given.
    Raises:
        CheckpointError: A spec, a name or the metadata cannot be stored in a safetensors file.
    """
    where = "new safetensors header"
    for name, spec in specs.items():
        if spec.dtype not in BITS or name == _METADATA:
            raise _bad(f"{where} — {name}", "a dtype of safetensors, and a name that is not reserved", f"{spec}")
    if not all(isinstance(text, str) for pair in metadata.items() for text in pair):
        raise _bad(f"{where} — {_METADATA}", "text by name", f"{dict(metadata)!r}")
    names = sorted(specs, key=lambda name: (_RANK[specs[name].dtype], name)) if canonical else list(specs)
    table: dict[str, object] = {}
    if metadata:
        table[_METADATA] = dict(sorted(metadata.items())) if canonical else dict(metadata)
    end = 0
    for name in names:
        spec, begin = specs[name], end
        end += spec.nbytes
        table[name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [begin, end]}
    try:
        text = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    except UnicodeEncodeError as error:
        raise _bad(where, "names that UTF-8 can spell", "half of a surrogate pair") from error
    text += b" " * (-len(text) % 8)
    if len(text) > FORMAT_LIMIT:
        raise _bad(where, f"at most {FORMAT_LIMIT} bytes, or nobody can read it", f"{len(text)} bytes")
    raw = len(text).to_bytes(LENGTH, "little") + text
    return parse_header(raw, len(raw) + end, where)


def _bad(where: str, expected: str, got: str) -> CheckpointError:
    return CheckpointError(where, expected=expected, got=got, hint=_DAMAGED)


def _metadata(value: object, where: str) -> Mapping[str, str]:
    """The metadata, all text; a null is none, as safetensors has it."""
    if value is None:
        return {}
    found: dict[str, str] = {}
    for key, text in as_mapping(value, f"{where} — {_METADATA}").items():
        if not isinstance(text, str):
            raise _bad(f"{where} — {_METADATA}, {key}", "text", f"{type(text).__name__}")
        found[key] = text
    return found


def _entry(name: str, entry: object, where: str) -> tuple[int, int, str, TensorSpec]:
    """Begin, end, name and spec of one tensor; fields that the format does not know are ignored."""
    place = f"{where} — {name}"
    if not isinstance(entry, dict):
        raise _bad(place, "an object with dtype, shape and data_offsets", type(entry).__name__)
    dtype, shape, span = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    bits = BITS.get(dtype) if isinstance(dtype, str) else None
    if bits is None:
        raise _bad(place, f"a dtype of {', '.join(BITS)}", f"{dtype!r}")
    if not isinstance(shape, list) or len(shape) > RANK_LIMIT or not _sizes(shape):
        got = f"rank {len(shape)}" if isinstance(shape, list) and len(shape) > RANK_LIMIT else f"{shape!r}"
        raise _bad(place, f"a shape of at most {RANK_LIMIT} whole numbers, each 0 to 2^48", got)
    if not isinstance(span, list) or len(span) != 2 or not _INT.issuperset(map(type, span)):
        raise _bad(place, "data_offsets of two whole numbers", f"{span!r}")
    begin, end = span
    total = math.prod(shape) * bits
    if total % 8 or begin < 0 or end - begin != total // 8:
        length = f"{total // 8} bytes" if total % 8 == 0 else f"whole bytes, not {total} bits"
        raise _bad(place, f"{length} for {dtype} {shape}", f"data_offsets {span}")
    return begin, end, name, _spec(str(dtype), tuple(shape))


@lru_cache(maxsize=1 << 10)
def _spec(dtype: str, shape: tuple[int, ...]) -> TensorSpec:
    """One record for all tensors that are alike: a model has many tensors, and of few kinds."""
    return TensorSpec(dtype, shape)


def _sizes(shape: list[object]) -> bool:
    """Whether every size is a whole number in range. True is not one, so types are compared, not instances."""
    return _INT.issuperset(map(type, shape)) and all(0 <= size <= SIZE_LIMIT for size in shape)  # type: ignore[operator]


def _check_tiling(entries: list[tuple[int, int, str, TensorSpec]], payload: int, where: str) -> None:
    """Refuse holes, overlaps, and a payload that is longer or shorter than its tensors."""
    at, before = 0, "the start of the payload"
    for begin, end, name, _ in entries:
        if begin != at:
            kind = "a hole" if begin > at else "an overlap"
            place = f"{where} — {kind} between {before} and {name}"
            raise _bad(place, f"data_offsets that go on at {at}", f"{begin}")
        at, before = end, name
    if at != payload:
        raise CheckpointError(
            f"{where} — {'truncated' if at > payload else 'bytes behind the last tensor'}",
            expected=f"{at} bytes of payload",
            got=f"{payload} bytes",
            hint="fetch the file again: the download or copy did not finish" if at > payload else _DAMAGED,
        )
