"""The manifest: one spelling, read strictly, and true of the folder."""

from __future__ import annotations

import copy
import json
from importlib import resources

import jsonschema
import pytest
from blake3 import blake3

from wiseft_core.errors import BadAlpha, CheckpointError, Fault, UnclaimedKey
from wiseft_core.store.files import FILES
from wiseft_core.store.manifest import InputFile, OutputFile, build_manifest, check_outputs, parse_manifest

D = "0123456789abcdef" * 4
FIELDS = {
    "version": "0.1.0",
    "alpha": "0.5",
    "adapters": [{"method": "lora", "tensors": 14, "targets": ["q", "v"]}],
    "inputs": [
        InputFile("base", "model.safetensors", 10, blake3_header=D),
        InputFile("base", "config.json", 3, blake3=D),
        InputFile("adapter", "adapter_model.safetensors", 7, D, D),
    ],
    "outputs": [OutputFile("sub/größe.txt", 0, D), OutputFile("model.safetensors", 10, D)],
    "policy": {"output_dtype": "base", "compute_dtype": "F64", "overflow": "error", "extrapolate": False},
}


def schema(name):
    text = resources.files("wiseft_core").joinpath("schemas", f"{name}.schema.json").read_text("utf-8")
    jsonschema.Draft202012Validator.check_schema(json.loads(text))
    return jsonschema.Draft202012Validator(json.loads(text))


def test_the_bytes_are_canonical():
    """Sorted keys and files, two spaces, ASCII, a newline at the end: exactly this text."""
    expected = {
        "adapters": [{"method": "lora", "targets": ["q", "v"], "tensors": 14}],
        "alpha": "0.5",
        "format": "wiseft/1",
        "inputs": [
            {"blake3": D, "bytes": 3, "file": "config.json", "role": "base"},
            {"blake3_header": D, "bytes": 10, "file": "model.safetensors", "role": "base"},
            {"blake3": D, "blake3_header": D, "bytes": 7, "file": "adapter_model.safetensors", "role": "adapter"},
        ],
        "outputs": [
            {"blake3": D, "bytes": 10, "file": "model.safetensors"},
            {"blake3": D, "bytes": 0, "file": "sub/größe.txt"},
        ],
        "policy": {"compute_dtype": "F64", "extrapolate": False, "output_dtype": "base", "overflow": "error"},
        "wiseft": "0.1.0",
    }
    data = build_manifest(**FIELDS)
    assert data == sealed(expected)


def test_the_bytes_do_not_depend_on_the_order_of_arguments():
    """Files in another order, keys in another order: the same bytes."""
    turned = {key: list(reversed(value)) if key in ("inputs", "outputs") else value for key, value in FIELDS.items()}
    turned["policy"] = dict(reversed(FIELDS["policy"].items()))
    assert build_manifest(**turned) == build_manifest(**FIELDS)


@pytest.mark.parametrize(
    "alpha", ["0", "1", "-0.25", "0.000001", "1e-7", "-2.5e+16", "1e-300", {"*.mlp.*": "0.5", "*": "1"}, {}]
)
def test_what_is_built_reads_back(alpha):
    """Every field survives, and the JSON fits the schema that ships with the package."""
    data = build_manifest(**{**FIELDS, "alpha": alpha})
    seen = parse_manifest(data, "x")
    assert (seen.version, seen.alpha, seen.policy) == ("0.1.0", alpha, FIELDS["policy"])
    assert list(seen.adapters) == FIELDS["adapters"]
    assert set(seen.inputs) == set(FIELDS["inputs"]) and set(seen.outputs) == set(FIELDS["outputs"])
    schema("manifest").validate(json.loads(data))


def sealed(table):
    """The text of a manifest with its own digest put right, as anybody could compute it."""
    rest = {key: value for key, value in table.items() if key != "blake3"}
    own = blake3(json.dumps(rest, indent=2, sort_keys=True).encode()).hexdigest()
    return (json.dumps({**rest, "blake3": own}, indent=2, sort_keys=True) + "\n").encode()


def edit(path, value):
    """The manifest with the value at `path` replaced, or removed if it is `...`."""
    table = copy.deepcopy(json.loads(build_manifest(**FIELDS)))
    at = table
    for step in path[:-1]:
        at = at[step]
    if value is ...:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return table


BROKEN = [
    *[((key,), ...) for key in ("format", "wiseft", "alpha", "adapters", "inputs", "outputs", "policy")],
    *[((key,), None) for key in ("format", "wiseft", "alpha", "adapters", "inputs", "outputs", "policy")],
    (("time",), "now"), (("format",), "wiseft/2"), (("wiseft",), ""), (("wiseft",), 1),
    *[(("alpha",), value) for value in (0.5, "0.50", "-0", "nan", ".5", "05", "1.", "", "0.5\n", ["1"])],
    *[(("alpha",), value) for value in ("1e-3", "1e16", "1e-07", "10e-7", "1.0e-7", "0e-7")],
    (("alpha",), {"*": 0.5}), (("alpha",), {"*": "0.50"}),
    (("adapters",), {}), (("adapters",), ["lora"]), (("policy",), []), (("policy", "overflow"), 1),
    (("inputs",), {}), (("inputs", 0, "role"), "tuned"), (("inputs", 0, "blake3"), ...), (("inputs", 0, "path"), "/x"),
    (("inputs", 0, "blake3_header"), None),
    *[(("outputs", 0, key), ...) for key in ("file", "bytes", "blake3")],
    *[(("outputs", 0, "file"), value) for value in ("", "/x", "../x", "a/../x", "a//b", "a/", "./a", ".", "a/..", 1)],
    *[(("outputs", 0, "bytes"), value) for value in (-1, "1", True, None, 1.5)],
    *[(("outputs", 0, "blake3"), value) for value in (D.upper(), D[1:], D + "0", "g" * 64, D + "\n", None)],
]  # fmt: skip


