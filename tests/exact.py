"""What each family means, in exact numbers: slow, obvious, and sharing no code with the package.

Fractions for small tensors, Python integers for drawn elements of larger ones, and naive numpy for comparisons that
need no last bit.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import torch
from oracles import FORMATS, round_exact, ulp
from strategies import NAMES, Case

ROOT_BITS = 200  # of a square root, beyond the point


def as_matrix(stored, layout):
    """A stored weight as (out, in)."""
    array = stored.detach().double().numpy()
    if layout in ("transposed", "embedding"):
        return array.T
    return array.reshape(array.shape[0] if array.ndim else 1, -1) if array.size else array.reshape(0, 0)


def as_stored(matrix, case):
    """A matrix (out, in) of anything, flattened in the order of the stored weight."""
    matrix = np.asarray(matrix, dtype=object)
    return (matrix.T if case.layout in ("transposed", "embedding") else matrix).reshape(-1).tolist()


def fractions(array):
    """Nested lists of Fractions."""
    return [[Fraction(float(value)) for value in row] for row in array]


def root(value):
    """Square root of a Fraction, to 2^-200 of it or better."""
    shift = 2 * (ROOT_BITS + value.denominator.bit_length() + max(0, -value.numerator.bit_length()))
    return Fraction(math.isqrt((value.numerator << shift) // value.denominator), 1 << (shift // 2))


def products(case, absolute=False):
    """B·A as Fractions, or |B|·|A|."""
    first, second = case.factors["A"].double().numpy(), case.factors["B"].double().numpy()
    first = fractions(first.reshape(first.shape[0], -1))
    second = fractions(second.reshape(second.shape[0], -1))
    if absolute:
        first = [[abs(value) for value in row] for row in first]
        second = [[abs(value) for value in row] for row in second]
    return [
        [sum(b * a for b, a in zip(row, column, strict=True)) for column in zip(*first, strict=True)] for row in second
    ]


def tuned(case):
    """W_tuned, exactly (DoRA: to 200 bits), flat in stored order."""
    if case.weight.numel() == 0:
        return []
    if case.family == "full":
        return [Fraction(value) for value in case.factors["value"].double().flatten().tolist()]
    scale, weight = Fraction(case.scale), fractions(as_matrix(case.weight, case.layout))
    delta = products(case)
    moved = [[w + scale * d for w, d in zip(*rows, strict=True)] for rows in zip(weight, delta, strict=True)]
    if case.family == "dora":
        sizes = [Fraction(m) for m in case.factors["magnitude"].double().flatten().tolist()]
        gains = [m / root(sum(v * v for v in row)) for m, row in zip(sizes, moved, strict=True)]
        moved = [[gain * v for v in row] for gain, row in zip(gains, moved, strict=True)]
    return as_stored(moved, case)


def interpolated(case, alpha):
    """W(alpha), exactly; for LoRA with c = alpha·s as one double."""
    if case.weight.numel() == 0:
        return []
    weight = [Fraction(value) for value in case.weight.double().flatten().tolist()]
    if case.family == "lora":
        c = Fraction(alpha * case.scale)
        delta = as_stored(products(case), case)
        return [w + c * d for w, d in zip(weight, delta, strict=True)]
    share = Fraction(alpha)
    return [(1 - share) * w + share * t for w, t in zip(weight, tuned(case), strict=True)]


def slack(case, alpha):
    """How far a computed value may be from the exact one before the one rounding, for each element, flat."""
    if case.weight.numel() == 0:
        return []
    weight = [abs(Fraction(value)) for value in case.weight.double().flatten().tolist()]
    tiny = Fraction(2) ** -1070  # underflow of the products of tiny numbers
    if case.family == "full":
        value = [abs(Fraction(value)) for value in case.factors["value"].double().flatten().tolist()]
        return [Fraction(2) ** -50 * (w + v) + tiny for w, v in zip(weight, value, strict=True)]
    rank = case.factors["A"].shape[0]
    if case.family == "lora":
        c = abs(Fraction(alpha * case.scale))
        sizes = as_stored(products(case, absolute=True), case)
        return [Fraction(2) ** -48 * (rank + 4) * (w + c * d) + tiny for w, d in zip(weight, sizes, strict=True)]
    hairs = as_stored(dora_hairs(case), case)
    if case.weight.dtype != torch.float64:
        units = [ulp(value, NAMES[case.weight.dtype]) / 10**6 for value in interpolated(case, alpha)]
        return [Fraction(hair) + unit + tiny for hair, unit in zip(hairs, units, strict=True)]
    return [Fraction(hair) + tiny for hair in hairs]


def dora_hairs(case):
    """Float64's own error where W, W_tuned or what they are made from cancel, as (out, in): a few roundings each.

    With V = W + s·B·A, S = |W| + |s|·|B|·|A| and g = |m| / ‖V‖: 2^-50·(rank + in + 8)·(|W| + g·S + g·|V|·‖S‖ / ‖V‖).
    """
    weight = as_matrix(case.weight, case.layout)
    first, second = case.factors["A"].double().numpy(), case.factors["B"].double().numpy()
    first, second = first.reshape(len(first), -1), second.reshape(len(second), -1)
    moved = weight + case.scale * second @ first
    sizes = abs(weight) + abs(case.scale) * abs(second) @ abs(first)
    norm, whole = (np.linalg.norm(matrix, axis=1, keepdims=True) for matrix in (moved, sizes))
    gain = abs(case.factors["magnitude"].double().numpy().reshape(-1, 1)) / norm
    count = len(first) + weight.shape[1] + 8
    return 2.0**-50 * count * (abs(weight) + gain * (sizes + abs(moved) * whole / norm))


def clip(value, name):
    """`value` within the largest finite numbers of a format: what overflow="saturate" means before rounding."""
    largest = FORMATS[name][2]
    return max(-largest, min(largest, value))


def broken_promises(out, exact, slacks, dtype=None):
    """Elements further from the exact value than half a unit in the last place and the slack: none, if all is well."""
    name = NAMES[dtype or out.dtype]
    found = []
    for position, (got, value, more) in enumerate(zip(out.double().flatten().tolist(), exact, slacks, strict=True)):
        value = clip(value, name)
        if not math.isfinite(got) or abs(Fraction(got) - value) > ulp(value, name) / 2 + more:
            found.append((position, got, float(value)))
    return found


def rounded(exact, dtype):
    """Fractions rounded once to a dtype, as a flat tensor of it; beyond the largest number, that number."""
    name = NAMES[dtype]
    return torch.tensor([round_exact(clip(value, name), name) for value in exact], dtype=torch.float64).to(dtype)


def naive(case: Case, alpha):
    """W(alpha) in naive float64, of the weight's shape."""
    weight = case.weight.double().numpy()
    if case.family == "full":
        return weight + alpha * (case.factors["value"].double().numpy() - weight)
    matrix = as_matrix(case.weight, case.layout)
    first, second = case.factors["A"].double().numpy(), case.factors["B"].double().numpy()
    moved = matrix + case.scale * np.einsum("or,ri->oi", second.reshape(len(second), -1), first.reshape(len(first), -1))
    if case.family == "dora":
        norm = np.sqrt((moved**2).sum(1, keepdims=True))
        moved = case.factors["magnitude"].double().numpy().reshape(-1, 1) * moved / norm
    result = matrix + alpha * (moved - matrix)
    return (result.T if case.layout in ("transposed", "embedding") else result).reshape(weight.shape)


def integers(array, shift):
    """An array of doubles times 2^shift as exact Python integers, in an object array."""
    mantissa, exponent = np.frexp(np.asarray(array, np.float64))
    whole = (mantissa * 2.0**53).astype(np.int64).astype(object)
    return np.vectorize(lambda m, e: m << e if e >= 0 else m >> -e, otypes=[object])(whole, exponent - 53 + shift)


def shift_of(*arrays):
    """A shift under which all numbers of these arrays are integers."""
    least = [np.frexp(a[a != 0])[1].min() - 53 for a in map(np.asarray, arrays) if np.any(a)]
    return int(-min(least, default=0))


def same_bits(left, right):
    """Equal dtypes, shapes and bytes: NaN payloads and -0.0 count."""
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    pair = [side.detach().contiguous().reshape(-1).view(torch.uint8) for side in (left, right)]
    return torch.equal(*pair)
