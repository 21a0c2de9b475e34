"""One adapter of several: PEFT loads it onto the base and gets what `combine` gives; its errors are the measured ones.

The oracle of the sum is naive float64 over the saved factors, or `combine`, which has its own tests. PEFT's
`add_weighted_adapter` is no oracle: it is wrong for rsLoRA, biases, DoRA and heads.
"""

from __future__ import annotations

import copy
import itertools
import json
import warnings
from typing import Any

import pytest
import torch
from folders import low_rank, same_bits, weights, write_adapter, write_base
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, TrainableTokensConfig, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from test_against_peft import LINEAR, allowed, gpt2, toy
from torch import nn

from wiseft_core import Adapter, AdapterConfig, combine, combine_adapters, interpolate
from wiseft_core.errors import (
    AmbiguousName,
    BadAlpha,
    BindingError,
    ConfigError,
    NotFinite,
    Unsupported,
    WiseftError,
)

CONV = ["conv1", "conv2", "conv3", "point"]
GPT2 = {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}
SETS: dict[str, tuple[Any, list[dict[str, Any]], list[float]]] = {
    "other_ranks": (toy, [{"target_modules": LINEAR, "r": 2}, {"target_modules": LINEAR, "r": 5}], [0.5, -0.25]),
    "other_modules": (toy, [{"target_modules": ["q_proj"]}, {"target_modules": ["up", "head"]}], [0.3, 0.9]),
    "rslora_and_patterns": (
        toy,
        [
            {"target_modules": LINEAR, "use_rslora": True, "r": 4},
            {"target_modules": LINEAR, "rank_pattern": {"layers.1.up": 2}, "alpha_pattern": {"q_proj": 3}},
            {"target_modules": ["layers.0.q_proj"], "r": 1},
        ],
        [1.0, 1.3, -0.7],
    ),
    "embedding": (toy, [{"target_modules": ["emb", "up"]}, {"target_modules": ["emb"], "r": 2}], [0.7, -1.5]),
    "conv": (toy, [{"target_modules": CONV}, {"target_modules": [*CONV, "q_proj"], "r": 2}], [-0.5, 0.6]),
    "gpt2": (gpt2, [GPT2, GPT2 | {"r": 2, "use_rslora": True}], [0.5, -0.9]),
    "lora_bias": (
        toy,
        [{"target_modules": [*LINEAR, "conv2"], "lora_bias": True}, {"target_modules": ["up", "emb"]}],
        [0.4, 0.8],
    ),
    "trained_biases": (
        toy,
        [
            {"target_modules": ["up"], "bias": "all"},
            {"target_modules": LINEAR, "bias": "lora_only"},
            {"target_modules": ["head"], "lora_bias": True},
        ],
        [0.4, 0.8, 0.5],
    ),
    "saved_modules": (
        toy,
        [{"target_modules": LINEAR, "modules_to_save": ["norm", "head"]}, {"target_modules": ["up", "emb"]}],
        [0.4, 1.5],
    ),
    "tokens": (
        toy,
        [
            {"target_modules": LINEAR, "trainable_token_indices": {"emb": [7, 2, 5]}},
            {"peft": TrainableTokensConfig, "target_modules": ["emb"], "token_indices": [9, 2]},
            {"target_modules": ["emb"]},
        ],
        [0.5, 0.75, -0.5],
    ),
}
DORA: dict[str, tuple[Any, list[dict[str, Any]], list[float]]] = {
    "dora_and_lora": (toy, [{"target_modules": LINEAR, "use_dora": True}, {"target_modules": LINEAR}], [0.5, -0.25]),
    "dora_everywhere": (
        toy,
        [
            {"target_modules": ["emb", "up", *CONV], "use_dora": True, "use_rslora": True},
            {"target_modules": ["emb", *CONV], "use_dora": True, "r": 2},
            {"target_modules": ["up", *CONV], "r": 1},
        ],
        [0.5, 0.75, 0.3],
    ),
    "dora_gpt2": (gpt2, [GPT2 | {"use_dora": True}, GPT2], [0.5, 1.0]),
    "head_and_lora": (
        toy,
        [{"target_modules": ["up"], "modules_to_save": ["head"]}, {"target_modules": ["head", "q_proj"]}],
        [0.5, 0.5],
    ),
}


