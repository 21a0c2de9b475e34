"""The digest that follows the writers: that of the bytes, in whatever order and from however many threads they come."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from wiseft_core.store import trail as trail_module
from wiseft_core.store.trail import Trail


@pytest.fixture(autouse=True)
def small_steps(monkeypatch):
    monkeypatch.setattr(trail_module, "STEP", 8)


@given(st.binary(max_size=9), st.lists(st.binary(max_size=20), max_size=30), st.randoms(use_true_random=False))
def test_any_order_gives_the_digest_of_the_file(head, pieces, random):
    """Pieces of any length, empty ones too, told of in any order; only bytes that are there are read, at most once."""
    content = head + b"".join(pieces)
    there, places, at = bytearray(content[: len(head)].ljust(len(content), b"\0")), [], len(head)
    for piece in pieces:
        places.append((at, at + len(piece)))
        at += len(piece)
    seen: list[tuple[int, int]] = []

    def read(buffer, offset):
        seen.append((offset, offset + len(buffer)))
        buffer[:] = there[offset : offset + len(buffer)]

    trail = Trail(head, read)
    random.shuffle(places)
    for start, stop in places:
        there[start:stop] = content[start:stop]
        trail.add(start, memoryview(content[start:stop]))
    assert trail.end(len(content)) == blake3(content).hexdigest()
    assert all(before <= start < stop for (_, before), (start, stop) in pairwise([(0, len(head)), *seen]))


@given(st.binary(max_size=9), st.lists(st.binary(max_size=20), max_size=30), st.integers(0, 29))
def test_what_comes_in_order_is_not_read_back(head, pieces, late):
    """One piece comes last: what is before it is never read, what is after it is, itself not."""
    content, at, delayed = head + b"".join(pieces), len(head), None
    seen: list[int] = []

    def read(buffer, offset):
        seen.extend(range(offset, offset + len(buffer)))
        buffer[:] = content[offset : offset + len(buffer)]

    trail = Trail(head, read)
    for number, piece in enumerate(pieces):
        if number == late:
            delayed = at, piece
        else:
            trail.add(at, memoryview(piece))
        at += len(piece)
    after = len(content)
    if delayed is not None:
        trail.add(delayed[0], memoryview(delayed[1]))
        after = delayed[0] + len(delayed[1])
    assert trail.end(len(content)) == blake3(content).hexdigest()
    assert seen == (list(range(after, len(content))) if delayed is None or delayed[1] else [])


def test_bytes_are_digested_as_they_come():
    """Out of order too, all but less than a step has been read before the end."""
    reached = 0

    def read(buffer, offset):
        nonlocal reached
        buffer[:], reached = bytes(len(buffer)), offset + len(buffer)

    trail = Trail(b"", read)
    for start in range(0, 100, 10):
        trail.add(start + 5, memoryview(bytes(5)))
        trail.add(start, memoryview(bytes(5)))
        assert start - reached < 8


def test_threads_may_tell_of_their_bytes_at_once():
    """Eight threads: the digest is that of the file."""
    content = bytes(range(256)) * 40

    def read(buffer, offset):
        buffer[:] = content[offset : offset + len(buffer)]

    trail = Trail(content[:7], read)
    with ThreadPoolExecutor(8) as pool:
        list(
            pool.map(lambda start: trail.add(start, memoryview(content[start : start + 3])), range(7, len(content), 3))
        )
    assert trail.end(len(content)) == blake3(content).hexdigest()


def test_a_read_that_fails_is_told():
    """The error of a read leaves `add`, in the thread that digested."""

    def read(buffer, offset):
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        trail = Trail(b"", read)
        trail.add(1, memoryview(bytes(9)))
        trail.add(0, memoryview(bytes(1)))
