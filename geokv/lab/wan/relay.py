"""Proxies on sockets: each accepts connections, dials its upstream, and carries the bytes through the toxics.

    client --> Side --> Lane "upstream"   (Chain of toxics) --> Side --> upstream
    client <-- Side <-- Lane "downstream" (Chain of toxics) <-- Side <-- upstream

Everything runs on one event loop with transports and protocols, no task and no stream object per
connection but the short one that dials: this carries all traffic between the datacenters of a lab on the
cores that the nodes need too.

Closing is Toxiproxy's: when one lane has ended and its last byte is written, its destination is closed
whole (there is no half-close), which ends the other lane. Disabling a proxy closes its listener and all
its connections at once.

Invariants:
- A lane without toxics writes what it read at once.
- A lane holds at most `LANE_BYTES_MAX` (`LATENCY_LANE_BYTES_MAX` behind a latency, which needs the bytes
  of one delay) plus one read; then its source is not read until there is room.
- An enabled proxy has a listener, a disabled one has none and no connection.

Not here: what toxics do (toxics.py), and the HTTP interface that changes them (control.py).
"""

import asyncio
import errno
import os
import random
import socket
import struct
import time
from collections.abc import Iterable
from typing import Any, Final, Literal, cast

from geokv.lab.wan.toxics import Chain, Toxic

LANE_BYTES_MAX: Final = 256 << 10
LATENCY_LANE_BYTES_MAX: Final = 8 << 20
CONNECTIONS_MAX: Final = 16_384
ACCEPT_BACKLOG: Final = 4_096
STOP_TIMEOUT_S: Final = 5.0
TIMER_MAX_S: Final = 3_600.0
RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)

Direction = Literal["upstream", "downstream"]


class AlreadyStarted(Exception):
    """The proxy is enabled already."""


class Side(asyncio.Protocol):
    """One socket of a connection: the source of one lane and the destination of the other."""

    def __init__(self) -> None:
        self.outgoing: Lane
        self.incoming: Lane
        self.transport: asyncio.Transport | None = None
        self.has_ended = False
        self.is_lost = False
        self._closes_when_written = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit from it
        self.transport.set_write_buffer_limits(high=LANE_BYTES_MAX)

    def data_received(self, data: bytes) -> None:
        self.outgoing.received(data)

    def eof_received(self) -> bool:
        self.has_ended = True
        self.outgoing.ended()
        return True  # what is still on its way to this side must be written first

    def connection_lost(self, exc: Exception | None) -> None:
        self.has_ended = self.is_lost = True
        self.outgoing.ended()
        self.incoming.destination_lost()

    def pause_writing(self) -> None:
        self.incoming.is_blocked = True
        self.incoming.throttle()

    def resume_writing(self) -> None:
        self.incoming.is_blocked = False
        if self._closes_when_written:
            self._close()
        else:
            self.incoming.throttle()

    def read_on(self, wanted: bool) -> None:
        """Go on or stop reading from the socket."""
        if self.has_ended or self.transport is None or self.transport.is_closing():
            return
        if wanted:
            self.transport.resume_reading()
        else:
            self.transport.pause_reading()

    def write(self, piece: bytes) -> None:
        if self.transport is not None and not self.is_lost:
            self.transport.write(piece)

    def unwritten_bytes(self) -> int:
        return 0 if self.transport is None or self.is_lost else self.transport.get_write_buffer_size()

    def close_when_written(self) -> None:
        """Close, but read on until the last byte is written: closing with unread bytes would reset the
        connection.
        """
        if not self.unwritten_bytes():
            self._close()
        elif self.transport is not None and not self._closes_when_written:
            self._closes_when_written = True
            self.transport.set_write_buffer_limits(high=0)

    def reset_on_close(self) -> None:
        """Make the close, whenever it comes, a TCP reset that discards what was not sent."""
        if self.transport is not None and not self.is_lost:
            raw: socket.socket = self.transport.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def _close(self) -> None:
        if self.transport is not None:
            self.transport.close()


