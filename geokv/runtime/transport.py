"""Streams to all peers: dialled, greeted, kept alive by dialling again, and written in as few writes as possible.

One Transport lives as long as one run of the node: a new incarnation greets everybody anew. It knows no message's
meaning: routes.py says which stream a kind of message takes, wire.peer how it looks.

    dial -> hello ->        <- hello          then frames both ways until either side ends it
            refused by name: another cluster, an unknown node, our own name, another format

Invariants: one stream per (peer, purpose, side); a newer one replaces the older, which may be half-open. Messages to a
peer without a stream are dropped and counted. A malformed frame is counted and ends its stream, nothing else.
`PeerConnected` is told for each stream that begins, `PeerLost` when the last one has ended.

Not here: half-open connections are found by keepalive (channel.py).
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, Protocol

import grpc
import grpc.aio

from geokv.core.limits import PEER_QUEUE_BYTES_MAX
from geokv.core.topology import Topology
from geokv.errors import WireError
from geokv.runtime import credentials
from geokv.runtime.channel import RECONNECT_MS_MAX, RECONNECT_MS_MIN
from geokv.runtime.counters import Counters
from geokv.runtime.outbound import Budget, Outbound
from geokv.runtime.routes import PeerFacts, Purpose, Side, StreamName, candidates, is_expected, peers_of
from geokv.runtime.supervisor import Supervisor
from geokv.runtime.wire.peer import FORMAT, Hello, decode_frame, decode_hello, encode_hello, encode_message

HELLO_S_MAX: Final = 2.0  # a peer that accepts a connection and says nothing
_log = logging.getLogger("geokv.transport")

Read = Callable[[], Awaitable[Any]]
Write = Callable[[bytes], Awaitable[None]]


class Receiver(Protocol):
    """Who is told what comes in. Never raises."""

    def delivered(self, peer: str, message: object) -> None: ...

    def peer_connected(self, peer: str, incarnation: int) -> None: ...

    def peer_lost(self, peer: str, is_refused: bool) -> None: ...


class Refused(WireError):
    """One side does not want to talk to the other; the text says who and why."""


class _Stream:
    """One stream that stands: its queue, and a way to end it."""

    def __init__(self, budget: Budget) -> None:
        self.outbound = Outbound(budget)
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


class _Peer:
    """What is known of one peer: the streams that stand, by purpose and side."""

    def __init__(self, facts: PeerFacts) -> None:
        self.facts = facts
        self.budget = Budget(PEER_QUEUE_BYTES_MAX)
        self.streams: dict[StreamName, _Stream] = {}
        self.routes: dict[type, tuple[StreamName, ...]] = {}
        self.chosen: dict[type, _Stream] = {}  # by kind of message, while the streams stay as they are
        self.is_told_refused = False

    def stream_for(self, kind: type) -> _Stream | None:
        chosen = self.chosen.get(kind)
        if chosen is not None:
            return chosen
        names = self.routes.get(kind)
        if names is None:
            names = self.routes[kind] = candidates(self.facts, kind)
        for name in names:
            stream = self.streams.get(name)
            if stream is not None:
                self.chosen[kind] = stream
                return stream
        return None


class Transport:
    """All streams of one run. `hello` is what this node says of itself."""

    def __init__(self, topology: Topology, hello: Hello, receiver: Receiver, counters: Counters) -> None:
        self.hello = hello
        self._partitions = topology.partitions
        self._peers = {name: _Peer(facts) for name, facts in peers_of(topology, hello.node).items()}
        self._receiver = receiver
        self._counters = counters
        self._jitter = random.Random()
        self._supervisor = Supervisor(counters, self._task_failed)
        self._accepted: set[asyncio.Future[None]] = set()
        self._is_closed = False
        self._newest: object = None
        self._newest_frame = b""

    def start(self) -> None:
        """Begin to dial."""
        for peer in self._peers.values():
            for purpose in peer.facts.dials:
                dial = Dial(self, peer, purpose)
                self._supervisor.keep(f"dial {peer.facts.name} {purpose.name.lower()}", dial.run)

    async def close(self) -> None:
        """End all streams."""
        self._is_closed = True
        for peer in self._peers.values():
            for stream in peer.streams.values():
                stream.end()
        await self._supervisor.close()
        if self._accepted:
            await asyncio.wait(self._accepted)

    # --- out

    def send(self, name: str, message: object) -> None:
        """Queue a message; it is dropped where no stream stands or the queue is full."""
        peer = self._peers.get(name)
        stream = peer.stream_for(type(message)) if peer is not None else None
        if stream is None:
            self._counters.add("transport.dropped_unconnected")
            return
        try:
            if message is not self._newest:  # the same one goes to several peers, one after the other
                self._newest_frame = encode_message(message)
                self._newest = message
            frame = self._newest_frame
        except WireError as error:
            _log.error("a message to %s was not sent: %s", name, error)
            self._counters.add("transport.dropped_oversized")
            return
        if not stream.outbound.put(frame):
            self._counters.add("transport.dropped_full")

    def queued_bytes(self) -> int:
        return sum(peer.budget.used for peer in self._peers.values())

    def connected(self) -> list[str]:
        return [name for name, peer in self._peers.items() if peer.streams]

    # --- in: streams that peers dial

    async def accept(self, purpose: Purpose, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Serve one stream that a peer dialled, until either side ends it."""
        finished = asyncio.get_running_loop().create_future()
        self._accepted.add(finished)
        try:
            peer, hello = await self._greet(purpose, context)
            await self.run_stream((purpose, Side.ACCEPTED), peer, hello, context.read, context.write)
        except Refused as refusal:
            self._counters.add("transport.refused")
            _log.warning("%s", refusal)
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(refusal))
        finally:
            self._accepted.discard(finished)
            finished.set_result(None)

    async def _greet(self, purpose: Purpose, context: grpc.aio.ServicerContext[Any, Any]) -> tuple[_Peer, Hello]:
        try:
            first = await asyncio.wait_for(context.read(), HELLO_S_MAX)
            hello = decode_hello(first if isinstance(first, bytes) else b"")
        except (WireError, TimeoutError) as error:
            raise Refused(f"refused a stream from {context.peer()}: {str(error) or 'it said nothing'}") from None
        peer = self.check(hello)
        if not is_expected(peer.facts, (purpose, Side.ACCEPTED)):
            raise Refused(f"refused {hello.node}: this node dials that stream itself")
        if self._is_closed:
            raise Refused(f"refused {hello.node}: this run of {self.hello.node} is over")
        await context.write(encode_hello(self.hello))
        return peer, hello

    def check(self, hello: Hello) -> _Peer:
        """The peer that a hello names. Raises Refused, by name, where it is none of ours."""
        own = self.hello
        who = f'node "{hello.node}" of datacenter "{hello.dc}"'
        if hello.format != FORMAT:
            raise Refused(f"{own.node} refused {who}: it speaks format {hello.format}, this node format {FORMAT}")
        if hello.cluster != own.cluster:
            raise Refused(f'{own.node} refused {who}: it belongs to cluster "{hello.cluster}", this node to "{own.cluster}"')
        if hello.node == own.node:
            raise Refused(f"{own.node} refused {who}: that is this node's own name")
        peer = self._peers.get(hello.node)
        if peer is None:
            raise Refused(f"{own.node} refused {who}: the topology here has no such node")
        if peer.facts.dc != hello.dc:
            raise Refused(f'{own.node} refused {who}: the topology here has it in datacenter "{peer.facts.dc}"')
        return peer

    # --- one stream, whoever dialled it

    async def run_stream(self, name: StreamName, peer: _Peer, hello: Hello, read: Read, write: Write) -> None:
        """Move frames both ways until the stream ends, is replaced, or the transport closes."""
        stream = self._begin(name, peer, hello)
        try:
            await self._first_of(self._read_all(peer.facts.name, read), stream.outbound.run(write), _wait_for(stream.ended))
        except WireError as error:
            _log.warning("ended a stream with %s: %s", peer.facts.name, error)
            self._counters.add("transport.malformed")
        finally:
            self._end(name, peer, stream)

    async def _first_of(self, *parts: Coroutine[Any, Any, None]) -> None:
        """Run all until the first ends, then end the others. Raises what the first raised."""
        tasks = [asyncio.ensure_future(part) for part in parts]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome

    async def _read_all(self, peer: str, read: Read) -> None:
        deliver = self._receiver.delivered
        while True:
            payload = await read()
            if payload is grpc.aio.EOF:
                return
            for message in decode_frame(payload, self._partitions):
                deliver(peer, message)
            if self._is_closed:
                return

    def _begin(self, name: StreamName, peer: _Peer, hello: Hello) -> _Stream:
        older = peer.streams.get(name)
        if older is not None:
            older.end()
        stream = peer.streams[name] = _Stream(peer.budget)
        peer.chosen.clear()
        peer.is_told_refused = False
        self._counters.add("transport.streams_begun")
        self._receiver.peer_connected(peer.facts.name, hello.incarnation)
        return stream

    def _end(self, name: StreamName, peer: _Peer, stream: _Stream) -> None:
        self._counters.add("transport.dropped_unconnected", stream.outbound.clear())
        self._counters.add("transport.writes", stream.outbound.writes)
        if peer.streams.get(name) is not stream:
            return
        del peer.streams[name]
        peer.chosen.clear()
        self._counters.add("transport.streams_ended")
        if not peer.streams and not self._is_closed:
            self._receiver.peer_lost(peer.facts.name, False)

    # --- for Dial

    def dial_failed(self, peer: _Peer, is_refused: bool) -> None:
        """A try to connect failed. That nobody listens is worth telling once, until a stream stands again."""
        self._counters.add("transport.dials_failed")
        if is_refused and not peer.streams and not peer.is_told_refused:
            peer.is_told_refused = True
            self._receiver.peer_lost(peer.facts.name, True)

    def pause_s(self, tries: int) -> float:
        """Before try number `tries` + 1: 100 ms doubling to 1 s, with jitter so that peers do not dial in step."""
        longest_ms = min(RECONNECT_MS_MAX, RECONNECT_MS_MIN << min(tries, 8))
        return longest_ms * self._jitter.uniform(0.5, 1.0) / 1_000

    def _task_failed(self, name: str, error: BaseException) -> None:
        _log.error("%s ended: %r", name, error)


