"""The adapter's config: PEFT's own configs are the oracle on fields, names and scales."""

import dataclasses
import json
import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, LoraConfig, PeftType, TrainableTokensConfig
from peft.utils.other import get_pattern_key

from wiseft_core import Adapter, interpolate, rescale
from wiseft_core.config import AdapterConfig
from wiseft_core.config_fields import READERS, RENAMED
from wiseft_core.config_methods import HARMLESS, METHODS_REFUSED, REFUSED, REWRITES
from wiseft_core.errors import ConfigError, ConfigNeeded, Unsupported
from wiseft_core.families import FAMILIES

paths = st.sampled_from(["layers.0.q", "layers.1.q", "layers.1.k", "layers.11.q", "q", "xq"])
patterns = st.sampled_from(["q", "k", r"layers\.1\.q", "layers.1.q", r"layers\.\d+\.q", "^layers.1", ".*", "^q"])

SUPPORTED = {"LORA", "TRAINABLE_TOKENS"} | {family.peft for family in FAMILIES.values() if family.peft}
NEEDED = {
    "ADALORA": {"total_step": 9},
    "OFT": {"oft_block_size": 4},
    "TINYLORA": {"weight_tying": 1.0},
    "UNILORA": {"save_indices": True},
}
"""What PEFT's configs want to be told."""


def read(**fields):
    return AdapterConfig.from_mapping(fields)


@pytest.mark.parametrize(("config", "kind"), [(LoraConfig, "LORA"), (TrainableTokensConfig, "TRAINABLE_TOKENS")])
def test_every_field_of_peft_is_accounted_for(config, kind):
    """No field of PEFT 0.21 is unknown: each is read, listed as harmless with a reason, or refused with one."""
    known = (
        {"peft_type"} | READERS["any"].keys() | HARMLESS["any"].keys() | READERS[kind].keys() | HARMLESS[kind].keys()
    )
    if kind == "LORA":
        known |= REFUSED.keys() | {"init_lora_weights"}
    assert {field.name for field in dataclasses.fields(config)} <= known
    assert all(HARMLESS["any"].values()) and all(HARMLESS[kind].values())
    assert READERS["LORA"].keys().isdisjoint(HARMLESS["LORA"].keys() | REFUSED.keys())


@pytest.mark.parametrize("kind", sorted(SUPPORTED - {"LORA", "TRAINABLE_TOKENS"}))
def test_every_field_of_other_methods_is_accounted_for(kind):
    """What PEFT sets is read or harmless; any other field, and one that it does not have, is refused when it is set."""
    theirs = PEFT_TYPE_TO_CONFIG_MAPPING[kind]
    fields = {field.name for field in dataclasses.fields(theirs)}
    read(**theirs(**NEEDED.get(kind, {})).to_dict())
    families = [family for family in FAMILIES.values() if family.peft == kind]
    own = {name for family in families for name in (*family.options, *family.harmless)}
    assert own <= fields and all(all(family.harmless.values()) for family in families)
    with pytest.raises(Unsupported, match="surprise"):
        read(peft_type=kind, surprise=1)


def test_every_reader_has_a_field():
    """What is read is kept: readers and the record have the same names, but for the raw fields that it keeps too."""
    read_names = {RENAMED.get(name, name) for table in READERS.values() for name in table} | {
        "peft_type",
        "fields",
        "options",
    }
    assert read_names == {field.name for field in dataclasses.fields(AdapterConfig)}