def train(make, folder, seed, options):
    """An adapter that PEFT saves, every trained tensor of it random."""
    options = dict(options)
    kind = options.pop("peft", None)
    config = kind(**options) if kind else LoraConfig(**({"r": 3, "lora_alpha": 7} | options))
    draw = torch.Generator().manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        live = get_peft_model(make(), config)
        with torch.no_grad():
            for key, value in live.named_parameters():
                if value.requires_grad:
                    change = torch.randn(value.shape, generator=draw) * 0.3
                    value.copy_(value * (1 + change / 3) if "magnitude" in key else value + change)
        live.save_pretrained(folder, save_embedding_layers=False)
    return folder


def write(adapter, folder):
    """The adapter as PEFT lays it out."""
    folder.mkdir()
    save_file(
        {key: value.contiguous().clone() for key, value in adapter.tensors.items()},
        folder / "adapter_model.safetensors",
    )
    (folder / "adapter_config.json").write_text(json.dumps(adapter.config.fields))
    return folder


def load(model, folder):
    """PEFT's model with an adapter from a folder; keys that it misses or does not expect are an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message=".*adapter keys.*")
        live = PeftModel.from_pretrained(model, folder)
    result = set_peft_model_state_dict(live, load_file(folder / "adapter_model.safetensors"))
    assert result.unexpected_keys == []
    assert [key for key in result.missing_keys if "lora" in key or "modules_to_save" in key] == []
    return live


def merged(live):
    """The weights that PEFT merges."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return copy.deepcopy(live).merge_and_unload().state_dict()


def dense(adapter, name, across=False):
    """What an adapter's factors add to one weight by naive float64, as a matrix of the stored rows."""
    key = f"base_model.model.{name.removesuffix('.weight')}"
    embedded = f"{key}.lora_embedding_A" in adapter.tensors
    ends = ("lora_embedding_A", "lora_embedding_B") if embedded else ("lora_A.weight", "lora_B.weight")
    first, second = (adapter.tensors[f"{key}.{end}"].double().flatten(1) for end in ends)
    return (second @ first).T if embedded or across else second @ first


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A function that gives the model, the base's weights, the adapters with their coefficients, and options."""
    kept: dict[str, Any] = {}

    def get(name):
        if name not in kept:
            make, several, coefficients = (SETS | DORA)[name]
            folder = tmp_path_factory.mktemp(name)
            folders = [train(make, folder / str(seed), seed, options) for seed, options in enumerate(several)]
            options = {"base_config": {"model_type": "gpt2"} if make is gpt2 else None, "extrapolate": True}
            kept[name] = make, make().state_dict(), list(zip(folders, coefficients, strict=True)), options
        return kept[name]

    return get


@pytest.mark.parametrize("name", SETS)
def test_peft_loads_the_concatenation_and_merges_what_combine_gives(trained, tmp_path, name):
    """Every tensor within PEFT's own float32 arithmetic, and heads and biases to the bit."""
    make, base, pairs, options = trained(name)
    wanted = combine(base, pairs, **options)
    joined = combine_adapters(base, pairs, **options)
    live = load(make(), write(joined.adapter, tmp_path / "joined"))
    found = merged(live)
    assert found.keys() == wanted.keys()
    for key in base:
        off = (found[key].double() - wanted[key].double()).abs()
        assert bool((off <= 1.5 * allowed(live, key, base[key])).all()), (key, off.max())
    changed = {key for key in base if not torch.equal(base[key], found[key])}
    assert changed == set(wanted.touched)
    assert joined.adapter.config.bias == ("lora_only" if "bias" in name else "none")


