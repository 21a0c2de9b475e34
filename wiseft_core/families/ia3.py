"""(IA)³: rows or columns of a weight scaled by a trained vector.

    W_tuned = diag(l)·W        b_tuned = l ∘ b        W_tuned = W·diag(l) in a feed-forward module, b as it is

l is 1 where nothing was learned. Which modules are feed-forward the config says (`feedforward_modules`); there l
belongs to the inputs: of a convolution to its channels, which a grouped one has in every group anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wiseft_core.families._family import MODULES, Change, Factors, Family, Hyper, Option, Options, Sizes, Total

if TYPE_CHECKING:
    from torch import Tensor


def tuned(weight: Tensor, factors: Factors, hyper: Hyper, total: Tensor | None) -> Tensor:
    """The scaled weight or bias.

        W_tuned = diag(l)·W, or W·diag(l) in a feed-forward module

    Shapes:
        weight (out, in); l (out, 1), or (1, in) in a feed-forward module; of a convolution (1, out, 1, ...). Returns
        (out, in).
    Exactness: one float64 rounding before the interpolation.
    Closed: see `rescaled`.
    Source: Liu et al. 2022, arXiv:2205.05638.
    """
    vector = factors["l"]
    return weight * (vector if vector.dim() == 2 else vector.reshape(-1, 1))


def tuned_channels(weight: Tensor, factors: Factors, hyper: Hyper, total: Tensor | None) -> Tensor:
    """The weight of a feed-forward convolution, scaled by its input channels.

        W_tuned[o, c, k] = W[o, c, k]·l[g(o)·channel + c]        g(o): the group of o

    Shapes:
        weight (out, in), where `in` is (channel, kernel); l (1, channels, 1, ...), where channels is groups·channel.
        Returns (out, in).
    Exactness: one float64 rounding before the interpolation.
    Closed: see `rescaled`.
    Source: Liu et al. 2022, arXiv:2205.05638; PEFT 0.21 for convolutions.
    """
    channel = hyper.sizes["channel"]
    vector = factors["l"].reshape(-1, 1, channel, 1)
    return (weight.view(len(vector), -1, channel, weight.shape[1] // channel) * vector).view(weight.shape)


def rescaled(factors: Factors, alpha: float, total: Total) -> Factors:
    """The vector of the interpolated weight.

    l' = 1 + alpha·(l - 1)
    """
    return {"l": (factors["l"] - 1) * alpha + 1}


def _scales_inputs(options: Options) -> bool:
    return bool(options.get("feedforward_modules"))


def _scales_outputs(options: Options) -> bool:
    return not _scales_inputs(options)


def _grouped(sizes: Sizes) -> bool:
    """Whether a whole number of groups has these channels."""
    groups, rest = divmod(sizes["channels"], sizes["channel"])
    return groups > 0 and rest == 0 and sizes["out"] % groups == 0


def _rows(axes: str, *layouts: str) -> Change:
    """The form that scales rows."""
    return Change({"l": axes}, tuned=tuned, layouts=layouts, when=_scales_outputs, rescaled=rescaled)


IA3 = Family(
    name="ia3",
    parameters={
        "weight": (
            _rows("out 1", "linear", "transposed"),
            _rows("1 out 1 1", "flat"),
            _rows("1 out 1 1 1", "flat"),
            Change(
                {"l": "1 in"},
                tuned=tuned,
                layouts=("linear", "transposed"),
                when=_scales_inputs,
                rescaled=rescaled,
            ),
            *(
                Change(
                    {"l": axes},
                    tuned=tuned_channels,
                    whole=True,
                    layouts=("flat",),
                    fits=_grouped,
                    when=_scales_inputs,
                    rescaled=rescaled,
                )
                for axes in ("1 channels 1 1", "1 channels 1 1 1")
            ),
        ),
        "bias": (_rows("out 1", "whole"), _rows("1 out 1 1", "whole"), _rows("1 out 1 1 1", "whole")),
    },
    source="Liu et al. 2022, Few-Shot Parameter-Efficient Fine-Tuning, arXiv:2205.05638",
    peft="IA3",
    keys={"ia3_l": "l"},
    options={"feedforward_modules": Option(MODULES, default=False)},
    harmless={"init_ia3_weights": "the first values, before training"},
)
