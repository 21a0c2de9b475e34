"""From files to files: layout kept, bytes deterministic, complete or absent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from folders import low_rank, read_all, same_bits, tree, weights, write_adapter, write_base
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from wiseft_core import errors, interpolate, open_checkpoint, save_checkpoint
from wiseft_core import tiles as tiles_module

MODULES = ["model.layers.0.q_proj", "model.layers.1.q_proj"]
SPLIT = [["model.embed_tokens.weight", "model.layers.0.q_proj.weight", "model.layers.0.q_proj.bias"]]
SPLIT.append([name for name in weights() if name not in SPLIT[0]])


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A sharded bf16 base."""
    return write_base(tmp_path / "base", weights(), SPLIT)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A LoRA adapter for it, with a trained norm."""
    tensors = low_rank(weights(), MODULES)
    tensors["base_model.model.model.norm.weight"] = torch.full((6,), 2.0)
    return write_adapter(tmp_path / "adapter", tensors, modules_to_save=["norm"])


def test_alpha_zero_copies_every_byte(base: Path, adapter: Path, tmp_path: Path) -> None:
    """At alpha 0 every file of the base is there again, byte for byte, and only the manifest is new."""
    save_checkpoint(interpolate(base, adapter, 0), tmp_path / "out")

    out = tree(tmp_path / "out")
    assert out.pop("wiseft.json")
    assert out == tree(base)


def test_written_tensors_are_those_of_the_view(base: Path, adapter: Path, tmp_path: Path) -> None:
    """safetensors reads back exactly what the view gives, under the same shards and metadata."""
    view = interpolate(base, adapter, 0.3)
    report = save_checkpoint(view, tmp_path / "out")
    read = read_all(tmp_path / "out")

    assert read.keys() == set(view)
    assert all(same_bits(read[name], view[name]) for name in view)
    assert set(view.touched) == {"model.norm.weight", *(f"{module}.weight" for module in MODULES)}
    for file in base.glob("*.safetensors"):
        with safe_open(file, "pt") as before, safe_open(tmp_path / "out" / file.name, "pt") as after:
            assert before.metadata() == after.metadata()
            assert before.keys() == after.keys()
    assert report.touched == 3
    assert report.files == tuple(sorted(tree(tmp_path / "out").keys() - {"wiseft.json"}))


@given(st.permutations(list(weights())), st.lists(st.integers(1, 6), max_size=5), st.sampled_from([0.0, 0.25, 1.0]))
def test_shard_layout_does_not_change_bits(tmp_path_factory, names, cuts, alpha) -> None:
    """However the base is cut into files, in whatever order, each tensor comes out with the same bits."""
    folder = tmp_path_factory.mktemp("layouts")
    edges = sorted({0, len(names), *(cut for cut in cuts if cut < len(names))})
    shards = [names[start:stop] for start, stop in pairwise(edges)]
    write_base(folder / "one", weights())
    write_base(folder / "many", weights(), shards)
    write_adapter(folder / "adapter", low_rank(weights(), MODULES))
    for kind in ("one", "many"):
        save_checkpoint(interpolate(folder / kind, folder / "adapter", alpha), folder / f"{kind}-out", sync=False)
    one, many = read_all(folder / "one-out"), read_all(folder / "many-out")

    assert one.keys() == many.keys()
    assert all(same_bits(one[name], many[name]) for name in one)


@given(st.randoms(use_true_random=False))
def test_key_order_does_not_change_bytes(tmp_path_factory, random) -> None:
    """The order of keys in the adapter's file, its config and the index changes no byte of the weights."""
    folder = tmp_path_factory.mktemp("orders")
    write_base(folder / "base", weights(), SPLIT)
    tensors = low_rank(weights(), MODULES)
    shuffled = dict(random.sample(list(tensors.items()), len(tensors)))
    write_adapter(folder / "a", tensors, rank_pattern={}, use_dora=False)
    write_adapter(folder / "b", shuffled, use_dora=False, rank_pattern={})
    index = folder / "base" / "model.safetensors.index.json"
    save_checkpoint(interpolate(folder / "base", folder / "a", 0.3), folder / "out-a", sync=False)
    content = json.loads(index.read_text())
    pairs = list(content["weight_map"].items())
    index.write_text(
        json.dumps({"weight_map": dict(random.sample(pairs, len(pairs))), "metadata": content["metadata"]})
    )
    save_checkpoint(interpolate(folder / "base", folder / "b", 0.3), folder / "out-b", sync=False)

    for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
        assert (folder / "out-a" / name).read_bytes() == (folder / "out-b" / name).read_bytes()


