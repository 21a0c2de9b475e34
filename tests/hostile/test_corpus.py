"""Every hostile case, in process: refused by name or harmless, bounded, and nothing written but the output."""

from __future__ import annotations

import json
import socket
import tracemalloc
from pathlib import Path

import pytest
from hostile.corpus import CASES, Case, Scene
from hostile.limits import bounded, picture
from hostile.scene import SECRET
from safetensors import SafetensorError, safe_open

import wiseft_core
import wiseft_core.offline  # torch comes here, not inside a case's time
from wiseft_core.cli import main
from wiseft_core.errors import Fault, WiseftError

EASE = 16 << 20
"""Bytes that any run may take, whatever its input: what the package keeps for itself."""
READ = [name for name, case in CASES.items() if case.threat not in ("T4", "T13", "T18", "T20")]
"""The cases that reading alone meets."""
STAGING = ".out.wiseft-staging"
"""Ours, whatever a stopped run left in it."""


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Whatever asks for a socket has failed."""

    class Refused(socket.socket):
        def __init__(self, *args: object, **more: object) -> None:
            raise AssertionError("the network was touched")

    monkeypatch.setattr(socket, "socket", Refused)
    monkeypatch.setattr(socket, "getaddrinfo", Refused)


def made(case: Case, root: Path) -> Scene:
    """The scene of a case."""
    scene = Scene.write(root)
    case.spoil(scene)
    return scene


def arguments(case: Case, scene: Scene, *more: str) -> list[str]:
    """The command line of a case."""
    paths = [str(scene.base), str(scene.adapter), str(scene.root / "out")]
    return ["interpolate", *paths, f"--alpha={case.alpha}", "--no-sync", *case.flags, *more]


def is_plain(text: str) -> bool:
    """Whether a terminal shows every character of `text` and obeys none."""
    return all(char.isprintable() or char == "\n" for char in text)


def rest(seen: dict[str, tuple[object, ...]]) -> dict[str, tuple[object, ...]]:
    """A picture without the output and its staging folder."""
    return {name: what for name, what in seen.items() if name.split("/")[0] not in ("out", STAGING)}


def read_back(out: Path) -> set[str]:
    """The names that safetensors itself finds in an output."""
    names: set[str] = set()
    for file in out.glob("*.safetensors"):
        try:
            with safe_open(file, "pt") as opened:
                names |= set(opened.keys())
        except SafetensorError as error:  # what we copied byte by byte and the library cannot read either
            raise AssertionError(f"an output that does not load: {error}") from error
    return names


@pytest.mark.parametrize("name", CASES)
def test_the_command_refuses_or_takes_it(name, tmp_path, capsys):
    """The exit code is one of those that are right for the case, in four plain lines; nothing else is on disk."""
    case = CASES[name]
    scene = made(case, tmp_path)
    before = picture(tmp_path)

    with bounded(case.seconds):
        code = main(arguments(case, scene))

    said = capsys.readouterr()
    assert code in case.codes, said.err
    assert is_plain(said.out + said.err)
    assert "the operating system failed a call" not in said.err
    if code == 0:
        assert rest(picture(tmp_path)) == rest(before)
        assert "model.q_proj.weight" in read_back(scene.root / "out")
        assert not [path for path in (scene.root / "out").rglob("*") if path.is_symlink()]
        assert all(SECRET not in path.read_bytes() for path in (scene.root / "out").rglob("*") if path.is_file())
    else:
        assert picture(tmp_path) == before
        assert said.out == ""
        assert len(said.err.splitlines()) >= 4


@pytest.mark.parametrize(
    "name", [name for name, case in CASES.items() if case.threat not in ("T4", "T13", "T18", "T20")]
)
def test_the_library_refuses_or_takes_it(name, tmp_path):
    """`plan` raises our errors alone, in memory that grows with the input alone; so do their text and their JSON."""
    case = CASES[name]
    scene = made(case, tmp_path)
    size = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_blocks)
    text = ""
    tracemalloc.start()
    try:
        with bounded(4 * case.seconds):  # counting memory is what takes the time here
            wiseft_core.plan(scene.base, scene.adapter)
    except WiseftError as error:
        text = str(error)
        assert is_plain(text)
        assert json.dumps(error.as_dict(), allow_nan=False).isascii()
        assert error.exit_code in case.codes or isinstance(error, Fault)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 10 * size + EASE
    assert len(text) < 64_000
