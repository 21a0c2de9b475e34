"""Our engine and table give what transformers itself gives: on names, on places, for bases and for adapters."""

from __future__ import annotations

import json
import sys
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from renames import generate
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from wiseft_core.naming.links import Link, Part
from wiseft_core.naming.live import live_rules
from wiseft_core.naming.renames import LONGEST, How, Rule, Rules, links
from wiseft_core.naming.table import Tie, architecture_of, rules_of, tied_of, transposed_experts
from wiseft_core.orientation import CONV1D_MODULES, CONV1D_TYPES

PAIRS = [
    ("llama", "LlamaForCausalLM"), ("gpt_neox", "GPTNeoXForCausalLM"), ("bert", "BertForMaskedLM"),
    ("vit", "ViTForImageClassification"), ("qwen2_vl", "Qwen2VLForConditionalGeneration"),
    ("llava", "LlavaForConditionalGeneration"), ("clip", "CLIPModel"), ("clip_text_model", "CLIPTextModel"),
    ("mixtral", "MixtralForCausalLM"), ("qwen3_moe", "Qwen3MoeForCausalLM"), ("granitemoe", "GraniteMoeForCausalLM"),
    ("deepseek_v3", "DeepseekV3ForCausalLM"), ("nomic_bert", "NomicBertModel"), ("gpt2", "GPT2LMHeadModel"),
    ("gemma3", "Gemma3ForConditionalGeneration"), ("dinov2", "Dinov2Model"),
    ("dinov3_vit", "DINOv3ViTModel"),
]  # fmt: skip
LLAVA = {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"]}
OLD = [
    "language_model.model.layers.{}.self_attn.q_proj.weight",
    "language_model.lm_head.weight",
    "model.layers.{}.block_sparse_moe.experts.{}.w1.weight",
    "model.layers.{}.block_sparse_moe.experts.{}.w3.weight",
    "model.layers.{}.block_sparse_moe.gate.weight",
    "model.layers.{}.mlp.experts.{}.gate_proj.weight",
    "model.layers.{}.mlp.experts.{}.down_proj.weight",
    "model.layers.{}.mlp.shared_experts.gate_proj.weight",
    "visual.blocks.{}.attn.qkv.weight",
    "text_model.encoder.layers.{}.mlp.fc1.weight",
    "vision_model.encoder.layers.{}.mlp.fc{}.weight",
    "vision_tower.vision_model.encoder.layers.{}.mlp.fc1.bias",
    "vit.encoder.layer.{}.attention.attention.query.weight",
    "bert.encoder.layer.{}.output.LayerNorm.gamma",
    "encoder.layers.{}.attn.Wqkv.weight",
    "embed_out.weight",
    "encoder.layer.{}.layer_scale{}.lambda1",
    "model.layers.{}",
    "",
]
WORDS = sorted({word for name in OLD for word in name.split(".") if word and "{" not in word} | {"experts", "w1", "é"})
NAMES = st.one_of(
    st.builds(lambda name, a, b: name.format(a, b), st.sampled_from(OLD), st.integers(0, 1000), st.integers(0, 200)),
    st.lists(st.sampled_from(WORDS) | st.integers(0, 120).map(str), max_size=9).map(".".join),
    st.text("experts.w13gate_0٣²\n", max_size=40),
)


@cache
def built(pair):
    """transformers' model, without weights."""
    return generate.build(*pair)


@cache
def theirs(pair):
    """What transformers does to a name of that architecture."""
    transforms = get_model_conversion_mapping(built(pair))
    renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
    converters = [each for each in transforms if isinstance(each, WeightConverter)]
    memory = built(pair).state_dict()

    def renamed(name):
        found = rename_source_key(name, renamings, converters)[0]
        return name if found not in memory and name in memory else found  # as `convert_and_load_state_dict_in_model`

    return renamed


def rules(pair):
    """Ours, from the table."""
    found = rules_of({"model_type": pair[0], "architectures": [pair[1]]})
    assert found is not None
    return found


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair[1])
def test_a_name_becomes_what_it_becomes_in_transformers(pair):
    """`rename_source_key` is the oracle; a name in memory stays, and a remembered answer is the worked out one."""

    @given(name=NAMES | st.sampled_from(sorted(built(pair).state_dict())))
    def same(name):
        found = links(name, rules(pair))
        assert found[0].why or found[0].parameter == theirs(pair)(name)
        assert found == rules(pair).plain(name) == links(name, rules(pair))

    same()


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair[1])
def test_a_parameter_is_itself(pair):
    """Forward mapping leaves every name in memory alone, and maps no other name's result any further."""
    for name in built(pair).state_dict():
        assert [(link.parameter, link.expert, link.part, link.own, link.why) for link in links(name, rules(pair))] == [
            (name, None, None, None, "")
        ]


