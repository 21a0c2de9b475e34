"""LoKr: a Kronecker product of two small matrices, added to a weight.

    W_tuned = W + s·(w1 ⊗ w2)        s = alpha / r

Each of the two is there as a whole, or as a low-rank product, or w2 of a convolution as a Tucker product with a core
over the kernel; which, the factors tell. The scale has the config's r even where no factor has a rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product as pairs
from typing import TYPE_CHECKING

from wiseft_core.families._family import Change, Factors, Family, Hyper, Option, Sizes
from wiseft_core.families.loha import HARMLESS, scale, tucker

if TYPE_CHECKING:
    from torch import Tensor


def delta(factors: Factors, hyper: Hyper) -> Tensor:
    """The Kronecker product, before its scale.

        D[(a, c), (b, d, k)] = w1[a, b]·w2[c, d, k]        w1 = w1_a·w1_b        w2 = w2_a·w2_b

    Shapes:
        w1 (a, b), or w1_a (a, rank) and w1_b (rank, b); w2 (c, d), of a convolution (c, d, k0, k1), or w2_a (c, rank)
        and w2_b (rank, dk), or t2 (rank, rank, k0, k1), w2_a (rank, c) and w2_b (rank, d).
        Returns (out, in), which is (a·c, b·d·k).
    Exactness: W + c·D is off by at most 2^-48·(3·rank + 4)·(|W| + |c|·|w1| ⊗ |w2|), with the products'
        absolute terms in |w1| and |w2|.
    Closed: linear in w1, or in w1_a.
    Source: Edalati et al. 2022, KronA, arXiv:2212.10650; Yeh et al. 2023, LyCORIS, arXiv:2309.14859.
    """
    from wiseft_core.numerics import product  # torch comes with arithmetic, not with a plan

    first = factors["w1"] if "w1" in factors else product(factors["w1_a"], factors["w1_b"])
    if "t2" in factors:
        second = tucker(factors["t2"], factors["w2_a"], factors["w2_b"])
    else:
        second = factors["w2"] if "w2" in factors else product(factors["w2_a"], factors["w2_b"])
    out, size = hyper.sizes["out"], hyper.sizes["in"]
    second = second.reshape(second.shape[0], -1)
    return (first[:, None, :, None] * second[None, :, None, :]).reshape(out, size)


def delta_of_conv1d(factors: Factors, hyper: Hyper) -> Tensor:
    """What PEFT makes of a whole w2 of a Conv1d: a product of other axes than it means, in training and merging alike.

        D = (w1 ⊗ w2) with w1[a, b] taken for [1, a, b] and w2[c, d, k] as it is, so [c, (a, d), (b, k)], reshaped

    Shapes:
        w1 (a, b), or w1_a (a, rank) and w1_b (rank, b); w2 (c, d, k0). Returns (out, in).
    Exactness: As for `delta`.
    Closed: linear in w1, or in w1_a.
    Source: PEFT 0.21, `make_kron`, which adds axes to w1 for a w2 of four axes only.
    """
    from wiseft_core.numerics import product  # torch comes with arithmetic, not with a plan

    first = factors["w1"] if "w1" in factors else product(factors["w1_a"], factors["w1_b"])
    crossed = first[None, :, None, :, None] * factors["w2"][:, None, :, None, :]
    return crossed.reshape(hyper.sizes["out"], hyper.sizes["in"])


def _places(sizes: Sizes) -> bool:
    """Whether the blocks fill the weight; dk is the size of w2's columns."""
    columns = sizes["dk"] if "dk" in sizes else sizes["d"] * sizes["k0"] * sizes["k1"]
    return sizes["a"] * sizes["c"] == sizes["out"] and sizes["b"] * columns == sizes["in"]


FIRST: dict[str, Mapping[str, str]] = {"w1": {"w1": "a b"}, "w1_a": {"w1_a": "a rank", "w1_b": "rank b"}}
SECOND: tuple[tuple[Mapping[str, str], tuple[str, ...], Callable[[Factors, Hyper], Tensor]], ...] = (
    ({"w2": "c dk"}, ("linear",), delta),
    ({"w2": "c d k0"}, ("flat",), delta_of_conv1d),
    ({"w2": "c d k0 k1"}, ("flat",), delta),
    ({"w2_a": "c rank", "w2_b": "rank dk"}, ("linear", "flat"), delta),
    ({"t2": "rank rank k0 k1", "w2_a": "rank c", "w2_b": "rank d"}, ("flat",), delta),
)
LOKR = Family(
    name="lokr",
    parameters={
        "weight": tuple(
            Change(
                factors={**first, **second},
                delta=formula,
                whole=True,
                layouts=layouts,
                fits=_places,
                linear=linear,
            )
            for (linear, first), (second, layouts, formula) in pairs(FIRST.items(), SECOND)
        ),
    },
    source="Yeh et al. 2023, LyCORIS, arXiv:2309.14859; Edalati et al. 2022, KronA, arXiv:2212.10650",
    peft="LOKR",
    keys={f"lokr_{role}": role for role in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
    options={"alpha": Option(float, pattern="alpha_pattern"), "r": Option(int, pattern="rank_pattern")},
    harmless=HARMLESS
    | {
        "decompose_both": "the factors that are there tell it",
        "decompose_factor": "the shapes of the factors tell it",
        "rank_dropout_scale": "active in training only",
    },
    scale=scale,
)