@pytest.mark.parametrize(("path", "value"), BROKEN, ids=str)
def test_what_is_broken_is_refused_and_does_not_fit_the_schema(path, value):
    """Reader and schema agree on each broken field; the error says which file."""
    table = edit(path, value)
    with pytest.raises(CheckpointError) as caught:
        parse_manifest(sealed(table), "out/wiseft.json")
    assert caught.value.where.startswith("out/wiseft.json") and caught.value.expected and caught.value.hint
    with pytest.raises(jsonschema.ValidationError):
        schema("manifest").validate(table)


def test_no_bit_can_flip_unseen():
    """Whichever bit of a manifest flips, it is refused."""
    data = build_manifest(**FIELDS)
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CheckpointError):
            parse_manifest(bytes(damaged), "x")


def test_names_with_dots_are_plain():
    """Dots do not make a name a way out: `.hidden`, `..x`, `a..b` and `...` are files; reader and schema agree."""
    for name in (".hidden", "..x", "a..b", "...", "sub/.x", "a\nb"):
        table = edit(("outputs", 0, "file"), name)
        assert name in [entry.file for entry in parse_manifest(sealed(table), "x").outputs]
        schema("manifest").validate(table)


@pytest.mark.parametrize("text", [b"", b"[]", b'{"format": "wiseft/1", "format": "wiseft/1"}', b"\xff", b"{" * 999])
def test_what_is_no_manifest_is_refused(text):
    """Anything that is not one strict JSON object is a CheckpointError."""
    with pytest.raises(CheckpointError):
        parse_manifest(text, "x")


@pytest.mark.parametrize("outputs", [["a", "a"], ["wiseft.json"]])
def test_no_file_is_listed_twice(outputs):
    """Each output once, and the manifest, which cannot hold its own digest, not at all; nor can one be built."""
    with pytest.raises(CheckpointError, match=f"got +{outputs[0]}"):
        build_manifest(**{**FIELDS, "outputs": [OutputFile(name, 1, D) for name in outputs]})


@pytest.fixture
def output(tmp_path):
    """A folder with two files, and its manifest."""
    files = {"model.safetensors": b"m" * 5_000_000, "sub/empty.txt": b""}
    (tmp_path / "sub").mkdir()
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    entries = [OutputFile(name, len(data), blake3(data).hexdigest()) for name, data in files.items()]
    data = build_manifest(**{**FIELDS, "outputs": entries})
    (tmp_path / "wiseft.json").write_bytes(data)
    return tmp_path, parse_manifest(data, "x")


def test_a_whole_output_has_no_problems(output):
    """What was written checks out."""
    assert check_outputs(*output, FILES) == []


def test_every_damage_is_found_at_once(output):
    """One changed byte, a file that is not listed, one that is gone: each is told, by name."""
    folder, manifest = output
    with open(folder / "model.safetensors", "r+b") as file:
        file.seek(4_500_000)
        file.write(b"x")
    (folder / "sub" / "empty.txt").rename(folder / "sub" / "moved.txt")
    found = dict(check_outputs(folder, manifest, FILES))
    assert list(found) == ["model.safetensors", "sub/empty.txt", "sub/moved.txt"]
    assert "digests differ" in found["model.safetensors"]
    assert (found["sub/empty.txt"], found["sub/moved.txt"]) == ("missing", "not in the manifest")


def test_another_size_is_told_without_reading(output):
    """A truncated file is a problem that says both sizes; a folder in a file's place is one too."""
    folder, manifest = output
    with open(folder / "model.safetensors", "r+b") as file:
        file.truncate(7)
    (folder / "sub" / "empty.txt").unlink()
    (folder / "sub" / "empty.txt").symlink_to(folder)
    assert check_outputs(folder, manifest, FILES) == [
        ("model.safetensors", "7 bytes, not the 5000000 that were written"),
        ("sub/empty.txt", "not a regular file"),
    ]


def test_errors_fit_their_schema():
    """`as_dict` of an error, with others inside, fits error.schema.json; without its exit code it does not."""
    error = Fault("disk", expected="e", got="g", hint="h", others=[BadAlpha("x"), UnclaimedKey("y")])
    schema("error").validate(error.as_dict())
    table = {key: value for key, value in error.as_dict().items() if key != "exit_code"}
    with pytest.raises(jsonschema.ValidationError):
        schema("error").validate(table)
