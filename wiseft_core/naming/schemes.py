"""Adapters in other spellings than PEFT's, as PEFT would have saved them: which key is which, on which base module.

Naming room: strings only. Adapter and base are both brought to diffusers' module names, flat, and meet there; a name is
looked up, never taken apart by guessing. What does not meet, or meets twice, is refused.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final, NamedTuple

from wiseft_core.errors import AmbiguousName, UnclaimedKey, Unsupported, WiseftError, listed, nearest
from wiseft_core.naming import diffusers, kohya
from wiseft_core.naming.links import Link, Part
from wiseft_core.naming.originals import BARE, FILE, TURNED, Spot, in_diffusers, layers_per_block
from wiseft_core.naming.peft import PREFIX
from wiseft_core.naming.words import BESIDE, COMPONENTS, UNET, Word, flat


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
Found = tuple[str, tuple[str, ...], dict[str, tuple[Link, ...]]]
"""The path that PEFT's keys have for a module, the base tensors that it is, and links where it is not just one."""
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
    places = _Places(base)
    groups: defaultdict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    problems: list[WiseftError] = []
    for key, word in words.items():
        roles = groups[places.component(word.component), word.module]
        if word.role in roles:
            problems.append(_twice(key, roles[word.role]))
        roles[word.role] = key
    components = {place for place, _ in groups}
    if "" in places.components and len(components) > 1:
        raise _several(components)
    modules: dict[str, Module] = {}
    links: dict[str, tuple[Link, ...]] = {}
    for (place, spelled), roles in groups.items():
        try:
            path, tensors, ties = places.find(place, spelled, next(iter(roles.values())))
            if path in modules:
                raise _twice(next(iter(roles.values())), next(iter(modules[path].keys.values())))
            modules[path] = Module(spelled, place, tensors, roles)
            links |= ties
        except WiseftError as problem:
            problems.append(problem)
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


