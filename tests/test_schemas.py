"""The JSON that machines read fits the schemas that ship with the package."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import pytest
from folders import low_rank, weights, write_adapter, write_base
from jsonschema import Draft202012Validator

from wiseft_core import WiseftError, interpolate, plan, save_checkpoint, verify
from wiseft_core.errors import EvaluationFailed
from wiseft_core.evaluation import Evaluation, Metric, experiment_record, record_bytes


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


@pytest.mark.parametrize("metrics", [[], [Metric("acc", "max")], [Metric("acc", "max"), Metric("loss", "min")]])
def test_sweep_record_fits(metrics: list[Metric]) -> None:
    """A record validates with no, one and two metrics and a failure in it; one with a path for a folder does not."""
    failed = EvaluationFailed("x", others=[EvaluationFailed("y")])
    done = Evaluation("0.5", "alpha-0.5", {"acc": 0.5, "loss": 2.0, "other": 1e-300})
    outputs = [done, Evaluation("-1e-300", None, None, failed), Evaluation("1", "alpha-1")]
    record = json.loads(record_bytes(experiment_record(outputs, command=None, metrics=metrics)))

    validator("sweep").validate(record)
    validator("error").validate(record["outputs"][1]["error"])
    record["outputs"][0]["folder"] = "/somewhere/alpha-0.5"
    assert not validator("sweep").is_valid(record)