class Lane:
    """One direction of one connection."""

    def __init__(self, source: Side, destination: Side, chain: Chain) -> None:
        self._source = source
        self._destination = destination
        self.chain = chain
        self.is_blocked = False
        self.received_bytes = 0
        self.sent_bytes = 0
        self._is_reading = True
        self._is_closed = False
        self._source_ended = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at_s = 0.0

    def received(self, piece: bytes) -> None:
        """The source sent bytes."""
        self.received_bytes += len(piece)
        if self._is_closed:
            return
        if self.chain.is_empty:
            self._write((piece,))
        else:
            self.chain.push(piece, time.monotonic())
            self.advance()

    def ended(self) -> None:
        """The source will send no more."""
        if self._source_ended:
            return
        self._source_ended = True
        self.chain.push_end()
        self.advance()

    def destination_lost(self) -> None:
        """There is nobody to write to any more."""
        self._is_closed = True
        self._cancel_timer()
        self._hold(False)  # so that the end of the source is seen

    def advance(self) -> None:
        """Write what is due, close behind the last byte, and set the timer for what is due next."""
        if self._is_closed:
            return
        if not self.chain.is_empty:
            self._write(self.chain.take(time.monotonic()))
        if self.chain.is_over or (self._source_ended and self.chain.is_empty):
            self._finish()
            return
        self._set_timer()
        self.throttle()

    def throttle(self) -> None:
        """Stop reading from the source while too much is held on its behalf."""
        waiting = self._destination.unwritten_bytes() if self.is_blocked else 0
        limit = LATENCY_LANE_BYTES_MAX if self.chain.has_delay else LANE_BYTES_MAX
        self._hold(not self._is_closed and waiting + self.chain.held_bytes >= limit)

    def add(self, toxic: Toxic) -> None:
        self.chain.add(toxic, time.monotonic())
        self._restart()

    def change(self, toxic: Toxic) -> None:
        self.chain.change(toxic, time.monotonic())
        self._restart()

    def remove(self, toxic: Toxic) -> None:
        self._write(self.chain.remove(toxic, time.monotonic()))
        self._restart()

    def _restart(self) -> None:
        self._cancel_timer()
        self.advance()

    def _write(self, pieces: Iterable[bytes]) -> None:
        piece = b"".join(pieces)
        if piece and not self._is_closed:
            self.sent_bytes += len(piece)
            self._destination.write(piece)

    def _finish(self) -> None:
        self._is_closed = True
        self._cancel_timer()
        self._hold(False)
        self._destination.close_when_written()

    def _hold(self, wanted: bool) -> None:
        if wanted == self._is_reading:
            self._is_reading = not wanted
            self._source.read_on(self._is_reading)

    def _set_timer(self) -> None:
        """Keep the timer that is set unless it would come too late; come a little late rather than early."""
        wake_s = self.chain.wake_at_s()
        if wake_s is None:
            return
        if self._timer is not None:
            if self._timer_at_s <= wake_s:
                return
            self._timer.cancel()
        delay_s = min(max(wake_s - time.monotonic(), 0.0), TIMER_MAX_S)
        self._timer_at_s = wake_s
        self._timer = asyncio.get_running_loop().call_later(int(delay_s * 1000 + 1) / 1000, self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer = None
        self.advance()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Connection:
    """A client, its upstream, and the two lanes between them."""

    def __init__(self, proxy: "Proxy") -> None:
        now_s = time.monotonic()
        self._proxy = proxy
        self.client = _ClientSide(self)
        self.upstream = _UpstreamSide(self)
        self.lanes: dict[Direction, Lane] = {
            "upstream": Lane(self.client, self.upstream, Chain(proxy.toxics["upstream"], proxy.rng, now_s)),
            "downstream": Lane(self.upstream, self.client, Chain(proxy.toxics["downstream"], proxy.rng, now_s)),
        }
        self.client.outgoing = self.upstream.incoming = self.lanes["upstream"]
        self.upstream.outgoing = self.client.incoming = self.lanes["downstream"]
        self._dialling: asyncio.Task[None] | None = None

    def dial(self) -> None:
        """Connect to the upstream; the client is read once that stands."""
        self._dialling = asyncio.get_running_loop().create_task(self._dial())

    async def _dial(self) -> None:
        host, port = split_address(self._proxy.upstream_address)
        try:
            await asyncio.get_running_loop().create_connection(lambda: self.upstream, host or "localhost", port)
        except OSError:
            self.client.abort()
            self.over()
            return
        if any(toxic.type == "reset_peer" for toxics in self._proxy.toxics.values() for toxic in toxics):
            self.client.reset_on_close()
            self.upstream.reset_on_close()
        self.client.upstream_is_there()
        for lane in self.lanes.values():
            lane.advance()

    def abort(self) -> None:
        if self._dialling is not None:
            self._dialling.cancel()
        self.client.abort()
        self.upstream.abort()

    def over(self) -> None:
        """Called when a side is gone: the connection is forgotten when both are, or when there was no
        upstream yet.
        """
        if self.client.is_lost and (self.upstream.is_lost or self.upstream.transport is None):
            if self._dialling is not None:
                self._dialling.cancel()
            self._proxy.forget(self)


class _ClientSide(Side):
    """The accepted socket; what comes before the upstream is there is kept (uvloop cannot pause before it
    reads once).
    """

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection
        self._early: list[bytes] | None = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.read_on(False)
        self._connection.dial()

    def data_received(self, data: bytes) -> None:
        if self._early is None:
            self.outgoing.received(data)
        else:
            self._early.append(data)
            self.read_on(False)

    def eof_received(self) -> bool:
        if self._early is None:
            return super().eof_received()
        self.has_ended = True
        return True

    def upstream_is_there(self) -> None:
        """Hand on what came early, and read on."""
        early, self._early = self._early or [], None
        for piece in early:
            self.outgoing.received(piece)
        if self.has_ended:
            self.outgoing.ended()
        self.read_on(True)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._connection.over()


class _UpstreamSide(Side):
    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._connection.over()


class Proxy:
    """One proxy: where it listens, where it leads, its toxics, and its connections."""

    def __init__(self, name: str, listen: str, upstream: str, rng: random.Random) -> None:
        self.name = name
        self.listen_address = listen
        self.upstream_address = upstream
        self.rng = rng
        self.toxics: dict[Direction, list[Toxic]] = {"upstream": [], "downstream": []}
        self._server: asyncio.Server | None = None
        self._connections: set[Connection] = set()
        self._moved_bytes: dict[Direction, list[int]] = {"upstream": [0, 0], "downstream": [0, 0]}

    @property
    def is_enabled(self) -> bool:
        """Whether it listens."""
        return self._server is not None

    @property
    def connection_count(self) -> int:
        """How many connections it carries."""
        return len(self._connections)

    async def start(self) -> None:
        """Listen; OSError where the address is bad or taken, AlreadyStarted where it listens already."""
        if self.is_enabled:
            raise AlreadyStarted("Proxy already started")
        listener = await _listen(self.listen_address)
        self.listen_address = format_address(listener.getsockname())
        self._server = await asyncio.get_running_loop().create_server(self._accept, sock=listener, backlog=ACCEPT_BACKLOG)

    async def stop(self) -> None:
        """Stop listening and close all connections."""
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        for connection in list(self._connections):
            connection.abort()
        async with asyncio.timeout(STOP_TIMEOUT_S):
            await server.wait_closed()

    def find(self, name: str) -> tuple[Direction, Toxic] | None:
        """Return a toxic by name, with its direction."""
        for direction, toxics in self.toxics.items():
            for toxic in toxics:
                if toxic.name == name:
                    return direction, toxic
        return None

    def add(self, direction: Direction, toxic: Toxic) -> None:
        """Add a toxic behind the others of its direction, for connections that stand and those to come."""
        self.toxics[direction].append(toxic)
        for connection in list(self._connections):
            connection.lanes[direction].add(toxic)

    def change(self, direction: Direction, toxic: Toxic) -> None:
        """Let a change of the toxic take effect on the connections that stand."""
        for connection in list(self._connections):
            connection.lanes[direction].change(toxic)

    def remove(self, direction: Direction, toxic: Toxic) -> None:
        """Remove a toxic."""
        self.toxics[direction].remove(toxic)
        for connection in list(self._connections):
            connection.lanes[direction].remove(toxic)

    def moved_bytes(self, direction: Direction) -> tuple[int, int]:
        """How many bytes were received from the source and sent to the destination in a direction, since
        the start.
        """
        lanes = [connection.lanes[direction] for connection in self._connections]
        received, sent = self._moved_bytes[direction]
        return received + sum(lane.received_bytes for lane in lanes), sent + sum(lane.sent_bytes for lane in lanes)

    def forget(self, connection: Connection) -> None:
        """Drop a connection whose sockets are closed, keeping its counts."""
        if connection in self._connections:
            self._connections.remove(connection)
            for direction, lane in connection.lanes.items():
                self._moved_bytes[direction][0] += lane.received_bytes
                self._moved_bytes[direction][1] += lane.sent_bytes

    def _accept(self) -> asyncio.Protocol:
        if len(self._connections) >= CONNECTIONS_MAX or not self.is_enabled:
            return _Refused()
        connection = Connection(self)
        self._connections.add(connection)
        return connection.client


class _Refused(asyncio.Protocol):
    """Hangs up on a connection that is one too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).abort()


def split_address(address: str) -> tuple[str, int]:
    """Split "host:port"; OSError that says what is wrong, since a bad address shows when it is used."""
    host, colon, port = address.rpartition(":")
    if not colon:
        raise OSError(errno.EINVAL, f"address {address}: missing port in address")
    if not (port.isascii() and port.isdigit()) or int(port[:6]) > 65_535:
        raise OSError(errno.EINVAL, f"address {port}: invalid port")
    return host.strip("[]"), int(port)


def format_address(name: tuple[Any, ...]) -> str:
    """Write a socket name as "host:port"."""
    return f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"


async def resolve(address: str) -> tuple[socket.AddressFamily, str, int]:
    """Return family, host and port of a listen address, IPv4 first; an empty host means every interface."""
    host, port = split_address(address) if address else ("", 0)
    if not host:
        return (socket.AF_INET6, "::", port) if socket.has_dualstack_ipv6() else (socket.AF_INET, "0.0.0.0", port)
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    family, _, _, _, name = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    return family, str(name[0]), port


async def _listen(address: str) -> socket.socket:
    try:
        family, host, port = await resolve(address)
        if not address or host == "::":
            return socket.create_server((host, port), family=family, backlog=ACCEPT_BACKLOG, dualstack_ipv6=True)
        return socket.create_server((host, port), family=family, backlog=ACCEPT_BACKLOG)
    except socket.gaierror as error:
        raise OSError(errno.EADDRNOTAVAIL, f"listen tcp: lookup {address}: {error.strerror}") from error
    except OSError as error:
        named = error.errno == errno.EINVAL
        reason = f"listen tcp: {error.strerror}" if named else f"listen tcp {address}: bind: {_reason(error)}"
        raise OSError(error.errno, reason) from error


def _reason(error: OSError) -> str:
    return os.strerror(error.errno).lower() if error.errno else str(error)
