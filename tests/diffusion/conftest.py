"""What all tests against diffusers have around them."""

from __future__ import annotations

import warnings

import pytest


@pytest.fixture(autouse=True)
def quiet():
    """Diffusers warns of many things that are none of ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
