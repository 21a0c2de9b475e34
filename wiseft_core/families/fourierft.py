"""FourierFT: a difference with few coefficients in the frequency domain.

    W_tuned = W + s·Re(ifft2(S))        S[index // in, index % in] = spectrum

The places are not saved: they are the first of a random order of all elements, whose seed is in the config, as torch's
generator on the processor gives them. They depend on out·in and the seed alone, so modules of one size share them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wiseft_core.families._family import Change, Factors, Family, Hyper, Option, Options

if TYPE_CHECKING:
    from torch import Tensor


def delta(factors: Factors, hyper: Hyper) -> Tensor:
    """The difference, before its scale.

        D = Re(ifft2(S)), S zero but for the spectrum at its places

    Shapes:
        spectrum (count). Returns (out, in).
    Exactness: W + c·D is off by at most 2^-44·(|W| + |c|·the sum of |spectrum| / (out·in)).
    Closed: linear in spectrum.
    Source: Gao et al. 2024, arXiv:2405.03003.
    """
    import torch  # comes with arithmetic, not with a plan

    spectrum, out, size = factors["spectrum"], hyper.sizes["out"], hyper.sizes["in"]
    places = first_places(out * size, len(spectrum), hyper.options["random_loc_seed"]).to(spectrum.device)
    dense = spectrum.new_zeros(out * size)
    dense[places] = spectrum
    delta: Tensor = torch.fft.ifft2(dense.view(out, size)).real
    return delta.contiguous()


def first_places(elements: int, count: int, seed: int) -> Tensor:
    """The first places of the random order of so many elements that a seed gives."""
    import torch  # comes with arithmetic, not with a plan

    return torch.randperm(elements, generator=torch.Generator().manual_seed(seed), device="cpu")[:count]


def scale(options: Options) -> float:
    """s from the config.

    scaling
    """
    return float(options["scaling"])


FOURIERFT = Family(
    name="fourierft",
    parameters={
        "weight": Change(
            factors={"spectrum": "count"},
            delta=delta,
            whole=True,
            fits=lambda sizes: sizes["count"] <= sizes["out"] * sizes["in"],
            linear="spectrum",
        ),
    },
    source="Gao et al. 2024, Parameter-Efficient Fine-Tuning with Discrete Fourier Transform, arXiv:2405.03003",
    peft="FOURIERFT",
    keys={"fourierft_spectrum": "spectrum"},
    options={"scaling": Option(float), "random_loc_seed": Option(int)},
    harmless={
        "n_frequency": "the shape of the spectrum tells it",
        "n_frequency_pattern": "the shape of the spectrum tells it",
    },
    scale=scale,
)
