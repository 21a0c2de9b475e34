"""What is promised of an adapter's outputs on disk, checked for every element: the same for every real model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from oracles import ulp
from real import exact
from torch import Tensor, nn

from wiseft_core import StateDict, interpolate, save_checkpoint

ALPHAS = (0.0, 0.5, 1.0)
DRAWN = 100  # elements of each tensor that are also checked by Fractions
Figures = dict[str, float]


@dataclass(frozen=True)
class Case:
    """A base, an adapter of it, and the outputs at each alpha, all folders."""

    base: Path
    adapter: Path
    outputs: Mapping[float, Path]

    def view(self, alpha: float) -> StateDict:
        """The same interpolation in memory."""
        return interpolate(self.base, self.adapter, alpha)

    def touched(self) -> Iterator[tuple[str, exact.Tuned]]:
        """Each tensor that the adapter changes, with the oracle's knowledge of it."""
        base, adapter = exact.Weights(self.base), exact.Weights(self.adapter)
        scale = exact.scale_of(self.adapter)
        for name, keys in exact.read_tuned(base, self.adapter).items():
            yield name, exact.Tuned(base.wide(name), {role: adapter.wide(key) for role, key in keys.items()}, scale)


def write_outputs(base: Path, adapter: Path, folder: Path) -> Case:
    """Run the real pipeline at every alpha, from files to files."""
    outputs = {alpha: folder / f"alpha-{alpha:g}" for alpha in ALPHAS}
    for alpha, output in outputs.items():
        save_checkpoint(interpolate(base, adapter, alpha), output, sync=False)
    return Case(base, adapter, outputs)


def check_base_bytes(case: Case) -> int:
    """At alpha = 0 the weight files, and the index, are the base's byte for byte; how many files."""
    output = case.outputs[0.0]
    names = [path.name for path in case.base.glob("*.safetensors*")]
    assert sorted(names) == sorted(path.name for path in output.glob("*.safetensors*"))
    for name in names:
        assert (output / name).read_bytes() == (case.base / name).read_bytes(), name
    return len(names)


def check_untouched(case: Case, alpha: float) -> None:
    """The output has the base's names, dtypes and shapes, and the base's bytes wherever the adapter says nothing."""
    base, output = exact.Weights(case.base), exact.Weights(case.outputs[alpha])
    assert output.at.keys() == base.at.keys()
    touched = exact.read_tuned(base, case.adapter).keys()
    changed = set()
    for name in base.at:
        was, is_now = base.tensor(name), output.tensor(name)
        assert (was.dtype, was.shape) == (is_now.dtype, is_now.shape), name
        if not torch.equal(was.contiguous().view(torch.uint8), is_now.contiguous().view(torch.uint8)):
            changed.add(name)
    assert changed <= touched
    assert len(changed) > 0.9 * len(touched), "training hardly changed anything: the other checks say little"


def check_exact(case: Case, alpha: float) -> Figures:
    """Every element is as near to the exact value as promised.

    An element that equals the float64 oracle rounded once keeps the promise: that oracle's own error is a thirtieth of
    the slack. The others, and some drawn ones, are judged by Fractions.
    """
    output, draw = exact.Weights(case.outputs[alpha]), np.random.default_rng(5)
    figures = {"tensors": 0, "elements": 0, "by fractions": 0, "not the oracle's rounding": 0}
    for name, tuned in case.touched():
        dtype, found = output.dtype(name), output.wide(name)
        doubtful = np.argwhere(exact.rounded(tuned.at(alpha), dtype) != found)
        rows, width = found.shape
        one_row = np.full(DRAWN, draw.integers(rows))
        drawn = np.stack([one_row, draw.integers(width, size=DRAWN)], axis=1)
        places = np.concatenate([doubtful, drawn])
        for row in np.unique(places[:, 0]):
            columns = np.unique(places[places[:, 0] == row][:, 1]).tolist()
            for column, value in zip(columns, tuned.exactly(alpha, int(row), columns), strict=True):
                error = abs(Fraction(float(found[row, column])) - value)
                assert error <= allowed(tuned, alpha, int(row), column, value, dtype), (name, row, column)
                figures["by fractions"] += 1
        figures["tensors"] += 1
        figures["elements"] += found.size
        figures["not the oracle's rounding"] += len(doubtful)
    return figures


