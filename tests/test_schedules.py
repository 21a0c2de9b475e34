"""The coefficient: checked, written in one way, and resolved per name."""

import fnmatch
import math
import time
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wiseft_core.errors import BadAlpha, ConfigError, UnusedPattern
from wiseft_core.schedules import by_depth, canonical, check_alpha, resolve, spread

finite = st.floats(allow_nan=False, allow_infinity=False)
names = st.lists(st.text("ab.", min_size=1, max_size=5), min_size=1, max_size=5, unique=True)


@pytest.mark.parametrize(
    ("alpha", "text"),
    [
        (0.50, "0.5"), (1e-3, "0.001"), (1e-300, "1e-300"), (-0.0, "0"), (0.0, "0"), (1.0, "1"), (0.1 + 0.2,
        "0.30000000000000004"), (-0.2, "-0.2"), (1e-6, "0.000001"), (1.5e-7, "1.5e-7"), (1e15, "1000000000000000"),
        (1e16, "1e+16"), (120.0, "120"), (5e-324, "5e-324"), (-1.25e300, "-1.25e+300"),
    ],
)  # fmt: skip
def test_canonical_decimals(alpha, text):
    """Folder names are short, plain decimals where that is readable."""
    assert canonical(alpha) == text


@given(finite)
def test_canonical_is_exact_and_one_for_each_number(alpha):
    """The decimal reads back as the same number, has no needless digit, and depends on the value alone."""
    text = canonical(alpha)
    assert float(text) == alpha
    assert canonical(float(text)) == text
    shortest = len(Decimal(repr(alpha)).normalize().as_tuple().digits)
    assert len(Decimal(text).normalize().as_tuple().digits) == shortest


@pytest.mark.parametrize("alpha", [0, 1, 0.25, np.float32(0.25), np.float64(0.25), np.int64(1), np.array(0.5),
                                   Fraction(1, 4), Decimal("0.25")])  # fmt: skip
def test_real_numbers_are_taken(alpha):
    """Any real number without an axis is a coefficient, and comes back as a plain float."""
    value = check_alpha(alpha, "alpha", extrapolate=False)
    assert type(value) is float
    assert value == alpha


def test_torch_scalars_are_taken():
    """A learned coefficient is a coefficient; torch's warning about its gradient is not provoked."""
    assert check_alpha(torch.tensor(0.25, requires_grad=True), "alpha", extrapolate=False) == 0.25
    assert check_alpha(torch.tensor(0.25, dtype=torch.bfloat16), "alpha", extrapolate=False) == 0.25


@pytest.mark.parametrize(
    "alpha",
    [math.nan, math.inf, -math.inf, True, np.True_, "0.5", None, 1j, np.array([0.5]), np.array("0.5"), np.complex64(1),
     np.array(1j), [0.5], 10**400, pytest.param(10**5000, id="long"), torch.tensor([0.5]), torch.tensor(True),
     torch.tensor(0.5, device="meta")],
)  # fmt: skip
def test_anything_else_is_refused(alpha):
    """Booleans, text, arrays and values that are not finite are no coefficients, with extrapolation or without."""
    for extrapolate in (False, True):
        with pytest.raises(BadAlpha) as caught:
            check_alpha(alpha, "alpha of x", extrapolate=extrapolate)
        assert caught.value.where == "alpha of x"
        assert caught.value.expected
        assert caught.value.got
        assert caught.value.hint


@given(finite)
def test_the_range_is_closed_unless_extrapolating(alpha):
    """0 and 1 are in range, what lies outside needs the flag, and -0.0 becomes 0.0."""
    assert check_alpha(alpha, "alpha", extrapolate=True) == alpha
    assert math.copysign(1, check_alpha(-0.0, "alpha", extrapolate=False)) == 1
    if 0 <= alpha <= 1:
        assert check_alpha(alpha, "alpha", extrapolate=False) == alpha
    else:
        with pytest.raises(BadAlpha, match="extrapolate"):
            check_alpha(alpha, "alpha", extrapolate=False)


@given(names, st.floats(0, 1))
def test_a_number_holds_for_all(touched, alpha):
    """One number is every tensor's coefficient, in the order of the names."""
    assert list(resolve(alpha, touched).items()) == [(name, alpha) for name in touched]


def test_a_function_is_asked_once_per_name():
    """A function may be costly or count its calls: each name is asked once, in order."""
    asked = []
    assert resolve(lambda name: asked.append(name) or len(name) / 10, ["a", "bb"]) == {"a": 0.1, "bb": 0.2}
    assert asked == ["a", "bb"]
    with pytest.raises(BadAlpha, match="alpha\\('a'\\)"):
        resolve(lambda name: 2.0, ["a"])


