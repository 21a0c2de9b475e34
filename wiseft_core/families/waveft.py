"""WaveFT: a difference with few coefficients among its wavelets.

    W_tuned = W + s·(synthesis of S)        S[index // in, index % in] = spectrum

The places are not saved: they are those of FourierFT. Without `use_idwt` the difference is s·S itself. Daubechies'
wavelets db1 (PEFT's default) to db10 are computed. Symlets and coiflets, which PEFT has as tables of numbers, are
refused; its coif4 and coif5 are not orthogonal, and it has no others, whatever its config takes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from wiseft_core.families._family import Change, Factors, Family, Hyper, Option
from wiseft_core.families.fourierft import first_places, scale

if TYPE_CHECKING:
    from torch import Tensor


def delta(factors: Factors, hyper: Hyper) -> Tensor:
    """The difference, before its scale.

        D = S, zero but for the spectrum at its places. With `use_idwt` the quarters of S are bands:
        D = L·upper left·Lᵀ + H·upper right·Lᵀ + L·lower left·Hᵀ + H·lower right·Hᵀ
        L[t, k] = low[t - 2k] and H[t, k] = (-1)^t·low[taps - 1 - t + 2k], without the taps - 2 rows at each end

    Shapes:
        spectrum (count). S has taps - 2 rows and columns more than D, and of an odd size one more: the spectrum lies in
        its middle, and D is cut. Returns (out, in).
    Exactness: W + c·D is off by at most 2^-44·taps²·(|W| + |c|·the largest of the spectrum).
    Closed: linear in spectrum.
    Source: Bilican et al. 2025, arXiv:2505.12532; the bands' order: PEFT 0.21.
    """
    spectrum, out, size = factors["spectrum"], hyper.sizes["out"], hyper.sizes["in"]
    places = first_places(out * size, len(spectrum), hyper.options["random_loc_seed"]).to(spectrum.device)
    low = daubechies(int(hyper.options["wavelet_family"].removeprefix("db"))) if hyper.options["use_idwt"] else []
    more = max(len(low) - 2, 0)
    dense = spectrum.new_zeros(out + out % 2 + more, size + size % 2 + more)
    dense[places // size + more // 2, places % size + more // 2] = spectrum
    if low:
        (left, across), (down, both) = (half.chunk(2, 1) for half in dense.chunk(2))
        dense = joined(joined(left, across, low).T, joined(down, both, low).T, low).T
    return dense[:out, :size].contiguous()


def joined(smooth: Tensor, detail: Tensor, low: list[float]) -> Tensor:
    """The rows whose two bands these are: L·smooth + H·detail."""
    taps, count = len(low), len(smooth)
    grown = smooth.new_zeros(2 * count + taps - 2, smooth.shape[1])
    for tap, (one, other) in enumerate(zip(low, reversed(low), strict=True)):
        grown[tap : tap + 2 * count - 1 : 2] += smooth * one + detail * (-other if tap % 2 else other)
    return grown[taps - 2 : 2 * count]


def daubechies(moments: int) -> list[float]:
    """The low filter with so many vanishing moments, and of least phase: 2·moments numbers.

    Its polynomial has the zero -1 as many times, and the zeros inside the unit circle of P((2 - z - 1/z) / 4), where
    P(y) is the sum over k < moments of binomial(moments - 1 + k, k)·y^k.
    Daubechies 1988, Orthonormal bases of compactly supported wavelets, section 4.
    """
    import numpy as np  # comes with arithmetic, not with a plan

    half = 1 - 2 * np.roots([math.comb(moments - 1 + k, k) for k in reversed(range(moments))]).astype(complex)
    away = np.sqrt(half * half - 1)
    zeros = np.concatenate([half + away, half - away])
    found = np.poly([-1] * moments + list(zeros[np.abs(zeros) < 1])).real
    values: list[float] = (found * (math.sqrt(2) / found.sum())).tolist()
    return values


WAVEFT = Family(
    name="waveft",
    parameters={
        "weight": Change(
            factors={"spectrum": "count"},
            delta=delta,
            whole=True,
            fits=lambda sizes: sizes["count"] <= sizes["out"] * sizes["in"],
            linear="spectrum",
        ),
    },
    source="Bilican et al. 2025, Exploring Sparsity for Fine Tuning Using Wavelets, arXiv:2505.12532",
    peft="WAVEFT",
    keys={"waveft_spectrum": "spectrum"},
    options={
        "scaling": Option(float),
        "random_loc_seed": Option(int),
        "use_idwt": Option(bool, default=True),
        "wavelet_family": Option(
            tuple(f"db{moments}" for moments in range(1, 11)),
            default="db1",
            why="the filters of symlets and coiflets are tables that are not here",
        ),
    },
    harmless={
        "n_frequency": "the shape of the spectrum tells it",
        "n_frequency_pattern": "the shape of the spectrum tells it",
        "proportional_parameters": "the shape of the spectrum tells it",
    },
    scale=scale,
)
