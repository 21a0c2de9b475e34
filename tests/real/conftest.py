"""Fixtures of the tests on real models: the two bases, fetched once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: nothing here asks a hub

import pytest
import torch
from real import models


def fetched(fetch: Callable[[], Path]) -> Path:
    """The weights; without a network the tests are skipped, but never in CI."""
    try:
        return fetch()
    except models.Unreachable as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Torch computes with one thread here: small batches gain nothing from more, and lose much on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def minilm() -> Path:
    """Folder of all-MiniLM-L6-v2: BERT, fp32, one file."""
    return fetched(models.minilm)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Folder of SmolLM2-135M: Llama, bf16, untied, five shards."""
    return fetched(models.smollm2)
