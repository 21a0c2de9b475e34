"""What a pair is: a tiny model of a real architecture, an adapter that PEFT makes on it, and what must come out.

Nothing here knows how the package finds names: a base is saved by transformers, an adapter by PEFT, and the output is
judged by what transformers loads from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

State = dict[str, Tensor]
FRESH = {"transpose/weight": "the base has no such head to say its shape"}
SHORTER = {"suffix": "the shorter name is the very name that the base has"}
RULED = {
    "suffix": "transformers' own rules load the shorter name into the same parameter",
    "doubled": "transformers' own rules load the longer name into the same parameter",
}
FORMATS = ("original", "memory")


@dataclass(frozen=True)
class Pair:
    """A base, an adapter and the truth about both.

    Attributes:
        name: What the case shows.
        model: The base's key in `models.MODELS`.
        options: Arguments of PEFT's config.
        method: PEFT's config class is this with "Config" appended.
        tuned: The class that is tuned and loaded, where it is not the base's.
        vocabulary: The tuned model's size of vocabulary, where it was resized.
        spell: New spelling of the base's names on disk, after transformers saved them.
        turn: The ends of the names whose matrices lie the other way round on disk, as older code had them.
        respell: New spelling of the adapter's keys, after PEFT saved them.
        by_hand: Makes adapter (keys without PEFT's prefix) and tuned state from the base's, instead of PEFT.
        oracle: The tuned state by formula, where PEFT's merge is not the truth: (base, adapter, PEFT's merge) to state.
        fault: What PEFT does wrong, if `oracle` stands in for its merge.
        tied: The argument of `interpolate`.
        origin: The base's name of a tuned tensor, where layers were replicated.
        absent: Parameters that neither base nor adapter has: transformers must miss them, and nobody can compare them.
        legal: Perturbations that may be taken, by label ("suffix/lora_A.weight") or kind ("suffix"), and why.
        refused: The error by which the package refuses the pair as it is, where that is right.
        formats: The formats that the base is saved in.
    """

    name: str
    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    method: str = "Lora"
    tuned: str = ""
    vocabulary: int = 0
    spell: Callable[[str], str] | None = None
    turn: tuple[str, ...] = ()
    respell: Callable[[str], str] | None = None
    by_hand: Callable[[State], tuple[State, State]] | None = None
    oracle: Callable[[State, State, State], State] | None = None
    fault: str = ""
    tied: str = "untie"
    origin: Callable[[str], str] | None = None
    absent: frozenset[str] = frozenset()
    legal: Mapping[str, str] = field(default_factory=dict)
    refused: str = ""
    formats: tuple[str, ...] = FORMATS


def lora(*targets: str, **options: Any) -> dict[str, Any]:
    """Arguments of a LoraConfig of rank 4 and scale 2."""
    return {"r": 4, "lora_alpha": 8, **({"target_modules": list(targets)} if targets else {}), **options}


def swap(*changes: tuple[str, str]) -> Callable[[str], str]:
    """A spelling that replaces the first of `changes` whose left side starts or is in the name."""

    def spelled(name: str) -> str:
        for old, new in changes:
            if old.startswith("^") and name.startswith(old[1:]):
                return new + name[len(old) - 1 :]
            if not old.startswith("^") and old in name:
                return name.replace(old, new, 1)
        return name

    return spelled
