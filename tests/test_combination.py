"""Sums of adapters: exact, in one rounding, and the same whatever the order."""

from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path

import exact
import pytest
import strategies
import torch
from exact import same_bits
from folders import low_rank, tree, weights, write_adapter, write_base
from hypothesis import given
from hypothesis import strategies as st
from oracles import ulp
from safetensors.torch import load_file

from wiseft_core import Adapter, AdapterConfig, combine, interpolate, save_checkpoint, verify
from wiseft_core.errors import BadAlpha, ConfigError, ShapeMismatch, UnusedPattern

MODULES = ["model.layers.0.q_proj", "model.layers.1.q_proj"]
SPLIT = [["model.embed_tokens.weight", "model.layers.0.q_proj.weight", "model.layers.0.q_proj.bias"]]
SPLIT.append([name for name in weights() if name not in SPLIT[0]])


def adapter(case):
    """A case as an adapter in memory."""
    tensors, config = strategies.adapter_of(case)
    return Adapter(tensors, AdapterConfig.from_mapping(config))


def total(cases, alphas):
    """W + the sum of what each case alone changes, exactly."""
    base = [Fraction(value) for value in cases[0].weight.double().flatten().tolist()]
    shifts = [exact.interpolated(case, alpha) for case, alpha in zip(cases, alphas, strict=True)]
    return [w + sum(shift[at] - w for shift in shifts) for at, w in enumerate(base)]


def combined(cases, alphas, **options):
    """The weight that the cases share, combined."""
    pairs = [(adapter(case), alpha) for case, alpha in zip(cases, alphas, strict=True)]
    options = {"base_config": {"model_type": "llama"}, "overflow": "saturate"} | options
    return combine({"m.weight": cases[0].weight}, pairs, **options)["m.weight"]


@given(strategies.companies(kind="dyadic"), st.data())
def test_the_sum_is_exact_where_float64_holds_it(cases, data):
    """Of dyadic values every sum is exact, so the result is the exact sum rounded once, in every dtype."""
    cases = [case._replace(scale=case.scale if case.scale in (0.5, 1.0, 2.0, -1.5) else 1.0) for case in cases]
    alphas = [data.draw(strategies.dyadic_alphas) for _ in cases]
    out = combined(cases, alphas)
    wanted = exact.rounded(total(cases, alphas), cases[0].weight.dtype).view(out.shape)
    assert torch.equal(out.double(), wanted.double())


@given(strategies.companies(("lora", "full", "dora"), kind="dyadic"), st.data())
def test_the_sum_is_within_the_promise(cases, data):
    """Any alpha, negative and above 1 too: half an ulp, and what float64 loses of each term."""
    alphas = [data.draw(st.floats(-2, 2)) for _ in cases]
    out = combined(cases, alphas, extrapolate=True, output_dtype="fp64").flatten().tolist()
    biggest = 1 + max(cases[0].weight.double().abs().max().item(), 0) if cases[0].weight.numel() else 1
    for case in cases:
        biggest += 8 * max((part.double().abs().max().item() for part in case.factors.values()), default=0) ** 2
        biggest += max((abs(float(value)) for value in exact.tuned(case)), default=0)
    for mine, wanted in zip(out, total(cases, alphas), strict=True):
        assert abs(Fraction(mine) - wanted) <= ulp(wanted, "F64") / 2 + Fraction(biggest) * Fraction(2) ** -44


@given(strategies.companies(("lora", "full", "dora"), kind="wild"), st.data())
def test_the_order_does_not_matter_to_a_bit(cases, data):
    """Every permutation of the adapters gives the same bits."""
    alphas = [data.draw(st.floats(-2, 2)) for _ in cases]
    first = combined(cases, alphas, extrapolate=True)
    for order in itertools.permutations(range(len(cases))):
        other = combined([cases[at] for at in order], [alphas[at] for at in order], extrapolate=True)
        assert same_bits(other, first)


