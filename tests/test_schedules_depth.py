"""Alpha by depth, and the schedule that a file spells."""

import math
import pickle
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wiseft_core.errors import BadAlpha, ConfigError, UnusedPattern
from wiseft_core.schedules import by_depth, from_tree, resolve

finite = st.floats(allow_nan=False, allow_infinity=False)
points = st.dictionaries(st.integers(0, 200), finite, min_size=1, max_size=6)


def exact(given, layer):
    """The broken line through `given` at `layer`, as a weighted mean in fractions."""
    before, after = [i for i in given if i <= layer], [j for j in given if j >= layer]
    if not before or not after or layer in given:
        return Fraction(given[layer if layer in given else min(after) if after else max(before)])
    i, j = max(before), min(after)
    return ((j - layer) * Fraction(given[i]) + (layer - i) * Fraction(given[j])) / (j - i)


@given(points, st.integers(0, 210))
def test_the_line_is_rounded_once(line, layer):
    """Between two points no float is nearer to the straight line, at a point it is the point, beyond them constant."""
    value = by_depth(line, other=0.0)(f"model.layers.{layer}.mlp.weight")
    wanted = exact(line, layer)
    error = abs(Fraction(value) - wanted)
    for neighbour in (math.nextafter(value, -math.inf), math.nextafter(value, math.inf)):
        assert not math.isfinite(neighbour) or error <= abs(Fraction(neighbour) - wanted)
    if layer in line:
        assert value == line[layer]


@given(finite, finite, st.integers(0, 200), st.integers(1, 40))
def test_between_two_points_it_is_monotone(first, last, start, width):
    """From one point to the next alpha only rises or only falls, layer by layer, and never leaves the two."""
    schedule = by_depth({start: first, start + width: last}, other=0.0)
    alphas = [schedule(f"{layer}.weight") for layer in range(start, start + width + 1)]
    assert alphas == sorted(alphas, reverse=first > last)
    assert (alphas[0], alphas[-1]) == (first, last)


def test_lines_of_two_points():
    """Two points give the linear scaling of LiNeS: a + b·(l - 1) / (L - 1) for l from 1 to L."""
    schedule = by_depth({0: 0.25, 4: 0.75}, other=1.0)
    assert [schedule(f"layers.{at}.w") for at in range(5)] == [0.25, 0.375, 0.5, 0.625, 0.75]


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.3.experts.7.up_proj.weight", 3), ("3.weight", 3), ("layers.3", 3), ("h.03.w", 3),
        ("lm_head.weight", None), ("model.layer3.weight", None), ("model.-3.weight", None), ("model.³.weight", None),
        ("model.٣.weight", None), (f"model.{'3' * 5000}.weight", None), ("", None), ("model..weight", None),
    ],
)  # fmt: skip
def test_the_layer_is_the_first_number_of_a_name(name, layer):
    """The first component of plain digits counts; a name without one gets `other`."""
    line = {0: 0.0, 10: 1.0}
    assert by_depth(line, other=2.0)(name) == (2.0 if layer is None else layer / 10)


@pytest.mark.parametrize(
    ("name", "alpha"),
    [
        ("vision.encoder.layers.3.weight", 0.3), ("model.vision.encoder.layers.3.weight", 0.3),
        ("text.encoder.layers.3.weight", 2.0), ("vision.encoder.layers.norm.3.weight", 2.0), ("vision.3.weight", 2.0),
        ("1.vision.encoder.layers.3.weight", 0.3), ("revision.encoder.layers.3.weight", 2.0), ("3", 2.0),
    ],
)  # fmt: skip
def test_within_tells_two_towers_apart(name, alpha):
    """Only a number right behind all the given components counts, wherever in the name they stand."""
    assert by_depth({0: 0.0, 10: 1.0}, other=2.0, within="vision.encoder.layers")(name) == alpha


def test_it_is_a_value():
    """Equal if its points are, in any order; it survives pickling; and nobody can change it."""
    schedule = by_depth({3: 1, 0: 0.5}, other=0, within="layers")
    assert schedule == by_depth({0: 0.5, 3: 1.0}, other=0.0, within="layers")
    assert pickle.loads(pickle.dumps(schedule)) == schedule
    assert pickle.loads(pickle.dumps(schedule))("layers.3.w") == 1
    with pytest.raises(AttributeError):
        schedule.other = 1.0


def test_its_range_is_checked_where_it_is_used():
    """Points outside of [0, 1] need `extrapolate`, like any alpha, and an unused one harms nobody."""
    schedule = {"*": by_depth({0: 0.5, 4: 1.5}, other=0.5)}
    assert resolve(schedule, ["layers.2.w"]) == {"layers.2.w": 1.0}
    assert resolve(schedule, ["layers.3.w"], extrapolate=True) == {"layers.3.w": 1.25}
    with pytest.raises(BadAlpha, match=r"layers\.3\.w"):
        resolve(schedule, ["layers.3.w"])


