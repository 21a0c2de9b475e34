"""LoHa: the elementwise product of two low-rank differences, added to a weight.

    W_tuned = W + s·(w1_a·w1_b) ∘ (w2_a·w2_b)        s = alpha / rank

A convolution's weight is the matrix (out, in·kernel). With PEFT's `use_effective_conv2d` each of the two is a Tucker
product instead, with a core t over the kernel. PEFT knows no rsLoRA here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wiseft_core.families._family import Change, Factors, Family, Hyper, Option, Options

if TYPE_CHECKING:
    from torch import Tensor


def delta(factors: Factors, hyper: Hyper) -> Tensor:
    """The product of two products, before its scale.

        D = (w1_a·w1_b) ∘ (w2_a·w2_b)

    Shapes:
        w1_a and w2_a (out, rank); w1_b and w2_b (rank, in). Returns (out, in).
    Exactness: W + c·D is off by at most 2^-48·(2·rank + 4)·(|W| + |c|·(|w1_a||w1_b|) ∘ (|w2_a||w2_b|)).
    Closed: linear in w1_a.
    Source: Hyeon-Woo et al. 2021, FedPara, arXiv:2108.06098.
    """
    from wiseft_core.numerics import product  # torch comes with arithmetic, not with a plan

    return product(factors["w1_a"], factors["w1_b"]).mul_(product(factors["w2_a"], factors["w2_b"]))


def delta_of_core(factors: Factors, hyper: Hyper) -> Tensor:
    """The product of two Tucker products, before its scale.

        D = R1 ∘ R2        Rx[p, q, k] = sum over i and j of tx[i, j, k]·wx_a[i, p]·wx_b[j, q]

    Shapes:
        t1 and t2 (rank, rank, k0, k1); w1_a and w2_a (rank, out); w1_b and w2_b (rank, channel).
        Returns (out, in), where `in` is (channel, k0, k1).
    Exactness: As for `delta`, with 4·rank in the place of 2·rank.
    Closed: linear in w1_a.
    Source: Hyeon-Woo et al. 2021, FedPara, arXiv:2108.06098.
    """
    first, second = (tucker(factors[f"t{x}"], factors[f"w{x}_a"], factors[f"w{x}_b"]) for x in "12")
    return first.mul_(second)


def tucker(core: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """sum over i and j of core[i, j, k]·left[i, p]·right[j, q], as a matrix of p by (q, k)."""
    from wiseft_core.numerics import product  # torch comes with arithmetic, not with a plan

    rank, out = left.shape
    half = product(left.T, core.reshape(rank, -1)).view(out, len(right), -1).transpose(1, 2)
    full = product(half.reshape(-1, len(right)), right)
    return full.view(out, -1, right.shape[1]).transpose(1, 2).reshape(out, -1)


def scale(options: Options) -> float:
    """s from the config.

    alpha / r
    """
    return float(options["alpha"] / options["r"])


HARMLESS = {
    "rank_dropout": "active in training only",
    "module_dropout": "active in training only",
    "use_effective_conv2d": "the factors that are there tell it",
}
LOHA = Family(
    name="loha",
    parameters={
        "weight": (
            Change(
                factors={"w1_a": "out rank", "w1_b": "rank in", "w2_a": "out rank", "w2_b": "rank in"},
                delta=delta,
                layouts=("linear", "flat"),
                linear="w1_a",
            ),
            Change(
                factors={
                    "t1": "rank rank k0 k1",
                    "t2": "rank rank k0 k1",
                    "w1_a": "rank out",
                    "w1_b": "rank channel",
                    "w2_a": "rank out",
                    "w2_b": "rank channel",
                },
                delta=delta_of_core,
                whole=True,
                layouts=("flat",),
                linear="w1_a",
            ),
        ),
    },
    source="Hyeon-Woo et al. 2021, FedPara: Low-Rank Hadamard Product, arXiv:2108.06098; LyCORIS's LoHa",
    peft="LOHA",
    keys={f"hada_{role}": role for role in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    options={"alpha": Option(float, pattern="alpha_pattern"), "r": Option(int, pattern="rank_pattern")},
    harmless=HARMLESS,
    scale=scale,
)
