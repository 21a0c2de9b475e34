"""keep="best": one working folder that goes from alpha to alpha, and in the end the very folder of a single run."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import sys
import threading
import time

import pytest
import torch
from folders import low_rank, tree, weights, write_adapter, write_base
from hypothesis import given
from hypothesis import strategies as st
from strategies import tunings

from wiseft_core import errors, save_checkpoint, save_sweep, sweep, sweeping
from wiseft_core.evaluation import Metric
from wiseft_core.schedules import canonical
from wiseft_core.store.files import Files

MODULES = ["model.layers.0.q_proj", "model.layers.1.q_proj"]
SPLIT = [
    ["model.embed_tokens.weight", "lm_head.weight"],
    ["model.layers.0.q_proj.weight", "model.layers.0.q_proj.bias"],
]
SPLIT.append([name for name in weights() if name not in SPLIT[0] + SPLIT[1]])
ALPHAS = (0.3, 1, 0, 0.7)
ACC = Metric("acc", "max")
UNTOUCHED, *TOUCHED = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]


@pytest.fixture(params=[SPLIT, None], ids=["sharded", "single"])
def any_place(request, tmp_path):
    """A base in one or three files with an adapter of factors and rows."""
    tensors = low_rank(weights(), MODULES)
    tensors["base_model.model.model.norm.weight"] = torch.full((6,), 2.0)
    return write_base(tmp_path / "base", weights(), request.param), write_adapter(
        tmp_path / "adapter", tensors, modules_to_save=["norm"]
    )


@pytest.fixture
def place(tmp_path):
    """A base of three shards, the first untouched, with a LoRA, and a file beside them."""
    base = write_base(tmp_path / "base", weights(), SPLIT)
    (base / "sub").mkdir()
    (base / "sub" / "vocab.txt").write_text("some words\n")
    return base, write_adapter(tmp_path / "adapter", low_rank(weights(), MODULES))


def preferring(best, then=lambda path: None):
    """An evaluation that likes one alpha most, after it has done something else to the folder."""

    def evaluate(path):
        then(path)
        return {"acc": float(path.name == f"alpha-{canonical(best)}")}

    return evaluate


def kept(views, out, evaluate, **options):
    """Sweep the views and keep the best."""
    return save_sweep(views, out, evaluate=evaluate, metrics=[ACC], keep="best", sync=False, **options)


def single(view, folder):
    """The tree of a run of its own."""
    save_checkpoint(view, folder, sync=False)
    content = tree(folder)
    shutil.rmtree(folder)
    return content


def inside(out):
    """The folders in an output."""
    return sorted(path.name for path in out.iterdir() if path.is_dir())


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("best", ALPHAS)
def test_the_best_is_that_of_a_single_run(any_place, tmp_path, monkeypatch, best, threads):
    """Whichever wins, in whatever order, it is there alone: all its files, the manifest included."""
    monkeypatch.setattr("wiseft_core.tiles.TILE", 12)
    monkeypatch.setattr("wiseft_core.tasks.CHUNK", 24)
    views = sweep(*any_place, ALPHAS)
    report = kept(views, tmp_path / "out", preferring(best), threads=threads)
    name = f"alpha-{canonical(best)}"
    assert inside(tmp_path / "out") == [name] and report.best.folder == name
    assert tree(tmp_path / "out" / name) == single(views[ALPHAS.index(best)], tmp_path / "single")
    assert [one.folder for one in report.evaluations] == [name if alpha == best else None for alpha in ALPHAS]
    assert [one.path for one in report.reports] == [str(tmp_path / "out" / name)]
    assert set(report.reports[0].files) == tree(tmp_path / "out" / name).keys() - {"wiseft.json"}
    assert json.loads((tmp_path / "out" / "sweep.json").read_text()) == json.loads(json.dumps(report.as_dict()))


@given(tunings(), st.permutations([0.0, 1.0, 0.3, 1e-300]), st.integers(0, 3))
def test_tensors_in_memory(tmp_path_factory, tuning, alphas, best):
    """Any base and adapter in memory, in any order of alphas."""
    folder = tmp_path_factory.mktemp("memory")
    views = sweep(**tuning.arguments, alphas=alphas, overflow="saturate")
    kept(views, folder / "out", preferring(alphas[best]))
    (name,) = inside(folder / "out")
    assert tree(folder / "out" / name) == single(views[best], folder / "single")


class Writes(Files):
    """Where in which file something is written, and the most bytes of weights that there are at any time."""

    def __init__(self, root):
        self.root, self.log, self.most = root, [], 0

    def _note(self, path, offset, count):
        self.log.append((path.name, offset, offset + count))
        there = [file.stat().st_size for file in self.root.rglob("*.safetensors") if "staging" in str(file)]
        self.most = max(self.most, sum(there))

    def write_at(self, descriptor, buffer, offset, path):
        super().write_at(descriptor, buffer, offset, path)
        self._note(path, offset, memoryview(buffer).nbytes)

    def copy_range(self, source, start, target, offset, count, path):
        super().copy_range(source, start, target, offset, count, path)
        self._note(path, offset, count)


def test_only_touched_tensors_are_written_again(place, tmp_path, monkeypatch):
    """From alpha to alpha: those tensors' bytes, and headers; there are never more than one output's bytes."""
    files, begun = Writes(tmp_path), []
    monkeypatch.setattr(sweeping, "FILES", files)
    evaluate = preferring(0.3, lambda path: begun.append(len(files.log)))
    kept(sweep(*place, ALPHAS), tmp_path / "out", evaluate)
    shards = {path.name: path.read_bytes() for path in place[0].glob("*.safetensors")}
    assert files.most == sum(map(len, shards.values()))
    touched, headers = {}, {}
    for name, data in shards.items():
        start = 8 + int.from_bytes(data[:8], "little")
        headers[name] = (0, start)
        for key, entry in json.loads(data[8:start]).items():
            if key in {f"{module}.weight" for module in MODULES}:
                touched[name] = tuple(start + at for at in entry["data_offsets"])
    assert sorted(touched) == TOUCHED and len(begun) == 4
    last = max(at for at, (name, *_) in enumerate(files.log) if name == UNTOUCHED)
    for first, end in zip(begun, [*begun[1:], last - 1], strict=True):  # the last thing is to finish all shards
        for name, low, high in files.log[first:end]:
            if name not in shards:
                continue
            inside_touched = touched.get(name, (0, 0))[0] <= low <= high <= touched.get(name, (0, 0))[1]
            assert inside_touched or (low, high) == headers[name], (name, low, high)
        written = {name for name, low, _ in files.log[first:end] if low > 0}
        assert written == set(TOUCHED)
    assert next(entry[1:] for entry in files.log[last:] if entry[0] in shards) == headers[UNTOUCHED]


def test_an_evaluation_sees_what_a_single_run_would_write(place, tmp_path):
    """Each time the same names, and no weights of another alpha; what an evaluation left or changed is gone."""
    views, seen = sweep(*place, ALPHAS), {}

    def litter(path):
        seen[path.name] = tree(path)
        (path / "cache").mkdir()
        (path / "cache" / "logits.pt").write_bytes(b"stale")
        (path / ".hidden").write_bytes(b"")
        (path / "link").symlink_to(place[0])
        (path / "config.json").write_text("{}")
        shutil.rmtree(path / "sub")

    kept(views, tmp_path / "out", preferring(0, litter))
    for alpha, view in zip(ALPHAS, views, strict=True):
        whole = single(view, tmp_path / "single")
        if alpha == 0:
            assert tree(tmp_path / "out" / "alpha-0") == whole
        del whole["wiseft.json"]
        assert seen[f"alpha-{canonical(alpha)}"] == whole
    assert len(tree(place[0])) == 6


def flip(path):
    """Change one byte in place."""
    with open(path, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))


def replaced(path):
    """Another file of the same size and mtime."""
    status, data = path.stat(), path.read_bytes()
    path.unlink()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def disguised(path):
    """A byte changed in place, and the mtime put back."""
    status = path.stat()
    time.sleep(0.02)
    flip(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


SPOILT = {
    "flipped": lambda path: time.sleep(0.02) or flip(path),
    "truncated": lambda path: os.truncate(path, 100),
    "removed": os.unlink,
    "replaced": replaced,
    "disguised": disguised,
    "a link": lambda path: (path.rename(path.with_suffix(".x")), path.symlink_to(path.with_suffix(".x"))),
}


@pytest.mark.parametrize("shard", [UNTOUCHED, TOUCHED[0]], ids=["untouched", "touched"])
@pytest.mark.parametrize("how", SPOILT)
def test_an_evaluation_that_changes_weights_is_refused(place, tmp_path, how, shard):
    """However it is done: an error that names the folder, no output, and nothing beside the inputs."""
    before = tree(place[0])
    with pytest.raises(errors.CheckpointError) as caught:
        kept(sweep(*place, ALPHAS), tmp_path / "out", preferring(1, lambda path: SPOILT[how](path / shard)))
    assert "alpha-0.3" in caught.value.where and "evaluated" in caught.value.where and caught.value.hint
    assert sorted(os.listdir(tmp_path)) == ["adapter", "base"] and tree(place[0]) == before


@pytest.mark.parametrize("how", [*SPOILT, "all removed"])
def test_where_all_are_kept_it_is_that_outputs_failure(place, tmp_path, how):
    """Its numbers are of weights that are not there any more; the others' results stand, and the best is of them."""

    def spoil(path):
        if path.name != "alpha-1":
            return
        if how == "all removed":
            shutil.rmtree(path)
        else:
            SPOILT[how](path / TOUCHED[0])

    views, options = sweep(*place, ALPHAS), {"evaluate": preferring(1, spoil), "metrics": [ACC]}
    report = save_sweep(views, tmp_path / "out", **options)
    failed = [one for one in report.evaluations if one.error is not None]
    assert [one.alpha for one in failed] == ["1"] and "changed while it was evaluated" in failed[0].error.where
    assert not report.ok and report.best.alpha != "1"
    record = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert [one["alpha"] for one in record["outputs"] if one["metrics"] is None] == ["1"]


