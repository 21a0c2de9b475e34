"""WaveFT: a difference with few coefficients among its wavelets.

    W_tuned = W + s·(synthesis of S)        S[index // in, index % in] = spectrum

The places are not saved: they are those of FourierFT. Without `use_idwt` the difference is s·S itself. The wavelet is
Haar's, which PEFT calls db1 and has as its default.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wiseft_core.families._family import Change, Factors, Family, Hyper, Option
from wiseft_core.families.fourierft import first_places, scale

if TYPE_CHECKING:
    from torch import Tensor


def delta(factors: Factors, hyper: Hyper) -> Tensor:
    """The difference, before its scale.

        D = S, zero but for the spectrum at its places; with `use_idwt`, four quarters of S, each of them a band:
        D[2p + u, 2q + v] = (upper left + (-1)^u·upper right + (-1)^v·lower left + (-1)^(u+v)·lower right)[p, q] / 2

    Shapes:
        spectrum (count). Of an odd size S has one row or column of zeros more, and D is cut. Returns (out, in).
    Exactness: W + c·D is off by at most 2^-48·4·(|W| + |c|·the sum of four coefficients).
    Closed: linear in spectrum.
    Source: Bilican et al. 2025, arXiv:2505.12532, section 3; the bands' order: PEFT 0.21.
    """
    spectrum, out, size = factors["spectrum"], hyper.sizes["out"], hyper.sizes["in"]
    places = first_places(out * size, len(spectrum), hyper.options["random_loc_seed"]).to(spectrum.device)
    if not hyper.options["use_idwt"]:
        dense = spectrum.new_zeros(out * size)
        dense[places] = spectrum
        return dense.view(out, size)
    dense = spectrum.new_zeros(out + out % 2, size + size % 2)
    dense[places // size, places % size] = spectrum
    (low, across), (down, both) = (half.chunk(2, 1) for half in dense.chunk(2))
    return joined(joined(low, across).T, joined(down, both).T).T[:out, :size] * 0.5


def joined(sums: Tensor, differences: Tensor) -> Tensor:
    """Twice as many rows: of each two, the sum and the difference of the two given."""
    import torch  # comes with arithmetic, not with a plan

    return torch.stack([sums + differences, sums - differences], 1).reshape(-1, sums.shape[1])


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
    source="Bilican et al. 2025, Exploring Sparsity for Fine Tuning Using Wavelets, arXiv:2505.12532, section 3",
    peft="WAVEFT",
    keys={"waveft_spectrum": "spectrum"},
    options={
        "scaling": Option(float),
        "random_loc_seed": Option(int),
        "use_idwt": Option(bool, default=True),
        "wavelet_family": Option(
            ("db1",), default="db1", why="the filters of other wavelets are tables that are not here"
        ),
    },
    harmless={
        "n_frequency": "the shape of the spectrum tells it",
        "n_frequency_pattern": "the shape of the spectrum tells it",
        "proportional_parameters": "the shape of the spectrum tells it",
    },
    scale=scale,
)
