"""The version: one fact, read by the build, the door and the manifest."""

__version__ = "0.1.0"
