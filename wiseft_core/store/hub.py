"""Names on the Hugging Face hub, `org/model` and `org/model@revision`, wherever a path is taken for reading.

Store room, no torch. A path that exists always wins. Else the snapshot is taken from the local cache, by its layout
alone; only what is not there, or not whole, is downloaded, with huggingface_hub where that is installed.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Final, NamedTuple

from wiseft_core.errors import CheckpointError, listed
from wiseft_core.store.files import FILES, Files
from wiseft_core.store.locate import FOREIGN, SUFFIX, commit, read_index

FETCHED: Final = (
    f"*{SUFFIX}", "*.json", "*.jinja", "*.txt", "*.model", "*.model.v*", "*.spm", "*.bpe", "*.codes",
)  # fmt: skip
"""What is downloaded of a repository: weights, configs, and the files of tokenizers."""
_NAME: Final = re.compile(
    r"([A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95})(?:@([A-Za-z0-9][A-Za-z0-9._/-]{0,199}))?",
    re.ASCII,
)
_COMMIT: Final = re.compile(r"[0-9a-f]{40}", re.ASCII)
_TRUE: Final = frozenset({"1", "on", "yes", "true"})


class Name(NamedTuple):
    """A repository on the hub, and the branch, tag or commit that is meant."""

    repository: str
    revision: str

    @property
    def folder(self) -> Path:
        """Where the cache keeps it."""
        return cache_folder() / f"models--{self.repository.replace('/', '--')}"

    @property
    def command(self) -> str:
        """What downloads it."""
        return f"hf download {self.repository}" + ("" if self.revision == "main" else f" --revision {self.revision}")


def found(path: str | os.PathLike[str], files: Files = FILES) -> Path:
    """`path` itself; or, where nothing is there and it is spelled as a name on the hub, the snapshot of that name.

    Args:
        path: A path or a name.
        files: The seam to look through.
    Raises:
        CheckpointError: The snapshot is not in the cache, or not whole, and cannot be downloaded.
        Fault: The operating system cannot read the cache.
    """
    given, name = Path(path), parse_name(os.fspath(path))
    if name is None or files.status(given, follow=False) is not None:
        return given
    snapshot = _cached(name, files)
    lacking = [] if snapshot is None else _lacking(snapshot, files)
    if snapshot is not None and not lacking:
        return snapshot
    fetched = _download(name, snapshot, lacking)
    if lacking := _lacking(fetched, files):  # without a network, huggingface_hub gives what it has
        raise _refusal(name, fetched, lacking, f"fetch what is missing: {name.command}")
    return fetched


def parse_name(text: str) -> Name | None:
    """The name that `text` spells; None where it can only be a path, that of a file included."""
    match = _NAME.fullmatch(text)
    if match is None or "--" in match[1] or ".." in text or match[1].endswith((SUFFIX, ".json", ".git", *FOREIGN)):
        return None
    revision = match[2] or "main"
    return Name(match[1], revision) if "" not in revision.split("/") else None


def cache_folder() -> Path:
    """The cache of huggingface_hub, as the environment says."""
    ask = os.environ.get
    home = ask("HF_HOME") or os.path.join(ask("XDG_CACHE_HOME") or os.path.join("~", ".cache"), "huggingface")
    place = ask("HF_HUB_CACHE") or ask("HUGGINGFACE_HUB_CACHE") or os.path.join(home, "hub")
    return Path(os.path.expandvars(os.path.expanduser(place)))


def _cached(name: Name, files: Files) -> Path | None:
    """The snapshot in the cache, whole or not; None where there is none."""
    reference = name.folder / "refs" / name.revision
    if _COMMIT.fullmatch(name.revision):
        snapshot = name.folder / "snapshots" / name.revision
    elif files.status(reference) is not None:
        snapshot = name.folder / "snapshots" / commit(reference, files)
    else:
        return None
    return snapshot if files.status(snapshot) is not None else None


def _lacking(snapshot: Path, files: Files) -> list[str]:
    """Files that a snapshot should hold and does not: links to nothing, shards that an index names, any weights."""
    folders, names = [""], set[str]()
    for folder in folders:
        for entry in files.list_folder(snapshot / folder):
            seen = files.status(snapshot / folder / entry)
            if not folder and seen is not None and stat.S_ISDIR(seen.st_mode):
                folders.append(f"{entry}/")
            elif seen is not None:
                names.add(folder + entry)
    wanted = set[str]()
    for name in names:
        if f"{SUFFIX}.index." in name and name.endswith(".json"):
            folder = name[: name.rfind("/") + 1]
            wanted |= {folder + shard for shard in read_index(snapshot / name, files).weight_map.values()}
    if not wanted and not any(name.endswith((SUFFIX, *FOREIGN)) for name in names):
        return [f"a {SUFFIX} file"]
    return sorted(wanted - names)


def _download(name: Name, snapshot: Path | None, lacking: list[str]) -> Path:
    """The snapshot, from the network.

    Raises:
        CheckpointError: The environment says that there is none, huggingface_hub is not installed, or it fails.
    """
    offline = [key for key in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if os.environ.get(key, "").lower() in _TRUE]
    if offline:
        raise _refusal(name, snapshot, lacking, f"unset {offline[0]} to have it downloaded, or run: {name.command}")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        hint = f"pip install 'wiseft_core[hub]' to have it downloaded, or run: {name.command}"
        raise _refusal(name, snapshot, lacking, hint) from error
    try:
        return Path(
            snapshot_download(
                name.repository, revision=name.revision, cache_dir=cache_folder(), allow_patterns=list(FETCHED)
            )
        )
    except Exception as error:  # no network, no such name, no permission: huggingface_hub has an error for each
        said = " ".join(f"{type(error).__name__}: {error}".split())
        hint = f"check the name, the network and `hf auth login`; to try alone: {name.command}"
        raise _refusal(name, snapshot, lacking, hint, said) from error


def _refusal(name: Name, snapshot: Path | None, lacking: list[str], hint: str, said: str = "") -> CheckpointError:
    text = f"{name.repository}@{name.revision}"
    got = f"no such path, and nothing in {name.folder}" if snapshot is None else f"{snapshot} without {listed(lacking)}"
    return CheckpointError(
        f"{text} — not here" if snapshot is None else f"{text} — its snapshot in the cache is incomplete",
        expected="a path, or a whole snapshot in the Hugging Face cache",
        got=f"{got}; {said}" if said else got,
        hint=hint,
    )
