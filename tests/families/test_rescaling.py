"""Rescaling adapters of other methods without the base: where the factors alone tell, it is the same to the bit."""

from __future__ import annotations

import re

import pytest
import torch
from exact import same_bits
from families.test_against_peft import CASES, train

from wiseft_core import errors, rescale

TOLD = ["loha", "loha_conv", "loha_tucker", "adalora", "adalora_gpt2", "vera", "vera_gpt2"]
"""Cases, among others, whose factors say what is added, and to a weight of which shape."""

NEVER = ["pissa", "olora", "oft", "boft", "hra", "vblora", "kasa", "osf", "frod"]
"""Methods that are not closed under interpolation, by the start of their cases' names."""


def says_open(folder, one):
    """Whether rescaling with the base is refused, because no adapter of the kind is the interpolation."""
    try:
        rescale(folder, 0.3, base=one.base, base_config=one.base_config)
    except errors.Unsupported as refusal:
        return "no adapter of this kind" in str(refusal)
    return False


def test_every_method_that_is_never_closed_has_a_case():
    """The list above misses none of them by its spelling."""
    assert {name.split("_")[0] for name in CASES} >= set(NEVER)


@pytest.mark.parametrize("name", CASES)
def test_without_the_base_it_is_the_same_or_refused(name, tmp_path):
    """No base, the same tensors and config; or the base is asked for where it helps, or the method is never closed."""
    one = train(CASES[name], torch.float32, tmp_path)
    try:
        alone = rescale(tmp_path, 0.3)
    except (errors.ConfigError, errors.MissingFactor, errors.Unsupported) as refusal:
        assert re.search("without the base|depends on|no adapter of this kind", str(refusal))
        assert name not in TOLD
        is_open = isinstance(refusal, errors.Unsupported)
        if name.split("_")[0] in NEVER:
            assert is_open
        if is_open or isinstance(refusal, errors.ConfigError):
            assert says_open(tmp_path, one) == is_open
        return
    beside = rescale(tmp_path, 0.3, base=one.base, base_config=one.base_config)
    assert alone.config == beside.config
    assert alone.tensors.keys() == beside.tensors.keys()
    assert all(same_bits(alone.tensors[key], beside.tensors[key]) for key in alone.tensors)
