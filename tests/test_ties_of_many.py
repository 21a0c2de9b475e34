"""One tensor under more than two names, as T5 and BART have it: the embedding of both sides, and the head."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from wiseft_core import errors, interpolate, plan

NAMES = ("shared", "encoder.embed_tokens", "decoder.embed_tokens", "lm_head")
T5 = {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "tie_word_embeddings": True}
ROWS, WIDTH, RANK = 7, 5, 2
CONFIG = {"lora_alpha": 3, "r": RANK}


def random(*shape: int, seed: int) -> Tensor:
    """A tensor that a seed tells."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def factors(modules: tuple[str, ...]) -> tuple[dict[str, Tensor], Tensor]:
    """Factors of these modules, and the sum of what they add at scale 1.5."""
    tensors: dict[str, Tensor] = {}
    total = torch.zeros(ROWS, WIDTH, dtype=torch.float64)
    for module in modules:
        rows, columns = random(ROWS, RANK, seed=len(tensors) + 1), random(RANK, WIDTH, seed=len(tensors) + 2)
        total += 1.5 * rows.double() @ columns.double()
        if module == "lm_head":
            tensors |= {f"{module}.lora_A.weight": columns, f"{module}.lora_B.weight": rows}
        else:
            tensors |= {f"{module}.lora_embedding_A": rows.T.clone(), f"{module}.lora_embedding_B": columns.T.clone()}
    return tensors, total


@pytest.mark.parametrize("modules", [m for count in (1, 2, 3, 4) for m in itertools.combinations(NAMES, count)])
@pytest.mark.parametrize("live", [True, False])
def test_shared_by_four_names(modules: tuple[str, ...], live: bool) -> None:
    """What any of the names adds is added to the one tensor, under all names of the base; a live one stays one."""
    weight = random(ROWS, WIDTH, seed=0)
    base = {f"{name}.weight": weight for name in NAMES} if live else {"shared.weight": weight}
    base["other.weight"] = random(3, 3, seed=9)
    adapter, total = factors(modules)
    view = interpolate(base, adapter, 0.5, config=CONFIG, base_config=T5, tied="share")
    wanted = (weight.double() + 0.5 * total).float()
    held = dict(view)
    assert held.keys() == base.keys()
    assert torch.equal(held["other.weight"], base["other.weight"])
    for name in base.keys() - {"other.weight"}:
        assert torch.allclose(held[name], wanted, rtol=1e-6, atol=1e-6), name
        assert held[name] is held["shared.weight"]
    assert set(view.plan.alike) == {f"{name}.weight" for name in NAMES[1:]}


@pytest.mark.parametrize("tied", ["share", "untie"])
def test_one_tensor_has_one_alpha(tied: str) -> None:
    """Names that stay one tensor cannot have two alphas; those that are written apart can."""
    weight = random(ROWS, WIDTH, seed=0)
    base = {f"{name}.weight": weight for name in (NAMES[0], NAMES[3])}
    alpha = {"shared.weight": 0.5, "lm_head.weight": 0.25}
    adapter, config = factors(("shared", "lm_head"))[0], {**CONFIG, "ensure_weight_tying": False}
    if tied == "untie":
        assert dict(interpolate(base, adapter, alpha, config=config).alphas[0]) == alpha
        return
    with pytest.raises(errors.BadAlpha, match="one tensor with shared"):
        interpolate(base, adapter, alpha, config=config, tied="share")


@pytest.mark.parametrize("live", [True, False])
def test_four_names_are_not_untied(live: bool) -> None:
    """The four cannot be told apart in a config: refused, and sharing is the hint."""
    weight = random(ROWS, WIDTH, seed=0)
    base = {f"{name}.weight": weight for name in NAMES} if live else {"shared.weight": weight}
    with pytest.raises(errors.Unsupported, match=r'tied="share"'):
        plan(base, factors(("lm_head",))[0], config=CONFIG, base_config=T5)


@pytest.mark.parametrize("live", [True, False])
def test_token_rows_of_four_names_are_trained_once(live: bool) -> None:
    """Rows that PEFT saves under the one name are those of all, and nothing needs to be untied."""
    weight = random(ROWS, WIDTH, seed=0)
    base = {f"{name}.weight": weight for name in NAMES} if live else {"shared.weight": weight}
    rows = {"shared.token_adapter.trainable_tokens_delta": random(2, WIDTH, seed=1)}
    view = interpolate(base, rows, 1.0, config={"trainable_token_indices": {"shared": [4, 1]}}, base_config=T5)
    assert view.keys() == base.keys()
    for value in view.values():
        assert torch.equal(value[[4, 1]], next(iter(rows.values())))
        assert torch.equal(value[[0, 2, 3, 5, 6]], weight[[0, 2, 3, 5, 6]])
