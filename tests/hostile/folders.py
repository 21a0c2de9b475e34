"""Hostile folders: links and special files (T2, T3), pickles (T5), what lies beside the weights (T14, T15)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from hostile.scene import Case, Scene


def linked(name: str, target: Callable[[Scene], Path | str]) -> Callable[[Scene], None]:
    """A file replaced by a link."""

    def spoil(scene: Scene) -> None:
        path = scene.root / name
        path.unlink(missing_ok=True)
        path.symlink_to(target(scene))

    return spoil


def placed(name: str, make: Callable[[Path], object]) -> Callable[[Scene], None]:
    """A file replaced by something else."""

    def spoil(scene: Scene) -> None:
        (scene.root / name).unlink(missing_ok=True)
        make(scene.root / name)

    return spoil


def moved(name: str) -> Callable[[Scene], None]:
    """A file moved away with a link left in its place, as a cache does."""

    def spoil(scene: Scene) -> None:
        away = scene.root / "away"
        (scene.root / name).rename(away)
        (scene.root / name).symlink_to(away)

    return spoil


def link_cases() -> Iterator[Case]:
    """Links, loops, pipes, devices and folders where files should be."""
    places = ("base/model.safetensors", "base/config.json", "adapter/adapter_model.safetensors",
              "adapter/adapter_config.json", "base/model.safetensors.index.json")  # fmt: skip
    for name in places:
        index = name.endswith("index.json")
        yield Case(f"{name}: a pipe", "special file", "T3", placed(name, os.mkfifo))
        yield Case(f"{name}: a folder", "special file", "T3", placed(name, Path.mkdir), (3, 5))
        yield Case(f"{name}: link to a device", "special file", "T3", linked(name, lambda _: "/dev/zero"))
        yield Case(f"{name}: link to /proc", "special file", "T3", linked(name, lambda _: "/proc/self/status"))
        yield Case(f"{name}: link to itself", "link", "T2", linked(name, lambda _, own=Path(name).name: own), (3, 5))
        yield Case(f"{name}: link to nothing", "link", "T2", linked(name, lambda _: "nothing-here"))
        yield Case(f"{name}: link to its folder", "link", "T2", linked(name, lambda _: "."), (3, 5))
        yield Case(f"{name}: link to the secret", "link", "T2", linked(name, lambda scene: scene.secret))
        if not index:
            yield Case(f"{name}: moved, with a link", "link", "T2", moved(name), (0,))
    for name in ("base", "adapter"):
        yield Case(f"{name}: link to itself", "link", "T2", folder_loop(name), (3, 5))
        yield Case(f"{name}: a pipe", "special file", "T3", folder_pipe(name), (3, 5))
    for suffix in ("bin", "pt", "pth", "ckpt", "h5", "msgpack", "gguf", "onnx"):
        file = "pytorch_model.bin" if suffix == "bin" else f"model.{suffix}"
        yield Case(f"a base of .{suffix}", "pickle", "T5", in_place("base/model.safetensors", f"base/{file}"), (4,))
    bins = in_place("adapter/adapter_model.safetensors", "adapter/adapter_model.bin")
    yield Case("an adapter of .bin", "pickle", "T5", bins, (4,))


def folder_loop(name: str) -> Callable[[Scene], None]:
    """A folder replaced by a link to itself."""

    def spoil(scene: Scene) -> None:
        (scene.root / name).rename(scene.root / "away")
        (scene.root / name).symlink_to(name)

    return spoil


def folder_pipe(name: str) -> Callable[[Scene], None]:
    """A folder replaced by a pipe."""

    def spoil(scene: Scene) -> None:
        (scene.root / name).rename(scene.root / "away")
        os.mkfifo(scene.root / name)

    return spoil


def in_place(old: str, new: str) -> Callable[[Scene], None]:
    """A pickle that would run a command instead of the weights."""

    def spoil(scene: Scene) -> None:
        (scene.root / old).unlink()
        (scene.root / new).write_bytes(b"cposix\nsystem\n(S'touch PWNED'\ntR.")

    return spoil


def beside(make: Callable[[Path], object], folder: str = "base") -> Callable[[Scene], object]:
    """Something more in a folder."""
    return lambda scene: make(scene.root / folder)


def written(name: str, data: bytes = b"{}") -> Callable[[Path], None]:
    """A file of that name."""

    def make(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    return make


def pointing(name: str, target: str) -> Callable[[Path], None]:
    """A link of that name."""
    return lambda folder: (folder / name).symlink_to(target)


def entries(count: int) -> Callable[[Path], None]:
    """Very many files."""

    def make(folder: Path) -> None:
        (folder / "many").mkdir()
        for at in range(count):
            os.close(os.open(folder / "many" / f"{at}.txt", os.O_CREAT | os.O_WRONLY))

    return make


def deep(folder: Path) -> None:
    """A folder in a folder, two hundred times."""
    (folder / "/".join("d" * 200)).mkdir(parents=True)


def mesh(folder: Path) -> None:
    """Folders that each link to all the others: the paths through them are without number."""
    for at in range(12):
        (folder / f"d{at}").mkdir()
    for at in range(12):
        for to in range(12):
            (folder / f"d{at}" / f"l{to}").symlink_to(f"../d{to}")


def sidecar_cases() -> Iterator[Case]:
    """Files beside the weights: copied, or left out and listed, or too many; never run, never followed out."""
    inside: dict[str, Callable[[Path], object]] = {
        "a name with a line break": written("a\nb.json"),
        "a name with an escape sequence": written("\x1b]0;x\7.json"),
        "a name with bidi controls": written("x\u202egpj.exe"),
        "a name that is not UTF-8": lambda folder: Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe.json")).touch(),
        "a name of 255 letters": written("n" * 255),
        "a name like a flag": written("--alpha"),
        "a name like a pattern": written("*[a-z]?"),
        "code": written("modeling_evil.py", b"raise SystemExit(99)"),
        "code in a folder": written("code/__init__.py", b"raise SystemExit(99)"),
        "compiled code": written("__pycache__/x.cpython-311.pyc", b"\0" * 16),
        "a .pth that Python would run": written("evil.pth", b"import os; os.abort()"),
        "a manifest": written("wiseft.json", b"{}"),
        "a manifest deeper down": written("sub/wiseft.json", b"{}"),
        "a .git": written(".git/hooks/post-checkout", b"#!/bin/sh\nfalse\n"),
        "a pickle": written("training_args.bin", b"cposix\nsystem\n(S'false'\ntR."),
        "an adapter in the base": written("adapter_model.safetensors", b"junk"),
        "a sparse file of 1 GB of weights": lambda folder: os.truncate(_touched(folder / "optimizer.pt"), 1 << 30),
        "a pipe": lambda folder: os.mkfifo(folder / "pipe.json"),
        "a link to the secret": pointing("notes.txt", "../secret/model.safetensors"),
        "a link to /etc/passwd": pointing("passwd", "/etc/passwd"),
        "a link to a device": pointing("zero", "/dev/zero"),
        "a link to nothing": pointing("gone.json", "nothing"),
        "a link to itself": pointing("self.json", "self.json"),
        "a link to its folder": pointing("loop", "."),
        "a link to the root": pointing("root", "/"),
        "a link to the folder above": pointing("up", ".."),
        "a link to its weights": pointing("again.safetensors", "model.safetensors"),
        "two links at each other": lambda folder: [pointing("x", "y")(folder), pointing("y", "x")(folder)],
        "a deep folder": deep,
        "a thousand files": entries(1000),
        "a staging folder": written(".out.wiseft-staging/LOCK", b""),
        "config.json with auto_map": written("config.json", json.dumps({"auto_map": {"AutoModel": "x.Y"}}).encode()),
    }
    refused: dict[str, Callable[[Path], object]] = {
        "folders that all link to each other": mesh,
        "config.json: an array": written("config.json", b"[]"),
        "config.json: nested": written("config.json", b"[" * 60_000),
        "config.json: NaN": written("config.json", b'{"a": NaN}'),
        "config.json: a key twice": written("config.json", b'{"a": 1, "a": 2}'),
        "config.json: half a surrogate": written("config.json", b'{"a": "\\udead"}'),
        "config.json: cut": written("config.json", b'{"a":'),
        "config.json: 9 MB": written("config.json", b'{"a": "' + b"a" * (9 << 20) + b'"}'),
    }
    for name, make in inside.items():
        yield Case(f"beside: {name}", "sidecar", "T15" if "code" in name else "T14", beside(make), (0,))
    for name, make in refused.items():
        yield Case(f"beside: {name}", "sidecar", "T8", beside(make), seconds=8.0)
    yield Case("beside: a tokenizer link to the secret", "sidecar", "T2",
               beside(pointing("tokenizer.json", "../secret/model.safetensors"), "adapter"), (0,))  # fmt: skip


def _touched(path: Path) -> Path:
    """An empty file."""
    path.touch()
    return path


def cases() -> Iterator[Case]:
    """All of them."""
    yield from link_cases()
    yield from sidecar_cases()
