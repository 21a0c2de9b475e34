"""Planning costs the same for each tensor, however many there are: counted in lines of Python, not in seconds.

Seconds and megabytes for a trillion parameters: `python tests/benchmarks/scale.py FOLDER`.
"""

from __future__ import annotations

import sys

import pytest
from benchmarks.scale import build

from wiseft_core import plan


def lines_of(call):
    """How many lines of the package a call runs."""
    count = 0

    def trace(frame, event, arg):
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(lambda frame, event, arg: trace if "wiseft_core" in frame.f_code.co_filename else None)
    try:
        result = call()
    finally:
        sys.settrace(before)
    return count, result


@pytest.mark.parametrize("tuned", ["attention", "experts", "packed"])
def test_the_cost_of_a_tensor_does_not_grow(tuned, tmp_path):
    """Five times the layers, or five times the experts in a layer: as many lines for each tensor of both files."""
    costs = {}
    for layers, experts in (2, 8), (10, 8), (2, 40):
        place = tmp_path / f"{layers}-{experts}"
        tensors = layers * (8 + 3 * experts)
        build(place, tensors=tensors, shards=layers, tuned=tuned, experts=experts, hidden=8, inner=4)
        lines, found = lines_of(lambda place=place: plan(place / "base", place / "adapter"))
        assert len(found.outputs) == tensors + 3
        costs[layers, experts] = lines / (tensors + len(found.consumed()))
    assert costs[10, 8] < 1.1 * costs[2, 8]
    assert costs[2, 40] < 1.1 * costs[2, 8]
