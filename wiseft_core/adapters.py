"""From an adapter to a folder as PEFT saves it: adapter_model.safetensors with adapter_config.json.

Verb floor. Like a checkpoint, the folder appears complete or not at all, with a manifest of what it was made from.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from wiseft_core.config import AdapterConfig
from wiseft_core.config_completion import completed
from wiseft_core.config_fields import plain
from wiseft_core.dtypes import raw_bytes
from wiseft_core.errors import ConfigError, ConfigNeeded
from wiseft_core.families import FAMILIES, Family
from wiseft_core.made import Made
from wiseft_core.methods import ranks, suffixes
from wiseft_core.naming.peft import PeftKey, parse_keys, saved_keys
from wiseft_core.record import adapter_files, folder_of, manifest_of, places, sources
from wiseft_core.report import Report
from wiseft_core.sites import collect
from wiseft_core.sources import CONFIG_FILE, WEIGHTS_FILE, Adapter, Source, as_source
from wiseft_core.store.files import FILES
from wiseft_core.store.header import build_header
from wiseft_core.store.manifest import MANIFEST, OutputFile, build_manifest
from wiseft_core.store.publish import Staging
from wiseft_core.store.sidecars import copy_sidecar, plan_sidecars
from wiseft_core.store.writer import ShardWriter, write_file
from wiseft_core.version import __version__

POLICY: Final = {"output": "adapter"}
"""How a manifest says that it is an adapter's."""
METADATA: Final = {"format": "pt"}


def save_adapter(
    adapter: Adapter, path: str | os.PathLike[str], *, sync: bool = True, families: Mapping[str, Family] = FAMILIES
) -> Report:
    """Write an adapter as a folder that PEFT loads, complete or not at all.

    Its tensors under PEFT's keys, its config with every field that it came with, the files beside the adapter that it
    was made from (not other weights, not code), and the manifest `wiseft.json`. A config that leaves out what PEFT
    needs is completed from the tensors: r, target_modules, use_dora and the like.

    Args:
        adapter: What `rescale` or `combine_adapters` gave, or any `Adapter` with a config.
        path: The output folder: absent or empty, and not inside an input.
        sync: Force everything to disk before publishing; without, the manifest does not claim it.
        families: The methods to know; what a verb gave knows its own.
    Returns:
        What was written, and which files beside the adapter were left out.
    Raises:
        ConfigNeeded: The adapter has no config.
        CheckpointError: `path` is not absent or empty, or overlaps an input.
        Fault: The operating system failed a call: no space, no permission, an I/O error. No output is left.
        InputChanged: An input changed since it was opened. No output is left.
        Locked: Another process writes to the same output.
    """
    out, files, source = Path(path), FILES, as_source(adapter.tensors)
    families = adapter.view.bound.families if isinstance(adapter, Made) else families
    spelling = suffixes(families, adapter.config)
    parsed = parse_keys(source.specs, suffixes=spelling)
    keys = {saved: key for key, saved in saved_keys(parsed, spelling).items()}
    config, note = _config_bytes(adapter.config, parsed, source, families)
    origin = adapter.view if isinstance(adapter, Made) else source
    sidecars = plan_sidecars(_folder(adapter), [], copy_code=False, taken=(WEIGHTS_FILE, CONFIG_FILE), files=files)
    inputs = [place for checkpoint in sources(origin) for place in places(checkpoint)]
    with Staging(out, files, sync=sync, inputs=inputs) as staging:
        written = {
            WEIGHTS_FILE: _write_weights(staging.folder / WEIGHTS_FILE, source, keys, sync),
            CONFIG_FILE: (len(config), write_file(staging.folder / CONFIG_FILE, config, files, sync)),
        }
        for name, beside in sidecars.copies:
            written[name] = copy_sidecar(beside, staging.folder / name, files, sync)
        for checkpoint in sources(origin):
            checkpoint.check_unchanged()
        write_file(staging.folder / MANIFEST, _manifest(adapter, written, sync), files, sync)
        staging.publish()
    plan = adapter.view.plan if isinstance(adapter, Made) else None
    return Report(
        path=str(out),
        tensors=len(keys),
        touched=len(plan.bindings) if plan is not None else 0,
        new=tuple(plan.new) if plan is not None else (),
        bytes=sum(size for size, _ in written.values()),
        files=tuple(sorted(written)),
        left_out=sidecars.left_out,
        notes=(*(plan.notes if plan is not None else ()), *filter(None, [note])),
    )


def _folder(adapter: Adapter) -> Path | None:
    """The folder of the adapter that this one was made from, or that it is; none for one that others were joined to."""
    if isinstance(adapter, Made) and adapter.method:
        return None
    tensors = adapter.view.bound.parts[0].adapter if isinstance(adapter, Made) else adapter.tensors
    return folder_of(tensors)


def _write_weights(path: Path, source: Source, keys: Mapping[str, str], sync: bool) -> tuple[int, str]:
    """Write the tensors under their new keys; size and digest of the file."""
    header = build_header({saved: source.specs[key] for saved, key in keys.items()}, METADATA)
    writer = ShardWriter(path, header, FILES)
    try:
        for saved, key in keys.items():
            writer.write(saved, 0, raw_bytes(source.read(key, 0, source.specs[key].numel)).numpy().data)
        return header.size, writer.finish(sync)
    except BaseException:
        writer.abort()
        raise


def _manifest(adapter: Adapter, written: Mapping[str, tuple[int, str]], sync: bool) -> bytes:
    """The bytes of wiseft.json; an adapter that is saved as it was has no alpha."""
    if isinstance(adapter, Made):
        return manifest_of(adapter.view, written, FILES, synced=sync, policy={**POLICY, **adapter.method})
    return build_manifest(
        version=__version__,
        alpha={},
        adapters=[],
        inputs=adapter_files(adapter.tensors, adapter.config_bytes, FILES),
        outputs=[OutputFile(name, size, digest) for name, (size, digest) in written.items()],
        policy={**POLICY, "synced": sync},
    )


def _config_bytes(
    config: AdapterConfig | None, parsed: Mapping[str, PeftKey], source: Source, families: Mapping[str, Family]
) -> tuple[bytes, str]:
    """The content of adapter_config.json, as PEFT spells it, and a note where the config had to be completed.

    Raises:
        ConfigNeeded: There is no config.
        ConfigError: A field holds what JSON cannot spell.
    """
    if config is None:
        raise ConfigNeeded(
            "the adapter has no config",
            expected="an adapter with the config that it was trained with: PEFT loads none without",
            got="None",
            hint="Adapter(tensors, AdapterConfig.from_mapping({...}))",
        )
    fields, added = completed(config, parsed, ranks(collect(parsed), source.specs, families), families)
    try:
        text = json.dumps(fields, indent=2, sort_keys=True, default=plain)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            "the adapter's config",
            expected="fields that JSON can spell",
            got=str(error),
            hint="give the dict of adapter_config.json, or peft_config.to_dict()",
        ) from error
    note = f"the config did not say {', '.join(added)}: written as the tensors say" if added else ""
    return f"{text}\n".encode(), note
