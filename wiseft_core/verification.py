"""The verb that checks an output: against its manifest, and against what it was made from.

Verb floor. Streams: whatever is compared is compared in pieces, and nothing is mapped.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any, Final, NamedTuple, cast

import torch
from torch import Tensor

from wiseft_core import dtypes
from wiseft_core.bound import Prepared
from wiseft_core.combination import combine
from wiseft_core.config import AdapterConfig
from wiseft_core.errors import CheckpointError, ConfigError, Fault, Unsupported
from wiseft_core.families import FAMILIES, Family
from wiseft_core.interpolation import interpolate
from wiseft_core.joining import combine_adapters
from wiseft_core.methods import suffixes
from wiseft_core.naming.peft import parse_keys, saved_keys
from wiseft_core.record import alpha_of, paired
from wiseft_core.report import Problem, Report
from wiseft_core.rescaling import rescale
from wiseft_core.sources import WEIGHTS_FILE, Adapter, BaseLike, Memory, Source, opened
from wiseft_core.statedict import StateDict
from wiseft_core.store.checkpoint import Checkpoint, open_checkpoint
from wiseft_core.store.files import FILES, read_file
from wiseft_core.store.manifest import MANIFEST, Decimals, Manifest, check_outputs, parse_manifest
from wiseft_core.tiles import Tile, grid
from wiseft_core.types import TensorSpec

PIECE: Final = 1 << 20
"""Bytes of an untouched tensor that are compared at once."""
MOST: Final = 1000
"""Problems after which a comparison stops: the output is not what it claims to be."""


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
    manifest = parse_manifest(read_file(folder / MANIFEST, files), str(folder / MANIFEST))
    is_adapter = manifest.policy.get("output") == "adapter"
    alone = adapter is None if base is not None else adapter is not None and not is_adapter
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
        output = open_checkpoint(folder / WEIGHTS_FILE if is_adapter else folder)
    except (CheckpointError, Unsupported, Fault) as error:
        problems.append(Problem(folder.name, f"{error.where}: {error.got}"))
        return _report(folder, None, manifest, checks, problems)
    with output:
        checks["headers"] = len(output.files)
        if adapter is not None:
            adapters = list(adapter) if isinstance(adapter, list | tuple) else [cast(Adapter | BaseLike, adapter)]
            again = _again(manifest, base, adapters, config, base_config, families)
            found = _compare(output, _wanted(again), checks, sample, progress)
            problems += [problem for problem, _ in zip(found, range(MOST), strict=False)]
        return _report(folder, output, manifest, checks, problems)


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
        "compute_dtype": dtypes.TORCH_DTYPES[str(policy.get("compute_dtype", "F64"))],
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


class _Wanted(NamedTuple):
    """What an output should hold: specs, and for each name its pieces and what was done for it."""

    specs: Mapping[str, TensorSpec]
    pieces: Callable[[str], Iterator[_Piece]]
    kind: Callable[[str], str]


def _wanted(tensors: Mapping[str, Tensor]) -> _Wanted:
    """What an output of these tensors should hold."""
    if isinstance(tensors, StateDict):
        return _Wanted(tensors.plan.outputs, partial(_pieces, tensors), partial(_kind, tensors))
    source = Memory(tensors)
    return _Wanted(
        source.specs,
        lambda name: _copied(source, name, name, 0, source.specs[name].nbytes),
        lambda name: "tensors computed",
    )


class _Piece(NamedTuple):
    """Some bytes of a tensor of the output, and how to get what they should be."""

    name: str
    start: int
    size: int
    make: Callable[[], Tensor]


def _compare(
    output: Checkpoint,
    wanted: _Wanted,
    checks: dict[str, int],
    sample: int | None,
    progress: Callable[[int, int], None] | None,
) -> Iterator[Problem]:
    """Everything in which an output differs from what it should be."""
    specs = wanted.specs
    for name in specs.keys() - output.specs.keys():
        yield Problem("the output", "a tensor that should be there is missing", name)
    for name in output.specs.keys() - specs.keys():
        yield Problem(output.file_of(name).name, "a tensor that should not be there", name)
    fitting = [name for name, spec in specs.items() if output.specs.get(name) == spec]
    for name in specs.keys() & output.specs.keys() - set(fitting):
        yield Problem(output.file_of(name).name, f"is {output.specs[name]} and should be {specs[name]}", name)
    pieces: Iterator[_Piece] = (piece for name in fitting for piece in wanted.pieces(name))
    if sample is not None:
        draw = Random(0)
        pieces = iter(heapq.nsmallest(sample, pieces, key=lambda piece: draw.random()))
    done, total, seen = 0, sum(spec.nbytes for spec in specs.values()), set[str]()
    for piece in pieces:
        file = output.file_of(piece.name)
        mine, theirs = piece.make(), torch.empty(piece.size, dtype=torch.uint8)
        file.read_into(theirs.numpy().data, piece.name, piece.start)
        if not torch.equal(mine, theirs):
            apart = (mine != theirs).nonzero()
            what = f"{len(apart)} byte(s) differ from what base and adapter give"
            yield Problem(file.name, what, piece.name, file.offset_of(piece.name) + piece.start + int(apart[0]))
        if piece.name not in seen:
            seen.add(piece.name)
            kind = wanted.kind(piece.name)
            checks[kind] = checks.get(kind, 0) + 1
        done += piece.size
        if progress is not None:
            progress(done, total)


def _kind(view: StateDict, name: str) -> str:
    """What was done for a tensor, for the count of checks."""
    return "tensors copied" if view.is_copy(name) else "tensors computed"


def _pieces(view: StateDict, name: str) -> Iterator[_Piece]:
    """A tensor in pieces; nothing is read before a piece is made."""
    bound, shares, spec = view.bound, [view.share(name)], view.spec(name)
    source, key = bound.source(name)
    if view.is_copy(name):
        yield from _copied(source, key, name, 0, spec.nbytes)
        return
    item, reached = spec.nbytes // max(spec.numel, 1), 0
    prepared = cache(partial(bound.prepare, name, shares))
    for tile in grid(spec.shape, bound.rows(name, shares)):
        yield from _copied(source, key, name, reached * item, tile.start * item)
        yield _Piece(name, tile.start * item, (tile.stop - tile.start) * item, partial(_value, prepared, tile))
        reached = tile.stop
    yield from _copied(source, key, name, reached * item, spec.nbytes)


def _value(prepared: Callable[[], Prepared], tile: Tile) -> Tensor:
    """The bytes of a tile, computed again."""
    with torch.no_grad():
        return _raw(prepared().value(tile))


def _copied(source: Source, key: str, name: str, start: int, stop: int) -> Iterator[_Piece]:
    """Bytes [start, stop) of a tensor that should be those of its source, whatever their dtype."""
    for low in range(start, stop, PIECE):
        high = min(low + PIECE, stop)
        yield _Piece(name, low, high - low, partial(_stored, source, key, low, high))


def _stored(source: Source, key: str, start: int, stop: int) -> Tensor:
    """Bytes [start, stop) of a tensor as its source has them."""
    if not isinstance(source, Checkpoint):
        return _raw(source.get_tensor(key))[start:stop]
    piece = torch.empty(stop - start, dtype=torch.uint8)
    source.file_of(key).read_into(piece.numpy().data, key, start)
    return piece


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
