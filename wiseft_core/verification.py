"""The verb that checks an output: against its manifest, and against what it was made from.

Verb floor. Streams: whatever is compared is compared in pieces, and nothing is mapped.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from wiseft_core import dtypes
from wiseft_core.config import AdapterConfig
from wiseft_core.errors import CheckpointError, ConfigError, Fault, Unsupported
from wiseft_core.families import FAMILIES, Family
from wiseft_core.interpolation import interpolate
from wiseft_core.report import Problem, Report
from wiseft_core.sources import Adapter, BaseLike, Source
from wiseft_core.statedict import StateDict
from wiseft_core.store.checkpoint import Checkpoint, open_checkpoint
from wiseft_core.store.files import FILES, Files
from wiseft_core.store.manifest import MANIFEST, Manifest, check_outputs, parse_manifest
from wiseft_core.types import TensorSpec

PIECE: Final = 1 << 20
"""Bytes of an untouched tensor that are compared at once."""
MOST: Final = 1000
"""Problems after which a comparison stops: the output is not what it claims to be."""


def verify(
    path: str | os.PathLike[str],
    *,
    base: BaseLike | None = None,
    adapter: Adapter | BaseLike | None = None,
    config: AdapterConfig | Mapping[str, object] | None = None,
    base_config: Mapping[str, object] | None = None,
    families: Mapping[str, Family] = FAMILIES,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Check an output that `save_checkpoint` wrote.

    Alone: every file is there, has its size and digest, and no other file is; headers and index are sound and agree.
    With base and adapter: every touched tensor is computed again and compared bit for bit, every other one is compared
    with the base's bytes.

    Args:
        path: The output folder.
        base: What it was made from, as for `interpolate`; to be given together with `adapter`.
        adapter: As for `interpolate`.
        config: As for `interpolate`.
        base_config: As for `interpolate`.
        families: As for `interpolate`.
        progress: Told of bytes compared and bytes in all.
    Returns:
        What was checked, and `problems`, each with file, tensor and byte offset where known.
    Raises:
        CheckpointError: There is no output, or it has no manifest that can be read.
        ConfigError: Only one of base and adapter was given.
        WiseftError: See `interpolate`, for base and adapter.
    """
    folder, files = Path(path), FILES
    if (base is None) != (adapter is None):
        raise ConfigError(
            "base and adapter",
            expected="both, to compute the output again, or neither",
            got="only the base" if adapter is None else "only the adapter",
            hint="give both, or check digests alone",
        )
    manifest = parse_manifest(_read(folder / MANIFEST, files), str(folder / MANIFEST))
    problems = [Problem(file, what) for file, what in check_outputs(folder, manifest, files)]
    checks = {"files": len(manifest.outputs)}
    try:
        output = open_checkpoint(folder)
    except (CheckpointError, Unsupported, Fault) as error:
        problems.append(Problem(folder.name, f"{error.where}: {error.got}"))
        return _report(folder, None, manifest, checks, problems)
    with output:
        checks["headers"] = len(output.files)
        if base is not None and adapter is not None:
            view = _view(manifest, base, adapter, config, base_config, families)
            found = _compare(output, view, checks, progress)
            problems += [problem for problem, _ in zip(found, range(MOST), strict=False)]
        return _report(folder, output, manifest, checks, problems)


def _read(path: Path, files: Files) -> bytes:
    """The manifest's bytes."""
    descriptor = files.open_read(path)
    try:
        data = bytearray(files.identity(descriptor)[2])
        files.read_into(descriptor, memoryview(data), 0, path)
        return bytes(data)
    finally:
        files.close(descriptor)


def _view(
    manifest: Manifest,
    base: BaseLike,
    adapter: Adapter | BaseLike,
    config: AdapterConfig | Mapping[str, object] | None,
    base_config: Mapping[str, object] | None,
    families: Mapping[str, Family],
) -> StateDict:
    """The state dict that the manifest says was written."""
    alpha, policy = manifest.alpha, manifest.policy
    output = policy.get("output_dtype")
    return interpolate(
        base,
        adapter,
        float(alpha) if isinstance(alpha, str) else {name: float(value) for name, value in alpha.items()},
        config=config,
        base_config=base_config,
        extrapolate=policy.get("extrapolate") is True,
        overflow=str(policy.get("overflow", "error")),
        compute_dtype=dtypes.TORCH_DTYPES[str(policy.get("compute_dtype", "F64"))],
        output_dtype=None if output in (None, "base") else str(output),
        families=families,
    )


def _compare(
    output: Checkpoint, view: StateDict, checks: dict[str, int], progress: Callable[[int, int], None] | None
) -> Iterator[Problem]:
    """Everything in which an output differs from what it should be."""
    wanted = view.plan.outputs
    for name in wanted.keys() - output.specs.keys():
        yield Problem("the output", "a tensor that should be there is missing", name)
    for name in output.specs.keys() - wanted.keys():
        yield Problem(output.file_of(name).name, "a tensor that should not be there", name)
    done, total = 0, view.plan.nbytes
    for name, spec in wanted.items():
        if name not in output.specs:
            continue
        file = output.file_of(name)
        if output.specs[name] != spec:
            yield Problem(file.name, f"is {output.specs[name]} and should be {spec}", name)
            continue
        copied = view.bound.is_copy(name, view.alphas.get(name, 0.0))
        kind = "tensors copied" if copied else "tensors computed"
        checks[kind] = checks.get(kind, 0) + 1
        for start, mine in _computed(view, name, spec):
            theirs = torch.empty(len(mine), dtype=torch.uint8)
            file.read_into(theirs.numpy().data, name, start)
            if not torch.equal(mine, theirs):
                first = int((mine != theirs).nonzero()[0])
                count = int((mine != theirs).sum())
                what = f"{count} byte(s) differ from what base and adapter give"
                yield Problem(file.name, what, name, file.offset_of(name) + start + first)
            done += len(mine)
            if progress is not None:
                progress(done, total)


def _computed(view: StateDict, name: str, spec: TensorSpec) -> Iterator[tuple[int, Tensor]]:
    """What a tensor's bytes should be, in pieces with their offsets."""
    bound, alpha = view.bound, view.alphas.get(name, 0.0)
    source, key = bound.source(name)
    if bound.is_copy(name, alpha):
        yield from _pieces(source, key, spec.nbytes)
        return
    item = spec.nbytes // max(spec.numel, 1)
    with torch.no_grad():
        prepared = bound.prepare(name, alpha)
        reached = 0
        for tile in prepared.tiles():
            if prepared.rows is not None and tile.start > reached:
                yield reached * item, _raw(prepared.read(reached, tile.start))
            yield tile.start * item, _raw(prepared.value(tile))
            reached = tile.stop
        if reached < spec.numel:
            yield reached * item, _raw(prepared.read(reached, spec.numel))


def _pieces(source: Source, key: str, size: int) -> Iterator[tuple[int, Tensor]]:
    """A source's own bytes of a tensor, whatever its dtype, in pieces with their offsets."""
    if not isinstance(source, Checkpoint):
        yield 0, _raw(source.get_tensor(key))
        return
    for start in range(0, size, PIECE):
        piece = torch.empty(min(PIECE, size - start), dtype=torch.uint8)
        source.file_of(key).read_into(piece.numpy().data, key, start)
        yield start, piece


def _raw(tensor: Tensor) -> Tensor:
    """The bytes of a tensor."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


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
