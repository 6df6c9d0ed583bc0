"""Codecs: how values other than bytes become bytes, per namespace handle."""

from __future__ import annotations

import json
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Codec(Protocol):
    """Anything with `encode(value) -> bytes` and `decode(bytes) -> value`."""

    def encode(self, value: Any) -> bytes: ...

    def decode(self, payload: bytes) -> Any: ...


class JsonCodec:
    """UTF-8 JSON without spaces; NaN and infinities are refused, since no other reader would take them."""

    def encode(self, value: Any) -> bytes:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()

    def decode(self, payload: bytes) -> Any:
        return json.loads(payload)


_NAMED = {"json": JsonCodec}


def codec_of(codec: Codec | str | None) -> Codec | None:
    """A codec by its name, or the object itself."""
    if codec is None:
        return None
    if isinstance(codec, str):
        kind = _NAMED.get(codec)
        if kind is None:
            raise TypeError(f"unknown codec {codec!r}: choose one of {', '.join(_NAMED)}, or pass an object")
        return kind()
    if not isinstance(codec, Codec):
        raise TypeError(f"codec= wants an object with encode() and decode(), not {type(codec).__name__}")
    return codec
