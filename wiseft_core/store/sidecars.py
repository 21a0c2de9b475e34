"""The files beside the weights: which of them go along, and which are left out and why.

Store room. Everything in a folder may come from a stranger: links are followed only inside the folder and to its
Hugging Face blobs, code is not copied unless asked for, and what is left out is always told.
"""

from __future__ import annotations

import stat
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Final

from wiseft_core.errors import CheckpointError, InputChanged, show
from wiseft_core.store.files import Files, read_file
from wiseft_core.store.manifest import MANIFEST
from wiseft_core.store.writer import copy_file, write_file

OTHER_WEIGHTS: Final = (
    "*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.onnx", "*.gguf", "*.msgpack", "*.tflite", "*.ot", "*.safetensors",
    "*.safetensors.index*.json", "*.bin.index*.json",
)  # fmt: skip
TOKENIZER: Final = frozenset({
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "vocab.txt", "vocab.bpe", "encoder.json", "merges.txt", "bpe.codes", "tokenizer.model", "tokenizer.model.v3",
    "tokenizer.model.v7", "tiktoken.model", "tekken.json", "spiece.model", "spm.model", "sentencepiece.model",
    "sentencepiece.bpe.model", "source.spm", "target.spm", "chat_template.jinja", "chat_template.json",
})  # fmt: skip
TOKENIZER_FOLDER: Final = "additional_chat_templates"
TOKENIZER_PROOF: Final = frozenset({"tokenizer.json", "tokenizer_config.json", "tokenizer.model"})
"""An adapter folder with one of these has a tokenizer of its own."""
ENTRY_LIMIT: Final = 10_000
TOKENIZERS_DIFFER: Final = "the adapters bring different tokenizers: the base's is kept"
TOKENIZERS_STAY: Final = "an adapter's tokenizer: a pipeline keeps those that it has"
_FOLDERS: Final = frozenset({".git", ".cache"})


@dataclass(frozen=True, slots=True)
class Sidecars:
    """What goes along with the weights.

    Attributes:
        copies: Relative name and source of each file to copy, sorted; links are resolved.
        left_out: Relative name and reason of what is not copied, sorted; names are safe to print.
    """

    copies: tuple[tuple[str, Path], ...]
    left_out: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class _Found:
    """An entry of a folder: a file to copy, or the reason why it is not one."""

    name: str
    source: Path
    reason: str | None = None


def plan_sidecars(
    base_folder: Path | None,
    adapter_folders: Sequence[Path],
    *,
    copy_code: bool,
    taken: Collection[str],
    files: Files,
    pipeline: bool = False,
) -> Sidecars:
    """What to copy from beside the weights of the base, and the tokenizer of the adapter where it has one.

    Args:
        base_folder: The folder of the base; every regular file in it goes along, at any depth, links dereferenced,
            except other weight formats, `.git`, `.cache`, Python code, manifests, and what is unsafe.
        adapter_folders: The folder of the adapter. If a tokenizer is in it, it replaces the base's, as a whole;
            nothing else is taken from it. Of several folders, those with a tokenizer must have the same one: else the
            base's stays.
        copy_code: Take `*.py` too.
        taken: Relative names that the run reads or writes by itself; they are neither copied nor listed.
        files: The seam to look through.
        pipeline: The base is a pipeline, whose tokenizers lie in folders of their own: they stay.
    Raises:
        CheckpointError: More than 10000 entries.
        Fault: A folder cannot be read.
    """
    found = list(_walk(base_folder, files)) if base_folder is not None else []
    found = [_judge(entry, copy_code) for entry in found if entry.name not in taken]
    brought = [entries for folder in adapter_folders if (entries := _tokenizer(folder, copy_code, taken, files))]
    alike = not pipeline and all(_contents(entries, files) == _contents(brought[0], files) for entries in brought[1:])
    if brought and alike:
        found = [_replaced(entry) if _of_tokenizer(entry.name) else entry for entry in found] + brought[0]
    elif brought:
        names = sorted({entry.name for entries in brought for entry in entries})
        reason = TOKENIZERS_STAY if pipeline else TOKENIZERS_DIFFER
        found += [_Found(name, base_folder or Path(), reason) for name in names]
    copies = {entry.name: entry.source for entry in found if entry.reason is None}
    left_out = {(show(entry.name), entry.reason) for entry in found if entry.reason is not None}
    return Sidecars(tuple(sorted(copies.items())), tuple(sorted(left_out)))


def _tokenizer(folder: Path, copy_code: bool, taken: Collection[str], files: Files) -> list[_Found]:
    """The files of an adapter's tokenizer; none where it has no tokenizer of its own."""
    entries = [_judge(entry, copy_code) for entry in _walk(folder, files, tokenizer_only=True)]
    entries = [entry for entry in entries if _of_tokenizer(entry.name) and entry.name not in taken]
    return entries if any(entry.name in TOKENIZER_PROOF and entry.reason is None for entry in entries) else []