@pytest.mark.parametrize(
    ("given", "more", "error"),
    [
        ({}, {}, ConfigError), ([0.5], {}, ConfigError), (0.5, {}, ConfigError), ({"0": 0.5}, {}, ConfigError),
        ({True: 0.5}, {}, ConfigError), ({0.0: 0.5}, {}, ConfigError), ({-1: 0.5}, {}, ConfigError),
        ({10**5000: 0.5}, {}, ConfigError), ({0: math.nan}, {}, BadAlpha), ({0: "0.5"}, {}, BadAlpha),
        ({0: 0.5}, {"other": math.inf}, BadAlpha), ({0: 0.5}, {"other": None}, BadAlpha),
        ({0: 0.5}, {"within": "model..layers"}, ConfigError), ({0: 0.5}, {"within": "layers."}, ConfigError),
        ({0: 0.5}, {"within": None}, ConfigError),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(given, more, error):
    """No points, layers that are no whole numbers, values that are not finite, a `within` that is no path."""
    with pytest.raises(error) as caught:
        by_depth(given, **{"other": 0.5, **more})
    assert caught.value.where.startswith("by_depth.")
    assert all((caught.value.expected, caught.value.got, caught.value.hint))


def test_other_is_never_guessed():
    """`other` has no default."""
    with pytest.raises(TypeError, match="other"):
        by_depth({0: 0.5})


DEPTH = {"points": {"0": 0.2, "31": 0.8}, "other": 0.5}
LINE = by_depth({0: 0.2, 31: 0.8}, other=0.5)


@pytest.mark.parametrize(
    ("tree", "alpha"),
    [
        ({"alpha": 0.5}, 0.5), ({"alpha": 1}, 1.0), ({"alpha": 0.5, "for": {}}, 0.5),
        ({"alpha": 0.5, "for": {"a*": 0}}, {"*": 0.5, "a*": 0.0}), ({"for": {"a*": 0.5}}, {"a*": 0.5}),
        ({"for": {"*": 0.5}}, 0.5), ({"for": {"*": 0.5, "a": 1.5}}, {"*": 0.5, "a": 1.5}), ({"by_depth": DEPTH}, LINE),
        ({"by_depth": DEPTH, "for": {"a*": 0.5}}, {"*": LINE, "a*": 0.5}),
        ({"by_depth": DEPTH | {"within": "model.layers"}},
         by_depth({0: 0.2, 31: 0.8}, other=0.5, within="model.layers")),
    ],
)  # fmt: skip
def test_a_tree_spells_a_schedule(tree, alpha):
    """What from_tree gives is what one would write in Python."""
    assert from_tree(tree, "file") == alpha


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({}, "none"), ({"for": {}}, "none"), ({"alpha": 0.5, "by_depth": DEPTH}, "alpha and by_depth"),
        ({"alpha": 0.5, "for": {"*": 0.5}}, "alpha and for"), ({"alhpa": 0.5}, "nearest: alpha"),
        ({"by_depht": DEPTH}, "nearest: by_depth"), ({"by_depth": DEPTH | {"witin": "a"}}, "nearest: within"),
        ({"by_depth": {"points": {"0": 1}}}, "no other"), ({"by_depth": {"other": 0.5}}, "no points"),
        ({"by_depth": DEPTH | {"points": {}}}, "one point or more"), ({"by_depth": DEPTH | {"points": [0.5]}}, "list"),
        ({"by_depth": DEPTH | {"points": {"00": 1}}}, "'00'"), ({"by_depth": DEPTH | {"points": {"x": 1}}}, "'x'"),
        ({"by_depth": DEPTH | {"points": {"0": True}}}, "True"), ({"by_depth": DEPTH | {"within": 3}}, "3"),
        ({"by_depth": 0.5}, "by_depth"), ({"alpha": "0.5"}, "'0.5'"), ({"alpha": math.nan}, "nan"), ({"for": 1}, "int"),
        ({"for": {"model": {"norm": {"weight": 0.5}}}}, "quotes"), ({"for": {"a": None}}, "None"), ([], "list"),
        ({1: 0.5}, "strings"),
    ],
)  # fmt: skip
def test_a_tree_that_cannot_be_meant_is_refused(tree, said):
    """Every refusal says where in which file, and in four lines what to do."""
    with pytest.raises(ConfigError) as caught:
        from_tree(tree, "file.toml")
    assert said in str(caught.value)
    assert caught.value.where.startswith("file.toml")
    assert all((caught.value.expected, caught.value.got, caught.value.hint))


def test_all_unknown_keys_come_at_once():
    """Two misspelt keys are two problems of one error."""
    with pytest.raises(ConfigError) as caught:
        from_tree({"alhpa": 0.5, "fro": {}}, "file")
    assert [problem.where for problem in (caught.value, *caught.value.others)] == ["file — alhpa", "file — fro"]


def test_a_within_that_is_in_no_name_is_refused():
    """A misspelt path would give `other` to every tensor: it is an unused pattern, alone and under a key."""
    names = ["model.layers.0.q.weight", "model.norm.weight"]
    fitting, misspelt = (by_depth({0: 0.2}, other=0.5, within=path) for path in ("model.layers", "model.layer"))
    assert resolve(fitting, names) == {names[0]: 0.2, names[1]: 0.5}
    for alpha in (misspelt, {"*": misspelt}):
        with pytest.raises(UnusedPattern, match=r"model\.layer'"):
            resolve(alpha, names)