@given(strategies.tunings(), strategies.alphas)
def test_one_adapter_is_interpolate(tuning, alpha):
    """A combination of one gives the bits of `interpolate`, tensor by tensor."""
    single = interpolate(**tuning.arguments, alpha=alpha, overflow="saturate")
    one = Adapter(tuning.adapter, AdapterConfig.from_mapping(tuning.config))
    view = combine(tuning.base, [(one, alpha)], base_config=tuning.base_config, overflow="saturate")
    assert list(view) == list(single)
    assert view.touched == single.touched
    assert all(same_bits(view[name], single[name]) for name in single)


@given(strategies.companies(("lora", "dora", "full")), strategies.alphas)
def test_an_adapter_at_zero_adds_nothing(cases, alpha):
    """All others at 0: the bits are those of the one adapter alone."""
    alone = combined(cases[:1], [alpha])
    assert same_bits(combined(cases, [alpha] + [0.0] * (len(cases) - 1)), alone)


E, H = "model.embed_tokens.weight", "lm_head.weight"
LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True}


@pytest.mark.parametrize("stored", ["the embedding", "one tensor twice", "two copies"])
@pytest.mark.parametrize("of", ["embedding", "head", "both"])
@pytest.mark.parametrize("alphas", [(0.5, 0.25), (0.5, 0.5)])
def test_token_rows_stay_in_both_where_another_adapter_unties(stored, of, alphas):
    """Rows change embedding and head alike; what unties them makes two tensors for all, whatever the base stores."""
    weight = torch.arange(24.0).reshape(6, 4)
    twin = {"the embedding": {}, "one tensor twice": {H: weight}, "two copies": {H: weight.clone()}}[stored]
    rows = {"model.embed_tokens.token_adapter.trainable_tokens_delta": torch.ones(1, 4)}
    tokens = Adapter(rows, AdapterConfig.from_mapping({"trainable_token_indices": {"embed_tokens": [2]}}))
    first, second = {}, {}
    if of != "head":
        A, B = torch.ones(1, 6), torch.full((4, 1), 4.0)
        first = {"model.embed_tokens.lora_embedding_A": A, "model.embed_tokens.lora_embedding_B": B}
    if of != "embedding":
        second = {"lm_head.lora_A.weight": torch.ones(1, 4), "lm_head.lora_B.weight": torch.full((6, 1), 8.0)}
    low = Adapter(first | second, AdapterConfig.from_mapping({"lora_alpha": 1, "r": 1}))
    base = weight.clone()
    base[2] += alphas[0] * (1 - weight[2])
    wanted = {E: base + alphas[1] * (4 if first else 0), H: base + alphas[1] * (8 if second else 0)}
    for order in (1, -1):
        pairs = [(tokens, alphas[0]), (low, alphas[1])][::order]
        view = combine({E: weight, **twin}, pairs, base_config=LLAMA)
        held = dict(view)
        assert all(torch.equal(held[name], wanted[name]) for name in wanted)
        assert view.plan.config == {"tie_word_embeddings": False} and view.plan.untied == (H,)


def test_token_rows_and_a_low_rank_change_of_one_embedding_add_up():
    """Rows that one adapter trained, and a LoRA on the whole table: both changes, each where it acts."""
    draw = torch.Generator().manual_seed(3)
    base = {"embed.weight": torch.randn(300, 700, generator=draw).bfloat16(), "head.weight": torch.randn(2, 2)}
    rows = torch.randn(2, 700, generator=draw)
    tokens = Adapter(
        {"embed.token_adapter.trainable_tokens_delta": rows},
        AdapterConfig.from_mapping({"trainable_token_indices": {"embed": [250, 3]}}),
    )
    first, second = torch.randn(2, 300, generator=draw), torch.randn(700, 2, generator=draw)
    low = Adapter(
        {"embed.lora_embedding_A": first, "embed.lora_embedding_B": second},
        AdapterConfig.from_mapping({"lora_alpha": 2}),
    )
    options = {"base_config": {"tie_word_embeddings": False, "model_type": "llama"}}
    weight = base["embed.weight"].double()
    wanted = weight + 0.25 * (second.double() @ first.double()).T
    wanted[[250, 3]] += 0.5 * (rows.double() - weight[[250, 3]])
    for pairs in ([(tokens, 0.5), (low, 0.25)], [(low, 0.25), (tokens, 0.5)]):
        wide = combine(base, pairs, output_dtype="fp64", **options)["embed.weight"]
        assert torch.allclose(wide, wanted, rtol=1e-14, atol=1e-14)
        assert torch.equal(combine(base, pairs, output_dtype="fp32", **options)["embed.weight"], wanted.float())
    other = Adapter(tokens.tensors, AdapterConfig.from_mapping({"trainable_token_indices": {"embed": [7, 250]}}))
    view = combine(base, [(tokens, 1.0), (other, 1.0)], **options)
    out = view["embed.weight"]
    changed = (out.view(torch.int16) != base["embed.weight"].view(torch.int16)).any(1).nonzero().flatten().tolist()
    assert changed == [3, 7, 250]  # untouched rows keep their bytes
    assert torch.equal(out[7], rows[0].bfloat16()) and torch.equal(out[3], rows[1].bfloat16())
    both = weight[250] + (rows[0].double() - weight[250]) + (rows[1].double() - weight[250])
    assert torch.allclose(out[250].double(), both, rtol=2**-8, atol=1e-6)


