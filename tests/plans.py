"""Plans from bare shapes: what the tests of the joint are written with."""

from __future__ import annotations

from wiseft_core.binding import bind
from wiseft_core.config import AdapterConfig
from wiseft_core.types import TensorSpec

P = "base_model.model."


def specs(shapes, dtype="F32"):
    """Specs from shapes; a (dtype, shape) pair keeps its own dtype."""
    pairs = {name: shape if shape and isinstance(shape[0], str) else (dtype, shape) for name, shape in shapes.items()}
    return {name: TensorSpec(kind, tuple(shape)) for name, (kind, shape) in pairs.items()}


def lora(module, out, size, rank=2, prefix=P):
    """Shapes of a LoRA on one linear module."""
    return {f"{prefix}{module}.lora_A.weight": (rank, size), f"{prefix}{module}.lora_B.weight": (out, rank)}


def plan_of(base, adapter, config=None, **options):
    """The plan for shapes; `config` as a mapping, with a scale unless it says otherwise."""
    read = AdapterConfig.from_mapping({"lora_alpha": 4} if config is None else config)
    return bind(specs(base), specs(adapter), config=read, **options)


def problems(caught):
    """All errors of one refusal."""
    return [caught.value, *caught.value.others]


BASE = {"model.layers.0.q.weight": (6, 4), "model.layers.0.v.weight": (4, 6), "model.norm.weight": (4,)}
