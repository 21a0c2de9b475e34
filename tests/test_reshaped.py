"""Tensors of the result that the base has under another name or in another size, and pieces, all the way to disk."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from folders import CONFIG, read_all, same_bits, tree, write_base
from parted import full, lora, plan_of, union, view_of, whole
from safetensors.torch import save_file

from wiseft_core import errors, open_checkpoint, save_checkpoint, tasks, tiles
from wiseft_core.combination import check_plain, check_resized
from wiseft_core.comparison import compare, wanted
from wiseft_core.evaluation import Metric
from wiseft_core.jobs import plan_job
from wiseft_core.landings import Cut
from wiseft_core.plans import Piece
from wiseft_core.store.files import FILES
from wiseft_core.sweeping import save_sweep

ALPHAS = [0.0, 0.3, 1.0]
WIDTH = 6


def random(*shape, seed=0, dtype=torch.float32):
    """A tensor that a seed tells."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def wide(tensor):
    """float64 numbers for the oracle."""
    return tensor.double().numpy()


def close(found, exact):
    """Whether a tensor is what float64 gives, rounded once to its dtype, or beside that at a tie."""
    return np.allclose(wide(found), exact, rtol=2.0**-23 if found.dtype == torch.float32 else 2.0**-8, atol=1e-30)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_a_head_that_was_tied(alpha):
    """The head is made from the embedding's bytes with the head's own change; the embedding keeps its own."""
    base = {"embed": random(9, WIDTH), "norm": random(WIDTH)}
    adapter = {"a": random(2, WIDTH, seed=1), "b": random(9, 2, seed=2), "ea": random(2, 9, seed=3)}
    adapter["eb"] = random(WIDTH, 2, seed=4)
    pieces = {
        "head": whole((9, WIDTH), lora("a", "b")),
        "embed": whole((9, WIDTH), lora("ea", "eb", layout="embedding")),
    }
    view = view_of(base, [(adapter, plan_of(base, pieces, sources={"head": "embed"}))], [alpha])
    assert list(view) == ["embed", "norm", "head"]
    assert close(view["head"], wide(base["embed"]) + alpha * wide(adapter["b"]) @ wide(adapter["a"]))
    assert close(view["embed"], wide(base["embed"]) + alpha * (wide(adapter["eb"]) @ wide(adapter["ea"])).T)
    assert alpha or (same_bits(view["head"], base["embed"]) and same_bits(view["embed"], base["embed"]))


@pytest.mark.parametrize("tile", [1, 5, 1 << 17])
@pytest.mark.parametrize("method", ["full", "lora over it", "dora over it"])
@pytest.mark.parametrize("rows", [5, 9, 13])
def test_a_resized_vocabulary(rows, method, tile, monkeypatch):
    """Rows that the base has interpolate, the others are as tuned at every alpha; at 0 the base's bytes are there."""
    monkeypatch.setattr("wiseft_core.tiles.TILE", tile)
    base, known = {"embed": random(9, WIDTH, dtype=torch.bfloat16)}, min(rows, 9)
    adapter = {"v": random(rows, WIDTH, seed=1), "a": random(2, rows, seed=2), "b": random(WIDTH, 2, seed=3)}
    adapter["m"] = random(WIDTH, seed=4).abs() + 0.5
    tuned, steps = wide(adapter["v"]), [full("v")]
    if method != "full":
        tuned = tuned + 0.5 * (wide(adapter["b"]) @ wide(adapter["a"])).T
        steps.append(lora("a", "b", 0.5, layout="embedding"))
    if method == "dora over it":
        tuned = tuned * (wide(adapter["m"]) / np.sqrt((tuned**2).sum(0)))
        steps[1] = lora("a", "b", 0.5, layout="embedding", family="dora", magnitude="m")
    plan = plan_of(base, {"embed": whole((rows, WIDTH), *steps)}, shapes={"embed": (rows, WIDTH)})
    for alpha in ALPHAS:
        view = view_of(base, [(adapter, plan)], [alpha])
        found = view["embed"]
        assert found.shape == (rows, WIDTH)
        assert close(found[:known], (1 - alpha) * wide(base["embed"])[:known] + alpha * tuned[:known])
        assert close(found[known:], tuned[known:])
        assert alpha or same_bits(found[:known], base["embed"][:known])
        for start, stop in [(0, rows), (3, rows - 1), (known - 1, rows), (2, 4)]:
            assert same_bits(view.get_slice("embed")[start:stop], found[start:stop])
        wider = view_of(base, [(adapter, plan_of(base, {"embed": plan.bindings["embed"].pieces}, dtype="F32",
                        shapes={"embed": (rows, WIDTH)}))], [alpha], dtype="F32")["embed"]  # fmt: skip
        assert close(wider[known:], tuned[known:]) and wider.dtype == torch.float32
        assert same_bits(wider.bfloat16()[known:], found[known:])


