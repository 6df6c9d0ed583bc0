"""The asyncio client. Its methods carry the documentation for both clients; `geokv.client.threads` has the same ones.

`AsyncClient` is itself the handle of the namespace `default`.
"""

# ruff: noqa: ASYNC109 (a timeout covers retries inside the machine; asyncio.timeout would only cut the waiting short)

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

from geokv.client import arguments, lifetime
from geokv.client.arguments import Key, Level, Seconds
from geokv.client.codecs import Codec
from geokv.client.conflicts import put_together, question, restorable, restored_by
from geokv.client.host import Host, now_us
from geokv.client.operation_id import OperationId
from geokv.client.requests import (
    ADMIN,
    READY,
    BatchBuilder,
    Handle,
    Item,
    admin_options,
    admin_request,
    answer_of,
    body_of,
    waves,
)
from geokv.client.results import GetResult, PutResult, Resolver, Results
from geokv.client.typed import Typed, shown_as
from geokv.client.waiting import FutureOperation, Gathering, ItemOperation
from geokv.errors import ClientClosed, Stale
from geokv.protocol.client import ClientSettings
from geokv.protocol.client.messages import ClientEvent
from geokv.protocol.client.operations import Options, OptionsTable
from geokv.protocol.client.settings import S
from geokv.protocol.requests import AdminRequest, Outcome


class AsyncConnection:
    """The host of one client: made on first use, on the loop that runs then, and bound to it."""

    def __init__(self, settings: ClientSettings, on_event: Callable[[ClientEvent], object] | None) -> None:
        self.settings = settings
        self.options = OptionsTable()
        self.host: Host | None = None
        self.closed_because = ""
        self._on_event = on_event
        lifetime.remember(self)

    def here(self) -> Host:
        """The host, on the loop that it is bound to. Raises ClientClosed on another one."""
        host = self.host
        if host is None:
            return self.open()
        if host.loop is not asyncio.get_running_loop():
            raise ClientClosed(lifetime.OTHER_LOOP)
        return host

    def open(self) -> Host:
        """The host, where there is none yet; raises ClientClosed where there will be none any more."""
        if self.closed_because:
            raise ClientClosed(self.closed_because)
        if reason := lifetime.why_not_here():
            raise ClientClosed(reason)
        if self.host is None:
            self.host = Host(self.settings, self._on_event)
        return self.host

    def forked(self) -> None:
        """This is a child process now. What belongs to the parent is not touched: not closed, not even collected."""
        lifetime.keep_for_ever(self.host)
        self.host = None

    async def close(self) -> None:
        if self.host is not None and self.host.loop is not asyncio.get_running_loop():
            lifetime.close_elsewhere(self, lifetime.CLOSED)
            return
        host, self.host = self.host, None
        self.closed_because = self.closed_because or lifetime.CLOSED
        if host is not None:
            await host.close()

    async def ask(self, options: Options, value: Any, timeout_us: int) -> Any:
        """One operation without a key."""
        host = self.here()
        now = now_us()
        future = host.loop.create_future()
        operation = FutureOperation(options, b"", value, now, now + timeout_us, b"", future)
        host.add(operation)
        try:
            return await future
        except asyncio.CancelledError:
            host.abandon(operation)
            raise

    async def ask_many(self, items: list[Item], timeout_us: int) -> list[Any]:
        """Results and errors, in the order of the items."""
        host = self.here()
        deadline_us = now_us() + timeout_us
        found: list[Any] = []
        for wave in waves(items):
            done: asyncio.Future[None] = host.loop.create_future()
            gathering = Gathering(len(wave), lambda done=done: done.done() or done.set_result(None))  # type: ignore[misc]
            now = now_us()
            operations = [
                ItemOperation(options, key, value, now, deadline_us, context, gathering, index)
                for index, (options, key, value, context) in enumerate(wave)
            ]
            host.add_many(operations)  # type: ignore[arg-type]
            try:
                await done
            except asyncio.CancelledError:
                for operation in operations:
                    host.abandon(operation)
                raise
            found.extend(gathering.items)
        return found


