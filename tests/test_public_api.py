"""The door: exactly these names, each with a docstring, none of them heavy before it is used."""

from __future__ import annotations

import inspect
import math
import subprocess
import sys
import zipfile
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import wiseft_core

DOOR = [
    "Adapter",
    "AdapterConfig",
    "Checkpoint",
    "Joined",
    "Plan",
    "Report",
    "StateDict",
    "TensorSpec",
    "WiseftError",
    "combine",
    "combine_adapters",
    "errors",
    "families",
    "interpolate",
    "interpolate_tensor",
    "naming",
    "open_adapter",
    "open_checkpoint",
    "plan",
    "rescale",
    "save_adapter",
    "save_checkpoint",
    "save_sweep",
    "schedules",
    "sweep",
    "verify",
]
VERBS = [
    "combine",
    "combine_adapters",
    "interpolate",
    "interpolate_tensor",
    "plan",
    "rescale",
    "save_adapter",
    "save_checkpoint",
    "save_sweep",
    "sweep",
    "verify",
]


def test_door_is_exactly_this() -> None:
    """`__all__` is sorted and complete, and every name can be had."""
    assert wiseft_core.__all__ == DOOR
    assert all(getattr(wiseft_core, name) is not None for name in DOOR)
    assert dir(wiseft_core) == sorted([*DOOR, "__version__"])


@pytest.mark.parametrize("name", VERBS)
def test_verbs_take_at_most_three_positional_arguments(name: str) -> None:
    """Everything after the first three is keyword-only, and nothing takes `**kwargs`."""
    parameters = inspect.signature(getattr(wiseft_core, name)).parameters.values()
    positional = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]

    assert len(positional) <= 3
    assert not any(p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in parameters)


@pytest.mark.parametrize("name", VERBS)
def test_verbs_document_every_argument_and_what_they_raise(name: str) -> None:
    """Public docstrings name all arguments, and the errors."""
    verb = getattr(wiseft_core, name)
    text = inspect.getdoc(verb)

    assert "Raises:" in text
    assert all(parameter in text for parameter in inspect.signature(verb).parameters)


@pytest.mark.parametrize("name", ["interpolate", "verify", "plan", "sweep"])
def test_function_is_not_hidden_by_a_module(name: str) -> None:
    """Whatever is imported first, the public name is the function."""
    code = f"import wiseft_core.verification, wiseft_core.offline, wiseft_core as w; assert callable(w.{name})"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_unknown_name_is_an_attribute_error() -> None:
    """A misspelt name is refused as Python does it."""
    with pytest.raises(AttributeError, match="interpolat"):
        _ = wiseft_core.interpolat


@pytest.mark.parametrize("wrong", [{"family": "lorra"}, {"layout": "linar"}, {"parameter": "wieght"}])
def test_misspelt_choice_is_a_config_error(wrong: dict[str, str]) -> None:
    """A family, layout or parameter that is not there is refused with the names that are."""
    factors = {"A": torch.ones(1, 3), "B": torch.ones(2, 1)}

    with pytest.raises(wiseft_core.errors.ConfigError, match="one of"):
        wiseft_core.interpolate_tensor(torch.ones(2, 3), factors, 0.5, **wrong)


@pytest.mark.parametrize("path", ["a\0b", "a\0b/c", "a\ud800"])
def test_a_path_that_cannot_be_is_as_one_that_is_not_there(path: str, tmp_path: Path) -> None:
    """A NUL, and half a surrogate pair: a CheckpointError from whoever gets it."""
    base = tmp_path / "base"
    base.mkdir()
    save_file({"w": torch.ones(2, 2)}, base / "model.safetensors")
    view = wiseft_core.interpolate(base, base, 0.5)
    calls = [
        lambda: wiseft_core.interpolate(path, base, 0.5),
        lambda: wiseft_core.plan(base, path),
        lambda: wiseft_core.rescale(path, 0.5),
        lambda: wiseft_core.open_adapter(path),
        lambda: wiseft_core.open_checkpoint(path),
        lambda: wiseft_core.verify(path),
        lambda: wiseft_core.save_checkpoint(view, tmp_path / path),
        lambda: wiseft_core.save_sweep([view], tmp_path / path),
    ]
    for call in calls:
        with pytest.raises(wiseft_core.errors.CheckpointError):
            call()
    assert list(tmp_path.iterdir()) == [base]


