"""Adapters in other spellings than PEFT's, as PEFT would have saved them: which key is which, on which base module.

Naming room: strings only. A spelling says what each key is; where its module lies in the base is looked up, never
guessed. What has no place, or two, is refused.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final, NamedTuple

from wiseft_core.errors import AmbiguousName, MissingFactor, UnclaimedKey, Unsupported, WiseftError, listed
from wiseft_core.naming import diffusers, kohya
from wiseft_core.naming.homes import Homes
from wiseft_core.naming.links import Link
from wiseft_core.naming.peft import PREFIX
from wiseft_core.naming.words import COMPONENTS, Word


class Scheme(NamedTuple):
    """A spelling of adapters.

    Attributes:
        parse: What a key says; None where it is none of this spelling's.
        speaks: Whether keys are certainly of this spelling, some of them at least.
    """

    parse: Callable[[str], Word | None]
    speaks: Callable[[Collection[str]], bool]


SCHEMES: Final[Mapping[str, Scheme]] = {
    "diffusers": Scheme(diffusers.parse, diffusers.speaks),
    "kohya": Scheme(kohya.parse, kohya.speaks),
}
"""The spellings that are known besides PEFT's, by name."""
TAILS: Final = {
    "A": "lora_A.weight",
    "B": "lora_B.weight",
    "bias": "lora_B.bias",
    "magnitude": "lora_magnitude_vector",
    "dora_scale": "lora_magnitude_vector",
}
"""What PEFT's keys of LoRA end in, by role."""
STEMS: Final = {"LOHA": "hada_", "LOKR": "lokr_"}
DAMAGED: Final = "the adapter file is damaged"
SUGGESTED: Final = 5
"""How many of the names that are missing are shown with the nearest ones: comparing is slow."""
HINT: Final = "convert the file with the tool that made it, or merge it there and give the merged checkpoint"


class Module(NamedTuple):
    """A module that an adapter changes.

    Attributes:
        spelled: Its name as the file has it, without the component.
        component: Its component, as the file has it.
        base: The base tensors that it changes; several where it joins what the base keeps apart.
        keys: The file's key of each role.
    """

    spelled: str
    component: str
    base: tuple[str, ...]
    keys: Mapping[str, str]


class Factor(NamedTuple):
    """A factor of a module: the module's path in PEFT's keys, the role, and the file's key."""

    path: str
    role: str
    key: str


class Translation(NamedTuple):
    """An adapter as PEFT would have saved it.

    Attributes:
        scheme: How it is spelled.
        method: PEFT's word for the method.
        modules: What it changes, by the path that a module has in PEFT's keys.
        links: What a base tensor, or a tensor that the adapter changes, is where the two do not hold the same.
    """

    scheme: str
    method: str
    modules: Mapping[str, Module]
    links: Mapping[str, tuple[Link, ...]]

    @property
    def factors(self) -> dict[str, Factor]:
        """Every factor by PEFT's key for it; what tells a scale is none."""
        stem = STEMS.get(self.method)
        return {
            f"{PREFIX}{path}.{f'{stem}{role}' if stem else TAILS[role]}": Factor(path, role, key)
            for path, module in self.modules.items()
            for role, key in module.keys.items()
            if role != "alpha"
        }


def detect(keys: Collection[str]) -> str | None:
    """The spelling of an adapter's keys; None for PEFT's, and for a full checkpoint.

    Raises:
        AmbiguousName: They are in two spellings.
    """
    found = [name for name, scheme in SCHEMES.items() if scheme.speaks(keys)]
    if len(found) > 1:
        raise _mixed(f"keys of {' and '.join(found)}")
    return found[0] if found else None


