"""The header: safetensors' own bytes, and a refusal for everything that is not a tiling."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize
from safetensors.torch import save

from wiseft_core.dtypes import TORCH_DTYPES
from wiseft_core.errors import CheckpointError
from wiseft_core.store.header import build_header, header_length, parse_header
from wiseft_core.types import BITS, TensorSpec

shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(lambda name: name != "__metadata__")


def raw_of(table: object) -> bytes:
    """A header with the JSON of `table`, by the format's description."""
    text = (table if isinstance(table, str) else json.dumps(table)).encode()
    return len(text).to_bytes(8, "little") + text


def entry(dtype: object = "F32", shape: object = (2,), span: object = (0, 8), **more: object) -> dict[str, object]:
    """One tensor as the header has it."""
    return {"dtype": dtype, "shape": shape, "data_offsets": span, **more}


def refusal(table: object, payload: int = 8) -> CheckpointError:
    """The error for a header with a payload of so many bytes."""
    raw = raw_of(table)
    with pytest.raises(CheckpointError) as caught:
        parse_header(raw, len(raw) + payload, "model.safetensors")
    assert caught.value.where.startswith("model.safetensors")
    assert all((caught.value.expected, caught.value.got, caught.value.hint))
    return caught.value


@st.composite
def many_specs(draw):
    """Specs of every dtype; those narrower than a byte have whole bytes in all."""
    found = {}
    for name in draw(st.lists(names, unique=True, max_size=8)):
        dtype, shape = draw(st.sampled_from(sorted(BITS))), draw(shapes)
        found[name] = TensorSpec(dtype, (*shape, 4) if BITS[dtype] < 8 else shape)
    return found


@st.composite
def torch_tensors(draw):
    """Tensors of every dtype that torch stores, in any order of names."""
    found = {}
    for name in draw(st.lists(names, unique=True, max_size=6)):
        dtype = TORCH_DTYPES[draw(st.sampled_from(sorted(TORCH_DTYPES)))]
        found[name] = torch.zeros((*draw(shapes), dtype.itemsize), dtype=torch.uint8).view(dtype)
    return found


def specs_of(tensors: dict[str, torch.Tensor]) -> dict[str, TensorSpec]:
    """What safetensors should say of `tensors`: F4 counts values, and torch holds two to an item."""
    dtypes = {dtype: name for name, dtype in TORCH_DTYPES.items()}
    found = {}
    for name, tensor in tensors.items():
        shape = list(tensor.shape)
        if dtypes[tensor.dtype] == "F4":
            shape[-1] *= 2
        found[name] = TensorSpec(dtypes[tensor.dtype], tuple(shape))
    return found


@given(torch_tensors(), st.dictionaries(names, st.text(st.characters(exclude_categories=["Cs"])), max_size=1))
def test_canonical_bytes_are_those_of_safetensors(tensors, metadata):
    """The header is byte for byte what safetensors writes for the same tensors, whatever their names."""
    header = build_header(specs_of(tensors), metadata)
    assert header.raw + bytes(header.payload) == save(tensors, metadata or None)


@given(many_specs(), st.dictionaries(names, st.text(st.characters(exclude_categories=["Cs"])), max_size=3))
@example({"F6": TensorSpec("F6_E3M2", (4,)), "F4": TensorSpec("F4", (2, 1)), "": TensorSpec("C64", ())}, {})
def test_safetensors_reads_what_we_build(specs, metadata):
    """Both layouts are valid safetensors files, for every dtype of the format and any Unicode name."""
    for canonical in (True, False):
        header = build_header(specs, metadata, canonical=canonical)
        read = dict(deserialize(header.raw + bytes(header.payload)))
        assert {name: TensorSpec(found["dtype"], tuple(found["shape"])) for name, found in read.items()} == specs
        assert {name: len(found["data"]) for name, found in read.items()} == {n: s.nbytes for n, s in specs.items()}
        assert header.start % 8 == 0


@given(many_specs(), st.dictionaries(names, names, max_size=3))
def test_parse_undoes_build(specs, metadata):
    """Specs, offsets, metadata and raw bytes come back; the order given is kept where asked for."""
    header = build_header(specs, metadata, canonical=False)
    assert parse_header(header.raw, header.size, "x") == header
    assert list(header.specs) == list(specs)
    assert list(header.metadata.items()) == list(metadata.items())
    at = 0
    for name, spec in specs.items():
        assert header.offsets[name] == at
        at += spec.nbytes
    assert header.payload == at


