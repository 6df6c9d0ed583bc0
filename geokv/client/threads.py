"""The client for threads: the same methods as `AsyncClient`, over one background thread with an event loop.

    any thread --append to a list, wake the loop if it is not awake--> loop thread --Host--> machine

A thread that asks hands its operation over and waits for a lock. Only the first of those that arrive while the loop is
busy wakes it: with 64 threads that is one wake per batch, not one per call.

Documentation of the methods is that of geokv.client.aio.
"""

from __future__ import annotations

import asyncio
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Self, TypeVar

from geokv.client import aio, arguments, lifetime
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
from geokv.client.waiting import Gathering, ItemOperation, LockOperation
from geokv.errors import ClientClosed, Stale
from geokv.protocol.client import ClientSettings
from geokv.protocol.client.messages import ClientEvent
from geokv.protocol.client.operations import Operation, Options, OptionsTable
from geokv.protocol.client.settings import S
from geokv.protocol.requests import AdminRequest, Outcome

_GRACE_S: Final = 5.0  # the machine answers at the deadline; beyond this its thread is dead or stuck
_CLOSE_S: Final = 5.0
T = TypeVar("T")


class LoopThread:
    """A thread with an event loop and a Host on it. It knows nothing of its client, so that a forgotten client is
    collected.
    """

    def __init__(self, settings: ClientSettings, on_event: Callable[[ClientEvent], object] | None) -> None:
        self._settings = settings
        self._on_event = on_event
        self._queue: deque[Operation | list[Operation]] = deque()
        self._is_awake = False
        self._started = threading.Event()
        self._fault: BaseException | None = None
        self.loop = _new_loop()
        self.host: Host | None = None
        self.thread = threading.Thread(target=self._run, name="geokv-client", daemon=True)
        self.thread.start()
        self._started.wait()
        if self._fault is not None:
            raise self._fault

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_until_complete(self._open())
        except BaseException as fault:  # told to the thread that waits for the start
            self._fault = fault
            self._started.set()
            return
        self._started.set()
        try:
            self.loop.run_forever()
        finally:
            self.loop.close()

    async def _open(self) -> None:
        self.host = Host(self._settings, self._on_event)

    def hand_over(self, operation: Operation | list[Operation]) -> None:
        """From any thread. The list is emptied as a whole, so one wake serves all that arrived before it."""
        self._queue.append(operation)
        if not self._is_awake:
            self._is_awake = True
            self.loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        self._is_awake = False  # before emptying: who appends from now on wakes again
        queue = self._queue
        operations: list[Operation] = []
        while queue:
            entry = queue.popleft()
            if entry.__class__ is list:
                operations.extend(entry)
            else:
                operations.append(entry)  # type: ignore[arg-type]
        if operations and self.host is not None:
            self.host.add_all(operations)

    def abandon(self, operations: list[Operation]) -> None:
        def drop() -> None:
            for operation in operations:
                self.host.abandon(operation)  # type: ignore[union-attr]

        self.loop.call_soon_threadsafe(drop)

    def stop(self, should_wait: bool) -> None:
        """Close the host, then end the thread."""
        if self.thread.is_alive():
            try:
                self.loop.call_soon_threadsafe(self._begin_stop)
            except RuntimeError:  # the loop is closed already
                return
            if should_wait and threading.current_thread() is not self.thread:
                self.thread.join(_CLOSE_S)

    def _begin_stop(self) -> None:
        self._drain()
        assert self.host is not None
        closing = self.loop.create_task(self.host.close())
        closing.add_done_callback(lambda _: self.loop.stop())


