"""The modules of a base of image models, to be looked up by the names that adapters have for them.

Naming room: strings only. Base and adapter are both brought to diffusers' module names, flat, and meet there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from typing import NamedTuple

from wiseft_core.errors import AmbiguousName, UnclaimedKey, listed, nearest
from wiseft_core.naming.links import Link, Part
from wiseft_core.naming.originals import BARE, FILE, TURNED, Spot, in_diffusers, layers_per_block
from wiseft_core.naming.words import COMPONENTS, UNET, flat


class Home(NamedTuple):
    """Where a module lies in a base.

    Attributes:
        path: The path that PEFT's keys have for it.
        tensors: The base tensors that it is, or is a part of.
        links: What names are, where it is not just one base tensor.
    """

    path: str
    tensors: tuple[str, ...]
    links: dict[str, tuple[Link, ...]]


class Homes:
    """The modules of a base.

    Attributes:
        components: Its components; {""} where it is one alone.
    """

    def __init__(self, base: Collection[str]) -> None:
        split = {name: _split(name) for name in base}
        is_pipeline = any(name.partition(".")[0] in COMPONENTS for name in base)
        self.modules: defaultdict[str, dict[str, str]] = defaultdict(dict)
        for name, (component, rest) in split.items():
            if not component and is_pipeline:
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

    def find(self, component: str, spelled: str, key: str, *, suggest: bool = True) -> Home:
        """Where a module lies in the base.

        Args:
            component: The component, as `component` gives it.
            spelled: The module's name in the adapter, with dots or without.
            key: A key of it, for errors.
            suggest: Name the nearest modules where it is missing.

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
            return self._joined(place, name, spots, key, suggest)
        found = {tensor: part for spot in spots for tensor, part in self.met.get((place, spot.module), ())}
        if not found:
            raise self._missing(place, name, key, suggest)
        tensor = _only(list(found), key)
        return self._alone(tensor, found[tensor], spots[0].module)

    def _alone(self, tensor: str, part: Part | None, module: str) -> Home:
        """A module that is one base tensor, or a part of one, whose other parts then have names of their own too."""
        path, turned = tensor.removesuffix(".weight"), not tensor.endswith(".weight") and tensor.endswith(TURNED)
        if turned:
            return Home(path, (tensor,), {tensor: (Link(f"{path}.weight", across=True),)})
        if part is None:
            return Home(path, (tensor,), {})
        rest = next(flat_name for names in self.modules.values() if (flat_name := names.get(tensor)))
        others = in_diffusers(rest, self.layers)
        links = {
            stored: tuple(Link(f"{path}.{spot.module}.{leaf}", own=spot.part) for spot in others)
            for stored, leaf in self._with_bias(tensor)[: 1 if part.rest else 2]  # a bias has no columns to count by
        }
        return Home(f"{path}.{module}", (tensor,), links)

    def _joined(self, place: str, name: str, spots: Iterable[Spot], key: str, suggest: bool) -> Home:
        """A module that joins what the base keeps apart."""
        tensors = []
        for spot in spots:
            found = [tensor for tensor, part in self.met.get((place, spot.module), ()) if part is None]
            if not found:
                raise self._missing(place, spot.module, key, suggest)
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
        return Home(
            path, tuple(tensor for tensor, _ in tensors), {name: found for name, found in links.items() if found}
        )

    def _with_bias(self, tensor: str) -> list[tuple[str, str]]:
        """A weight and the bias beside it, if there is one, each with what it is."""
        bias = f"{tensor.removesuffix('weight')}bias"
        return [(tensor, "weight"), *([(bias, "bias")] if bias in self.base else [])]

    def _missing(self, place: str, name: str, key: str, suggest: bool) -> UnclaimedKey:
        """The refusal of a module that the base does not have."""
        near = nearest(name, [module for at, module in self.own if at == place]) if suggest else []
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


def _no_component(key: str, component: str, there: Iterable[str]) -> UnclaimedKey:
    return UnclaimedKey(
        f"{key} — the base has no {component}",
        expected=f"one of {listed(there, most=9)}",
        got=component,
        hint="give the base that the adapter was trained on, or open one component of it by name: component=",
    )