def checkpoint(folder, tmp_path):
    """A base in two shards on disk, an adapter, and a plan with everything: pieces, sources, a resized vocabulary."""
    tensors = {"embed": random(9, WIDTH).bfloat16()}
    for layer in range(2):
        tensors[f"layers.{layer}.experts"] = random(3, 4, WIDTH, seed=1 + layer).bfloat16()
        tensors[f"layers.{layer}.qkv"] = random(10, WIDTH, seed=3 + layer).bfloat16()
    names = list(tensors)
    base = write_base(tmp_path / folder, tensors, [names[:3], names[3:]], text_config={"vocab_size": 9, "x": 1})
    adapter = {"v": random(12, WIDTH, seed=5), "a": random(6, WIDTH, seed=6), "b": random(4, 6, seed=7)}
    adapter |= {"qa": random(2, WIDTH, seed=8), "qb": random(3, 2, seed=9), "qm": random(3, seed=10).abs() + 0.5}
    (tmp_path / f"{folder}-adapter").mkdir()
    save_file(adapter, tmp_path / f"{folder}-adapter" / "model.safetensors")
    source, tuned = open_checkpoint(base), open_checkpoint(tmp_path / f"{folder}-adapter")
    experts = tuple(Piece(e * 4 * WIDTH, (4, WIDTH), (lora("a", "b", cut=Cut(3, e)),)) for e in range(3))
    sources = {"layers.1.qkv": "layers.0.qkv", "layers.2.qkv": "layers.1.qkv", "layers.2.experts": "layers.1.experts"}
    rows = (Piece(4 * WIDTH, (3, WIDTH), (lora("qa", "qb", family="dora", magnitude="qm"),)),)
    plan = plan_of(
        source,
        {"embed": whole((12, WIDTH), full("v")), "layers.0.experts": experts, "layers.2.qkv": rows},
        shapes={"embed": (12, WIDTH)},
        sources=sources,
        homes={"layers.2.qkv": "layers.0.qkv"},
        config={"tie_word_embeddings": False, "text_config.vocab_size": 12, "text_config.new": [1]},
    )
    return tensors, source, tuned, plan


@pytest.mark.parametrize("alpha", ALPHAS)
def test_everything_on_disk(tmp_path, alpha, monkeypatch):
    """What is written is what the view gives, in the shards of the plan, whatever threads and tasks there are."""
    monkeypatch.setattr(tiles, "TILE", 2 * WIDTH)
    tensors, source, tuned, plan = checkpoint("base", tmp_path)
    view = view_of(source, [(tuned, plan)], [alpha])
    for threads in (1, 2, 4):
        monkeypatch.setattr(tasks, "CHUNK", 1 << 22 if threads == 1 else 1)  # then each tile is a task
        save_checkpoint(view, tmp_path / f"out{threads}", threads=threads)
    assert tree(tmp_path / "out1") == tree(tmp_path / "out2") == tree(tmp_path / "out4")
    read = read_all(tmp_path / "out1")
    assert read.keys() == set(view) and all(same_bits(read[name], view[name]) for name in view)
    assert same_bits(read["layers.1.qkv"], tensors["layers.0.qkv"])
    assert same_bits(read["layers.2.experts"], tensors["layers.1.experts"])
    assert same_bits(read["layers.2.qkv"][:4], tensors["layers.1.qkv"][:4])
    assert alpha or same_bits(read["embed"][:9], tensors["embed"])
    assert same_bits(read["embed"][9:], tuned["v"][9:].bfloat16())
    index = json.loads((tmp_path / "out1" / "model.safetensors.index.json").read_text())["weight_map"]
    assert index["layers.2.qkv"] == index["layers.0.qkv"] != index["layers.2.experts"] == index["layers.1.qkv"]


def test_config_is_edited_in_its_places(tmp_path):
    """config.json gets the plan's values at their paths; its order and everything else stay."""
    _, source, tuned, plan = checkpoint("base", tmp_path)
    save_checkpoint(view_of(source, [(tuned, plan)], [0.5]), tmp_path / "out")
    found = json.loads((tmp_path / "out" / "config.json").read_text())
    wanted_text = {"vocab_size": 12, "x": 1, "new": [1]}
    assert list(found.items()) == [*{**CONFIG, "tie_word_embeddings": False}.items(), ("text_config", wanted_text)]


