"""What valid input is: THE definition, for every property test. A feature is not in until it is in here.

cases()      one weight with its factors, scale, family and layout, as `interpolate_tensor` takes them
tunings()    a base state dict with an adapter in PEFT's names and its config, and the case of each touched tensor
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
LEAST = {"F64": -200, "F32": -149, "BF16": -133, "F16": -24, "F8_E4M3": -9, "F8_E5M2": -16}
"""Exponents of the least subnormals; float64 keeps away from underflow of products."""
NAMES = {dtype: name for name, dtype in DTYPES.items()}
OTHERS = (torch.int64, torch.int32, torch.uint8, torch.bool, torch.float8_e8m0fnu, torch.complex64)
"""Dtypes that are copied and never computed with."""
FAMILY_LAYOUTS = {
    "lora": ("linear", "transposed", "embedding", "convolution"),
    "dora": ("linear", "transposed", "embedding", "convolution"),
    "full": ("whole",),
}
MEANINGFUL = {
    "base_layer", "base_model", "bias", "default", "lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B",
    "lora_magnitude_vector", "model", "modules_to_save", "num_batches_tracked", "original_module", "token_adapter",
    "trainable_tokens_delta", "trainable_tokens_original", "weight", "_orig_mod", "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module", "embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings", "shared",
    "token_embedding", "tokens_embed", "lm_head", "embed_out", "output", "output_projection", "decoder", "predictions",
    "cls", "c_attn", "q_attn", "c_proj", "c_fc", "scale", "scales", "zero_point", "absmax", "qzeros", "SCB",
}  # fmt: skip
"""Components that mean something to PEFT, to a tied model or to a quantised one: not for random names."""


class Case(NamedTuple):
    """One weight and all that its interpolation is made from."""

    weight: Tensor
    factors: dict[str, Tensor]
    family: str = "lora"
    layout: str = "linear"
    scale: float = 1.0

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `interpolate_tensor`."""
        named = {"family": self.family, "scale": self.scale, "layout": self.layout}
        return {"weight": self.weight, "factors": self.factors, **named}


