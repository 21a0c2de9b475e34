"""VB-LoRA: a low-rank difference whose factors are mixed from one bank of short vectors.

    W_tuned = W + B·A        each run of `length` numbers of A and B: the sum of k vectors, with weights that sum to 1

The bank belongs to the whole model. Which vectors and weights, logits tell: the k largest, their softmax. An adapter
that was saved with `save_only_topk_weights` has the places of these k instead, and all weights but the last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wiseft_core.errors import ShapeMismatch
from wiseft_core.families._family import Change, Factors, Family, Hyper, Option, Sizes

if TYPE_CHECKING:
    from torch import Tensor


def delta(factors: Factors, hyper: Hyper) -> Tensor:
    """The product of the two mixed factors.

        D = B·A        A[r, (t, l)] = sum over k of w[r, t, k]·bank[place[r, t, k], l], and B[(t, l), r] likewise

    Shapes:
        bank (count, length). Either logits_A (rank, tiles, count) and logits_B (bands, rank, count), where `in` is
        tiles·length and `out` bands·length; or places_A (rank, tiles, topk), weights_A (rank, tiles, others), places_B
        (bands, rank, topk) and weights_B (bands, rank, others), where others is topk - 1. Returns (out, in).
    Raises:
        ShapeMismatch: The config's numbers are not those of the factors, or a place lies outside the bank.
    Exactness: W + c·D is off by at most 2^-48·(rank + 2·topk + 8)·(|W| + |c|·|B|·|A|). Logits that tie for the last
        place fall as torch's topk on the processor has it, like PEFT's.
    Closed: no: the difference is quadratic in the bank, which all modules share, and the weights are a softmax.
    Source: Li et al. 2024, arXiv:2405.15179.
    """
    from wiseft_core.numerics import product  # torch comes with arithmetic, not with a plan

    left, right = mixed("B", factors, hyper), mixed("A", factors, hyper)
    return product(left.transpose(1, 2).reshape(-1, left.shape[1]), right.flatten(1))


def mixed(side: str, factors: Factors, hyper: Hyper) -> Tensor:
    """The runs of one factor, each mixed from the bank, as (first, second, length)."""
    import torch  # comes with arithmetic, not with a plan

    bank, topk = factors["bank"], hyper.options["topk"]
    logits = factors.get(f"logits_{side}")
    if logits is None:
        places, most = factors[f"places_{side}"], factors[f"weights_{side}"]
        weights = torch.cat([most, 1 - most.sum(-1, keepdim=True)], -1)
    else:
        largest, places = logits.cpu().topk(min(topk, len(bank)))
        weights, places = largest.to(bank.device).softmax(-1), places.to(bank.device)
    if (len(bank), places.shape[-1]) != (hyper.options["num_vectors"], topk) or not _inside(places, len(bank)):
        raise ShapeMismatch(
            "the places of the vectors do not fit",
            expected=f"{topk} of {hyper.options['num_vectors']} vectors, as the config says",
            got=f"places {list(places.shape)} from {int(places.min())} to {int(places.max())}, bank {list(bank.shape)}",
            hint="use the adapter_config.json that was saved with these tensors",
        )
    return (weights[..., None] * bank[places]).sum(-2)


def _inside(places: Tensor, count: int) -> bool:
    return bool(((places >= 0) & (places < count)).all())


def _tiles(sizes: Sizes) -> bool:
    """Whether the runs fill the weight, and all weights but one are there."""
    length = sizes["length"]
    filled = (sizes["bands"] * length, sizes["tiles"] * length) == (sizes["out"], sizes["in"])
    return filled and ("topk" not in sizes or sizes["others"] == sizes["topk"] - 1)


LOGITS = {"logits_A": "rank tiles count", "logits_B": "bands rank count"}
TOPK = {
    "places_A": "rank tiles topk",
    "places_B": "bands rank topk",
    "weights_A": "rank tiles others",
    "weights_B": "bands rank others",
}
VBLORA = Family(
    name="vblora",
    parameters={
        "weight": tuple(
            Change(
                {**own, "bank": "count length"},
                delta=delta,
                whole=True,
                fits=_tiles,
                integers=frozenset({"places_A", "places_B"} & own.keys()),
            )
            for own in (LOGITS, TOPK)
        ),
    },
    source="Li et al. 2024, VB-LoRA: Extreme Parameter Efficient Fine-Tuning with Vector Banks, arXiv:2405.15179",
    peft="VBLORA",
    keys={
        "base_model.vblora_vector_bank": "bank",
        "vblora_logits_A": "logits_A",
        "vblora_logits_B": "logits_B",
        "vblora_logits_A_topk_indices": "places_A",
        "vblora_logits_B_topk_indices": "places_B",
        "vblora_logits_A_topk_weights": "weights_A",
        "vblora_logits_B_topk_weights": "weights_B",
    },
    options={"topk": Option(int), "num_vectors": Option(int)},
    harmless={
        "r": "the shapes of the factors tell it",
        "vector_length": "the shapes of the factors tell it",
        "save_only_topk_weights": "the factors that are there tell it",
        "vblora_dropout": "active in training only",
        "init_vector_bank_bound": "the first values, before training",
        "init_logits_std": "the first values, before training",
    },
)