def test_verification_finds_every_byte(tmp_path):
    """An output compares clean against its view; one wrong byte in any tensor is found where it is."""
    _, source, tuned, plan = checkpoint("base", tmp_path)
    view = view_of(source, [(tuned, plan)], [0.3])
    save_checkpoint(view, tmp_path / "out")
    with open_checkpoint(tmp_path / "out") as output:
        assert list(compare(output, wanted(view), {}, None, None)) == []
        specs = [(file, *item) for file in output.files for item in file.header.specs.items()]
        edges = [(file.path, file.offset_of(name), name, spec.nbytes) for file, name, spec in specs]
    places = [(path, start, name, at) for path, start, name, size in edges for at in (0, size // 2, size - 1)]
    for path, start, name, inside in places:
        content, at = bytearray(path.read_bytes()), start + inside
        content[at] ^= 1
        path.write_bytes(content)
        with open_checkpoint(tmp_path / "out") as output:
            (problem,) = compare(output, wanted(view), {}, None, None)
        assert (problem.tensor, problem.offset) == (name, at)
        content[at] ^= 1
        path.write_bytes(content)


def test_a_sweep_writes_what_each_view_alone_does(tmp_path):
    """Each folder of a sweep is what save_checkpoint gives of that alpha, byte for byte, 0 and 1 included."""
    _, source, tuned, plan = checkpoint("base", tmp_path)
    views = [view_of(source, [(tuned, plan)], [0.0])]
    views += [views[0].at(alpha) for alpha in ALPHAS[1:]]
    save_sweep(views, tmp_path / "all", threads=2)
    for view, folder in zip(views, ("alpha-0", "alpha-0.3", "alpha-1"), strict=True):
        save_checkpoint(view, tmp_path / folder, threads=1)
        assert tree(tmp_path / folder) == tree(tmp_path / "all" / folder)


def test_the_best_alone_is_the_same(tmp_path):
    """Going from alpha to alpha in one folder gives the bytes that the winner has alone."""
    _, source, tuned, plan = checkpoint("base", tmp_path)
    views = [view_of(source, [(tuned, plan)], [0.0])]
    views += [views[0].at(alpha) for alpha in ALPHAS[1:]]
    scores = {"alpha-0": 0.0, "alpha-0.3": 1.0, "alpha-1": 0.5}
    metrics = [Metric("score", "max")]
    save_sweep(
        views, tmp_path / "all", evaluate=lambda path: {"score": scores[path.name]}, metrics=metrics, keep="best"
    )
    save_checkpoint(views[1], tmp_path / "alone")
    assert tree(tmp_path / "all" / "alpha-0.3") == tree(tmp_path / "alone")


def test_resume_after_a_stop(tmp_path, monkeypatch):
    """A run that stops between two shards goes on where it was, and ends with the same bytes."""
    _, source, tuned, plan = checkpoint("base", tmp_path)
    view = view_of(source, [(tuned, plan)], [0.3])
    save_checkpoint(view, tmp_path / "whole")
    prepare, seen = type(view.bound).prepare, []

    def stopped(self, name, shares, **how):
        seen.append(name)
        if name == "layers.2.experts" or len(seen) == 3:
            raise KeyboardInterrupt
        return prepare(self, name, shares, **how)

    with monkeypatch.context() as patch:
        patch.setattr(type(view.bound), "prepare", stopped)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(view, tmp_path / "out", resume=True, threads=1)
    save_checkpoint(view, tmp_path / "out", resume=True, threads=2)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    again = save_checkpoint(view, tmp_path / "out", resume=True)
    assert "finished already" in again.notes[-1]


def test_a_shard_of_another_layer_is_no_copy_of_the_file(tmp_path):
    """Two shards with one header each, whose layers change places: the bytes change places too."""
    tensors = {"layers.0.w": random(4, 3), "layers.1.w": random(4, 3, seed=1)}
    source = open_checkpoint(write_base(tmp_path / "base", tensors, [["layers.0.w"], ["layers.1.w"]]))
    plan = plan_of(source, {}, sources={"layers.0.w": "layers.1.w", "layers.1.w": "layers.0.w"})
    swapped, same = (view_of(source, [({}, one)], [0.5]) for one in (plan, plan_of(source, {})))
    for view, files in (swapped, [None, None]), (same, list(source.files)):
        job = plan_job({"": view}, None, None, False, FILES)
        assert [job.file_like(shard) for shard in job.shards] == files
    save_checkpoint(swapped, tmp_path / "out")
    read = read_all(tmp_path / "out")
    assert same_bits(read["layers.0.w"], tensors["layers.1.w"]) and same_bits(read["layers.1.w"], tensors["layers.0.w"])


def test_layers_that_are_left_out(tmp_path):
    """What a plan drops of its base is gone from shards and index; a shard without tensors is not written."""
    tensors = {"layers.0.w": random(4, 3), "layers.1.w": random(4, 3, seed=1), "layers.1.v": random(2, seed=2)}
    source = open_checkpoint(write_base(tmp_path / "base", tensors, [["layers.0.w"], ["layers.1.w", "layers.1.v"]]))
    for number, drop in enumerate([("layers.1.v",), ("layers.0.w",)]):
        plan = plan_of(source, {}, drop=drop)
        save_checkpoint(view_of(source, [({}, plan)], [0.5]), tmp_path / f"out{number}")
        read, index = read_all(tmp_path / f"out{number}"), tmp_path / f"out{number}" / "model.safetensors.index.json"
        assert read.keys() == tensors.keys() - set(drop) == json.loads(index.read_text())["weight_map"].keys()
        assert all(same_bits(read[name], tensors[name]) for name in read)
    assert len(list((tmp_path / "out1").glob("*.safetensors"))) == 1


def test_adapters_over_a_resized_tensor_are_refused():
    """Of several adapters that change one tensor, none may resize it; one that only one changes is fine."""
    base = {"embed": random(9, WIDTH), "w": random(4, WIDTH)}
    adapter = {"v": random(12, WIDTH), "a": random(2, 9), "b": random(WIDTH, 2)}
    grown = plan_of(base, {"embed": whole((12, WIDTH), full("v"))}, shapes={"embed": (12, WIDTH)})
    moved = plan_of(base, {"embed": whole((9, WIDTH), lora("a", "b", layout="embedding"))})
    view = view_of(base, [(adapter, grown), (adapter, moved)], [0.5, 0.5], plan=union([grown, moved]))
    with pytest.raises(errors.Unsupported, match="resizes it"):
        check_resized(view.bound)
    other = plan_of(base, {})
    check_resized(view_of(base, [(adapter, grown), (adapter, other)], [0.5, 0.5], plan=grown).bound)


@pytest.mark.parametrize("steps", [[lora("a", "b", layout="embedding")], [full("v"), lora("a", "b")]])
def test_rows_without_a_value_are_refused(steps):
    """Rows that the base does not have need a saved value: nothing else says what they are."""
    base = {"embed": random(9, WIDTH)}
    adapter = {"a": random(2, 12), "b": random(WIDTH, 2), "v": random(12, WIDTH)}
    rows = () if len(steps) == 1 else ((3, 10), (0, 1))
    plan = plan_of(base, {"embed": (whole((12, WIDTH), *steps), *rows)}, shapes={"embed": (12, WIDTH)})
    with pytest.raises(errors.Unsupported, match="rows that the base does not have"):
        view_of(base, [(adapter, plan)], [0.5])["embed"]


def test_only_whole_weights_become_one_adapter():
    """Pieces, cuts, other names, other sizes and parameters are refused where several adapters are to be one."""
    base = {"m.weight": random(8, WIDTH), "w": random(8, WIDTH), "u": random(4, WIDTH)}
    step = lora("a", "b")
    fine = plan_of(base, {"m.weight": whole((8, WIDTH), step)})
    check_plain(view_of(base, [({}, fine)], [0.5]).bound)
    for plan in [
        plan_of(base, {"m.weight": (Piece(0, (4, WIDTH), (step,)),)}),
        plan_of(base, {"m.weight": whole((8, WIDTH), lora("a", "b", cut=Cut(out=(0, 8))))}),
        plan_of(base, {"v.weight": whole((8, WIDTH), step)}, sources={"v.weight": "m.weight"}),
        plan_of(base, {"w": whole((8, WIDTH), step)}),
        plan_of(base, {"w": whole((9, WIDTH), full("v"))}, shapes={"w": (9, WIDTH)}),
    ]:
        with pytest.raises(errors.Unsupported):
            check_plain(view_of(base, [({}, plan)], [0.5]).bound)