def translate(
    keys: Collection[str], base: Collection[str], component: str | None = None, *, scheme: str | None = None
) -> Translation:
    """An adapter's keys as PEFT would have saved them for this base.

    Args:
        keys: The keys of the adapter.
        base: The names of the base's tensors: of one component, of all components of a pipeline, each name behind its
            component's, or of a single file.
        component: The component to take from an adapter for several; None: all of them.
        scheme: The spelling, where it is known; None: it is detected.

    Raises:
        AmbiguousName: The keys are in several spellings, or a name fits several modules of the base.
        UnclaimedKey: A module is not in the base, or its component is not.
        Unsupported: What a key means is not known, or nothing here can compute it; all of them at once.
    """
    scheme = scheme or detect(keys)
    if scheme is None:
        raise Unsupported("adapter keys", expected=f"a spelling of {listed(SCHEMES)}", got=listed(keys), hint=HINT)
    words = _words(keys, scheme, component)
    method = _method(words)
    homes = Homes(base)
    groups: defaultdict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    problems: list[WiseftError] = []
    for key, word in words.items():
        roles = groups[homes.component(word.component), word.module]
        if word.role in roles:
            problems.append(_twice(key, roles[word.role]))
        roles[word.role] = key
    components = {place for place, _ in groups}
    if "" in homes.components and len(components) > 1:
        raise _several(components)
    modules: dict[str, Module] = {}
    links: dict[str, tuple[Link, ...]] = {}
    for (place, spelled), roles in groups.items():
        try:
            key = next(iter(roles.values()))
            home = homes.find(place, spelled, key, suggest=len(problems) < SUGGESTED)
            if roles.keys() == {"alpha"}:
                raise MissingFactor(key, expected="the factors that it scales", got="an alpha alone", hint=DAMAGED)
            if home.path in modules:
                raise _twice(key, next(iter(modules[home.path].keys.values())))
            modules[home.path] = Module(spelled, place, home.tensors, roles)
            links |= home.links
        except WiseftError as problem:
            problems.append(problem)
    without = [key for module in modules.values() if "alpha" not in module.keys for key in module.keys.values()]
    if without and any("alpha" in module.keys for module in modules.values()):
        problems.append(
            MissingFactor(
                f"{listed(without)} — no alpha, which other modules have",
                expected="an alpha for each module, or for none: then it is the rank",
                got=f"{len(without)} keys without",
                hint=DAMAGED,
            )
        )
    WiseftError.raise_all(problems)
    return Translation(scheme, method, modules, links)


def _words(keys: Iterable[str], scheme: str, component: str | None) -> dict[str, Word]:
    """What each key says, of the wanted component; everything that cannot be read is refused at once."""
    said = {key: SCHEMES[scheme].parse(key) for key in keys}
    problems: list[WiseftError] = []
    words = {key: word for key, word in said.items() if word is not None}
    for key, word in said.items():
        if word is None:
            problems.append(_mixed(f"{key}, which is not {scheme}'s"))
        elif word.why:
            problems.append(Unsupported(f"{key} — {word.why}", expected="LoRA, DoRA, LoHa or LoKr", got=key, hint=HINT))
    WiseftError.raise_all(problems)
    if component is None:
        return words
    wanted = COMPONENTS.get(component, component)
    taken = {key: word for key, word in words.items() if word.component in (wanted, "")}
    if not taken:
        raise UnclaimedKey(
            f"component {component!r} — the adapter has nothing for it",
            expected=f"one of {listed({word.component for word in words.values()})}",
            got=component,
            hint="choose a component that the adapter was trained for",
        )
    return taken


def _method(words: Mapping[str, Word]) -> str:
    """The method of an adapter."""
    methods = sorted({word.method for word in words.values() if word.method})
    if len(methods) > 1:
        raise Unsupported(
            f"{' and '.join(methods)} in one file",
            expected="an adapter of one method",
            got=listed([key for key, word in words.items() if word.method == methods[1]]),
            hint=HINT,
        )
    method = methods[0] if methods else "LORA"
    decomposed = [key for key, word in words.items() if word.role == "dora_scale" and method != "LORA"]
    if decomposed:
        raise Unsupported(
            f"{listed(decomposed)} — {method} whose weight is decomposed",
            expected="a magnitude beside LoRA only",
            got=f"dora_scale with {method}",
            hint=HINT,
        )
    return method


def _mixed(got: str) -> AmbiguousName:
    return AmbiguousName(
        "adapter keys — not all in one spelling",
        expected=f"one of {listed(SCHEMES)}, or PEFT's",
        got=got,
        hint="the file mixes what different tools write: separate it, or convert it with one of them",
    )


def _twice(key: str, other: str) -> AmbiguousName:
    return AmbiguousName(
        f"{key} — a second key for the same factor",
        expected="one key for each factor of a module",
        got=other,
        hint="the file is damaged, or mixes two spellings",
    )


def _several(components: Iterable[str]) -> UnclaimedKey:
    return UnclaimedKey(
        "the adapter is for several components, the base is one of them",
        expected="the base of all of them: a pipeline's folder or a single file",
        got=f"parts for {listed(components, most=9)}",
        hint="to leave the others out, open the base by the name of its component: component=, or --component",
    )
