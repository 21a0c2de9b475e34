"""Who runs the tasks does not matter to a byte: threads, processes, a cluster, whatever dies on the way."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures import CancelledError, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

import pytest
import torch
from components import write_lora, write_pipeline
from folders import low_rank, tree, weights, write_adapter, write_base
from safetensors.torch import load_file, save_file

from wiseft_core import interpolate, open_checkpoint, save_checkpoint, save_sweep, sweep
from wiseft_core.errors import ConfigError, Fault, InputChanged, NotFinite, Unsupported, WiseftError
from wiseft_core.evaluation import Metric
from wiseft_core.families import FAMILIES, Change, Family
from wiseft_core.workers import Processes, opened

MODULES = ["model.layers.0.q_proj", "model.layers.1.q_proj"]
EXPERTS, HIDDEN, INNER, RANK = 3, 6, 4, 2


class Posted(Executor):
    """Runs every task at once, from a copy that went through pickle, as another process would see it."""

    def __init__(self, stop=None):
        self.left, self.sizes = stop, []

    def submit(self, fn, /, *args, **kwargs):
        future = Future()
        data = pickle.dumps(fn)
        self.sizes.append(len(data))
        try:
            if self.left == 0:
                raise NotFinite("stopped here")
            self.left = None if self.left is None else self.left - 1
            future.set_result(pickle.loads(pickle.dumps(pickle.loads(data)(*args, **kwargs))))
        except Exception as error:
            future.set_exception(pickle.loads(pickle.dumps(error)))
        return future


def lora(place):
    """A sharded base and a LoRA."""
    names = list(weights())
    base = write_base(place / "base", weights(), [names[:3], names[3:]])
    return base, write_adapter(place / "adapter", low_rank(weights(), MODULES))


def dora(place):
    """The same with magnitudes, which are of whole rows."""
    base = write_base(place / "base", weights())
    return base, write_adapter(place / "adapter", low_rank(weights(), MODULES, dora=True), use_dora=True)


def tied(place):
    """A base whose head is its embedding, until the head alone is tuned."""
    tensors = {name: value for name, value in weights().items() if name != "lm_head.weight"}
    base = write_base(place / "base", tensors, tie_word_embeddings=True)
    return base, write_adapter(place / "adapter", low_rank(weights(), ["lm_head"]))


def experts(place):
    """A base with a tensor for each matrix of each expert, and an adapter that packs the experts in one."""
    make, path = torch.Generator().manual_seed(3), "model.layers.0.mlp.experts"
    base, tuned = {}, {}
    for expert in range(EXPERTS):
        for name, shape in ("gate", (INNER, HIDDEN)), ("up", (INNER, HIDDEN)), ("down", (HIDDEN, INNER)):
            base[f"{path}.{expert}.{name}_proj.weight"] = torch.randn(shape, generator=make).bfloat16()
    for key, into, out in (".base_layer", HIDDEN, 2 * INNER), ("", INNER, HIDDEN):
        tuned[f"base_model.model.{path}{key}.lora_A.weight"] = torch.randn(RANK * EXPERTS, into, generator=make)
        tuned[f"base_model.model.{path}{key}.lora_B.weight"] = torch.randn(out, RANK * EXPERTS, generator=make)
    config = {"model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"], "n_routed_experts": EXPERTS}
    named = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    return write_base(place / "base", base, **config), write_adapter(place / "adapter", tuned, target_parameters=named)


def pipeline(place):
    """A pipeline whose unet has a LoRA."""
    return write_pipeline(place / "base"), write_lora(place / "adapter")


def kohya(place):
    """The same in kohya's spelling, with its scale beside the factors."""
    factors = load_file(write_lora(place / "peft") / "adapter_model.safetensors")
    renamed = {}
    for key, value in factors.items():
        module, _, kind = key.removeprefix("base_model.model.").removeprefix("unet.").partition(".lora_")
        name = "lora_unet_" + module.replace(".", "_")
        renamed[f"{name}.{ {'A': 'lora_down', 'B': 'lora_up'}[kind[0]] }.weight"] = value
        renamed[f"{name}.alpha"] = torch.tensor(4.0)
    save_file(renamed, place / "kohya.safetensors")
    return write_pipeline(place / "base"), place / "kohya.safetensors"


