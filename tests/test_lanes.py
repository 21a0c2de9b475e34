"""Threads keep out of each other's files while there are enough, and all of them share what is left."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from blake3 import blake3
from folders import low_rank, tree, weights, write_adapter, write_base

from wiseft_core import interpolate, offline, save_checkpoint
from wiseft_core.executors import run
from wiseft_core.store.files import Files

THREADS = 3


class Places:
    """Who is where: `met` says how many places nobody had been at whenever somebody came to where another was."""

    def __init__(self, number):
        self.untouched, self.lock = set(range(number)), threading.Lock()
        self.now, self.been, self.met, self.most = {}, {}, [], 0

    def visit(self, place):
        """Be at a place for a while."""
        me = threading.get_ident()
        with self.lock:
            self.untouched.discard(place)
            self.been.setdefault(place, set()).add(me)
            if place in self.now.values():
                self.met.append(len(self.untouched))
            self.now[me] = place
            self.most = max(self.most, len(set(self.now.values())))
        time.sleep(0.002)
        with self.lock:
            del self.now[me]


@pytest.mark.parametrize("lengths", [[9] * 7, [1, 30, 2, 0, 5, 9], [40]], ids=str)
def test_a_lane_is_entered_by_another_thread_only_once_all_are_begun(lengths):
    """Lanes of any length, empty ones too: each task is run once, in its order where one thread has the lane."""
    places, done = Places(len(lengths)), []

    def lane(number, length):
        places.untouched.discard(number)  # who begins a lane may be slow to come to its first place
        for step in range(length):

            def task(step=step):
                places.visit(number)
                done.append((number, step))

            yield task

    with ThreadPoolExecutor(THREADS) as pool:
        run((lane(number, length) for number, length in enumerate(lengths)), pool, window=2 * THREADS)
    assert sorted(done) == [(number, step) for number, length in enumerate(lengths) for step in range(length)]
    assert not any(places.met)
    for number, been in places.been.items():
        steps = [step for lane, step in done if lane == number]
        assert len(been) > 1 or steps == sorted(steps)
    assert places.most == min(THREADS, len(lengths))


def test_all_threads_share_a_lane_that_is_alone():
    """Each task waits for as many as there are threads to be at work with it."""
    barrier = threading.Barrier(THREADS)
    with ThreadPoolExecutor(THREADS) as pool:
        run([iter([lambda: barrier.wait(30)] * 2 * THREADS)], pool, window=2 * THREADS)
    assert not barrier.broken


def test_a_task_is_taken_when_a_thread_runs_it():
    """However many calls are handed out, no more tasks exist than there are threads."""
    held, ended = [], []

    def task():
        time.sleep(0.001)
        ended.append(1)

    def lane():
        for made in range(1, 51):
            held.append(made - len(ended))
            yield task

    with ThreadPoolExecutor(THREADS) as pool:
        run([lane()], pool, window=20)
    assert len(held) == 50 and max(held) == THREADS


@pytest.mark.parametrize("where", ["task", "lane"])
def test_an_error_ends_every_lane(where):
    """The first one leaves `run`, whether a task or the making of one raised it; the running are waited for."""
    begun, ended = [], []

    def work():
        begun.append(1)
        time.sleep(0.005)
        ended.append(1)

    def failing():
        yield work
        if where == "lane":
            raise ValueError("here")

        def fail():
            raise ValueError("here")

        yield fail

    with ThreadPoolExecutor(THREADS) as pool:
        with pytest.raises(ValueError, match="here"):
            run([failing(), iter([work] * 500), iter([work] * 500)], pool, window=2 * THREADS)
        assert len(begun) == len(ended) < 500


class Watched(Files):
    """The real file system, with who writes to which shard; it cannot clone."""

    def __init__(self, number):
        self.places = Places(number)

    def write_at(self, descriptor, buffer, offset, path):
        if path.suffix == ".safetensors" and offset:
            self.places.visit(int(path.name.split("-")[1]) - 1 if "-" in path.name else 0)
        super().write_at(descriptor, buffer, offset, path)

    def clone(self, source, target, path, start=0, offset=0, count=0):
        return False  # then every shard is written


@pytest.mark.parametrize("shards", [1, 2, 5])
@pytest.mark.parametrize("own", [False, True], ids=["threads", "executor"])
def test_threads_do_not_meet_in_a_file(tmp_path, monkeypatch, shards, own):
    """While a shard is untouched nobody writes where another does; one shard is shared; digests are of the files."""
    names, adapted = list(weights()), ["model.layers.0.q_proj", "model.layers.1.q_proj"]
    base = write_base(tmp_path / "base", weights(), [names[at::shards] for at in range(shards)])
    adapter = write_adapter(tmp_path / "adapter", low_rank(weights(), adapted))
    view = interpolate(base, adapter, 0.3)
    save_checkpoint(view, tmp_path / "one", threads=1)
    monkeypatch.setattr(offline, "FILES", Watched(shards))
    monkeypatch.setattr("wiseft_core.tasks.CHUNK", 8)
    monkeypatch.setattr("wiseft_core.tasks.PIECE", 16)
    monkeypatch.setattr("wiseft_core.store.writer.COPY", 8)
    with ThreadPoolExecutor(2) as pool:
        save_checkpoint(view, tmp_path / "out", **({"executor": pool} if own else {"threads": 2}))
    places = offline.FILES.places
    assert len(places.been) == shards and not any(places.met)
    assert places.met if shards == 1 else places.most == 2
    assert tree(tmp_path / "out") == tree(tmp_path / "one")
    manifest = (tmp_path / "out" / "wiseft.json").read_text()
    assert all(blake3(file.read_bytes()).hexdigest() in manifest for file in (tmp_path / "out").glob("*.safetensors"))
