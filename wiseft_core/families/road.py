"""RoAd: pairs of a module's outputs turned and stretched, its bias with them.

    W_tuned = R·W        b_tuned = R·b        R·x = diag(c)·x + diag(d)·J·x

The outputs are taken in groups; J pairs the first half of each with its second half: (x1, x2) to (-x2, x1). c is
alpha·cos(theta) and d is alpha·sin(theta): of one angle for each pair (road_1), of one for each output (road_2), or c
and d of angles of their own (road_4).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wiseft_core.errors import ShapeMismatch
from wiseft_core.families._family import Change, Factors, Family, Hyper, Option, Total

if TYPE_CHECKING:
    from torch import Tensor

ANGLES = {"road_1": (1, 2), "road_2": (1, 1), "road_4": (2, 1)}
"""How many angles the outputs have, in each variant: so many for so many outputs."""


def tuned(weight: Tensor, factors: Factors, hyper: Hyper, total: Tensor | None) -> Tensor:
    """The weight or bias with its outputs turned.

        W_tuned[x1] = c1·W[x1] - d1·W[x2]        W_tuned[x2] = c2·W[x2] + d2·W[x1]

    Shapes:
        weight (out, in); theta and alpha (angles), which are out/2, out or 2·out. Returns (out, in).
    Raises:
        ShapeMismatch: The outputs do not make whole groups of an even size.
    Exactness: off by at most 2^-48·(|c|·|W| + |d|·|J·W|) before the interpolation.
    Closed: see `rescaled`.
    Source: Liao et al. 2024, arXiv:2409.00119.
    """
    import torch  # comes with arithmetic, not with a plan

    size, out = hyper.options["group_size"], len(weight)
    if size < 2 or size % 2 or out % size:
        raise ShapeMismatch(
            "RoAd turns its outputs in pairs within groups",
            expected=f"a group_size that is even and divides {out}",
            got=f"{size}",
            hint="use the adapter_config.json that was saved with these tensors",
        )
    theta, alpha = factors["theta"], factors["alpha"]
    parts = alpha * theta.cos(), alpha * theta.sin()
    if len(theta) == 2 * out:
        c, d = (part.view(-1, 2, 2, size // 2)[:, at] for at, part in enumerate(parts))
    else:
        c, d = (part.view(-1, 2 if len(theta) == out else 1, size // 2) for part in parts)
    halves = weight.view(-1, 2, size // 2, weight.shape[1])
    across = torch.stack([-halves[:, 1], halves[:, 0]], 1)
    return (c.unsqueeze(-1) * halves + d.unsqueeze(-1) * across).view(weight.shape)


def rescaled(factors: Factors, alpha: float, total: Total) -> Factors:
    """The angles and stretches of the interpolated weight.

    alpha'·exp(i·theta') = (1 - a) + a·alpha·exp(i·theta)        a: the coefficient

    because c and d are its real and its imaginary part.
    """
    import torch  # comes with arithmetic, not with a plan

    real = factors["alpha"] * factors["theta"].cos() * alpha + (1 - alpha)
    imaginary = factors["alpha"] * factors["theta"].sin() * alpha
    return {"theta": torch.atan2(imaginary, real), "alpha": torch.hypot(real, imaginary)}


def _form(variant: str, *layouts: str) -> Change:
    """The form of a variant, for weights or biases."""
    angles, outputs = ANGLES[variant]
    return Change(
        factors={"theta": "angles", "alpha": "angles"},
        tuned=tuned,
        whole=True,
        layouts=layouts,
        fits=lambda sizes: sizes["angles"] * outputs == sizes["out"] * angles,
        when=lambda options: options.get("variant") == variant,
        rescaled=rescaled,
    )


ROAD = Family(
    name="road",
    parameters={
        "weight": tuple(_form(variant, "linear") for variant in ANGLES),
        "bias": tuple(_form(variant, "whole") for variant in ANGLES),
    },
    source="Liao et al. 2024, 3-in-1: 2D Rotary Adaptation, arXiv:2409.00119",
    peft="ROAD",
    keys={"road_theta": "theta", "road_alpha": "alpha"},
    options={"variant": Option(tuple(ANGLES)), "group_size": Option(int)},
)
