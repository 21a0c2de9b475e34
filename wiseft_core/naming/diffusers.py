"""How diffusers spells an adapter: dotted paths behind the name of the component.

Naming room: strings only. Three generations mean the same:

    unet.X.attn1.to_q.lora_A.weight                  (as PEFT has it, since 0.22)
    unet.X.attn1.to_q.lora.down.weight               text_encoder.X.self_attn.q_proj.lora_linear_layer.down.weight
    unet.X.attn1.processor.to_q_lora.down.weight     text_encoder.X.self_attn.to_q_lora.down.weight

The component may be missing, and diffusers' own conversion mixes the first two in one file. Scale: `.alpha` beside the
factors if it is there, else what `lora_adapter_metadata` in the header says, else lora_alpha = rank: diffusers 0.42,
`get_peft_kwargs`, "alpha == rank per module (scale 1.0)".
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from wiseft_core.naming.kohya import PREFIXES as KOHYA_PREFIXES
from wiseft_core.naming.words import COMPONENTS, Word

METADATA: Final = "lora_adapter_metadata"
"""The entry of a file's header in which diffusers keeps the fields of PEFT's config."""
TAILS: Final = (
    (".lora_A.weight", "A", False),
    (".lora_B.weight", "B", False),
    (".lora_B.bias", "bias", False),
    (".lora_magnitude_vector", "magnitude", False),
    (".lora_magnitude_vector.weight", "magnitude", False),
    (".lora_linear_layer.down.weight", "A", True),
    (".lora_linear_layer.up.weight", "B", True),
    (".lora.down.weight", "A", True),
    (".lora.up.weight", "B", True),
    ("_lora.down.weight", "A", True),
    ("_lora.up.weight", "B", True),
    (".lora_down.weight", "A", True),
    (".lora_up.weight", "B", True),
    (".dora_scale", "dora_scale", False),
    (".alpha", "alpha", False),
)
"""The ends of keys, each with its role and whether nobody but diffusers writes it."""
OF_ATTENTION: Final = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
"""What the oldest files call the layers of a text encoder's attention."""
OF_TRANSFORMERS: Final = ("transformer_blocks.", "single_transformer_blocks.")
"""Where diffusers' transformers have their layers: `transformer.` alone may be a language model's own name."""


def parse(key: str) -> Word | None:
    """What a key says; None where it does not end as one of diffusers', or begins as one of kohya's."""
    if key.startswith(tuple(KOHYA_PREFIXES)):
        return None
    for tail, role, certain in TAILS:
        if key.endswith(tail):
            first, dot, rest = key.removesuffix(tail).partition(".")
            component = COMPONENTS.get(first, "") if dot else ""
            path = rest if component else key.removesuffix(tail)
            module = _oldest(path, component) if tail.startswith("_") else path
            return Word(component, module.replace(".processor.", "."), role, "LORA", certain)
    return None


def speaks(keys: Collection[str]) -> bool:
    """Whether keys are certainly diffusers' own: no PEFT file and no live model has such."""
    words = [word for word in map(parse, keys) if word is not None and word.role in ("A", "B")]
    if any(word.certain for word in words):
        return True
    said = {word.component for word in words}
    if not said or "" in said:
        return False
    return any(
        not key.startswith("transformer.") or key.removeprefix("transformer.").startswith(OF_TRANSFORMERS)
        for key in keys
    )


def _oldest(path: str, component: str) -> str:
    """The module of `X.to_q_lora`: attention processors had layers of their own, called after those they change."""
    parent, _, name = path.rpartition(".")
    if component.startswith("text_encoder"):
        name = OF_ATTENTION.get(name, name)
    return f"{parent}.{'to_out.0' if name == 'to_out' else name}"
