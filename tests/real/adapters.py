"""Adapters that PEFT trains for a few steps on real sentences, seeded, on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

# Scale 1.5: not a power of two, so that PEFT's own multiplication rounds.
LORA = {"r": 8, "lora_alpha": 12}
BERT_TARGETS = ["query", "value", "dense"]
LLAMA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

MINILM: Mapping[str, Mapping[str, object]] = {
    "lora": {**LORA, "target_modules": BERT_TARGETS},
    "dora": {**LORA, "target_modules": BERT_TARGETS, "use_dora": True},
    "lora_with_biases": {**LORA, "target_modules": BERT_TARGETS, "bias": "lora_only"},
}
SMOLLM2: Mapping[str, Mapping[str, object]] = {
    "lora": {**LORA, "target_modules": LLAMA_TARGETS},
    "dora": {**LORA, "target_modules": LLAMA_TARGETS, "use_dora": True},
    # PEFT compares the end of a module's name, without a dot: "norm" is the final norm and every layer's norms too.
    "lora_with_norms": {**LORA, "target_modules": LLAMA_TARGETS, "modules_to_save": ["norm"]},
}
STEPS = {"minilm": 20, "smollm2": 8}

PAIRS = [
    ("The ferry leaves the harbour at dawn.", "At sunrise the boat sails out of the port."),
    ("She planted two rows of beans behind the shed.", "Behind the hut grow the beans that she sowed."),
    ("Heavy rain closed the mountain road.", "The pass was shut after a downpour."),
    ("He repairs old clocks in a tiny workshop.", "In his small shop he mends antique watches."),
    ("The library stays open until nine on Fridays.", "On Friday evenings you can borrow books till nine."),
    ("A fox crossed the frozen river.", "Over the ice of the stream ran a fox."),
    ("The committee postponed its decision.", "No verdict was reached; the panel will meet again."),
    ("Bread rises faster in a warm kitchen.", "Dough proves quickly where it is not cold."),
    ("The violin was made in Cremona.", "Craftsmen in Cremona built this instrument."),
    ("Our train was forty minutes late.", "We arrived late, for the railway was delayed."),
    ("Copper conducts electricity very well.", "Current flows easily through copper wire."),
    ("The children built a dam of stones.", "With rocks the kids blocked the little brook."),
    ("Ships used to navigate by the stars.", "Sailors once found their way by starlight."),
    ("The old bridge can carry ten tons.", "Lorries above ten tons may not cross that bridge."),
    ("Bees returned to the orchard in April.", "In spring the apple trees hummed with bees again."),
    ("Her thesis is about river deltas.", "She wrote her dissertation on where rivers meet the sea."),
    ("The museum lends its maps to schools.", "Schools may borrow maps from the collection."),
    ("Snow covered the tracks within an hour.", "An hour later no footprints could be seen."),
    ("The kettle whistles when the water boils.", "You hear the pot sing once it is hot enough."),
    ("He sold the farm and moved to the coast.", "After selling his land he settled by the sea."),
]
SENTENCES = [sentence for pair in PAIRS for sentence in pair]
BATCH = 4


def train_minilm(
    base: Path,
    adapter: Path,
    config: Mapping[str, object],
    kind: type[PeftConfig] = LoraConfig,
    steps: int = STEPS["minilm"],
) -> None:
    """Pull the mean vectors of paraphrases together, away from the other pairs of the batch; save the adapter."""
    tokenizer = AutoTokenizer.from_pretrained(base)

    def embed(model: nn.Module, sentences: list[str]) -> Tensor:
        batch = tokenizer(sentences, return_tensors="pt", padding=True, truncation=True, max_length=24)
        mask = batch["attention_mask"].unsqueeze(-1)
        mean = (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
        return nn.functional.normalize(mean, dim=-1)

    def loss(model: nn.Module, step: int) -> Tensor:
        pairs = [PAIRS[(step * BATCH + row) % len(PAIRS)] for row in range(BATCH)]
        left, right = (embed(model, list(side)) for side in zip(*pairs, strict=True))
        return nn.functional.cross_entropy(20 * left @ right.T, torch.arange(BATCH))

    train(partial(AutoModel.from_pretrained, base), config, loss, steps, adapter, kind=kind)


def train_smollm2(base: Path, adapter: Path, config: Mapping[str, object]) -> None:
    """Predict the next word of our sentences; save the adapter. In float32: bf16 steps are far slower on a CPU."""
    tokenizer = AutoTokenizer.from_pretrained(base)

    def loss(model: nn.Module, step: int) -> Tensor:
        sentences = [SENTENCES[(step * BATCH + row) % len(SENTENCES)] for row in range(BATCH)]
        batch = tokenizer(sentences, return_tensors="pt", padding=True, truncation=True, max_length=16)
        return model(**batch, labels=batch["input_ids"]).loss

    start = partial(AutoModelForCausalLM.from_pretrained, base, dtype=torch.float32)
    train(start, {**config, "task_type": "CAUSAL_LM"}, loss, STEPS["smollm2"], adapter)


def train(
    start: Callable[[], nn.Module],
    config: Mapping[str, object],
    loss: Callable[[nn.Module, int], Tensor],
    steps: int,
    adapter: Path,
    rate: Callable[[int], float] = lambda step: 5e-3,
    kind: type[PeftConfig] = LoraConfig,
) -> None:
    """Steps of AdamW on what PEFT makes trainable, from a fixed seed; the caller's generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20)
        model = get_peft_model(start(), kind(**config)).train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = rate(step)
            loss(model, step).backward()
            optimizer.step()
            optimizer.zero_grad()
        model.save_pretrained(adapter)
