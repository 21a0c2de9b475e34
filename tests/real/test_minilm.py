"""all-MiniLM-L6-v2 (BERT, fp32) with adapters trained by PEFT: from files to files, and what comes out."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from real import adapters, promises
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

# PEFT 0.21 asks for a property that transformers 5 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module", params=adapters.MINILM)
def case(request, minilm: Path, tmp_path_factory) -> Iterator[promises.Case]:
    """An adapter trained now, and the outputs at every alpha."""
    folder = tmp_path_factory.mktemp(request.param)
    adapters.train_minilm(minilm, folder / "adapter", adapters.MINILM[request.param])
    yield promises.write_outputs(minilm, folder / "adapter", folder)
    shutil.rmtree(folder)


def load(folder: Path) -> nn.Module:
    """The model as transformers loads it, ready to be asked."""
    model = AutoModel.from_pretrained(folder).eval()
    assert model.dtype == torch.float32
    return model


def results(tokenizer, model: nn.Module) -> Tensor:
    """Hidden states and pooled output of two sentences, in one tensor."""
    batch = tokenizer(["The ferry leaves at dawn.", "Copper conducts well"], return_tensors="pt", padding=True)
    with torch.no_grad():
        said = model(**batch)
    return torch.cat([said.last_hidden_state, said.pooler_output.unsqueeze(1)], dim=1)


def test_alpha_zero_is_the_base(case):
    """At alpha 0 the weight file is the base's, byte for byte."""
    assert promises.check_base_bytes(case) == 1


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_every_element_is_exact(case, alpha, record_property):
    """Every element keeps the promise, by an oracle that reads the raw files; what tuning left alone is unchanged."""
    promises.check_untouched(case, alpha)
    figures = promises.check_exact(case, alpha)
    record_property("exactness", figures)
    print(case.adapter, alpha, figures)
    assert figures["elements"] > 5_000_000
    assert figures["by fractions"] > 2_000


def test_alpha_one_is_pefts_merge(case, record_property):
    """At alpha 1 PEFT's merge_and_unload gives the same weights, within what its float32 arithmetic can lose."""
    merged = PeftModel.from_pretrained(load(case.base), case.adapter).merge_and_unload().state_dict()
    figures = promises.check_merge(case, merged)
    record_property("merge", figures)
    print(case.adapter, figures)
    assert figures["elements"] > 5_000_000


@pytest.mark.parametrize("alpha", promises.ALPHAS)
def test_transformers_computes_the_same(case, alpha):
    """A loaded output gives, bit for bit, the results of the same weights held in memory."""
    promises.check_loading(case, alpha, load, partial(results, AutoTokenizer.from_pretrained(case.outputs[alpha])))


def test_the_command_writes_the_same_files(case, tmp_path):
    """`wiseft interpolate` writes what the library call writes, file for file."""
    command = [sys.executable, "-m", "wiseft_core", "interpolate", case.base, case.adapter, tmp_path / "out"]
    subprocess.run([*map(str, command), "--alpha", "0.5", "--no-sync", "--quiet"], check=True, timeout=300)
    expected = case.outputs[0.5]
    names = sorted(str(path.relative_to(expected)) for path in expected.rglob("*"))
    assert names == sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*"))
    for name in names:
        if (expected / name).is_file():
            assert (tmp_path / "out" / name).read_bytes() == (expected / name).read_bytes(), name
