"""What a tuned model is where PEFT's merge is at fault: plain formulas over the base's state and the saved tensors."""

from __future__ import annotations

from pairs.pair import State

SCALE = 2.0


def untied(base: State, adapter: State, merged: State) -> State:
    """Of tied embeddings each side gets its own delta: PEFT adds both to the one tensor, of which a copy is of both."""
    state = dict(merged)
    copies = [value for key, value in adapter.items() if key.endswith("base_layer.weight")]
    for module, name in (("model.embed_tokens", "model.embed_tokens.weight"), ("lm_head", "lm_head.weight")):
        weight = copies[0] if copies else base[name]
        if f"{module}.lora_embedding_A" in adapter:
            weight = weight + SCALE * (adapter[f"{module}.lora_embedding_B"] @ adapter[f"{module}.lora_embedding_A"]).T
        if f"{module}.lora_A.weight" in adapter:
            weight = weight + SCALE * adapter[f"{module}.lora_B.weight"] @ adapter[f"{module}.lora_A.weight"]
        state[name] = weight
    return state


def once(base: State, adapter: State, merged: State) -> State:
    """With `ensure_weight_tying` the one tensor gets the one delta once: PEFT adds it twice."""
    delta = SCALE * (adapter["model.embed_tokens.lora_embedding_B"] @ adapter["model.embed_tokens.lora_embedding_A"]).T
    weight = base["model.embed_tokens.weight"] + delta
    return {**merged, "model.embed_tokens.weight": weight, "lm_head.weight": weight}


def replicated(base: State, adapter: State, merged: State) -> State:
    """Each replica of a layer is a weight of its own, with its own delta; layer 2 is layer 1 again."""
    state = {}
    for name in merged:
        weight, module = base[name.replace("layers.2.", "layers.1.")], name.removesuffix(".weight")
        if f"{module}.lora_A.weight" in adapter:
            weight = weight + SCALE * adapter[f"{module}.lora_B.weight"] @ adapter[f"{module}.lora_A.weight"]
        state[name] = weight
    return state