def pair_of_adapters(folder: Path, **second):
    """Two adapters on disk over one base: a LoRA with a bias and a DoRA of another rank."""
    base = weights()
    tensors = low_rank(base, MODULES) | {"base_model.model.model.norm.weight": torch.full((6,), 2.0)}
    one = write_adapter(folder / "one", tensors, modules_to_save=["norm"], base_model_name_or_path="org/tiny")
    other = low_rank(base, MODULES[1:], rank=3, seed=5, dora=True)
    other |= {"base_model.model.score.weight": torch.ones(3, 6)}
    fields = {"r": 3, "use_dora": True, "modules_to_save": ["score"], "base_model_name_or_path": "/models/tiny/"}
    return one, write_adapter(folder / "other", other, **{**fields, **second})


def test_files_are_the_same_in_any_order_and_verify(tmp_path: Path):
    """Whole folders, manifest and index included; `verify` takes the adapters in any order, and only these."""
    base = write_base(tmp_path / "base", weights(), SPLIT)
    one, other = pair_of_adapters(tmp_path)
    save_checkpoint(combine(base, [(one, 0.5), (other, 0.25)]), tmp_path / "a")
    save_checkpoint(combine(base, [(other, 0.25), (one, 0.5)]), tmp_path / "b")
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    view = combine(base, [(one, 0.5), (other, 0.25)])
    read = {name: value for file in (tmp_path / "a").glob("*.safetensors") for name, value in load_file(file).items()}
    assert read.keys() == view.keys() and all(same_bits(read[name], view[name]) for name in view)
    assert verify(tmp_path / "a", base=base, adapter=[one, other]).ok
    assert verify(tmp_path / "b", base=base, adapter=[one, other]).ok
    for wrong in ([one], [one, one], [one, other, other]):
        with pytest.raises(ConfigError, match="adapters to verify against"):
            verify(tmp_path / "a", base=base, adapter=wrong)
    swapped = combine(base, [(one, 0.25), (other, 0.5)])
    save_checkpoint(swapped, tmp_path / "c")
    assert tree(tmp_path / "c") != tree(tmp_path / "a")


def test_one_adapter_gives_the_files_of_interpolate(tmp_path: Path):
    """The whole folder of a combination of one, manifest included."""
    base = write_base(tmp_path / "base", weights(), SPLIT)
    one, _ = pair_of_adapters(tmp_path)
    save_checkpoint(combine(base, [(one, 0.3)]), tmp_path / "a")
    save_checkpoint(interpolate(base, one, 0.3), tmp_path / "b")
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_a_combination_goes_on_with_resume(tmp_path: Path):
    """A finished one is found again, in whichever order its adapters are given."""
    base = write_base(tmp_path / "base", weights(), SPLIT)
    one, other = pair_of_adapters(tmp_path)
    save_checkpoint(combine(base, [(one, 0.5), (other, 0.25)]), tmp_path / "a")
    report = save_checkpoint(combine(base, [(other, 0.25), (one, 0.5)]), tmp_path / "a", resume=True)
    assert "finished already" in " ".join(report.notes)


