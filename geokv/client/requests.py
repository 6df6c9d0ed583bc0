"""What both kinds of handle have in common: from arguments to operations, and from answers to what callers get.

`Handle` names a namespace with its codec; it interns the options of its calls, so that a plain put costs one
dictionary lookup.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from geokv.client import arguments
from geokv.client.arguments import Key, Level, Seconds
from geokv.client.codecs import Codec, codec_of
from geokv.client.results import CellResult, FailedItem, GetResult, PutResult, Resolver, Results
from geokv.core.quorum import Consistency
from geokv.errors import GeokvError, InvalidRequest
from geokv.protocol.client.operations import Kind, Options, OptionsTable
from geokv.protocol.client.settings import MANY_SLICE
from geokv.protocol.requests import AdminReply, AdminRequest

_CACHE_MAX: Final = 1024
Item = tuple[Options, bytes, Any, bytes]
"""(options, key, value, context) of one operation to be made; the value of an admin request is the request."""


class Handle:
    """A namespace as a client sees it."""

    def __init__(
        self,
        table: OptionsTable,
        name: str,
        codec: Codec | str | None,
        timeout_us: int,
        resolver: Resolver | None = None,
    ) -> None:
        self._table = table
        self._name = arguments.namespace_name(name)
        self._codec = codec_of(codec)
        self._resolver = resolver
        self._timeout_us = timeout_us
        self.settings: dict[str, Any] | None = None  # where create_namespace made it: what the namespace is, as told then
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
        is_update: bool = False,
    ) -> Options:
        raw = (consistency, w, ttl, replicated_to, has_context, timeout_us, is_update)
        options = self._write_cache.get(raw)
        if options is None:
            options = arguments.write_options(
                self._table, self._name, consistency, w, ttl, replicated_to, has_context, timeout_us, is_update
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

    def _update_items(self, key: Key, operations: list[bytes], options: Mapping[str, Any]) -> tuple[Items, int, bool]:
        """(items, time, whether a list of results is wanted) for operations of the namespace's type on one key."""
        unknown = set(options) - {"consistency", "w", "replicated_to", "context", "timeout", "operation_id", "are_many"}
        if unknown:
            takes = "consistency, w, replicated_to, context, timeout, operation_id"
            raise TypeError(f"unknown option {min(unknown)!r}: an update takes {takes}")
        timeout, context = options.get("timeout"), options.get("context")
        timeout_us = self._timeout_us if timeout is None else arguments.timeout_us(timeout)
        chosen = self._write_options(
            options.get("consistency"),
            options.get("w"),
            None,
            options.get("replicated_to"),
            context is not None,
            timeout_us,
            is_update=True,
        )
        raw, token = arguments.encode_key(key), arguments.encode_context(context)
        if options.get("operation_id") is not None:
            if options.get("are_many"):
                raise TypeError("operation_id= names one update: add or remove one element with it")
            chosen = arguments.named(chosen, options["operation_id"], raw, b"".join(operations))
        items = Items()
        for one in operations:
            items.add((chosen, raw, one, token))
        return items, timeout_us, bool(options.get("are_many"))

    def _put_items(self, options: Options, items: Mapping[Key, Any] | Iterable[tuple[Key, Any]]) -> Items:
        found = Items()
        for key, value in arguments.pairs_of(items):
            try:
                found.add(self._put_item(options, key, value))
            except GeokvError as error:
                found.fail(error)
        return found

    def _put_item(self, options: Options, key: Key, value: Any) -> Item:
        return options, arguments.encode_key(key), arguments.encode_value(value, self._codec), b""

    def _key_items(self, options: Options, keys: Iterable[Key]) -> Items:
        """Gets or deletes, as `options` says."""
        found = Items()
        for key in arguments.keys_of(keys):
            try:
                found.add((options, arguments.encode_key(key), None, b""))
            except GeokvError as error:
                found.fail(error)
        return found

    def _decoded(self, got: GetResult) -> GetResult:
        try:
            if isinstance(got, CellResult):
                got.through(self._codec.decode if self._codec is not None else None, self._resolver)
            elif self._codec is not None and got.found:
                got.value = self._codec.decode(got.value)
        except GeokvError:
            raise
        except Exception as error:
            raise InvalidRequest(
                f"the codec cannot decode the value: {type(error).__name__}: {error}; was it written without this codec?"
                " A handle without one reads the bytes as they are"
            ) from error
        return got

    def _results(self, items: Items, answers: list[Any]) -> Results:
        """Errors become FailedItem; an item whose value the codec cannot decode fails alone."""
        return Results([self._entry(item) for item in items.merged(answers)])

    def _entry(self, item: Any) -> PutResult | GetResult | FailedItem:
        if isinstance(item, GeokvError):
            return FailedItem(item)
        if isinstance(item, GetResult):
            try:
                return self._decoded(item)
            except GeokvError as error:
                return FailedItem(error)
        return item  # type: ignore[no-any-return]


