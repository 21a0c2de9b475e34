"""The README's example in small: 20 steps of LoRA, and the sweep with the very scripts and command that it quotes."""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from example import evaluate, texts, train

from wiseft_core.cli import main

# PEFT 0.21 asks for a property that transformers 5 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
STEPS, TEXTS = 20, 2
ALPHAS = ("0", "0.5", "1")
Losses = Mapping[str, float]


@pytest.fixture(scope="module")
def swept(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what `wiseft sweep --eval` left: outputs, sweep.json and the curve."""
    folder = tmp_path_factory.mktemp("example")
    train.train(smollm2, folder / "adapter", STEPS, window=64)
    command = shlex.join([sys.executable, evaluate.__file__, "{model}", "--texts", str(TEXTS)])
    words = ["sweep", str(smollm2), str(folder / "adapter"), str(folder / "sweep"), "--no-sync", "--quiet"]
    words += [word for alpha in ALPHAS for word in ("--alpha", alpha)]
    words += ["--eval", command, "--metric", "table_loss:min", "--metric", "english_loss:min"]
    assert main([*words, "--plot", str(folder / "curve.png")]) == 0
    return folder


@pytest.fixture(scope="module")
def losses(smollm2: Path, swept: Path) -> dict[str, Losses]:
    """What the base and the output at each alpha lose, on the first texts of each kind."""
    record = json.loads((swept / "sweep" / "sweep.json").read_text())
    found = {output["alpha"]: output["metrics"] for output in record["outputs"]}
    return {"base": evaluate.evaluate(smollm2, most=TEXTS), **found}


def test_the_sweep_chooses_by_the_losses(swept: Path, losses: dict[str, Losses]) -> None:
    """The best is the alpha that loses least on its kind, it is in the Pareto set, and there is a picture."""
    record = json.loads((swept / "sweep" / "sweep.json").read_text())
    assert record["best"] == min(ALPHAS, key=lambda alpha: losses[alpha]["table_loss"])
    assert record["best"] in record["pareto"]
    assert (swept / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in (swept / "sweep").iterdir()} == {*(f"alpha-{a}" for a in ALPHAS), "sweep.json"}


def test_alpha_zero_loses_what_the_base_loses(losses: dict[str, Losses]) -> None:
    """At alpha 0 both losses are the base's own, to the last bit."""
    assert losses["0"] == losses["base"]


def test_training_pays_on_its_kind(losses: dict[str, Losses]) -> None:
    """Held-out pages of the table cost less at alpha 1 than at 0, by more than a thousandth."""
    assert losses["1"]["table_loss"] < losses["0"]["table_loss"] - 0.001


@pytest.mark.parametrize("metric", ["table_loss", "english_loss"])
def test_each_alpha_has_a_loss_of_its_own(losses: dict[str, Losses], metric: str) -> None:
    """Every loss is a positive number, and no two alphas have the same."""
    found = [losses[alpha][metric] for alpha in ALPHAS]
    assert all(math.isfinite(loss) and loss > 0 for loss in found)
    assert len(set(found)) == len(ALPHAS)


def test_what_is_held_out_is_not_trained_on() -> None:
    """No line of a held-out page is in a training page, and both have lines as in Unicode's own table."""
    trained, held_out = (
        {line for page in pages for line in page.splitlines()}
        for pages in (texts.training_pages(), texts.held_out_pages())
    )
    assert not trained & held_out
    assert "0041;LATIN CAPITAL LETTER A;Lu" in trained
    assert "04CF;CYRILLIC SMALL LETTER PALOCHKA;Ll" in held_out