def test_two_runs_elsewhere_give_the_same_tree(base: Path, adapter: Path, tmp_path: Path) -> None:
    """Hash seed, locale, time zone, working directory and thread count leave no trace in any byte."""
    code = "import sys; from wiseft_core import *; base, adapter, out, threads = sys.argv[1:]; "
    code += "save_checkpoint(interpolate(base, adapter, 0.3), out, threads=int(threads))"
    root = str(Path(tiles_module.__file__).parents[1])
    for number, (seed, zone, where) in enumerate([("1", "UTC", tmp_path), ("2", "Asia/Tokyo", base)]):
        env = {"PYTHONPATH": root, "PYTHONHASHSEED": seed, "TZ": zone, "LC_ALL": "C", "PATH": os.environ["PATH"]}
        arguments = [str(base), str(adapter), str(tmp_path / f"out{number}"), str(number + 1)]
        subprocess.run([sys.executable, "-c", code, *arguments], check=True, env=env, cwd=where)

    assert tree(tmp_path / "out0") == tree(tmp_path / "out1")


def test_thread_count_does_not_change_bytes(monkeypatch, base: Path, adapter: Path, tmp_path: Path) -> None:
    """One, two and four threads write the same bytes, also where a tensor has many tiles and chunks."""
    monkeypatch.setattr(tiles_module, "TILE", 12)
    monkeypatch.setattr("wiseft_core.tasks.CHUNK", 24)
    for threads in (1, 2, 4):
        save_checkpoint(interpolate(base, adapter, 0.3), tmp_path / str(threads), threads=threads)

    assert tree(tmp_path / "1") == tree(tmp_path / "2") == tree(tmp_path / "4")


def test_new_tensor_joins_its_module_or_the_last_shard(base: Path, tmp_path: Path) -> None:
    """A head that the base lacks is written as trained at every alpha, and only that header and the index change."""
    tensors = low_rank(weights(), MODULES)
    tensors["base_model.model.score.weight"] = torch.randn(3, 6)
    adapter = write_adapter(tmp_path / "adapter", tensors, modules_to_save=["score"], task_type="SEQ_CLS")
    view = interpolate(base, adapter, 0)
    save_checkpoint(view, tmp_path / "out")
    first, second = sorted(file.name for file in base.glob("*.safetensors"))
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())

    assert dict(view.plan.new) == {"score.weight": "base_model.model.score.weight"}
    assert same_bits(view["score.weight"], tensors["base_model.model.score.weight"])
    assert (tmp_path / "out" / first).read_bytes() == (base / first).read_bytes()
    assert load_file(tmp_path / "out" / second).keys() == {*SPLIT[1], "score.weight"}
    assert index["weight_map"]["score.weight"] == second
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in read_all(tmp_path / "out").values())


def test_trained_rows_leave_the_other_rows_bytes(base: Path, tmp_path: Path) -> None:
    """Only the listed rows of an embedding change; the config's order of rows is the adapter's."""
    rows = torch.randn(3, 6)
    key = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"
    adapter = write_adapter(tmp_path / "a", {key: rows}, trainable_token_indices=[7, 0, 10])
    save_checkpoint(interpolate(base, adapter, 1), tmp_path / "out")
    before, after = weights()["model.embed_tokens.weight"], read_all(tmp_path / "out")["model.embed_tokens.weight"]

    assert same_bits(after[[7, 0, 10]], rows.bfloat16())
    assert same_bits(after[[1, 2, 3, 4, 5, 6, 8, 9]], before[[1, 2, 3, 4, 5, 6, 8, 9]])


def test_output_dtype_converts_every_float_once(base: Path, adapter: Path, tmp_path: Path) -> None:
    """All float tensors take the dtype that was asked for, rounded once, and config.json says so."""
    (base / "config.json").write_text(json.dumps({"model_type": "llama", "torch_dtype": "bfloat16"}))
    exact = interpolate(base, adapter, 0.3, output_dtype="float64")
    save_checkpoint(interpolate(base, adapter, 0.3, output_dtype="float16"), tmp_path / "out")
    read = read_all(tmp_path / "out")

    assert {tensor.dtype for tensor in read.values()} == {torch.float16}
    for name, tensor in read.items():
        assert same_bits(tensor, torch.from_numpy(exact[name].numpy().astype(np.float16)))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "float16"


def test_max_shard_size_cuts_new_shards(base: Path, adapter: Path, tmp_path: Path) -> None:
    """Fresh shards hold at most so many bytes, and together every tensor."""
    view = interpolate(base, adapter, 0.3)
    save_checkpoint(view, tmp_path / "out", max_shard_size=150)
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    read = read_all(tmp_path / "out")

    assert len(files) > 2
    assert all(sum(t.nbytes for t in load_file(file).values()) <= 150 or len(load_file(file)) == 1 for file in files)
    assert all(same_bits(read[name], view[name]) for name in view)
    assert set(open_checkpoint(tmp_path / "out")) == set(view)


def test_plain_state_dict_equals_the_librarys_file(tmp_path: Path) -> None:
    """A plain mapping is written as safetensors' own save_file writes it, byte for byte."""
    tensors = {**weights(dtype=torch.float32), "count": torch.tensor(3), "empty": torch.zeros(0, 4)}
    save_checkpoint(tensors, tmp_path / "out")
    save_file(tensors, tmp_path / "theirs.safetensors", {"format": "pt"})

    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


