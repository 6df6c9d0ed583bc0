"""Encryption at rest: the keys of a node, what files are sealed with, and the refusal where a key is wrong or missing."""
