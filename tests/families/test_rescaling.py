"""Rescaling adapters of other methods without the base: where the factors alone tell, it is the same to the bit."""

from __future__ import annotations

import re

import pytest
import torch
from exact import same_bits
from families.test_against_peft import CASES, train

from wiseft_core import errors, rescale

TOLD = ["loha", "loha_conv", "loha_tucker", "adalora", "adalora_gpt2", "vera", "vera_gpt2"]
"""Cases whose factors say what is added, and to a weight of which shape."""
REFUSALS = r"without the base|no adapter of this kind"


@pytest.mark.parametrize("name", CASES)
def test_without_the_base_it_is_the_same_or_refused(name, tmp_path):
    """No base, the same tensors and config; or the base is asked for, or it is not closed with it either."""
    one = train(CASES[name], torch.float32, tmp_path)
    try:
        alone = rescale(tmp_path, 0.3)
    except (errors.ConfigError, errors.Unsupported) as refusal:
        assert name not in TOLD
        assert re.search(REFUSALS, str(refusal))
        return
    beside = rescale(tmp_path, 0.3, base=one.base, base_config=one.base_config)
    assert alone.config == beside.config
    assert alone.tensors.keys() == beside.tensors.keys()
    assert all(same_bits(alone.tensors[key], beside.tensors[key]) for key in alone.tensors)
