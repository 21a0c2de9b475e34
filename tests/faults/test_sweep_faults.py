"""A sweep that is killed, starved or stopped: all outputs are there or none, and resuming gives the very same bytes."""

from __future__ import annotations

import errno
import gc
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from faults import seam
from faults import test_oplog as oplog
from folders import low_rank, tree, write_adapter, write_base

import wiseft_core
from wiseft_core import bound, errors, save_sweep, sweep, sweeping
from wiseft_core.cli import main
from wiseft_core.evaluation import Metric
from wiseft_core.store.files import Files

ALPHAS = (0, 0.5)
ACC = Metric("acc", "max")
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
EVERY = sorted(f"alpha-{alpha}/{shard}" for alpha in ALPHAS for shard in SHARDS)


@pytest.fixture
def place(tmp_path):
    """A small job in a folder of its own, whose inputs no test may change."""
    (tmp_path / "work").mkdir()
    place = seam.small(tmp_path / "work")
    before = place.inputs()
    yield place
    assert place.inputs() == before


@pytest.fixture
def tiny(tmp_path):
    """The least job that has a touched and an untouched shard, an index and a file beside them."""
    tensors = {"q_proj.weight": torch.ones(3, 2), "norm.weight": torch.ones(2)}
    base = write_base(tmp_path / "work" / "base", tensors, [["q_proj.weight"], ["norm.weight"]])
    adapter = write_adapter(tmp_path / "work" / "adapter", low_rank(tensors, ["q_proj"]))
    place = seam.Place(base, adapter, tmp_path / "work" / "out")
    before = place.inputs()
    yield place
    assert place.inputs() == before


@pytest.fixture
def whole(place):
    """The tree of an undisturbed sweep without an evaluation."""
    return undisturbed(place)


def save(place, files=None, *, alphas=ALPHAS, resume=True, threads=1, evaluate=None, **options):
    """Run the sweep, through `files` if given."""
    before = sweeping.FILES
    sweeping.FILES = files or before
    metrics = [ACC] if evaluate is not None else ()
    try:
        views = sweep(place.base, place.adapter, alphas)
        return save_sweep(
            views, place.out, evaluate=evaluate, metrics=metrics, resume=resume, threads=threads, **options
        )
    finally:
        sweeping.FILES = before


def undisturbed(place, **options):
    """The tree of an undisturbed run, which is removed again."""
    save(place, resume=False, **options)
    content = tree(place.out)
    shutil.rmtree(place.out)
    return content


def alpha_of(path):
    """An evaluation: alpha itself."""
    return float(path.name.removeprefix("alpha-"))


def without_record(content):
    """What does not change while outputs are evaluated."""
    return {name: data for name, data in content.items() if name not in ("sweep.json", ".sweep.json.part")}


def settled(place, whole, options, *, resume, name):
    """After a kill: no output or both; the next run makes everything whole, and leaves nothing beside it."""
    left = place.left()
    assert left is None or without_record(left) == without_record(whole), name
    if left is not None and not resume:
        with pytest.raises(errors.CheckpointError, match="something is there"):
            save(place, seam.Unsynced(lambda *_: None), **options, resume=False)
        assert place.left() == left
    save(place, seam.Unsynced(lambda *_: None), **options, resume=resume or left is not None)
    assert place.left() == whole, name
    assert place.beside() == [], name
    shutil.rmtree(place.out)


@pytest.mark.parametrize("resume", [True, False], ids=["resume", "afresh"])
def test_a_kill_at_every_operation(tiny, resume):
    """Ahead of every operation that changes the disk, those that bring sweep.json up to date included."""
    log, options = [], {"evaluate": alpha_of}
    whole = undisturbed(tiny, **options)
    save(tiny, seam.Unsynced(lambda number, name, arguments: log.append(name)), **options)
    assert tiny.left() == whole
    shutil.rmtree(tiny.out)
    points = [(number, False) for number in seam.changing(log)][:: 1 if resume else 4]
    points += [(number, True) for number, name in enumerate(log, 1) if name in ("write_at", "copy_range")][::4]
    assert log.count("rename") == 4  # the record is put in place thrice
    for number, half in points:
        before = seam.killer(number, half=half)
        child = seam.fork(lambda before=before: save(tiny, seam.Unsynced(before), **options) and 0)
        assert seam.ended(child) == -signal.SIGKILL
        settled(tiny, whole, options, resume=resume, name=(number, log[number - 1], half))


