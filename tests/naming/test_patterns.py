"""Patterns of an adapter's config: `re` is the oracle on what is understood, and never run on what is hostile."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wiseft_core.errors import ConfigError, Unsupported
from wiseft_core.naming.patterns import compile_pattern, first_match, matches, run

ALPHABET = "ab.1_q\n"
paths = st.text(ALPHABET, max_size=12)
characters = st.sampled_from(
    ["a", "b", "q", "1", "_", ".", r"\.", r"\d", r"\w", r"\s", r"\D", r"\W", r"\S", r"\n", r"\-", "}", "]", "-", ","]
)
classes = st.builds(
    "[{}{}]".format,
    st.sampled_from(["", "^"]),
    st.lists(st.sampled_from(["a", "b", "a-q", "0-9", "_", ".", r"\d", r"\.", r"\w", r"\]"]), min_size=1).map("".join),
)
quantifiers = st.sampled_from(["", "*", "+", "?", "*?", "+?", "??", "{2}", "{1,2}", "{,2}", "{1,}", "{0}", "{,}?"])


def compound(inner):
    """Sequences, choices and groups of smaller patterns, some of them repeated or anchored."""
    group = st.builds("{}{}){}".format, st.sampled_from(["(", "(?:"]), inner, quantifiers)
    sequence = st.lists(inner | group, min_size=1, max_size=3).map("".join)
    choice = st.lists(sequence, min_size=1, max_size=3).map("|".join)
    anchored = st.builds("{}{}{}".format, st.sampled_from(["", "^"]), sequence, st.sampled_from(["", "$"]))
    return sequence | choice | anchored


patterns = st.recursive(st.builds("{}{}".format, characters | classes, quantifiers), compound, max_leaves=6)


def peft_says(pattern, path):
    """PEFT 0.21's rule, `get_pattern_key`."""
    return re.match(rf"(.*\.)?({pattern})$", path) is not None


@given(patterns, paths)
@example("layers.1.q", "m.layers.1.q")
@example("^a", "b.a")
@example("a|b", "q.b")
@example("a", "a\n")
@example("(a?){2}b", "aab")
@example("a{", "a{")
@example("a{}", "a{}")
@example("a{,x}", "a{,x}")
@example("(|a)+b", "aab")
def test_agrees_with_re(pattern, path):
    """Whatever the subset can say means what PEFT makes of it with `re`."""
    assert matches(compile_pattern(pattern), path) is peft_says(pattern, path)


@given(st.lists(st.sampled_from("ab1_.") | st.just(r"\."), max_size=6).map("".join), paths)
def test_plain_patterns_agree_with_re(pattern, path):
    """Names with dots, the usual case and a shortcut, mean the same as to `re`: a bare dot is any character."""
    assert matches(compile_pattern(pattern), path) is peft_says(pattern, path)


@pytest.mark.parametrize("path", ["q", "m.q", "m.xq", "m.q.x", "q1", ""])
def test_a_plain_name_matches_behind_a_dot_only(path):
    """`q` is the module q at any depth, and no module whose name merely ends so."""
    assert matches(compile_pattern("q"), path) is (path in ("q", "m.q"))


def test_unicode_categories_agree_with_re():
    """Categories are Unicode's, as for `re`, on characters of many scripts, digits and spaces among them."""
    for category in "dwsDWS":
        ours = compile_pattern(f"[\\{category}]")
        theirs = re.compile(f"\\{category}", re.DOTALL)
        wrong = [c for c in map(chr, range(0x3100)) if c not in ".\n" and matches(ours, c) is not bool(theirs.match(c))]
        assert wrong == []


@pytest.mark.parametrize("pattern", ["([a-z_.0-9]+)+!", "(a*)*b", "(a|a)*b", "(a|aa)+$b", "((a?){20}){20}b"])
def test_a_hostile_pattern_takes_linear_work(pattern):
    """What keeps a backtracking engine busy for ever visits each state at most once per character here."""
    compiled = compile_pattern(pattern)
    path = "a" * 300
    visits = [len(active) for active in run(compiled, path)]
    assert len(visits) == len(path) + 1
    assert max(visits) <= len(compiled.states)
    assert not matches(compiled, path)


@pytest.mark.parametrize(
    ("pattern", "what"),
    [
        (r"(a)\1", "backreference"), ("(?=a)", "lookahead"), ("(?!a)", "negative lookahead"), ("(?<=a)b", "lookbehind"),
        ("(?<!a)b", "lookbehind"), ("(?P<n>a)", "named group"), ("(?i)a", "flag"), (r"\ba", r"\b"), (r"\Za", r"\Z"),
        ("(?>a)", "atomic"), ("a*+", "possessive"), (r"\x41", r"\x"), ("a{1001}", "1000 times"),
        ("((a{1000}){1000}){1000}", "20000 states"), ("(((){1000}){1000}){1000}", "20000 states"), ("a" * 2001, "2001"),
        ("(" * 60 + ")" * 60, "50 groups"),
    ],
)  # fmt: skip
def test_outside_the_subset_is_refused_by_name(pattern, what):
    """The refusal shows the pattern, says what in it is not understood, and what to write instead."""
    with pytest.raises(Unsupported) as caught:
        compile_pattern(pattern)
    assert what in caught.value.got
    assert pattern in caught.value.where
    assert "list the modules by their names" in caught.value.hint


@pytest.mark.parametrize(
    "pattern",
    ["(", ")", "a)(b", "[a", "[]", "[b-a]", r"[a-\d]", "*a", "a**", "a*?*", "^*", "{2}", "a{2,1}", "\\", r"\q"],
)
def test_malformed_is_a_config_error(pattern):
    """What `re` cannot compile either is the config's fault, and never a bare `re.error`."""
    with pytest.raises(re.error):
        re.compile(pattern)
    with pytest.raises(ConfigError) as caught:
        compile_pattern(pattern)
    assert pattern in caught.value.where


@given(st.text("ab(|)*+?{}12,[]^$\\-.d", max_size=10))
def test_any_text_compiles_as_in_re_or_is_refused(pattern):
    """No text makes the parser fail in another way than our two errors, and none that `re` refuses compiles."""
    try:
        compile_pattern(pattern)
    except (ConfigError, Unsupported):
        return
    re.compile(pattern)


def test_first_match_keeps_the_order_of_the_mapping():
    """The first pattern that matches wins, not the best one; where none does, the answer is None."""
    ranks = {"q": 4, r"layers\.1\.q": 8, ".*": 2}
    assert first_match(ranks, "layers.1.q") == ("q", 4)
    assert first_match(dict(reversed(ranks.items())), "layers.1.q") == (".*", 2)
    assert first_match({"q": 4}, "k") is None