def _new_loop() -> asyncio.AbstractEventLoop:
    """uvloop's where it is installed, else asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


class ThreadConnection:
    """The loop thread of one client: started on first use."""

    def __init__(self, settings: ClientSettings, on_event: Callable[[ClientEvent], object] | None) -> None:
        self.options = OptionsTable()
        self.runner: LoopThread | None = None
        self.closed_because = ""
        self._settings = settings
        self._on_event = on_event
        self._lock = threading.Lock()
        lifetime.remember(self)

    def open(self) -> LoopThread:
        if self.closed_because:
            raise ClientClosed(self.closed_because)
        if reason := lifetime.why_not_here():
            raise ClientClosed(reason)
        with self._lock:
            if self.runner is None:
                if self.closed_because:
                    raise ClientClosed(self.closed_because)
                self.runner = LoopThread(self._settings, self._on_event)
            return self.runner

    def forked(self) -> None:
        lifetime.keep_for_ever(self.runner)
        self._lock = threading.Lock()
        self.runner = None

    def close(self, should_wait: bool = True, because: str = lifetime.CLOSED) -> None:
        with self._lock:
            runner, self.runner = self.runner, None
            self.closed_because = self.closed_because or because
        if runner is not None:
            runner.stop(should_wait)

    def ask(self, options: Options, key: bytes, value: Any, timeout_us: int, context: bytes = b"") -> Any:
        """One operation; returns its result or raises its error."""
        runner = self.runner or self.open()
        now = now_us()
        operation = LockOperation(options, key, value, now, now + timeout_us, context)
        runner.hand_over(operation)
        self._wait(runner, operation.lock, timeout_us, [operation])
        if operation.error is not None:
            raise operation.error
        return operation.result

    def ask_many(self, items: list[Item], timeout_us: int) -> list[Any]:
        """Results and errors, in the order of the items."""
        runner = self.runner or self.open()
        deadline_us = now_us() + timeout_us
        found: list[Any] = []
        for wave in waves(items):
            lock = threading.Lock()
            lock.acquire()
            gathering = Gathering(len(wave), lock.release)
            now = now_us()
            operations: list[Operation] = [
                ItemOperation(options, key, value, now, deadline_us, context, gathering, index)
                for index, (options, key, value, context) in enumerate(wave)
            ]
            runner.hand_over(operations)
            self._wait(runner, lock, max(0, deadline_us - now), operations)
            found.extend(gathering.items)
        return found

    def _wait(self, runner: LoopThread, lock: Any, timeout_us: int, operations: list[Operation]) -> None:
        is_told = False
        try:
            is_told = lock.acquire(True, timeout_us / 1e6 + _GRACE_S)
        finally:
            if not is_told and runner.thread.is_alive():  # Ctrl-C, or the thread is stuck
                runner.abandon(operations)
        if not is_told:
            raise ClientClosed("the client's thread does not answer; make a new client")


class Namespace(Handle):
    __doc__ = aio.AsyncNamespace.__doc__

    def __init__(
        self,
        connection: ThreadConnection,
        owner: object,
        name: str,
        codec: Codec | str | None,
        timeout_us: int,
        resolver: Resolver | None = None,
    ) -> None:
        super().__init__(connection.options, name, codec, timeout_us, resolver)
        self._connection = connection
        self._owner = owner  # a handle keeps its client open

    def put(
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
        timeout_us = self._timeout_us if timeout is None else arguments.timeout_us(timeout)
        options = self._write_options(consistency, w, ttl, replicated_to, context is not None, timeout_us)
        raw_key, raw_value = arguments.encode_key(key), arguments.encode_value(value, self._codec)
        token = arguments.encode_context(context)
        options = arguments.named(options, operation_id, raw_key, raw_value, self._codec)
        result: PutResult = self._connection.ask(options, raw_key, raw_value, timeout_us, token)
        return result

    def get(
        self,
        key: Key,
        *,
        consistency: Level | None = None,
        r: int | None = None,
        repair: str | None = None,
        timeout: Seconds | None = None,
    ) -> GetResult:
        timeout_us = self._timeout_us if timeout is None else arguments.timeout_us(timeout)
        options = self._read_options(consistency, r, repair)
        return self._decoded(self._connection.ask(options, arguments.encode_key(key), None, timeout_us))

    def delete(
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
        timeout_us = self._timeout_us if timeout is None else arguments.timeout_us(timeout)
        options = self._write_options(consistency, w, None, replicated_to, context is not None, timeout_us)
        raw_key, token = arguments.encode_key(key), arguments.encode_context(context)
        options = arguments.named(options, operation_id, raw_key, None)
        result: PutResult = self._connection.ask(options, raw_key, None, timeout_us, token)
        return result

    def update(
        self,
        key: Key,
        function: Callable[[Any], Any],
        *,
        consistency: Level | None = None,
        ttl: Seconds | None = None,
        timeout: Seconds | None = None,
    ) -> PutResult:
        until_us = now_us() + (self._timeout_us if timeout is None else arguments.timeout_us(timeout))
        while True:
            got = self.get(key, consistency=arguments.level_for_reads(consistency), timeout=arguments.left_s(until_us))
            value = function(got.value)
            try:
                done = self.put(
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

    def put_many(
        self,
        items: Mapping[Key, Any] | Iterable[tuple[Key, Any]],
        *,
        consistency: Level | None = None,
        w: int | None = None,
        ttl: Seconds | None = None,
        replicated_to: int | None = None,
        timeout: Seconds | None = None,
    ) -> Results:
        timeout_us = self._timeout_us if timeout is None else arguments.timeout_us(timeout)
        options = self._write_options(consistency, w, ttl, replicated_to, False, timeout_us)
        pairs = self._put_items(options, items)
        return self._results(pairs, self._connection.ask_many(pairs.sendable, timeout_us))

    def get_many(
        self,
        keys: Iterable[Key],
        *,
        consistency: Level | None = None,
        r: int | None = None,
        repair: str | None = None,
        timeout: Seconds | None = None,
    ) -> Results:
        timeout_us = self._timeout_us if timeout is None else arguments.timeout_us(timeout)
        options = self._read_options(consistency, r, repair)
        items = self._key_items(options, keys)
        return self._results(items, self._connection.ask_many(items.sendable, timeout_us))

    def delete_many(
        self,
        keys: Iterable[Key],
        *,
        consistency: Level | None = None,
        w: int | None = None,
        replicated_to: int | None = None,
        timeout: Seconds | None = None,
    ) -> Results:
        timeout_us = self._timeout_us if timeout is None else arguments.timeout_us(timeout)
        options = self._write_options(consistency, w, None, replicated_to, False, timeout_us)
        items = self._key_items(options, keys)
        return self._results(items, self._connection.ask_many(items.sendable, timeout_us))

    def apply(self, key: Key, operations: list[bytes], options: dict[str, Any]) -> Any:
        items, timeout_us, are_many = self._update_items(key, operations, options)
        if not are_many:
            chosen, raw, value, context = items.sendable[0]
            return self._connection.ask(chosen, raw, value, timeout_us, context)
        return self._results(items, self._connection.ask_many(items.sendable, timeout_us))

    def read_as(self, policies: frozenset[str], key: Key, empty: Any, options: dict[str, Any]) -> Any:
        shape = options.pop("shape", None)
        value = shown_as(self._name, policies, self.get(key, **options), empty)
        return value if shape is None else shape(value)

    def batch(
        self,
        *,
        consistency: Level | None = None,
        w: int | None = None,
        replicated_to: int | None = None,
        timeout: Seconds | None = None,
    ) -> Batch:
        timeout_us = self._timeout_us if timeout is None else arguments.timeout_us(timeout)
        return Batch(
            self,
            lambda ttl: self._write_options(consistency, w, ttl, replicated_to, False, timeout_us),
            self._read_options(None if w else arguments.level_for_reads(consistency), None, None),
            timeout_us,
        )


class Batch(BatchBuilder):
    __doc__ = BatchBuilder.__doc__

    def __init__(self, handle: Namespace, options: Callable[[Seconds | None], Options], read: Options, timeout_us: int) -> None:
        super().__init__(handle, options, read)
        self._connection = handle._connection
        self._timeout_us = timeout_us

    def send(self) -> Results:
        items = self._take()
        self.results = self._handle._results(items, self._connection.ask_many(items.sendable, self._timeout_us))
        return self.results

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and not self._is_sent:
            self.send()


class Client(Typed, Namespace):
    __doc__ = aio.AsyncClient.__doc__

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
        connection = ThreadConnection(settings, on_event)
        super().__init__(connection, None, "default", None, arguments.timeout_us(timeout))

    def namespace(self, name: str, *, codec: Codec | str | None = None, resolver: Resolver | None = None) -> Namespace:
        return Namespace(self._connection, self, name, codec, self._timeout_us, resolver)

    def wait_ready(self, timeout: Seconds | None = None) -> None:
        timeout_us = self._timeout_us if timeout is None else arguments.timeout_us(timeout)
        self._connection.ask(READY, b"", None, timeout_us)

    def create_namespace(
        self,
        name: str,
        *,
        policy: str = "lww",
        exist_ok: bool = False,
        codec: Codec | str | None = None,
        resolver: Resolver | None = None,
        timeout: Seconds | None = None,
        **settings: Any,
    ) -> Namespace:
        handle = self.namespace(name, codec=codec, resolver=resolver)
        body = self._admin(timeout, name, "namespace_create", name=name, policy=policy, exist_ok=exist_ok, **settings)
        handle.settings = body.get("namespace")
        return handle

    def namespaces(self, *, timeout: Seconds | None = None) -> list[dict[str, Any]]:
        return list(self._admin(timeout, "", "namespace_list").get("namespaces", []))

    def alter_namespace(self, name: str, *, timeout: Seconds | None = None, **settings: Any) -> dict[str, Any]:
        body = self._admin(timeout, name, "namespace_alter", name=name, **settings)
        return dict(body.get("namespace", {}))

    def delete_namespace(self, name: str, *, timeout: Seconds | None = None) -> None:
        self._admin(timeout, name, "namespace_delete", name=name)

    def status(self, *, timeout: Seconds | None = None) -> dict[str, Any]:
        return self._admin(timeout, "", "status")

    def conflicts(
        self, namespace: str | None = None, key: Key | None = None, *, timeout: Seconds | None = None
    ) -> dict[str, Any]:
        timeout_us = self._timeout_us if timeout is None else arguments.timeout_us(timeout)
        asked = question(namespace, None if key is None else arguments.encode_key(key))
        self._connection.ask(READY, b"", None, timeout_us)
        runner = self._connection.runner
        assert runner is not None and runner.host is not None
        names = sorted(runner.host.machine.datacenters.nodes)
        items: list[Item] = [(ADMIN, name.encode(), AdminRequest("conflicts", asked, node=name), b"") for name in names]
        replies = self._connection.ask_many(items, timeout_us)
        return put_together({name: answer_of(reply) for name, reply in zip(names, replies, strict=True)})

    def restore(self, conflict: Mapping[str, Any], *, timeout: Seconds | None = None) -> PutResult:
        done = self._write_loser(conflict, timeout)
        timeout_us = self._timeout_us if timeout is None else arguments.timeout_us(timeout)
        items: list[Item] = [(ADMIN, name.encode(), one, b"") for name, one in restored_by(conflict, done).items()]
        for reply in self._connection.ask_many(items, timeout_us) if items else ():
            answer_of(reply)  # who does not answer tells nothing of it
        return done

    def _write_loser(self, conflict: Mapping[str, Any], timeout: Seconds | None) -> PutResult:
        key, value, is_operation = restorable(conflict)
        handle = self.namespace(conflict["namespace"])
        if is_operation and value is not None:
            done: PutResult = handle.apply(key, [value], {"timeout": timeout})
            return done
        context = handle.get(key, timeout=timeout).context or None
        if value is None:
            return handle.delete(key, context=context, timeout=timeout)
        return handle.put(key, value, context=context, timeout=timeout)

    def _admin(self, timeout: Seconds | None, namespace: str, verb: str, **settings: Any) -> dict[str, Any]:
        timeout_us = self._timeout_us if timeout is None else arguments.timeout_us(timeout)
        options = admin_options(arguments.namespace_name(namespace)) if namespace else ADMIN
        return body_of(self._connection.ask(options, b"", admin_request(verb, **settings), timeout_us))

    def telemetry(self) -> dict[str, int]:
        runner = self._connection.runner
        return dict(runner.host.counters) if runner is not None and runner.host is not None else {}

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self, _warn: Callable[..., None] = warnings.warn) -> None:
        connection = getattr(self, "_connection", None)
        if connection is not None and connection.runner is not None:
            _warn(f"unclosed {type(self).__name__}: close it, or use it in a `with` block", ResourceWarning, source=self)
            connection.close(should_wait=False, because=lifetime.FORGOTTEN)

    def __reduce__(self) -> Any:
        raise TypeError(f"a {type(self).__name__} cannot be pickled: it holds connections; make one in each process")


def _document(ours: type, theirs: type) -> None:
    """Give each public method the documentation of its asyncio twin."""
    for name, method in vars(ours).items():
        if callable(method) and not name.startswith("_") and method.__doc__ is None:
            method.__doc__ = getattr(theirs, name).__doc__


_document(Namespace, aio.AsyncNamespace)
_document(Batch, aio.AsyncBatch)
_document(Client, aio.AsyncClient)
