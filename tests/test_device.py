"""`on_device.py` on an emulated device, which every machine has, and on a card where there is one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

CARD = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no card here"))


@pytest.mark.parametrize("device", ["away", CARD])
def test_results_are_those_of_the_processor(device):
    """For every form of every family; from files, from memory, and written."""
    words = [sys.executable, "-m", "pytest", "-q", str(Path(__file__).with_name("on_device.py"))]
    environment = {**os.environ, "WISEFT_TEST_DEVICE": device}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout
