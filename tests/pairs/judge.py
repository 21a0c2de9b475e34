"""Whether an output is right: what transformers loads from it, against the base's and the tuned model's states."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from pairs.build import base_of, kind_of, load, tuned_of
from pairs.pair import Pair
from torch import Tensor

from wiseft_core import interpolate, save_checkpoint

CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # some hundred roundings of float32; a misplaced delta is off by 0.1


def mixed(before: Tensor | None, after: Tensor, alpha: float) -> Tensor:
    """The formula; what the base does not have is as trained."""
    if before is None or not before.is_floating_point():
        return after
    if before.shape == after.shape:
        return before if alpha == 0 else (1 - alpha) * before + alpha * after
    known = len(before)
    return torch.cat([mixed(before, after[:known], alpha), after[known:]])


def check(pair: Pair, form: str, alpha: float) -> None:
    """Interpolate, save, load, and compare every parameter and buffer."""
    folder, base = base_of(pair, form)
    tuned = tuned_of(pair)
    with tempfile.TemporaryDirectory() as kept:
        out = Path(kept, "out")
        save_checkpoint(interpolate(folder, tuned.folder, alpha, tied=pair.tied), out, sync=False)
        got = load(out, kind_of(pair))[1]
    assert got.missing == pair.absent
    assert got.unexpected == base.unexpected
    assert got.state.keys() == tuned.state.keys()
    moved = 0
    for name, after in tuned.state.items():
        if name in pair.absent:
            continue
        before = None if name in base.missing else base.state.get(pair.origin(name) if pair.origin else name)
        wanted = mixed(before, after, alpha)
        assert got.state[name].shape == wanted.shape, name
        if alpha == 0 and before is not None and before.ndim:
            assert torch.equal(got.state[name][: len(before)], before), name
        assert torch.allclose(got.state[name], wanted, **CLOSE), (name, (got.state[name] - wanted).abs().max())
        moved += before is None or before.shape != after.shape or not torch.allclose(before.to(after), after, atol=1e-2)
    assert moved, "the adapter changes nothing: the case shows nothing"
