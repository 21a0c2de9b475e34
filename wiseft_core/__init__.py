"""WiSE-FT for adapters, from files alone: W(alpha) = (1 - alpha)·W_base + alpha·W_tuned, tensor by tensor, exactly.

The door. Names are imported when they are asked for, so that a header can be checked before torch is loaded.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from wiseft_core.version import __version__ as __version__

if TYPE_CHECKING:
    from wiseft_core import errors, families, naming, schedules
    from wiseft_core.adapters import save_adapter
    from wiseft_core.combination import combine
    from wiseft_core.config import AdapterConfig
    from wiseft_core.errors import WiseftError
    from wiseft_core.interpolation import interpolate, sweep
    from wiseft_core.joining import Joined, combine_adapters
    from wiseft_core.offline import save_checkpoint
    from wiseft_core.planning import plan
    from wiseft_core.plans import Plan
    from wiseft_core.report import Report
    from wiseft_core.rescaling import rescale
    from wiseft_core.single import interpolate_tensor
    from wiseft_core.sources import Adapter, open_adapter
    from wiseft_core.statedict import StateDict
    from wiseft_core.store.checkpoint import Checkpoint, open_checkpoint
    from wiseft_core.sweeping import save_sweep
    from wiseft_core.types import TensorSpec
    from wiseft_core.verification import verify

_HOMES = {
    "Adapter": "sources",
    "AdapterConfig": "config",
    "Checkpoint": "store.checkpoint",
    "Joined": "joining",
    "Plan": "plans",
    "Report": "report",
    "StateDict": "statedict",
    "TensorSpec": "types",
    "WiseftError": "errors",
    "combine": "combination",
    "combine_adapters": "joining",
    "interpolate": "interpolation",
    "interpolate_tensor": "single",
    "open_adapter": "sources",
    "open_checkpoint": "store.checkpoint",
    "plan": "planning",
    "rescale": "rescaling",
    "save_adapter": "adapters",
    "save_checkpoint": "offline",
    "save_sweep": "sweeping",
    "sweep": "interpolation",
    "verify": "verification",
}
"""The module of each public name. No module is called like a function: importing it would hide the function."""
_SHELF = ("errors", "families", "naming", "schedules")

__all__ = [
    "Adapter",
    "AdapterConfig",
    "Checkpoint",
    "Joined",
    "Plan",
    "Report",
    "StateDict",
    "TensorSpec",
    "WiseftError",
    "combine",
    "combine_adapters",
    "errors",
    "families",
    "interpolate",
    "interpolate_tensor",
    "naming",
    "open_adapter",
    "open_checkpoint",
    "plan",
    "rescale",
    "save_adapter",
    "save_checkpoint",
    "save_sweep",
    "schedules",
    "sweep",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name in _SHELF:
        return import_module(f"{__name__}.{name}")
    if name in _HOMES:
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names."""
    return sorted([*__all__, "__version__"])
