"""Rescaling adapters of other methods without the base: where the factors alone tell, it is the same to the bit."""

from __future__ import annotations

import pytest
import torch
from exact import same_bits
from families.test_against_peft import CASES, train

from wiseft_core import errors, rescale

TOLD = ["loha", "loha_conv", "loha_tucker", "adalora", "adalora_gpt2", "vera", "vera_gpt2"]
"""Cases whose factors say what is added, and to a weight of which shape."""


@pytest.mark.parametrize("name", TOLD)
def test_without_the_base_it_is_the_same(name, tmp_path):
    """No base, the same tensors and config."""
    one = train(CASES[name], torch.float32, tmp_path)
    alone, beside = rescale(tmp_path, 0.3), rescale(tmp_path, 0.3, base=one.base, base_config=one.base_config)
    assert alone.config == beside.config
    assert alone.tensors.keys() == beside.tensors.keys()
    assert all(same_bits(alone.tensors[key], beside.tensors[key]) for key in alone.tensors)


@pytest.mark.parametrize("name", [name for name in CASES if name not in TOLD])
def test_what_needs_the_base_says_so(name, tmp_path):
    """The others ask for it, or are not closed with it either."""
    train(CASES[name], torch.float32, tmp_path)
    with pytest.raises((errors.ConfigError, errors.Unsupported), match=r"without the base|no adapter of this kind"):
        rescale(tmp_path, 0.3)