@pytest.mark.parametrize("name", SETS)
def test_bfloat16_base_is_within_its_roundings(trained, tmp_path, name):
    """PEFT rounds the delta or the sum to bfloat16, we round once: two roundings apart at the most."""
    make, base, pairs, options = trained(name)
    narrow = {key: value.bfloat16() for key, value in base.items()}
    wanted = combine(narrow, pairs, **options)
    joined = combine_adapters(narrow, pairs, **options)
    found = merged(load(make().bfloat16(), write(joined.adapter, tmp_path / "joined")))
    for key in base:
        change = (wanted[key].double() - narrow[key].double()).abs()
        off = (found[key].double() - wanted[key].double()).abs()
        assert bool((off <= (change + wanted[key].double().abs()) * 2.0**-7).all()), key
        if key not in joined.errors:
            assert same_bits(found[key], wanted[key]), key


@pytest.mark.parametrize("name", SETS)
def test_our_own_reader_gets_the_same(trained, name):
    """`interpolate` at alpha 1 with the joined adapter is `combine`, within the rounding of alpha·s·B to float32."""
    _, base, pairs, options = trained(name)
    wanted = combine(base, pairs, **options, output_dtype="fp64")
    joined = combine_adapters(base, pairs, **options)
    view = interpolate(base, joined.adapter, 1.0, base_config=options["base_config"], output_dtype="fp64")
    assert {key for key in wanted if not torch.equal(view[key], base[key].double())} == set(wanted.touched)
    for key, error in joined.errors.items():
        assert float((view[key] - wanted[key]).norm()) <= error + 1e-13 * float(wanted[key].norm())
        assert error <= 2.0**-23 * joined.norms[key] * 10


@pytest.mark.parametrize(("name", "method"), [(name, "cat") for name in SETS] + [(name, "svd") for name in SETS | DORA])
def test_order_of_the_adapters_does_not_matter_to_any_byte(trained, name, method):
    """Every permutation gives the same keys, bytes, config and errors."""
    _, base, pairs, options = trained(name)
    rank = None if method == "cat" else 2
    first, *others = [
        combine_adapters(base, list(order), method=method, rank=rank, **options)
        for order in itertools.permutations(pairs)
    ]
    for other in others:
        assert list(other.adapter.tensors) == list(first.adapter.tensors)
        assert all(same_bits(other.adapter.tensors[key], value) for key, value in first.adapter.tensors.items())
        assert other.adapter.config.fields == first.adapter.config.fields
        assert (other.errors, other.norms) == (first.errors, first.norms)


@pytest.mark.parametrize("rank", [1, 3, 100])
@pytest.mark.parametrize("name", SETS | DORA)
def test_reported_error_is_the_measured_one_and_the_best_of_its_rank(trained, tmp_path, name, rank):
    """Measured densely in float64: equal to the report, and to the singular values that are left out."""
    make, base, pairs, options = trained(name)
    joined = combine_adapters(base, pairs, method="svd", rank=rank, **options)
    wide = combine({key: value.double() for key, value in base.items()}, pairs, **options)
    for key, error in joined.errors.items():
        change = (wide[key] - base[key].double()).flatten(1)
        norm = float(change.norm())
        noise = 2.0**-45 * (norm + float(base[key].double().norm()))
        measured = float((dense(joined.adapter, key, across=make is gpt2) - change).norm())
        assert abs(measured - error) <= 1e-9 * error + noise
        assert abs(joined.norms[key] - norm) <= noise
        tail = float(torch.linalg.svdvals(change)[rank:].norm())
        assert tail - noise <= error <= tail + 2.0**-22 * norm
    found, full = merged(load(make(), write(joined.adapter, tmp_path / "joined"))), combine(base, pairs, **options)
    for key in base:
        off = float((found[key].double() - full[key].double()).norm())
        assert off <= joined.errors.get(key, 0.0) + float(key in joined.errors) * 1e-5, key


NUMBERS = st.integers(-8, 8).map(lambda n: n / 4)


