"""What all verbs know of the run that they are part of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Session:
    """One run of the command.

    Attributes:
        alone: The process belongs to the command, so that torch's global settings may be set.
    """

    alone: bool = False

    def settle_torch(self) -> None:
        """One thread inside each torch call, in a process of our own: tiles and shards are what runs in parallel."""
        if self.alone:
            import torch

            torch.set_num_threads(1)