@pytest.mark.parametrize("through_json", [True, False])
def test_peft_defaults_and_settings(tmp_path, through_json):
    """`to_dict()` with its enums and sets, and the saved JSON, give the same record."""
    theirs = LoraConfig(
        r=4, lora_alpha=32, target_modules=["q", "k"], task_type="CAUSAL_LM", use_rslora=True, use_dora=True,
        bias="lora_only", modules_to_save=["head"], rank_pattern={"q": 2}, alpha_pattern={"k": 5},
        trainable_token_indices=[3, 1], base_model_name_or_path="some/base", layers_to_transform=[0, 1],
        lora_dropout=0.1, init_lora_weights="gaussian", exclude_modules=["x"], layers_pattern="layers",
    )  # fmt: skip
    theirs.save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "adapter_config.json").read_text()) if through_json else theirs.to_dict()
    expected = AdapterConfig(
        peft_type="LORA", lora_alpha=32.0, r=4, use_rslora=True, use_dora=True, lora_bias=False, bias="lora_only",
        rank_pattern={"q": 2}, alpha_pattern={"k": 5.0}, modules_to_save=("head",), task_type="CAUSAL_LM",
        trainable_token_indices={"embed_tokens": (3, 1)}, base_model="some/base", peft_version=theirs.peft_version,
    )  # fmt: skip
    assert AdapterConfig.from_mapping(raw) == expected


def test_the_least_config():
    """lora_alpha alone is a config: what it does not say stays None or plain LoRA, and nothing is guessed."""
    assert read(lora_alpha=16) == AdapterConfig(lora_alpha=16.0)
    assert read() == AdapterConfig()
    assert (read().use_dora, read().lora_bias, read().r) == (None, None, None)


@pytest.mark.parametrize(
    ("targets", "names"),
    [(["wte", "wpe"], ["wte", "wpe"]), (("wte", "wpe"), ["wte", "wpe"]), ("wte", ["wte"]), (None, ["embed_tokens"])],
)
def test_trainable_tokens(targets, names):
    """TRAINABLE_TOKENS spreads over two fields what LoRA says in one."""
    theirs = TrainableTokensConfig(token_indices=[5, 2], target_modules=targets).to_dict()
    names = {None: ["embed_tokens"], "wte": ["wte"]}.get(
        targets if not isinstance(targets, list | tuple) else 0, targets
    )
    ours = AdapterConfig.from_mapping(theirs)
    assert ours.trainable_token_indices == dict.fromkeys(names, (5, 2))
    assert ours.peft_type == "TRAINABLE_TOKENS"


def test_rows_are_found_by_the_end_of_the_name():
    """As in PEFT, an entry fits by its end, and a lone list is the input embedding's, whatever its name."""
    listed = read(trainable_token_indices=[1, 2])
    assert listed.token_rows("model.embed_tokens") == listed.token_rows("transformer.wte") == (1, 2)
    named = read(trainable_token_indices={"embed_tokens": [1], "wpe": [2]})
    assert (named.token_rows("m.embed_tokens"), named.token_rows("wpe")) == ((1,), (2,))
    with pytest.raises(ConfigError, match="wte"):
        named.token_rows("wte")
    with pytest.raises(ConfigError, match="nothing"):
        read().token_rows("wte")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lora_alpha", math.nan), ("lora_alpha", math.inf), ("lora_alpha", 2**70), ("lora_alpha", True),
        ("lora_alpha", "16"), ("lora_alpha", [16]), ("r", -1), ("r", 0), ("r", 65_537), ("r", 2**70), ("r", True),
        ("r", 8.0), ("r", "8"), ("use_rslora", 1), ("use_rslora", "true"), ("use_dora", 0), ("lora_bias", "none"),
        ("bias", "some"), ("bias", True), ("bias", ["all"]), ("rank_pattern", ["q"]), ("rank_pattern", {"q": 0}),
        ("rank_pattern", {"q": True}), ("rank_pattern", {1: 2}), ("alpha_pattern", {"q": math.nan}),
        ("alpha_pattern", {"q": "1"}), ("rank_pattern", {"(": 2}), ("modules_to_save", "head"),
        ("modules_to_save", [1]), ("fan_in_fan_out", None.__class__), ("trainable_token_indices", [-1]),
        ("trainable_token_indices", [1, 1]), ("trainable_token_indices", [True]), ("trainable_token_indices", "1"),
        ("trainable_token_indices", {"e": 1}), ("ensure_weight_tying", 1), ("task_type", 3),
        ("base_model_name_or_path", 3), ("peft_version", 0.21), ("peft_type", 7), ("init_lora_weights", 3),
    ],
)  # fmt: skip
def test_values_that_cannot_be_meant(name, value):
    """Every field that changes numbers is strict on type and range; the error names it and shows the value."""
    with pytest.raises(ConfigError) as caught:
        read(**{"lora_alpha": 16, name: value})
    assert f"config: {name}" in caught.value.where
    assert caught.value.expected
    assert caught.value.got
    assert caught.value.hint


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lora_alpha", math.nan), ("lora_alpha", math.inf), ("lora_alpha", "4"), ("lora_alpha", True),
        ("lora_alpha", 10**400), ("lora_alpha", 4 + 2j), ("r", "2"), ("r", 0), ("use_rslora", 1), ("use_dora", "yes"),
        ("alpha_pattern", {"q": math.nan}), ("rank_pattern", {"q": 0.5}), ("rank_pattern", {"(": 2}), ("bias", "bogus"),
        ("modules_to_save", "q"), ("trainable_token_indices", {"e": (-1,)}), ("layer_replication", ((2, 1),)),
        ("kasa_config", {}), ("base_model", 3), ("peft_type", 7),
    ],
    ids=lambda one: str(one)[:20],
)  # fmt: skip
def test_a_config_that_is_built_is_checked_too(name, value):
    """Field by field as one that is read, or changed by `replace`."""
    with pytest.raises(ConfigError) as caught:
        AdapterConfig(**{name: value})
    assert caught.value.where.startswith(f"AdapterConfig: {name}") and caught.value.hint
    with pytest.raises(ConfigError):
        dataclasses.replace(read(lora_alpha=16), **{name: value})


