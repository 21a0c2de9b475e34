"""`inspect` and `plan` on adapters of other methods than LoRA: what they are, from headers and config alone."""

from __future__ import annotations

import json
import re

import pytest
import torch
from cli.test_cli import only_json
from safetensors.torch import save_file

from wiseft_core.cli import main

Q, UP = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"
SHAPES = {Q: (6, 4), UP: (8, 4)}


def write(model, tensors, **fields):
    """Put another adapter in the place of the model's own."""
    save_file(tensors, model.adapter / "adapter_model.safetensors")
    (model.adapter / "adapter_config.json").write_text(json.dumps(fields))


@pytest.fixture
def loha(model):
    """A LoHa of rank 2 and, by a pattern, 3."""
    tensors = {}
    for (module, (out, wide)), rank in zip(SHAPES.items(), (2, 3), strict=True):
        for pair in ("w1", "w2"):
            tensors[f"base_model.model.{module}.hada_{pair}_a"] = torch.ones(out, rank)
            tensors[f"base_model.model.{module}.hada_{pair}_b"] = torch.ones(rank, wide)
    write(model, tensors, peft_type="LOHA", r=2, alpha=3, rank_pattern={"up_proj": 3}, rank_dropout=0.1)
    return model


@pytest.fixture
def vera(model):
    """A VeRA, whose two large factors belong to the whole model."""
    tensors = {"base_model.vera_A": torch.ones(3, 4), "base_model.vera_B": torch.ones(8, 3)}
    for module, (out, _) in SHAPES.items():
        tensors[f"base_model.model.{module}.vera_lambda_d"] = torch.ones(3)
        tensors[f"base_model.model.{module}.vera_lambda_b"] = torch.ones(out)
    write(model, tensors, peft_type="VERA", r=3)
    return model


@pytest.fixture
def ia3(model):
    """An IA3 on an attention and a feed-forward module."""
    tensors = {f"base_model.model.{Q}.ia3_l": torch.ones(6, 1), f"base_model.model.{UP}.ia3_l": torch.ones(1, 4)}
    write(model, tensors, peft_type="IA3", feedforward_modules=["up_proj"])
    return model


def inspected(model, capsys):
    """What `inspect --json` says, and the text of `inspect`."""
    assert main(["inspect", str(model.adapter)]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert main(["inspect", str(model.adapter), "--json"]) == 0
    return only_json(capsys), said.out


def test_inspect_a_loha(loha, capsys):
    """Ranks and scales by module, the options that the formula reads, and every factor's role."""
    seen, text = inspected(loha, capsys)
    assert (seen["method"], seen["modules"], seen["ranks"]) == ("LOHA", 2, {"2": 1, "3": 1})
    assert seen["scales"] == {"1.5": 1, "1": 1}
    assert seen["options"] == {"alpha": 3, "r": 2, "rank_pattern": {"up_proj": 3}}
    assert seen["factors"] == dict.fromkeys(("w1_a", "w1_b", "w2_a", "w2_b"), 2)
    assert seen["others"] == {} and seen["refusals"] == []
    assert re.search(r"^method +LOHA$", text, re.MULTILINE)
    assert re.search(r'^options +alpha 3(\.0)?, r 2, rank_pattern {"up_proj": 3}$', text, re.MULTILINE)
    assert re.search(r"^modules +2 modules with factors$", text, re.MULTILINE)


def test_inspect_a_vera(vera, capsys):
    """Factors of the whole model are counted once, and are no modules."""
    seen, _ = inspected(vera, capsys)
    assert (seen["method"], seen["modules"], seen["ranks"], seen["scales"]) == ("VERA", 2, {"3": 2}, {})
    assert seen["factors"] == {"A": 1, "B": 1, "lambda_d": 2, "lambda_b": 2}
    assert seen["targets"] == {"model.layers.*.self_attn.q_proj": 1, "model.layers.*.mlp.up_proj": 1}


def test_inspect_an_ia3(ia3, capsys):
    """A method without ranks and scales shows neither."""
    seen, text = inspected(ia3, capsys)
    assert (seen["method"], seen["modules"], seen["ranks"], seen["scales"]) == ("IA3", 2, {}, {})
    assert seen["options"] == {"feedforward_modules": ["up_proj"]}
    assert not re.search(r"^(ranks|scales)", text, re.MULTILINE)


def test_inspect_a_variant_of_lora(model, capsys):
    """PiSSA has LoRA's keys: the config tells."""
    model.edit_config(init_lora_weights="pissa")
    seen, _ = inspected(model, capsys)
    assert (seen["method"], seen["ranks"], seen["scales"]) == ("pissa", {"2": 2}, {"1.5": 2})


def test_inspect_lists_saved_modules_alone(model, capsys):
    """A module of `modules_to_save` is listed, one of which bias="all" saved the bias is not."""
    model.edit_config(bias="all", modules_to_save=["norm"])
    start = "base_model__model__model__"
    norm = {f"{start}norm__weight": torch.ones(4), f"{start}norm__bias": torch.ones(4)}
    model.edit_adapter(**norm, **{f"{start}layers__1__mlp__up_proj__bias": torch.ones(8)})
    seen, text = inspected(model, capsys)
    assert seen["saved_modules"] == ["model.norm"]
    assert seen["others"] == {"whole tensors": 3}
    assert re.search(r"^whole +model\.norm$", text, re.MULTILINE)


def test_inspect_finds_no_module_in_a_prompt(model, capsys):
    """Prompts belong to no module."""
    model.edit_config(peft_type="PROMPT_TUNING")
    save_file({"prompt_embeddings": torch.ones(2, 4)}, model.adapter / "adapter_model.safetensors")
    assert main(["inspect", str(model.adapter), "--json"]) == 4
    assert only_json(capsys)["saved_modules"] == []


def test_inspect_needs_no_base_to_refuse(loha, capsys):
    """A rank that the config does not have is shown as a refusal."""
    loha.edit_config(rank_pattern={"up_proj": 4})
    assert main(["inspect", str(loha.adapter), "--json"]) == 3
    assert ["rank of model.layers.1.mlp.up_proj" in said["where"] for said in only_json(capsys)["refusals"]] == [True]


def test_plan_shows_the_family(loha, capsys):
    """The plan has family, rank, scale and options of each tensor, and its schema knows them."""
    assert main(["plan", str(loha.base), str(loha.adapter), "--json"]) == 0
    (step,) = only_json(capsys, "plan")["touched"][f"{UP}.weight"]["steps"]
    assert {key: step[key] for key in ("family", "layout", "rank", "scale")} == {
        "family": "loha", "layout": "linear", "rank": 3, "scale": 1,
    }  # fmt: skip
    assert step["options"] == {"alpha": 3, "r": 3}
    assert main(["plan", str(loha.base), str(loha.adapter)]) == 0
    assert re.search(r"^loha +linear +weight +2$", capsys.readouterr().out, re.MULTILINE)


def test_plan_tells_what_the_config_means_here(ia3, capsys):
    """An option that lists modules is true or false at each."""
    assert main(["plan", str(ia3.base), str(ia3.adapter), "--json"]) == 0
    touched = only_json(capsys, "plan")["touched"]
    said = {name: step["options"] for name, bound in touched.items() for step in bound["steps"]}
    assert said == {f"{Q}.weight": {"feedforward_modules": False}, f"{UP}.weight": {"feedforward_modules": True}}
