"""Who runs in the benchmark: each contestant is one command line over the same files."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

PEFT_MERGE = Path(__file__).with_name("peft_merge.py")
NAIVE_MERGE = Path(__file__).with_name("naive_merge.py")
COPY_AND_SYNC = 'cp -r "$1" "$2" && find "$2" -type f -exec sync {} +'
ALPHA = "0.5"


class Contestant(NamedTuple):
    """What the table calls it, and its command line from the folder of inputs and the output folder."""

    label: str
    command: Callable[[Path, Path], list[str]]


def copy(inputs: Path, out: Path) -> list[str]:
    """A plain copy: the yardstick."""
    return ["cp", "-r", str(inputs / "base"), str(out)]


def copy_and_sync(inputs: Path, out: Path) -> list[str]:
    """A plain copy, then fsync of every file."""
    return ["sh", "-c", COPY_AND_SYNC, "sh", str(inputs / "base"), str(out)]


def wiseft(adapter: str, *flags: str) -> Callable[[Path, Path], list[str]]:
    """Our command, run by the interpreter that runs the benchmark."""

    def command(inputs: Path, out: Path) -> list[str]:
        paths = [str(inputs / "base"), str(inputs / adapter), str(out)]
        return [sys.executable, "-P", "-m", "wiseft_core", "interpolate", *paths, "--alpha", ALPHA, "--quiet", *flags]

    return command


FIVE = ("0", "0.25", "0.5", "0.75", "1")
ONE_BY_ONE = """
base="$1"; adapter="$2"; out="$3"; shift 3; mkdir "$out"
for alpha in ALPHAS; do "$@" interpolate "$base" "$adapter" "$out/alpha-$alpha" --alpha $alpha --no-sync --quiet; done
""".replace("ALPHAS", " ".join(FIVE))


def one_by_one(adapter: str) -> Callable[[Path, Path], list[str]]:
    """Our command once for each of five alphas."""

    def command(inputs: Path, out: Path) -> list[str]:
        paths = [str(inputs / "base"), str(inputs / adapter), str(out)]
        return ["sh", "-ec", ONE_BY_ONE, "sh", *paths, sys.executable, "-P", "-m", "wiseft_core"]

    return command


def sweep(adapter: str) -> Callable[[Path, Path], list[str]]:
    """Our command once for five alphas."""

    def command(inputs: Path, out: Path) -> list[str]:
        paths = [str(inputs / "base"), str(inputs / adapter), str(out)]
        alphas = [word for alpha in FIVE for word in ("--alpha", alpha)]
        return [sys.executable, "-P", "-m", "wiseft_core", "sweep", *paths, *alphas, "--no-sync", "--quiet"]

    return command


def merge(script: Path, adapter: str) -> Callable[[Path, Path], list[str]]:
    """What is done without us: load, merge and save."""

    def command(inputs: Path, out: Path) -> list[str]:
        return [sys.executable, "-P", str(script), str(inputs / "base"), str(inputs / adapter), str(out)]

    return command


CONTESTANTS: Mapping[str, Contestant] = {
    "cp": Contestant("`cp -r`", copy),
    "cp-sync": Contestant("`cp -r`, then fsync", copy_and_sync),
    "lora": Contestant("`wiseft interpolate`, LoRA", wiseft("lora")),
    "lora-no-sync": Contestant("`wiseft interpolate --no-sync`, LoRA", wiseft("lora", "--no-sync")),
    "lora-fp32": Contestant(
        "`wiseft interpolate --no-sync --compute-dtype fp32`, LoRA",
        wiseft("lora", "--no-sync", "--compute-dtype", "fp32"),
    ),
    "lora128": Contestant("`wiseft interpolate`, LoRA of rank 128", wiseft("lora128")),
    "lora128-no-sync": Contestant("`wiseft interpolate --no-sync`, LoRA of rank 128", wiseft("lora128", "--no-sync")),
    "dora": Contestant("`wiseft interpolate`, DoRA", wiseft("dora")),
    "dora-no-sync": Contestant("`wiseft interpolate --no-sync`, DoRA", wiseft("dora", "--no-sync")),
    "dora-fp32": Contestant(
        "`wiseft interpolate --no-sync --compute-dtype fp32`, DoRA",
        wiseft("dora", "--no-sync", "--compute-dtype", "fp32"),
    ),
    "lora-five": Contestant("five times `wiseft interpolate --no-sync`, LoRA", one_by_one("lora")),
    "lora-sweep": Contestant("`wiseft sweep --no-sync`, five alphas, LoRA", sweep("lora")),
    "dora-five": Contestant("five times `wiseft interpolate --no-sync`, DoRA", one_by_one("dora")),
    "dora-sweep": Contestant("`wiseft sweep --no-sync`, five alphas, DoRA", sweep("dora")),
    "naive-lora": Contestant("a plain loop with torch, LoRA", merge(NAIVE_MERGE, "lora")),
    "peft-lora": Contestant("PEFT: load, merge, save, LoRA", merge(PEFT_MERGE, "lora")),
    "peft-dora": Contestant("PEFT: load, merge, save, DoRA", merge(PEFT_MERGE, "dora")),
}
"""By the name that `--only` takes, in the order of their turns. The first is the yardstick."""
