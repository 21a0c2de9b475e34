"""What the manifest says of a run: which inputs, which alpha, which policy, which outputs.

Verb floor, below `offline`. No time, path, thread count or verb: the same inputs give the same bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from blake3 import blake3

from wiseft_core.errors import ConfigError, listed
from wiseft_core.schedules import canonical
from wiseft_core.sources import CONFIG_FILE, WEIGHTS_FILE, Adapter, Source
from wiseft_core.statedict import StateDict
from wiseft_core.store.checkpoint import Checkpoint
from wiseft_core.store.files import Files, read_file
from wiseft_core.store.manifest import (
    MANIFEST,
    Decimals,
    InputFile,
    Manifest,
    OutputFile,
    build_manifest,
    check_outputs,
    parse_manifest,
)
from wiseft_core.store.writer import digest_file
from wiseft_core.types import Alpha
from wiseft_core.version import __version__

if TYPE_CHECKING:
    from torch import Tensor


def manifest_of(
    view: StateDict | Source,
    outputs: Mapping[str, tuple[int, str]],
    files: Files,
    *,
    synced: bool,
    policy: Mapping[str, str] | None = None,
) -> bytes:
    """The bytes of wiseft.json for a finished output.

    Args:
        view: What was written.
        outputs: Size and digest of every file, by name.
        files: The seam to read adapter files through, for their digests.
        synced: Whether everything was forced to disk.
        policy: What else to say of how a view was written.
    """
    entries = [OutputFile(name, size, digest) for name, (size, digest) in outputs.items()]
    if not isinstance(view, StateDict):
        return build_manifest(
            version=__version__,
            alpha={},
            adapters=[],
            inputs=_inputs("base", view, files),
            outputs=entries,
            policy={"synced": synced},
        )
    bound = view.bound
    parts = _parts(view, files)
    adapters = [{"alpha": alpha, "files": [entry.file for entry in entries]} for alpha, entries in parts]
    return build_manifest(
        version=__version__,
        alpha=parts[0][0] if len(parts) == 1 else [alpha for alpha, _ in parts],
        adapters=adapters,
        inputs=[*_inputs("base", bound.base, files), *(entry for _, entries in parts for entry in entries)],
        outputs=entries,
        policy={
            "compute_dtype": bound.compute,
            "output_dtype": bound.output_dtype or "base",
            "overflow": bound.overflow,
            "extrapolate": view.extrapolate,
            "tied": bound.tied,
            "synced": synced,
            **(policy or {}),
        },
    )


def _parts(view: StateDict, files: Files) -> list[tuple[Decimals, list[InputFile]]]:
    """Alpha and files of each adapter; of several in an order of their contents, whatever order they were given in."""
    found = [
        (_alpha_text(alpha, alphas), adapter_files(part.adapter, part.config_bytes, files))
        for alpha, alphas, part in zip(view.given, view.alphas, view.bound.parts, strict=True)
    ]
    if len(found) == 1:
        return found
    found.sort(key=lambda pair: json.dumps([[asdict(entry) for entry in pair[1]], pair[0]], sort_keys=True))
    return [
        (alpha, [replace(entry, role=f"adapter-{number}") for entry in entries])
        for number, (alpha, entries) in enumerate(found, start=1)
    ]


def adapter_files(tensors: object, config_bytes: bytes | None, files: Files) -> list[InputFile]:
    """The identity of an adapter's files: its weights, and its config as it was parsed, whatever the file holds now."""
    entries = _inputs("adapter", tensors, files)
    if entries and config_bytes is not None:
        entries.append(InputFile("adapter", CONFIG_FILE, len(config_bytes), blake3(config_bytes).hexdigest(), None))
    return entries


def paired(adapters: Sequence[Adapter | Mapping[str, Tensor]], manifest: Manifest, files: Files) -> list[Alpha]:
    """The alpha that each of some adapters had in the combination that a manifest tells of.

    Raises:
        ConfigError: They are not its adapters.
    """
    recorded: Sequence[Decimals] = [manifest.alpha] if isinstance(manifest.alpha, str | Mapping) else manifest.alpha
    roles = ["adapter"] if len(recorded) == 1 else [f"adapter-{number}" for number in range(1, len(recorded) + 1)]
    left = {
        number: [replace(entry, role="adapter") for entry in manifest.inputs if entry.role == role]
        for number, role in enumerate(roles, start=1)
    }
    alphas = list[Alpha]()
    for adapter in adapters:
        tensors, config = (adapter.tensors, adapter.config_bytes) if isinstance(adapter, Adapter) else (adapter, None)
        seen = sorted(adapter_files(tensors, config, files), key=lambda entry: entry.file)
        number = next((number for number, entries in left.items() if entries == seen), 0)
        if not number or len(adapters) != len(recorded):
            raise ConfigError(
                "the adapters to verify against",
                expected=f"the {len(recorded)} adapters that the output was made from, by their files' digests",
                got=f"{len(adapters)}" + ("" if number else ", one of them with other files"),
                hint="give every adapter of the combination, in any order, as it was then",
            )
        del left[number]
        alphas.append(alpha_of(recorded[number - 1]))
    return alphas