def test_the_package_runs_from_a_zip(tmp_path: Path) -> None:
    """What ships beside the code is read through the importer, wherever that has it from."""
    package = Path(wiseft_core.__file__).parent
    with zipfile.ZipFile(tmp_path / "package.zip", "w") as archive:
        for path in (*package.rglob("*.py"), *package.rglob("*.json")):
            archive.write(path, path.relative_to(package.parent))
    code = "import sys; sys.path.insert(0, sys.argv[1]); from wiseft_core.naming import table as t; "
    code += "sys.exit(sys.argv[1] not in t.__file__ or t.rules_of({'model_type': 'llama'}) is None)"

    assert subprocess.run([sys.executable, "-c", code, tmp_path / "package.zip"], check=False).returncode == 0


LOW_RANK = {"A": torch.ones(1, 3), "B": torch.ones(2, 1)}
ODD = (torch.int8, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fnuz, torch.float8_e8m0fnu)


@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize("dtype", ODD, ids=str)
def test_dtypes_that_are_not_computed_with_are_refused_alone_too(dtype: torch.dtype, alpha: float) -> None:
    """`interpolate_tensor` refuses a weight, or a factor, as `interpolate` does."""
    weight, config = torch.ones(2, 3), {"lora_alpha": 1}
    for role in (None, *LOW_RANK):
        base = weight if role else weight.to(dtype)
        factors = {name: factor.to(dtype) if name == role else factor for name, factor in LOW_RANK.items()}
        adapter = {f"m.lora_{name}.weight": factor for name, factor in factors.items()}
        with pytest.raises(wiseft_core.WiseftError) as wanted:
            wiseft_core.interpolate({"m.weight": base}, adapter, alpha, config=config)
        with pytest.raises(type(wanted.value)) as found:
            wiseft_core.interpolate_tensor(base, factors, alpha)
        assert found.value.got == wanted.value.got


@pytest.mark.parametrize(
    "scale", [math.nan, math.inf, 2 + 5j, "2", True, None, 10**400, torch.ones(2)], ids=lambda one: str(one)[:6]
)
def test_a_scale_is_a_finite_number(scale: object) -> None:
    """At any alpha; numbers of numpy and torch are numbers."""
    for alpha in (0.0, 0.5):
        with pytest.raises(wiseft_core.errors.ConfigError, match="scale"):
            wiseft_core.interpolate_tensor(torch.ones(2, 3), LOW_RANK, alpha, scale=scale)
    for number in (3, np.float32(3), torch.tensor(3.0)):
        assert wiseft_core.interpolate_tensor(torch.ones(2, 3), LOW_RANK, 0.5, scale=number)[0, 0] == 2.5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"use_cayley_neuman": True}, "use_cayley_neumann"),
        ({"use_cayley_neumann": "no"}, "true or false"),
        ({"use_cayley_neumann": True, "num_cayley_neumann_terms": 2.5}, "whole number"),
        ({}, "no use_cayley_neumann"),
        ({"use_cayley_neumann": None}, "no use_cayley_neumann"),
    ],
)
def test_options_are_read_as_from_a_config(options: dict[str, object], said: str) -> None:
    """What the method does not have, or cannot be meant, is refused, and what has no default is never guessed."""
    with pytest.raises(wiseft_core.errors.ConfigError, match=said):
        wiseft_core.interpolate_tensor(torch.ones(2, 4), {"R": torch.ones(2, 1)}, 0.5, family="oft", options=options)


def test_what_ships_beside_the_code() -> None:
    """The marker of typed packages and the JSON schemas are part of the package."""
    package = files("wiseft_core")

    assert (package / "py.typed").is_file()
    for name in ("error", "manifest", "plan", "report", "sweep"):
        assert (package / "schemas" / f"{name}.schema.json").is_file()


@pytest.mark.parametrize(
    "options", [{"config": "x.json"}, {"config": 3}, {"config": []}, {"base_config": "x"}], ids=str
)
def test_configs_that_are_none_are_refused(options: dict[str, object]) -> None:
    """A path, a number, a list: a ConfigError that says what a config is."""
    weight = {"w.weight": torch.ones(2, 2)}
    factors = {"w.lora_A.weight": torch.ones(1, 2), "w.lora_B.weight": torch.ones(2, 1)}
    with pytest.raises(wiseft_core.errors.ConfigError, match="config"):
        wiseft_core.interpolate(weight, factors, 0.5, **{"config": {"lora_alpha": 1}, **options})