class AsyncNamespace(Handle):
    """A handle of one namespace, made by `namespace()`. It costs nothing and needs no closing."""

    def __init__(
        self,
        connection: AsyncConnection,
        owner: object,
        name: str,
        codec: Codec | str | None,
        timeout_us: int,
        resolver: Resolver | None = None,
    ) -> None:
        super().__init__(connection.options, name, codec, timeout_us, resolver)
        self._connection = connection
        self._owner = owner  # a handle keeps its client open

    async def put(
        self,
        key: Key,
        value: Any,
        *,
        consistency: Level | None = None,
        w: int | None = None,
        ttl: Seconds | None = None,
        replicated_to: int | None = None,
        context: bytes | None = None,
        timeout: Seconds | None = None,
        operation_id: OperationId | None = None,
    ) -> PutResult:
        """Write `value` under `key`.

        `consistency` is a level or its name (None: the namespace's), `w` an explicit number of replicas instead.
        `ttl`: seconds until the key is gone by itself. `replicated_to`: datacenters in all that must hold it before
        the answer; where they do not in time, the outcome is PENDING. `context` of an earlier result orders this write
        after it. `timeout` covers the whole call with its retries (None: the client's).

        Raises Unavailable (nothing was written), Partial (on fewer replicas than asked), Ambiguous and DeadlineExceeded
        (`.may_have_happened`), Overloaded, NamespaceNotFound, InvalidRequest.
        """
        connection = self._connection
        host = connection.here()
        if key.__class__ is not bytes or not 0 < len(key) <= 1024:
            key = arguments.encode_key(key)
        if self._codec is not None or value.__class__ is not bytes or len(value) > 65_536:
            value = arguments.encode_value(value, self._codec)
        timeout_us = self._timeout_us if timeout is None else arguments.timeout_us(timeout)
        options = self._write_options(consistency, w, ttl, replicated_to, context is not None, timeout_us)
        options = arguments.named(options, operation_id, key, value, self._codec)
        now = now_us()
        future = host.loop.create_future()
        operation = FutureOperation(options, key, value, now, now + timeout_us, arguments.encode_context(context), future)
        host.add(operation)
        try:
            return await future  # type: ignore[no-any-return]
        except asyncio.CancelledError:
            host.abandon(operation)
            raise

    async def get(
        self,
        key: Key,
        *,
        consistency: Level | None = None,
        r: int | None = None,
        repair: str | None = None,
        timeout: Seconds | None = None,
    ) -> GetResult:
        """Read `key`. `got.found` tells absent from empty; `got.value` of an absent key is None.

        `consistency` is a level or its name (None: the namespace's), `r` an explicit number of replicas instead.
        `repair="before"` answers only what a quorum holds, so that what was seen once is seen ever after. `timeout`
        covers the whole call with its retries (None: the client's).

        Raises Unavailable, DeadlineExceeded, Stale, Overloaded, NamespaceNotFound, InvalidRequest.
        """
        connection = self._connection
        host = connection.here()
        if key.__class__ is not bytes or not 0 < len(key) <= 1024:
            key = arguments.encode_key(key)
        options = self._read_options(consistency, r, repair)
        timeout_us = self._timeout_us if timeout is None else arguments.timeout_us(timeout)
        now = now_us()
        future = host.loop.create_future()
        operation = FutureOperation(options, key, None, now, now + timeout_us, b"", future)
        host.add(operation)
        try:
            got: GetResult = await future
        except asyncio.CancelledError:
            host.abandon(operation)
            raise
        return got if self._codec is None and got.__class__ is GetResult else self._decoded(got)

    async def delete(
        self,
        key: Key,
        *,
        consistency: Level | None = None,
        w: int | None = None,
        replicated_to: int | None = None,
        context: bytes | None = None,
        timeout: Seconds | None = None,
        operation_id: OperationId | None = None,
    ) -> PutResult:
        """Delete `key`; it need not exist. Arguments and errors are those of `put`."""
        connection = self._connection
        host = connection.here()
        key = arguments.encode_key(key)
        timeout_us = self._timeout_us if timeout is None else arguments.timeout_us(timeout)
        options = self._write_options(consistency, w, None, replicated_to, context is not None, timeout_us)
        options = arguments.named(options, operation_id, key, None)
        now = now_us()
        future = host.loop.create_future()
        operation = FutureOperation(options, key, None, now, now + timeout_us, arguments.encode_context(context), future)
        host.add(operation)
        try:
            return await future  # type: ignore[no-any-return]
        except asyncio.CancelledError:
            host.abandon(operation)
            raise

    async def update(
        self,
        key: Key,
        function: Callable[[Any], Any],
        *,
        consistency: Level | None = None,
        ttl: Seconds | None = None,
        timeout: Seconds | None = None,
    ) -> PutResult:
        """Read `key`, make its new value with `function`, and write that after what was read; returns the write's result.

        `function` gets the value (None where there is none; of several siblings what the handle's `resolver` makes of them)
        and returns the new one. Where what was read has not arrived at the coordinator (Stale), or a newer write won, all of it
        is done again until `timeout`; so `function` may be called several times. Under `lww` of two that read the same value
        the later write stands, and the journal has the other; under `siblings` with a resolver neither is lost.

        Raises Conflicting where there are siblings and no resolver, and what `get` and `put` raise.
        """
        until_us = now_us() + (self._timeout_us if timeout is None else arguments.timeout_us(timeout))
        while True:
            got = await self.get(key, consistency=arguments.level_for_reads(consistency), timeout=arguments.left_s(until_us))
            value = function(got.value)
            try:
                done = await self.put(
                    key,
                    value,
                    consistency=consistency,
                    ttl=ttl,
                    context=got.context or None,
                    timeout=arguments.left_s(until_us),
                )
            except Stale:
                if now_us() >= until_us:
                    raise
            else:
                if done.outcome is not Outcome.SUPERSEDED:
                    return done

    async def put_many(
        self,
        items: Mapping[Key, Any] | Iterable[tuple[Key, Any]],
        *,
        consistency: Level | None = None,
        w: int | None = None,
        ttl: Seconds | None = None,
        replicated_to: int | None = None,
        timeout: Seconds | None = None,
    ) -> Results:
        """Write many: a mapping or (key, value) pairs. One result per item, in their order; see `Results`.

        It is not atomic: each item has its own result or error (`results[i].error`, `results.raise_first()`), and
        readers may see some before others. Long lists are cut at 1,024 items or 1 MiB per call. A key that occurs
        twice gets its last value.
        """
        timeout_us = self._timeout_us if timeout is None else arguments.timeout_us(timeout)
        options = self._write_options(consistency, w, ttl, replicated_to, False, timeout_us)
        pairs = self._put_items(options, items)
        return self._results(pairs, await self._connection.ask_many(pairs.sendable, timeout_us))

    async def get_many(
        self,
        keys: Iterable[Key],
        *,
        consistency: Level | None = None,
        r: int | None = None,
        repair: str | None = None,
        timeout: Seconds | None = None,
    ) -> Results:
        """Read many keys. One result per key, in their order, each with its own value or error; see `Results`.

        It is not a snapshot: each key is read by itself. Arguments are those of `get`.
        """
        timeout_us = self._timeout_us if timeout is None else arguments.timeout_us(timeout)
        options = self._read_options(consistency, r, repair)
        items = self._key_items(options, keys)
        return self._results(items, await self._connection.ask_many(items.sendable, timeout_us))

    async def delete_many(
        self,
        keys: Iterable[Key],
        *,
        consistency: Level | None = None,
        w: int | None = None,
        replicated_to: int | None = None,
        timeout: Seconds | None = None,
    ) -> Results:
        """Delete many keys. One result per key, in their order, each with its own error; see `Results`. It is not
        atomic.
        """
        timeout_us = self._timeout_us if timeout is None else arguments.timeout_us(timeout)
        options = self._write_options(consistency, w, None, replicated_to, False, timeout_us)
        items = self._key_items(options, keys)
        return self._results(items, await self._connection.ask_many(items.sendable, timeout_us))

    async def apply(self, key: Key, operations: list[bytes], options: dict[str, Any]) -> Any:
        """Operations of the namespace's type on one key; the handles of `counters()`, `sets()` and the others call it."""
        items, timeout_us, are_many = self._update_items(key, operations, options)
        results = self._results(items, await self._connection.ask_many(items.sendable, timeout_us))
        return results if are_many else results.raise_first()[0]

    async def read_as(self, policies: frozenset[str], key: Key, empty: Any, options: dict[str, Any]) -> Any:
        """What the key shows to a handle that serves these policies."""
        shape = options.pop("shape", None)
        value = shown_as(self._name, policies, await self.get(key, **options), empty)
        return value if shape is None else shape(value)

    def batch(
        self,
        *,
        consistency: Level | None = None,
        w: int | None = None,
        replicated_to: int | None = None,
        timeout: Seconds | None = None,
    ) -> AsyncBatch:
        """Begin a batch: add to it with put, delete and get, then `send()` it, or use it in a `with` block. It is not
        atomic.
        """
        timeout_us = self._timeout_us if timeout is None else arguments.timeout_us(timeout)
        return AsyncBatch(
            self,
            lambda ttl: self._write_options(consistency, w, ttl, replicated_to, False, timeout_us),
            self._read_options(None if w else arguments.level_for_reads(consistency), None, None),
            timeout_us,
        )