@given(st.text("ab.*?", min_size=1, max_size=6), names)
def test_globs_agree_with_fnmatch(glob, touched):
    """A glob takes exactly the names that the standard library's does."""
    fitting = [name for name in touched if name == glob or fnmatch.fnmatchcase(name, glob)]
    if not fitting:
        with pytest.raises(UnusedPattern):
            resolve({glob: 0.5}, touched)
    elif len(fitting) < len(touched):
        with pytest.raises(ConfigError):
            resolve({glob: 0.5}, touched)
    else:
        assert resolve({glob: 0.5}, touched) == dict.fromkeys(touched, 0.5)


def test_the_most_specific_wins():
    """A name beats every glob, and the glob with most literal characters beats the others, in any order."""
    alphas = {"*": 0.1, "layers.*": 0.2, "layers.*.q": 0.3, "layers.1.q": 0.4}
    touched = ["head", "layers.0.k", "layers.0.q", "layers.1.q"]
    expected = dict(zip(touched, [0.1, 0.2, 0.3, 0.4], strict=True))
    assert resolve(alphas, touched) == expected
    assert resolve(dict(reversed(alphas.items())), touched) == expected


@pytest.mark.parametrize("alpha", [{"zzzz": 0.5}, by_depth({0: 0.5, 1: 0.6}, other=0.5, within="zzzz")])
def test_where_no_name_is_near_it_is_said_what_lists_them(alpha):
    """The table of `plan` has no tensor's name: its JSON has."""
    with pytest.raises(UnusedPattern) as caught:
        resolve(alpha, ["layers.0.q.weight"])
    assert caught.value.hint.startswith("`wiseft plan --json` lists")


def test_a_tie_is_refused_only_where_it_matters():
    """Two globs that are equally specific have to agree; the error names the tensor and both."""
    assert resolve({"a.?": 0.5, "?.b": 0.5}, ["a.b"]) == {"a.b": 0.5}
    with pytest.raises(UnusedPattern) as caught:
        resolve({"a.?": 0.5, "?.b": 0.6}, ["a.b"])
    assert "a.b" in caught.value.where
    assert "a.?" in caught.value.got
    assert "?.b" in caught.value.got


def test_a_mapping_may_hold_functions():
    """A function below a name or glob is asked for the names that it decides, once each, and numbers still beat it."""
    asked = []

    def by_length(name):
        asked.append(name)
        return len(name) / 10

    touched = ["head", "layers.0.k", "layers.0.q", "norm"]
    alphas = {"*": 0.5, "layers.*": by_length, "layers.0.q": 1.0, "nor?": by_length}
    assert resolve(alphas, touched) == {"head": 0.5, "layers.0.k": 1.0, "layers.0.q": 1.0, "norm": 0.4}
    assert asked == ["layers.0.k", "norm"]


def test_a_function_ties_with_what_gives_another_number():
    """Where a function is as specific as another key, the numbers decide; one function under two keys is one."""
    answers = iter([0.1, 0.2])
    one = lambda name: next(answers)  # noqa: E731 - it gives another number each time it is asked
    assert resolve({"a.?": one, "?.b": one}, ["a.b"]) == {"a.b": 0.1}
    assert resolve({"a.?": lambda name: 0.5, "?.b": 0.5}, ["a.b"]) == {"a.b": 0.5}
    assert resolve({"a.?": lambda name: 0.5, "?.b": lambda name: 0.5}, ["a.b"]) == {"a.b": 0.5}
    for other in (0.6, lambda name: 0.6):
        with pytest.raises(UnusedPattern) as caught:
            resolve({"a.?": other, "?.b": lambda name: 0.5}, ["a.b"])
        assert "a.b" in caught.value.where
        assert "a.?" in caught.value.got
        assert "?.b" in caught.value.got


def test_a_function_below_a_key_is_held_to_the_range():
    """The error names the key and the tensor; a function whose key matches nothing is not asked, and refused."""
    with pytest.raises(BadAlpha) as caught:
        resolve({"*": 0.5, "a*": lambda name: 1.5}, ["ab", "c"])
    assert "'a*'" in caught.value.where
    assert "'ab'" in caught.value.where
    assert resolve({"*": lambda name: 1.5}, ["a"], extrapolate=True) == {"a": 1.5}
    with pytest.raises(BadAlpha, match="None"):
        resolve({"*": lambda name: None}, ["a"])
    with pytest.raises(UnusedPattern, match="no tensor"):
        resolve({"*": 0.5, "x*": lambda name: 1 / 0}, ["a"])


