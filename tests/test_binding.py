"""The joint: every adapter tensor finds its base tensor, or the refusal says which did not and why."""

from __future__ import annotations

import pytest
import strategies
from hypothesis import given
from hypothesis import strategies as st
from plans import BASE, P, lora, plan_of, problems

from wiseft_core.binding import bind
from wiseft_core.config import AdapterConfig
from wiseft_core.errors import (
    AmbiguousName,
    ConfigError,
    MissingFactor,
    QuantizedBase,
    ShapeMismatch,
    TiedEmbeddings,
    UnclaimedKey,
    UndecidableOrientation,
    Unsupported,
    WiseftError,
)
from wiseft_core.types import TensorSpec


@pytest.mark.parametrize(
    ("module", "prefix", "rule"),
    [
        ("model.layers.0.q", P, "exact"),
        ("model.layers.0.q", "", "exact"),
        ("layers.0.q", P, "+model."),
        ("layers.0.q", "", "+model."),
        ("bert.model.layers.0.q", P, "-bert."),
        ("transformer.model.layers.0.q", "", "-transformer."),
    ],
)
def test_one_prefix_is_added_or_stripped(module, prefix, rule):
    """Keys as saved, without base_model.model., and of another head class land on the one base tensor."""
    plan = plan_of(BASE, lora(module, 6, 4, prefix=prefix))
    assert list(plan.bindings) == ["model.layers.0.q.weight"] and plan.rule == rule
    assert set(plan.consumed()) == set(lora(module, 6, 4, prefix=prefix))
    step = plan.bindings["model.layers.0.q.weight"].steps[0]
    assert (step.family, step.layout, step.scale, step.rank) == ("lora", "linear", 2.0, 2)


def test_live_names_mean_the_same():
    """`.default.` and `.base_layer.` of a live model give the steps of the saved names."""
    live = {
        f"{P}model.layers.0.q.lora_A.default.weight": (2, 4),
        f"{P}model.layers.0.q.lora_B.default.weight": (6, 2),
        f"{P}model.norm.modules_to_save.default.weight": (4,),
        f"{P}model.norm.original_module.weight": (4,),
    }
    plan = plan_of(BASE, live)
    assert list(plan.bindings) == ["model.layers.0.q.weight", "model.norm.weight"]
    assert plan.ignored == (f"{P}model.norm.original_module.weight",)


def test_two_towers_are_not_guessed_between():
    """Two towers with the same names and shapes: neither is taken, and both prefixes are told."""
    base = {f"{tower}.layers.0.q.weight": (6, 4) for tower in ("text_model", "vision_model")}
    with pytest.raises(AmbiguousName, match=r"\+text_model\., \+vision_model\."):
        plan_of(base, lora("layers.0.q", 6, 4))


def test_two_towers_of_other_shapes_are_told_apart():
    """Where only one tower has weights that the factors fit, that one is meant."""
    base = {"text_model.q.weight": (6, 4), "vision_model.q.weight": (7, 4)}
    assert list(plan_of(base, lora("q", 6, 4)).bindings) == ["text_model.q.weight"]


def test_prefixes_of_each_other_are_other_modules():
    """q_proj and q_proj_2, layers.1 and layers.10 are told apart."""
    base = {f"layers.{i}.{m}.weight": (6, 4) for i in (1, 10) for m in ("q_proj", "q_proj_2")}
    plan = plan_of(base, lora("layers.1.q_proj", 6, 4) | lora("layers.10.q_proj_2", 6, 4))
    assert list(plan.bindings) == ["layers.1.q_proj.weight", "layers.10.q_proj_2.weight"]


def test_a_new_head_is_carried_and_listed():
    """A module of modules_to_save that the base lacks is a new tensor, last in order, and a note says so."""
    adapter = lora("model.layers.0.q", 6, 4) | {f"{P}score.weight": (3, 4), f"{P}score.bias": (3,)}
    plan = plan_of(BASE, adapter, {"lora_alpha": 1, "task_type": "SEQ_CLS"})
    assert plan.new == {"score.weight": f"{P}score.weight", "score.bias": f"{P}score.bias"}
    assert list(plan.outputs) == [*BASE, "score.weight", "score.bias"]
    assert "score.weight" in plan.notes[0]
    with pytest.raises(UnclaimedKey, match=r"score\.weight"):
        plan_of(BASE, adapter, {"lora_alpha": 1})


def test_unclaimed_keys_come_all_at_once_with_the_nearest_names():
    """Every key without a base tensor is a problem of its own, and a near name is suggested."""
    adapter = lora("model.layers.0.q", 6, 4) | lora("model.layers.0.k", 6, 4) | lora("model.layers.7.v", 4, 6)
    with pytest.raises(UnclaimedKey) as caught:
        plan_of(BASE, adapter)
    assert len(problems(caught)) == 2
    text = str(caught.value)
    assert "model.layers.0.k" in text and "model.layers.7.v" in text
    assert "nearest names" in text and "model.layers.0.v.weight" in text