async def _wait_for(future: asyncio.Future[None]) -> None:
    await asyncio.shield(future)


class Dial:
    """Dials one peer for one purpose, again and again."""

    def __init__(self, transport: Transport, peer: _Peer, purpose: Purpose) -> None:
        self._transport = transport
        self._peer = peer
        self._purpose = purpose
        self._last_failure = ""

    async def run(self) -> None:
        tries = 0
        while True:
            tries = 0 if await self._try() else tries + 1
            await asyncio.sleep(self._transport.pause_s(tries))

    async def _try(self) -> bool:
        """One connection from dial to end. True where a stream stood."""
        facts, transport = self._peer.facts, self._transport
        # A channel of its own for each try: no back-off of the library's adds to ours.
        async with credentials.open_channel(facts.address) as channel:
            call: grpc.aio.StreamStreamCall[bytes, bytes] = channel.stream_stream(self._purpose.value.path)()
            try:
                hello = await asyncio.wait_for(self._greet(call), HELLO_S_MAX)
                self._last_failure = ""
                name = (self._purpose, Side.DIALLED)
                await transport.run_stream(name, self._peer, hello, call.read, call.write)
                return True
            except (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError) as error:
                return self._failed(error)
            except (WireError, TimeoutError) as error:
                self._tell(str(error) or f"no hello within {HELLO_S_MAX:g} s")
                transport.dial_failed(self._peer, False)
                return False
            finally:
                call.cancel()

    async def _greet(self, call: grpc.aio.StreamStreamCall[Any, Any]) -> Hello:
        await call.write(encode_hello(self._transport.hello))
        first = await call.read()
        if not isinstance(first, bytes):
            status, details = await call.code(), await call.details()
            raise Refused(f"{status.name}: {details}")
        hello = decode_hello(first)
        if self._transport.check(hello) is not self._peer:
            raise Refused(f"{self._peer.facts.address} should be {self._peer.facts.name} but is {hello.node}")
        return hello

    def _failed(self, error: Exception) -> bool:
        details = (error.details() or "") if isinstance(error, grpc.aio.AioRpcError) else str(error)
        self._tell(details)
        self._transport.dial_failed(self._peer, "refused" in details.lower())
        return False

    def _tell(self, reason: str) -> None:
        """Once per reason, not once per try."""
        if reason != self._last_failure:
            self._last_failure = reason
            _log.info("no stream to %s at %s: %s", self._peer.facts.name, self._peer.facts.address, reason)