def test_a_kill_at_every_operation_of_keep_best(tiny):
    """No output, or the best one; a kill leaves nothing that the next run minds."""
    log, options = [], {"evaluate": alpha_of, "keep": "best", "resume": False}
    whole = undisturbed(tiny, evaluate=alpha_of, keep="best")
    assert {name.partition("/")[0] for name in whole} == {"alpha-0.5", "sweep.json"}
    save(tiny, seam.Unsynced(lambda number, name, arguments: log.append(name)), **options)
    shutil.rmtree(tiny.out)
    for number in seam.changing(log):
        before = seam.killer(number)
        child = seam.fork(lambda before=before: save(tiny, seam.Unsynced(before), **options) and 0)
        assert seam.ended(child) == -signal.SIGKILL
        left = tiny.left()
        assert left in (None, whole)
        if left is None:
            save(tiny, seam.Unsynced(lambda *_: None), **options)
            assert tiny.left() == whole and tiny.beside() == []
        else:
            shutil.rmtree(tiny.shell, ignore_errors=True)
        shutil.rmtree(tiny.out)


@pytest.mark.parametrize("keep", ["all", "best"])
def test_a_failing_call(tiny, keep):
    """Whichever operation fails: no output or a whole one, no leftovers, and every descriptor is given back."""
    log, options = [], {"evaluate": alpha_of, "keep": keep, "resume": False}
    whole = undisturbed(tiny, evaluate=alpha_of, keep=keep)
    save(tiny, seam.Unsynced(lambda number, name, arguments: log.append(name)), **options)
    shutil.rmtree(tiny.out)
    ends = []
    gc.collect()  # what other tests have left
    descriptors = len(os.listdir("/proc/self/fd"))
    for number in [number for number, name in enumerate(log, 1) if name not in ("close", "clone")]:

        def before(count, name, arguments, number=number):
            if count == number:
                raise errors.Fault("a disk")

        try:
            save(tiny, seam.Unsynced(before), **options)
        except errors.Fault:
            ends.append((log[number - 1], tiny.out.exists()))
            assert tiny.beside() == [], (number, log[number - 1])
        else:  # it was to remove what is left beside an output
            assert tiny.left() == whole
        if len(os.listdir("/proc/self/fd")) != descriptors:
            gc.collect()  # slow; the views' files are closed with their last reference
        assert len(os.listdir("/proc/self/fd")) == descriptors, (number, log[number - 1])
        left = tiny.left() or whole
        assert without_record(left) == without_record(whole) and ".sweep.json.part" not in left
        shutil.rmtree(tiny.out, ignore_errors=True)
        shutil.rmtree(tiny.shell, ignore_errors=True)
    assert len(ends) > 100
    published = {name for name, there in ends if there}
    assert {"create", "write_at", "fsync", "rename"} <= published if keep == "all" else not published


class Recorder(oplog.Recorder):
    """A log of the least operations alone, on a disk that cannot clone."""

    def clone(self, source, target, path):
        return False

    def remove(self, path):
        Files.remove(self, path)


@pytest.mark.parametrize("keep", ["all", "best"])
def test_power_loss_leaves_nothing_or_all(tiny, keep):
    """After every prefix of a synced run what was not synced is lost: no output, or all and a whole record."""
    (tiny.out.parent / "run").mkdir()
    place = seam.Place(tiny.base, tiny.adapter, tiny.out.parent / "run" / "out")
    recorder = Recorder(place.out.parent)
    save(place, recorder, evaluate=alpha_of, keep=keep, resume=keep == "all")
    whole, records = tree(place.out), set()
    for length, state in oplog.every_state(recorder.log, random.Random(keep)):
        left = oplog.out_of(state)
        assert left is None or without_record(left) == without_record(whole), (length, recorder.log[:length][-1:])
        if left is not None:
            records.add(str([one["metrics"] for one in json.loads(left["sweep.json"])["outputs"]]))
    done = ["None", "{'acc': 0.0}", "{'acc': 0.5}"]
    steps = [(done[0], done[0]), (done[1], done[0]), (done[1], done[2])]
    assert records == {f"[{one}, {two}]" for one, two in steps[0 if keep == "all" else 2 :]}