@pytest.mark.parametrize("lost", ["lora_A", "lora_B"])
def test_a_missing_factor_is_named(lost):
    """A LoRA without A or B is refused with the tensor's name."""
    adapter = {key: shape for key, shape in lora("model.layers.0.q", 6, 4).items() if lost not in key}
    with pytest.raises(MissingFactor, match=r"model\.layers\.0\.q\.weight"):
        plan_of(BASE, adapter)


def test_factors_that_the_config_denies_are_refused():
    """A magnitude with use_dora: false, a missing one with use_dora: true, a bias with lora_bias: false."""
    q = "model.layers.0.q"
    magnitude, bias = {f"{P}{q}.lora_magnitude_vector": (6,)}, {f"{P}{q}.lora_B.bias": (6,)}
    base = BASE | {f"{q}.bias": (6,)}
    assert plan_of(base, lora(q, 6, 4) | magnitude).bindings[f"{q}.weight"].steps[0].family == "dora"
    assert plan_of(base, lora(q, 6, 4) | bias).bindings[f"{q}.bias"].steps[0].scale == 2.0
    with pytest.raises(ConfigError, match="use_dora: false"):
        plan_of(base, lora(q, 6, 4) | magnitude, {"lora_alpha": 1, "use_dora": False})
    with pytest.raises(MissingFactor, match="dora"):
        plan_of(base, lora(q, 6, 4), {"lora_alpha": 1, "use_dora": True})
    with pytest.raises(ConfigError, match="lora_bias: false"):
        plan_of(base, lora(q, 6, 4) | bias, {"lora_alpha": 1, "lora_bias": False})
    with pytest.raises(UnclaimedKey, match=r"lora_B\.bias"):
        plan_of(BASE, lora(q, 6, 4) | bias)
    with pytest.raises(MissingFactor, match="without the A and B"):
        plan_of(base, bias)


@given(strategies.tunings(), st.data())
def test_no_factor_can_be_dropped_renamed_or_added(tuning, data):
    """Any low-rank key dropped, renamed or added unknown is refused."""
    base = {name: TensorSpec("F32", tuple(t.shape)) for name, t in tuning.base.items()}
    adapter = {key: TensorSpec("F32", tuple(t.shape)) for key, t in tuning.adapter.items()}
    low_rank = sorted(key for key in adapter if "lora_" in key)
    if not low_rank:
        return
    key = data.draw(st.sampled_from(low_rank))
    dropped = {other: spec for other, spec in adapter.items() if other != key}
    options = {
        "config": AdapterConfig.from_mapping(tuning.config | {"use_dora": None}),
        "base_config": {"model_type": "gpt2"},
    }
    extra = adapter | {key.replace("lora_", "lora_x_", 1): adapter[key]}
    renamed = dropped | {f"nowhere.{key.removeprefix(P)}": adapter[key]}
    for changed in (extra, renamed, dropped):
        if changed is dropped and "magnitude" in key:
            continue  # without its magnitude a DoRA is a LoRA, if the config does not say otherwise
        with pytest.raises(WiseftError):
            bind(base, changed, **options)


@pytest.mark.parametrize(("out", "size"), [(5, 4), (6, 5), (7, 7)])
def test_another_shape_is_refused_with_both(out, size):
    """A factor that does not fit is told with the shape that would."""
    with pytest.raises(ShapeMismatch, match=r"A \(rank in\) = \[2, 4\], B \(out rank\) = \[6, 2\].*\[6, 4\]"):
        plan_of(BASE, lora("model.layers.0.q", out, size))


def test_all_problems_come_at_once():
    """Shape, factor and dtype problems of several tensors are one refusal."""
    adapter = lora("model.layers.0.q", 9, 9) | {f"{P}model.layers.0.v.lora_A.weight": (2, 6)}
    adapter |= {f"{P}model.norm.weight": (5,)}
    with pytest.raises(WiseftError) as caught:
        plan_of(BASE, adapter)
    assert {type(problem) for problem in problems(caught)} == {ShapeMismatch, MissingFactor}
    assert len(problems(caught)) == 3


