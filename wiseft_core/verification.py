"""The verb that checks an output: against its manifest, and against what it was made from.

Verb floor. Streams: whatever is compared is compared in pieces, and nothing is mapped.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from wiseft_core.combination import combine
from wiseft_core.comparison import MOST, compare, wanted
from wiseft_core.config import AdapterConfig
from wiseft_core.errors import CheckpointError, ConfigError, Fault, Unsupported, listed
from wiseft_core.families import FAMILIES, Family
from wiseft_core.interpolation import interpolate
from wiseft_core.joining import combine_adapters
from wiseft_core.methods import suffixes
from wiseft_core.naming.peft import parse_keys, saved_keys
from wiseft_core.record import alpha_of, paired
from wiseft_core.report import Problem, Report
from wiseft_core.rescaling import rescale
from wiseft_core.sources import WEIGHTS_FILE, Adapter, BaseLike, opened
from wiseft_core.store.checkpoint import Checkpoint, open_checkpoint
from wiseft_core.store.files import FILES, Files, read_file
from wiseft_core.store.locate import variant_of
from wiseft_core.store.manifest import MANIFEST, Decimals, Manifest, check_outputs, parse_manifest


def verify(
    path: str | os.PathLike[str],
    *,
    base: BaseLike | None = None,
    adapter: Adapter | BaseLike | Sequence[Adapter | BaseLike] | None = None,
    config: AdapterConfig | Mapping[str, object] | None = None,
    base_config: Mapping[str, object] | None = None,
    families: Mapping[str, Family] = FAMILIES,
    sample: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Check an output that `save_checkpoint` or `save_adapter` wrote.

    Alone: every file is there, has its size and digest, and no other file is; headers and index are sound and agree.
    With base and adapter: every touched tensor is computed again and compared bit for bit, every other one is compared
    with the base's bytes. A rescaled adapter is rescaled again, with the base where that needs it.

    Args:
        path: The output folder.
        base: What it was made from, as for `interpolate`; to be given together with `adapter`, as for `rescale`.
        adapter: As for `interpolate`; of a combination, a list of its adapters in any order.
        config: As for `interpolate`.
        base_config: As for `interpolate`.
        families: As for `interpolate`.
        sample: For a quick look: skip the digests, and of all tensors compare this many pieces, drawn by a fixed seed.
        progress: Told of bytes compared and bytes in all.
    Returns:
        What was checked, and `problems`, each with file, tensor and byte offset where known.
    Raises:
        CheckpointError: There is no output, or it has no manifest that can be read.
        ConfigError: Only one of base and adapter was given; the adapter of an adapter may come alone.
        WiseftError: See `interpolate` and `rescale`, for base and adapter.
    """
    folder, files = Path(path), FILES
    _check_folder(folder, files)
    manifest = parse_manifest(read_file(folder / MANIFEST, files), str(folder / MANIFEST))
    is_adapter = manifest.policy.get("output") == "adapter"
    alone = adapter is None if base is not None else adapter is not None and not is_adapter
    if sample is not None and sample < 1:
        raise ConfigError(
            "sample", expected="a number of pieces, at least 1", got=f"{sample}", hint="leave it out to compare all"
        )
    if alone or (sample is not None and adapter is None):
        raise ConfigError(
            "base and adapter",
            expected="both, to compute the output again, or neither",
            got="only one of them" if alone else "neither, with a sample",
            hint="give both, or check digests alone",
        )
    problems, checks = [], dict[str, int]()
    if sample is None:
        problems += [Problem(file, what) for file, what in check_outputs(folder, manifest, files)]
        checks["files"] = len(manifest.outputs)
    try:
        variant = variant_of(entry.file for entry in manifest.outputs)
        output = open_checkpoint(folder / WEIGHTS_FILE) if is_adapter else open_checkpoint(folder, variant=variant)
    except (CheckpointError, Unsupported, Fault) as error:
        problems.append(Problem(folder.name, f"{error.where}: {error.got}"))
        return _report(folder, None, manifest, checks, problems)
    with output:
        checks["headers"] = len(output.files)
        if adapter is not None:
            adapters = list(adapter) if isinstance(adapter, list | tuple) else [cast(Adapter | BaseLike, adapter)]
            again = _again(manifest, base, adapters, config, base_config, families)
            found = compare(output, wanted(again), checks, sample, progress)
            problems += [problem for problem, _ in zip(found, range(MOST), strict=False)]
        return _report(folder, output, manifest, checks, problems)


