"""Many threads on one view: the same bits as one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from folders import low_rank, same_bits, weights, write_adapter, write_base

from wiseft_core import interpolate


def test_one_view_serves_many_threads(tmp_path: Path) -> None:
    """Sixteen threads asking one view for every tensor at several alphas get what one thread gets."""
    modules = ["model.layers.0.q_proj", "model.layers.1.q_proj"]
    base = write_base(tmp_path / "base", weights(), [list(weights())[:3], list(weights())[3:]])
    adapter = write_adapter(tmp_path / "adapter", low_rank(weights(), modules, dora=True), use_dora=True)
    view = interpolate(base, adapter, 0.5)
    asked = [(alpha, name) for alpha in (0, 0.25, 0.5, 1) for name in view] * 8
    alone = {(alpha, name): view.at(alpha)[name] for alpha, name in set(asked)}

    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda pair: view.at(pair[0])[pair[1]], asked))

    assert all(same_bits(tensor, alone[pair]) for pair, tensor in zip(asked, together, strict=True))
