"""The fixtures of the tests on real models."""

from real.conftest import one_thread, smollm2

__all__ = ["one_thread", "smollm2"]
