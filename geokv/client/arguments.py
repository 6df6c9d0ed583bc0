"""From what callers pass to what the machine takes: keys, values, times, levels, addresses.

Wrong types are TypeErrors that say what to pass; wrong values are InvalidRequest. Both are raised in the
caller's own frame, before anything is sent.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

from geokv.client.codecs import Codec
from geokv.client.operation_id import Named, OperationId
from geokv.core.limits import KEY_BYTES_MAX, TIMEOUT_MS_MAX, VALUE_BYTES_MAX_MAX
from geokv.core.quorum import Consistency
from geokv.errors import GeokvError, InvalidRequest
from geokv.protocol.client.operations import Kind, Options, OptionsTable

NODES_VARIABLE: Final = "GEOKV_NODES"
TIMEOUT_S_DEFAULT: Final = 5.0
_NAME_BYTES_MAX: Final = 255  # more than a name may have: an alias of one is longer
_TTL_MS_MAX: Final = 100 * 365 * 24 * 3600 * 1000
_REPLICAS_MAX: Final = 255

Level = Consistency | str
Seconds = float | timedelta
Key = str | bytes


def encode_key(key: Key) -> bytes:
    """1 to 1,024 bytes; a str becomes UTF-8."""
    if not isinstance(key, bytes):
        if not isinstance(key, str):
            raise TypeError(f"a key is str or bytes, not {type(key).__name__}")
        try:
            key = key.encode()
        except UnicodeEncodeError as error:
            raise _no_text("the key", error) from error
    if not 0 < len(key) <= KEY_BYTES_MAX:
        size = f"{len(key)} bytes" if key else "empty"
        raise InvalidRequest(f"the key is {size}: a key has 1 to {KEY_BYTES_MAX} bytes")
    return key


def _utf8(text: str, what: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise _no_text(what, error) from error


def _no_text(what: str, error: UnicodeEncodeError) -> InvalidRequest:
    found = error.object[error.start]
    return InvalidRequest(
        f"{what} is no text: {found!r} is half a character (a lone surrogate), which UTF-8 cannot write; pass bytes where"
        " bytes are meant"
    )


def encode_value(value: Any, codec: Codec | None) -> bytes:
    if codec is not None:
        try:
            value = codec.encode(value)
        except GeokvError:
            raise
        except Exception as error:
            raise InvalidRequest(f"the codec cannot encode the value: {type(error).__name__}: {error}") from error
    if not isinstance(value, bytes):
        if codec is not None:
            raise TypeError(f"the codec's encode() must return bytes, not {type(value).__name__}")
        raise TypeError(
            f"a value is bytes, not {type(value).__name__}: pass bytes, or give the namespace handle a codec,"
            ' for example kv.namespace("...", codec="json")'
        )
    if len(value) > VALUE_BYTES_MAX_MAX:
        raise InvalidRequest(f"the value has {len(value)} bytes: at most {VALUE_BYTES_MAX_MAX} in any namespace; split it")
    return value


def encode_context(context: bytes | None) -> bytes:
    if context is None:
        return b""
    if not isinstance(context, bytes):
        raise TypeError(f"context= wants the .context of a result (bytes), not {type(context).__name__}")
    return context


def seconds(value: Seconds, name: str) -> float:
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}= wants seconds (a number) or a timedelta, not {type(value).__name__}")
    return value


def timeout_us(timeout: Seconds) -> int:
    """Positive and at most TIMEOUT_MS_MAX; never infinite."""
    given = seconds(timeout, "timeout")
    if not 0 < given * 1000 <= TIMEOUT_MS_MAX:
        raise InvalidRequest(f"timeout={given:g}: a time above 0 and up to {TIMEOUT_MS_MAX // 1000} seconds")
    return max(1, round(given * 1e6))


def left_s(until_us: int) -> float:
    """What is left of a caller's time, for one more call: never nothing, so that it is the call that says it is over."""
    return max(until_us - time.monotonic_ns() // 1000, 1_000) / 1e6


def ttl_ms(ttl: Seconds | None) -> int:
    """0 takes the namespace's."""
    if ttl is None:
        return 0
    milliseconds = seconds(ttl, "ttl") * 1000
    if not 1 <= milliseconds <= _TTL_MS_MAX:
        raise InvalidRequest(f"ttl={ttl}: a time of at least 0.001 and up to {_TTL_MS_MAX // 1000} seconds")
    return round(milliseconds)


def _count(value: int | None, name: str) -> int:
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}= wants a whole number, not {type(value).__name__}")
    if not 1 <= value <= _REPLICAS_MAX:
        raise InvalidRequest(f"{name}={value}: a number from 1 to {_REPLICAS_MAX}")
    return value


def level_of(consistency: Level | None) -> Consistency:
    if consistency is None:
        return Consistency.DEFAULT
    if not isinstance(consistency, Consistency | str):
        raise TypeError(f"consistency= wants Consistency.QUORUM or its name, not {type(consistency).__name__}")
    return Consistency.parse(consistency)