def alpha_of(text: Decimals) -> Alpha:
    """Alpha from a manifest's text."""
    return float(text) if isinstance(text, str) else {name: float(value) for name, value in text.items()}


def job_of(view: StateDict | Source, headers: Sequence[bytes], files: Files, *, synced: bool) -> bytes:
    """All that decides the bytes of an output, for a run that may be resumed.

    Inputs are known by device, inode, size and times too: a resumed run must not mix what was read before and after a
    change that leaves the header as it is.
    """
    seen = [file.identity for source in sources(view) for file in source.files]
    digests = [blake3(header).hexdigest() for header in headers]
    return manifest_of(view, {}, files, synced=synced) + json.dumps([seen, digests]).encode()


def check_resumable(view: StateDict | Source) -> None:
    """Refuse to resume what is made from memory: nothing tells whether that is the same as before."""
    count = len(sources(view))
    if count < (1 + len(view.bound.parts) if isinstance(view, StateDict) else 1):
        raise ConfigError(
            "resume",
            expected="a base and an adapter that were opened from files",
            got="tensors in memory",
            hint="pass paths to interpolate, or write without resume",
        )


def finished(out: Path, view: StateDict | Source, files: Files, *, synced: bool) -> Manifest | None:
    """The manifest of a whole output at `out` that says it is this job's; None where there is no manifest.

    A manifest knows the headers of a base and not its values: those are still to be compared.

    Raises:
        ConfigError: An output of another job is there, or it is not sound any more.
    """
    if files.status(out / MANIFEST) is None:
        return None
    there = parse_manifest(read_file(out / MANIFEST, files), str(out / MANIFEST))
    wanted = parse_manifest(manifest_of(view, {}, files, synced=synced), MANIFEST)
    broken = check_outputs(out, there, files)
    if replace(there, outputs=()) != wanted or broken:
        names = listed([name for name, _ in broken])
        raise other_job(out, f"problems with {names}" if broken else "a manifest that differs")
    return there


def other_job(out: Path, got: str) -> ConfigError:
    """The refusal to take what is at `out` for a finished output of this job."""
    return ConfigError(
        f"{out} — an output is there, and it is not this job's",
        expected="a whole output of the same inputs, alpha, policy and version",
        got=got,
        hint="choose another folder, or remove this one yourself",
    )


def sources(view: StateDict | Source) -> list[Checkpoint]:
    """The checkpoints on disk that a view reads from."""
    bound = view.bound if isinstance(view, StateDict) else None
    found = [view] if bound is None else [bound.base, *(part.adapter for part in bound.parts)]
    return [source for source in found if isinstance(source, Checkpoint)]


def _alpha_text(given: Alpha, resolved: Mapping[str, float]) -> Decimals:
    """Alpha as a canonical decimal, or one for each touched name where they may differ."""
    if isinstance(given, Mapping) or callable(given):
        return {name: canonical(alpha) for name, alpha in resolved.items()}
    return canonical(given)


def _inputs(role: str, source: object, files: Files) -> list[InputFile]:
    """The identity of each file of an input: its header's digest, and that of an adapter's whole content."""
    if not isinstance(source, Checkpoint):
        return []
    entries = []
    for file in source.files:
        size, header = file.header.size, blake3(file.header.raw).hexdigest()
        small = role == "adapter" and len(source.files) == 1
        content = digest_file(file.descriptor, size, files, file.path) if small else None
        entries.append(InputFile(role, file.name, size, content, header))
    return entries


def folder_of(source: object) -> Path | None:
    """The folder that an input has for itself; None for what is in memory, and for a file that was given alone."""
    if not isinstance(source, Checkpoint):
        return None
    return source.path.parent if source.path.name == WEIGHTS_FILE else source.folder


def places(source: Source) -> list[tuple[int, int]]:
    """Device and inode of the files of an input and of its folder, which an output must not be or lie in."""
    if not isinstance(source, Checkpoint):
        return []
    seen = [os.fstat(file.descriptor) for file in source.files]
    folder = folder_of(source)
    if folder is not None:
        seen.append(folder.stat())
    return [(entry.st_dev, entry.st_ino) for entry in seen]
