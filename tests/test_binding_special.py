"""The joint, for what is no plain matrix: convolutions, attention, token rows, biases, whole tensors, checkpoints."""

from __future__ import annotations

import pytest
from plans import BASE, P, lora, plan_of, problems, specs

from wiseft_core.binding import bind
from wiseft_core.errors import (
    BindingError,
    ConfigError,
    ConfigNeeded,
    DtypeMismatch,
    MissingFactor,
    ShapeMismatch,
    Unsupported,
    UnusedPattern,
)

CONV = {f"{P}c.lora_A.weight": (2, 4, 3, 3), f"{P}c.lora_B.weight": (6, 2, 1, 1)}
TOKENS = {f"{P}emb.token_adapter.trainable_tokens_delta": (3, 4)}


def test_grouped_convolutions_are_called_by_their_name():
    """A convolution with groups is refused as such; with groups = 1 the same factors fit."""
    assert plan_of({"c.weight": (6, 4, 3, 3)}, CONV).bindings["c.weight"].steps[0].layout == "convolution"
    with pytest.raises(Unsupported, match="grouped convolution") as caught:
        plan_of({"c.weight": (6, 2, 3, 3)}, CONV)
    assert caught.value.exit_code == 4


def test_another_kernel_is_a_shape_mismatch():
    """Factors of another kernel do not fit."""
    with pytest.raises(ShapeMismatch):
        plan_of({"c.weight": (6, 4, 5, 5)}, CONV)


def test_attention_with_one_matrix():
    """Keys that name the attention change its in_proj_weight; those below its wrapper out_proj, and twice."""
    base = {"attn.in_proj_weight": (12, 4), "attn.out_proj.weight": (4, 4)}
    plan = plan_of(base, lora("attn", 12, 4) | lora("attn.base_layer.out_proj", 4, 4))
    scales = {name: bound.steps[0].scale for name, bound in plan.bindings.items()}
    assert scales == {"attn.in_proj_weight": 2.0, "attn.out_proj.weight": 4.0}
    assert any("twice" in note for note in plan.notes)


def test_patterns_are_matched_against_the_attention_itself():
    """PEFT knows one module there, so its patterns are of both matrices, and one for out_proj alone is of none."""
    base = {"attn.in_proj_weight": (12, 4), "attn.out_proj.weight": (4, 4)}
    adapter = lora("attn", 12, 4) | lora("attn.base_layer.out_proj", 4, 4)
    config = {"lora_alpha": 1, "r": 3, "rank_pattern": {"attn": 2}, "alpha_pattern": {"attn": 3}}
    plan = plan_of(base, adapter, config)
    scales = {name: bound.steps[0].scale for name, bound in plan.bindings.items()}
    assert scales == {"attn.in_proj_weight": 1.5, "attn.out_proj.weight": 3.0}
    with pytest.raises(UnusedPattern, match="'out_proj'"):
        plan_of(base, adapter, {"lora_alpha": 1, "alpha_pattern": {"out_proj": 3}})


def test_token_rows_are_ascending_with_their_places():
    """Rows in any order are bound in the order of the table, each with its place in the adapter."""
    config = {"lora_alpha": 1, "trainable_token_indices": {"emb": [7, 2, 5]}}
    bound = plan_of({"emb.weight": (9, 4)}, TOKENS, config).bindings["emb.weight"]
    assert bound.rows == (2, 5, 7) and bound.entries == (1, 2, 0)
    assert bound.steps[0].family == "tokens"


@pytest.mark.parametrize("rows", [[7, 2], [7, 2, 9], [1, 2, 3, 4]])
def test_token_rows_that_do_not_fit_are_refused(rows):
    """Too few, too many, or a row outside the table."""
    with pytest.raises(ConfigError, match="trainable_token_indices"):
        plan_of({"emb.weight": (9, 4)}, TOKENS, {"lora_alpha": 1, "trainable_token_indices": {"emb": rows}})


