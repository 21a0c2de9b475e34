"""`wiseft demo`: its files are what other tools expect, its numbers are measured, and its checks can fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file

import wiseft_core
from wiseft_core.cli import demo, demo_checks, main
from wiseft_core.cli.demo_model import read_tensors


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """The demo, run once: its record and its folder."""
    out = tmp_path_factory.mktemp("demo") / "out"
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    torch.set_num_threads(1)  # as the command does in a process of its own
    record = demo.run_demo(out, quiet=True)
    torch.set_num_threads(threads)
    assert torch.equal(torch.get_rng_state(), state), "the global random state moved"
    return record, out


def test_all_identities_hold(shown):
    """Six outputs, all files of the base at alpha 0, all untouched tensors, thousands of elements, verified."""
    record, _ = shown
    assert record.problems == ()
    assert [(trial.adapter, trial.alpha) for trial in record.trials] == [
        (name, alpha) for name in ("lora", "dora") for alpha in (0.0, 0.5, 1.0)
    ]
    for trial in record.trials:
        assert (trial.touched, trial.untouched, trial.untouched_equal) == (28, 11, 11)
        assert trial.files_equal == (3 if trial.alpha == 0 else 0)
        assert trial.elements_equal > 2000
        assert trial.verified
        assert (trial.relative_change == 0) is (trial.alpha == 0)


def test_the_relative_change_is_that_of_the_files(shown):
    """‖W(1) - W‖ / ‖W‖ as numpy computes it from the files."""
    record, out = shown
    base, tuned = read_tensors(out / "base"), read_tensors(out / "dora-1")
    names = [name for name in base if name.endswith("_proj.weight")]
    before = np.concatenate([base[name].float().numpy().ravel() for name in names]).astype(np.float64)
    after = np.concatenate([tuned[name].float().numpy().ravel() for name in names]).astype(np.float64)
    expected = np.linalg.norm(after - before) / np.linalg.norm(before)
    assert record.trials[-1].relative_change == pytest.approx(expected, rel=1e-9)


def test_the_adapters_are_peft_s(shown):
    """PEFT reads both configs, and the files hold one pair of factors for each of 28 modules."""
    _, out = shown
    for name, dora in (("lora", False), ("dora", True)):
        config = peft.PeftConfig.from_pretrained(str(out / name))
        assert (config.r, config.lora_alpha, config.use_dora) == (8, 16, dora)
        assert len(load_file(out / name / "adapter_model.safetensors")) == (84 if dora else 56)


def test_the_text_is_the_json(shown):
    """The table shows the recorded numbers, and the next command."""
    record, _ = shown
    text = record.text()
    for trial in record.trials:
        assert f"{trial.relative_change:.2%}" in text
        assert str(trial.elements_equal) in text
    assert "wiseft interpolate BASE ADAPTER OUT --alpha 0.5" in text
    assert json.loads(json.dumps(record.as_dict()))["ok"] is True


def test_the_checks_see_one_wrong_unit(shown):
    """Elements one unit off, another untouched tensor, another file, and another adapter's output are all found."""
    _, out = shown
    base, factors, tuned = read_tensors(out / "base"), read_tensors(out / "lora"), read_tensors(out / "lora-1")
    for name in tuned:
        tuned[name].view(torch.int16)[...] += 1
    assert len(demo_checks.sampled(base, factors, tuned, 1.0)[1]) == 28
    assert len(demo_checks.equal_tensors(base, tuned)[1]) == 11
    assert len(demo_checks.equal_files(out / "base", out / "lora-1")[1]) == 1
    assert len(demo_checks.sampled(base, factors, read_tensors(out / "dora-1"), 1.0)[1]) == 28


def test_a_broken_promise_is_exit_1(shown, tmp_path, monkeypatch, capsys):
    """If a check fails, the command says which and returns 1."""
    record, _ = shown
    bad = demo.Demo(record.path, record.base_bytes, record.copy_seconds, (spoiled(record.trials[0]),))
    monkeypatch.setattr(demo, "run_demo", lambda out, quiet: bad)
    assert main(["demo", str(tmp_path / "out")]) == 1
    assert "1 promise broken:\n  lora at 0: it is wrong\n" in capsys.readouterr().out
    assert main(["demo", str(tmp_path / "out"), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["problems"] == ["lora at 0: it is wrong"]


def spoiled(trial):
    """The trial with a problem."""
    values = {name: getattr(trial, name) for name in trial.__dataclass_fields__}
    return demo.Trial(**{**values, "problems": ("it is wrong",)})


def test_an_existing_folder_is_refused(tmp_path, capsys):
    """The demo writes nothing where something is."""
    assert main(["demo", str(tmp_path)]) == 3
    assert list(tmp_path.iterdir()) == []
    assert len(capsys.readouterr().err.splitlines()) == 4


def test_a_failure_leaves_nothing(tmp_path, monkeypatch, capsys):
    """If the disk fails half-way, the demo's folder is gone and the exit code is 5."""

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(demo, "write_adapter", fail)
    assert main(["demo", str(tmp_path / "out")]) == 5
    assert list(tmp_path.iterdir()) == []
    assert "ENOSPC" in capsys.readouterr().err


def test_a_file_that_may_not_grow_is_exit_5(tmp_path):
    """Below `ulimit -f`, as on a full disk, the demo's own files are refused in four lines, and nothing is left."""
    code = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)); "
    code += "from wiseft_core.cli import main; sys.exit(main(['demo', sys.argv[1]]))"
    environment = {**os.environ, "PYTHONPATH": str(Path(wiseft_core.__file__).parents[1])}
    words = [sys.executable, "-c", code, str(tmp_path / "out")]
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert done.returncode == 5
    assert done.stderr.startswith("Fault: ") and "EFBIG" in done.stderr and len(done.stderr.splitlines()) == 4
    assert list(tmp_path.iterdir()) == []
