"""What a verb that writes or checks files tells afterwards.

Ground of the verbs: plain records, no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that `verify` found wrong: the file, the tensor and byte offset in it where known, and what."""

    file: str
    what: str
    tensor: str | None = None
    offset: int | None = None

    def __str__(self) -> str:
        place = self.file if self.tensor is None else f"{self.file}: {self.tensor}"
        return f"{place}: {self.what}" if self.offset is None else f"{place}, byte {self.offset}: {self.what}"


@dataclass(frozen=True, slots=True)
class Report:
    """What was written or checked.

    Attributes:
        path: The output folder.
        tensors: Tensors in it.
        touched: How many of them tuning changes.
        new: Names of tensors that the base does not have.
        bytes: Bytes of all files.
        files: File names, sorted.
        left_out: Files beside the base's weights that were not copied, each with the reason.
        checks: How many of what were checked, in words (`verify`).
        problems: What was found wrong (`verify`); empty means that all is well.
        notes: What a human should know.
    """

    path: str
    tensors: int = 0
    touched: int = 0
    new: tuple[str, ...] = ()
    bytes: int = 0
    files: tuple[str, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()
    checks: Mapping[str, int] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing was found wrong."""
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON sees it."""
        return {
            "format": "wiseft-report/1",
            "path": self.path,
            "ok": self.ok,
            "tensors": self.tensors,
            "touched": self.touched,
            "new": list(self.new),
            "bytes": self.bytes,
            "files": list(self.files),
            "left_out": [{"file": name, "reason": reason} for name, reason in self.left_out],
            "checks": dict(self.checks),
            "problems": [
                {"file": p.file, "tensor": p.tensor, "offset": p.offset, "what": p.what} for p in self.problems
            ],
            "notes": list(self.notes),
        }
