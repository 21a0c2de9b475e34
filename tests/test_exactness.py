"""Promise 1 on 10 000 drawn elements: LoRA and DoRA of every rank from 1 to 64, rounded once to bf16 and fp16."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from exact import broken_promises, integers, shift_of
from oracles import round_exact, ulp
from strategies import NAMES, Case

from wiseft_core import interpolate, interpolate_tensor

RANKS = range(1, 65)
DRAWN = 160  # elements for each rank: 64 · 160 = 10 240
HEIGHT, WIDTH = 24, 48


def drawn_case(family, dtype, rank):
    """Weights and factors of the usual sizes, narrow and wide factors in turn, and which elements to look at."""
    draw = torch.Generator().manual_seed(rank)
    weight = (torch.randn(HEIGHT, WIDTH, generator=draw) * 0.05).to(dtype)
    kind = (dtype, torch.float32)[rank % 2]
    first = (torch.randn(rank, WIDTH, generator=draw) / 7).to(kind)
    second = (torch.randn(HEIGHT, rank, generator=draw) * 0.03).to(kind)
    factors = {"A": first, "B": second}
    if family == "dora":
        size = weight.double().norm(dim=1) * (1 + 0.1 * torch.randn(HEIGHT, generator=draw, dtype=torch.float64))
        factors["magnitude"] = size.to(kind)
    scale = 16 / rank if rank % 3 else 16 / math.sqrt(rank)
    rows = torch.randint(HEIGHT if family == "lora" else 8, (DRAWN,), generator=draw).numpy()
    columns = torch.randint(WIDTH, (DRAWN,), generator=draw).numpy()
    return Case(weight, factors, family, "linear", scale), rows, columns


def numbers(tensor):
    """A tensor's values as doubles."""
    return tensor.double().numpy()


def exact_lora(case, alpha, rows, columns):
    """Exact values of the drawn elements and their slack, by integer products."""
    first, second = numbers(case.factors["A"])[:, columns].T, numbers(case.factors["B"])[rows]
    left, right = shift_of(first), shift_of(second)
    first, second = integers(first, left), integers(second, right)
    c, unit = Fraction(alpha * case.scale), Fraction(1, 1 << (left + right))
    weight = [Fraction(value) for value in numbers(case.weight)[rows, columns].tolist()]
    sums = [c * total * unit for total in (first * second).sum(1)]
    sizes = [abs(c) * total * unit for total in (abs(first) * abs(second)).sum(1)]
    hair = Fraction(2) ** -48 * (first.shape[1] + 4)
    pairs = zip(weight, sizes, strict=True)
    return [w + s for w, s in zip(weight, sums, strict=True)], [hair * (abs(w) + size) for w, size in pairs]


def exact_dora(case, alpha, rows, columns):
    """Exact values of the drawn elements: integer products and norms, and a square root to 120 bits more."""
    first, second = numbers(case.factors["A"]), numbers(case.factors["B"])
    magnitude, weight = numbers(case.factors["magnitude"]), numbers(case.weight)
    left, right = shift_of(first), shift_of(second)
    scale, share = Fraction(case.scale), Fraction(alpha)
    shift = left + right + scale.denominator.bit_length() - 1  # a scale is a double: its denominator is a power of two
    whole = integers(first, left), integers(second, right), integers(weight, shift)
    wanted = sorted(set(rows.tolist()))
    moved = dict(zip(wanted, whole[2][wanted] + scale.numerator * whole[1][wanted].dot(whole[0]), strict=True))
    norms = {row: math.isqrt(int((moved[row] ** 2).sum()) << 240) for row in wanted}
    values = []
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        tuned = Fraction(magnitude[row]) * Fraction(int(moved[row][column]) << 120, norms[row])
        values.append((1 - share) * Fraction(weight[row, column]) + share * tuned)
    name = NAMES[case.weight.dtype]
    return values, [Fraction(1, 10**6) * ulp(value, name) for value in values]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("family", "oracle"), [("lora", exact_lora), ("dora", exact_dora)])
def test_ten_thousand_elements_keep_promise_one(family, oracle, dtype):
    """Every drawn element is within half an ulp and the promised hair of the exact value, ranks 1 to 64."""
    looked, different = 0, 0
    for rank in RANKS:
        case, rows, columns = drawn_case(family, dtype, rank)
        alpha = (1.0, 0.5, 0.3, 0.9)[rank % 4]
        keys = {"A": "q.lora_A.weight", "B": "q.lora_B.weight", "magnitude": "q.lora_magnitude_vector"}
        adapter = {keys[role]: factor for role, factor in case.factors.items()}
        config = {"lora_alpha": 16, "r": rank, "use_rslora": rank % 3 == 0, "use_dora": family == "dora"}
        out = interpolate({"q.weight": case.weight}, adapter, alpha, config=config)["q.weight"]
        values, slacks = oracle(case, alpha, rows, columns)
        assert broken_promises(out[rows, columns], values, slacks) == [], rank
        expected = [round_exact(value, NAMES[dtype]) for value in values]
        different += int((np.array(expected) != numbers(out)[rows, columns]).sum())
        looked += len(values)

    assert looked >= 10_000
    assert different <= 2  # these lie within the hair of a tie; all others are rounded correctly


def test_the_oracle_notices_an_element_that_is_one_ulp_off():
    """Meta: rounding twice, by way of float32, breaks the promise on a midpoint, and the oracle says so."""
    weight = torch.tensor([[1 + 2.0**-8]], dtype=torch.float64)
    factors = {"A": torch.tensor([[2.0**-40]]), "B": torch.tensor([[1.0]])}
    case, at = Case(weight, factors), np.array([0])
    values, slacks = exact_lora(case, 1.0, at, at)
    good = interpolate_tensor(weight, factors, 1.0, output_dtype="bf16")
    twice = (weight + 2.0**-40).float().bfloat16()

    assert broken_promises(good.flatten(), values, slacks) == []
    assert len(broken_promises(twice.flatten(), values, slacks)) == 1