@st.composite
def dyadic(draw):
    """A few adapters of small dyadic numbers over one weight, so that float64 and float32 are exact."""
    out, width, count = draw(st.integers(1, 5)), draw(st.integers(1, 5)), draw(st.integers(1, 3))
    pairs = []
    for _ in range(count):
        rank = draw(st.sampled_from([1, 2, 4]))
        values = draw(st.lists(NUMBERS, min_size=rank * (out + width), max_size=rank * (out + width)))
        first = torch.tensor(values[: rank * width]).view(rank, width)
        second = torch.tensor(values[rank * width :]).view(out, rank)
        config = AdapterConfig(lora_alpha=float(draw(st.sampled_from([1, 2, 8]))))
        pairs.append((Adapter({"m.lora_A.weight": first, "m.lora_B.weight": second}, config), draw(NUMBERS)))
    return {"m.weight": torch.zeros(out, width)}, pairs


@settings(deadline=None)
@given(dyadic(), st.randoms())
def test_concatenation_of_exact_numbers_is_exact(case, random):
    """Where nothing rounds, the product is the sum, its error is 0, and a shuffled list gives the same bytes."""
    base, pairs = case
    joined = combine_adapters(base, pairs, extrapolate=True)
    wanted = combine(base, pairs, extrapolate=True, output_dtype="fp64")["m.weight"]
    if not any(alpha for _, alpha in pairs):
        assert not joined.adapter.tensors
        return
    assert torch.equal(dense(joined.adapter, "m.weight"), wanted)
    assert joined.errors == {"m.weight": 0.0}
    assert joined.adapter.config.r == sum(len(one.tensors["m.lora_A.weight"]) for one, alpha in pairs if alpha)
    shuffled = random.sample(pairs, len(pairs))
    again = combine_adapters(base, shuffled, extrapolate=True)
    assert all(same_bits(again.adapter.tensors[key], value) for key, value in joined.adapter.tensors.items())


@settings(deadline=None)
@given(dyadic(), st.integers(1, 6))
def test_cut_of_exact_numbers_has_the_error_it_says(case, rank):
    """The stored factors are as far from the sum as reported, which is the tail of its singular values."""
    base, pairs = case
    joined = combine_adapters(base, pairs, method="svd", rank=rank, extrapolate=True)
    wanted = combine(base, pairs, extrapolate=True, output_dtype="fp64")["m.weight"]
    for key, error in joined.errors.items():
        noise = 2.0**-48 * (1 + sum(abs(alpha) for _, alpha in pairs)) * 2**12
        measured = float((dense(joined.adapter, key) - wanted).norm())
        assert abs(measured - error) <= noise
        assert abs(error - float(torch.linalg.svdvals(wanted)[rank:].norm())) <= 2.0**-20 * (1 + joined.norms[key])


def test_float64_factors_stay_float64_where_all_are():
    """One float32 factor among them makes the result float32."""
    base = {"m.weight": torch.zeros(3, 2)}
    wide = Adapter(
        {"m.lora_A.weight": torch.rand(1, 2).double(), "m.lora_B.weight": torch.rand(3, 1).double()},
        AdapterConfig(lora_alpha=1.0),
    )
    narrow = Adapter({key: value.float() for key, value in wide.tensors.items()}, wide.config)
    for method, rank in (("cat", None), ("svd", 1)):
        both = combine_adapters(base, [(wide, 0.3), (wide, 0.1)], method=method, rank=rank)
        mixed = combine_adapters(base, [(wide, 0.3), (narrow, 0.1)], method=method, rank=rank)
        assert {value.dtype for value in both.adapter.tensors.values()} == {torch.float64}
        assert {value.dtype for value in mixed.adapter.tensors.values()} == {torch.float32}


def test_coefficient_zero_leaves_out(tmp_path):
    """An adapter with coefficient 0 on a tensor adds no rank to it; a tensor without any is not in the result."""
    base = weights(dtype=torch.float32)
    modules = [f"model.layers.{layer}.q_proj" for layer in (0, 1)]
    one, two = (
        Adapter(low_rank(base, modules, rank=rank, seed=rank), AdapterConfig(lora_alpha=2.0)) for rank in (2, 3)
    )
    only_first = {"model.layers.0.*": 0.5, "*": 0.0}
    joined = combine_adapters(base, [(one, only_first), (two, only_first)])
    assert joined.errors.keys() == {f"{modules[0]}.weight"}
    assert joined.adapter.config.fields["target_modules"] == ["model.layers.0.q_proj"]
    joined = combine_adapters(base, [(one, 0.5), (two, only_first)])
    config = joined.adapter.config
    assert [config.scale(modules[0], 5), config.scale(modules[1], 2)] == [1.0, 1.0]
    assert config.fields["target_modules"] == ["q_proj"]