def _remember(cache: dict[Any, Options], raw: Any, options: Options) -> None:
    if len(cache) >= _CACHE_MAX:  # a caller with another TTL for every put
        cache.clear()
    cache[raw] = options


class Items:
    """The items of one call: those that can be sent, and why the others cannot. Each has its own result or error, so what
    is wrong with one stops none of the others. A TypeError does: it is the program that is wrong then.
    """

    __slots__ = ("_count", "errors", "sendable")

    def __init__(self) -> None:
        self._count = 0
        self.sendable: list[Item] = []
        self.errors: dict[int, GeokvError] = {}

    def __len__(self) -> int:
        return self._count

    def add(self, item: Item) -> None:
        self.sendable.append(item)
        self._count += 1

    def fail(self, error: GeokvError) -> None:
        """Add one that cannot be sent."""
        self.errors[self._count] = error
        self._count += 1

    def merged(self, answers: list[Any]) -> list[Any]:
        """What came of each, in the order added; `answers` are those to the sendable ones."""
        if not self.errors:
            return answers
        rest = iter(answers)
        return [self.errors[index] if index in self.errors else next(rest) for index in range(self._count)]


def waves(items: list[Item]) -> list[list[Item]]:
    """Cut a long list into pieces that are sent one after the other: no key twice in one piece, so that two puts of a
    key in one list take effect in the order given, and no piece above what a client may have waiting. Updates of one key go
    together: they do not replace each other.
    """
    pieces: list[list[Item]] = []
    piece: list[Item] = []
    seen: set[bytes] = set()
    for item in items:
        if (item[1] in seen and not item[0].is_update) or len(piece) >= MANY_SLICE:
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

    Each item has its own result or error, in the order in which they were added, also one that cannot be sent at all (an
    empty key). It is not atomic: some may fail, and
    readers may see some before others.
    """

    def __init__(self, handle: Handle, options: Callable[[Seconds | None], Options], read: Options) -> None:
        self._handle = handle
        self._options = options
        self._read = read
        self._items = Items()
        self._is_sent = False
        self.results: Results | None = None

    def put(self, key: Key, value: Any, *, ttl: Seconds | None = None) -> None:
        """Add a put."""
        self._add(lambda: self._handle._put_item(self._options(ttl), key, value))

    def delete(self, key: Key) -> None:
        """Add a delete."""
        self._add(lambda: (self._options(None), arguments.encode_key(key), None, b""))

    def get(self, key: Key) -> None:
        """Add a get."""
        self._add(lambda: (self._read, arguments.encode_key(key), None, b""))

    def __len__(self) -> int:
        return len(self._items)

    def _add(self, make: Callable[[], Item]) -> None:
        if self._is_sent:
            raise InvalidRequest("this batch was sent already; begin a new one")
        try:
            self._items.add(make())
        except GeokvError as error:
            self._items.fail(error)

    def _take(self) -> Items:
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
        settings["ttl_ms"] = arguments.ttl_ms(ttl) if arguments.seconds(ttl, "ttl") else 0
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


def answer_of(reply: AdminReply | GeokvError | BaseException) -> dict[str, Any] | GeokvError:
    """What one of several nodes answered, or its error; what is no error of geokv is raised."""
    if isinstance(reply, AdminReply):
        return body_of(reply)
    if isinstance(reply, GeokvError):
        return reply
    raise reply