@pytest.mark.parametrize(
    ("keep", "number"), [("all", signal.SIGTERM), ("best", signal.SIGTERM), ("all", signal.SIGHUP)], ids=str
)
def test_a_signal_ends_the_evaluation(place, tmp_path, keep, number):
    """A signal to the command while it evaluates: its exit code, the child gone; the best is not known, so not kept."""
    seen = tmp_path / "pid"
    code = f"import os, time; open({str(seen)!r}, 'w').write(f'{{os.getpid()}}.'); time.sleep(100)"
    asked = ["--eval", shlex.join([sys.executable, "-I", "-S", "-c", code, "{model}"]), "--metric", "acc:max"]
    args = ["sweep", str(place.base), str(place.adapter), str(place.out), "--alpha", "0:1:0.5", "--keep", keep]

    def job():
        signal.signal(number, signal.SIG_DFL)  # the tests may run below nohup
        return main([*args, *asked, "--quiet"])

    child = seam.fork(job)
    while not (seen.exists() and seen.read_text().endswith(".")):
        time.sleep(0.01)
    os.kill(child, number)
    assert seam.ended(child) == 128 + number
    with pytest.raises(ProcessLookupError):
        for _ in range(500):
            os.kill(int(seen.read_text()[:-1]), 0)
            time.sleep(0.01)
    assert place.out.exists() == (keep == "all") and place.beside() == []


def stopped(place, ahead_of, number=1, **options):
    """Stop the sweep by Ctrl-C ahead of an operation of a kind, for the given time."""
    seen = []

    def before(count, name, arguments):
        seen.append(name)
        if seen.count(ahead_of) == number and name == ahead_of:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save(place, seam.Unsynced(before), **options)
    assert place.shell.exists() and not place.out.exists()


def recorded(place):
    """The shards that the journal says are whole."""
    done = place.shell / "journal" / "done"
    return sorted(str(path.relative_to(done)) for path in done.rglob("*") if path.is_file())


def begun(place, **options):
    """Run the sweep; the shards that were begun anew."""
    names = []

    def before(number, name, arguments):
        if name == "allocate":
            names.append(str(arguments[2].relative_to(place.shell / "out")))

    save(place, seam.Unsynced(before), **options)
    return sorted(names)


@pytest.mark.parametrize("threads", [1, 3])
def test_finished_shards_of_both_outputs_are_kept(place, whole, threads):
    """Stopped when all shards are written, and with the record in place but not published: none is computed again."""
    for number in (1, 2):  # ahead of the rename of the record, and of the one that publishes
        stopped(place, "rename", number, threads=threads)
        assert recorded(place) == EVERY
    assert begun(place, threads=threads) == []
    assert place.left() == whole and place.beside() == []


def test_what_is_not_finished_is_done_again(place, whole):
    """Stopped midway, what has its record and digest is kept, of whichever output; the rest is made anew."""
    seen = []
    for number in range(1, 40):
        try:
            stopped(place, "fsync", number)
        except pytest.fail.Exception:  # there are not as many
            break
        kept = recorded(place)
        seen.append(len(kept))
        assert begun(place) == [name for name in EVERY if name not in kept]
        assert place.left() == whole and place.beside() == []
        shutil.rmtree(place.out)
    assert set(seen) == {0, 1, 2, 3, 4}


def test_a_shard_that_changed_since_is_done_again(place, whole):
    """A recorded shard with another byte is not taken over, the others are; strange files go."""
    stopped(place, "rename")
    path = place.shell / "out" / EVERY[2]
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    (place.shell / "out" / "alpha-0" / "mine").touch()
    (place.shell / "out" / "alpha-7").mkdir()
    assert begun(place) == [EVERY[2]]
    assert place.left() == whole and place.beside() == []


