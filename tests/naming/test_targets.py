"""The words that a config gets fit exactly the modules they are for, by PEFT's own functions."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from wiseft_core.config import AdapterConfig
from wiseft_core.naming.prefix import Rule, undone
from wiseft_core.naming.targets import NOTHING, exceptions, modules_of, targets

PARTS = st.sampled_from(["a", "b", "aa", "q_proj", "0", "x-y", "a+", "é", "(", "model"])
PATHS = st.lists(PARTS, min_size=1, max_size=4).map(".".join)


@st.composite
def models(draw):
    """All modules of a model, and some of them."""
    paths = draw(st.lists(PATHS, min_size=1, max_size=12))
    modules = modules_of(f"{path}.weight" for path in paths)
    return modules, draw(st.lists(st.sampled_from(sorted(modules)), min_size=1, unique=True))


@given(models())
def test_targets_are_exactly_the_wanted_modules(model):
    """PEFT targets each wanted module, and none of the others."""
    modules, wanted = model
    config = LoraConfig(target_modules=targets(wanted, modules))
    assert {path for path in modules if check_target_module_exists(config, path)} == set(wanted)


def test_targets_are_as_short_as_they_can_be():
    """Last components where these suffice, paths where not, an expression where a path is the end of another."""
    modules = modules_of(f"layers.{layer}.{name}.weight" for layer in (0, 1) for name in ("q_proj", "up"))
    assert targets(["layers.1.q_proj", "layers.0.q_proj"], modules) == ["q_proj"]
    assert targets(["layers.1.q_proj", "layers.0.up", "layers.1.up"], modules) == ["layers.1.q_proj", "up"]
    assert targets(["head"], {"head", "x.head"}) == "head"
    assert targets(["a.b"], {"a.b", "x.a.b"}) == r"a\.b"
    assert targets([], modules) == NOTHING


@given(st.dictionaries(PATHS, st.integers(1, 3), min_size=1), st.integers(1, 3))
def test_patterns_give_each_module_its_value(values, default):
    """By PEFT's rule and by our own reader, first match in order."""
    pattern = exceptions(values, default)
    config = AdapterConfig.from_mapping({"r": default, "lora_alpha": default, "rank_pattern": pattern})
    for path, value in values.items():
        assert pattern.get(get_pattern_key(pattern.keys(), path), default) == value
        assert config.scale(path, value) == default / value


def test_patterns_are_short_where_all_agree():
    """One entry for all modules of a name, a path where they differ."""
    values = {"layers.0.up": 2, "layers.1.up": 2, "layers.0.q_proj": 1, "layers.1.q_proj": 3}
    assert exceptions(values, 1) == {"up": 2, r"layers\.1\.q_proj": 3}
    assert exceptions({"up": 2, "x.up": 1}, 1) == {"^up": 2}


@given(PATHS, PATHS)
def test_rule_undone_gives_the_name_back(first, name):
    """For each kind of rule, whatever it adds or strips."""
    assert undone(str(Rule()), name) == name
    added, stripped = Rule(add=f"{first}."), Rule(strip=f"{first}.")
    assert undone(str(added), added(name)) == name
    assert undone(str(stripped), stripped(f"{first}.{name}")) == f"{first}.{name}"
