"""The verb that makes one adapter of several: what `combine` adds to the base, as low-rank factors.

Verb floor. Adapters are bound and coefficients resolved as for `combine`; this file decides what becomes of each
touched tensor, `lowrank` has the maths, and `spelling` writes the result down.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from wiseft_core import lowrank
from wiseft_core.blending import Term
from wiseft_core.bound import Bound, Part, Prepared
from wiseft_core.checking import check_values
from wiseft_core.combination import all_tuned, check_plain, check_resized
from wiseft_core.errors import ConfigError, NotFinite, Unsupported, WiseftError, listed
from wiseft_core.families import FAMILIES, Family
from wiseft_core.families.lora import delta
from wiseft_core.interpolation import bound_of
from wiseft_core.layouts import CONVOLUTION, EMBEDDING, FLAT, LAYOUTS, WHOLE, Layout, matrix_shape
from wiseft_core.lowrank import Pair
from wiseft_core.made import Made
from wiseft_core.numerics import is_all_finite
from wiseft_core.plans import Binding
from wiseft_core.sources import Adapter, BaseLike, as_source
from wiseft_core.spelling import Factors, adapter_of
from wiseft_core.statedict import StateDict
from wiseft_core.types import Alpha

METHODS: Final = ("cat", "svd")


@dataclass(frozen=True, slots=True)
class Joined:
    """One adapter made of several, and how far it is from their exact sum.

    Attributes:
        adapter: Its tensors, by the keys that PEFT saves, and its config.
        errors: For each base tensor with factors, the Frobenius norm of what the stored factors add less the exact sum.
        norms: For the same tensors, the Frobenius norm of the exact sum, to compare with.
    """

    adapter: Adapter
    errors: Mapping[str, float]
    norms: Mapping[str, float]


def combine_adapters(
    base: BaseLike,
    adapters: Iterable[tuple[Adapter | BaseLike, Alpha]],
    *,
    method: str = "cat",
    rank: int | None = None,
    base_config: Mapping[str, object] | None = None,
    extrapolate: bool = False,
    families: Mapping[str, Family] = FAMILIES,
) -> Joined:
    """Several adapters of one base as one LoRA adapter, which adds to the base what `combine` adds.

        B·A = sum over the adapters of alpha_i·(W_tuned_i - W_base), for every weight        scale 1

    "cat" stacks the factors of LoRA, A = [A_1; A_2; ...] and B = [alpha_1·s_1·B_1, alpha_2·s_2·B_2, ...], so that the
    rank is the sum of the ranks; k trained token rows are k more. "svd" keeps the R largest singular values of the
    sum, whatever the methods: B = U·√S, A = √S·Vᵀ, balanced so that neither factor is hard to round. The order of the
    adapters does not matter to any byte.

    A tensor whose coefficients are all 0 is left out. Heads, norms and other tensors that were trained as a whole are
    carried as `combine` gives them, through modules_to_save; the bias of a module with factors, trained in any way, as
    a bias of PEFT's "lora_only": these are values, right over this base only.

    Shapes:
        As PEFT stores them for the module's kind: Linear, Conv1D, Embedding, Conv1d, Conv2d, Conv3d.
    Args:
        base: As for `interpolate`. Its values are read for DoRA, trained rows, and what is carried as a whole.
        adapters: As for `combine`.
        method: "cat" or "svd".
        rank: R of "svd", at least 1; a tensor whose sum has a smaller rank gets that.
        base_config: As for `interpolate`.
        extrapolate: As for `combine`.
        families: As for `interpolate`.
    Returns:
        The adapter in memory, with the error of each of its products.
    Raises:
        ConfigError: A method or rank that cannot be meant; everything that `combine` raises of adapters and alphas.
        Unsupported: For "cat", a change that is no product of low rank, such as DoRA's; a full checkpoint; PEFT has
            no spelling for the sum; everything that `combine` refuses.
        AmbiguousName: The adapters see the model under different prefixes.
        NotFinite: A factor does not fit float32.
        WiseftError: As for `combine`.
    Exactness: The factors are formed in float64 and rounded once to float32, or not at all where those of every adapter
        are float64. With factors of 32 bits or less "cat" differs from the sum by the rounding of alpha·s·B alone.
        `errors` has the distance of the stored factors, measured in float64. The bits of "svd" are those of one LAPACK
        and thread count.
    Source: Wortsman et al. 2022, arXiv:2109.01903; Ilharco et al. 2023, arXiv:2212.04089, for the sum; Eckart & Young
        1936 for the best approximation of rank R.
    Example:
        >>> base = {"proj.weight": torch.zeros(1, 2)}
        >>> ones = {"proj.lora_A.weight": torch.ones(1, 2), "proj.lora_B.weight": torch.ones(1, 1)}
        >>> adapter = Adapter(ones, AdapterConfig(lora_alpha=4))
        >>> joined = combine_adapters(base, [(adapter, 0.5), (adapter, 0.25)])
        >>> joined.adapter.tensors["base_model.model.proj.lora_B.weight"], joined.adapter.config.r
        (tensor([[2., 1.]]), 2)
    """
    _check_method(method, rank)
    pairs, source = list(adapters), as_source(base)
    tuned = all_tuned([adapter for adapter, _ in pairs], source, families)
    WiseftError.raise_all([_complete(number) for number, one in enumerate(tuned, start=1) if one.complete])
    bound = bound_of(
        source,
        tuned,
        base_config=base_config,
        overflow="error",
        compute_dtype="float64",
        output_dtype=None,
        device="cpu",
        families=families,
    )
    check_resized(bound)
    check_plain(bound)
    view = StateDict(bound, [alpha for _, alpha in pairs], extrapolate=extrapolate)
    check_values(bound, [False] * len(tuned))
    with torch.no_grad():
        sums = [one for name in view.touched if (one := _sum(view, name)) is not None]
        if method == "cat":
            WiseftError.raise_all([_no_product(one, found) for one in sums if (found := list(one.others()))])
        factors, errors, norms = dict[str, Factors](), dict[str, float](), dict[str, float]()
        for one in sums:
            exact = one.exact(cut=method == "svd")
            stored = exact.part(0, rank).to(one.dtype())
            _check_finite(one.name, stored)
            factors[one.name] = Factors(one.layout, stored)
            errors[one.name], norms[one.name] = lowrank.distance(exact, stored), lowrank.norm(exact)
        configs = [tune.config for tune in tuned if tune.config is not None]
        made, said = adapter_of(view, factors, configs), {"method": method, **({"rank": str(rank)} if rank else {})}
        return Joined(Made(made.tensors, made.config, view=view, method=said), errors, norms)


@dataclass(frozen=True, slots=True)
class _Sum:
    """What several adapters add to one weight that has factors.

    Attributes:
        view: The combination.
        name: The weight's name in the base.
        active: The adapters with a share in it, by their places.
        layout: How the weight is stored as a matrix.
    """

    view: StateDict
    name: str
    active: tuple[int, ...]
    layout: Layout

    @property
    def bound(self) -> Bound:
        """Base and adapters."""
        return self.view.bound

    def parts(self) -> Iterator[tuple[int, Part, Binding]]:
        """The active adapters, numbered from 1, each with its change."""
        for at in self.active:
            part = self.bound.parts[at]
            yield at + 1, part, part.plan.bindings[self.name]

    def others(self) -> Iterator[str]:
        """The changes that are no product of low rank, in words."""
        for number, part, binding in self.parts():
            if not _is_product(self.bound, part, binding):
                yield f"{' and '.join(step.family for step in binding.steps)} in adapter {number}"

    def dtype(self) -> torch.dtype:
        """float64 if every factor is."""
        keys = [(part, key) for _, part, bound in self.parts() for key in bound.steps[-1].factors.values()]
        return torch.float64 if all(part.adapter.specs[key].dtype == "F64" for part, key in keys) else torch.float32

    def exact(self, *, cut: bool) -> Pair:
        """The sum as a product in float64, not rounded; where it is to be `cut`, by its singular values."""
        prepared = self.bound.prepare(self.name, [self.view.share(self.name)])
        if any(self.others()):
            return lowrank.of_matrix(self._dense(prepared))
        terms = zip(prepared.terms, prepared.shares[0], strict=True)
        pair = lowrank.stacked([self._product(term, alpha) for term, alpha in terms])
        return lowrank.decomposed(pair) if cut else pair

    def _product(self, term: Term, alpha: float) -> Pair:
        """What one adapter adds, as a product; trained rows are one component each."""
        step = term.steps(0)[-1]
        if term.rows is None:
            return Pair(step.factors["A"], step.factors["B"] * (step.hyper.scale * alpha))
        base, (height, width) = self.bound.base, matrix_shape(self.bound.base.specs[self.name].shape)
        rows = [base.read(self.name, row * width, (row + 1) * width).cpu().double() for row in term.rows]
        moved = (step.factors["rows"] - torch.stack(rows)) * alpha
        return Pair(one_hot(torch.tensor(term.rows, device="cpu"), height).double(), moved.T)

    def _dense(self, prepared: Prepared) -> Tensor:
        """The sum itself, (out, in)."""
        change = torch.empty(matrix_shape(prepared.shape), dtype=torch.float64, device="cpu")
        for tile in prepared.tiles():
            change.view(-1)[tile.start : tile.stop] = prepared.change(tile)
        return change.T if self.layout.rows == "in" else change


def _sum(view: StateDict, name: str) -> _Sum | None:
    """What is added to one tensor, if it can be low-rank: if an active adapter's change tells the weight's layout."""
    active = tuple(at for at, alpha in enumerate(view.share(name)) if alpha)
    steps = [view.bound.parts[at].plan.bindings[name].steps[-1] for at in active]
    layouts = [EMBEDDING if step.family == "tokens" else LAYOUTS[step.layout] for step in steps]
    # What another method sees as a flat matrix is a convolution to LoRA.
    told = {CONVOLUTION if layout == FLAT else layout for layout in layouts if layout != WHOLE}
    if len(told) > 1:
        raise Unsupported(
            f"{name} — the adapters take this weight for modules of different kinds",
            expected="one layout",
            got=listed(layout.name for layout in told),
            hint="pass base_config, which says how the model stores its weights; or combine into a checkpoint",
        )
    return _Sum(view, name, active, told.pop()) if told else None


def _is_product(bound: Bound, part: Part, binding: Binding) -> bool:
    """Whether a change is one product that does not depend on the weight, or trained rows."""
    *before, step = binding.steps
    if not any(form.delta is delta for form in bound.families[step.family].forms(step.parameter)):
        return step.family == "tokens"
    return all(_is_base(bound, part, binding.name, one.factors["value"]) for one in before)


def _is_base(bound: Bound, part: Part, name: str, key: str) -> bool:
    """Whether a whole tensor beside the factors is the base's own, as PEFT saves it for an embedding with factors."""
    count = bound.base.specs[name].numel
    ours, theirs = bound.base.read(name, 0, count), part.adapter.read(key, 0, count)
    return torch.equal(ours.cpu().double(), theirs.cpu().double())


