"""JSON from strangers: one class of error for everything that is not plain JSON."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wiseft_core.errors import CheckpointError, WiseftError
from wiseft_core.store.strict_json import DEPTH_LIMIT, as_mapping, load_json, read_json

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(values)
def test_whatever_python_writes_comes_back(value):
    """Every plain value survives, whether written in ASCII or in UTF-8."""
    assert load_json(json.dumps(value).encode(), "x") == value
    assert load_json(json.dumps(value, ensure_ascii=False).encode(), "x") == value


@pytest.mark.parametrize(
    ("data", "fragment"),
    [
        (b'{"a": 1, "b": {"k": 1, "k": 2}}', "said twice in one object: k"),
        (b'{"a": 1, "\\u0061": 2}', "said twice in one object: a"),
        (b"[NaN]", "NaN, which is not finite"),
        (b"[-Infinity]", "-Infinity, which is not finite"),
        (b"[1e999]", "1e999, which is not finite"),
        (b"[-1E+999]", "which is not finite"),
        (b"[" + b"9" * 5000 + b"]", "5000 digits"),
        (b"[" * (DEPTH_LIMIT + 1) + b"]" * (DEPTH_LIMIT + 1), "nested deeper than 128"),
        (b"[" * 100_000, "nested deeper than 128"),
        (b'{"a":' * 100_000, "nested deeper than 128"),
        (b'["\xff"]', "not UTF-8 at byte 2"),
        (b'["\\ud800"]', "half of a surrogate pair"),
        (b'{"\\uDfff": 1}', "half of a surrogate pair"),
        (b"{} trailing", "Extra data"),
        (b"{}\0", "Extra data"),
        (b"", "Expecting value"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b"{'a': 1}", "Expecting property name"),
    ],
)
def test_what_is_not_plain_is_refused(data, fragment):
    """Each fault is a CheckpointError that says where and what, in four lines."""
    with pytest.raises(CheckpointError) as caught:
        load_json(data, "index.json")
    assert fragment in caught.value.got
    assert caught.value.where.startswith("index.json")
    assert len(str(caught.value).splitlines()) == 4


def test_the_deepest_that_is_allowed_passes():
    """A value nested 128 deep is read; a pair of surrogates is one character."""
    value = load_json(b"[" * DEPTH_LIMIT + b"]" * DEPTH_LIMIT, "x")
    for _ in range(DEPTH_LIMIT - 1):
        (value,) = value
    assert value == []
    assert load_json(b'"\\ud83d\\ude00"', "x") == "\U0001f600"


def test_the_limit_counts_bytes():
    """A document as long as the limit is read, one byte more is not."""
    assert load_json(b"[1, 2]", "x", limit=6) == [1, 2]
    with pytest.raises(CheckpointError, match="at most 5 bytes"):
        load_json(b"[1, 2]", "x", limit=5)


@given(st.binary(max_size=60) | st.text('{}[]",:0123456789eE+-.\\u dnaNtrueflsIity', max_size=40).map(str.encode))
@example(b'{"a":1,"a":1}')
def test_any_bytes_are_json_or_refused(data):
    """Whatever the bytes, the answer is Python's own or a CheckpointError."""
    try:
        value = load_json(data, "x")
    except CheckpointError:
        return
    assert value == json.loads(data)


def test_a_file_is_read_whole(tmp_path):
    """read_json gives what the file spells, under the same rules."""
    path = tmp_path / "config.json"
    path.write_text('{"a": [1, 2.5, "\u00e9"]}', encoding="utf-8")
    assert read_json(path) == {"a": [1, 2.5, "\u00e9"]}
    path.write_bytes(b'{"a": 1, "a": 2}')
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_json(path)


def test_a_file_too_large_is_not_read(tmp_path):
    """A sparse file of a terabyte is refused by its size."""
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(CheckpointError, match="too large") as caught:
        read_json(path)
    assert caught.value.got == f"{1 << 40} bytes"


def test_a_missing_file_or_a_fifo_is_an_error_at_once(tmp_path):
    """Neither hangs nor escapes as an OSError of Python's own."""
    os.mkfifo(tmp_path / "config.json")
    for path in (tmp_path / "config.json", tmp_path / "nothing.json", tmp_path):
        with pytest.raises(WiseftError):
            read_json(path)


@pytest.mark.parametrize("value", [None, [], "text", 1, True])
def test_only_an_object_is_a_mapping(value):
    """as_mapping gives an object back and refuses the rest."""
    assert as_mapping({"a": value}, "x") == {"a": value}
    with pytest.raises(CheckpointError, match="not a JSON object"):
        as_mapping(value, "x")