@pytest.mark.parametrize("when", [0.3, 0.7], ids=["first", "last"])
def test_an_input_that_changes_meanwhile_is_named(place, tmp_path, when):
    """A base that is written to or truncated during an evaluation, the last one too: exit 6 and no output."""
    for change in (flip, lambda path: os.truncate(path, 150)):

        def then(path, change=change):
            if path.name == f"alpha-{when}":
                change(place[0] / TOUCHED[0])

        with pytest.raises(errors.InputChanged):
            kept(sweep(*place, ALPHAS), tmp_path / "out", preferring(0.7, then))
        assert sorted(os.listdir(tmp_path)) == ["adapter", "base"]


def test_failures_are_never_the_best(place, tmp_path):
    """Of four evaluations three fail: the fourth is kept, and the record shows why the others are not."""

    def evaluate(path):
        return {"acc": 0.0} if path.name == "alpha-1" else {"loss": 1.0}

    views = sweep(*place, ALPHAS)
    report = kept(views, tmp_path / "out", evaluate)
    assert inside(tmp_path / "out") == ["alpha-1"] and not report.ok
    assert tree(tmp_path / "out" / "alpha-1") == single(views[1], tmp_path / "single")
    assert [one.error is None for one in report.evaluations] == [False, True, False, False]


def test_all_failed(place, tmp_path):
    """No best, so nothing: an error that holds every failure, in the order of the alphas."""

    def evaluate(path):
        raise RuntimeError(path.name)

    with pytest.raises(errors.EvaluationFailed) as caught:
        kept(sweep(*place, ALPHAS), tmp_path / "out", evaluate)
    told = [caught.value, *caught.value.others]
    assert [one.got for one in told] == [f"RuntimeError: alpha-{canonical(alpha)}" for alpha in ALPHAS]
    assert caught.value.exit_code == 1
    assert sorted(os.listdir(tmp_path)) == ["adapter", "base"]


