"""A sweep: every folder is that of a single run, byte for byte, from one pass over the base."""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter
from importlib.resources import files as resources

import numpy as np
import pytest
import torch
from folders import low_rank, read_all, tree, weights, write_adapter, write_base
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from strategies import alphas as some_alphas
from strategies import tunings

from wiseft_core import errors, interpolate, save_checkpoint, save_sweep, sweep, sweeping, verify
from wiseft_core.evaluation import Metric
from wiseft_core.families import FAMILIES
from wiseft_core.schedules import canonical
from wiseft_core.store.checkpoint import Checkpoint
from wiseft_core.store.files import FILES, Files
from wiseft_core.store.writer import ShardWriter

MODULES = ["model.layers.0.q_proj", "model.layers.1.q_proj"]
SPLIT = [
    ["model.embed_tokens.weight", "lm_head.weight"],
    ["model.layers.0.q_proj.weight", "model.layers.0.q_proj.bias"],
]
SPLIT.append([name for name in weights() if name not in SPLIT[0] + SPLIT[1]])
ALPHAS = (0, 0.3, 1, 1e-300, -0.5)
ACC, LOSS = Metric("acc", "max"), Metric("loss", "min")
LORA = low_rank(weights(), MODULES)
PREFIX = "base_model.model."
ROWS = f"{PREFIX}model.embed_tokens.token_adapter.trainable_tokens_delta"
ADAPTERS = {
    "lora": (LORA, {}),
    "dora": (low_rank(weights(), MODULES, dora=True), {"use_dora": True}),
    "saved": (LORA | {f"{PREFIX}model.norm.weight": torch.full((6,), 2.0)}, {"modules_to_save": ["norm"]}),
    "bias": (LORA | {f"{PREFIX}{name}.bias": torch.arange(8.0) for name in MODULES}, {"bias": "all"}),
    "rows": (LORA | {ROWS: torch.arange(18.0).reshape(3, 6)}, {"trainable_token_indices": [7, 0, 10]}),
    "head": (
        LORA | {f"{PREFIX}score.weight": torch.arange(18.0).reshape(3, 6)},
        {"modules_to_save": ["score"], "task_type": "SEQ_CLS"},
    ),
}


def pair(folder, kind="lora", shards=SPLIT, dtype=torch.bfloat16):
    """A base and an adapter of a kind, on disk."""
    base = write_base(folder / "base", weights(dtype=dtype), shards)
    if kind == "full":
        return base, write_base(folder / "tuned", weights(seed=5, dtype=dtype), None)
    tensors, config = ADAPTERS[kind]
    return base, write_adapter(folder / "adapter", tensors, **config)


@pytest.fixture
def place(tmp_path):
    """A sharded base with a LoRA; its first shard has no tensor that is touched."""
    return pair(tmp_path)


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles and tasks so small that tensors have several."""
    monkeypatch.setattr("wiseft_core.tiles.TILE", 12)
    monkeypatch.setattr("wiseft_core.tasks.CHUNK", 24)


def name_of(alpha):
    """The folder of an alpha."""
    return f"alpha-{canonical(alpha['*'] if isinstance(alpha, dict) else alpha)}"


def check_singles(folder, views, alphas, **options):
    """Sweep the views, and compare each folder with that of a run of its own; the trees by folder name."""
    report = save_sweep(views, folder / "out", sync=False, **options)
    found = {}
    for alpha, view in zip(alphas, views, strict=True):
        name = name_of(alpha)
        save_checkpoint(view, folder / "single" / name, sync=False, **options)
        found[name] = tree(folder / "out" / name)
        assert found[name] == tree(folder / "single" / name)
    assert sorted(os.listdir(folder / "out")) == sorted([*found, "sweep.json"])
    assert [one.path for one in report.reports] == [str(folder / "out" / name) for name in found]
    assert all(
        set(one.files) == found[name].keys() - {"wiseft.json"} for name, one in zip(found, report.reports, strict=True)
    )
    return found


@pytest.mark.parametrize("shards", [None, SPLIT], ids=["single", "sharded"])
@pytest.mark.parametrize(("kind", "threads"), [*zip(ADAPTERS, (1, 2, 4, 1, 2, 4), strict=True), ("full", 4)])
def test_every_folder_is_that_of_a_single_run(tmp_path, small_tiles, kind, threads, shards):
    """All files, the manifest included: for each method, for the ends, for next to nothing and beyond."""
    (tmp_path / "single").mkdir()
    views = sweep(*pair(tmp_path, kind, shards), ALPHAS, extrapolate=True)
    found = check_singles(tmp_path, views, ALPHAS, threads=threads)
    contents = {tuple(data for name, data in one.items() if "safetensors" in name) for one in found.values()}
    assert len(contents) >= 4  # that of 1e-300 is that of 0 where nothing is as small


@pytest.mark.parametrize(
    ("of_views", "of_save"),
    [
        ({"output_dtype": "float32"}, {}), ({"output_dtype": "float16"}, {"max_shard_size": 300}),
        ({"compute_dtype": torch.float32}, {"max_shard_size": "1KB"}), ({"overflow": "saturate"}, {"threads": 3}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["rows", "full"])
def test_options_are_those_of_a_single_run(tmp_path, small_tiles, kind, of_views, of_save):
    """Dtypes, policies and new shards, at once for all."""
    (tmp_path / "single").mkdir()
    views = sweep(*pair(tmp_path, kind), ALPHAS, extrapolate=True, **of_views)
    check_singles(tmp_path, views, ALPHAS, **of_save)


def test_alpha_by_tensor_is_named_after_the_rest(place, tmp_path, small_tiles):
    """With a mapping "*" names the folder; a tensor may be the base's in one output and computed in another."""
    (tmp_path / "single").mkdir()
    alphas = [{"*": alpha, "*.0.*": 1 - alpha} for alpha in (0, 0.25, 1)]
    found = check_singles(tmp_path, sweep(*place, alphas), alphas)
    assert list(found) == ["alpha-0", "alpha-0.25", "alpha-1"]