@pytest.mark.parametrize(
    ("leaf", "config", "base_config", "layout"),
    [
        ("q", {}, None, "linear"),
        ("c_fc", {}, {"model_type": "gpt2"}, "transposed"),
        ("c_fc", {}, {"model_type": "gpt_bigcode"}, "linear"),
        ("q", {"fan_in_fan_out": True}, {"model_type": "llama"}, "linear"),
        ("c_proj", {}, None, None),
        ("q", {"fan_in_fan_out": True}, None, None),
    ],
)
def test_square_weights_are_settled_or_refused(leaf, config, base_config, layout):
    """A square weight takes the layout that the model type says, and is refused where nothing settles it."""
    base, adapter = {f"h.0.{leaf}.weight": (4, 4)}, lora(f"h.0.{leaf}", 4, 4)
    if layout is None:
        with pytest.raises(UndecidableOrientation) as caught:
            plan_of(base, adapter, {"lora_alpha": 1, **config}, base_config=base_config)
        assert caught.value.exit_code == 4
        return
    plan = plan_of(base, adapter, {"lora_alpha": 1, **config}, base_config=base_config)
    assert plan.bindings[f"h.0.{leaf}.weight"].steps[0].layout == layout


def test_a_square_weight_follows_its_kin():
    """Without a model type, a square Conv1D is stored as the adapter's other Conv1D weights are."""
    base = {"h.0.c_proj.weight": (4, 4), "h.0.c_fc.weight": (4, 16)}
    plan = plan_of(base, lora("h.0.c_proj", 4, 4) | lora("h.0.c_fc", 16, 4))
    assert {bound.steps[0].layout for bound in plan.bindings.values()} == {"transposed"}


EMBEDDED = {f"{P}model.embed_tokens.lora_embedding_A": (2, 9), f"{P}model.embed_tokens.lora_embedding_B": (4, 2)}


@pytest.mark.parametrize(
    ("head", "base_config", "refused"),
    [
        (False, None, True),
        (False, {"tie_word_embeddings": True, "architectures": ["LlamaForCausalLM"]}, True),
        (False, {"tie_word_embeddings": False}, False),
        (True, None, False),
        (True, {"tie_word_embeddings": True}, True),
        (False, {"architectures": ["BertModel"]}, False),
        (False, {"architectures": ["LlamaForCausalLM"]}, True),
        (False, {"text_config": {"tie_word_embeddings": False}}, False),
    ],
)
def test_tied_embeddings_are_refused(head, base_config, refused):
    """Tuning that touches an embedding which is tied, or may be, is refused with exit code 4."""
    base = {"model.embed_tokens.weight": (9, 4)} | ({"lm_head.weight": (9, 4)} if head else {})
    if not refused:
        assert list(plan_of(base, EMBEDDED, base_config=base_config).bindings) == ["model.embed_tokens.weight"]
        return
    with pytest.raises(TiedEmbeddings) as caught:
        plan_of(base, EMBEDDED, base_config=base_config)
    assert caught.value.exit_code == 4


def test_names_that_share_memory_are_tied():
    """Whatever they are called: tuning one of them makes two tensors, or changes both names; of three it is refused."""
    base = {"a.weight": (6, 4), "b.weight": (6, 4), "c.weight": (6, 4)}
    apart = plan_of(base, lora("a", 6, 4), shared=[frozenset({"a.weight", "b.weight"})])
    assert list(apart.bindings) == ["a.weight"] and not apart.alike
    both = plan_of(base, lora("a", 6, 4), shared=[frozenset({"a.weight", "b.weight"})], tied="share")
    assert list(both.bindings) == ["a.weight", "b.weight"] and both.alike == {"b.weight": "a.weight"}
    with pytest.raises(Unsupported, match="more than two"):
        plan_of(base, lora("a", 6, 4), shared=[frozenset(base)])


@pytest.mark.parametrize(
    ("extra", "base_config"),
    [
        ({"model.layers.0.q.weight_scale": ("F32", (1,))}, None),
        ({"model.layers.0.q.weight_scale_inv": ("F32", (1, 1))}, None),
        ({"model.layers.0.q.weight.absmax": ("F32", (3,))}, None),
        ({"model.layers.0.q.weight": ("I8", (6, 4))}, None),
        ({}, {"quantization_config": {"quant_method": "fp8"}}),
    ],
)
def test_quantised_bases_are_refused(extra, base_config):
    """A scale beside a touched weight, codes, or a quantization_config: refused with exit code 4."""
    with pytest.raises(QuantizedBase) as caught:
        plan_of(BASE | extra, lora("model.layers.0.q", 6, 4), base_config=base_config)
    assert caught.value.exit_code == 4


def test_a_scale_beside_an_untouched_weight_is_no_matter():
    """Only what tuning touches must be unquantised."""
    base = BASE | {"other.weight": ("I8", (4, 4)), "other.weight_scale": (1,)}
    assert list(plan_of(base, lora("model.layers.0.q", 6, 4)).bindings) == ["model.layers.0.q.weight"]