def test_the_method_of_a_config_that_is_built_is_looked_up():
    """Among the methods that are known where it is used: refused by name as in a config that is read."""
    base = {"q.weight": torch.zeros(3, 4)}
    adapter = {"q.lora_A.weight": torch.ones(2, 4), "q.lora_B.weight": torch.ones(3, 2)}
    for kind, why in (("BOGUS", "not a method"), ("PROMPT_TUNING", "prompts")):
        config = AdapterConfig(lora_alpha=4, peft_type=kind)
        for call in (lambda c: interpolate(base, adapter, 0.5, config=c), lambda c: rescale(Adapter(adapter, c), 0.5)):
            with pytest.raises(Unsupported, match=why):
                call(config)


def test_a_number_beyond_float64_is_no_number():
    """Where no smaller limit is set."""
    with pytest.raises(ConfigError, match="finite number"):
        read(peft_type="LOHA", alpha=10**400, r=2)


@pytest.mark.parametrize("lora_alpha", [0, -16, 0.5, 1e9, -1e9])
def test_any_finite_lora_alpha_is_meant(lora_alpha):
    """Zero and negative values are unusual, and define a delta all the same."""
    assert read(lora_alpha=lora_alpha).scale("q", 4) == lora_alpha / 4


def test_all_problems_come_at_once():
    """One pass over the config finds every bad field."""
    with pytest.raises(ConfigError) as caught:
        read(lora_alpha="16", r=0, use_qalora=True, use_rslora=1, made_up=3)
    fields = {problem.where.split()[-1] for problem in (caught.value, *caught.value.others)}
    assert fields == {"lora_alpha", "r", "use_qalora", "use_rslora", "made_up"}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_options_refused_by_name(name):
    """An option that would change the result is refused with its reason, and harmless where it is not set."""
    with pytest.raises(Unsupported) as caught:
        read(lora_alpha=16, **{name: {"on": 1}})
    assert name in caught.value.where
    assert REFUSED[name] in caught.value.got
    for unset in (None, False, [], {}, "", 0):
        assert read(lora_alpha=16, **{name: unset}) == read(lora_alpha=16)