def named(
    options: Options, operation_id: OperationId | None, key: bytes, what: bytes | None, codec: Codec | None = None
) -> Options:
    """The options of an update that its caller has named: for it alone. Raises InvalidRequest where the name is another's."""
    if operation_id is None:
        return options
    if not isinstance(operation_id, OperationId):
        raise TypeError(f"operation_id= wants an OperationId, not {type(operation_id).__name__}: see OperationId.parse")
    operation_id.bind(Named(options.namespace, key, what, options.is_update), codec)
    return replace(options, given=operation_id.given(time.monotonic_ns() // 1000))


def level_for_reads(consistency: Level | None) -> Level | None:
    """The level of the gets in a batch: EACH_QUORUM is for writes, so they read at QUORUM."""
    level = level_of(consistency)
    return Consistency.QUORUM if level is Consistency.EACH_QUORUM else level


def namespace_name(name: str) -> str:
    if not isinstance(name, str):
        raise TypeError(f"a namespace's name is a str, not {type(name).__name__}")
    size = len(_utf8(name, "the namespace's name"))
    if not 0 < size <= _NAME_BYTES_MAX:
        found = f"has {size} bytes" if size else "is empty"
        raise InvalidRequest(f"the namespace's name {found}: a name is 1 to 63 of a-z, 0-9, _, . and -")
    return name


def _refuse_both(consistency: Level | None, replicas: int | None, name: str) -> None:
    if consistency is not None and replicas is not None:
        raise InvalidRequest(f"{name}= and consistency= both say how many replicas: give one of them")


def write_options(
    table: OptionsTable,
    namespace: str,
    consistency: Level | None,
    w: int | None,
    ttl: Seconds | None,
    replicated_to: int | None,
    has_contexts: bool,
    timeout: int,
    is_update: bool = False,
) -> Options:
    """What writes of one kind share. Where the node itself waits for other datacenters, the timeout is part
    of it.
    """
    _refuse_both(consistency, w, "w")
    level, copies = level_of(consistency), _count(replicated_to, "replicated_to")
    waits = timeout if copies or level is Consistency.EACH_QUORUM else 0
    count, ttl_in_ms = _count(w, "w"), ttl_ms(ttl)
    return table.get(Kind.WRITE, namespace, level, count, ttl_in_ms, copies, False, has_contexts, waits, is_update)


def read_options(table: OptionsTable, namespace: str, consistency: Level | None, r: int | None, repair: str | None) -> Options:
    _refuse_both(consistency, r, "r")
    level = level_of(consistency)
    if level is Consistency.EACH_QUORUM:
        raise InvalidRequest("EACH_QUORUM is a level for writes; read with QUORUM, or write with EACH_QUORUM")
    if repair not in (None, "before"):
        raise InvalidRequest(f'repair={repair!r}: the only choice is "before" (or leave it out)')
    return table.get(Kind.READ, namespace, level, _count(r, "r"), 0, 0, repair == "before")


def addresses_of(addresses: str | Iterable[str] | None) -> tuple[str, ...]:
    """One address, several, or those of GEOKV_NODES (separated by commas)."""
    if addresses is None:
        addresses = os.environ.get(NODES_VARIABLE, "")
        if not addresses.strip():
            raise InvalidRequest(f'no address: pass one, for example "127.0.0.1:7101", or set {NODES_VARIABLE}')
    given: object = addresses.split(",") if isinstance(addresses, str) else addresses
    if not isinstance(given, Iterable):
        raise TypeError(f'addresses are "host:port", or a list of such, not {type(given).__name__}')
    found = []
    for address in given:
        if not isinstance(address, str):
            raise TypeError(f"an address is a str, not {type(address).__name__}")
        host, colon, port = address.strip().rpartition(":")
        if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65_536:
            raise InvalidRequest(f"{address!r} is not an address: write host:port, for example 127.0.0.1:7101")
        found.append(address.strip())
    if not found:
        raise InvalidRequest("no address: the list is empty")
    return tuple(dict.fromkeys(found))


def datacenter(name: str, argument: str) -> str:
    """A datacenter's name; whether there is such a one only the cluster knows."""
    if not isinstance(name, str):
        raise TypeError(f"{argument}= wants the name of a datacenter, not {type(name).__name__}")
    _utf8(name, f"the name in {argument}=")
    return name


def names_of(names: str | Iterable[str], argument: str) -> tuple[str, ...]:
    """Datacenters in a stated order."""
    given: object = [name.strip() for name in names.split(",") if name.strip()] if isinstance(names, str) else names
    if not isinstance(given, Iterable):
        raise TypeError(f"{argument}= wants names of datacenters, not {type(given).__name__}")
    return tuple(datacenter(name, argument) for name in given)


def pairs_of(items: Mapping[Key, Any] | Iterable[tuple[Key, Any]]) -> Iterable[tuple[Key, Any]]:
    if isinstance(items, Mapping):
        return items.items()
    given: object = items
    wanted = "put_many wants a mapping or (key, value) pairs"
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise TypeError(f"{wanted}, not {type(given).__name__}")
    pairs: list[tuple[Key, Any]] = []
    for index, pair in enumerate(given):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            what = f"{len(pair)} of them" if isinstance(pair, tuple | list) else type(pair).__name__
            raise TypeError(f"{wanted}; item {index} is no pair: {what}")
        pairs.append((pair[0], pair[1]))
    return pairs


def keys_of(keys: Iterable[Key]) -> Iterable[Key]:
    given: object = keys
    if isinstance(given, str | bytes):
        raise TypeError(f"a list of keys is wanted, not one {type(given).__name__}: put it into a list")
    if not isinstance(given, Iterable):
        raise TypeError(f"a list of keys is wanted, not {type(given).__name__}")
    return given