def test_an_interrupt_in_python_leaves_nothing(place, tmp_path):
    """Ctrl-C is no failed evaluation: with keep="best" nothing is left, with "all" what was published."""

    def evaluate(path):
        if path.name == "alpha-1":
            raise KeyboardInterrupt
        return 0.5

    views = sweep(*place, ALPHAS)
    with pytest.raises(KeyboardInterrupt):
        kept(views, tmp_path / "out", evaluate)
    assert sorted(os.listdir(tmp_path)) == ["adapter", "base"]
    with pytest.raises(KeyboardInterrupt):
        save_sweep(views, tmp_path / "out", evaluate=evaluate, metrics=[ACC], sync=False)
    assert sorted(os.listdir(tmp_path)) == ["adapter", "base", "out"]
    record = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert [one["metrics"] for one in record["outputs"]] == [{"acc": 0.5}, None, None, None]
    assert tree(tmp_path / "out" / "alpha-0.7") == single(views[3], tmp_path / "single")


@pytest.mark.parametrize("keep", ["all", "best"])
def test_an_interrupt_leaves_no_child(place, tmp_path, keep):
    """Ctrl-C while a command runs: it and what it has started are gone, and so is the staging folder."""
    seen = tmp_path / "pids"
    code = f"""if 1:
        import os, time
        other = os.fork()
        if other:
            with open({str(seen)!r} + "x", "w") as file: file.write(f"{{os.getpid()}} {{other}}")
            os.rename({str(seen)!r} + "x", {str(seen)!r})
        time.sleep(100)
    """

    def interrupt():
        while not seen.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    command = shlex.join([sys.executable, "-I", "-S", "-c", code, "{model}"])
    with pytest.raises(KeyboardInterrupt):
        save_sweep(sweep(*place, ALPHAS), tmp_path / "out", evaluate=command, metrics=[ACC], keep=keep)
    thread.join()
    assert sorted(os.listdir(tmp_path)) == ["adapter", "base", *(["out"] if keep == "all" else []), "pids"]
    for child in map(int, seen.read_text().split()):
        for _ in range(500):
            if not is_alive(child):
                break
            time.sleep(0.01)
        assert not is_alive(child)


def is_alive(child):
    """Whether a process runs still; one that is dead and not yet waited for does not."""
    try:
        with open(f"/proc/{child}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