def test_view_over_memory_follows_a_checkpoint(base: Path, adapter: Path, tmp_path: Path) -> None:
    """`like` gives a view over memory the shards and sidecars of a checkpoint: the bytes of the path to path run."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    tensors = load_file(adapter / "adapter_model.safetensors")
    view = interpolate(weights(), tensors, 0.3, config=config)
    save_checkpoint(view, tmp_path / "memory", like=base)
    save_checkpoint(interpolate(base, adapter, 0.3), tmp_path / "files")
    memory, files = tree(tmp_path / "memory"), tree(tmp_path / "files")
    del memory["wiseft.json"], files["wiseft.json"]

    assert memory == files


@pytest.mark.parametrize("place", ["base", "base/inside", "adapter/inside", "full"])
def test_output_that_exists_or_lies_in_an_input_is_refused(base: Path, adapter: Path, tmp_path: Path, place) -> None:
    """By inode, not by spelling: a link to the base's folder is the base's folder."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path)
    before = tree(tmp_path / "base")

    with pytest.raises(errors.CheckpointError) as caught:
        save_checkpoint(interpolate(base, adapter, 0.3), tmp_path / "link" / place)

    assert caught.value.exit_code == 3
    assert tree(tmp_path / "base") == before
    assert not (tmp_path / "base" / "inside").exists()


def test_overflow_midway_leaves_nothing(tmp_path: Path) -> None:
    """A result that does not fit is an error, and neither output nor staging is left; saturating is asked for."""
    big = {name: tensor.to(torch.float16) for name, tensor in weights().items()}
    base = write_base(tmp_path / "base", big)
    tensors = {key: tensor * 200 for key, tensor in low_rank(big, MODULES).items()}
    adapter = write_adapter(tmp_path / "adapter", tensors)

    with pytest.raises(errors.NotFinite):
        save_checkpoint(interpolate(base, adapter, 1), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]
    save_checkpoint(interpolate(base, adapter, 1, overflow="saturate"), tmp_path / "out")
    assert read_all(tmp_path / "out")["model.layers.0.q_proj.weight"].abs().max() == 65504


def test_input_that_changes_midway_is_detected(base: Path, adapter: Path, tmp_path: Path) -> None:
    """A base that somebody writes to during the run gives exit 6, and no output."""
    view = interpolate(base, adapter, 0.3)
    file = base / "model-00001-of-00002.safetensors"
    file.write_bytes(file.read_bytes())

    with pytest.raises(errors.InputChanged):
        save_checkpoint(view, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_full_checkpoint_in_the_adapters_place(base: Path, tmp_path: Path) -> None:
    """Original WiSE-FT: two full checkpoints, every tensor interpolated and rounded once."""
    tuned = write_base(tmp_path / "tuned", weights(seed=5))
    view = interpolate(base, tuned, 0.25)
    save_checkpoint(view, tmp_path / "out")
    read, one, two = read_all(tmp_path / "out"), weights(), weights(seed=5)

    assert set(view.touched) == set(one)
    for name in one:
        exact = one[name].double() * 0.75 + two[name].double() * 0.25  # exact: 8 bits times 2 bits, few binades
        assert same_bits(read[name], exact.to(torch.float32).to(torch.bfloat16))
    assert all(same_bits(interpolate(base, tuned, 1)[name], two[name]) for name in two)


def test_progress_is_told_and_ends_at_the_total(base: Path, adapter: Path, tmp_path: Path) -> None:
    """Bytes done rise to bytes in all."""
    told: list[tuple[int, int]] = []
    save_checkpoint(interpolate(base, adapter, 0.3), tmp_path / "out", progress=lambda *pair: told.append(pair))
    total = sum(tensor.nbytes for tensor in weights().values())

    assert told[-1] == (total, total)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


@pytest.mark.parametrize(
    "options",
    [
        *({"threads": wrong} for wrong in (0, -1, 1.5, float("nan"), True, "2")),
        *({name: wrong} for name in ("max_shard_size", "max_bytes", "memory") for wrong in (0, -1, 1.5, True, "x")),
        {"executor": "threads:2"},
    ],
    ids=str,
)
def test_options_that_cannot_be_meant_are_refused(base: Path, adapter: Path, tmp_path: Path, options) -> None:
    """No number of threads, no size, no executor: told before anything is written."""
    with pytest.raises(errors.ConfigError):
        save_checkpoint(interpolate(base, adapter, 0.5), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_views_are_compared_by_identity(base: Path, adapter: Path) -> None:
    """Neither equality nor a hash computes a tensor: views can be looked for in lists, and be keys."""
    one, other = interpolate(base, adapter, 0.5), interpolate(base, adapter, 0.5)
    assert one == one and one != other and [other, one].index(one) == 1 and {one: 1, other: 2}[one] == 1
