"""An adapter that was made from others, with what it was made from: who saves it says so, and writes into no input.

Joint floor, on top of `statedict`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from wiseft_core.sources import Adapter
from wiseft_core.statedict import StateDict


@dataclass(frozen=True, slots=True)
class Made(Adapter):
    """What `rescale` and `combine_adapters` give: an adapter, and the interpolated weights that it stands for.

    Attributes:
        view: The interpolation or combination of the base with what it was made from. Where no base was needed, that
            has names and shapes alone.
        method: How adapters were joined, with all that decides about the result: "method", and "rank" for "svd";
            empty for one that was rescaled.
    """

    view: StateDict = field(kw_only=True, repr=False, compare=False)
    method: Mapping[str, str] = field(kw_only=True, default_factory=dict, compare=False)