@given(many_specs(), st.dictionaries(names, names, max_size=3), st.randoms())
def test_canonical_bytes_do_not_depend_on_the_order_given(specs, metadata, random):
    """Shuffled arguments give the same header."""
    shuffled = random.sample(sorted(specs), len(specs))
    other = random.sample(sorted(metadata), len(metadata))
    twin = build_header({name: specs[name] for name in shuffled}, {key: metadata[key] for key in other})
    assert twin.raw == build_header(specs, metadata).raw


def test_golden_bytes():
    """The bytes of one header, written down."""
    specs = {"b": TensorSpec("BF16", (2, 3)), "a": TensorSpec("F32", ()), "e": TensorSpec("F32", (0, 4))}
    text = (
        b'{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},'
        b'"e":{"dtype":"F32","shape":[0,4],"data_offsets":[4,4]},'
        b'"b":{"dtype":"BF16","shape":[2,3],"data_offsets":[4,16]}}'
    )
    padded = text + b" " * (-len(text) % 8)
    header = build_header(specs, {"format": "pt"})
    assert header.raw == len(padded).to_bytes(8, "little") + padded
    assert (header.start, header.payload, header.size) == (len(padded) + 8, 16, len(padded) + 24)


def test_headers_of_other_writers_are_read():
    """White space around, unknown fields, any order, empty tensors between others, odd offsets: read, and kept raw."""
    table = {
        "b": entry("F32", (1,), (3, 7), extra={"deep": [1]}),
        "zero": entry("F64", (0, 2**40), (3, 3)),
        "scalar": entry("U8", (), (7, 8)),
        "a": entry("BOOL", (3,), (0, 3)),
    }
    raw = raw_of(f" \n\t{json.dumps(table)}\r\n ")
    header = parse_header(raw, len(raw) + 8, "x")
    assert list(header.specs) == ["a", "zero", "b", "scalar"]
    assert dict(header.offsets) == {"a": 0, "zero": 3, "b": 3, "scalar": 7}
    assert header.specs["zero"] == TensorSpec("F64", (0, 2**40))
    assert header.raw == raw
    assert parse_header(raw_of("{}"), 10, "x").specs == {}


@pytest.mark.parametrize(
    ("table", "payload", "fragment"),
    [
        ({"w": entry(span=(1, 9))}, 9, "a hole between the start of the payload and w"),
        ({"v": entry(), "w": entry(span=(4, 12))}, 12, "an overlap between v and w"),
        ({"v": entry(), "w": entry()}, 8, "an overlap between v and w"),
        ({"v": entry(), "w": entry("F32", (0,), (4, 4))}, 8, "an overlap between v and w"),
        ({"w": entry()}, 7, "truncated"),
        ({"w": entry()}, 9, "bytes behind the last tensor"),
        ({"w": entry(span=(8, 0))}, 8, "data_offsets [8, 0]"),
        ({"w": entry(span=(-8, 0))}, 8, "data_offsets [-8, 0]"),
        ({"w": entry(span=(0, 4))}, 8, "8 bytes for F32 [2]"),
        ({"w": entry(span=(0, 8, 9))}, 8, "data_offsets of two whole numbers"),
        ({"w": entry(span=(False, 8))}, 8, "data_offsets of two whole numbers"),
        ({"w": entry(span=(0.0, 8.0))}, 8, "data_offsets of two whole numbers"),
        ({"w": entry(span=None)}, 8, "data_offsets of two whole numbers"),
        ({"w": entry(shape=(-2,))}, 8, "each 0 to 2^48"),
        ({"w": entry(shape=(2.0,))}, 8, "each 0 to 2^48"),
        ({"w": entry(shape=(True, 2))}, 8, "each 0 to 2^48"),
        ({"w": entry(shape="2")}, 8, "each 0 to 2^48"),
        ({"w": entry(shape=(2**48 + 1, 0), span=(0, 0))}, 0, "each 0 to 2^48"),
        ({"w": entry(shape=(2**32, 2**32))}, 8, f"{2**66} bytes"),
        ({"w": entry(shape=(1,) * 16 + (2,))}, 8, "rank 17"),
        ({"w": entry("F128")}, 8, "'F128'"),
        ({"w": entry("f32")}, 8, "'f32'"),
        ({"w": entry(["F32"])}, 8, "['F32']"),
        ({"w": entry("F4", (3,), (0, 1))}, 1, "whole bytes, not 12 bits"),
        ({"w": {"dtype": "F32", "shape": [2]}}, 8, "data_offsets"),
        ({"w": None}, 8, "NoneType"),
        ({"w": [1]}, 8, "list"),
        ({"__metadata__": {"a": 1}, "w": entry()}, 8, "__metadata__, a"),
        ({"__metadata__": ["a"], "w": entry()}, 8, "not a JSON object"),
        ([1], 8, "not a JSON object"),
        ('{"w": 1, "w": 2}', 8, "said twice in one object: w"),
        ('{"__metadata__": {"a": "1", "a": "2"}}', 8, "said twice in one object: a"),
        ('{"w": {"dtype": "F32", "dtype": "F32"}}', 8, "said twice in one object: dtype"),
    ],
)
def test_what_is_not_a_tiling_is_refused(table, payload, fragment):
    """Each fault of a header is a CheckpointError that names the file, the tensor and the fault."""
    assert fragment in str(refusal(table, payload))


