"""Protobuf messages, generated from proto/geokv/v1 by scripts/proto: never edited.

Not here: the services. Their methods stand in one table in the runtime, with bytes in and bytes out.
"""
