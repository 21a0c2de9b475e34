"""The WiSE-FT coefficient: how it is checked, written, and given per tensor name.

Schedules room, second shelf. Standard library only, so that an alpha is refused before torch is imported.
"""

from __future__ import annotations

from wiseft_core.schedules.depth import ByDepth, by_depth
from wiseft_core.schedules.number import canonical, check_alpha, spread
from wiseft_core.schedules.patterns import frozen, resolve
from wiseft_core.schedules.tree import from_tree

__all__ = ["ByDepth", "by_depth", "canonical", "check_alpha", "from_tree", "frozen", "resolve", "spread"]
