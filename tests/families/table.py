"""The README's table of methods, and its list of what is refused: from the records, with errors measured now.

    python tests/families/table.py [--write]

prints both, or puts them in the place of those in README.md. `test_table.py` holds the README to the records, and its
errors to the measured ones.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
import tempfile
import textwrap
from collections.abc import Mapping
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

import peft
import torch
from families.test_against_peft import CASES, LINEAR, Case, train, view_of
from peft import PeftType
from toys import gpt2

from wiseft_core import errors
from wiseft_core.config import AdapterConfig
from wiseft_core.config_methods import REFUSED, REWRITES
from wiseft_core.families import FAMILIES, Change, Family

README = Path(__file__).resolve().parents[2] / "README.md"
HEAD = "| method | layers | needs the base | rescalable | error | source |"
REFUSALS = "Refused by name, each with its reason (exit code 4): "
WORDS = {
    "linear": "Linear",
    "transposed": "Conv1D",
    "embedding": "Embedding",
    "convolution": "Conv1d-3d",
    "flat": "Conv1d-3d",
    "whole": "any",
}
"""Layouts in plain words: Conv1D is that of transformers, "any" a tensor of any shape."""
EVERY = [*LINEAR, "emb", "conv1", "conv2", "conv3"]
FIRST = {
    "lora": Case(peft.LoraConfig, {"target_modules": EVERY, "r": 3, "lora_alpha": 5}),
    "lora_bias": Case(peft.LoraConfig, {"target_modules": LINEAR, "r": 3, "lora_alpha": 5, "lora_bias": True}),
    "lora_gpt2": Case(peft.LoraConfig, {"target_modules": ["c_attn", "c_fc"], "r": 3, "lora_alpha": 5}, gpt2),
    "dora": Case(peft.LoraConfig, {"target_modules": EVERY, "r": 3, "lora_alpha": 5, "use_dora": True}),
    "full": Case(peft.LoraConfig, {"target_modules": LINEAR, "modules_to_save": ["head", "norm"], "bias": "all"}),
    "tokens": Case(peft.LoraConfig, {"target_modules": LINEAR, "trainable_token_indices": {"emb": [7, 2]}}),
}
"""Cases of the methods that have tests of their own."""


def measured() -> dict[str, float]:
    """The largest error of each family against PEFT's float32 merge, in 2^-24 of the largest number of a tensor."""
    found: dict[str, float] = {}
    for case in (FIRST | CASES).values():
        with tempfile.TemporaryDirectory() as folder:
            one = train(case, torch.float32, Path(folder))
            view = view_of(one, 1.0)
            for key in view.touched:
                family = view.plan.bindings[key].steps[-1].family
                size = max(one.base[key].abs().max(), one.merged[key].abs().max())
                off = (view[key].double() - one.merged[key].double()).abs().max() / size * 2**24
                found[family] = max(found.get(family, 0.0), float(off))
    return found


def stated(error: float) -> str:
    """What the table says of a measured error: a third more, for other machines, with one decimal."""
    return f"{math.ceil(error * 13) / 10:g}"


def row(family: Family, error: str) -> list[str]:
    """The cells of a family."""
    changes = [(parameter, form) for parameter in family.parameters for form in family.forms(parameter)]
    closed = {form.closed for _, form in changes}
    return [
        f"`{family.name}`",
        ", ".join(dict.fromkeys(word for parameter, form in changes for word in layers(parameter, form))),
        "yes" if any(form.tuned is not None and form.value is None for _, form in changes) else "no",
        "yes" if closed == {True} else "no" if closed == {False} else "in part",
        error,
        ", ".join(f"[{paper}](https://arxiv.org/abs/{paper})" for paper in papers(family))
        or family.source.partition(",")[0],
    ]


def layers(parameter: str, form: Change) -> list[str]:
    """What a form changes, in plain words."""
    return ["bias"] if parameter == "bias" else [WORDS[layout] for layout in form.layouts]


def papers(family: Family) -> list[str]:
    """The papers of a family by their numbers."""
    return re.findall(r"arXiv:(\d{4}\.\d{5})", family.source)


def table(errors_of: Mapping[str, str]) -> str:
    """The Markdown table; `errors_of` says what to state of each family."""
    rows = [row(record, errors_of[name]) for name, record in FAMILIES.items()]
    return "\n".join([HEAD, "|---|---|---|---|---:|---|", *(f"| {' | '.join(cells)} |" for cells in rows)])


def refusals() -> str:
    """The sentence that lists what is refused by name, in lines of the README."""
    methods = sorted(kind.value for kind in PeftType if is_refused(kind.value))
    said = (
        f"{REFUSALS}the methods {', '.join(f'`{name}`' for name in methods)}; LoRA with "
        f"{', '.join(f'`{name}`' for name in REFUSED)}; LoRA that starts from "
        f"{', '.join(f'`{name}`' for name in REWRITES)}."
    )
    return textwrap.fill(said, 120, break_long_words=False, break_on_hyphens=False)


def is_refused(kind: str) -> bool:
    """Whether a method of PEFT is refused whatever else its config says."""
    try:
        AdapterConfig.from_mapping({"peft_type": kind, "token_indices": [0]})
    except errors.Unsupported as refusal:
        return refusal.where.endswith("peft_type")
    except errors.WiseftError:
        pass
    return False


def written(text: str, errors_of: Mapping[str, str]) -> str:
    """The README with both in their places."""
    text = re.sub(rf"^{re.escape(HEAD)}(\n\|.*)+", lambda _: table(errors_of), text, flags=re.MULTILINE)
    return re.sub(rf"^{re.escape(REFUSALS)}.*(\n.+)*", lambda _: refusals(), text, flags=re.MULTILINE)


def main() -> None:
    """Measure, and print or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put both into README.md")
    write = parser.parse_args().write
    errors_of = {name: stated(error) for name, error in measured().items()}
    if write:
        README.write_text(written(README.read_text(), errors_of))
    else:
        print(f"{table(errors_of)}\n\n{refusals()}")


if __name__ == "__main__":
    main()
