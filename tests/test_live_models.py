"""The promise of PEFT's context manager, kept without one: many alphas on a live model, and nothing to restore."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import ml_dtypes
import numpy as np
import pytest
import torch
from exact import same_bits
from folders import low_rank
from torch import Tensor, nn
from torch.func import functional_call
from transformers import LlamaConfig, LlamaForCausalLM

from wiseft_core import interpolate, interpolation, planning, sources, sweep
from wiseft_core.config import AdapterConfig

ALPHAS = (0.0, 0.25, 0.5, 1.0)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    """A tiny untied Llama."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=17, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=False,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def adapter(model: nn.Module) -> dict[str, Tensor]:
    """A DoRA on every projection of the first layer, and a trained norm."""
    weights = model.state_dict()
    modules = [name.removesuffix(".weight") for name in weights if "layers.0." in name and "proj" in name]
    return low_rank(weights, modules, dora=True) | {"model.norm.weight": torch.full((8,), 1.5)}


def options(model: nn.Module) -> dict[str, object]:
    """How the adapter is given."""
    config = {"lora_alpha": 3, "use_dora": True, "modules_to_save": ["model.norm"]}
    return {"config": config, "base_config": model.config.to_dict()}


@contextlib.contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of what is called that belongs to binding: planning, parsing a config, opening, checking values."""
    calls: list[str] = []
    places = [(planning, "bind"), (AdapterConfig, "from_mapping"), (interpolation, "check_values")]
    places += [(sources, "open_checkpoint"), (sources.Memory, "__init__")]
    with monkeypatch.context() as patch:
        for owner, name in places:
            own = getattr(owner, name)

            def call(*args, own=own, name=name, **named):
                calls.append(name)
                return own(*args, **named)

            patch.setattr(owner, name, call)
        yield calls


def test_switching_alpha_binds_nothing(model, adapter, monkeypatch):
    """`at` on one view, and every tensor of what it gives, neither plan, parse, open nor check anything again."""
    with counted(monkeypatch) as calls:
        view = interpolate(model.state_dict(), adapter, 0.0, **options(model))
        assert {"bind", "check_values", "__init__"} <= set(calls)  # the count works
        calls.clear()
        views = [view.at(alpha) for alpha in (*ALPHAS, {"*": 0.3, "model.norm.weight": 1.0}, lambda name: 0.7)]
        for other in views:
            assert other.plan is view.plan
            assert other.bound is view.bound
            assert len(dict(other)) == len(view)
        assert calls == []


def test_a_sweep_binds_once(model, adapter, monkeypatch):
    """As many alphas as one likes for one binding."""
    with counted(monkeypatch) as calls:
        views = sweep(model.state_dict(), adapter, [step / 20 for step in range(21)], **options(model))
        assert calls.count("bind") == calls.count("check_values") == 1
    assert len({id(view.bound) for view in views}) == 1


def run(model: nn.Module, weights: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """Logits of the model with other weights."""
    with torch.no_grad():
        return functional_call(model, weights, (tokens,), tie_weights=False).logits


def test_a_live_model_is_left_untouched(model, adapter):
    """At every alpha the logits are those of a model that holds the weights; the live one keeps every bit."""
    tokens = torch.tensor([[1, 2, 3, 4]])
    before = {name: (value.data_ptr(), value.clone()) for name, value in model.state_dict().items()}
    seen = []
    for view in sweep(model.state_dict(), adapter, ALPHAS, **options(model)):
        seen.append(run(model, dict(view), tokens))
        other = LlamaForCausalLM(model.config).eval()
        other.load_state_dict(view)
        with torch.no_grad():
            assert torch.equal(other(tokens).logits, seen[-1])
        for name, value in model.state_dict().items():
            pointer, bits = before[name]
            assert value.data_ptr() == pointer and same_bits(value, bits)
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, seen[0])  # alpha 0 is the base
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[-1])


def test_nothing_is_to_be_restored_after_an_exception(model, adapter):
    """A failure inside the forward pass, or between two alphas, leaves the model as it was."""
    tokens = torch.tensor([[1, 2, 3, 4]])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        expected = model(tokens).logits

    def fail(*_: object) -> None:
        raise RuntimeError("in the middle")

    hook = model.model.layers[1].register_forward_pre_hook(fail)
    try:
        for view in sweep(model.state_dict(), adapter, ALPHAS[1:], **options(model)):
            with pytest.raises(RuntimeError, match="in the middle"):
                run(model, dict(view), tokens)
    finally:
        hook.remove()
    assert all(same_bits(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, expected)


@pytest.mark.parametrize("cloned", [True, False])
def test_what_is_loaded_into_the_base_is_the_next_base(cloned):
    """A sweep over a clone of the state dict can be loaded, alpha after alpha; over the live one the changes add up."""
    model = nn.Linear(2, 2, bias=False)
    nn.init.zeros_(model.weight)
    base = {name: value.clone() if cloned else value for name, value in model.state_dict().items()}
    seen = []
    for view in sweep(base, {"weight": torch.ones(2, 2)}, [0.5, 1.0, 0.5]):
        model.load_state_dict(view)
        seen.append(model.weight[0, 0].item())
    assert seen == ([0.5, 1.0, 0.5] if cloned else [0.5, 1.0, 1.0])


EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.mark.parametrize("tied", ["untie", "share"])
def test_a_tied_live_model(model, tied):
    """Untied, each module has its own change, as it was trained; shared, both are added, and both names are one object.

    The logits are those of a model with the weights that the formula gives for either.
    """
    torch.manual_seed(1)
    config = LlamaConfig(**{**model.config.to_dict(), "tie_word_embeddings": True})
    live = LlamaForCausalLM(config).eval()
    weights = {name: value.clone() for name, value in live.state_dict().items()}
    inner, outer = torch.randn(2, 17), torch.randn(8, 2)
    first, second = torch.randn(2, 8), torch.randn(17, 2)
    adapter = {
        "model.embed_tokens.lora_embedding_A": inner, "model.embed_tokens.lora_embedding_B": outer,
        "lm_head.lora_A.weight": first, "lm_head.lora_B.weight": second,
    }  # fmt: skip
    state = live.state_dict()
    assert state[EMBEDDING].data_ptr() == state[HEAD].data_ptr()
    view = interpolate(state, adapter, 0.5, config={"lora_alpha": 2}, base_config=config.to_dict(), tied=tied)
    changes = {EMBEDDING: 0.5 * (outer @ inner).T, HEAD: 0.5 * second @ first}
    both = {name: sum(changes.values()) for name in changes} if tied == "share" else changes
    wanted = weights | {name: weights[EMBEDDING] + change for name, change in both.items()}
    given = dict(view)
    assert (given[EMBEDDING] is given[HEAD]) == (tied == "share")
    assert all(torch.allclose(given[name], wanted[name], atol=1e-6) for name in wanted)
    tokens = torch.tensor([[3, 1, 4, 1, 5]])
    torch.testing.assert_close(run(live, given, tokens), run(live, wanted, tokens))
    assert all(torch.equal(live.state_dict()[name], weights[name]) for name in weights)


@pytest.mark.parametrize("kind", ["shared", "read-only", "reversed", "big-endian", "bfloat16"])
@pytest.mark.parametrize("tied", ["untie", "share"])
def test_an_array_under_two_names_is_tied(kind, tied):
    """Also where torch cannot share its memory, and it is copied."""
    array = np.arange(24, dtype=np.float32).reshape(6, 4)
    others = {"reversed": array[::-1], "big-endian": array.astype(">f4"), "bfloat16": array.astype(ml_dtypes.bfloat16)}
    array = others.get(kind, array)
    array.flags.writeable = kind not in ("read-only", "bfloat16")
    base = {EMBEDDING: array, HEAD: array[:], "other.weight": np.zeros((6, 4), np.float32)}
    adapter = {"model.embed_tokens.lora_embedding_A": torch.ones(2, 6)}
    adapter["model.embed_tokens.lora_embedding_B"] = torch.ones(4, 2)
    said = {"model_type": "llama", "tie_word_embeddings": True}
    view = interpolate(base, adapter, 0.5, config={"lora_alpha": 2}, base_config=said, tied=tied)
    assert torch.equal(view[EMBEDDING].float(), torch.from_numpy(array.astype(np.float32)) + 1)
    assert (view[HEAD] is view[EMBEDDING]) == (tied == "share")
    assert view.plan.config == ({} if tied == "share" else {"tie_word_embeddings": False})
    assert not view["other.weight"].any()


def test_arrays_that_are_made_when_asked_for_are_not_tied():
    """One that took the place of another in memory is another."""

    class Made(dict):
        def items(self):
            return ((name, np.full((100, 1000), value, ">f4")[:, 0]) for name, value in super().items())

    base = Made({str(number): number for number in range(20)})
    assert [value[0].item() for value in sources.Memory(base).tensors.values()] == list(base.values())