def test_nothing_left_is_an_adapter_without_factors(tmp_path):
    """With every coefficient 0, DoRA or not: PEFT loads it and gives the base; we do not take it for an adapter."""
    folder = train(toy, tmp_path / "dora", 1, {"target_modules": LINEAR, "use_dora": True})
    base = toy().state_dict()
    joined = combine_adapters(base, [(folder, 0.0)])
    found = merged(load(toy(), write(joined.adapter, tmp_path / "joined")))
    assert all(same_bits(found[key], base[key]) for key in base)
    with pytest.raises(BindingError, match="it has no tensors"):
        interpolate(base, tmp_path / "joined", 1.0)


def test_copy_of_the_base_that_peft_saves_beside_an_embedding_is_no_change(tmp_path):
    """`embed_tokens.base_layer.weight` equal to the base leaves the sum additive; another value does not."""
    base = {"embed_tokens.weight": torch.randn(7, 4), "lm_head.weight": torch.randn(7, 4)}
    key = "base_model.model.embed_tokens"
    tensors = {f"{key}.lora_embedding_A": torch.randn(2, 7), f"{key}.lora_embedding_B": torch.randn(4, 2)}
    config = AdapterConfig(lora_alpha=4.0)
    copied = Adapter(tensors | {f"{key}.base_layer.weight": base["embed_tokens.weight"].clone()}, config)
    moved = Adapter(tensors | {f"{key}.base_layer.weight": base["embed_tokens.weight"] + 1}, config)
    plain = combine_adapters(base, [(Adapter(tensors, config), 0.5)]).adapter.tensors
    found = combine_adapters(base, [(copied, 0.5)]).adapter.tensors
    assert plain.keys() == found.keys()
    assert all(same_bits(plain[name], found[name]) for name in plain)
    with pytest.raises(Unsupported, match="no product of low rank"):
        combine_adapters(base, [(moved, 0.5)])
    joined = combine_adapters(base, [(moved, 0.5)], method="svd", rank=4)
    wanted = combine({k: v.double() for k, v in base.items()}, [(moved, 0.5)])["embed_tokens.weight"]
    change = wanted - base["embed_tokens.weight"].double()
    assert torch.allclose(dense(joined.adapter, "embed_tokens.weight"), change, atol=1e-5)


def test_names_are_those_that_the_adapters_see(tmp_path):
    """A base saved from the inner model, adapters trained on the outer one, and the other way round."""
    inner = {name: nn.Linear(4, 4).weight.detach() for name in ("layers.0.q_proj.weight", "layers.1.q_proj.weight")}
    outer = {f"model.{name}": value for name, value in inner.items()}
    for base, seen in ((inner, outer), (outer, inner)):
        modules = [name.removesuffix(".weight") for name in seen]
        pairs = [
            (Adapter(low_rank(seen, modules[:count], seed=count), AdapterConfig(lora_alpha=2.0)), 0.5)
            for count in (1, 2)
        ]
        joined = combine_adapters(base, pairs)
        assert {key.split(".lora_")[0] for key in joined.adapter.tensors} == {f"base_model.model.{m}" for m in modules}
        wanted, view = combine(base, pairs), interpolate(base, joined.adapter, 1.0)
        assert all(torch.allclose(view[name], wanted[name], atol=1e-6) for name in base)
        assert [joined.adapter.config.scale(module, rank) for module, rank in zip(modules, (4, 2), strict=True)] == [
            1,
            1,
        ]


class Classifier(nn.Module):
    """A body with a head that the base checkpoint lacks."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))
        self.classifier = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Through all of it."""
        for layer in self.layers:
            x = layer(x)
        return self.classifier(x)

    def prepare_inputs_for_generation(self) -> None:
        """What PEFT looks for."""


