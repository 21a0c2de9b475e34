"""The digest that follows the writers: that of the bytes, in whatever order and from however many threads they come."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

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
    """Pieces of any length, empty ones too, told of in any order; only bytes that are there are read, once."""
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
        trail.add(start, stop)
    assert trail.end(len(content)) == blake3(content).hexdigest()
    assert [start for start, _ in seen] == [len(head), *(stop for _, stop in seen)][: len(seen)]


def test_bytes_are_digested_as_they_come():
    """Before the end, all but less than a step has been read."""
    reached = 0

    def read(buffer, offset):
        nonlocal reached
        buffer[:], reached = bytes(len(buffer)), offset + len(buffer)

    trail = Trail(b"", read)
    for start in range(0, 100, 5):
        trail.add(start, start + 5)
    assert 100 - reached < 8


def test_threads_may_tell_of_their_bytes_at_once():
    """Eight threads: the digest is that of the file."""
    content = bytes(range(256)) * 40

    def read(buffer, offset):
        buffer[:] = content[offset : offset + len(buffer)]

    trail = Trail(content[:7], read)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda start: trail.add(start, min(start + 3, len(content))), range(7, len(content), 3)))
    assert trail.end(len(content)) == blake3(content).hexdigest()


def test_a_read_that_fails_is_told():
    """The error of a read leaves `add`, in the thread that digested."""

    def read(buffer, offset):
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        Trail(b"", read).add(0, 9)