class AsyncBatch(BatchBuilder):
    __doc__ = BatchBuilder.__doc__

    def __init__(
        self, handle: AsyncNamespace, options: Callable[[Seconds | None], Options], read: Options, timeout_us: int
    ) -> None:
        super().__init__(handle, options, read)
        self._connection = handle._connection
        self._timeout_us = timeout_us

    async def send(self) -> Results:
        """Send what was added. One result per item, in the order added; a batch is sent once."""
        items = self._take()
        self.results = self._handle._results(items, await self._connection.ask_many(items.sendable, self._timeout_us))
        return self.results

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and not self._is_sent:
            await self.send()


class AsyncClient(Typed, AsyncNamespace):
    """A client of a geokv cluster. It is itself the handle of the namespace `default`.

    `addresses`: one "host:port", several, or None for the environment's GEOKV_NODES; any node will do, they are only
    asked for the ring. `dc`: the datacenter that this client is in and uses first (empty: that of the node that
    answers). `failover`: the datacenters to use, in this order, while it cannot be used; after `failback_after`
    healthy seconds the client returns. `timeout`: seconds for a whole call where a call does not state its own.
    `on_event` is called with a ClientEvent for "failover", "failback", "node_down" and "node_up"; it must not block.

    It connects on first use, and is bound to the event loop of that use: each `asyncio.run` takes a client of its own.
    Close it, or use it in a `with` block.
    """

    def __init__(
        self,
        addresses: str | Iterable[str] | None = None,
        *,
        dc: str = "",
        failover: str | Iterable[str] = (),
        timeout: Seconds = arguments.TIMEOUT_S_DEFAULT,
        failback_after: Seconds = 5.0,
        on_event: Callable[[ClientEvent], object] | None = None,
    ) -> None:
        settings = ClientSettings(
            arguments.addresses_of(addresses),
            arguments.datacenter(dc, "dc"),
            arguments.names_of(failover, "failover"),
            failback_us=max(1, round(arguments.seconds(failback_after, "failback_after") * S)),
        )
        connection = AsyncConnection(settings, on_event)
        super().__init__(connection, None, "default", None, arguments.timeout_us(timeout))

    def namespace(self, name: str, *, codec: Codec | str | None = None, resolver: Resolver | None = None) -> AsyncNamespace:
        """The handle of a namespace. `codec="json"`, or any object with encode and decode, lets its values be more
        than bytes. `resolver` makes one value of several siblings: it gets a list, and returns what `got.value` shall be.
        """
        return AsyncNamespace(self._connection, self, name, codec, self._timeout_us, resolver)

    async def wait_ready(self, timeout: Seconds | None = None) -> None:
        """Connect now: return when a node of the datacenter in use has answered. Raises Unavailable or
        DeadlineExceeded.
        """
        timeout_us = self._timeout_us if timeout is None else arguments.timeout_us(timeout)
        await self._connection.ask(READY, None, timeout_us)

    async def create_namespace(
        self,
        name: str,
        *,
        policy: str = "lww",
        exist_ok: bool = False,
        codec: Codec | str | None = None,
        resolver: Resolver | None = None,
        timeout: Seconds | None = None,
        **settings: Any,
    ) -> AsyncNamespace:
        """Create a namespace and return its handle, whose `settings` say what it is.

        `exist_ok`: one of this name with the same policy will do. `settings` are those of `geokv namespace create`
        (`ttl` in seconds). Raises NamespaceExists, InvalidRequest, Unavailable.
        """
        handle = self.namespace(name, codec=codec, resolver=resolver)
        body = await self._admin(timeout, name, "namespace_create", name=name, policy=policy, exist_ok=exist_ok, **settings)
        handle.settings = body.get("namespace")
        return handle

    async def namespaces(self, *, timeout: Seconds | None = None) -> list[dict[str, Any]]:
        """All namespaces, each with its settings."""
        body = await self._admin(timeout, "", "namespace_list")
        return list(body.get("namespaces", []))

    async def alter_namespace(self, name: str, *, timeout: Seconds | None = None, **settings: Any) -> dict[str, Any]:
        """Change settings of a namespace (`ttl` in seconds, 0 for none); returns what it is then."""
        body = await self._admin(timeout, name, "namespace_alter", name=name, **settings)
        return dict(body.get("namespace", {}))

    async def delete_namespace(self, name: str, *, timeout: Seconds | None = None) -> None:
        """Delete a namespace with all its keys, in every datacenter and for ever."""
        await self._admin(timeout, name, "namespace_delete", name=name)

    async def status(self, *, timeout: Seconds | None = None) -> dict[str, Any]:
        """What a node of the datacenter in use says of itself, its peers and the lag."""
        return await self._admin(timeout, "", "status")

    async def conflicts(
        self, namespace: str | None = None, key: Key | None = None, *, timeout: Seconds | None = None
    ) -> dict[str, Any]:
        """The conflicts that the nodes have noted, of a namespace (None: of all), or of one key in it, oldest first.

        `conflicts`: each with its id, key, policy, outcome ("discarded" or "kept"), winner and loser (dc, node, version,
        value), told in `words`, and `restored`: who brought its loser back, and when. `silent`: nodes that were not there to be
        asked. `dropped`: how many the journals have let go.
        """
        timeout_us = self._timeout_us if timeout is None else arguments.timeout_us(timeout)
        asked = question(namespace, None if key is None else arguments.encode_key(key))
        await self._connection.ask(READY, None, timeout_us)
        assert self._connection.host is not None
        names = sorted(self._connection.host.machine.datacenters.nodes)
        requests = [AdminRequest("conflicts", asked, node=name) for name in names]
        replies = await asyncio.gather(
            *(self._connection.ask(ADMIN, request, timeout_us) for request in requests), return_exceptions=True
        )
        return put_together({name: answer_of(reply) for name, reply in zip(names, replies, strict=True)})

    async def restore(self, conflict: Mapping[str, Any], *, timeout: Seconds | None = None) -> PutResult:
        """Write the loser of a conflict (one of `conflicts()`) again, as a new write that has seen what is there now. The nodes
        that noted the conflict are told of it.

        Raises InvalidRequest where the journal cannot tell what to write.
        """
        done = await self._write_loser(conflict, timeout)
        timeout_us = self._timeout_us if timeout is None else arguments.timeout_us(timeout)
        asked = [self._connection.ask(ADMIN, request, timeout_us) for request in restored_by(conflict, done).values()]
        for reply in await asyncio.gather(*asked, return_exceptions=True):
            answer_of(reply)  # who does not answer tells nothing of it
        return done

    async def _write_loser(self, conflict: Mapping[str, Any], timeout: Seconds | None) -> PutResult:
        key, value, is_operation = restorable(conflict)
        handle = self.namespace(conflict["namespace"])
        if is_operation and value is not None:
            done: PutResult = await handle.apply(key, [value], {"timeout": timeout})
            return done
        context = (await handle.get(key, timeout=timeout)).context or None
        if value is None:
            return await handle.delete(key, context=context, timeout=timeout)
        return await handle.put(key, value, context=context, timeout=timeout)

    async def _admin(self, timeout: Seconds | None, namespace: str, verb: str, **settings: Any) -> dict[str, Any]:
        timeout_us = self._timeout_us if timeout is None else arguments.timeout_us(timeout)
        options = admin_options(arguments.namespace_name(namespace)) if namespace else ADMIN
        reply = await self._connection.ask(options, admin_request(verb, **settings), timeout_us)
        return body_of(reply)

    def telemetry(self) -> dict[str, int]:
        """How often what happened inside this client: retries, failovers, expired operations and the like."""
        host = self._connection.host
        return dict(host.counters) if host is not None else {}

    async def close(self) -> None:
        """Close the connections; whoever still waits gets ClientClosed. A second time does nothing."""
        await self._connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __del__(self, _warn: Callable[..., None] = warnings.warn) -> None:
        connection = getattr(self, "_connection", None)
        if connection is not None and connection.host is not None:
            _warn(f"unclosed {type(self).__name__}: close it, or use it in a `with` block", ResourceWarning, source=self)
            lifetime.close_elsewhere(connection, lifetime.FORGOTTEN)

    def __reduce__(self) -> Any:
        raise TypeError(f"a {type(self).__name__} cannot be pickled: it holds connections; make one in each process")