@given(tunings(), st.lists(some_alphas, min_size=1, max_size=4, unique_by=canonical), st.sampled_from([1, 3]))
def test_tensors_in_memory(tmp_path_factory, tuning, alphas, threads):
    """Any base and adapter in memory, at any alphas."""
    folder = tmp_path_factory.mktemp("memory")
    (folder / "single").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wiseft_core.tiles.TILE", 4)
        views = sweep(**tuning.arguments, alphas=alphas, overflow="saturate")
        check_singles(folder, views, alphas, threads=threads)


def counting(calls):
    """The families, with a LoRA that counts the tiles of its delta."""
    lora = FAMILIES["lora"]
    weight = lora.parameters["weight"]

    def delta(factors, hyper):
        calls.append(1)
        return weight.delta(factors, hyper)

    counted = {**lora.parameters, "weight": weight._replace(delta=delta)}
    return {**FAMILIES, "lora": lora._replace(parameters=counted)}


@pytest.mark.parametrize(
    ("kind", "tile", "most"), [("lora", 12, 1), ("dora", 12, 1), ("dora", 4, 2), ("rows", 4, 1), ("full", 4, 1)]
)
def test_the_base_is_read_once(tmp_path, monkeypatch, kind, tile, most):
    """Each tile is read, and its delta computed, as often for five alphas as for one; norms of cut rows read it too."""
    monkeypatch.setattr("wiseft_core.tiles.TILE", tile)
    place, reads, deltas, seen = pair(tmp_path, kind), [], [], []
    real = Checkpoint.read_bytes
    for alphas in ([0.3], [0.3, 1, 0.5, 1e-300, 0.7]):
        views = sweep(*place, alphas, families=counting(deltas))
        with monkeypatch.context() as patch:
            patch.setattr(
                Checkpoint, "read_bytes", lambda self, *what: reads.append((self.path, *what)) or real(self, *what)
            )
            save_sweep(views, tmp_path / f"out{len(alphas)}", threads=2, sync=False)
        seen.append((Counter(reads), len(deltas)))
        reads.clear()
        deltas.clear()
    assert seen[0] == seen[1]
    assert len(seen[0][0]) > 8 and max(seen[0][0].values()) == most
    assert (seen[0][1] > 4) == (kind in ("lora", "rows"))


def test_no_file_is_a_link(place, tmp_path):
    """Every file of every output is a file of its own, and so are the base's."""
    save_sweep(sweep(*place, ALPHAS[:3]), tmp_path / "out")
    seen = [path.lstat() for folder in (place[0], tmp_path / "out") for path in folder.rglob("*") if path.is_file()]
    assert all(one.st_nlink == 1 for one in seen)
    assert len({one.st_ino for one in seen}) == len(seen) > 15
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))


