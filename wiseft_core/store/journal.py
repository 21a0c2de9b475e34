"""What a run that may be resumed has finished: which job it is, and which of its shards are whole.

Store room. The journal lies in the staging folder beside the output in the making, never in the output. A record is
written after its shard is, so that a stop between the two costs the shard and nothing else.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Final

from blake3 import blake3

from wiseft_core.errors import CheckpointError, ConfigError
from wiseft_core.store.files import Files, names_below, read_file
from wiseft_core.store.writer import digest_file, write_file

JOURNAL: Final = "journal"
_JOB: Final = "job"
_DONE: Final = "done"


class Journal:
    """The journal in a staging folder.

    Args:
        shell: The staging folder.
        job: Everything that decides the output's bytes: inputs, alpha, policy, version, headers.
        files: The seam to work through.
        sync: Force records to disk.
    """

    def __init__(self, shell: Path, job: bytes, files: Files, *, sync: bool) -> None:
        self._place, self._files, self._sync = shell / JOURNAL, files, sync
        self._identity = blake3(job).hexdigest().encode()

    def begin(self, folder: Path) -> dict[str, str]:
        """Keep what an earlier run of this very job finished, remove everything else; digest of each shard kept.

        Args:
            folder: The output in the making.
        Raises:
            ConfigError: The leftovers are of another job: another input, alpha, policy or version.
        """
        found = self._read(self._place / _JOB)
        kept: dict[str, str] = {}
        if found is not None and found != self._identity and self._recorded():
            raise ConfigError(
                f"{folder.parent} — the stopped run here is of another job",
                expected="the same inputs, unchanged, with the same alpha, policy and version",
                got="something else in its journal",
                hint="to start over, run again without --resume",
            )
        if found == self._identity:
            kept = self._whole(folder)
        self._files.make_folders(folder)
        self._prune(folder, kept)
        self._files.remove_tree(self._place)
        self._files.make_folders(self._place / _DONE)
        write_file(self._place / _JOB, self._identity, self._files, self._sync)
        for name, digest in kept.items():
            self.record(name, digest)
        return kept

    def record(self, name: str, digest: str) -> None:
        """Note that a shard is whole and on disk."""
        if "/" in name:
            self._files.make_folders((self._place / _DONE / name).parent)
        write_file(self._place / _DONE / name, digest.encode(), self._files, self._sync)

    def _prune(self, folder: Path, kept: Collection[str], prefix: str = "") -> None:
        """Remove everything below a folder but the shards that are kept."""
        for entry in self._files.list_folder(folder):
            name = prefix + entry
            if any(shard.startswith(f"{name}/") for shard in kept):
                self._prune(folder / entry, kept, f"{name}/")
            elif name not in kept:
                self._files.remove(folder / entry)

    def _recorded(self) -> list[str]:
        """Names of the shards that have a record."""
        place = self._place / _DONE
        return list(names_below(place, self._files)) if self._files.status(place) is not None else []

    def _whole(self, folder: Path) -> dict[str, str]:
        """The recorded shards that are there and have their digest still."""
        whole = {}
        for name in self._recorded():
            digest = self._read(self._place / _DONE / name)
            try:
                descriptor = self._files.open_read(folder / name)
            except CheckpointError:
                continue
            try:
                size = self._files.identity(descriptor)[2]
                if digest is not None and digest_file(descriptor, size, self._files, name).encode() == digest:
                    whole[name] = digest.decode()
            finally:
                self._files.close(descriptor)
        return whole

    def _read(self, path: Path) -> bytes | None:
        """The digest in a file of the journal; None where there is none, or a torn one."""
        try:
            data = read_file(path, self._files)
        except CheckpointError:
            return None
        return data if len(data) == 64 else None
