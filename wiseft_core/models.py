"""The models of a base: one, or those of a pipeline, whose tensors carry the component's name in front.

Joint floor: names, specs and configs only. What a config.json says holds for the tensors of its own model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

from wiseft_core import ties
from wiseft_core.bonds import Bond, Tied, bonds_of
from wiseft_core.config import AdapterConfig
from wiseft_core.errors import BindingError, Unsupported, listed
from wiseft_core.naming.links import Link
from wiseft_core.naming.live import live_rules
from wiseft_core.naming.renames import Rules, links
from wiseft_core.naming.table import rules_of
from wiseft_core.places import place
from wiseft_core.plans import Binding
from wiseft_core.replication import Grown, grown
from wiseft_core.ruled import Placement
from wiseft_core.sites import Site
from wiseft_core.types import TensorSpec
from wiseft_core.views import View, disk_view, identity, memory_view
from wiseft_core.vocabulary import check_class, edits

T = TypeVar("T")
Config = Mapping[str, object] | None
"""The content of a config.json, or None where there is none."""


class Model(NamedTuple):
    """One model.

    Attributes:
        prefix: What its tensors' names begin with: "unet.", or "" for the only model.
        config: Its config.json.
    """

    prefix: str
    config: Config

    def own(self, named: Mapping[str, T]) -> Mapping[str, T]:
        """What belongs to it, by the names that it has by itself."""
        if not self.prefix:
            return named
        size = len(self.prefix)
        return {name[size:]: value for name, value in named.items() if name.startswith(self.prefix)}


class Models:
    """All models of a base."""

    def __init__(self, config: Config, components: Mapping[str, Config] | None = None) -> None:
        self.all = [Model(f"{name}.", said) for name, said in (components or {}).items()] or [Model("", config)]
        self._by_prefix = {model.prefix: model for model in self.all}

    @property
    def only(self) -> Model | None:
        """The one model of a base that is no pipeline."""
        return self._by_prefix.get("")

    def of(self, name: str) -> Model:
        """The model that a tensor belongs to."""
        if "" in self._by_prefix:
            return self.all[0]
        return self._by_prefix.get(f"{name.partition('.')[0]}.", Model("", None))

    def views(self, base: Mapping[str, TensorSpec], known: Mapping[str, tuple[Link, ...]]) -> Iterator[View]:
        """The ways to see a base: as on disk, and as in memory where the rules for its models are known.

        Args:
            base: Specs of the base.
            known: What some names are where their spelling alone does not show it: then there is but one way, in which
                all other names are what they are on disk.
        """
        if known:
            yield memory_view(base, lambda name: known.get(name) or identity(name))
            return
        yield disk_view(base)
        rules = {model.prefix: rules_of(model.config) for model in self.all}
        if any(found is not None for found in rules.values()):
            yield memory_view(base, partial(self._links, rules=rules))

    def live_view(self, base: Mapping[str, TensorSpec]) -> View | None:
        """The base as an installed transformers has it in memory, where the table does not know all of its models."""
        rules = {model.prefix: rules_of(model.config) for model in self.all}
        found = {
            model.prefix: live_rules(model.config)
            for model in self.all
            if rules[model.prefix] is None and model.config is not None and "model_type" in model.config
        }
        if not any(found.values()):
            return None
        return memory_view(base, partial(self._links, rules=rules | found))

    def _links(self, name: str, rules: Mapping[str, Rules | None]) -> tuple[Link, ...]:
        """What a name is in memory, by the rules of its own model."""
        model = self.of(name)
        own = rules.get(model.prefix)
        if own is None:
            return identity(name)
        found = links(name.removeprefix(model.prefix), own)
        return (
            tuple(link._replace(parameter=model.prefix + link.parameter) for link in found) if model.prefix else found
        )


def grown_by(config: AdapterConfig | None, base: Mapping[str, TensorSpec], models: Models) -> Grown:
    """The base with the layers that the adapter was trained over."""
    spans = config.layer_replication if config is not None else ()
    if spans and models.only is None:
        raise Unsupported(
            "layer_replication — in a pipeline of several models",
            expected="one model, whose layers are meant",
            got=f"{listed([model.prefix for model in models.all], most=9)}",
            hint="open that component alone: --component NAME, or open_checkpoint(path, component=NAME)",
        )
    return grown(base, spans, models.all[0].config)


def all_bonds(
    base: Mapping[str, TensorSpec],
    models: Models,
    shared: Sequence[frozenset[str]],
    brought: Iterable[str],
    tied: Tied,
    *,
    complete: bool = False,
) -> tuple[Bond, ...]:
    """What is tied in each of the models; arguments as for `bonds_of`."""
    found: list[Bond] = []
    for model in models.all:
        live, named = shared if models.only else (), model.own(dict.fromkeys(brought))
        bonds = bonds_of(model.own(base), model.config, live, named, tied, complete=complete)
        found += [
            bond._replace(source=model.prefix + bond.source, other=model.prefix + bond.other, model=model.prefix)
            for bond in bonds
        ]
    return tuple(found)


def placement(
    sites: Sequence[Site],
    base: Mapping[str, TensorSpec],
    models: Models,
    known: Mapping[str, tuple[Link, ...]],
    adapter: Mapping[str, TensorSpec],
    config: AdapterConfig | None,
) -> Placement:
    """The place of every site; an installed transformers is asked only where there is none without it."""
    try:
        return place(sites, list(models.views(base, known)), adapter, config)
    except BindingError:
        live = None if known else models.live_view(base)
        if live is None:
            raise
        return place(sites, [live], adapter, config)


def all_edits(
    models: Models,
    bindings: Mapping[str, Binding],
    result: Mapping[str, TensorSpec],
    base: Mapping[str, TensorSpec],
    untied: Sequence[Bond],
    config: AdapterConfig | None,
) -> dict[str, object]:
    """What changes in the config.json of each model, by dotted path, with the component in front."""
    found: dict[str, object] = {}
    for model in models.all:
        own, before = model.own(result), model.own(base)
        resized = {name: own[name].shape for name in model.own(bindings) if own[name].shape != before[name].shape}
        check_class(resized, config.trained_class if config is not None else None, model.config)
        changes = edits(resized, own, before, model.config)
        if any(bond.flagged and bond.model == model.prefix for bond in untied):
            changes |= ties.edits(model.config)
        found |= {model.prefix + path: value for path, value in changes.items()}
    return found