@pytest.mark.parametrize("height", [9, 7, 12])
def test_token_rows_over_a_table_that_was_saved(height):
    """Each row is of one tensor, the table or the rows, whether the vocabulary was resized or not."""
    adapter = TOKENS | {f"{P}embed_tokens.token_adapter.base_layer.weight": (height, 4)}
    adapter = {key.replace(f"{P}emb.", f"{P}embed_tokens."): shape for key, shape in adapter.items()}
    config = {"lora_alpha": 1, "trainable_token_indices": {"embed_tokens": [6, 0, 5]}}
    base, said = {"embed_tokens.weight": (9, 4)}, {"base_config": {"tie_word_embeddings": False}}
    plan = plan_of(base, adapter, config, **said)
    bound, found = plan.bindings["embed_tokens.weight"], {}
    for piece in bound.pieces:
        ((key,), (first, last)) = piece.steps[0].factors.values(), piece.steps[0].cut.out
        assert (piece.steps[0].family, piece.shape) == ("full", (last - first, 4))
        rows = range(piece.start // 4, piece.start // 4 + last - first)
        found |= dict(zip(rows, [(key.rpartition(".")[2], at) for at in range(first, last)], strict=True))
    table = {row: ("weight", row) for row in range(height)}
    assert found == table | {row: ("trainable_tokens_delta", at) for at, row in enumerate([6, 0, 5])}
    assert plan.outputs["embed_tokens.weight"].shape == (height, 4) and bound.rows is None
    assert plan.consumed().keys() == adapter.keys()
    with pytest.raises(ConfigError, match="trainable_token_indices"):
        plan_of(base, adapter, {"trainable_token_indices": {"embed_tokens": [height, 0, 1]}}, **said)


def test_token_rows_over_another_change_are_refused():
    """Which of the two comes first, no file says."""
    adapter = TOKENS | {
        f"{P}emb.lora_embedding_A": (2, 9),
        f"{P}emb.lora_embedding_B": (4, 2),
    }
    with pytest.raises(Unsupported, match="trained token rows together"):
        plan_of({"emb.weight": (9, 4)}, adapter, {"lora_alpha": 1, "trainable_token_indices": {"emb": [7, 2, 5]}})


def test_token_rows_need_the_config():
    """Without a config nothing says which rows were trained."""
    with pytest.raises(ConfigNeeded, match="which rows"):
        bind(specs({"emb.weight": (9, 4)}), specs(TOKENS))


def test_the_scale_is_never_guessed():
    """LoRA factors without a config, or without lora_alpha, are refused."""
    with pytest.raises(ConfigNeeded, match="scale"):
        bind(specs(BASE), specs(lora("model.layers.0.q", 6, 4)))
    with pytest.raises(ConfigNeeded, match="lora_alpha"):
        plan_of(BASE, lora("model.layers.0.q", 6, 4), {"r": 2})


def test_trained_biases_and_whole_tensors_are_full():
    """Biases of bias="all", of wrapped layers and of others, and modules_to_save, replace by interpolation."""
    base = BASE | {"model.layers.0.q.bias": (6,), "model.norm.bias": (4,)}
    adapter = lora("model.layers.0.q", 6, 4) | {
        f"{P}model.layers.0.q.base_layer.bias": (6,),
        f"{P}model.norm.bias": (4,),
        f"{P}model.norm.weight": (4,),
    }
    plan = plan_of(base, adapter, {"lora_alpha": 1, "bias": "all"})
    families = {name: bound.steps[0].family for name, bound in plan.bindings.items()}
    full = ("model.layers.0.q.bias", "model.norm.bias", "model.norm.weight")
    assert families == {"model.layers.0.q.weight": "lora"} | dict.fromkeys(full, "full")
    assert plan.consumed().keys() == adapter.keys()


def test_a_saved_base_layer_comes_before_its_delta():
    """An embedding saved with its adapter replaces the base's, and the low-rank change is added to that."""
    adapter = {
        f"{P}emb.base_layer.weight": (9, 4),
        f"{P}emb.lora_embedding_A": (2, 9),
        f"{P}emb.lora_embedding_B": (4, 2),
    }
    steps = plan_of({"emb.weight": (9, 4)}, adapter).bindings["emb.weight"].steps
    assert [step.family for step in steps] == ["full", "lora"]
    with pytest.raises(ShapeMismatch):
        plan_of({"emb.weight": (8, 4)}, adapter)


def test_patterns_that_match_nothing_are_refused():
    """An entry of rank_pattern or alpha_pattern without a module is a sign of the wrong config."""
    config = {"lora_alpha": 1, "alpha_pattern": {"k": 8, "q": 4}}
    with pytest.raises(UnusedPattern, match="'k'"):
        plan_of(BASE, lora("model.layers.0.q", 6, 4), config)
    step = plan_of(BASE, lora("model.layers.0.q", 6, 4), {"lora_alpha": 1, "alpha_pattern": {"q": 4}})
    assert step.bindings["model.layers.0.q.weight"].steps[0].scale == 2.0


def test_a_rank_that_differs_from_the_config_is_refused():
    """r and rank_pattern must agree with the shapes of the factors."""
    with pytest.raises(ConfigError, match="rank"):
        plan_of(BASE, lora("model.layers.0.q", 6, 4), {"lora_alpha": 1, "r": 8})


def test_quantised_factors_are_refused():
    """Integer factors are not numbers to multiply."""
    adapter = {key: ("I8", shape) for key, shape in lora("model.layers.0.q", 6, 4).items()}
    with pytest.raises(DtypeMismatch, match="not a float"):
        plan_of(BASE, adapter)


def test_a_full_checkpoint_must_cover_the_base():
    """Original WiSE-FT: every tensor of the base is covered, floats are interpolated, integers compared."""
    base = BASE | {"steps": ("I64", (1,))}
    plan = bind(specs(base), specs(base), complete=True)
    assert list(plan.bindings) == list(BASE) and plan.same == {"steps": "steps"}
    short = {name: shape for name, shape in base.items() if name != "model.norm.weight"}
    with pytest.raises(BindingError, match=r"model\.norm\.weight"):
        bind(specs(base), specs(short), complete=True)
    with pytest.raises(ShapeMismatch, match=r"model\.norm\.weight"):
        bind(specs(base), specs(base | {"model.norm.weight": (5,)}), complete=True)
    with pytest.raises(ShapeMismatch, match="integer"):
        bind(specs(base), specs(base | {"steps": ("I32", (1,))}), complete=True)


def test_other_tuners_are_unclaimed():
    """Keys of a tuner that is not known land nowhere, and each is named."""
    adapter = {f"{P}model.layers.0.q.hada_w1_a": (6, 2), f"{P}model.layers.0.q.hada_w1_b": (2, 4)}
    with pytest.raises(BindingError) as caught:
        plan_of(BASE, adapter)
    assert len(problems(caught)) == 2 and "hada_w1_b" in str(caught.value)


def test_one_bias_of_lora_needs_its_module():
    """A bias of B is scaled by its module's own rank, which only A tells."""
    with pytest.raises(MissingFactor):
        plan_of(BASE | {"model.layers.0.q.bias": (6,)}, {f"{P}model.layers.0.q.lora_B.bias": (6,)})


@pytest.mark.parametrize("other", [{"lm_head.bias": (9,)}, {"final_logits_bias": (1, 9)}])
def test_a_resized_vocabulary_is_resized_everywhere(other):
    """A bias over the vocabulary that keeps its old size is refused; without one the config follows."""
    base, saved = {"embed_tokens.weight": (9, 4), "lm_head.weight": (9, 4)}, [(12, 4), (7, 4)]
    said = {"base_config": {"tie_word_embeddings": False, "vocab_size": 9}}
    for shape in saved:
        adapter = {f"{P}embed_tokens.weight": shape, f"{P}lm_head.weight": shape}
        assert plan_of(base, adapter, **said).config == {"vocab_size": shape[0]}
        with pytest.raises(ShapeMismatch, match="not all tensors follow"):
            plan_of(base | other, adapter, **said)