class Cloning(Files):
    """A file system that can clone."""

    def __init__(self):
        self.cloned = []

    def clone(self, source, target, path):
        size = os.fstat(source).st_size
        assert os.fstat(target).st_size == 0
        os.pwrite(target, os.pread(source, size, 0), 0)
        self.cloned.append((path.parent.name, path.name))
        return True


def test_untouched_shards_are_cloned_where_that_is_possible(place, tmp_path, monkeypatch):
    """The same trees; of a cloned shard no tensor is copied, and of a touched one every output's is written."""
    views, written = sweep(*place, ALPHAS[:3]), []
    save_sweep(views, tmp_path / "plain")
    for method in ("write", "copy"):
        real = getattr(ShardWriter, method)
        monkeypatch.setattr(
            ShardWriter,
            method,
            lambda self, *args, real=real, **more: written.append(self.path.name) or real(self, *args, **more),
        )
    monkeypatch.setattr(sweeping, "FILES", Cloning())
    save_sweep(views, tmp_path / "cloned", threads=2)
    first, second, third = sorted(path.name for path in place[0].glob("*.safetensors"))
    assert tree(tmp_path / "cloned") == tree(tmp_path / "plain")
    assert sorted(sweeping.FILES.cloned) == [(name_of(alpha), first) for alpha in sorted(ALPHAS[:3])]
    assert set(written) == {second, third}


def test_a_real_clone_is_all_or_nothing(tmp_path):
    """Where the file system can share extents, the bytes are the same; where not, nothing is done."""
    data = os.urandom(1 << 16)
    (tmp_path / "source").write_bytes(data)
    source, target = FILES.open_read(tmp_path / "source"), FILES.create(tmp_path / "target")
    try:
        done = FILES.clone(source, target, tmp_path / "target")
    finally:
        FILES.close(source)
        FILES.close(target)
    assert (tmp_path / "target").read_bytes() == (data if done else b"")


def test_a_result_that_does_not_fit_leaves_nothing(tmp_path):
    """Of several alphas one overflows: an error that names the tensor, and no output at all."""
    base = write_base(tmp_path / "base", weights(dtype=torch.float16), SPLIT)
    adapter = write_adapter(tmp_path / "adapter", {key: tensor * 200 for key, tensor in LORA.items()})
    for keep in ({}, {"keep": "best", "evaluate": lambda path: 1.0, "metrics": [ACC]}):
        with pytest.raises(errors.NotFinite, match="q_proj"):
            save_sweep(sweep(base, adapter, [0, 1e-4, 1]), tmp_path / "out", **keep)
        assert sorted(os.listdir(tmp_path)) == ["adapter", "base"]


@pytest.mark.parametrize(
    "make",
    [lambda: torch.nn.Parameter(torch.tensor(0.25)), lambda: np.array(0.25), lambda: {"*": np.array(0.25)}],
    ids=["tensor", "array", "mapping"],
)
def test_what_is_recorded_is_what_was_computed_with(place, tmp_path, make):
    """An alpha changed in place behind the call, as an optimiser does: weights and record are of the old one."""
    alpha, wanted = make(), interpolate(*place, 0.25)
    views = sweep(*place, [alpha])
    with torch.no_grad():
        number = alpha["*"] if isinstance(alpha, dict) else alpha
        number += 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_sweep(views, tmp_path / "out")
    assert os.listdir(tmp_path / "out") and verify(tmp_path / "out" / "alpha-0.25", base=place[0], adapter=place[1]).ok
    assert all(torch.equal(views[0][name], wanted[name]) for name in wanted)


def test_the_record_of_a_finished_sweep_is_made_again(place, tmp_path):
    """`resume` over outputs that are all there, whose sweep.json was removed."""
    views = sweep(*place, [0, 0.5])
    save_sweep(views, tmp_path / "out")
    before = tree(tmp_path / "out")
    (tmp_path / "out" / "sweep.json").unlink()
    save_sweep(views, tmp_path / "out", resume=True)
    assert tree(tmp_path / "out") == before


def record_of(out):
    """sweep.json, once it has been found valid."""
    record = json.loads((out / "sweep.json").read_bytes())
    schema = json.loads((resources("wiseft_core") / "schemas" / "sweep.schema.json").read_text())
    Draft202012Validator(schema).validate(record)
    return record


