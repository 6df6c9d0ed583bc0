"""What both kinds of handle have in common: from arguments to operations, and from answers to what callers get.

`Handle` names a namespace with its codec; it interns the options of its calls, so that a plain put costs one
dictionary lookup.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from geokv.client import arguments
from geokv.client.arguments import Key, Level, Seconds
from geokv.client.codecs import Codec, codec_of
from geokv.client.results import FailedItem, GetResult, PutResult, Results
from geokv.core.quorum import Consistency
from geokv.errors import GeokvError, InvalidRequest
from geokv.protocol.client.operations import Kind, Options, OptionsTable
from geokv.protocol.client.settings import MANY_SLICE
from geokv.protocol.requests import AdminReply, AdminRequest

_CACHE_MAX: Final = 1024
Item = tuple[Options, bytes, bytes | None, bytes]
"""(options, key, value, context) of one operation to be made."""


class Handle:
    """A namespace as a client sees it."""

    def __init__(self, table: OptionsTable, name: str, codec: Codec | str | None, timeout_us: int) -> None:
        self._table = table
        self._name = arguments.namespace_name(name)
        self._codec = codec_of(codec)
        self._timeout_us = timeout_us
        self._write_cache: dict[Any, Options] = {}
        self._read_cache: dict[Any, Options] = {}

    @property
    def name(self) -> str:
        return self._name

    def _write_options(
        self,
        consistency: Level | None,
        w: int | None,
        ttl: Seconds | None,
        replicated_to: int | None,
        has_context: bool,
        timeout_us: int,
    ) -> Options:
        raw = (consistency, w, ttl, replicated_to, has_context, timeout_us)
        options = self._write_cache.get(raw)
        if options is None:
            options = arguments.write_options(
                self._table, self._name, consistency, w, ttl, replicated_to, has_context, timeout_us
            )
            _remember(self._write_cache, raw, options)
        return options

    def _read_options(self, consistency: Level | None, r: int | None, repair: str | None) -> Options:
        raw = (consistency, r, repair)
        options = self._read_cache.get(raw)
        if options is None:
            options = arguments.read_options(self._table, self._name, consistency, r, repair)
            _remember(self._read_cache, raw, options)
        return options

    def _decoded(self, got: GetResult) -> GetResult:
        if self._codec is not None and got.found:
            got.value = self._codec.decode(got.value)
        return got

    def _results(self, items: Iterable[Any]) -> Results:
        """Errors become FailedItem; an item whose value the codec cannot decode fails alone."""
        return Results([self._entry(item) for item in items])

    def _entry(self, item: Any) -> PutResult | GetResult | FailedItem:
        if isinstance(item, GeokvError):
            return FailedItem(item)
        if isinstance(item, GetResult):
            try:
                return self._decoded(item)
            except Exception as error:
                return FailedItem(InvalidRequest(f"the codec cannot decode the value: {error}"))
        return item  # type: ignore[no-any-return]


def _remember(cache: dict[Any, Options], raw: Any, options: Options) -> None:
    if len(cache) >= _CACHE_MAX:  # a caller with another TTL for every put
        cache.clear()
    cache[raw] = options


def waves(items: list[Item]) -> list[list[Item]]:
    """Cut a long list into pieces that are sent one after the other: no key twice in one piece, so that two puts of a
    key in one list take effect in the order given, and no piece above what a client may have waiting.
    """
    pieces: list[list[Item]] = []
    piece: list[Item] = []
    seen: set[bytes] = set()
    for item in items:
        if item[1] in seen or len(piece) >= MANY_SLICE:
            pieces.append(piece)
            piece, seen = [], set()
        piece.append(item)
        seen.add(item[1])
    if piece:
        pieces.append(piece)
    return pieces


class BatchBuilder:
    """Puts, deletes and gets to be sent together by `send()`, or at the end of its `with` block (then `results` has
    them).

    Each item has its own result or error, in the order in which they were added. It is not atomic: some may fail, and
    readers may see some before others.
    """

    def __init__(self, handle: Handle, options: Callable[[Seconds | None], Options], read: Options) -> None:
        self._handle = handle
        self._options = options
        self._read = read
        self._items: list[Item] = []
        self._is_sent = False
        self.results: Results | None = None

    def put(self, key: Key, value: Any, *, ttl: Seconds | None = None) -> None:
        """Add a put."""
        key = arguments.encode_key(key)
        self._add((self._options(ttl), key, arguments.encode_value(value, self._handle._codec), b""))

    def delete(self, key: Key) -> None:
        """Add a delete."""
        self._add((self._options(None), arguments.encode_key(key), None, b""))

    def get(self, key: Key) -> None:
        """Add a get."""
        self._add((self._read, arguments.encode_key(key), None, b""))

    def __len__(self) -> int:
        return len(self._items)

    def _add(self, item: Item) -> None:
        if self._is_sent:
            raise InvalidRequest("this batch was sent already; begin a new one")
        self._items.append(item)

    def _take(self) -> list[Item]:
        if self._is_sent:
            raise InvalidRequest("this batch was sent already; begin a new one")
        self._is_sent = True
        return self._items


# --- administration
# -----------------------------------------------------------------------------------------------------

ADMIN: Final = Options(Kind.ADMIN)
READY: Final = Options(Kind.READY)


def admin_options(namespace: str = "") -> Options:
    return Options(Kind.ADMIN, namespace) if namespace else ADMIN


def admin_request(verb: str, **settings: Any) -> AdminRequest:
    """Settings that are None are left out; times are given in seconds and sent in milliseconds."""
    ttl = settings.pop("ttl", None)
    if ttl is not None:
        settings["ttl_ms"] = arguments.ttl_ms(ttl) if ttl else 0
    return AdminRequest(verb, {name: _plain(value) for name, value in settings.items() if value is not None})


def _plain(value: Any) -> Any:
    """What JSON can carry: a level becomes its name, a tuple a list."""
    if isinstance(value, Consistency):
        return value.name
    if isinstance(value, tuple | set | frozenset):
        return list(value)
    return value


def body_of(reply: AdminReply) -> dict[str, Any]:
    return dict(reply.body)