def _check_method(method: str, rank: int | None) -> None:
    """Refuse a method that is not there, or a rank that it cannot use."""
    if method not in METHODS:
        raise ConfigError(
            "method", expected=" or ".join(METHODS), got=f"{method!r}", hint="cat is exact, svd has the rank you choose"
        )
    if method == "cat" and rank is not None:
        raise ConfigError(
            "rank of cat",
            expected="none: the rank is the sum of the adapters' ranks",
            got=f"{rank!r}",
            hint='choose method="svd" for a rank of your own',
        )
    if method == "svd" and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
        raise ConfigError(
            "rank of svd",
            expected="a whole number, at least 1",
            got=f"{rank!r}",
            hint="choose the rank of the result; the errors that come with it tell whether it is enough",
        )


def _check_finite(name: str, stored: Pair) -> None:
    """Refuse factors that rounding made infinite."""
    if not all(map(is_all_finite, stored)):
        raise NotFinite(
            f"{name} — a factor of the sum does not fit float32",
            expected="alpha·s·B within the range of float32",
            got="infinity",
            hint="look for huge values in the adapters' factors or coefficients",
        )


def _complete(number: int) -> Unsupported:
    return Unsupported(
        f"adapter {number} — a full checkpoint",
        expected="adapters with factors: they tell which modules the result is for, and of what kind these are",
        got="every tensor of the base, each trained as a whole",
        hint="combine it into a checkpoint, without making an adapter of it",
    )


def _no_product(one: _Sum, found: list[str]) -> Unsupported:
    return Unsupported(
        f"{one.name} — what an adapter adds here is no product of low rank",
        expected="LoRA or trained token rows: factors that can be stacked",
        got=listed(found, most=5),
        hint='method="svd" with a rank (--as-adapter svd --rank R) gives the nearest of that rank, and its error',
    )
