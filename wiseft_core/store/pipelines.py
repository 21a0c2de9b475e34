"""A folder that diffusers wrote: a pipeline of several models, each in a sub-folder that model_index.json names.

Store room, no torch. What model_index.json says never leads out of its folder, and a pipeline is taken whole: a model
that it lists and that cannot be read is refused, because the output would lack it.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator, Mapping
from itertools import count, takewhile
from pathlib import Path
from typing import Final

from wiseft_core.errors import CheckpointError, Unsupported, WiseftError, listed
from wiseft_core.store.faults import faults
from wiseft_core.store.files import Files
from wiseft_core.store.locate import FOREIGN, SUFFIX, Place, chosen, locate, snapshot, spelled
from wiseft_core.store.strict_json import as_mapping, read_json

PIPELINE_FILE: Final = "model_index.json"
_CONFIG: Final = "config.json"
_NOT_MODELS: Final = frozenset({"tokenizer_config.json", "preprocessor_config.json", "processor_config.json"})
"""What tokenizers and processors save; some of them have a config.json too."""
_SEVERAL: Final = frozenset({"MultiControlNetModel", "MultiControlNetUnionModel", "MultiAdapter"})
"""Classes of diffusers that hold several models: the others lie in folders with _1, _2, ... behind the name."""
_COMPONENT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}", re.ASCII)
_CONVERT: Final = (
    f"convert it with save_pretrained(folder, safe_serialization=True), set it to [null, null] in {PIPELINE_FILE} to "
    "leave it out, or open one component alone with --component"
)
_LEAVE_OUT: Final = "fetch it, or open one component alone with --component"


def find(
    path: Path, *, component: str | None, variant: str | None, weights: str | None, files: Files
) -> tuple[Path | None, dict[str, Place]]:
    """The folder of a checkpoint, and where its models are: by component for a pipeline, else the one model by "".

    Arguments and errors as for `locate`. A pipeline is one where neither a component nor a file is chosen.
    """
    with faults("look at it", path):
        root = snapshot(path, files) if path.is_dir() else path
    if component is None and weights is None and files.status(root / PIPELINE_FILE) is not None:
        parts = _components(root, variant, files)
        beside = spelled(files.list_folder(root), variant) if parts else []
        if beside:
            raise CheckpointError(
                f"{root} — a pipeline, and a model beside it",
                expected="a pipeline or a model",
                got=f"{PIPELINE_FILE} with {listed(parts)}, and {listed(beside)}",
                hint=f"choose: --weights {beside[0]}, or --component {min(parts)}",
            )
        if parts:
            return root, parts
    place = locate(path, component=component, variant=variant, weights=weights, files=files)
    # What lies around a file that is chosen in a pipeline's folder is the pipeline's.
    is_apart = component is None and weights is not None and files.status(root / PIPELINE_FILE) is not None
    return None if is_apart else place.folder, {"": place}


def _components(root: Path, variant: str | None, files: Files) -> dict[str, Place]:
    """Where the models of a pipeline are, by the names of the components; all that is wrong is told together.

    Components without weights, such as schedulers and tokenizers, are none of them.
    """
    places: dict[str, Place] = {}
    problems: list[WiseftError] = []
    has_variant = False
    for name in sorted(set(_named(root, files))):
        try:
            names = _names_in(root, name, files)
            if names is not None:
                own = variant if variant is not None and spelled(names, variant) else None
                has_variant |= own is not None
                places[name] = chosen(root / name, names, own)
        except Unsupported as problem:
            problems.append(problem.with_hint(_CONVERT))
        except WiseftError as problem:
            problems.append(problem)
    WiseftError.raise_all(problems)
    if variant is not None and places and not has_variant:
        raise CheckpointError(
            f"{root} — no component has the variant {variant!r}",
            expected=f"a file such as {min(places)}/diffusion_pytorch_model.{variant}{SUFFIX}",
            got=listed(f"{name}/{place.file.name}" for name, place in places.items()),
            hint=f"leave out the variant {variant!r}",
        )
    return places


def _named(root: Path, files: Files) -> Iterator[str]:
    """The components that model_index.json lists: a library and a class each; what it leaves null is none.

    Source: diffusers 0.42, models/controlnets/multicontrolnet.py, from_pretrained.
    """
    where = root / PIPELINE_FILE
    table: Mapping[str, object] = as_mapping(read_json(where, files), f"{where}")
    for name, value in table.items():
        match value:
            case [str(), str() as kind] if not name.startswith("_"):
                pass
            case _:
                continue
        if not _COMPONENT.fullmatch(name):
            raise CheckpointError(
                f"{where} — a component",
                expected="the bare name of a folder beside it: letters, digits, _ and -",
                got=f"{name!r}",
                hint="do not use this checkpoint: a component has no business outside its folder",
            )
        yield name
        if kind in _SEVERAL:
            yield from takewhile(lambda more: (root / more).is_dir(), (f"{name}_{at}" for at in count(1)))


def _names_in(root: Path, component: str, files: Files) -> list[str] | None:
    """The names in the folder of a component; None where it holds no model.

    Raises:
        CheckpointError: There is no such folder, it is elsewhere, or it is that of a model without its weights.
    """
    folder = root / component
    seen = files.status(folder)
    if seen is None or not stat.S_ISDIR(seen.st_mode):
        got = "no such folder" if seen is None else "something else"
        raise _incomplete(folder, f"the folder of a component that {PIPELINE_FILE} lists", got, _LEAVE_OUT)
    if not files.resolve(folder).is_relative_to(files.resolve(root)):
        hint = "put a copy in its place: what lies beside the weights of a link would not go along"
        raise _incomplete(folder, "a folder of the pipeline", "a link that leaves it", hint)
    names = [name for name in files.list_folder(folder) if not name.startswith(".")]
    if any(name.endswith((SUFFIX, *FOREIGN)) or f"{SUFFIX}.index." in name for name in names):
        return names
    if _CONFIG in names and _NOT_MODELS.isdisjoint(names):
        raise _incomplete(folder, "weights beside the config of a model", listed(names, most=9), _LEAVE_OUT)
    return None


def _incomplete(where: Path, expected: str, got: str, hint: str) -> CheckpointError:
    return CheckpointError(f"{where} — not a whole pipeline", expected=expected, got=got, hint=hint)