def _check_folder(folder: Path, files: Files) -> None:
    """Refuse what is no folder, and a folder that has no manifest; of a sweep, say which ones have."""
    seen = files.status(folder)
    if seen is None or not stat.S_ISDIR(seen.st_mode):
        raise CheckpointError(
            f"{folder}",
            expected="a folder that wiseft wrote as one output",
            got="nothing of that name" if seen is None else "something that is no folder",
            hint="check the spelling" if seen is None else "name the folder that it lies in",
        )
    if files.status(folder / MANIFEST) is None:
        outputs = sorted(place.parent.name for place in folder.glob(f"*/{MANIFEST}"))
        raise CheckpointError(
            f"{folder} — no {MANIFEST} here",
            expected="a folder that wiseft wrote as one output",
            got=f"a folder with {listed(outputs)}, each an output" if outputs else "a folder without a manifest",
            hint=f"verify one of them: {folder / outputs[0]}" if outputs else "was it written by another tool?",
        )


def _again(
    manifest: Manifest,
    base: BaseLike | None,
    adapters: Sequence[Adapter | BaseLike],
    config: AdapterConfig | Mapping[str, object] | None,
    base_config: Mapping[str, object] | None,
    families: Mapping[str, Family],
) -> Mapping[str, Tensor]:
    """The tensors that the manifest says were written: a view of a model, or those of an adapter."""
    policy = manifest.policy
    output = policy.get("output_dtype")
    options: dict[str, Any] = {
        "base_config": base_config,
        "extrapolate": policy.get("extrapolate") is True,
        "output_dtype": None if output in (None, "base") else str(output),
        "families": families,
    }
    if policy.get("output") == "adapter":
        return _adapter_again(manifest, adapters, config=config, base=base, **options)
    if base is None:
        raise TypeError("a model is made of a base")
    options |= {
        "overflow": str(policy.get("overflow", "error")),
        "compute_dtype": str(policy.get("compute_dtype", "F64")),
        "tied": str(policy.get("tied", "untie")),
    }
    if isinstance(manifest.alpha, str | Mapping) and len(adapters) == 1:
        return interpolate(base, adapters[0], alpha_of(manifest.alpha), config=config, **options)
    found = [opened(adapter, families) for adapter in adapters]
    return combine(base, list(zip(found, paired(found, manifest, FILES), strict=True)), **options)


def _adapter_again(
    manifest: Manifest,
    adapters: Sequence[Adapter | BaseLike],
    *,
    config: AdapterConfig | Mapping[str, object] | None,
    base: BaseLike | None,
    **options: Any,
) -> Mapping[str, Tensor]:
    """The tensors of an adapter, joined or rescaled again; as it was where the manifest knows no alpha."""
    if "method" in manifest.policy:
        return _joined_again(manifest, adapters, base, options)
    options |= {"config": config, "base": base}
    if len(adapters) != 1:
        raise ConfigError(
            "the adapters to verify against",
            expected="the one adapter that the output was made from",
            got=f"{len(adapters)}",
            hint="a rescaled adapter is made from one",
        )
    if manifest.adapters:
        return rescale(adapters[0], alpha_of(cast(Decimals, manifest.alpha)), **options).tensors
    found = opened(adapters[0], options["families"])
    tensors = found.tensors if isinstance(found, Adapter) else found
    spelling = suffixes(options["families"], found.config if isinstance(found, Adapter) else None)
    parsed = parse_keys(tensors, suffixes=spelling)
    return {saved: tensors[key] for key, saved in saved_keys(parsed, spelling).items()}


def _joined_again(
    manifest: Manifest, adapters: Sequence[Adapter | BaseLike], base: BaseLike | None, options: Mapping[str, Any]
) -> Mapping[str, Tensor]:
    """The tensors of an adapter that several were joined to."""
    if base is None:
        raise ConfigError(
            "base",
            expected="the base, beside the adapters that were joined",
            got="none",
            hint="give it too: adapters are joined over a base",
        )
    found = [opened(adapter, options["families"]) for adapter in adapters]
    rank = manifest.policy.get("rank")
    joined = combine_adapters(
        base,
        list(zip(found, paired(found, manifest, FILES), strict=True)),
        method=str(manifest.policy["method"]),
        rank=int(rank) if isinstance(rank, str) else None,
        base_config=options["base_config"],
        extrapolate=options["extrapolate"],
        families=options["families"],
    )
    return joined.adapter.tensors


def _report(
    folder: Path, output: Checkpoint | None, manifest: Manifest, checks: Mapping[str, int], problems: list[Problem]
) -> Report:
    """What was checked, and what was found."""
    return Report(
        path=str(folder),
        tensors=len(output.specs) if output is not None else 0,
        touched=checks.get("tensors computed", 0),
        bytes=sum(entry.bytes for entry in manifest.outputs),
        files=tuple(entry.file for entry in manifest.outputs),
        checks=checks,
        problems=tuple(problems),
    )
