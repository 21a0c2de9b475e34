"""Sites: which parameter of which module each adapter tensor speaks of.

Joint floor: names only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from wiseft_core.errors import UnclaimedKey, listed
from wiseft_core.naming.peft import UNUSED, PeftKey

WRAPPER: Final = ".base_layer"
"""What PEFT puts into the path of a module for each of its wrappers around it."""


@dataclass(frozen=True, slots=True)
class Site:
    """All adapter tensors of one parameter: factors by role, as adapter keys.

    Attributes:
        method: PEFT's word for the method whose keys they have; "" for LoRA and for what comes with every method.
        companion: Whether the parameter has no key of its own, and changes with the factors of another one.
        depth: How many of PEFT's wrappers its keys go through to the parameter: it nests one for each parameter that
            it changes of a module, and its keys do not name these.
        twice: Whether PEFT counts the change twice: that of the output projection of torch's attention.
    """

    module: str
    parameter: str
    factors: Mapping[str, str]
    method: str = ""
    companion: bool = False
    depth: int = 0
    twice: bool = False

    @property
    def target(self) -> str:
        """The parameter's name as the adapter sees the model."""
        return f"{self.module}.{self.parameter}" if self.module else self.parameter


def collect(parsed: Mapping[str, PeftKey]) -> tuple[Site, ...]:
    """Group parsed adapter keys by module and parameter, in the adapter's order; shared factors belong to every group.

    Raises:
        UnclaimedKey: A factor is shared by no module.
    """
    shared = _shared(parsed)
    copied = copies(parsed)
    groups: dict[tuple[str, str], dict[str, str]] = {}
    methods: dict[tuple[str, str], str] = {}
    within: dict[tuple[str, str], str] = {}
    for key, part in parsed.items():
        if part.role not in UNUSED and not part.shared and key not in copied:
            groups.setdefault(part[:2], {})[part.role] = key
            methods[part[:2]] = part.method or methods.get(part[:2], "")
            within[part[:2]] = part.group or within.get(part[:2], "")
    there = {(methods[at], group) for at in groups for group in ("", within[at])}
    lonely = [key for (method, _, group), key in shared.items() if (method, group) not in there]
    if lonely:
        raise UnclaimedKey(
            f"{listed(lonely)} — a factor that all modules share, and there is no module",
            expected="factors of at least one module beside it",
            got="none",
            hint="the adapter file is damaged",
        )
    for at, factors in groups.items():
        factors |= {
            role: key
            for (method, role, group), key in shared.items()
            if method == methods[at] and group in ("", within[at])
        }
    return tuple(_site(*at, factors, methods[at]) for at, factors in groups.items())


def _site(module: str, parameter: str, factors: Mapping[str, str], method: str) -> Site:
    """A site by the path that its module has without PEFT's wrappers."""
    path = module.removesuffix(WRAPPER)
    while path != (shorter := path.removesuffix(WRAPPER)):
        path = shorter
    depth = (len(module) - len(path)) // len(WRAPPER) if "value" not in factors else 0  # a value is named by its key
    twice = f"{WRAPPER}.out_proj" in path  # below the wrapper of the attention itself
    return Site(path.replace(f"{WRAPPER}.", "."), parameter, factors, method, depth=depth, twice=twice)


def _shared(parsed: Mapping[str, PeftKey]) -> dict[tuple[str, str, str], str]:
    """The keys of what many modules share, by method, role and group of modules."""
    return {
        (said.method, said.role, said.group): key
        for key, said in parsed.items()
        if said.shared and said.role != "ignored"
    }


def copies(parsed: Mapping[str, PeftKey]) -> dict[str, str]:
    """Keys of a module's own copies of what the whole model shares, each with the key of that."""
    shared = _shared(parsed)
    return {
        key: shared[at]
        for key, said in parsed.items()
        if not said.shared and (at := (said.method, said.role, said.group)) in shared
    }


def covers(entry: str, path: str) -> bool:
    """Whether an entry of modules_to_save wraps the module at `path`, or one that it is in.

    PEFT's own test has no dot boundary in front: "head" saves lm_head and all below it.
    """
    return any(outer.endswith(entry) for outer in chain(path))


def chain(path: str) -> list[str]:
    """A module and those that it is in, outermost first."""
    parts = path.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