@pytest.mark.parametrize("alphas", [(0, 0.25), (0,), (0.5, 0), (0, 0.5, 1)], ids=str)
def test_resuming_another_sweep_is_refused(place, alphas):
    """Other alphas, fewer, more, or in another order: a stopped sweep is not theirs, and stays as it is."""
    stopped(place, "rename")
    before = tree(place.shell)
    with pytest.raises(errors.ConfigError, match="another job"):
        save(place, alphas=alphas)
    assert tree(place.shell) == before and not place.out.exists()


@pytest.mark.parametrize("alphas", [(0, 0.25), (0,), (0.5,), (0.5, 0), (0, 0.5, 1)], ids=str)
def test_a_finished_sweep_over_other_alphas_is_refused(place, whole, alphas):
    """What is at OUT is not what was asked for: refused, and not a byte of it changed."""
    save(place)
    with pytest.raises((errors.ConfigError, errors.CheckpointError)) as caught:
        save(place, alphas=alphas)
    assert caught.value.exit_code == 3 and caught.value.hint
    assert place.left() == whole and place.beside() == []


def test_a_single_run_and_a_sweep_of_one_are_two_jobs(place):
    """The same view at the same OUT, in another folder: neither takes what the other has left."""
    with pytest.raises(KeyboardInterrupt):
        place.save(seam.Steps(interrupt))
    with pytest.raises(errors.ConfigError, match="another job"):
        save(place, alphas=[0.5])
    place.save(resume=False)
    shutil.rmtree(place.out)
    stopped(place, "rename", alphas=[0.5])
    with pytest.raises(errors.ConfigError, match="another job"):
        place.save()


def interrupt(number, name, arguments):
    """Ctrl-C ahead of the rename."""
    if name == "rename":
        raise KeyboardInterrupt


def command(place, *, fail=""):
    """An evaluation that notes each call and gives alpha, or fails at one alpha while a file is there."""
    code = f"""if 1:
        import os, sys
        alpha = sys.argv[1].rpartition("alpha-")[2]
        with open({str(place.out.parent.parent / "calls")!r}, "a") as file: file.write(alpha + " ")
        if alpha == {fail!r} and os.path.exists({str(place.out.parent.parent / "fail")!r}): sys.exit("no")
        print(alpha)
    """
    return shlex.join([sys.executable, "-I", "-S", "-c", code, "{model}"])


def calls(place):
    """The alphas that were evaluated since the last time."""
    path = place.out.parent.parent / "calls"
    said = path.read_text().split() if path.exists() else []
    path.unlink(missing_ok=True)
    return said


def test_what_was_evaluated_is_remembered(place):
    """A finished sweep that is resumed: successes of the same command count, a failure is tried again."""
    gate = place.out.parent.parent / "fail"
    gate.touch()
    asked = {"evaluate": command(place, fail="0.5"), "alphas": (0, 0.5, 1)}
    assert not save(place, **asked).ok and calls(place) == ["0", "0.5", "1"]
    assert not save(place, **asked).ok and calls(place) == ["0.5"]
    gate.unlink()
    report = save(place, **asked)
    assert report.ok and calls(place) == ["0.5"]
    assert [dict(one.metrics) for one in report.evaluations] == [{"acc": 0.0}, {"acc": 0.5}, {"acc": 1.0}]
    assert json.loads((place.out / "sweep.json").read_text()) == json.loads(json.dumps(report.as_dict()))
    before = tree(place.out)
    assert save(place, **asked) == report and calls(place) == []
    assert place.left() == before
    save(place, evaluate=alpha_of, alphas=(0, 0.5, 1))  # a function has no name to know it by
    assert json.loads((place.out / "sweep.json").read_text())["eval"] is None
    assert save(place, **asked).ok and calls(place) == ["0", "0.5", "1"]