def test_all_bad_tensors_are_reported_together():
    """Two bad tensors and a good one: both bad ones are named."""
    error = refusal({"good": entry(), "bad": entry("F99"), "worse": entry(shape=None)})
    assert "bad" in error.where
    assert [other.where for other in error.others] == ["model.safetensors — worse"]


@pytest.mark.parametrize(
    ("first", "size", "fragment"),
    [
        (b"", 0, "truncated"),
        (b"\x08\0\0", 3, "truncated"),
        ((100).to_bytes(8, "little"), 50, "truncated"),
        ((43).to_bytes(8, "little"), 50, "truncated"),
        ((1).to_bytes(8, "little"), 50, "1 bytes of header"),
        ((2**63).to_bytes(8, "little"), 50, "is this a safetensors file?"),
        ((33 << 20).to_bytes(8, "little"), 1 << 40, f"a header of 2 to {32 << 20} bytes"),
        (b"version https://git-lfs"[:8], 130, "git lfs pull"),
    ],
)
def test_a_length_that_cannot_be_is_refused_before_anything_is_read(first, size, fragment):
    """The first eight bytes settle how much to read, within the limit and the file."""
    with pytest.raises(CheckpointError) as caught:
        header_length(first, size, "x")
    assert fragment in str(caught.value)


def test_the_limit_can_be_raised():
    """A header longer than the default limit is read where the caller allows it."""
    assert header_length((33 << 20).to_bytes(8, "little"), 1 << 40, "x", limit=64 << 20) == (33 << 20) + 8


@pytest.mark.parametrize(
    ("specs", "metadata", "fragment"),
    [
        ({"w": TensorSpec("F128", (1,))}, {}, "a dtype of safetensors"),
        ({"__metadata__": TensorSpec("F32", (1,))}, {}, "not reserved"),
        ({"w": TensorSpec("F4", (3,))}, {}, "whole bytes"),
        ({"w": TensorSpec("F32", (1,) * 17)}, {}, "rank 17"),
        ({"w": TensorSpec("F32", (-1,))}, {}, "each 0 to 2^48"),
        ({"\ud800": TensorSpec("F32", (1,))}, {}, "surrogate"),
        ({}, {"a": 1}, "text by name"),
        ({}, {1: "a"}, "text by name"),
    ],
)
def test_what_cannot_be_stored_is_not_built(specs, metadata, fragment):
    """build_header refuses what parse_header would."""
    with pytest.raises(CheckpointError) as caught:
        build_header(specs, metadata)
    assert fragment in str(caught.value)


def test_the_number_of_tensors_is_limited(monkeypatch):
    """Two tensors where two are allowed, not three."""
    monkeypatch.setattr("wiseft_core.store.header.TENSOR_LIMIT", 2)
    specs = {name: TensorSpec("U8", (1,)) for name in "abc"}
    assert len(build_header(dict(list(specs.items())[:2]), {"not": "a tensor"}).specs) == 2
    with pytest.raises(CheckpointError, match="at most 2 tensors"):
        build_header(specs, {})


def test_a_length_that_is_not_that_of_the_bytes_is_refused():
    """parse_header is given the header, no more and no less."""
    with pytest.raises(CheckpointError, match="12 bytes"):
        parse_header((4).to_bytes(8, "little") + b"{}      ", 16, "x")


@given(st.data())
def test_damaged_headers_are_refused_or_agree_with_safetensors(data):
    """Any byte of a header changed: a CheckpointError, or the very tensors that safetensors reads."""
    header = build_header({"a": TensorSpec("F32", (2,)), "b": TensorSpec("U8", (3,))}, {"k": "v"})
    raw = bytearray(header.raw)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at] = data.draw(st.integers(0, 255) | st.sampled_from(b'{}[]",:0123456789 '))
    try:
        specs = parse_header(bytes(raw), header.size, "x").specs
    except CheckpointError:
        return
    try:
        read = deserialize(bytes(raw) + bytes(header.payload))
    except SafetensorError as error:
        raise AssertionError(f"safetensors refuses it: {bytes(raw)!r}") from error
    assert {name: TensorSpec(found["dtype"], tuple(found["shape"])) for name, found in read} == specs
