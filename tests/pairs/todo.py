"""What the package does not do yet: test ids, "pair/format". To be empty when names are done."""

TAKEN = frozenset({"llama_save_norm", "resnet_dora", "gemma3_vlm"})
"""Pairs that are taken though they were made not to fit: a saved module under a wrong name is carried as a new one."""

TODO: frozenset[str] = frozenset()
