"""What `wiseft demo` holds against its own outputs: the definitions, computed again without this package's maths."""

from __future__ import annotations

import filecmp
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wiseft_core.cli.demo_model import LORA_ALPHA, RANK, modules

SAMPLE_ROWS: Final = 4
"""Rows of each tuned module that are computed again; of each, every 16th element is compared."""
STRIDE: Final = 16
HALF_ULP: Final = 0.5 + 1e-6
Long = NDArray[np.longdouble]


def equal_files(base: Path, out: Path) -> tuple[int, list[str]]:
    """How many of the base's weight files `out` has byte for byte, and what is wrong with the others."""
    names = sorted(path.name for path in base.glob("*.safetensors"))
    other = [name for name in names if not filecmp.cmp(base / name, out / name, shallow=False)]
    return len(names) - len(other), [f"{name}: differs from the base's file at alpha 0" for name in other]


def equal_tensors(base: Mapping[str, Tensor], out: Mapping[str, Tensor]) -> tuple[int, list[str]]:
    """How many untouched tensors have the base's bytes, and what is wrong with the others."""
    tuned = {f"{module}.weight" for module, _ in modules()}
    names = [name for name in base if name not in tuned]
    other = [name for name in names if not torch.equal(base[name].view(torch.int16), out[name].view(torch.int16))]
    return len(names) - len(other), [f"{name}: untouched, and differs from the base" for name in other]


def sampled(
    base: Mapping[str, Tensor], adapter: Mapping[str, Tensor], out: Mapping[str, Tensor], alpha: float
) -> tuple[int, list[str]]:
    """How many drawn elements are the definition's value rounded once, and which are not.

    W + alpha·(W_tuned - W), in numpy's longest float; right is at most half a unit in the last place away
    """
    right, problems = 0, []
    draw = np.random.default_rng(0)
    for module, (height, _) in modules():
        rows = draw.choice(height, SAMPLE_ROWS, replace=False)
        found = _wide(out[f"{module}.weight"][rows])
        exact = _defined(module, rows, base, adapter, alpha)
        near = np.abs(found - exact) <= HALF_ULP * _ulp(exact)
        right += int(near[:, ::STRIDE].sum())
        if not near.all():
            problems.append(f"{module}.weight: {int((~near).sum())} elements are not what the definition says")
    return right, problems


def relative_change(base: Mapping[str, Tensor], out: Mapping[str, Tensor]) -> float:
    """‖W(alpha) - W‖ / ‖W‖ over all tensors that tuning changes."""
    moved = size = 0.0
    for module, _ in modules():
        before, after = base[f"{module}.weight"].double(), out[f"{module}.weight"].double()
        moved += float((after - before).square().sum())
        size += float(before.square().sum())
    return math.sqrt(moved / size)


def _defined(
    module: str, rows: NDArray[np.int64], base: Mapping[str, Tensor], adapter: Mapping[str, Tensor], alpha: float
) -> Long:
    """Rows of the interpolated weight, straight from the formulas of the two papers."""
    key = f"base_model.model.{module}"
    weight = _wide(base[f"{module}.weight"][rows])
    tuned = weight.copy()
    down, up = _wide(adapter[f"{key}.lora_A.weight"]), _wide(adapter[f"{key}.lora_B.weight"][rows])
    for rank in range(RANK):
        tuned += np.longdouble(LORA_ALPHA) / RANK * np.outer(up[:, rank], down[rank])
    magnitude = adapter.get(f"{key}.lora_magnitude_vector")
    if magnitude is not None:
        norms = np.sqrt((tuned * tuned).sum(axis=1))
        tuned *= (_wide(magnitude[rows]) / norms)[:, None]
    mixed: Long = weight + np.longdouble(alpha) * (tuned - weight)
    return mixed


def _wide(values: Tensor) -> Long:
    """Values as numpy's longest float, exactly."""
    wide: Long = values.double().numpy().astype(np.longdouble)
    return wide


def _ulp(values: Long) -> Long:
    """Distance of neighbouring bf16 numbers (8 significant bits) around each value."""
    gap: Long = np.ldexp(np.longdouble(1), np.frexp(values)[1] - 8)
    return gap