def _contents(entries: Sequence[_Found], files: Files) -> dict[str, bytes]:
    """The content of each file that would be copied, by name."""
    return {entry.name: read_file(entry.source, files) for entry in entries if entry.reason is None}


def copy_sidecar(source: Path, target: Path, files: Files, sync: bool, replace: bytes | None = None) -> tuple[int, str]:
    """Copy the content of one file, or write `replace` in its stead; its size and digest.

    The mode is what the umask leaves, whatever the source has; missing folders above `target` are made.

    Raises:
        CheckpointError: The source is gone, or is no regular file any more.
        InputChanged: The source changed while it was copied.
        Fault: The operating system fails.
    """
    files.make_folders(target.parent)
    if replace is not None:
        return len(replace), write_file(target, replace, files, sync)
    descriptor = files.open_read(source)
    try:
        before = files.identity(descriptor)
        try:
            digest = copy_file(descriptor, before[2], target, files, sync)
        finally:  # a source that ended early is one that changed
            _check_unchanged(source, descriptor, before, files)
    finally:
        files.close(descriptor)
    return before[2], digest


def _check_unchanged(source: Path, descriptor: int, before: tuple[int, ...], files: Files) -> None:
    """Refuse a file that is not what it was when it was opened."""
    if files.is_changed(descriptor, before):
        raise InputChanged(
            f"{source} — changed while it was copied",
            expected=f"size, mtime and ctime as at opening: {before[2:]}",
            got=f"{files.identity(descriptor)[2:]}",
            hint="do not write to inputs while wiseft runs; run again once they are at rest",
        )


def _walk(root: Path, files: Files, *, tokenizer_only: bool = False) -> Iterator[_Found]:
    """Every entry under `root` that is not a folder, and the folders that are not entered."""
    real = files.resolve(root)
    allowed = [real]
    for place in (real, real.parent):  # a snapshot, or a component of one
        if place.parent.name == "snapshots":
            allowed.append(place.parent.parent / "blobs")
    seen = 0
    # Each folder to visit carries the real folders above it: a link back to one of them would never end.
    todo: list[tuple[str, Path, frozenset[Path]]] = [("", real, frozenset({real}))]
    while todo:
        prefix, folder, above = todo.pop()
        for entry in files.list_folder(folder):
            name, path = prefix + entry, folder / entry
            if tokenizer_only and not (_of_tokenizer(name) or name == TOKENIZER_FOLDER):
                continue
            seen += 1
            if seen > ENTRY_LIMIT:
                raise _too_many(root)
            source, reason, is_folder = _look(path, allowed, files)
            if reason is None and entry in _FOLDERS:
                reason = "kept by a tool for itself"
            if is_folder and reason is None and source in above:
                reason = "a link to a folder that it is in"
            if is_folder and reason is None:
                todo.append((f"{name}/", source, above | {source}))
            else:
                yield _Found(name, source, reason)


def _look(path: Path, allowed: list[Path], files: Files) -> tuple[Path, str | None, bool]:
    """Where an entry really is, why it cannot be taken if so, and whether it is a folder."""
    own = files.status(path, follow=False)
    linked = own is not None and stat.S_ISLNK(own.st_mode)
    source = files.resolve(path) if linked else path
    seen = files.status(source) if linked else own
    if seen is None:
        return source, "a link to nothing", False
    if linked:
        inside = [source.relative_to(folder) for folder in allowed if source.is_relative_to(folder)]
        if not inside:
            return source, "a link that leaves the folder", False
        if _FOLDERS.intersection(inside[0].parts):
            return source, "a link to what a tool keeps for itself", False
    is_folder = stat.S_ISDIR(seen.st_mode)
    if not is_folder and not stat.S_ISREG(seen.st_mode):
        return source, "not a regular file", False
    return source, None, is_folder


def _judge(entry: _Found, copy_code: bool) -> _Found:
    """`entry` with the reason that its name gives to leave it out, where it has none yet."""
    reason, base = entry.reason, PurePosixPath(entry.name).name.lower()
    if reason is None:
        if show(entry.name, limit=4096) != entry.name:
            reason = "its name is not safe to print"
        elif MANIFEST in PurePosixPath(entry.name.lower()).parts:  # a folder of that name too: ours goes there
            reason = "the manifest of another output"
        elif any(fnmatchcase(base, pattern) for pattern in OTHER_WEIGHTS):
            reason = "other weights, which would not be interpolated"
        elif base.endswith(".py") and not copy_code:
            reason = "code: ask for it with --copy-code"
    return _Found(entry.name, entry.source, reason)


def _of_tokenizer(name: str) -> bool:
    return name in TOKENIZER or name.startswith(f"{TOKENIZER_FOLDER}/")


def _replaced(entry: _Found) -> _Found:
    return _Found(entry.name, entry.source, entry.reason or "the adapter has a tokenizer of its own")


def _too_many(root: Path) -> CheckpointError:
    return CheckpointError(
        f"{root} — too many files beside the weights",
        expected=f"at most {ENTRY_LIMIT} of them",
        got="more",
        hint="is this the folder of one model? Links to folders in it count with all that is in them",
    )