def measure(path):
    """An evaluation by what was written: acc is best at 0.3, loss at 1."""
    alpha = float(path.name.removeprefix("alpha-"))
    moved = read_all(path)[f"{MODULES[0]}.weight"].double() - weights()[f"{MODULES[0]}.weight"].double()
    return {"acc": 1 - abs(alpha - 0.3), "loss": -float(moved.abs().sum()), "seen": len(os.listdir(path))}


def test_evaluations_are_written_as_they_come(place, tmp_path):
    """The record grows while evaluations run, beside complete outputs; report and file say the same."""
    known = []

    def evaluate(path):
        assert path.is_absolute() and (path / "wiseft.json").exists()
        known.append([one["alpha"] for one in record_of(path.parent)["outputs"] if one["metrics"]])
        return measure(path)

    views = sweep(*place, [0, 0.3, 1])
    report = save_sweep(views, tmp_path / "out", evaluate=evaluate, metrics=[ACC, LOSS])
    assert known == [[], ["0"], ["0", "0.3"]]
    assert record_of(tmp_path / "out") == json.loads(json.dumps(report.as_dict()))
    assert report.ok and report.best.alpha == "0.3"
    assert [one.alpha for one in report.pareto] == ["0.3", "1"] == record_of(tmp_path / "out")["pareto"]
    assert all(one.metrics["seen"] == len(tree(tmp_path / "out" / one.folder)) for one in report.evaluations)


def test_a_failure_stops_nothing_and_is_shown(place, tmp_path):
    """An alpha whose evaluation raises has an error, the others their metrics; it is never the best."""

    def evaluate(path):
        if path.name == "alpha-0.3":
            raise RuntimeError(f"no luck with {path}")
        return measure(path)

    report = save_sweep(sweep(*place, [0, 0.3, 1]), tmp_path / "out", evaluate=evaluate, metrics=[ACC])
    record = record_of(tmp_path / "out")
    assert not report.ok and report.best.alpha == "0" == record["best"]
    assert [one["metrics"] is None for one in record["outputs"]] == [False, True, False]
    assert "no luck with {model}" in record["outputs"][1]["error"]["got"]
    assert len(tree(tmp_path / "out" / "alpha-0.3")) > 3


@pytest.mark.parametrize("keep", ["all", "best"])
def test_the_record_is_the_same_everywhere(place, tmp_path, keep):
    """Two sweeps in other places: the same bytes, with no path of this machine in them, failures and pictures too."""

    def evaluate(path):
        if path.name == "alpha-1":
            return {"acc": f"{path}", "other": 1}
        if path.name == "alpha-0":
            raise ValueError(path)
        return {"acc": 0.5, 7: 7.0}

    trees = []
    for folder in (tmp_path / "here", tmp_path / "some" / "where"):
        folder.mkdir(parents=True)
        views = sweep(*place, [0, 0.3, 1])
        picture = folder / ".." / folder.name / "out" / "curve.svg"
        save_sweep(views, folder / "out", evaluate=evaluate, metrics=[ACC], keep=keep, plot=picture)
        assert os.listdir(folder) == ["out"] and record_of(folder / "out")["best"] == "0.3"
        trees.append(tree(folder / "out"))
    assert trees[0] == trees[1] and "curve.svg" in trees[0]
    assert not any(str(tmp_path).encode() in data for data in trees[0].values())


def test_numbers_of_numpy_are_numbers(place, tmp_path):
    """A mean of float32 is what an evaluation in Python gives most often."""
    import numpy as np

    views = sweep(*place, [0, 1])
    report = save_sweep(
        views, tmp_path / "out", evaluate=lambda path: {"acc": np.float32(0.5), "n": np.int64(3)}, metrics=[ACC]
    )
    assert report.ok and dict(report.evaluations[0].metrics) == {"acc": 0.5, "n": 3.0}


def test_progress_counts_all_outputs(place, tmp_path):
    """Bytes done rise to the bytes of all outputs together."""
    told = []
    save_sweep(sweep(*place, [0, 0.3]), tmp_path / "out", progress=lambda *pair: told.append(pair), threads=2)
    total = 2 * sum(tensor.nbytes for tensor in weights().values())
    assert told[-1][0] == told[-1][1] <= total
    assert [done for done, _ in told] == sorted(done for done, _ in told)