@pytest.mark.parametrize("pair", [pair for pair in PAIRS if pair[0] not in {"nomic_bert"}], ids=str)
@given(name=NAMES)
def test_mapping_twice_is_mapping_once(pair, name):
    """What has been mapped to a parameter of the model stays there."""
    for link in links(name, rules(pair)):
        if link.parameter in built(pair).state_dict():
            assert links(link.parameter, rules(pair))[0].parameter == link.parameter


def test_experts_in_an_adapter_of_old():
    """The names of transformers 4, in a base or an adapter, are parts of the stacks of today."""
    mixtral = rules(("mixtral", "MixtralForCausalLM"))
    stem, stack = "model.layers.0.block_sparse_moe.experts.{}.{}.weight", "model.layers.0.mlp.experts."

    assert links(stem.format(3, "w1"), mixtral) == (Link(stack + "gate_up_proj", 3, Part(0, 2, "out")),)
    assert links(stem.format(12, "w3"), mixtral) == (Link(stack + "gate_up_proj", 12, Part(1, 2, "out")),)
    assert links(stem.format(1, "w2"), mixtral) == (Link(stack + "down_proj", 1),)
    assert links(stack + "gate_up_proj", mixtral) == (Link(stack + "gate_up_proj"),)


def test_ten_experts_and_more_in_natural_order():
    """The number in the name orders the experts as transformers' own key does: nine before ten."""
    names = [f"model.layers.1.mlp.experts.{number}.down_proj.weight" for number in range(128)]
    found = {name: links(name, rules(("deepseek_v3", "DeepseekV3ForCausalLM")))[0].expert for name in names}

    assert sorted(names, key=found.get) == sorted(names, key=dot_natural_key) != sorted(names)


def test_one_tensor_that_is_three_parameters():
    """A fused qkv has a link for each of its parameters, and which rows of it that one is."""
    found = links("encoder.layers.7.attn.Wqkv.weight", rules(("nomic_bert", "NomicBertModel")))

    assert [(link.parameter.rpartition(".")[0][-6:], link.own) for link in found] == [
        ("q_proj", Part(0, 3)), ("k_proj", Part(1, 3)), ("v_proj", Part(2, 3))
    ]  # fmt: skip


def test_what_is_no_matter_of_places_says_why():
    """A conversion that permutes is named, for tensors under it alone."""
    permuted = Rules([Rule("(?P<g0>wq)", ("q_proj",), (), How(), "PermuteForRope")])

    assert links("a.wq.weight", permuted) == (Link("a.q_proj.weight", why="PermuteForRope"),)
    assert links("a.wk.weight", permuted) == (Link("a.wk.weight"),)


def test_the_text_is_replaced_where_it_first_occurs():
    """As in transformers: what a lookbehind has passed over is hit all the same, whatever the numbers are."""
    odd = Rules([Rule(r"(?P<g0>(?<!x\.)layers\.\d+\.)", ("L.",))])

    for name in ("x.layers.1.layers.1.w", "x.layers.1.layers.2.w", "x.layers.2.layers.10.w", "x.layers.7.layers.7.w"):
        assert links(name, odd) == odd.plain(name)
    assert links("x.layers.1.layers.1.w", odd)[0].parameter == "x.L.layers.1.w"
    assert links("x.layers.1.layers.2.w", odd)[0].parameter == "x.layers.1.L.w"


@pytest.mark.parametrize("pattern", [r"(?P<g0>\.1\.)", r"(?P<g0>[0-9]\.)", r"(?P<g0>(\d)\.w)", r"(?P<g0>a.(\d+).)"])
@given(name=st.lists(st.sampled_from(["a", "w", "0", "1", "11", "12", "1a"]), max_size=6).map(".".join))
def test_rules_that_look_at_numbers_are_not_remembered_wrongly(pattern, name):
    """Whatever a pattern does with an index, the remembered answer is the worked out one."""
    looking = Rules([Rule(pattern, (r"<\1>" if r"(\d" in pattern else "<>",))])
    for each in (name, name.replace("1", "2"), name.replace("1", "3"), name):
        assert links(each, looking) == looking.plain(each)


@given(name=st.text() | st.text("experts.0", min_size=LONGEST - 30, max_size=LONGEST + 30))
def test_any_name_from_a_file_has_links(name):
    """No name is an error, and a longer one than any parameter has is left alone."""
    found = links(name, rules(("mixtral", "MixtralForCausalLM")))

    assert found
    if len(name) > LONGEST:
        assert found == (Link(name),)


