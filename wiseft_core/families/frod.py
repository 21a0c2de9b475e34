"""FRoD: a weight rewritten over a basis that modules of one name share, with trained values on and beside its diagonal.

    W_tuned = U·(S + diag(lambda_l))·Vᵀ        U: the columns of W·V⁻ᵀ, each divided by its norm

V, and the places of the values of S, belong to all modules of one name, in all layers. U is made from the base: in
float64, which PEFT rounds to the base's dtype, and we do not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from wiseft_core.errors import NotFinite, ShapeMismatch
from wiseft_core.families._family import Change, Factors, Family, Hyper, Option

if TYPE_CHECKING:
    from torch import Tensor

LEAST: Final = 1e-12
"""A column of W·V⁻ᵀ that is no longer than this counts as zero, as in PEFT."""


def tuned(weight: Tensor, factors: Factors, hyper: Hyper, total: Tensor | None) -> Tensor:
    """The tuned weight.

        W_tuned = U·(S + diag(lambda_l))·Vᵀ        S[indices[0, k], indices[1, k]] = values[k]

    Shapes:
        weight (out, in); V (in, in); lambda_l (in); indices (2, count); values (count). Returns (out, in).
    Raises:
        NotFinite: V has no inverse.
        ShapeMismatch: A place lies outside S.
    Exactness: float64 roundings of |U|·|S + diag(lambda_l)|·|V|ᵀ, and of W times the condition of V over the least
        length of a column of W·V⁻ᵀ. Where all weights of one name together have fewer rows than columns, some of these
        are all but zero, and point wherever V's own rounding has them point, as in PEFT.
    Closed: no: the lengths that U's columns had in the base are not among its factors.
    Source: FRoD, AAAI 2026, doi:10.1609/aaai.v40i31.39813.
    """
    import torch  # comes with arithmetic, not with a plan

    from wiseft_core.numerics import product

    basis, diagonal = factors["V"], factors["lambda_l"]
    if not bool(((factors["indices"] >= 0) & (factors["indices"] < len(basis))).all()):
        raise ShapeMismatch(
            "a place lies outside the matrix of FRoD",
            expected=f"rows and columns below {len(basis)}",
            got=f"from {int(factors['indices'].min())} to {int(factors['indices'].max())}",
            hint="is this the base that the adapter was trained on?",
        )
    solved, failed = torch.linalg.solve_ex(basis, weight.T)
    if int(failed) or not bool(solved.isfinite().all()):
        raise NotFinite(
            "the basis of FRoD has no inverse",
            expected="columns that are independent",
            got="some that are not",
            hint="merge this adapter with the library that trained it",
        )
    lengths = solved.norm(dim=1, keepdim=True)
    rows = torch.where(lengths > LEAST, solved / lengths, 0.0)
    middle = torch.zeros_like(basis).index_put_(tuple(factors["indices"]), factors["values"], accumulate=True)
    return product(product(rows.T, middle + diagonal.diag()), basis.T)


def category(module: str) -> str:
    """The name that modules share V by: the last two parts of the path, or the last one behind a layer's number."""
    parts = module.split(".")
    if len(parts) == 1 or parts[-2].isdigit():
        return parts[-1]
    return "attention_output" if parts[-3:] == ["attention", "output", "dense"] else f"{parts[-2]}_{parts[-1]}"


FROD = Family(
    name="frod",
    parameters={
        "weight": Change(
            factors={"V": "in in", "lambda_l": "in", "indices": "2 count", "values": "count"},
            tuned=tuned,
            whole=True,
            integers=frozenset({"indices"}),
        ),
    },
    source="FRoD: Full-Rank Efficient Fine-Tuning with Rotational Degrees, AAAI 2026, doi:10.1609/aaai.v40i31.39813",
    peft="FROD",
    keys={
        "base_model.frod_V.*": "V",
        "base_model.frod_s_indices.*": "indices",
        "base_model.frod_s_size.*": "ignored",
        "frod_lambda_l": "lambda_l",
        "frod_lambda_s_values": "values",
    },
    options={
        "save_projection": Option(
            (True,), default=True, why="V is then made from the weights of all layers, each time that PEFT loads"
        )
    },
    harmless={
        "projection_prng_key": "the places are read from the file",
        "sparse_rate": "the places are read from the file",
        "regularization_alpha": "V is read from the file",
        "frod_dropout": "active in training only",
        "progressbar": "of the start of training",
        "runtime_offload_base_weight": "where the base lies while it runs",
    },
    group=category,
)
