"""Bases, tuned models and adapters, each made once per session: saved by transformers and by PEFT, loaded by them."""

from __future__ import annotations

import functools
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import peft
import torch
import transformers
from pairs import plain
from pairs.pair import Pair, State
from pairs.strangers import MODELS
from safetensors.torch import load_file, save_file
from torch import nn

SHARDED = {"original": "25KB", "memory": "1GB"}
transformers.utils.logging.disable_progress_bar()
KEEP = tempfile.TemporaryDirectory(prefix="wiseft-pairs-")
PREFIX = "base_model.model."


class Loaded(NamedTuple):
    """A model's parameters and buffers, and the names that the file lacked or had beyond them."""

    state: State
    missing: frozenset[str]
    unexpected: frozenset[str]


class Tuned(NamedTuple):
    """An adapter's folder, the tuned model's state, and the adapter's tensors as PEFT names them."""

    folder: Path
    state: State
    spelled_by_peft: State


@contextmanager
def quiet() -> Iterator[None]:
    """Without what transformers and PEFT have to say."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(before)


def class_of(kind: str) -> Any:
    """The class of that name, transformers' or ours."""
    return getattr(plain, kind, None) or getattr(transformers, kind)


def fill(model: nn.Module, seed: int) -> None:
    """Random values everywhere, so that no two tensors are alike and no factor is without effect."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.state_dict(keep_vars=True).items():
            if value.is_floating_point() and value.numel():
                shift = 1.0 if "norm" in name.lower() or "running_var" in name else 0.0
                value.copy_(shift + 0.2 * torch.randn(value.shape, generator=draw))


@functools.cache
def base_folder(model: str, form: str, spell: Any = None, turn: tuple[str, ...] = ()) -> Path:
    """The base as transformers saves it, in one of its two formats, in several files in the original one."""
    folder = Path(KEEP.name, f"{model}-{form}-{id(spell) if spell else 0}-{len(turn)}")
    kind, sizes = MODELS[model]
    with quiet():
        cls = class_of(kind)
        torch.manual_seed(0)
        made = cls(cls.config_class(**sizes))
        fill(made, seed=1)
        made.save_pretrained(folder, save_original_format=form == "original", max_shard_size=SHARDED[form])
    if spell or turn:
        rewrite(folder, spell or str, turn)
    return folder


def rewrite(folder: Path, spell: Any, turn: tuple[str, ...]) -> None:
    """Give the tensors of a folder other names, in the files and in the index, and turn some."""
    for file in folder.glob("*.safetensors"):
        tensors = {
            spell(name): value.mT.contiguous() if name.endswith(turn) else value
            for name, value in load_file(file).items()
        }
        save_file(tensors, file, {"format": "pt"})
    index = folder / "model.safetensors.index.json"
    if index.exists():
        text = json.loads(index.read_text())
        text["weight_map"] = {spell(name): file for name, file in text["weight_map"].items()}
        index.write_text(json.dumps(text))


def load(folder: Path, kind: str) -> tuple[nn.Module, Loaded]:
    """What transformers makes of a folder."""
    with quiet():
        torch.manual_seed(3)
        model, info = class_of(kind).from_pretrained(
            folder, output_loading_info=True, dtype=torch.float32, local_files_only=True
        )
    assert not info["mismatched_keys"] and not info.get("error_msgs"), info
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    return model, Loaded(state, frozenset(info["missing_keys"]), frozenset(info["unexpected_keys"]))


def kind_of(pair: Pair) -> str:
    """The class that is tuned."""
    return pair.tuned or MODELS[pair.model][0]


@functools.cache
def base_state(model: str, form: str, spell: Any, turn: tuple[str, ...], kind: str) -> Loaded:
    """The base's state as the tuned class loads it."""
    return load(base_folder(model, form, spell, turn), kind)[1]


def base_of(pair: Pair, form: str) -> tuple[Path, Loaded]:
    """A pair's base folder in one format, and what the tuned class loads from it."""
    how = (pair.model, form, pair.spell, pair.turn)
    return base_folder(*how), base_state(*how, kind_of(pair))


@functools.cache
def tuned_names() -> dict[str, Tuned]:
    """What was tuned already, by the pair's name."""
    return {}


def tuned_of(pair: Pair) -> Tuned:
    """A pair's adapter folder and tuned state, made once."""
    made = tuned_names()
    if pair.name not in made:
        made[pair.name] = tune_by_hand(pair) if pair.by_hand else tune(pair)
    return made[pair.name]


def tune(pair: Pair) -> Tuned:
    """Wrap the base with PEFT, give all that is trained random values, save that, and merge."""
    base = base_folder(pair.model, pair.formats[-1], pair.spell, pair.turn)
    folder = Path(KEEP.name, f"adapter-{pair.name}")
    model, before = load(base, kind_of(pair))
    with quiet():
        if pair.vocabulary:
            model.resize_token_embeddings(pair.vocabulary, mean_resizing=False)
        torch.manual_seed(4)
        live = peft.get_peft_model(model, getattr(peft, f"{pair.method}Config")(**pair.options))
        train(live)
        live.save_pretrained(folder)
        adapter = load_file(folder / "adapter_model.safetensors")
        merged = live.merge_and_unload()
        state = {name: value.detach().clone() for name, value in merged.state_dict().items()}
    if pair.oracle:
        state = pair.oracle(before.state, {key.removeprefix(PREFIX): t for key, t in adapter.items()}, state)
    if pair.respell:
        spelled = {pair.respell(key): value for key, value in adapter.items()}
        save_file(spelled, folder / "adapter_model.safetensors", {"format": "pt"})
    return Tuned(folder, state, adapter)


def train(live: nn.Module) -> None:
    """Move every trained value away from where PEFT starts it."""
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, value in live.named_parameters():
            if value.requires_grad:
                change = 0.2 * torch.randn(value.shape, generator=draw)
                value.copy_(value * (1 + change) if "magnitude" in name else value + change)


def tune_by_hand(pair: Pair) -> Tuned:
    """An adapter whose factors the case makes itself, because the model that it was trained on is no more."""
    folder = Path(KEEP.name, f"adapter-{pair.name}")
    folder.mkdir()
    adapter, state = pair.by_hand(base_of(pair, pair.formats[-1])[1].state)
    save_file({PREFIX + key: value for key, value in adapter.items()}, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "bias": "none", "peft_version": "0.17.1", **pair.options}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return Tuned(folder, state, adapter)
