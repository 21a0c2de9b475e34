"""The house rules that no tool checks: sizes, words, top level."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from torch.utils._device import _device_constructors

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "wiseft_core"
MODULES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in MODULES}
VAGUE = {"utils", "helpers", "common", "core", "base", "misc", "manager"}


def functions(tree: ast.AST) -> list[ast.FunctionDef]:
    """All functions and methods of a module."""
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def body_lines(function: ast.FunctionDef) -> int:
    """Lines of a function's statements: a signature and a docstring that explain much are not length."""
    statements = function.body[1:] if ast.get_docstring(function) else function.body
    return statements[-1].end_lineno - statements[0].lineno + 1 if statements else 0


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_file_and_function_sizes(path: Path) -> None:
    """No file above 300 lines, no function above 50 lines of statements."""
    lines = path.read_text().count("\n")
    long = {f.name: body_lines(f) for f in functions(TREES[path]) if body_lines(f) > 50}

    assert lines <= 300
    assert not long


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_says_what_it_is_and_has_a_telling_name(path: Path) -> None:
    """Every module has a docstring, and none is called by a word that could mean anything."""
    assert ast.get_docstring(TREES[path])
    assert path.stem not in VAGUE


def test_no_pickle_and_no_unchecked_regex() -> None:
    """Nothing loads pickles, and `re` sees constant patterns only; the table of renames, which we ship, excepted."""
    for path, tree in TREES.items():
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            name = ast.unparse(call.func)
            assert name not in {"torch.load", "pickle.load", "pickle.loads", "eval", "exec"}, path
            if name.startswith("re.") and path.name != "renames.py":
                names = {node.id for node in ast.walk(call.args[0]) if isinstance(node, ast.Name)}
                assert all(name.isupper() for name in names), f"{path}: {ast.unparse(call)}"


def test_no_global_state_is_changed() -> None:
    """Nothing sets threads, default dtype, RNG, warnings filters or the umask; the command's own process excepted."""
    forbidden = re.compile(
        r"set_num_threads|set_default_dtype|(?<!Generator\(\)\.)manual_seed|filterwarnings|simplefilter|umask\("
    )
    found = [path for path in MODULES if forbidden.search(path.read_text())]

    assert {path.relative_to(PACKAGE).parts[0] for path in found} <= {"cli"}


def test_every_new_tensor_is_told_where_to_be() -> None:
    """No call that `torch.set_default_device` would move goes without a device; the command's own process excepted."""
    makers = {f"torch.{function.__name__}" for function in _device_constructors()}
    assert {"torch.empty", "torch.tensor", "torch.randperm", "torch.triu_indices"} <= makers
    found = [
        f"{path.relative_to(PACKAGE)}: {ast.unparse(call)}"
        for path, tree in TREES.items()
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and ast.unparse(call.func) in makers and "cli" not in path.parts
        if not any(named.arg == "device" for named in call.keywords)
    ]

    assert not found


def test_top_level_holds_what_the_design_names() -> None:
    """The repository's top level stays bare."""
    import subprocess

    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode or not listed.stdout:
        pytest.skip("not a git checkout")
    top = {name.split("/")[0] for name in listed.stdout.splitlines()}

    assert {name for name in top if not name.startswith(".")} <= {
        "LICENSE", "README.md", "pyproject.toml", "tests", "wiseft_core"
    }  # fmt: skip