class _Places:
    """The modules of a base, to be looked up by the names that adapters have for them."""

    def __init__(self, base: Collection[str]) -> None:
        split = {name: _split(name) for name in base}
        firsts = {name.partition(".")[0] for name in base}
        # One component alone has its names without a prefix, and `transformer` may be a language model's own.
        self.pipeline = firsts <= {*COMPONENTS, *BESIDE} and firsts != {"transformer"}
        self.modules: defaultdict[str, dict[str, str]] = defaultdict(dict)
        for name, (component, rest) in split.items():
            if not component and self.pipeline:
                first, _, rest = name.partition(".")
                component = COMPONENTS.get(first, first)
            self.modules[component][name] = flat(rest.removesuffix(".weight"))
        single = any(component for component, _ in split.values())
        self.components = {one for one in self.modules if one or not single}
        self.layers = max(layers_per_block(self.modules[one].values()) for one in (UNET, ""))
        self.own: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
        self.met: defaultdict[tuple[str, str], list[tuple[str, Part | None]]] = defaultdict(list)
        self.base = frozenset(base)
        for component, names in self.modules.items():
            for name, module in names.items():
                if name.endswith((".weight", *BARE)):
                    self.own[component, module].append(name)
                    for spot in in_diffusers(module, self.layers):
                        self.met[component, spot.module].append((name, spot.part))

    def component(self, said: str) -> str:
        """The base's component for an adapter's; "" where the base is but one."""
        if "" in self.components:
            return said
        if not said:
            return UNET
        return "text_encoder_2" if said == "text_encoder_3" and said not in self.components else said

    def find(self, component: str, spelled: str, key: str) -> Found:
        """Where a module lies in the base.

        Raises:
            UnclaimedKey: The base has no such component, or no such module.
            AmbiguousName: Several tensors of the base are called so.
        """
        place, name = "" if "" in self.components else component, flat(spelled)
        if place not in self.components:
            raise _no_component(key, component, self.components)
        spots = in_diffusers(name, self.layers)
        if owners := self.own.get((place, name)):
            return self._alone(_only(owners, key), None, name)
        if any(spot.part is not None for spot in spots):
            return self._joined(place, name, spots, key)
        found = {tensor: part for spot in spots for tensor, part in self.met.get((place, spot.module), ())}
        if not found:
            raise self._missing(place, name, key)
        tensor = _only(list(found), key)
        return self._alone(tensor, found[tensor], spots[0].module)

    def _alone(self, tensor: str, part: Part | None, module: str) -> Found:
        """A module that is one base tensor, or a part of one, whose other parts then have names of their own too."""
        path, turned = tensor.removesuffix(".weight"), not tensor.endswith(".weight") and tensor.endswith(TURNED)
        if turned:
            return path, (tensor,), {tensor: (Link(f"{path}.weight", across=True),)}
        if part is None:
            return path, (tensor,), {}
        rest = next(flat_name for names in self.modules.values() if (flat_name := names.get(tensor)))
        others = in_diffusers(rest, self.layers)
        links = {
            stored: tuple(Link(f"{path}.{spot.module}.{leaf}", own=spot.part) for spot in others)
            for stored, leaf in self._with_bias(tensor)[: 1 if part.rest else 2]  # a bias has no columns to count by
        }
        return f"{path}.{module}", (tensor,), links

    def _joined(self, place: str, name: str, spots: Iterable[Spot], key: str) -> Found:
        """A module that joins what the base keeps apart."""
        tensors = []
        for spot in spots:
            found = [tensor for tensor, part in self.met.get((place, spot.module), ()) if part is None]
            if not found:
                raise self._missing(place, spot.module, key)
            tensors.append((_only(found, key), spot.part))
        path = f"{place}_{name}" if place else name
        pairs = [self._with_bias(tensor) for tensor, _ in tensors]
        links = {
            f"{path}.{leaf}": tuple(
                Link(stored, own=part)
                for (_, part), both in zip(tensors, pairs, strict=True)
                for stored, own_leaf in both
                if own_leaf == leaf
            )
            for leaf in ("weight", "bias")
        }
        return path, tuple(tensor for tensor, _ in tensors), {name: found for name, found in links.items() if found}

    def _with_bias(self, tensor: str) -> list[tuple[str, str]]:
        """A weight and the bias beside it, if there is one, each with what it is."""
        bias = f"{tensor.removesuffix('weight')}bias"
        return [(tensor, "weight"), *([(bias, "bias")] if bias in self.base else [])]

    def _missing(self, place: str, name: str, key: str) -> UnclaimedKey:
        """The refusal of a module that the base does not have."""
        near = nearest(name, [module for at, module in self.own if at == place])
        return UnclaimedKey(
            f"{key} — the base has no module for it",
            expected="a base tensor for every adapter tensor",
            got="nothing of that name" + (f" in {place}" if place else ""),
            hint=f"nearest names: {listed(near)}" if near else "is this the base that the adapter was trained on?",
        )


def _split(name: str) -> tuple[str, str]:
    """The component of a tensor of a single file, and the rest of its name."""
    for prefix, component in FILE.items():
        if name.startswith(prefix):
            return component, name.removeprefix(prefix)
    return "", name


def _only(tensors: list[str], key: str) -> str:
    """The one of some base tensors."""
    if len(tensors) == 1:
        return tensors[0]
    raise AmbiguousName(
        f"{key} — {len(tensors)} tensors of the base are called so with underscores",
        expected="one",
        got=listed(tensors),
        hint="give the adapter in diffusers' or PEFT's spelling, whose names have dots",
    )


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
        hint="name the one that the base is, to leave out the others: component=, or --component",
    )


def _no_component(key: str, component: str, there: Iterable[str]) -> UnclaimedKey:
    return UnclaimedKey(
        f"{key} — the base has no {component}",
        expected=f"one of {listed(there, most=9)}",
        got=component,
        hint="give the base that the adapter was trained on, or leave this part out by naming another: component=",
    )
