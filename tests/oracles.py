"""Exact oracles: slow, obvious, and sharing no code with the package.

Rounding by integers and Fractions alone, straight from the definition of each format.
"""

from __future__ import annotations

import math
from fractions import Fraction

FORMATS = {  # significant bits, exponent of the least subnormal, largest finite number
    "F64": (53, -1074, Fraction(2) ** 1024 - Fraction(2) ** 971),
    "F32": (24, -149, Fraction(2) ** 128 - Fraction(2) ** 104),
    "BF16": (8, -133, Fraction(2) ** 128 - Fraction(2) ** 120),
    "F16": (11, -24, Fraction(65504)),
    "F8_E4M3": (4, -9, Fraction(448)),
    "F8_E5M2": (3, -16, Fraction(57344)),
}


def ulp(value: Fraction | float, dtype_name: str) -> Fraction:
    """Distance of neighbours of `dtype_name` in the binade of `value`; below the normal range, the least subnormal."""
    precision, least, _ = FORMATS[dtype_name]
    size = abs(Fraction(value))
    if size == 0:
        return Fraction(2) ** least
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    if Fraction(2) ** exponent > size:
        exponent -= 1
    return Fraction(2) ** max(exponent - precision + 1, least)


def round_exact(value: Fraction | float, dtype_name: str) -> float:
    """The number of `dtype_name` nearest to `value`, ties to even; inf means overflow, in F8_E4M3 too.

    A float's inf, NaN and -0.0 stay; a Fraction that rounds to zero has its own sign.
    """
    if isinstance(value, float) and (not math.isfinite(value) or value == 0):
        return value
    exact = Fraction(value)
    step = ulp(exact, dtype_name)
    rounded = abs(round(exact / step)) * step  # Python rounds a Fraction to the even integer on a tie
    size = math.inf if rounded > FORMATS[dtype_name][2] else float(rounded)
    return -size if exact < 0 else size