@pytest.mark.parametrize("start", ["pissa_niter_4", "corda", "lora_ga", "loftq"])
def test_starts_that_rewrite_the_base_are_refused(start):
    """After these the adapter does not belong to the base file alone: the reason is said."""
    with pytest.raises(Unsupported) as caught:
        read(lora_alpha=16, init_lora_weights=start)
    assert any(reason in caught.value.got for reason in REWRITES.values())


@pytest.mark.parametrize("start", [True, False, None, "gaussian", "eva", "orthogonal", "mica", "true", "false"])
def test_plain_starts(start):
    """These leave the base alone."""
    assert read(lora_alpha=16, init_lora_weights=start) == read(lora_alpha=16)


def test_an_unknown_start_is_refused():
    """A method that is not known may rewrite the base."""
    with pytest.raises(Unsupported, match="not known"):
        read(lora_alpha=16, init_lora_weights="svd_magic")


STARTS = "eva, gaussian, mica, olora, orthogonal, pissa"


@pytest.mark.parametrize("start", ["foo", "loftq", "corda", "pissa_niter_4", "lora_ga"])
def test_a_refused_start_says_what_there_is_and_what_to_do(start):
    """Every start that is read, once; PEFT's conversion to plain LoRA only for those that it converts."""
    with pytest.raises(Unsupported) as caught:
        read(lora_alpha=16, init_lora_weights=start)
    assert caught.value.expected == f"true, false or one of {STARTS}"
    for word in STARTS.split(", "):
        assert read(lora_alpha=16, init_lora_weights=word)
    assert ("path_initial_model" in caught.value.hint) is (start not in ("foo", "loftq"))


@pytest.mark.parametrize("kind", ["LILY", "POLY", "XLORA", "SHADOW"])
def test_nobody_is_told_to_merge_what_cannot_be(kind):
    """What depends on the input has no merged checkpoint, a method that PEFT merges has one."""
    with pytest.raises(Unsupported) as caught:
        read(peft_type=kind)
    assert caught.value.hint and "merge this" not in caught.value.hint
    with pytest.raises(Unsupported, match="give the merged checkpoint"):
        read(peft_type="NEW_ONE")


@pytest.mark.parametrize("name", REFUSED)
def test_fields_are_merged_only_where_that_can_be(name):
    """The same for LoRA's fields: more layers and whole parameters are merged by PEFT, the others are not."""
    with pytest.raises(Unsupported) as caught:
        read(lora_alpha=16, **{name: {"on": 1}})
    can = name in ("layer_replication", "target_parameters")
    assert caught.value.hint and ("give the merged checkpoint" in caught.value.hint) is can


def test_every_method_of_peft_is_supported_or_refused():
    """None of PEFT's methods is unknown, and none is both."""
    assert {kind.value for kind in PeftType} == SUPPORTED | METHODS_REFUSED.keys()
    assert SUPPORTED.isdisjoint(METHODS_REFUSED)


@pytest.mark.parametrize("kind", [*METHODS_REFUSED, "NEW_ONE"])
def test_other_methods_are_refused_by_name(kind):
    """Each of PEFT's other methods, and one that does not exist yet, is named, with the reason and what there is."""
    with pytest.raises(Unsupported) as caught:
        read(peft_type=kind)
    assert caught.value.got == f"{kind} — {METHODS_REFUSED.get(kind, 'not a method of PEFT 0.21')}"
    assert all(other in caught.value.expected for other in SUPPORTED)
    assert ("unchanged" in caught.value.hint) is ("prompts" in caught.value.got)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    ("kind", "name", "why"),
    sorted({(f.peft, name, o.why) for f in FAMILIES.values() for name, o in f.options.items() if o.why}),
)
def test_values_refused_by_name(kind, name, why):
    """A value that PEFT knows, and that cannot be rebuilt, is refused with its reason."""
    with pytest.raises(Unsupported) as caught:
        read(peft_type=kind, **{name: "surprise"})
    assert name in caught.value.where and why in caught.value.got and caught.value.exit_code == 4


