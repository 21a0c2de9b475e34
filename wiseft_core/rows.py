"""Token rows: rows of a table that were trained one by one, over the base's own table or over one saved with them.

Joint floor: specs and configs only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

from wiseft_core.errors import ConfigError, ConfigNeeded
from wiseft_core.landings import UNCUT, Cut, Landed, Landing
from wiseft_core.layouts import Shape
from wiseft_core.ruled import Placed
from wiseft_core.scene import Scene


def by_source(placed: Placed, scene: Scene) -> Iterator[Placed]:
    """A table that was saved with rows trained beside it, as two places: what each of the two tensors gives of it.

    A vocabulary that was resized is saved so, and a live model shows its own table. Any other place stays as it is.

    Raises:
        ConfigNeeded, ConfigError: As for `token_rows`.
    """
    site, (landing, *more) = placed.site, placed.landed.landings
    if site.factors.keys() != {"value", "rows"} or more or landing.cut != UNCUT:
        yield placed
        return
    rows, entries = token_rows(placed, scene)
    height, others = (scene.weight(placed) or (0,))[0], scene.weight(placed)[1:]
    table = [(first + 1, last, first + 1) for first, last in pairwise((-1, *rows, height)) if first + 1 < last]
    single = [(row, row + 1, entry) for row, entry in zip(rows, entries, strict=True)]
    for role, count, runs in (("value", height, table), ("rows", len(rows), single)):
        own = replace(site, factors={"value": site.factors[role]})
        landings = tuple(_run(landing, *run, others) for run in runs)
        if landings:
            yield placed._replace(site=own, landed=Landed((count, *others), landings))


def _run(landing: Landing, first: int, last: int, at: int, others: Shape) -> Landing:
    """Rows [first, last) of a table, which are those from `at` on of the tensor that gives them."""
    cut = Cut(out=(at, at + last - first))
    return landing._replace(start=landing.start + first * math.prod(others), shape=(last - first, *others), cut=cut)


def token_rows(placed: Placed, scene: Scene) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The rows that trained tokens replace, ascending, and for each its position in the adapter's tensor.

    Raises:
        ConfigNeeded: The config does not say which rows.
        ConfigError: A row is listed twice, lies outside the table, or their number is not that of the trained rows.
    """
    site, name = placed.site, placed.name
    if scene.config is None:
        raise ConfigNeeded(
            f"{name} — nothing says which rows were trained",
            expected="trainable_token_indices for this embedding in the adapter's config",
            got=f"adapter key {site.factors['rows']}",
            hint="pass the config that was saved with these tensors",
        )
    rows, vocabulary = scene.config.token_rows(site.module), (scene.weight(placed) or (0,))[0]
    count = (scene.adapter[site.factors["rows"]].shape or (0,))[0]
    if len(set(rows)) != len(rows) or len(rows) != count or not all(0 <= row < vocabulary for row in rows):
        raise ConfigError(
            f"{name} — trainable_token_indices do not fit",
            expected=f"{count} different rows below {vocabulary}",
            got=f"{len(rows)} rows, {len(set(rows))} of them different, up to {max(rows, default=0)}",
            hint="use the adapter_config.json that was saved with these tensors",
        )
    entries = sorted(range(count), key=lambda entry: rows[entry])
    return tuple(rows[entry] for entry in entries), tuple(entries)
