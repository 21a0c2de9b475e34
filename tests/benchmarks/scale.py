"""Plan checkpoints larger than any machine: real headers over files without a byte of payload.

    python tests/benchmarks/scale.py FOLDER

Prints a table: tensors, seconds, megabytes and microseconds per tensor, of each case the worst over its steps. A case
is a process of its own, so that its peak of memory is its own. FOLDER gets sparse files that take no room, and is
removed in the end.

The curve is a mixture of experts of one trillion parameters in 200 000 tensors and 400 shards, and the same with fewer
layers, with a LoRA on every matrix of attention; the rest is a DeepSeek V3 of twice the layers, 90 000 tensors in 160
shards, with a LoRA on each expert as modules of their own, and as PEFT packs it where `target_parameters` are tuned.
"""

from __future__ import annotations

import gc
import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

Shapes = Mapping[str, tuple[int, ...]]

CURVE = (1_000, 5_000, 20_000, 50_000, 100_000, 200_000)
RANK = 16
MOE = {"experts": 64, "hidden": 2560, "inner": 2048}
V3 = {"experts": 256, "hidden": 7168, "inner": 2048}
CASES = {
    **{f"moe {count}": {**MOE, "tensors": count, "shards": -(-count // 500), "tuned": "attention"} for count in CURVE},
    "v3 experts": {**V3, "tensors": 90_000, "shards": 160, "tuned": "experts"},
    "v3 packed": {**V3, "tensors": 90_000, "shards": 160, "tuned": "packed"},
}


def main() -> int:
    """Build and measure every case, or the one that is named."""
    folder, *named = sys.argv[1:]
    if named[1:]:
        return measure(Path(folder), named[0])
    print(f"{'case':>12} {'step':>6} {'tensors':>8} {'tasks':>8} {'s':>7} {'MB':>6} {'us/tensor':>10}")
    for case in named or CASES:
        place = Path(folder, case.replace(" ", "-"))
        build(place, **CASES[case])
        for step in ("plan", "tasks"):
            command = [sys.executable, __file__, str(place), case, step]
            seen = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            each = seen["seconds"] / seen["tensors"] * 1e6
            row = f"{case:>12} {step:>6} {seen['tensors']:>8} {seen['tasks']:>8} {seen['seconds']:>7.2f}"
            print(f"{row} {seen['megabytes']:>6.0f} {each:>10.1f}", flush=True)
        shutil.rmtree(place)
    return 0


def measure(place: Path, case: str) -> int:
    """One step, of one case, in this process: imports do not count as time, and do as memory."""
    from wiseft_core.planning import plan

    gc.set_threshold(200_000, 50, 100)  # as the command has it
    tasks = 0
    if sys.argv[3] == "plan":
        begun = time.perf_counter()
        found = plan(place / "base", place / "adapter")
        tensors = len(found.outputs)
    else:
        import torch

        from wiseft_core.families import FAMILIES
        from wiseft_core.interpolation import bound_of
        from wiseft_core.jobs import plan_job
        from wiseft_core.ranges import ranges_of
        from wiseft_core.sources import as_source, as_tuned
        from wiseft_core.statedict import StateDict
        from wiseft_core.store.files import FILES
        from wiseft_core.tasks import Target

        begun = time.perf_counter()
        base = as_source(place / "base")
        options = {"base_config": None, "overflow": "error", "compute_dtype": torch.float64, "output_dtype": None}
        tuned = as_tuned(place / "adapter", None, base)
        bound = bound_of(
            base, [tuned], **options, device=None, families=FAMILIES
        )  # `interpolate` but for reading values
        view = StateDict(bound, (0.5,))
        job = plan_job({"": view}, None, None, False, FILES)
        tensors = sum(len(shard.header.specs) for shard in job.shards)
        for shard in job.shards:
            writer: Any = SimpleNamespace(header=shard.header, path=place / shard.name, inode=0)
            tasks += sum(1 for _ in ranges_of([Target(writer, view)], True))
    seconds = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    print(json.dumps({"tensors": tensors, "tasks": tasks, "seconds": seconds, "megabytes": peak}))
    return 0


def build(place: Path, *, tensors: int, shards: int, tuned: str, experts: int, hidden: int, inner: int) -> None:
    """A base and an adapter."""
    layers = -(-tensors // (8 + 3 * experts))
    shapes = dict(model(layers, experts, hidden, inner))
    names, index = list(shapes), {}
    shutil.rmtree(place, ignore_errors=True)
    (place / "base").mkdir(parents=True)
    (place / "adapter").mkdir()
    for at in range(shards):
        name = f"model-{at + 1:05}-of-{shards:05}.safetensors"
        held = names[at * len(names) // shards : (at + 1) * len(names) // shards]
        write(place / "base" / name, {tensor: shapes[tensor] for tensor in held})
        index |= dict.fromkeys(held, name)
    (place / "base" / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    config = {"model_type": "deepseek_v3", "n_routed_experts": experts, "num_hidden_layers": layers}
    (place / "base" / "config.json").write_text(json.dumps(config))
    asked: dict[str, object] = {"peft_type": "LORA", "r": RANK, "lora_alpha": 32, "target_modules": "all-linear"}
    if tuned == "packed":
        asked["target_parameters"] = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
        factors = dict(packed(layers, experts, hidden, inner))
    else:
        parts = ("self_attn",) if tuned == "attention" else ("o_proj", ".experts.")
        factors = dict(pairs({name: shape for name, shape in shapes.items() if any(part in name for part in parts)}))
    write(place / "adapter" / "adapter_model.safetensors", factors)
    (place / "adapter" / "adapter_config.json").write_text(json.dumps(asked))


def model(layers: int, experts: int, hidden: int, inner: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a model."""
    yield "model.embed_tokens.weight", (129280, hidden)
    for layer in range(layers):
        path = f"model.layers.{layer}"
        yield f"{path}.self_attn.q_a_proj.weight", (1536, hidden)
        yield f"{path}.self_attn.q_b_proj.weight", (24576, 1536)
        yield f"{path}.self_attn.kv_a_proj_with_mqa.weight", (576, hidden)
        yield f"{path}.self_attn.kv_b_proj.weight", (32768, 512)
        yield f"{path}.self_attn.o_proj.weight", (hidden, 16384)
        yield f"{path}.mlp.gate.weight", (experts, hidden)
        for expert in range(experts):
            yield f"{path}.mlp.experts.{expert}.gate_proj.weight", (inner, hidden)
            yield f"{path}.mlp.experts.{expert}.up_proj.weight", (inner, hidden)
            yield f"{path}.mlp.experts.{expert}.down_proj.weight", (hidden, inner)
        yield f"{path}.input_layernorm.weight", (hidden,)
        yield f"{path}.post_attention_layernorm.weight", (hidden,)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (129280, hidden)


def pairs(shapes: Shapes) -> Iterator[tuple[str, tuple[int, ...]]]:
    """A LoRA on each of these matrices."""
    for name, (out, into) in shapes.items():
        path = f"base_model.model.{name.removesuffix('.weight')}"
        yield f"{path}.lora_A.weight", (RANK, into)
        yield f"{path}.lora_B.weight", (out, RANK)


def packed(layers: int, experts: int, hidden: int, inner: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """One on each layer's experts, as PEFT saves it where parameters are tuned: its wrappers lie in each other."""
    for layer in range(layers):
        path = f"base_model.model.model.layers.{layer}"
        yield f"{path}.self_attn.o_proj.lora_A.weight", (RANK, 16384)
        yield f"{path}.self_attn.o_proj.lora_B.weight", (hidden, RANK)
        yield f"{path}.mlp.experts.base_layer.lora_A.weight", (RANK * experts, hidden)
        yield f"{path}.mlp.experts.base_layer.lora_B.weight", (2 * inner, RANK * experts)
        yield f"{path}.mlp.experts.lora_A.weight", (RANK * experts, inner)
        yield f"{path}.mlp.experts.lora_B.weight", (hidden, RANK * experts)


def write(path: Path, shapes: Shapes) -> None:
    """A file with these tensors, of which only the header takes room."""
    table, end = {}, 0
    for name, shape in shapes.items():
        size = 2
        for length in shape:
            size *= length
        table[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


if __name__ == "__main__":
    raise SystemExit(main())
