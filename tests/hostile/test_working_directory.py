"""The command in a folder that holds hostile modules runs none of them, and touches neither torch nor net too early."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hostile.scene import Scene

import wiseft_core

ROOT = Path(wiseft_core.__file__).parents[1]
MODULES = ("torch", "numpy", "json", "mmap", "safetensors", "blake3", "typer", "rich", "hashlib", "struct", "random",
           "shutil", "tempfile", "concurrent", "multiprocessing", "wiseft_core", "sitecustomize")  # fmt: skip
CONSOLE = """#!{python}
import sys
from wiseft_core.cli import main
if __name__ == "__main__":
    sys.exit(main())
"""
"""The script that pip makes of the entry point in pyproject.toml."""
OFFLINE = """
import socket, sys
class Refused(socket.socket):
    def __init__(self, *args, **more):
        raise SystemExit(98)
socket.socket = socket.getaddrinfo = socket.create_connection = Refused
from wiseft_core.cli import main
code = main({args!r})
print(code, "torch" in sys.modules)
"""


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """`command` in `folder`, with the package importable as an installed one is."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(folder)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def ways(folder: Path) -> dict[str, list[str]]:
    """How the command can be started."""
    script = folder / "bin" / "wiseft"
    script.parent.mkdir()
    script.write_text(CONSOLE.format(python=sys.executable))
    script.chmod(0o755)
    return {
        "console script": [str(script)],
        "python -P -m": [sys.executable, "-P", "-m", "wiseft_core"],
        "python -m": [sys.executable, "-m", "wiseft_core"],
    }


def hostile(folder: Path, modules: tuple[str, ...]) -> Path:
    """A folder of modules that each leave a trace and stop the process; packages of the same names too."""
    folder.mkdir()
    for name in modules:
        code = f"open({str(folder / 'RAN')!r}, 'a').write({name!r} + chr(10))\nraise SystemExit(99)\n"
        (folder / f"{name}.py").write_text(code)
    return folder


@pytest.mark.parametrize("way", ["console script", "python -P -m", "python -m"])
def test_no_module_of_the_working_directory_is_run(way, tmp_path):
    """A whole run from base and adapter to output, inside a folder of traps: none of them is sprung."""
    scene = Scene.write(tmp_path)
    # `python -m` finds the package itself in the working directory before any of our code can run: only -P helps.
    modules = tuple(name for name in MODULES if way != "python -m" or name != "wiseft_core")
    folder = hostile(tmp_path / "traps", modules)
    command = ways(tmp_path)[way]

    done = run([*command, "interpolate", str(scene.base), str(scene.adapter), "out", "--alpha=0.5", "--quiet"], folder)

    assert done.returncode == 0, done.stderr
    assert (folder / "out" / "wiseft.json").exists()
    assert not (folder / "RAN").exists()


def test_a_child_process_runs_none_either(tmp_path):
    """A spawned worker that unpickles our error in a folder of traps springs none, where the parent ran with -P."""
    folder = hostile(tmp_path / "traps", ("wiseft_core", "numpy", "torch"))
    code = (
        "from concurrent.futures import ProcessPoolExecutor as Pool; from multiprocessing import get_context as c\n"
        "from wiseft_core.store.shards import parse_size\n"
        "print(list(Pool(1, mp_context=c('spawn')).map(parse_size, ['5GB'])))"
    )
    script = tmp_path / "work.py"
    script.write_text(f"if __name__ == '__main__':\n    {code.replace(chr(10), chr(10) + '    ')}\n")

    done = run([sys.executable, "-P", str(script)], folder)

    assert done.stdout.strip() == "[5000000000]", done.stderr
    assert not (folder / "RAN").exists()


def test_the_traps_work(tmp_path):
    """Meta: a command without any care springs them, so that the tests above can fail."""
    folder = hostile(tmp_path / "traps", MODULES)

    done = run([sys.executable, "-c", "import typer"], folder)

    assert done.returncode == 99
    assert (folder / "RAN").read_text() == "typer\n"


@pytest.mark.parametrize(
    "spoiled", ["base header", "adapter header", "adapter config", "index", "base config", "binding"]
)
def test_bad_headers_and_configs_are_refused_before_torch_is_imported(spoiled, tmp_path):
    """`interpolate` refuses what headers and configs can tell with exit 3, without torch and without a socket."""
    scene = Scene.write(tmp_path)
    places = {
        "base header": scene.weights,
        "adapter header": scene.factors,
        "adapter config": scene.fields,
        "index": scene.base / "model.safetensors.index.json",
        "base config": scene.base / "config.json",
    }
    if spoiled == "binding":
        scene.configure(rank_pattern={"([a-z_.0-9]+)+!": 2})
    else:
        if spoiled == "index":
            scene.weights.unlink()
        places[spoiled].write_bytes(b"[" * 999)
    args = ["interpolate", str(scene.base), str(scene.adapter), str(tmp_path / "out"), "--alpha=0.5"]

    done = run([sys.executable, "-c", OFFLINE.format(args=args)], tmp_path)

    assert done.stdout.split() == ["3", "False"], done.stderr


def test_a_whole_run_touches_no_network(tmp_path):
    """A run that computes and writes asks for no socket, whatever the config names as its base."""
    scene = Scene.write(tmp_path)
    scene.configure(base_model_name_or_path="https://example.invalid/model", revision="main")
    args = ["interpolate", str(scene.base), str(scene.adapter), str(tmp_path / "out"), "--alpha=0.5", "--quiet"]

    for more, torch_too in (([], "False"), (["--compute-dtype=fp32", "--output-dtype=fp32"], "True")):
        done = run([sys.executable, "-c", OFFLINE.format(args=args + more)], tmp_path)
        shutil.rmtree(tmp_path / "out")
        assert done.stdout.split() == ["0", torch_too], done.stderr
