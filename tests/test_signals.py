"""A signal at any moment of a run ends it: nothing waits for ever for a lock that whoever was stopped had taken."""

from __future__ import annotations

import gc
import os
import random
import shutil
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from faults import seam

from wiseft_core.child import run_child
from wiseft_core.executors import Sent, spread
from wiseft_core.signals import ENDING, signals_held

TASKS = 4


class Stop(BaseException):
    """What a handler raises."""


def stop(number, frame):
    """A handler that raises, as Python's own for SIGINT does."""
    raise Stop(number)


@pytest.fixture(autouse=True)
def _handlers():
    """Both signals raise, and are what they were before, in the end."""
    before = {number: signal.signal(number, stop) for number in ENDING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def in_finalizer(frame):
    """Whether Python is at an object's end, where it drops whatever a handler raises, and nobody can help it."""
    while frame is not None and frame.f_code.co_name != "__del__":
        frame = frame.f_back
    return frame is not None


def interrupted(call, moment, number):
    """Call, with a signal at the given line or return of what this thread runs in it.

    Gives whether the call is that long, and whether it was stopped.
    """
    seen, is_sent, is_stopped = 0, False, False

    def trace(frame, event, argument):
        nonlocal seen, is_sent
        if event == "call" or (event == "return" and argument is frame.f_locals.get("self")):
            return trace  # Python handles signals behind calls, and there is none in `return self`
        seen += 1
        if seen >= moment and not is_sent and not in_finalizer(frame):
            is_sent = True
            signal.raise_signal(number)
        return trace

    before = sys.gettrace()
    gc.disable()  # what it calls may be traced, and it drops what is raised there
    sys.settrace(trace)
    try:
        call()
    except Stop:
        is_stopped = True
    finally:
        sys.settrace(before)
        gc.enable()
    return is_sent, is_stopped


def everywhere(call, number):
    """How often a call was stopped, and went on to its end, of all the moments that it has."""
    counts = {True: 0, False: 0}
    is_long, moment = True, 0
    while is_long:
        moment += 1
        is_long, is_stopped = interrupted(call, moment, number)
        counts[is_stopped] += 1
    return counts[True], counts[False]


@pytest.mark.parametrize("number", ENDING)
@pytest.mark.parametrize("window", [1, 3, 10])
def test_a_signal_at_any_moment_of_the_spreading(number, window):
    """Wherever the main thread is: the run ends, no task runs on behind it, and the threads are as good as new."""

    def job():
        with ThreadPoolExecutor(2) as threads:

            def once():
                begun, ended = [], []

                def task():
                    begun.append(1)
                    time.sleep(0.0005)
                    ended.append(1)

                try:
                    spread((Sent(task, lambda _: ()) for _ in range(TASKS)), threads, window=window)
                finally:
                    assert len(begun) == len(ended)
                assert len(ended) == TASKS

            stopped, whole = everywhere(once, number)
            assert stopped > 100 and whole < 10
            assert threads.submit(int).result(5) == 0

    assert seam.ended(seam.fork(job)) == 0  # a child that hangs is ended


def test_a_signal_ends_the_waiting_for_a_task():
    """What is not begun is dropped at once, though the task at hand takes long; that is waited for."""
    begun, ended, gate = [], [], threading.Event()

    def task():
        begun.append(1)
        if len(begun) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        gate.wait(5)
        ended.append(1)

    threading.Timer(0.3, gate.set).start()
    with ThreadPoolExecutor(1) as threads:
        with pytest.raises(Stop):
            spread((Sent(task, lambda _: ()) for _ in range(9)), threads, window=9)
        assert begun == ended == [1]


@pytest.mark.parametrize("number", ENDING)
def test_what_is_held_is_let_through(number):
    """When it is asked for, at the end, and over an error that is on its way."""
    seen = []
    with pytest.raises(Stop), signals_held(lambda: seen.append("woken")) as let_through:
        let_through()
        signal.raise_signal(number)
        seen.append("held")
        let_through()
        seen.append("never")
    assert seen == ["woken", "held"]
    with pytest.raises(Stop), signals_held(seen.clear):
        signal.raise_signal(number)
        seen.append("held")
    with pytest.raises(Stop) as caught, signals_held(seen.clear):
        signal.raise_signal(number)
        raise ValueError
    assert isinstance(caught.value.__context__, ValueError)
    assert seen == [] and signal.getsignal(number) is stop


def test_only_what_would_be_called_is_held():
    """A signal that is ignored stays ignored, one that kills kills, and another thread has no signals to hold."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with signals_held(int):
        assert [signal.getsignal(number) for number in ENDING[:2]] == [signal.SIG_IGN, signal.SIG_DFL]
    signal.signal(signal.SIGTERM, stop)

    def elsewhere():
        with signals_held(int) as let_through:
            let_through()
            return signal.getsignal(signal.SIGTERM)

    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(elsewhere).result() is stop


def test_a_handler_that_puts_another_in_its_place():
    """It stays: the command has a second signal end the process."""

    def last(number, frame):
        signal.signal(number, signal.SIG_IGN)

    signal.signal(signal.SIGINT, last)
    with signals_held(int) as let_through:
        signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is not last
        let_through()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@pytest.mark.parametrize("number", ENDING)
def test_no_signal_is_lost_around_the_holding(number):
    """One at any moment of it raises, at its end at the latest; so does the next one, and they are back then."""
    is_long, moment = True, 0
    while is_long:
        moment += 1

        def hold():
            with signals_held(int):
                pass

        is_long, is_stopped = interrupted(hold, moment, number)
        assert is_stopped == is_long
        for other in ENDING:
            with pytest.raises(Stop):
                signal.raise_signal(other)
            assert signal.getsignal(other) is stop
    assert moment > 30


def test_a_signal_at_any_moment_of_a_child():
    """It is killed and buried, also where it was about to be started."""

    def job():
        stopped, whole = everywhere(lambda: run_child(["/bin/sh", "-c", "echo said"], None), signal.SIGTERM)
        assert stopped > 100 and whole == 1
        with pytest.raises(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)

    assert seam.ended(seam.fork(job)) == 0


@pytest.mark.parametrize("resume", [False, True])
def test_a_signal_at_any_moment_of_a_run(tmp_path, resume):
    """At 60 of some 33000: the output is absent or whole, and the same process can write it right away."""

    def job():
        place, draw = seam.small(tmp_path), random.Random(f"signals {resume}")
        place.save()
        whole, moments, stopped = place.left(), 35_000, 0
        for _ in range(60):
            shutil.rmtree(place.out, ignore_errors=True)
            moment, number = draw.randrange(1, moments), draw.choice(ENDING)
            is_sent, is_stopped = interrupted(lambda: place.save(resume=resume, threads=2), moment, number)
            moments, stopped = moments if is_sent else moment, stopped + is_stopped
            assert place.left() in (None, whole)
            shutil.rmtree(place.out, ignore_errors=True)
            place.save(resume=resume)
            assert place.left() == whole and place.beside() == []
        assert stopped > 40

    assert seam.ended(seam.fork(job)) == 0
