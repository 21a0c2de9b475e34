"""What a key of an adapter says that PEFT did not save, in whatever spelling.

Naming room: strings only. Each spelling is a file beside this one; they all give words.
"""

from __future__ import annotations

from typing import Final, NamedTuple

UNET: Final = "unet"
"""The network that denoises: diffusers calls it unet or transformer, and no pipeline has both."""
COMPONENTS: Final = {
    "unet": UNET,
    "transformer": UNET,
    "diffusion_model": UNET,
    "text_encoder": "text_encoder",
    "text_encoder_2": "text_encoder_2",
    "text_encoder_3": "text_encoder_3",
}
"""The components of a pipeline that adapters are trained for, by the words that stand in front of dotted names."""


class Word(NamedTuple):
    """What one key says.

    Attributes:
        component: The component of the pipeline; "" where the key does not say.
        module: The module's path there: with dots, or flat, every dot an underscore.
        role: "A", "B", "bias", "magnitude", "alpha", or a role of LoHa or LoKr as PEFT's keys have it.
        method: PEFT's word for the method that has such a role; "" for what more than one has.
        certain: Whether neither a PEFT file nor a live model spells it so.
        why: Why it cannot be read; "" where it can.
    """

    component: str
    module: str
    role: str
    method: str = ""
    certain: bool = False
    why: str = ""


def flat(path: str) -> str:
    """A path with every dot an underscore."""
    return path.replace(".", "_")