def test_all_problems_of_a_mapping_come_at_once():
    """A key that matches nothing, with the nearest names, and a tensor that no key matches, in one error."""
    with pytest.raises(UnusedPattern) as caught:
        resolve({"layers.0.q_prj": 0.5, "head*": 0.5}, ["layers.0.q_proj", "head"])
    assert "layers.0.q_proj" in caught.value.hint
    (other,) = caught.value.others
    assert "layers.0.q_proj" in other.got
    assert '"*"' in other.hint


@pytest.mark.parametrize("alpha", ["0.5", {"*": "0.5"}, {"*": 1.5}, {"*": 0.5, "a": math.nan}])
def test_coefficients_inside_are_checked(alpha):
    """Every number of a mapping is checked, used or not."""
    with pytest.raises(BadAlpha):
        resolve(alpha, ["a"])


def test_keys_are_names():
    """A key that is no string cannot be a name."""
    with pytest.raises(ConfigError, match="keys"):
        resolve({1: 0.5}, ["a"])


def test_extrapolation_reaches_every_form():
    """The flag allows the same number in a number, a mapping and a function, and only with it."""
    for alpha in (1.5, {"*": 1.5}, lambda name: 1.5):
        assert resolve(alpha, ["a"], extrapolate=True) == {"a": 1.5}
        with pytest.raises(BadAlpha):
            resolve(alpha, ["a"])


@given(st.integers(-(10**20), 10**20), st.integers(-(10**6), 10**6).filter(bool), st.integers(0, 999), st.data())
def test_spread_counts_in_decimal(start, step, count, data):
    """START, START + STEP, ... as whole numbers of the last place say it, up to STOP."""
    places = data.draw(st.integers(0, 25))
    stop = start + count * step + data.draw(st.integers(0, abs(step) - 1)) * (1 if step > 0 else -1)
    text = ":".join(f"{number}e-{places}" for number in (start, stop, step))
    wanted = tuple((start + at * step) / 10**places for at in range(count + 1))
    with localcontext() as context:
        context.prec = 2  # whatever the user's decimals are
        assert spread(text) == wanted


@given(finite)
def test_spread_of_one_number_is_that_number(alpha):
    """Without a colon there is one, as Python reads it; a spread of no length has its start alone."""
    assert spread(repr(alpha)) == (alpha,)
    if alpha == 0 or 1e-300 < abs(alpha) < 1e300:
        assert spread(f"{alpha!r}:{alpha!r}:1") == (alpha,)


def test_spread_as_it_is_meant():
    """The ends are there where they are reached, and the numbers are those that a user would type."""
    assert spread("0:1:0.1") == (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)
    assert spread("0:1:0.3") == (0, 0.3, 0.6, 0.9)
    assert spread("1:-0.5:-.5") == (1, 0.5, 0, -0.5)
    assert len(spread("0:999:1")) == 1000


@pytest.mark.parametrize(
    "text",
    ["", "a", "0:1", "0:1:", "::", "0:1:0.5:2", "0:1:0", "0:0:0", "0:1:nan", "nan:1:1", "0:inf:1", "0:1:inf",
     "-inf:inf:inf", "0:1e999999999:1", "1e-999999999:1:1", "0:1:1e-999999999", "0:1e999999999999999999999:1",
     "0:1e400:1e399"],
)  # fmt: skip
def test_spread_of_what_is_no_number_is_a_value_error(text):
    """A number that cannot be read or meant, a step of zero: told at once, whatever the exponents."""
    begun = time.monotonic()
    with pytest.raises(ValueError) as caught:
        spread(text)
    assert type(caught.value) is ValueError
    assert time.monotonic() - begun < 1


@pytest.mark.parametrize(("text", "got"), [("0:1:-1", "way"), ("1:0:0.5", "way"), ("0:1000:1", "more"),
                                            ("0:1:1e-300", "more"), ("-1e300:1e300:1e-300", "more")])  # fmt: skip
def test_spread_that_leads_nowhere_or_too_far_is_refused(text, got):
    """A step away from STOP, or more than a thousand numbers: four lines that name the text."""
    with pytest.raises(ConfigError) as caught:
        spread(text)
    assert text in caught.value.where and got in caught.value.got and caught.value.expected and caught.value.hint
