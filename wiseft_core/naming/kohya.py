"""How kohya's sd-scripts and LyCORIS spell an adapter: the module's path with underscores, and an alpha beside it.

    lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight     .lora_up.weight     .alpha     .dora_scale
    lora_te1_text_model_encoder_layers_0_mlp_fc1.hada_w1_a     .hada_w1_b     .hada_w2_a     .hada_w2_b     .alpha

Naming room: strings only. scale = alpha / rank. A file without `.alpha` means alpha = rank: sd-scripts ("support old
LoRA without alpha"), diffusers and ComfyUI all read it so; one where only some modules have an alpha has lost some.
An alpha of 0 means the rank to sd-scripts and LyCORIS and nothing to diffusers and ComfyUI: refused where it is read.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from wiseft_core.naming.words import UNET, Word

PREFIXES: Final = {
    "lora_unet_": UNET,
    "lora_transformer_": UNET,
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te3_": "text_encoder_3",
    "lycoris_": "",
}
"""What names begin with, and the component that is meant: T5 is the third text encoder, in SD3 as in Flux."""
LOHA: Final = ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")
LOKR: Final = ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")
TAILS: Final = {
    "lora_down.weight": ("A", "LORA"),
    "lora_up.weight": ("B", "LORA"),
    "dora_scale": ("dora_scale", ""),
    "alpha": ("alpha", ""),
    **{f"hada_{role}": (role, "LOHA") for role in LOHA},
    **{f"lokr_{role}": (role, "LOKR") for role in LOKR},
}
"""Behind the name of a module: the role, and the method that has it."""
REFUSED: Final = {
    "lora_mid": "a Tucker (CP) decomposition: LoRA with a core over the kernel, which no family here has",
    "diff": "a whole difference of a weight, which no family here has",
    "w_norm": "a difference of a norm's weight, which no family here has",
    "b_norm": "a difference of a norm's bias, which no family here has",
    "a1": "LyCORIS's GLoRA, whose factors are not PEFT's",
    "a2": "LyCORIS's GLoRA, whose factors are not PEFT's",
    "b1": "LyCORIS's GLoRA, whose factors are not PEFT's",
    "b2": "LyCORIS's GLoRA, whose factors are not PEFT's",
    "on_input": "LyCORIS's IA3, which is not PEFT's",
    "oft": "LyCORIS's OFT, whose blocks are not PEFT's",
    "scalar": "a factor that LyCORIS folds into the others when it saves: this file was made otherwise",
    "lokr_t1": "a core of LoKr's first factor, which LyCORIS never writes",
    "reshape_weight": "a weight that is reshaped first",
    "lora_magnitude_vector": "DoRA as diffusers' conversion to kohya misspells it",
}
"""What ends of keys mean that cannot be read, by how they start."""
BUNDLED: Final = "bundle_emb."


def parse(key: str) -> Word | None:
    """What a key says; None where it does not begin as one of kohya's."""
    if key.startswith(BUNDLED):
        return Word("", key, "", why="an embedding that is bundled with the adapter: it is no change of a weight")
    for prefix, component in PREFIXES.items():
        if key.startswith(prefix) and "." in key:
            module, _, tail = key.removeprefix(prefix).partition(".")
            if tail in TAILS:
                return Word(component, module, *TAILS[tail])
            return Word(component, module, "", why=_why(tail))
    return None


def _why(tail: str) -> str:
    """Why an end of a key cannot be read."""
    parts = tail.split(".")
    known = (why for start, why in REFUSED.items() if any(part.startswith(start) for part in parts))
    return next(known, "a factor that is not known")


def speaks(keys: Collection[str]) -> bool:
    """Whether keys are kohya's: nobody else begins so."""
    return any(parse(key) is not None for key in keys)
