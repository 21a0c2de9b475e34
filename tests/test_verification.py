"""verify: sound outputs pass, anything else is found and named."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from blake3 import blake3
from folders import low_rank, weights, write_adapter, write_base
from hypothesis import given
from hypothesis import strategies as st

from wiseft_core import errors, interpolate, save_checkpoint, verify
from wiseft_core.store.header import parse_header

MODULES = ["model.layers.0.q_proj", "model.layers.1.q_proj"]
SHARDS = [list(weights())[:3], list(weights())[3:]]


def made(folder: Path, alpha: object = 0.3) -> tuple[Path, Path, Path]:
    """Base, DoRA adapter and output in a folder."""
    base = write_base(folder / "base", weights(), SHARDS)
    adapter = write_adapter(folder / "adapter", low_rank(weights(), MODULES, dora=True), use_dora=True)
    save_checkpoint(interpolate(base, adapter, alpha), folder / "out", sync=False)
    return base, adapter, folder / "out"


@pytest.mark.parametrize("alpha", [0, 0.3, 1, 1e-300, {"model.layers.0.*": 0.25, "*": 1}, lambda name: 0.5])
def test_sound_output_passes(tmp_path: Path, alpha) -> None:
    """Digests, headers and a full recomputation agree, whatever the alpha."""
    base, adapter, out = made(tmp_path, alpha)

    assert verify(out).ok
    report = verify(out, base=base, adapter=adapter)
    assert report.ok, report.problems
    assert report.checks["files"] == 4
    computed, copied = report.checks.get("tensors computed", 0), report.checks["tensors copied"]
    assert (computed, copied) == ((0, 7) if alpha == 0 else (2, 5))


@given(st.data())
def test_every_flipped_bit_is_found(tmp_path_factory, data) -> None:
    """One flipped bit in any file of the output is found by the digests, and in a payload also by recomputing."""
    base, adapter, out = made(tmp_path_factory.mktemp("flip"))
    file = data.draw(st.sampled_from(sorted(path for path in out.iterdir() if path.name != "wiseft.json")))
    content = bytearray(file.read_bytes())
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)
    report = verify(out, base=base, adapter=adapter)

    assert any(problem.file == file.name for problem in report.problems)
    raw = (base / file.name).read_bytes()
    if file.suffix == ".safetensors":
        header = parse_header(raw[: 8 + int.from_bytes(raw[:8], "little")], len(raw), file.name)
        if bit // 8 >= header.start:
            named = [p for p in report.problems if p.tensor is not None]
            assert [(p.file, p.offset) for p in named] == [(file.name, bit // 8)]
            start = header.offsets[named[0].tensor] + header.start
            assert start <= bit // 8 < start + header.specs[named[0].tensor].nbytes


def test_missing_swapped_and_extra_files_are_found(tmp_path: Path) -> None:
    """A shard that is gone, two that changed places, and a file that nobody wrote are problems."""
    one, two = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    _, _, out = made(tmp_path / "a")
    (out / one).unlink()
    assert one in {problem.file for problem in verify(out).problems}
    _, _, out = made(tmp_path / "b")
    (out / one).rename(out / "x")
    (out / two).rename(out / one)
    (out / "x").rename(out / two)
    assert {one, two} <= {problem.file for problem in verify(out).problems}
    _, _, out = made(tmp_path / "c")
    (out / "extra.txt").touch()
    assert [str(problem) for problem in verify(out).problems] == ["extra.txt: not in the manifest"]


def test_another_base_adapter_or_alpha_is_found(tmp_path: Path) -> None:
    """An output that is sound in itself but was not made from these inputs is not passed."""
    base, adapter, out = made(tmp_path)
    other = write_base(tmp_path / "other", weights(seed=9), SHARDS)
    manifest = json.loads((out / "wiseft.json").read_text())

    assert not verify(out, base=other, adapter=adapter).ok
    del manifest["blake3"]
    manifest["alpha"] = "0.4"
    manifest["blake3"] = blake3(json.dumps(manifest, indent=2, sort_keys=True).encode()).hexdigest()
    (out / "wiseft.json").write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    problems = verify(out, base=base, adapter=adapter).problems
    assert {problem.tensor for problem in problems} == {f"{module}.weight" for module in MODULES}


def test_what_cannot_be_checked_is_refused(tmp_path: Path) -> None:
    """No output, a file, no manifest, or only one of the two inputs: an error that says so."""
    base, _, out = made(tmp_path)

    with pytest.raises(errors.CheckpointError) as caught:
        verify(tmp_path / "nothing")
    assert (caught.value.where, caught.value.got) == (str(tmp_path / "nothing"), "nothing of that name")
    with pytest.raises(errors.CheckpointError) as caught:
        verify(out / "config.json")
    assert "no folder" in caught.value.got
    with pytest.raises(errors.CheckpointError):
        verify(base)
    with pytest.raises(errors.ConfigError):
        verify(out, base=base)


def test_each_of_five_hundred_flips_is_found(tmp_path: Path) -> None:
    """Five hundred single bits over payload, headers, index and manifest: the digests alone find every one."""
    _, _, out = made(tmp_path)
    draw = random.Random(0)
    files = sorted(out.iterdir())
    for number in range(500):
        file = files[number % len(files)]
        content = file.read_bytes()
        bit = draw.randrange(8 * len(content))
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        try:
            assert not verify(out).ok
        except errors.CheckpointError as refusal:
            assert file.name == "wiseft.json", refusal  # a manifest that cannot be read checks nothing
        file.write_bytes(content)
    assert verify(out).ok


def test_a_sample_is_a_quick_look(tmp_path: Path) -> None:
    """A sample of every piece finds what a full comparison finds; a smaller one compares so many pieces."""
    base, adapter, out = made(tmp_path)

    assert verify(out, base=base, adapter=adapter, sample=2).ok
    assert sum(verify(out, base=base, adapter=adapter, sample=2).checks.values()) == 2 + 2  # and two headers
    file = out / "model-00001-of-00002.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert [p.offset for p in verify(out, base=base, adapter=adapter, sample=7).problems] == [len(content) - 1]
    with pytest.raises(errors.ConfigError):
        verify(out, sample=2)


@pytest.mark.parametrize("sample", [0, -3])
def test_a_sample_of_nothing_is_refused(tmp_path: Path, sample: int) -> None:
    """It would pass whatever is there."""
    base, adapter, out = made(tmp_path)
    with pytest.raises(errors.ConfigError, match="sample"):
        verify(out, base=base, adapter=adapter, sample=sample)


def test_a_device_that_is_not_there_is_refused_at_the_call(tmp_path: Path) -> None:
    """As a ConfigError, not when the first tensor is asked for; "meta", which has no values, is not there either."""
    base, adapter, _ = made(tmp_path)
    for device in ("abacus", "cuda:99", "meta"):
        with pytest.raises(errors.ConfigError, match="device"):
            interpolate(base, adapter, 0.5, device=device)
