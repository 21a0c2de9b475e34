"""Which file of a folder holds the weights: found by the names that transformers and diffusers give, never guessed.

Store room, no torch. A place where two files could be meant is refused with both named. `open_checkpoint` calls it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from wiseft_core.errors import CheckpointError, ConfigError, Unsupported, listed, show
from wiseft_core.store.faults import faults
from wiseft_core.store.files import FILES, Files
from wiseft_core.store.strict_json import as_mapping, read_json

STEMS: Final = ("model", "diffusion_pytorch_model")
"""How the weights are called: by transformers, by diffusers."""
SUFFIX: Final = ".safetensors"
ADAPTER_FILES: Final = ("adapter_model.safetensors", "adapter_config.json")
INDEX_LIMIT: Final = 64 << 20
"""Indexes of the largest models have outgrown the limit of other JSON files: 90 000 tensors make 9 MB."""

FOREIGN: Final = (".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx")
_STATE: Final = ("training_args", "optimizer", "scheduler", "rng_state", "scaler")
_SHARD: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_PART: Final = re.compile(r"-\d{5}-of-\d{5}\.")
_VARIANT: Final = re.compile(rf"({'|'.join(STEMS)})\.([A-Za-z0-9_-]+?)(-\d{{5}}-of-\d{{5}})?\.safetensors")


class Place(NamedTuple):
    """Where a checkpoint is: its weights or its index, and the folder whose other files belong to it."""

    file: Path
    folder: Path | None

    @property
    def is_index(self) -> bool:
        """Whether `file` is an index of shards."""
        return self.file.name.endswith(".json")


class Index(NamedTuple):
    """What an index says: the file of every tensor, and its free metadata."""

    weight_map: Mapping[str, str]
    metadata: Mapping[str, object]


def check_bare(argument: str, value: str) -> None:
    """Refuse a name that leads elsewhere than into the folder that it is looked for in."""
    if value in ("", ".", "..") or re.search(r"[/\\\0]", value):
        raise ConfigError(
            f"{argument} — not a bare name", expected="a name without a path", got=f"{value!r}", hint="name it alone"
        )


def locate(
    path: Path,
    *,
    component: str | None = None,
    variant: str | None = None,
    weights: str | None = None,
    files: Files = FILES,
) -> Place:
    """The one file that `path` can mean.

    Args:
        path: A folder, the root of a repository in a Hugging Face cache, a file of weights, or an index.
        component: The sub-folder to look in.
        variant: The variant to take, as in model.fp16.safetensors; others are not looked at.
        weights: The file in the folder to take.
        files: The seam to read refs/main of a cache through.
    Raises:
        CheckpointError: Nothing is there, or more than one file could be meant.
        Unsupported: The weights are there in a format that can run code, or that is not safetensors.
        ConfigError: An argument is not a bare name, or does not go with a file.
    """
    asked = {"component": component, "variant": variant, "weights": weights}
    for argument, value in asked.items():
        if value is not None:
            check_bare(argument, value)
    with faults("look at it", path):
        if not path.is_dir():
            return _single(path, [argument for argument, value in asked.items() if value is not None])
        folder = snapshot(path, files)
    folder = folder / component if component else folder
    with faults("list it", folder):
        names = sorted(os.listdir(folder))
    if weights is not None:
        return Place(_readable(folder / weights), folder)
    return chosen(folder, names, variant)


def chosen(folder: Path, names: Sequence[str], variant: str | None) -> Place:
    """The one file of weights among the `names` in a folder.

    Raises:
        CheckpointError, Unsupported: As for `locate`.
    """
    found = spelled(names, variant)
    if not found and variant is None:
        found = [name for name in names if _is_plain(name)]
    if len(found) > 1:
        raise CheckpointError(
            f"{folder} — more than one file could be meant",
            expected="one file or one index of weights",
            got=listed(found, most=9),
            hint=f"choose one with --weights, as in --weights {show(found[0])}",
        )
    if not found:
        raise _nothing(folder, names, variant)
    return Place(folder / found[0], folder)


def read_index(path: Path, files: Files = FILES) -> Index:
    """The index at `path`, with every shard a bare file name.

    Raises:
        CheckpointError: It is not strict JSON, has no weight_map, or names something else than a file beside it.
    """
    table = as_mapping(read_json(path, files, limit=INDEX_LIMIT), f"{path}")
    where = f"{path} — weight_map"
    weight_map: dict[str, str] = {}
    problems = []
    for name, shard in as_mapping(table.get("weight_map"), where).items():
        if isinstance(shard, str) and shard.endswith(SUFFIX) and _SHARD.fullmatch(shard):
            weight_map[name] = shard
        else:
            problems.append(
                CheckpointError(
                    f"{where}, {name}",
                    expected="the bare name of a .safetensors file beside the index",
                    got=f"{shard!r}",
                    hint="do not use this checkpoint: an index has no business outside its folder",
                )
            )
    CheckpointError.raise_all(problems)
    if not weight_map:
        raise CheckpointError(where, expected="the file of every tensor", got="no tensors", hint="fetch it again")
    metadata = table.get("metadata")
    return Index(weight_map, as_mapping({} if metadata is None else metadata, f"{path} — metadata"))


def _single(path: Path, asked: list[str]) -> Place:
    """The place of weights or an index given by themselves."""
    if not path.exists():
        raise CheckpointError(
            f"{path}",
            expected="a checkpoint: a folder or a .safetensors file",
            got="no such file or folder",
            hint="check the spelling; this is no name on a hub, such as org/model, and nothing is downloaded",
        )
    if asked:
        raise ConfigError(
            f"{' and '.join(asked)} — given with a file",
            expected="a folder to choose from",
            got=f"{path}",
            hint="leave the choice out, or name the folder",
        )
    _readable(path)
    return Place(path, path.parent if path.suffix == ".json" else None)


def _readable(path: Path) -> Path:
    """`path`, where its name does not say that we cannot read it."""
    if path.suffix in FOREIGN:
        raise _foreign(f"{path}", path.name)
    if path.suffix == ".json" and f"{SUFFIX}.index." not in path.name:
        raise CheckpointError(
            f"{path}", expected="weights or their index", got="another JSON file", hint="name the folder it lies in"
        )
    return path


def snapshot(path: Path, files: Files) -> Path:
    """The snapshot that refs/main names, where `path` is the root of a repository in a Hugging Face cache."""
    if not (path / "snapshots").is_dir() or not path.name.startswith("models--"):
        return path
    return path / "snapshots" / commit(path / "refs" / "main", files)


def commit(reference: Path, files: Files) -> str:
    """The name of the snapshot in a reference of a Hugging Face cache."""
    descriptor = files.open_read(reference)
    try:
        data = bytearray(min(files.identity(descriptor)[2], 201))
        files.read_into(descriptor, memoryview(data), 0, reference)
    finally:
        files.close(descriptor)
    found = data.decode("utf-8", "replace").strip()
    if not _SHARD.fullmatch(found):
        raise CheckpointError(
            f"{reference}",
            expected="the name of a snapshot",
            got=repr(found),
            hint="name the snapshot's folder itself",
        )
    return found


def variant_of(names: Iterable[str]) -> str | None:
    """The variant that the names of some files of weights say, where all that say one say the same."""
    found = {match[2] for name in names if (match := _VARIANT.fullmatch(name.rpartition("/")[2]))}
    return found.pop() if len(found) == 1 else None


def stem_of(name: str) -> str:
    """How the weights in a file of this name are called: as transformers does, where it is not one of its names."""
    bare = name.rpartition("/")[2]
    return next((stem for stem in STEMS if bare.startswith((f"{stem}.", f"{stem}-"))), STEMS[0])


def spelled(names: Collection[str], variant: str | None) -> list[str]:
    """Those of `names` that are spelled as weights or their index are."""
    return [name for name in _spellings(variant) if name in names]


def _spellings(variant: str | None) -> list[str]:
    """The names to look for."""
    dotted = f".{variant}" if variant else ""
    return [name for stem in STEMS for name in (f"{stem}{dotted}{SUFFIX}", f"{stem}{SUFFIX}.index{dotted}.json")]


def _is_plain(name: str) -> bool:
    """Whether a file may be the weights under a name of its own: not a part, a variant, an adapter or hidden."""
    special = name.startswith(".") or name in ADAPTER_FILES or _PART.search(name) or _VARIANT.fullmatch(name)
    return name.endswith(SUFFIX) and not special


def _nothing(folder: Path, names: Sequence[str], variant: str | None) -> CheckpointError | Unsupported:
    """The refusal of a folder without weights that we can read, with the likeliest reason."""
    tensors = [name for name in names if name.endswith(SUFFIX) and not name.startswith(".")]
    foreign = [name for name in names if name.endswith(FOREIGN) and not name.startswith(_STATE)]
    variants = {match[2] for name in names if (match := _VARIANT.fullmatch(name))}
    got = listed(tensors or names, most=9) or "an empty folder"
    if variant is not None:
        hint = f"leave out the variant {variant!r}, or name a file with --weights"
    elif any(name in names for name in ADAPTER_FILES):
        got, hint = "an adapter", "give the model as the base, and this folder as the adapter"
    elif variants:
        hint = f"choose a variant, as in variant={min(variants)!r}, or a file with --weights"
    elif tensors:
        hint = "shards need their index: fetch the .safetensors.index.json that belongs to them"
    elif "model_index.json" in names:
        hint = "a pipeline has several models: name the folder of one, such as unet or transformer"
    elif foreign:
        return _foreign(f"{folder}", listed(foreign))
    else:
        hint = "is this the folder that save_pretrained wrote?"
    expected = " or ".join(_spellings(variant)[:2])
    return CheckpointError(f"{folder} — no weights here", expected=expected, got=got, hint=hint)


def _foreign(where: str, got: str) -> Unsupported:
    return Unsupported(
        f"{where} — weights in a format that is not read here; pickles can run code",
        expected=f"weights in {SUFFIX}",
        got=got,
        hint="convert it: load it with transformers and call model.save_pretrained(folder, safe_serialization=True)",
    )