def classifier():
    """The model, its weights, and an adapter on some of its modules that trained others as wholes."""
    torch.manual_seed(0)
    model = Classifier()
    state = copy.deepcopy(model.state_dict())

    def adapter(modules, saved, wholes, seed, task="SEQ_CLS"):
        trained = {f"base_model.model.{key}": state[key] + seed for key in state if key.startswith(tuple(wholes))}
        said = {"lora_alpha": 2, "task_type": task, "modules_to_save": saved}
        return Adapter(low_rank(state, modules, seed=seed) | trained, AdapterConfig.from_mapping(said))

    return model, state, adapter


def check_through_peft(model, base, pairs, joined, folder):
    """PEFT merges what `combine` gives, and wholes to the bit."""
    wanted, found = combine(base, pairs), merged(load(model, write(joined.adapter, folder)))
    assert found.keys() == wanted.keys()
    for key in found:
        assert torch.allclose(found[key], wanted[key], atol=1e-5), key
        assert key in joined.errors or same_bits(found[key], wanted[key]), key


@pytest.mark.parametrize("is_new", [True, False])
def test_head_of_several_layers_is_carried(tmp_path, is_new):
    """A container in modules_to_save, in the base or not, also where the other adapter names only a part of it."""
    model, state, adapter = classifier()
    task = "SEQ_CLS" if is_new else None
    base = {key: value for key, value in state.items() if not (is_new and key.startswith("classifier"))}
    one = adapter(["layers.0"], ["classifier"], ["classifier"], 1, task)
    two = adapter(["layers.1"], ["classifier.0"], [] if is_new else ["classifier.0"], 2, task)
    joined = combine_adapters(base, [(one, 0.5), (two, 0.25)])
    assert joined.adapter.config.modules_to_save == ("classifier",)
    assert joined.adapter.config.task_type == task
    check_through_peft(model, base, [(one, 0.5), (two, 0.25)], joined, tmp_path / "joined")


def test_head_with_factors_in_one_part_is_saved_in_the_other(tmp_path):
    """PEFT saves no container with factors inside: its other layer is named instead, and the task type is dropped."""
    model, base, adapter = classifier()
    one = adapter(["layers.0"], ["classifier"], ["classifier"], 1)
    two = adapter(["layers.1", "classifier.0"], [], [], 2)
    joined = combine_adapters(base, [(one, 0.5), (two, 0.25)], method="svd", rank=6)
    assert joined.errors.keys() == {f"{module}.weight" for module in ("layers.0", "layers.1", "classifier.0")}
    assert joined.adapter.config.modules_to_save == ("classifier.1",)
    assert joined.adapter.config.task_type is None
    check_through_peft(model, base, [(one, 0.5), (two, 0.25)], joined, tmp_path / "joined")


