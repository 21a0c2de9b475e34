"""Bytes on disk: strict JSON, headers, readers, shards, the writer and publishing.

Store room. It knows names, shapes, dtypes, offsets and files, and nothing of what a tensor means. Every operation on
a file goes through the seam in `files.py`. The verbs call it; it imports no other room.
"""
