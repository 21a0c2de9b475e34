"""The JSON that machines read fits the schemas that ship with the package."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import pytest
from folders import low_rank, weights, write_adapter, write_base
from jsonschema import Draft202012Validator

from wiseft_core import WiseftError, interpolate, plan, save_checkpoint, verify


def validator(name: str) -> Draft202012Validator:
    """The validator of a shipped schema, which must itself be a sound schema."""
    schema = json.loads((files("wiseft_core") / "schemas" / f"{name}.schema.json").read_text())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A base, and an adapter with factors, a trained tensor, rows and a new head."""
    tensors = low_rank(weights(), ["model.layers.0.q_proj"])
    tensors["base_model.model.model.norm.weight"] = weights()["model.norm.weight"] * 2
    tensors["base_model.model.score.weight"] = weights()["model.norm.weight"][None]
    rows = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"
    tensors[rows] = weights()["lm_head.weight"][:2].clone()
    extra = {"modules_to_save": ["norm", "score"], "trainable_token_indices": [3, 1]}
    return write_base(tmp_path / "base", weights()), write_adapter(tmp_path / "adapter", tensors, **extra)


def test_plan_report_manifest_and_error_fit(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Plan, both reports, manifest and error validate; a plan with a field removed does not."""
    seen = plan(*pair).as_dict()
    written = save_checkpoint(interpolate(*pair, 0.5), tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "wiseft.json").read_text())
    with pytest.raises(WiseftError) as caught:
        interpolate(*pair, 2)

    validator("plan").validate(json.loads(json.dumps(seen)))
    for report in (written, verify(tmp_path / "out"), verify(tmp_path / "out", base=pair[0], adapter=pair[1])):
        validator("report").validate(json.loads(json.dumps(report.as_dict())))
    validator("manifest").validate(manifest)
    validator("error").validate(json.loads(json.dumps(caught.value.as_dict())))
    assert not validator("plan").is_valid({key: value for key, value in seen.items() if key != "rule"})