BASE = {
    "model.q_proj.weight": torch.ones(4, 4),
    "model.k_proj.weight": torch.ones(4, 4),
    "head.weight": torch.ones(4, 4),
    "lm_head.weight": torch.ones(4, 4),
}
CONFIG = AdapterConfig(lora_alpha=2.0)
LORA = Adapter(low_rank(BASE, ["model.q_proj"]), CONFIG)
LM_HEAD = Adapter(low_rank(BASE, ["lm_head"]), CONFIG)
HEAD = Adapter(
    low_rank(BASE, ["model.q_proj"]) | {"base_model.model.head.weight": torch.zeros(4, 4)},
    AdapterConfig(lora_alpha=2.0, modules_to_save=("head",)),
)
EMBEDDED = Adapter({"head.lora_embedding_A": torch.ones(1, 4), "head.lora_embedding_B": torch.ones(4, 1)}, CONFIG)
HUGE = Adapter({key: value * 1e30 for key, value in LORA.tensors.items()}, AdapterConfig(lora_alpha=1e9))
INNER = Adapter({key.replace("model.q_proj", "q_proj"): value for key, value in LORA.tensors.items()}, CONFIG)
TRAINED_ON = [Adapter(LORA.tensors, AdapterConfig(lora_alpha=2.0, base_model=name)) for name in ("a/one", "a/two")]
MAGNITUDE = Adapter(low_rank(BASE, ["model.q_proj"], dora=True), CONFIG)
REFUSALS: dict[str, tuple[type[WiseftError], str, list[Any], dict[str, Any]]] = {
    "no adapter": (ConfigError, "at least one adapter", [], {}),
    "method": (ConfigError, "cat or svd", [(LORA, 0.5)], {"method": "linear"}),
    "no rank": (ConfigError, "at least 1", [(LORA, 0.5)], {"method": "svd"}),
    "rank zero": (ConfigError, "at least 1", [(LORA, 0.5)], {"method": "svd", "rank": 0}),
    "rank true": (ConfigError, "at least 1", [(LORA, 0.5)], {"method": "svd", "rank": True}),
    "rank of cat": (ConfigError, "sum of the adapters' ranks", [(LORA, 0.5)], {"rank": 4}),
    "alpha": (BadAlpha, "adapter 2 of 2", [(LORA, 0.5), (LORA, -0.5)], {}),
    "other bases": (ConfigError, "different bases", [(one, 0.5) for one in TRAINED_ON], {}),
    "full checkpoint": (Unsupported, "adapter 2 — a full checkpoint", [(LORA, 0.5), (BASE, 0.5)], {}),
    "dora": (Unsupported, "dora in adapter 2", [(LORA, 0.5), (MAGNITUDE, 0.5)], {}),
    "head and factors": (
        Unsupported,
        "full in adapter 1",
        [(HEAD, 0.5), (Adapter(low_rank(BASE, ["head"]), CONFIG), 1.0)],
        {},
    ),
    "prefixes": (AmbiguousName, "different prefixes", [(LORA, 0.5), (INNER, 0.5)], {}),
    "too large": (NotFinite, "does not fit float32", [(HUGE, 1.0)], {}),
    "kinds": (
        Unsupported,
        "embedding, linear",
        [(EMBEDDED, 0.5), (Adapter(low_rank(BASE, ["head"]), CONFIG), 1.0)],
        {},
    ),
    "head that ends alike": (Unsupported, "would take both", [(HEAD, 0.5), (LM_HEAD, 0.5)], {}),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_say_where_expected_got_and_hint(name):
    """Each in four lines, none of them empty."""
    kind, text, pairs, options = REFUSALS[name]
    with pytest.raises(kind, match=text) as refused:
        combine_adapters(BASE, pairs, base_config={"model_type": "x"}, **options)
    assert type(refused.value) is kind
    assert len(str(refused.value).splitlines()) == 4 * (1 + len(refused.value.others))
    assert all([refused.value.where, refused.value.expected, refused.value.got, refused.value.hint])


def test_every_change_that_is_no_product_is_named_at_once():
    """Two DoRA modules are two problems of one error."""
    both = Adapter(low_rank(BASE, ["model.q_proj", "model.k_proj"], dora=True), CONFIG)
    with pytest.raises(Unsupported) as refused:
        combine_adapters(BASE, [(both, 0.5)])
    assert len(refused.value.others) == 1


def test_adapters_from_folders_are_the_same_and_what_all_say_is_kept(tmp_path):
    """Paths and mappings give the same bytes; the base's name and the task are kept where they agree."""
    base = weights(dtype=torch.float32)
    folder = write_base(tmp_path / "base", base)
    modules = ["model.layers.1.q_proj"]
    said = {"task_type": "CAUSAL_LM", "base_model_name_or_path": "a/base"}
    paths = [
        write_adapter(tmp_path / str(seed), low_rank(base, modules, seed=seed), **said, revision=str(seed))
        for seed in (1, 2)
    ]
    joined = combine_adapters(folder, [(path, 0.5) for path in paths])
    again = combine_adapters(base, [(path, 0.5) for path in paths[::-1]])
    assert joined.adapter.config.fields == again.adapter.config.fields
    assert all(same_bits(again.adapter.tensors[key], value) for key, value in joined.adapter.tensors.items())
    fields = joined.adapter.config.fields
    assert {key: fields[key] for key in said} == said
    assert "revision" not in fields