REFUSED = {
    "nothing": (lambda views: [], {}, "0 views"),
    "twice": (lambda views: [views[0].at(0.5), views[0].at(0.50)], {}, "0.5"),
    "a function": (lambda views: [views[0].at(lambda name: 0.5)], {}, "function"),
    "no star": (lambda views: [views[0].at(dict.fromkeys(views[0].touched, 0.5))], {}, "q_proj"),
    "star is a function": (lambda views: [views[0].at({"*": lambda name: 0.5})], {}, "function"),
    "no metrics": (lambda views: views, {"evaluate": "x {model}"}, "no metrics"),
    "a direction that is none": (lambda views: views, {"evaluate": max, "metrics": [ACC, Metric("a", "up")]}, "'up'"),
    "a text as metric": (lambda views: views, {"evaluate": max, "metrics": ["accuracy:max"]}, "str"),
    "no evaluation": (lambda views: views, {"metrics": [ACC]}, "without it"),
    "a picture of nothing": (lambda views: views, {"plot": "x.png"}, "without it"),
    "no model": (lambda views: views, {"evaluate": "x", "metrics": [ACC]}, "no {model}"),
    "another suffix": (lambda views: views, {"evaluate": "x {model}", "metrics": [ACC], "plot": "x.pdf"}, ".pdf"),
    "keep what": (lambda views: views, {"keep": "some"}, "'some'"),
    "best of nothing": (lambda views: views, {"keep": "best"}, "without an evaluation"),
    "best again": (
        lambda views: views,
        {"keep": "best", "evaluate": "x {model}", "metrics": [ACC], "resume": True},
        "with resume",
    ),
    "too large": (lambda views: views, {"max_bytes": "1.5KB"}, "bytes of weights"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_meant_is_refused_before_anything_is_written(place, tmp_path, case):
    """Four lines that say what was got, and nothing beside the inputs."""
    choose, options, got = REFUSED[case]
    views = choose(sweep(*place, [0, 1]))
    with pytest.raises(errors.ConfigError) as caught:
        save_sweep(views, tmp_path / "out", **options)
    assert got in caught.value.got and caught.value.expected and caught.value.hint
    assert sorted(os.listdir(tmp_path)) == ["adapter", "base"]


@pytest.mark.parametrize("metric", ["accuracy:max", ("accuracy", "max"), Metric("accuracy", "up")])
def test_what_is_no_metric_is_refused_with_what_is(place, tmp_path, metric):
    """The command line's spelling, a plain pair and a direction that is none: four lines, with how it is made."""
    with pytest.raises(errors.ConfigError) as caught:
        save_sweep(sweep(*place, [0, 1]), tmp_path / "out", evaluate="x {model}", metrics=[metric])
    assert len(str(caught.value).splitlines()) == 4
    assert 'Metric("accuracy", "max")' in caught.value.hint


def test_views_over_different_bindings_are_refused(place, tmp_path):
    """Two bindings of the very same files are two passes: refused, like a combination."""
    from wiseft_core import combine

    two = [interpolate(*place, 0.5), interpolate(*place, 1)]
    together = [combine(place[0], [(place[1], 0.5), (place[1], 0.25)])]
    for views, got in ((two, "different bindings"), (together, "a combination")):
        with pytest.raises(errors.ConfigError) as caught:
            save_sweep(views, tmp_path / "out")
        assert got in caught.value.got and not (tmp_path / "out").exists()


def test_the_size_of_all_outputs_is_limited(place, tmp_path):
    """Twice the weights is too much where one output would fit; of the best alone there is one."""
    views = sweep(*place, [0, 1])
    size = sum(file.stat().st_size for file in place[0].glob("*.safetensors"))
    with pytest.raises(errors.ConfigError):
        save_sweep(views, tmp_path / "out", max_bytes=2 * size - 1)
    save_sweep(views, tmp_path / "all", max_bytes=2 * size)
    save_sweep(views, tmp_path / "best", max_bytes=size, keep="best", evaluate=measure, metrics=[ACC])


@pytest.mark.parametrize("where", ["base", "base/out", "adapter/out", "full"])
def test_an_output_in_an_input_is_refused(place, tmp_path, where):
    """As for a single run, and as early."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    before = tree(tmp_path)
    for options in ({}, {"keep": "best", "evaluate": measure, "metrics": [ACC]}):
        with pytest.raises(errors.CheckpointError):
            save_sweep(sweep(*place, [0, 1]), tmp_path / where, **options)
    assert tree(tmp_path) == before