def test_at_takes_a_coefficient_for_each_adapter(tmp_path: Path):
    """Switching alphas is free, schedules work for each adapter, and a lone number is refused."""
    base = write_base(tmp_path / "base", weights(), SPLIT)
    one, other = pair_of_adapters(tmp_path)
    view = combine(base, [(one, 0.5), (other, 0.25)])
    name = "model.layers.1.q_proj.weight"
    by_name = view.at([{"*": 0.5, name: 0.125}, 0.0])
    assert view.alpha == (0.5, 0.25)
    assert same_bits(by_name[name], interpolate(base, one, 0.125)[name])
    assert same_bits(view.at([0.5, 0.25])[name], view[name])
    lone = combine(base, [(one, 0.5)])
    assert same_bits(lone.at([0.25])[name], lone.at(0.25)[name])
    for wrong in (0.5, [0.5], [0.5, 0.5, 0.5]):
        with pytest.raises(ConfigError, match="combination"):
            view.at(wrong)


@pytest.mark.parametrize("name", ["same", "different", "none"])
def test_tokenizers_of_the_adapters(name, tmp_path: Path):
    """A tokenizer that the adapters share replaces the base's; if they differ, the base's stays and that is said."""
    base = write_base(tmp_path / "base", weights(), SPLIT)
    (base / "tokenizer.json").write_text("base")
    one, other = pair_of_adapters(tmp_path)
    if name != "none":
        (one / "tokenizer.json").write_text("tuned")
        (other / "tokenizer.json").write_text("tuned" if name == "same" else "otherwise")
    report = save_checkpoint(combine(base, [(one, 0.5), (other, 0.25)]), tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_text() == ("tuned" if name == "same" else "base")
    told = [reason for file, reason in report.left_out if file == "tokenizer.json"]
    assert bool(told) == (name != "none")


def test_refusals(tmp_path: Path):
    """No adapters, different bases, a bad alpha, an unused pattern, a misfit: each says which adapter it is about."""
    base = write_base(tmp_path / "base", weights(), SPLIT)
    one, other = pair_of_adapters(tmp_path)
    with pytest.raises(ConfigError, match="at least one"):
        combine(base, [])
    with pytest.raises(BadAlpha, match="adapter 2 of 2"):
        combine(base, [(one, 0.5), (other, 1.5)])
    with pytest.raises(UnusedPattern, match="adapter 1 of 2"):
        combine(base, [(one, {"*": 0.5, "nothing": 0.2}), (other, 0.5)])
    misfit = write_adapter(tmp_path / "misfit", {key: torch.ones(2, 9) for key in low_rank(weights(), MODULES[:1])})
    with pytest.raises(ShapeMismatch, match="adapter 3 of 3"):
        combine(base, [(one, 0.5), (other, 0.5), (misfit, 0.5)])
    _, foreign = pair_of_adapters(tmp_path / "more", base_model_name_or_path="org/large")
    with pytest.raises(ConfigError, match="different bases") as caught:
        combine(base, [(one, 0.5), (foreign, 0.5)])
    assert "org/large" in caught.value.got and "org/tiny" in caught.value.got


def test_a_new_head_of_two_adapters_must_be_the_same(tmp_path: Path):
    """The same head twice is written once; another value or shape is refused."""
    base = write_base(tmp_path / "base", weights(), SPLIT)
    _, one = pair_of_adapters(tmp_path / "1")
    _, same = pair_of_adapters(tmp_path / "2")
    view = combine(base, [(one, 0.5), (same, 0.5)])
    assert torch.equal(view["score.weight"], torch.ones(3, 6))
    for number, head in ((3, torch.zeros(3, 6)), (4, torch.ones(4, 6))):
        fields = {"r": 3, "use_dora": True, "modules_to_save": ["score"]}
        tensors = low_rank(weights(), MODULES[1:], rank=3, dora=True) | {"base_model.model.score.weight": head}
        with pytest.raises(ShapeMismatch, match=r"score\.weight"):
            combine(base, [(one, 0.5), (write_adapter(tmp_path / str(number), tensors, **fields), 0.5)])
