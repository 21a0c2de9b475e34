"""What the package does not do yet: test ids, "pair/format". To be empty when names are done."""

TAKEN = frozenset({"clip_text_old_adapter", "clip_text_both_old", "siglip_classifier"})
"""Pairs that are taken, or fail with another error than ours, though they were made not to fit: see findings.md."""

TODO: frozenset[str] = frozenset({"vision_encoder_decoder", "llava_gpt_oss", "jetmoe_parameters"})