def test_unknown_fields_may_stay_only_if_not_set():
    """A field of a later PEFT is harmless while it is off, and refused by its name when on."""
    for unset in (None, False, 0, 0.0, "", [], {}, (), set()):
        assert read(lora_alpha=16, from_the_future=unset) == read(lora_alpha=16)
    for on in (True, 1, "x", [0], {"a": None}, object()):
        with pytest.raises(Unsupported, match="from_the_future"):
            read(lora_alpha=16, from_the_future=on)
    with pytest.raises(Unsupported, match="lora_alpha"):
        read(peft_type="TRAINABLE_TOKENS", token_indices=[1], lora_alpha=16)


def test_a_config_is_a_mapping():
    """Anything else is refused as such."""
    with pytest.raises(ConfigError, match="mapping"):
        AdapterConfig.from_mapping([("lora_alpha", 16)])


def test_hostile_patterns_are_refused_when_read():
    """A bad pattern is found in the config, by field and text, before any tensor is looked at; size is bounded."""
    with pytest.raises(Unsupported) as caught:
        read(lora_alpha=16, rank_pattern={r"(?=q)": 4})
    assert "config: rank_pattern" in caught.value.where
    assert "(?=q)" in caught.value.where
    with pytest.raises(Unsupported, match="states"):
        read(alpha_pattern={f"(x{i}){{1000}}": 1 for i in range(80)})


@given(
    st.dictionaries(patterns, st.integers(1, 9)), st.dictionaries(patterns, st.integers(-9, 9)), paths, st.booleans()
)
def test_scales_are_pefts(rank_pattern, alpha_pattern, path, use_rslora):
    """Rank and lora_alpha are resolved in PEFT's order by PEFT's rule, and divided as PEFT divides."""
    rank = rank_pattern.get(get_pattern_key(rank_pattern.keys(), path), 3)
    lora_alpha = alpha_pattern.get(get_pattern_key(alpha_pattern.keys(), path), 16)
    config = read(r=3, lora_alpha=16, rank_pattern=rank_pattern, alpha_pattern=alpha_pattern, use_rslora=use_rslora)
    assert config.scale(path, rank) == lora_alpha / (math.sqrt(rank) if use_rslora else rank)
    with pytest.raises(ConfigError, match=f"rank of {path}"):
        config.scale(path, rank + 1)


def test_the_scale_is_never_guessed():
    """Without lora_alpha there is no scale, unless a pattern gives it."""
    config = read(r=4, alpha_pattern={"q": 8})
    assert config.scale("m.q", 4) == 2.0
    with pytest.raises(ConfigNeeded, match="never guessed"):
        config.scale("m.k", 4)


def test_a_rank_is_a_rank():
    """A factor without rows has no scale, and no division by zero."""
    with pytest.raises(ConfigError, match="rank of q"):
        read(lora_alpha=16).scale("q", 0)


@given(st.lists(patterns, unique=True), st.lists(paths, max_size=3))
def test_unused_patterns(keys, modules):
    """Exactly the patterns are listed that PEFT's rule matches to no module."""
    config = read(lora_alpha=1, rank_pattern=dict.fromkeys(keys[:2], 1), alpha_pattern=dict.fromkeys(keys[1:], 1))
    expected = [key for key in keys if not any(get_pattern_key([key], path) == key for path in modules if path != key)]
    expected = [key for key in expected if key not in modules]
    assert list(config.unused_patterns(modules)) == expected


def test_the_record_is_whole_and_printable():
    """It is frozen, shows every field, and reading does not change or share what was given."""
    raw = {"lora_alpha": 16, "rank_pattern": {"q": 2}}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = AdapterConfig.from_mapping(raw)
    raw["rank_pattern"]["q"] = 3
    assert config.rank_pattern == {"q": 2}
    assert "rank_pattern={'q': 2}" in repr(config)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.r = 5
