"""SmolLM2-135M (Llama, bf16, five shards) with adapters trained by PEFT: from files to files, and what comes out."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from real import adapters, exact, promises
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

# PEFT 0.21 asks for a property that transformers 5 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module", params=adapters.SMOLLM2)
def case(request, smollm2: Path, tmp_path_factory) -> Iterator[promises.Case]:
    """An adapter trained now, and the outputs at every alpha."""
    folder = tmp_path_factory.mktemp(request.param)
    adapters.train_smollm2(smollm2, folder / "adapter", adapters.SMOLLM2[request.param])
    yield promises.write_outputs(smollm2, folder / "adapter", folder)
    shutil.rmtree(folder)


def load(folder: Path) -> nn.Module:
    """The model as transformers loads it: in bf16, head and embedding apart."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert model.dtype == torch.bfloat16
    assert model.lm_head.weight.data_ptr() != model.model.embed_tokens.weight.data_ptr()
    return model


def results(tokenizer, model: nn.Module) -> Tensor:
    """Logits of two sentences, from the bf16 weights widened: bf16 products are far slower on a CPU."""
    batch = tokenizer(["The ferry leaves at dawn.", "Copper conducts well"], return_tensors="pt", padding=True)
    with torch.no_grad():
        return model.float()(**batch).logits


def test_alpha_zero_is_the_base(case):
    """At alpha 0 every shard and the index are the base's, byte for byte."""
    assert promises.check_base_bytes(case) == 6


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_every_element_is_exact(case, alpha, record_property):
    """Every element keeps the promise, by an oracle that reads the raw files; what tuning left alone is unchanged."""
    promises.check_untouched(case, alpha)
    figures = promises.check_exact(case, alpha)
    record_property("exactness", figures)
    print(case.adapter, alpha, figures)
    assert figures["elements"] > 100_000_000
    assert figures["by fractions"] > 10_000


def test_alpha_one_is_pefts_merge(case, record_property):
    """At alpha 1 PEFT's merge_and_unload gives the same weights, within what its float32 arithmetic can lose."""
    merged = PeftModel.from_pretrained(load(case.base), case.adapter).merge_and_unload().state_dict()
    figures = promises.check_merge(case, merged)
    record_property("merge", figures)
    print(case.adapter, figures)
    assert figures["differ"] < figures["elements"] / 100


@pytest.mark.parametrize("alpha", promises.ALPHAS)
def test_transformers_computes_the_same(case, alpha):
    """A loaded output gives, bit for bit, the results of the same weights held in memory."""
    promises.check_loading(case, alpha, load, partial(results, AutoTokenizer.from_pretrained(case.outputs[alpha])))


def test_norms_are_trained_in_one_case_only(case):
    """`modules_to_save=["norm"]` saves every norm of the model, the final one too; the other adapters have none."""
    kept = [name for name in exact.read_tuned(exact.Weights(case.base), case.adapter) if "norm" in name]
    with_norms = case.adapter.parent.name.startswith("lora_with_norms")
    assert len(kept) == (61 if with_norms else 0)
    assert ("model.norm.weight" in kept) == with_norms