def test_a_hostile_name_is_given_up_at_once():
    """Megabytes of what patterns begin with: with no bound this would run for hours."""
    name = "model.experts.0." * 200_000

    assert links(name, rules(("mixtral", "MixtralForCausalLM"))) == (Link(name),)
    assert links("experts." * (LONGEST // 8), rules(("mixtral", "MixtralForCausalLM")))


@pytest.mark.parametrize(
    "config",
    [
        None, {}, {"model_type": "llama", "architectures": ["Nobody"]}, {"model_type": ["llama"]}, {"model_type": "x"},
        {"model_type": "llama", "architectures": [["LlamaForCausalLM"]]},
        {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "auto_map": {"AutoModel": "code.Model"}},
        LLAVA | {"text_config": {"model_type": "mixtral"}}, LLAVA | {"text_config": {"model_type": {}}},
        LLAVA | {"vision_config": 3},
    ],
)  # fmt: skip
def test_what_the_table_does_not_know(config):
    """An unknown type or class, code of its own, or another model inside: not known, and nothing guessed."""
    assert architecture_of(config) is None
    assert tied_of(config) == ()
    assert transposed_experts(config) is None


def test_what_the_table_knows():
    """Ties with both names, experts that are stored across, the bare model where no class is named."""
    assert tied_of({"model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"]}) == (
        Tie("lm_head.weight", "embed_out.weight", "gpt_neox.embed_in.weight", "gpt_neox.embed_in.weight"),
    )
    assert transposed_experts({"model_type": "gpt_oss"}) is True
    assert transposed_experts({"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]}) is False
    found = architecture_of({"model_type": "gpt2"})
    assert found is not None
    assert (found.prefix, found.conv1d) == ("transformer", {"c_attn", "c_fc", "c_proj"})


def test_the_types_that_store_matrices_across():
    """What decides about square weights is what transformers has; cross-attention, which no default has, apart."""
    types = json.loads(generate.TABLE.read_text())["types"]
    found = {name: said["conv1d"] for name, said in types.items() if "conv1d" in said}

    assert set(found) == CONV1D_TYPES
    assert set().union(*found.values()) == CONV1D_MODULES - {"q_attn"}


@pytest.mark.parametrize("text", ["qwen2", "mistral", "gemma"])
@pytest.mark.parametrize("vision", ["clip_vision_model", "siglip_vision_model"])
def test_another_model_inside(text, vision):
    """A LLaVA around other models that bring the same rules has the same rules, as transformers says too."""
    config = LLAVA | {"text_config": {"model_type": text}, "vision_config": {"model_type": vision}}

    assert rules_of(config) == live_rules(config) is not None


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair[1])
def test_live_rules_are_those_of_the_table(pair):
    """Built from a config.json, the installed transformers gives what the table has."""
    config = built(pair).config.to_dict() | {"model_type": pair[0], "architectures": [pair[1]]}

    assert live_rules(config) == rules_of(config)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "x"}, {"model_type": "llama", "auto_map": {"AutoModel": "code.Model"}}, {},
        {"model_type": "llava", "text_config": {"auto_map": {"AutoModel": "code.Model"}}},
        {"model_type": "llama", "architectures": ["LlamaConfig"]}, {"model_type": "llama", "hidden_size": "wide"},
    ],
)  # fmt: skip
def test_live_rules_that_there_are_not(config):
    """An unknown type, code of the base's own, what is no model, a config that makes none."""
    assert live_rules(config) is None


def test_live_rules_without_the_extra(monkeypatch):
    """Where transformers cannot be imported there are none, and no error."""
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert live_rules({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}) is None


@pytest.mark.parametrize("model_type", sorted({pair[0] for pair in PAIRS}))
def test_the_table_is_what_the_script_writes(model_type):
    """Every class of a type is checked against transformers again, and found in the table as it is."""
    _, found = generate.every(model_type)
    kept = {name: entry for name, entry in found.items() if isinstance(entry, dict)}

    assert set(json.loads(generate.TABLE.read_text())["types"][model_type]["classes"]) == set(kept)
    for name, entry in kept.items():
        shipped = architecture_of({"model_type": model_type, "architectures": [name]})
        assert shipped is not None
        assert (shipped.rules.rules, sorted(shipped.rules.kept)) == (entry["rules"], entry["kept"])
        assert [list(tie) for tie in shipped.ties] == entry["ties"]
        assert shipped.prefix == entry["prefix"]


@pytest.mark.long
def test_the_whole_table_is_what_the_script_writes():
    """All types again, to the last character, and the record of what is left out."""
    found = generate.seen_all(list(generate.CONFIG_MAPPING_NAMES))

    assert generate.written(generate.tabled(found)) == generate.TABLE.read_text()
    assert json.dumps(generate.recorded(found), indent=1) + "\n" == generate.RECORD.read_text()