class Tuning(NamedTuple):
    """A base, an adapter that belongs to it, and the case behind each touched name."""

    base: dict[str, Tensor]
    adapter: dict[str, Tensor]
    config: dict[str, Any]
    base_config: dict[str, Any] | None
    cases: dict[str, Case]

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `interpolate`, without alpha."""
        named = {"config": self.config, "base_config": self.base_config}
        return {"base": self.base, "adapter": self.adapter, **named}


dims = st.sampled_from((1, 2, 3, 5, 6))
dims_or_none = st.sampled_from((0, 1, 2, 3, 5, 6))
ranks = st.integers(1, 4)
dtypes = st.sampled_from(sorted(DTYPES))
alphas = st.sampled_from((0.0, 1.0, 0.5, 0.3, 1e-300, 5e-324, 1 - 2.0**-53)) | st.floats(0, 1)
dyadic_alphas = st.sampled_from((0.0, 0.125, 0.25, 0.5, 0.75, 1.0))
scales = st.sampled_from((0.5, 1.0, 2.0, 16 / 3, math.sqrt(2), -1.5))


@st.composite
def values(draw: Any, shape: tuple[int, ...], dtype: str, kind: str, most: int = 8) -> Tensor:
    """A tensor: "dyadic" (multiples of 1/8 up to 1: float64 sums are exact), "wild" (any exponent up to `most`,
    subnormals, powers of two, both zeros) or "bits" (any bits at all, NaN payloads too)."""
    count = math.prod(shape)
    if kind == "bits":
        raw = draw(st.binary(min_size=count * DTYPES[dtype].itemsize, max_size=count * DTYPES[dtype].itemsize))
        return torch.frombuffer(bytearray(raw or b"\0" * 8), dtype=DTYPES[dtype])[:count].reshape(shape)
    if kind == "dyadic":
        raw = np.frombuffer(draw(st.binary(min_size=count, max_size=count)), np.uint8)
        return torch.from_numpy((raw % 17 - 8.0) / 8).reshape(shape).to(DTYPES[dtype])
    raw = np.frombuffer(draw(st.binary(min_size=4 * count, max_size=4 * count)), np.uint8).reshape(-1, 4)
    fraction = np.where(raw[:, 0] % 4 == 0, 0, raw[:, 1] / 256 + raw[:, 2] / 65536)
    span = most - LEAST[dtype]
    size = np.ldexp(1 + fraction, LEAST[dtype] + (raw[:, 3].astype(int) * (1 + span // 256)) % span)
    size[raw[:, 3] == 0] = 0
    signed = np.where(raw[:, 0] % 2 == 0, size, -size)
    return torch.from_numpy(signed).reshape(shape).to(DTYPES[dtype])


@st.composite
def shapes(draw: Any, layout: str, sizes: Any = dims) -> tuple[int, ...]:
    """The shape of a weight in a layout; `sizes` may allow empty axes."""
    if layout == "convolution":
        kernel = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
        return (draw(sizes), draw(sizes), *kernel)
    count = draw(st.integers(0, 3)) if layout == "whole" else 2
    return tuple(draw(sizes) for _ in range(count))


def factor_shapes(family: str, layout: str, shape: tuple[int, ...], rank: int) -> dict[str, tuple[int, ...]]:
    """The shape of each factor as PEFT stores it."""
    if family == "full":
        return {"value": shape}
    ones = (1,) * (len(shape) - 2)
    if layout == "convolution":
        found = {"A": (rank, *shape[1:]), "B": (shape[0], rank, *ones), "magnitude": (1, shape[0], *ones)}
    else:
        out, size = shape if layout == "linear" else shape[::-1]
        found = {"A": (rank, size), "B": (out, rank), "magnitude": (out,)}
    return found if family == "dora" else {role: found[role] for role in ("A", "B")}


@st.composite
def factors(draw: Any, family: str, layout: str, shape: tuple[int, ...], rank: int, dtype: str, kind: str) -> Any:
    """Factors of a family for a weight of this shape."""
    wanted = factor_shapes(family, layout, shape, rank)
    return {role: draw(values(size, dtype, kind, 3)) for role, size in wanted.items()}


@st.composite
def cases(
    draw: Any,
    families: tuple[str, ...] = ("lora", "full"),
    layouts: tuple[str, ...] | None = None,
    *,
    kind: str | None = None,
    dtype: str | None = None,
    factor_dtype: str | None = None,
    scale: Any = scales,
    sizes: Any = dims,
    rank: int | None = None,
) -> Case:
    """One weight with factors; every argument that is given is kept."""
    family = draw(st.sampled_from(families))
    layout = draw(st.sampled_from(layouts or FAMILY_LAYOUTS[family]))
    shape, kind = draw(shapes(layout, sizes)), kind or draw(st.sampled_from(("dyadic", "wild")))
    weight = draw(values(shape, dtype or draw(dtypes), kind))
    parts = draw(factors(family, layout, shape, rank or draw(ranks), factor_dtype or draw(dtypes), kind))
    case = Case(weight, parts, family, layout, 1.0 if family == "full" else draw(scale))
    return case if family != "dora" or has_directions(case) else case._replace(family="lora", factors=_lora(parts))


@st.composite
def companies(draw: Any, families: tuple[str, ...] = ("lora", "full"), *, kind: str | None = None) -> list[Case]:
    """One weight as several adapters see it, each with a family, rank and scale of its own."""
    kind, layout = kind or draw(st.sampled_from(("dyadic", "wild"))), draw(st.sampled_from(FAMILY_LAYOUTS["lora"]))
    layout = "linear" if layout == "transposed" else layout
    shape = draw(shapes(layout))
    weight, found = draw(values(shape, draw(dtypes), kind)), list[Case]()
    for _ in range(draw(st.integers(2, 4))):
        family = draw(st.sampled_from(families))
        where = "whole" if family == "full" else layout
        parts = draw(factors(family, where, shape, draw(ranks), draw(dtypes), kind))
        case = Case(weight, parts, family, where, 1.0 if family == "full" else draw(scales))
        straight = family != "dora" or has_directions(case)
        found.append(case if straight else case._replace(family="lora", factors=_lora(parts)))
    return found


def adapter_of(case: Case, module: str = "m") -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """The case as an adapter on one module, in PEFT's keys, with its config."""
    embedding = case.layout == "embedding"
    parts = {spell(module, role, "saved", embedding=embedding): part for role, part in case.factors.items()}
    rank = len(case.factors["A"]) if "A" in case.factors else 1
    return parts, {"lora_alpha": case.scale * rank, "use_dora": case.family == "dora"}