CASES = [lora, dora, tied, experts, pipeline, kohya]


@pytest.fixture(scope="module")
def pools():
    """One process, and three that outlive each other."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as one, Processes(3) as three:
        yield one, three


@pytest.mark.parametrize("case", CASES)
def test_every_executor_writes_the_same_tree(case, pools, tmp_path, monkeypatch):
    """One, two and four threads, one and three processes, and tasks of any size give what no executor gives."""
    base, adapter = case(tmp_path)
    view = interpolate(base, adapter, 0.3)
    save_checkpoint(view, tmp_path / "here", threads=1)
    wanted = tree(tmp_path / "here")
    assert len([name for name in view.touched if not view.is_copy(name)]) > 0

    for at, number in enumerate((1, 2, 4)):
        with ThreadPoolExecutor(number) as pool:
            save_checkpoint(view, tmp_path / f"threads-{at}", executor=pool)
        assert tree(tmp_path / f"threads-{at}") == wanted
    for at, size in enumerate((1, 100, 1 << 26)):
        monkeypatch.setattr("wiseft_core.ranges.RANGE", size)
        monkeypatch.setattr("wiseft_core.tasks.CHUNK", min(size, 24))
        posted = Posted()
        save_checkpoint(view, tmp_path / f"posted-{at}", executor=posted)
        assert tree(tmp_path / f"posted-{at}") == wanted
        for number, pool in enumerate(pools):
            save_checkpoint(view, tmp_path / f"pool-{at}-{number}", executor=pool, sync=size != 100)
            wrote = tree(tmp_path / f"pool-{at}-{number}")
            assert {**wrote, "wiseft.json": b""} == {**wanted, "wiseft.json": b""}
            assert size == 100 or wrote == wanted


def test_a_sweep_is_the_same_too(pools, tmp_path, monkeypatch):
    """Every output of a sweep, whose tiles are computed once for all."""
    base, adapter = dora(tmp_path)
    views = sweep(base, adapter, [0, 0.5, 1])
    save_sweep(views, tmp_path / "here")
    monkeypatch.setattr("wiseft_core.ranges.RANGE", 64)
    save_sweep(views, tmp_path / "sent", executor=pools[1])
    assert tree(tmp_path / "sent") == tree(tmp_path / "here")


@pytest.mark.parametrize("sent", [False, True], ids=["threads", "sent"])
@pytest.mark.parametrize("done", range(4))
def test_a_stopped_run_goes_on_with_any_executor(done, sent, tmp_path):
    """Two shards are two tasks, and two that seal them: what is sealed is kept, whoever goes on."""
    base, adapter = lora(tmp_path)
    view, posted = interpolate(base, adapter, 0.3), Posted()
    save_checkpoint(view, tmp_path / "here")
    with pytest.raises(NotFinite, match="stopped here"):
        save_checkpoint(view, tmp_path / "out", executor=Posted(done), resume=True)
    assert not (tmp_path / "out").exists()
    save_checkpoint(view, tmp_path / "out", resume=True, executor=posted if sent else None)
    assert len(posted.sizes) == (sent and (2 if done == 3 else 4))  # of tasks that end together, successes count first
    assert tree(tmp_path / "out") == tree(tmp_path / "here")


def test_tasks_are_small(tmp_path):
    """What is sent does not grow with the values: neither weights nor factors nor headers of inputs."""
    sizes = []
    for at, rank in enumerate((2, 6)):
        base = write_base(tmp_path / f"base-{at}", weights())
        adapter = write_adapter(tmp_path / f"adapter-{at}", low_rank(weights(), MODULES, rank=rank), r=rank)
        posted = Posted()
        save_checkpoint(interpolate(base, adapter, 0.3), tmp_path / f"out-{at}", executor=posted)
        sizes.append(sum(posted.sizes))
    assert abs(sizes[0] - sizes[1]) < 64


def test_an_input_that_changes_is_seen_by_whoever_reads_it(tmp_path):
    """Another process opens the files anew, and takes no other for them."""
    base, adapter = lora(tmp_path)
    view = interpolate(base, adapter, 0.3)
    file = adapter / "adapter_model.safetensors"
    os.replace(write_adapter(tmp_path / "other", low_rank(weights(), MODULES, seed=9)) / file.name, file)
    with pytest.raises(InputChanged, match="not the file that the job was planned for"):
        save_checkpoint(view, tmp_path / "out", executor=Posted())
    assert not (tmp_path / "out").exists()


def test_an_error_arrives_whole(tmp_path):
    """What a task raises elsewhere is what it raises here: its fields, its exit code."""
    base, adapter = lora(tmp_path)
    file = adapter / "adapter_model.safetensors"
    factors = load_file(file)
    for value in (value for name, value in factors.items() if MODULES[1] in name):
        value.fill_(1e38)
    save_file(factors, file)
    view, caught = interpolate(base, adapter, 1.0), []
    for who in ({"threads": 1}, {"executor": Posted()}):
        with pytest.raises(NotFinite) as error:
            save_checkpoint(view, tmp_path / "out", **who)
        caught.append(error.value.as_dict())
    assert caught[0] == caught[1]


def test_what_cannot_be_sent_is_refused_before_anything_is_written(tmp_path):
    """Tensors in memory, a family made on the spot, a number of threads for who has their own, the best of a sweep."""
    base, adapter = lora(tmp_path)
    memory = {name: tensor.clone() for name, tensor in open_checkpoint(base).items()}
    made = Family("made", {"weight": Change({"A": "rank in"}, delta=lambda factors, hyper: factors["A"])}, "here")
    view = interpolate(base, adapter, 0.3)
    refused = [
        (ConfigError, "tensors in memory", interpolate(memory, adapter, 0.3), {}),
        (ConfigError, "tensors in memory", memory, {}),
        (Unsupported, "cannot be sent", interpolate(base, adapter, 0.3, families=FAMILIES | {"made": made}), {}),
        (ConfigError, "threads or memory", view, {"threads": 2}),
        (ConfigError, "threads or memory", view, {"memory": "4GB"}),
    ]
    for kind, words, what, options in refused:
        with pytest.raises(kind, match=words):
            save_checkpoint(what, tmp_path / "out", executor=Posted(), **options)
    with pytest.raises(ConfigError, match="keep"):
        judged = {"evaluate": lambda path: {"a": 1.0}, "metrics": [Metric("a", "max")], "keep": "best"}
        save_sweep([view], tmp_path / "out", executor=Posted(), **judged)
    with pytest.raises(ConfigError, match="executor bananas"), opened("bananas"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


def test_a_worker_with_other_software_is_refused(tmp_path, monkeypatch):
    """Another build may round otherwise."""
    base, adapter = lora(tmp_path)

    class Elsewhere(Posted):
        def submit(self, fn, /, *args, **kwargs):
            with monkeypatch.context() as there:
                there.setattr("wiseft_core.ranges.BUILD", ("0", "1.2", "3"))
                return super().submit(fn)

    with pytest.raises(ConfigError, match="other software"):
        save_checkpoint(interpolate(base, adapter, 0.3), tmp_path / "out", executor=Elsewhere())


def identity_change(factors, hyper):
    """A delta of a family whose functions a module has by name."""
    return factors["B"] @ factors["A"]


def test_a_family_of_ones_own_can_be_sent(tmp_path):
    """Its functions are known by their names."""
    base, adapter = lora(tmp_path)
    own = FAMILIES["lora"]._replace(
        parameters={**FAMILIES["lora"].parameters, "weight": Change({"A": "rank in", "B": "out rank"}, identity_change)}
    )
    view = interpolate(base, adapter, 0.3, families=FAMILIES | {"lora": own})
    save_checkpoint(view, tmp_path / "here")
    save_checkpoint(view, tmp_path / "sent", executor=Posted())
    assert tree(tmp_path / "here") == tree(tmp_path / "sent")


def killing(processes):
    """A progress that kills one of some processes when it is first called."""
    left = list(processes)

    def progress(done, total):
        while left:
            os.kill(left.pop(), signal.SIGKILL)
            del left[:]

    return progress


def test_a_process_that_dies(tmp_path, monkeypatch):
    """A pool of the user's is broken then: one clear error, and the run can be resumed; one of ours goes on."""
    base, adapter = lora(tmp_path)
    view = interpolate(base, adapter, 0.3)
    save_checkpoint(view, tmp_path / "here")
    monkeypatch.setattr("wiseft_core.ranges.RANGE", 1)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pool.submit(int).result()
        with pytest.raises(Fault, match="its workers are gone"):
            save_checkpoint(view, tmp_path / "out", executor=pool, resume=True, progress=killing(pool._processes))
    assert not (tmp_path / "out").exists()
    with Processes(1) as pool:
        process = pool.submit(os.getpid).result()
        save_checkpoint(view, tmp_path / "out", executor=pool, resume=True, progress=killing([process]))
        assert pool.submit(os.getpid).result() != process
        with pytest.raises(WiseftError):
            pool.submit(open_checkpoint, tmp_path / "nothing").result()
        waiting = [pool.submit(time.sleep, 0.2) for _ in range(20)]
        assert waiting[-1].cancel()
        with pytest.raises(CancelledError):
            waiting[-1].result()
        begun = [one for one in waiting if not one.cancel()]
        assert len(wait(waiting).done) == 20
        assert len(begun) == sum(not one.cancelled() for one in waiting)
    with Processes(1) as pool, pytest.raises(BrokenProcessPool):
        pool.submit(os._exit, 1).result()
    assert tree(tmp_path / "out") == tree(tmp_path / "here")


