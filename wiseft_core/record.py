"""What the manifest says of a run: which inputs, which alpha, which policy, which outputs.

Verb floor, below `offline`. No time, path, thread count or verb: the same inputs give the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from blake3 import blake3

from wiseft_core import __version__, dtypes
from wiseft_core.schedules import canonical
from wiseft_core.sources import CONFIG_FILE, WEIGHTS_FILE, Source
from wiseft_core.statedict import StateDict
from wiseft_core.store.checkpoint import Checkpoint
from wiseft_core.store.files import Files
from wiseft_core.store.manifest import InputFile, OutputFile, build_manifest
from wiseft_core.store.writer import digest_file


def manifest_of(
    view: StateDict | Source, outputs: Mapping[str, tuple[int, str]], files: Files, *, synced: bool
) -> bytes:
    """The bytes of wiseft.json for a finished output.

    Args:
        view: What was written.
        outputs: Size and digest of every file, by name.
        files: The seam to read adapter files through, for their digests.
        synced: Whether everything was forced to disk.
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
    adapter = _inputs("adapter", bound.adapter, files)
    return build_manifest(
        version=__version__,
        alpha=alpha_text(view),
        adapters=[{"alpha": alpha_text(view), "files": [entry.file for entry in adapter]}],
        inputs=[*_inputs("base", bound.base, files), *adapter],
        outputs=entries,
        policy={
            "compute_dtype": dtypes.dtype_name(bound.compute),
            "output_dtype": bound.output_dtype or "base",
            "overflow": bound.overflow,
            "extrapolate": view.extrapolate,
            "synced": synced,
        },
    )


def alpha_text(view: StateDict) -> str | dict[str, str]:
    """Alpha as a canonical decimal, or one for each touched name where they differ."""
    values = {name: canonical(alpha) for name, alpha in view.alphas.items()}
    if isinstance(view.alpha, Mapping) or callable(view.alpha):
        return values
    return canonical(float(view.alpha))


def _inputs(role: str, source: Source, files: Files) -> list[InputFile]:
    """The identity of each file of an input: its header's digest, and that of an adapter's whole content."""
    if not isinstance(source, Checkpoint):
        return []
    entries = []
    for file in source.files:
        size, header = file.header.size, blake3(file.header.raw).hexdigest()
        small = role == "adapter" and len(source.files) == 1
        content = digest_file(file.descriptor, size, files, file.path) if small else None
        entries.append(InputFile(role, file.name, size, content, header))
    config = source.path.parent / CONFIG_FILE
    if role == "adapter" and config.exists():
        entries.append(_small(role, config, files))
    return entries


def _small(role: str, path: Path, files: Files) -> InputFile:
    """The identity of a small file: its size and the digest of its content."""
    descriptor = files.open_read(path)
    try:
        size = files.identity(descriptor)[2]
        return InputFile(role, path.name, size, digest_file(descriptor, size, files, path), None)
    finally:
        files.close(descriptor)


def places(source: Source) -> list[tuple[int, int]]:
    """Device and inode of the files of an input and of its folder, which an output must not be or lie in."""
    if not isinstance(source, Checkpoint):
        return []
    seen = [os.fstat(file.descriptor) for file in source.files]
    folder = source.path.parent if source.path.name == WEIGHTS_FILE else source.folder
    if folder is not None:
        seen.append(folder.stat())
    return [(entry.st_dev, entry.st_ino) for entry in seen]
