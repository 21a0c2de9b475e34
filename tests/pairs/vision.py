"""Pairs of models that see or hear."""

from __future__ import annotations

from pairs.pair import Pair, lora

TABLE = [
    Pair("vit", "vit", lora("q_proj", "v_proj", "fc1", "projection", modules_to_save=["classifier"])),
    Pair("resnet_dora", "resnet", lora("convolution", use_dora=True, modules_to_save=["normalization"])),
]