def _lora(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    return {role: parts[role] for role in ("A", "B")}


def has_directions(case: Case) -> bool:
    """Whether every row of V = W + s·B·A is far enough from zero for its norm to have a meaning."""
    if case.weight.numel() == 0:
        return True
    weight, first, second = case.weight.double(), case.factors["A"].double(), case.factors["B"].double()
    weight = weight.T if case.layout in ("transposed", "embedding") else weight.flatten(1)
    product = case.scale * second.flatten(1) @ first.flatten(1)
    size = weight.abs() + (abs(case.scale) * second.flatten(1).abs() @ first.flatten(1).abs())
    return bool(((weight + product).norm(dim=1) > size.norm(dim=1) / 1024).all())


components = st.sampled_from(("layers", "0", "1", "10", "q_proj", "q_proj_2", "attn", "x", "é", "層", "a b", "w:0"))
any_component = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="."), min_size=1, max_size=5)
component = (components | any_component).filter(lambda text: text not in MEANINGFUL)
module_names = st.lists(component, min_size=1, max_size=4).map(".".join)


def spell(name: str, role: str, spelling: str, parameter: str = "weight", *, embedding: bool = False) -> str:
    """PEFT's key for a factor of module `name`: as "saved", "bare" (without its prefix), or "live" (named)."""
    prefix = "" if spelling == "bare" else "base_model.model."
    live = ".default" if spelling == "live" else ""
    tails = {
        "A": f"lora_embedding_A{live}" if embedding else f"lora_A{live}.weight",
        "B": f"lora_embedding_B{live}" if embedding else f"lora_B{live}.weight",
        "bias": f"lora_B{live}.bias",
        "magnitude": f"lora_magnitude_vector{live}" + (".weight" if live else ""),
        "rows": f"token_adapter.trainable_tokens_delta{live}",
        "value": f"modules_to_save.default.{parameter}" if live else parameter,
    }
    return f"{prefix}{name}.{tails[role]}"


@st.composite
def tunings(
    draw: Any, families: tuple[str, ...] = ("lora", "dora"), kind: str | None = None, spelling: str | None = None
) -> Tuning:
    """A base with an adapter over it: low-rank modules, trained biases and whole modules, and untouched tensors."""
    family, rank = draw(st.sampled_from(families)), draw(ranks)
    spelling = spelling or draw(st.sampled_from(("saved", "bare", "live")))
    names = draw(st.lists(module_names, min_size=2, max_size=5, unique=True))
    config = {"r": rank, "lora_alpha": draw(st.integers(1, 32)), "use_rslora": draw(st.booleans())}
    config |= draw(st.sampled_from(({}, {"use_dora": family == "dora"})))
    scale = config["lora_alpha"] / (math.sqrt(rank) if config["use_rslora"] else rank)
    base: dict[str, Tensor] = {}
    adapter: dict[str, Tensor] = {}
    found: dict[str, Case] = {}
    conv1d = False
    for name in names:
        what = draw(st.sampled_from((family, family, "full", "untouched", "other")))
        if what in ("untouched", "other"):
            dtype = draw(dtypes) if what == "untouched" else None
            raw = draw(values((3,), dtype, "bits")) if dtype else torch.arange(6).to(draw(st.sampled_from(OTHERS)))
            base[f"{name}.weight"] = raw
            continue
        case = draw(cases((what,), kind=kind, scale=st.just(scale), rank=rank))
        if case.family not in (family, "full"):
            continue
        module = f"{name}.c_fc" if case.layout == "transposed" else name
        conv1d |= case.layout == "transposed"
        found[f"{module}.weight"] = case
        base[f"{module}.weight"] = case.weight
        for role, factor in case.factors.items():
            adapter[spell(module, role, spelling, embedding=case.layout == "embedding")] = factor
    assume(adapter)  # one without tensors is refused
    return Tuning(base, adapter, config, {"model_type": "gpt2"} if conv1d else None, found)