def allowed(tuned: exact.Tuned, alpha: float, row: int, column: int, value: Fraction, dtype: str) -> Fraction:
    """The promised bound: 0.5 ulp and a hair, for LoRA in terms of the sum, for the others 1e-6 ulp."""
    unit = ulp(value, dtype)
    if tuned.kind != "lora":
        return unit * (Fraction(1, 2) + Fraction(1, 10**6))
    rank = tuned.factors["A"].shape[0]
    reach = Fraction(float(tuned.reach(np.array([row]), np.array([column]))[0]))
    size = abs(Fraction(float(tuned.weight[row, column]))) + Fraction(alpha) * tuned.scale * reach
    return unit / 2 + Fraction(rank + 4, 2**48) * size


def check_merge(case: Case, merged: Mapping[str, Tensor]) -> Figures:
    """At alpha = 1 PEFT's merged weights are ours within the error of PEFT's float32 arithmetic, and how near."""
    output = exact.Weights(case.outputs[1.0])
    figures = {"elements": 0, "differ": 0, "differ by more than one": 0, "most ulp": 0, "most ulp of the summands": 0}
    seen = set()
    for name, tuned in case.touched():
        ours, theirs = output.tensor(name), merged[name].detach()
        assert theirs.dtype == ours.dtype, name
        apart = np.atleast_2d(exact.steps_between(ours, theirs))
        if tuned.kind == "full":
            assert not apart.any(), name
        elif apart.any():
            chosen = np.flatnonzero(apart.any(1))  # whole rows, as DoRA's norm needs
            rows, columns = np.nonzero(apart[chosen])
            part, dtype = tuned.rows(chosen), output.dtype(name)
            value, got = part.tuned(), np.atleast_2d(theirs.double().numpy())[chosen]
            error = np.abs(got - value)[rows, columns]
            assert (error <= merge_error(part, rows, columns, dtype)).all(), name
            summands = np.abs(part.weight[rows, columns]) + float(part.scale) * part.reach(rows, columns)
            unit = exact.ulps(np.maximum(summands, np.abs(value[rows, columns])), dtype)
            gap = (np.abs(got - output.wide(name)[chosen])[rows, columns] / unit).max()
            figures["most ulp of the summands"] = max(figures["most ulp of the summands"], round(float(gap), 3))
        figures["elements"] += apart.size
        figures["differ"] += int((apart > 0).sum())
        figures["differ by more than one"] += int((apart > 1).sum())
        figures["most ulp"] = max(figures["most ulp"], int(apart.max()))
        seen.add(name)
    for name in (output.at.keys() & merged.keys()) - seen:
        assert torch.equal(output.tensor(name), merged[name]), name
    return figures


def merge_error(tuned: exact.Tuned, rows: np.ndarray, columns: np.ndarray, dtype: str) -> np.ndarray:
    """Worst error of PEFT's merge at some places: s·B·A, the sum and DoRA's factor in float32, then one rounding.

    u = 2^-24. The product of rank r and its scaling lose (r + 1)·u·s·sum |B||A|, the sum u·|V|; the norm of n values
    (n / 2 + 2)·u beside what their own errors do; quotient and product 2·u. One hundredth covers second order terms.
    """
    u, rank = 2.0**-24 * 1.01, tuned.factors["A"].shape[0]
    value, scale = tuned.tuned(), float(tuned.scale)
    moved = tuned.weight + scale * (tuned.factors["B"] @ tuned.factors["A"])
    reach = np.abs(tuned.factors["B"]) @ np.abs(tuned.factors["A"])
    lost = u * ((rank + 1) * scale * reach + np.abs(moved))
    if tuned.kind == "dora":
        norm = np.sqrt((moved**2).sum(1, keepdims=True))
        relative = np.sqrt((lost**2).sum(1, keepdims=True)) / norm + u * (moved.shape[1] / 2 + 4)
        lost = tuned.factors["m"].reshape(-1, 1) / norm * lost + np.abs(value) * relative
    storing = 0.5 * exact.ulps(np.abs(value) + lost, dtype)
    return (storing + lost)[rows, columns]


def check_loading(case: Case, alpha: float, load: Callable[[Path], nn.Module], results: Callable[..., Tensor]) -> None:
    """transformers loads the output, and it computes what the same weights compute that were never on disk."""
    from_disk, in_memory = load(case.outputs[alpha]), load(case.base)
    told = in_memory.load_state_dict(dict(case.view(alpha)), strict=False)
    assert not told.missing_keys
    assert set(told.unexpected_keys) <= {"embeddings.position_ids"}  # a buffer that transformers no longer stores
    mine, theirs = results(from_disk), results(in_memory)
    assert torch.isfinite(mine).all()
    assert torch.equal(mine, theirs)
    if alpha:
        assert not torch.equal(mine, results(load(case.base))), "the adapter changes nothing that can be seen"