def test_processes_end_with_the_one_that_made_them():
    """Even where that is killed, and can tell nobody."""
    code = "import os, signal; from wiseft_core.workers import Processes; "
    code += "print(Processes(1).submit(os.getpid).result(), flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    for _ in range(100):
        try:
            os.kill(int(done.stdout), 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("it is there still")


def test_a_cluster_that_loses_a_worker(tmp_path, monkeypatch):
    """Dask with two workers, of which one is killed midway; the command reaches it by its address."""
    distributed = pytest.importorskip("distributed")
    base, adapter = experts(tmp_path)
    view = interpolate(base, adapter, 0.3)
    save_checkpoint(view, tmp_path / "here")
    monkeypatch.setattr("wiseft_core.ranges.RANGE", 1)
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0", "silence_logs": 50}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        workers = client.run(os.getpid)
        with opened(f"dask://{cluster.scheduler_address.removeprefix('tcp://')}") as executor:
            save_checkpoint(view, tmp_path / "out", executor=executor, progress=killing(workers.values()))
        assert set(client.run(os.getpid)) != set(workers)
    assert tree(tmp_path / "out") == tree(tmp_path / "here")


def test_the_command_takes_a_word(tmp_path, capsys):
    """`--executor processes:1` writes what no executor writes, and an error is four lines."""
    from wiseft_core.cli import main

    base, adapter = lora(tmp_path)
    common = ["interpolate", str(base), str(adapter)]
    assert main([*common, str(tmp_path / "here"), "--alpha", "0.3", "--quiet"]) == 0
    assert main([*common, str(tmp_path / "out"), "--alpha", "0.3", "--quiet", "--executor", "processes:1"]) == 0
    assert tree(tmp_path / "out") == tree(tmp_path / "here")
    assert main([*common, str(tmp_path / "no"), "--alpha", "0.3", "--json", "--executor", "dask://nowhere"]) == 3
    assert json.loads(capsys.readouterr().out)["got"] == "'dask://nowhere'"