def test_a_stop_between_evaluations_costs_one(place):
    """Stopped while sweep.json is brought up to date for the second time: the first evaluation is remembered."""
    asked, renames = {"evaluate": command(place)}, []

    def before(number, name, arguments):
        if name == "rename" and arguments[1].name == "sweep.json":
            renames.append(1)
            if len(renames) == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save(place, seam.Unsynced(before), **asked)
    assert calls(place) == ["0", "0.5"] and ".sweep.json.part" not in place.left()
    assert save(place, **asked).ok and calls(place) == ["0.5"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda record: record["outputs"][0].pop("folder"), lambda record: record["outputs"][0]["metrics"].clear(),
        lambda record: record["outputs"][0].update(metrics={"acc": "0"}), lambda record: record.pop("eval"),
        lambda record: record["outputs"][0].update(metrics=[]), lambda record: record.update(metrics=[]),
    ],
    ids=range(6),
)  # fmt: skip
def test_an_edited_record_is_not_trusted(place, damage):
    """What does not have what was asked for is evaluated again, and nothing breaks."""
    asked = {"evaluate": command(place)}
    save(place, **asked)
    wanted, path = tree(place.out), place.out / "sweep.json"
    record = json.loads(path.read_text())
    damage(record)
    path.write_text(json.dumps(record))
    assert save(place, **asked).ok
    if path.read_bytes() != wanted["sweep.json"]:  # all was remembered
        assert [one["metrics"]["acc"] for one in json.loads(path.read_text())["outputs"]] == [0.0, 0.5]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"outputs": 3}', '{"outputs": [1, 2]}', '{"a": 1, "a": 2}'])
def test_a_broken_record_is_refused(place, text):
    """sweep.json that is no record: an error that names it or the folder, and the outputs are left alone."""
    save(place)
    (place.out / "sweep.json").write_text(text)
    before = tree(place.out)
    with pytest.raises((errors.CheckpointError, errors.ConfigError)) as caught:
        save(place)
    assert str(place.out) in caught.value.where and caught.value.exit_code == 3
    assert place.left() == before


class Full(Files):
    """A disk without space for the shard of a given number."""

    def __init__(self, number):
        self.number, self.asked = number, []

    def allocate(self, descriptor, size, path):
        self.asked.append(path)
        if len(self.asked) == self.number:
            raise errors.Fault(f"{path}", expected="space", got="ENOSPC", hint="free some") from OSError(errno.ENOSPC)
        super().allocate(descriptor, size, path)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_full_disk_is_met_before_anything_is_computed(place, monkeypatch, number):
    """No space for a shard of any output: no factor is read, no tile computed, nothing left."""
    count = []
    monkeypatch.setattr(bound.Bound, "prepare", lambda self, *given: count.append(1))
    files = Full(number)
    with pytest.raises(errors.Fault):
        save(place, files, resume=False)
    assert count == [] and len(files.asked) == number
    assert not place.out.exists() and place.beside() == []


def test_a_record_that_cannot_be_written_leaves_no_part(place, whole):
    """No space for sweep.json once outputs are published: the fault is told, the old record stays, alone."""

    def before(number, name, arguments):
        if name == "write_at" and arguments[3].name == ".sweep.json.part" and place.out.exists():
            raise errors.Fault("full")

    with pytest.raises(errors.Fault):
        save(place, seam.Unsynced(before), evaluate=alpha_of)
    assert without_record(place.left()) == without_record(whole)
    assert ".sweep.json.part" not in place.left() and json.loads((place.out / "sweep.json").read_text())["best"] is None


def test_few_descriptors_are_enough(tmp_path):
    """6 outputs of 40 shards each, with 80 descriptors: a shard is open only while it is written or compared."""
    names = [f"model.layers.{layer}.{part}_proj.weight" for layer in range(40) for part in ("q", "k")]
    tensors = {name: torch.randn(8, 6, generator=torch.Generator().manual_seed(0)) for name in names}
    base = write_base(tmp_path / "base", tensors, [names[at : at + 2] for at in range(0, 80, 2)])
    modules = [f"model.layers.{layer}.q_proj" for layer in range(40)]
    place = seam.Place(base, write_adapter(tmp_path / "adapter", low_rank(tensors, modules)), tmp_path / "out")
    args = ["sweep", str(base), str(place.adapter), str(place.out), "--alpha", "0:1:0.2", "--no-sync", "--resume"]

    limited = "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (80, 80)); "
    limited += "from wiseft_core.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", limited, *args, "--quiet", "--threads", "4"]
    environment = {**os.environ, "PYTHONPATH": str(Path(wiseft_core.__file__).parents[1])}
    for _ in range(2):  # the second time they are compared, with as few
        subprocess.run(command, env=environment, check=True)
        assert len(list(place.out.rglob("*.safetensors"))) == 240
