"""PEANuT: a small neural network over a weight's columns, whose outputs are added to them.

    W_tuned = W + s·B·net(A·W)        s = scaling

    net(x): h = σ(x); n encoders, h = σ(E_k·h), then n decoders, h = σ(D_k·h) + what the encoder n - 1 - k was given

The network reads each column of W by itself, over the outputs of the module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from wiseft_core.families._family import Change, Factors, Family, Hyper, Option, Options, Total

if TYPE_CHECKING:
    from torch import Tensor

DEPTHS: Final = range(7)
"""How many encoders, and as many decoders, there may be."""
ACTIVATIONS: Final = ("relu", "relu6", "leaky_relu", "gelu", "silu", "swish", "mish", "tanh", "sigmoid", "linear")
"""The σ that are known, by transformers' names."""


def tuned(weight: Tensor, factors: Factors, hyper: Hyper, total: Tensor | None) -> Tensor:
    """The tuned weight.

        W_tuned = W + s·B·net(A·W)

    Shapes:
        weight (out, in); A (rank, out); B (out, rank); encoder0, encoder1, encoder2, encoder3, encoder4, encoder5 and
        decoder0, decoder1, decoder2, decoder3, decoder4, decoder5, as many as there are, each (rank, rank). Returns
        (out, in).
    Exactness: float64 roundings of each layer's |matrix|·|input|, times the size of the layers behind it.
    Closed: linear in B; see `rescaled`.
    Source: Zhong et al. 2024, arXiv:2410.01870; residual connections: PEFT 0.21.
    """
    from wiseft_core.numerics import product  # torch comes with arithmetic, not with a plan

    act = activation(hyper.options["act_fn"])
    hidden, given = act(product(factors["A"], weight)), []
    depth = (len(factors) - 2) // 2
    for at in range(depth):
        given.append(hidden)
        hidden = act(product(factors[f"encoder{at}"], hidden))
    for at in range(depth):
        hidden = act(product(factors[f"decoder{at}"], hidden)) + given.pop()
    return product(factors["B"], hidden).mul_(hyper.scale).add_(weight)


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """σ by its name."""
    import torch  # comes with arithmetic, not with a plan

    if name == "linear":
        return torch.clone
    found: Callable[[Tensor], Tensor] = getattr(torch.nn.functional, "silu" if name == "swish" else name)
    return found


def scale(options: Options) -> float:
    """s from the config.

    scaling
    """
    return float(options["scaling"])


def rescaled(factors: Factors, alpha: float, total: Total) -> Factors:
    """The factor of the interpolated weight.

    B' = alpha·B
    """
    return {"B": factors["B"] * alpha}


def _form(depth: int) -> Change:
    """The form with so many encoders and decoders."""
    layers: Mapping[str, str] = {f"{side}coder{at}": "rank rank" for side in ("en", "de") for at in range(depth)}
    return Change(
        factors={"A": "rank out", "B": "out rank", **layers},
        tuned=tuned,
        whole=True,
        layouts=("linear",),
        rescaled=rescaled,
    )


PEANUT = Family(
    name="peanut",
    parameters={"weight": tuple(_form(depth) for depth in DEPTHS)},
    source="Zhong et al. 2024, PEANuT: Parameter-Efficient Adaptation with Weight-aware Neural Tweakers, "
    "arXiv:2410.01870",
    peft="PEANUT",
    keys={
        "peanut_A.weight": "A",
        "peanut_B.weight": "B",
        **{f"peanut_{side}coders.{at}.weight": f"{side}coder{at}" for side in ("en", "de") for at in DEPTHS[:-1]},
    },
    options={
        "act_fn": Option(ACTIVATIONS, why="an activation that is not written here"),
        "scaling": Option(float),
    },
    harmless={"r": "the shapes of the factors tell it", "depth": "the factors that are there tell it"},
    scale=scale,
)
