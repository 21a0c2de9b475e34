"""`wiseft.json`: what an output was made from, how, and what every file of it holds.

Store room. It is written last into the staging folder, so a folder that has one is complete. It says nothing of time,
place, threads or verb: the same inputs give the same bytes. Its schema is `schemas/manifest.schema.json`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from blake3 import blake3

from wiseft_core.errors import CheckpointError, listed
from wiseft_core.store.files import Files, names_below
from wiseft_core.store.strict_json import as_mapping, load_json
from wiseft_core.store.writer import digest_file

FORMAT: Final = "wiseft/1"
MANIFEST: Final = "wiseft.json"
ROLE: Final = re.compile(r"base|adapter(-[1-9][0-9]{0,5})?", re.ASCII)
"""The adapters of a combination are numbered."""
SEAL: Final = "blake3"
_KEYS: Final = ("adapters", "alpha", "blake3", "format", "inputs", "outputs", "policy", "wiseft")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_ALPHA: Final = re.compile(
    r"-?((0|[1-9][0-9]*)(\.[0-9]*[1-9])?"
    # What `schedules.canonical` spells with an exponent: nothing from 1e-6 to 1e15.
    r"|[1-9](\.[0-9]*[1-9])?e(-([7-9]|[1-9][0-9]|[1-3][0-9]{2})|\+(1[6-9]|[2-9][0-9]|[1-3][0-9]{2})))",
    re.ASCII,
)


Decimals = str | Mapping[str, str]
"""The alpha of one adapter: one for all its tensors, or one for each name."""


@dataclass(frozen=True, slots=True)
class OutputFile:
    """A file of the output: its name relative to the folder, its size, and the digest of its content."""

    file: str
    bytes: int
    blake3: str


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file that the output was made from.

    Attributes:
        role: "base" or "adapter"; of several adapters, "adapter-1", "adapter-2", ...
        file: Its name relative to the folder of that input.
        bytes: Its size.
        blake3: The digest of its content, where all of it was read.
        blake3_header: The digest of its safetensors header, where the content was not digested.
    """

    role: str
    file: str
    bytes: int
    blake3: str | None = None
    blake3_header: str | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest that has passed every check; fields as in `build_manifest`."""

    version: str
    alpha: Decimals | Sequence[Decimals]
    adapters: tuple[Mapping[str, object], ...]
    inputs: tuple[InputFile, ...]
    outputs: tuple[OutputFile, ...]
    policy: Mapping[str, str | bool]


def build_manifest(
    *,
    version: str,
    alpha: Decimals | Sequence[Decimals],
    adapters: Sequence[Mapping[str, object]],
    inputs: Sequence[InputFile],
    outputs: Sequence[OutputFile],
    policy: Mapping[str, str | bool],
) -> bytes:
    """The bytes of a manifest: one spelling for one meaning, in ASCII, whatever the order of `inputs` and `outputs`.

    Args:
        version: Of this package.
        alpha: As canonical decimals: one for all, or one for each name; of a combination, a list of those.
        adapters: What was applied, in order, as JSON objects.
        inputs: Every file that was read.
        outputs: Every file of the folder but the manifest.
        policy: What else decides about the bytes: dtypes, overflow, extrapolation, whether all was synced.
    Raises:
        CheckpointError: What `parse_manifest` would refuse.
    """
    table = {
        "format": FORMAT,
        "wiseft": version,
        "alpha": alpha,
        "adapters": [dict(adapter) for adapter in adapters],
        "inputs": [
            {key: value for key, value in asdict(entry).items() if value is not None}
            for entry in sorted(inputs, key=_place)
        ],
        "outputs": [asdict(entry) for entry in sorted(outputs, key=lambda entry: entry.file)],
        "policy": dict(policy),
    }
    data = _sealed(table)
    parse_manifest(data, f"new {MANIFEST}")
    return data


def _place(entry: InputFile) -> tuple[bool, int, str]:
    """Where an input stands in the list: the base first, then the adapters by number."""
    return entry.role != "base", int(entry.role.partition("-")[2] or 0), entry.file


def _decimals(alpha: object) -> Iterator[object]:
    """Every number in `alpha`, and what is in its place."""
    for one in alpha if isinstance(alpha, list) and len(alpha) > 1 else [alpha]:
        yield from one.values() if isinstance(one, dict) else [one]


def _sealed(table: Mapping[str, object]) -> bytes:
    """The one spelling of a manifest, with the digest of all its other fields in it: no bit can flip unseen."""
    plain = json.dumps(table, indent=2, sort_keys=True).encode("ascii")
    return (json.dumps({**table, SEAL: blake3(plain).hexdigest()}, indent=2, sort_keys=True) + "\n").encode("ascii")


def parse_manifest(data: bytes, where: str) -> Manifest:
    """The manifest in `data`.

    Args:
        data: The content of a `wiseft.json`.
        where: The file, for the error.
    Raises:
        CheckpointError: It is not strict JSON; a key is missing, unknown or has the wrong kind of value; a name is
            not a plain relative one; a file is named twice; its own digest is not that of the rest.
    """
    table = _object(load_json(data, where), where, _KEYS)
    if table["format"] != FORMAT:
        raise _bad(f"{where} — format", FORMAT, f"{table['format']!r}")
    version, alpha, policy = table["wiseft"], table["alpha"], as_mapping(table["policy"], f"{where} — policy")
    if not isinstance(version, str) or not version:
        raise _bad(f"{where} — wiseft", "the version of wiseft", f"{version!r}")
    for value in _decimals(alpha):
        if not isinstance(value, str) or not _ALPHA.fullmatch(value) or value == "-0":
            raise _bad(f"{where} — alpha", 'decimals such as "0.5", without needless digits', f"{value!r}")
    if not all(isinstance(value, (str, bool)) for value in policy.values()):
        raise _bad(f"{where} — policy", "text, true or false", f"{dict(policy)!r}")
    adapters = tuple(as_mapping(entry, f"{where} — adapters") for entry in _array(table["adapters"], where, "adapters"))
    inputs = tuple(_input(entry, f"{where} — inputs") for entry in _array(table["inputs"], where, "inputs"))
    outputs = tuple(_output(entry, f"{where} — outputs") for entry in _array(table["outputs"], where, "outputs"))
    _once([f"{entry.role}: {entry.file}" for entry in inputs], where)
    _once([MANIFEST, *(entry.file for entry in outputs)], where)
    if _sealed({key: value for key, value in table.items() if key != SEAL}) != data:
        raise _bad(f"{where} — {SEAL}", "the digest of everything else in it", "something that was changed since")
    return Manifest(version, alpha, adapters, inputs, outputs, policy)  # type: ignore[arg-type]


def check_outputs(folder: Path, manifest: Manifest, files: Files) -> list[tuple[str, str]]:
    """What in `folder` is not as the manifest says: pairs of file and what is wrong, sorted.

    Every listed file is read whole and digested. A file that is not listed is a problem too.

    Raises:
        Fault: The operating system cannot read something.
    """
    entries = {entry.file: entry for entry in manifest.outputs}
    present = set(names_below(folder, files))
    problems = [(name, "not in the manifest") for name in present - entries.keys() - {MANIFEST}]
    for name, entry in entries.items():
        what = _differs(folder / name, entry, files) if name in present else "missing"
        if what is not None:
            problems.append((name, what))
    return sorted(problems)


def _differs(path: Path, entry: OutputFile, files: Files) -> str | None:
    """How a file differs from its entry."""
    try:
        descriptor = files.open_read(path)
    except CheckpointError:
        return "not a regular file"
    try:
        size = files.identity(descriptor)[2]
        if size != entry.bytes:
            return f"{size} bytes, not the {entry.bytes} that were written"
        if digest_file(descriptor, size, files, path) != entry.blake3:
            return "its content is not what was written: the digests differ"
    finally:
        files.close(descriptor)
    return None


def _input(value: object, where: str) -> InputFile:
    """An entry of `inputs`."""
    table = _object(value, where, ("bytes", "file", "role"), ("blake3", "blake3_header"))
    role, digest, header = table["role"], table.get("blake3"), table.get("blake3_header")
    if not (isinstance(role, str) and ROLE.fullmatch(role)) or (digest is None and header is None):
        raise _bad(where, "a role of base or adapter, and a digest", f"{table!r}")
    own = None if digest is None else _digest(digest, where)
    of_header = None if header is None else _digest(header, where)
    return InputFile(role, _name(table["file"], where), _size(table["bytes"], where), own, of_header)


def _output(value: object, where: str) -> OutputFile:
    """An entry of `outputs`."""
    table = _object(value, where, ("blake3", "bytes", "file"))
    return OutputFile(_name(table["file"], where), _size(table["bytes"], where), _digest(table["blake3"], where))


def _object(value: object, where: str, needed: Sequence[str], allowed: Sequence[str] = ()) -> Mapping[str, object]:
    """An object with all of the `needed` keys, any of the `allowed`, and no other; null counts as a value."""
    table = as_mapping(value, where)
    if not set(needed) <= table.keys() <= {*needed, *allowed} or None in table.values():
        raise _bad(where, f"the keys {', '.join([*needed, *allowed])}", ", ".join(sorted(table)))
    return table


def _array(value: object, where: str, key: str) -> list[object]:
    if not isinstance(value, list):
        raise _bad(f"{where} — {key}", "an array", type(value).__name__)
    return value


def _name(value: object, where: str) -> str:
    """A plain relative name: no way out of the folder, no second spelling of the same file."""
    if not isinstance(value, str) or "\0" in value or not all(part not in ("", ".", "..") for part in value.split("/")):
        raise _bad(where, "a file name relative to the folder", f"{value!r}")
    return value


def _size(value: object, where: str) -> int:
    if type(value) is not int or value < 0:
        raise _bad(where, "a number of bytes", f"{value!r}")
    return value


def _digest(value: object, where: str) -> str:
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise _bad(where, "a BLAKE3 digest: 64 digits of lower-case hex", f"{value!r}")
    return value


def _once(names: Sequence[str], where: str) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise _bad(f"{where} — files", "each file once, and the manifest itself not at all", listed(twice))


def _bad(where: str, expected: str, got: str) -> CheckpointError:
    return CheckpointError(
        where, expected=expected, got=got, hint="the manifest is damaged or was edited: make the output again"
    )
