"""Views and landings: whatever form the base is stored in, and whatever form an adapter names, the same numbers meet.

Every parameter is filled with numbers that are all different. The base's tensors are cut from it by hand, as each form
says; a landing is right if its run of the base holds just those numbers that its cut of the site's matrix does.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from wiseft_core.landings import Astray, land
from wiseft_core.naming.links import Link, Part
from wiseft_core.types import TensorSpec
from wiseft_core.views import memory_view

EXPERTS, ROWS, COLUMNS, HEIGHT = 3, 4, 5, 2
STACK = np.arange(EXPERTS * ROWS * COLUMNS).reshape(EXPERTS, ROWS, COLUMNS)
"""A fused parameter: of each expert's ROWS the first HEIGHT are the gate's, the others up's."""


def stack_forms(flat):
    """The stack on disk in a form: tensors by name, and what each name is in memory."""
    if flat == "fused":
        return {"w": STACK}, {"w": (Link("w"),)}
    tensors, links = {}, {}
    for expert, (at, part) in product(range(EXPERTS), enumerate(("gate", "up"))):
        name = f"experts.{expert}.{part}"
        tensors[name] = STACK[expert, at * HEIGHT : (at + 1) * HEIGHT]
        links[name] = (Link("w", expert, Part(at, 2)),)
        if flat == "across":
            tensors[name], links[name] = tensors[name].T.copy(), (links[name][0]._replace(across=True),)
    return tensors, links


SITES = {
    "packed": ((Link("w"),), True, STACK),
    "an expert": ((Link("w", 1),), False, STACK[1]),
    "an expert's gate": ((Link("w", 2, Part(0, 2)),), False, STACK[2, :HEIGHT]),
    "an expert's up": ((Link("w", 0, Part(1, 2)),), False, STACK[0, HEIGHT:]),
}


def check(tensors, links, site_links, packed, matrix):
    """Every landing holds what its cut of the site's matrix does, and together they hold all of it once."""
    base = {name: TensorSpec("F32", tensor.shape) for name, tensor in tensors.items()}
    view = memory_view(base, lambda name: links.get(name) or (Link(name),))
    landed = land(site_links, view.parameters, packed=packed)
    seen = []
    assert landed.shape == (matrix.shape[1:] if packed else matrix.shape)
    for landing in landed.landings:
        size = int(np.prod(landing.shape))
        run = tensors[landing.name].reshape(-1)[landing.start : landing.start + size].reshape(landing.shape)
        whole = matrix[landing.cut.expert] if landing.cut.experts else matrix
        out, into = landing.cut.out or (0, whole.shape[0]), landing.cut.into or (0, whole.shape[1])
        wanted = whole[out[0] : out[1], into[0] : into[1]]
        assert np.array_equal(run.T if landing.across else run, wanted), landing
        seen += run.reshape(-1).tolist()
    assert sorted(seen) == sorted(matrix.reshape(-1).tolist())


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("form", ["fused", "apart", "across"])
def test_experts_in_every_form(form, site):
    """Stacks and single experts, gates and ups apart or joined, stored either way round."""
    check(*stack_forms(form), *SITES[site])


def test_experts_are_in_natural_order():
    """The eleventh expert is the eleventh, wherever its name stands among the others."""
    rows = np.arange(12 * 2).reshape(12, 1, 2)
    tensors = {f"experts.{expert}.w": rows[expert] for expert in sorted(range(12), key=str)}
    links = {f"experts.{expert}.w": (Link("w", expert),) for expert in range(12)}
    check(tensors, links, (Link("w"),), True, rows)


QKV = np.arange(6 * 2).reshape(6, 2)
CHUNKS = tuple(Link(name, own=Part(at, 3)) for at, name in enumerate("qkv"))


def test_one_base_tensor_for_three_sites_and_one_site_over_three():
    """q, k and v joined on disk, or in the adapter, or in both."""
    apart = {name: QKV[at * 2 : at * 2 + 2] for at, name in enumerate("qkv")}
    joined = {"qkv": QKV}
    for at, name in enumerate("qkv"):
        check(joined, {"qkv": CHUNKS}, (Link(name),), False, QKV[at * 2 : at * 2 + 2])
    check(apart, {}, CHUNKS, False, QKV)
    check(joined, {"qkv": CHUNKS}, CHUNKS, False, QKV)


def test_columns_joined():
    """Parts that follow each other along `in`: one site over both takes the columns of each."""
    tensors = {"a": QKV[:, :1], "b": QKV[:, 1:]}
    links = {name: (Link("w", part=Part(at, 2, "in")),) for at, name in enumerate("ab")}
    check(tensors, links, (Link("w"),), False, QKV)


@pytest.mark.parametrize(
    ("site", "links", "why"),
    [
        ((Link("w", 7),), None, "expert 7"),
        ((Link("w", 0, Part(0, 3)),), None, "no 3 equal parts"),
        ((Link("w", 0, Part(0, 5, "in")),), None, "no one run"),
        ((Link("w"),), {"w": (Link("w", why="PermuteForRope"),)}, "PermuteForRope"),
    ],
)
def test_what_is_no_run_of_the_base_is_told(site, links, why):
    """An expert that is not there, parts that do not come out even, columns, and what is more than a move."""
    base = {"w": TensorSpec("F32", STACK.shape)}
    view = memory_view(base, lambda name: (links or {}).get(name) or (Link(name),))
    with pytest.raises(Astray, match=why):
        land(site, view.parameters)


def test_a_stack_with_a_gap_cannot_be_followed():
    """Experts 0 and 2 without 1, or a gate without its up: nothing says what the stack is."""
    tensors, links = stack_forms("apart")
    for lost in ("experts.1.gate", "experts.2.up"):
        base = {name: TensorSpec("F32", tensor.shape) for name, tensor in tensors.items() if name != lost}
        with pytest.raises(Astray):
            land((Link("w"),), memory_view(base, links.__getitem__).parameters, packed=True)
