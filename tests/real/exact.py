"""The independent oracle: raw files in, numbers out, by integers, Fractions and plain float64 NumPy.

It reads the base and the adapter with the safetensors library and shares no code with the package.
"""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from oracles import FORMATS
from safetensors import safe_open

Array = np.ndarray
UNIT = 149  # every bf16 and fp32 number is an integer times 2^-149


class Weights:
    """The tensors of a folder of safetensors files, by name."""

    def __init__(self, folder: Path):
        handles = [safe_open(file, "pt") for file in sorted(folder.glob("*.safetensors"))]
        self.at = {name: handle for handle in handles for name in handle.keys()}  # noqa: SIM118
        assert len(self.at) == sum(len(handle.keys()) for handle in handles), "a name is in two shards"

    def dtype(self, name: str) -> str:
        """The stored dtype in safetensors' names."""
        return self.at[name].get_slice(name).get_dtype()

    def tensor(self, name: str) -> torch.Tensor:
        """As stored."""
        return self.at[name].get_tensor(name)

    def wide(self, name: str) -> Array:
        """Widened to float64, as a matrix; a vector has one row."""
        return np.atleast_2d(self.tensor(name).double().numpy())


class Tuned:
    """What the adapter does to one tensor: the base's value, the factors and the scale, all as float64 matrices."""

    def __init__(self, weight: Array, factors: dict[str, Array], scale: Fraction):
        self.weight, self.factors, self.scale = weight, factors, scale
        self.kind = "full" if "value" in factors else "dora" if "m" in factors else "lora"

    def rows(self, chosen: Array) -> Tuned:
        """The same for some rows of a LoRA or DoRA weight."""
        cut = {
            role: value if role == "A" else value.reshape(len(self.weight), -1)[chosen]
            for role, value in self.factors.items()
        }
        return Tuned(self.weight[chosen], cut, self.scale)

    def reach(self, rows: Array, columns: Array) -> Array:
        """sum |B||A| at the given places."""
        a, b = self.factors["A"], self.factors["B"]
        return np.einsum("nk,kn->n", np.abs(b[rows]), np.abs(a[:, columns]))

    def at(self, alpha: float) -> Array:
        """(1 - alpha)·W + alpha·W_tuned in plain float64."""
        return (1 - alpha) * self.weight + alpha * self.tuned()

    def tuned(self) -> Array:
        """The tuned value in plain float64."""
        if self.kind == "full":
            return self.factors["value"]
        moved = self.weight + float(self.scale) * (self.factors["B"] @ self.factors["A"])
        if self.kind == "lora":
            return moved
        return self.factors["m"].reshape(-1, 1) * moved / np.sqrt((moved**2).sum(1, keepdims=True))

    def exactly(self, alpha: float, row: int, columns: list[int]) -> list[Fraction]:
        """The same at some columns of one row, exactly (for DoRA with a norm that is right to 2^-200)."""
        a = Fraction(alpha)
        base = [Fraction(float(self.weight[row, column])) for column in columns]
        return [(1 - a) * w + a * t for w, t in zip(base, self._exact_row(row, columns), strict=True)]

    def _exact_row(self, row: int, columns: list[int]) -> list[Fraction]:
        """Tuned values at some columns of one row."""
        if self.kind == "full":
            return [Fraction(float(self.factors["value"][row, column])) for column in columns]
        wanted = columns if self.kind == "lora" else range(self.weight.shape[1])
        p, q = self.scale.numerator, self.scale.denominator
        product = integers(self.factors["B"][row]) @ integers(self.factors["A"][:, wanted])
        moved = integers(self.weight[row, wanted]) * (q << UNIT) + p * product  # times q·2^(2·149)
        unit = q << 2 * UNIT
        if self.kind == "lora":
            return [Fraction(int(value), unit) for value in moved]
        norm = math.isqrt(int(moved @ moved) << 400)  # times 2^200
        magnitude = Fraction(float(self.factors["m"].reshape(-1)[row]))
        return [magnitude * Fraction(int(moved[column]) << 200, norm) for column in columns]


def integers(values: Array) -> Array:
    """Python's integers, exactly 2^149 times the values."""
    scaled = np.ldexp(values, UNIT)
    assert (scaled == np.rint(scaled)).all(), "a value is finer than float32"
    return np.vectorize(int, otypes=[object])(scaled)


def read_tuned(base: Weights, adapter: Path) -> dict[str, dict[str, str]]:
    """For each tensor that the adapter changes: the adapter's keys by role, by PEFT's way of naming."""
    rules: dict[str, dict[str, str]] = {}
    for key in Weights(adapter).at:
        name = key.removeprefix("base_model.model.").replace(".base_layer.", ".")
        role = "value"
        for ending, meant in ((".lora_A.weight", "A"), (".lora_B.weight", "B"), (".lora_magnitude_vector", "m")):
            if name.endswith(ending):
                name, role = name.removesuffix(ending) + ".weight", meant
        assert name in base.at, f"{key} has no tensor in the base"
        rules.setdefault(name, {})[role] = key
    return rules


def scale_of(adapter: Path) -> Fraction:
    """lora_alpha / r of an adapter without patterns."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert not (config["use_rslora"] or config["rank_pattern"] or config["alpha_pattern"])
    return Fraction(config["lora_alpha"]) / config["r"]


def rounded(values: Array, dtype: str) -> Array:
    """float64 to the nearest number of `dtype`, ties to even, kept as float64."""
    precision, least, _ = FORMATS[dtype]
    step = np.maximum(np.frexp(values)[1] - precision, least)
    return np.ldexp(np.rint(np.ldexp(values, -step)), step)


def ulps(values: Array, dtype: str) -> Array:
    """Size of one unit in the last place of `dtype` at each value."""
    precision, least, _ = FORMATS[dtype]
    return np.ldexp(1.0, np.maximum(np.frexp(values)[1] - precision, least))


def steps_between(left: torch.Tensor, right: torch.Tensor) -> Array:
    """How many numbers of their dtype lie between two tensors, element by element."""
    kind = {2: torch.int16, 4: torch.int32}[left.element_size()]

    def order(tensor: torch.Tensor) -> torch.Tensor:
        bits = tensor.contiguous().view(kind).to(torch.int64)
        return torch.where(bits < 0, torch.iinfo(kind).min - bits, bits)

    return (order(left) - order(right)).abs().numpy()
