"""Proxies on asyncio's own event loop, which a lab uses where uvloop does not install; and their bounds."""

import asyncio
import random
from collections.abc import Callable

import pytest

from geokv.lab.wan.relay import LATENCY_LANE_BYTES_MAX, Proxy, split_address
from geokv.lab.wan.toxics import Toxic

WAIT_S = 20.0


async def _send_all(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Echo until the end, then close."""
    while piece := await reader.read(65_536):
        writer.write(piece)
        await writer.drain()
    writer.close()


async def _start(serve: object) -> tuple[asyncio.Server, Proxy]:
    server = await asyncio.start_server(serve, "127.0.0.1", 0)  # type: ignore[arg-type]
    port = server.sockets[0].getsockname()[1]
    proxy = Proxy("one", "127.0.0.1:0", f"127.0.0.1:{port}", random.Random(1))
    await proxy.start()
    return server, proxy


def test_echo_through_latency_on_the_standard_loop() -> None:
    """Bytes come back whole and the connection is forgotten when it is over."""

    async def scenario() -> None:
        server, proxy = await _start(_send_all)
        proxy.add("upstream", Toxic("l", "latency", "upstream", 1.0, {"latency": 20, "jitter": 5}))
        reader, writer = await asyncio.open_connection(*split_address(proxy.listen_address))
        payload = random.Random(3).randbytes(3_000_000)
        sending = asyncio.create_task(_write(writer, payload))
        assert await reader.readexactly(len(payload)) == payload
        await sending
        assert proxy.moved_bytes("upstream") == (len(payload), len(payload))
        writer.close()
        await _until(lambda: proxy.connection_count == 0)
        assert proxy.moved_bytes("downstream") == (len(payload), len(payload))
        await proxy.stop()
        server.close()

    asyncio.run(asyncio.wait_for(scenario(), WAIT_S))


def test_lane_behind_a_long_latency_is_bounded() -> None:
    """A sender faster than the delay is held up: what the proxy holds stays within the limit."""

    async def scenario() -> None:
        server, proxy = await _start(_send_all)
        proxy.add("upstream", Toxic("l", "latency", "upstream", 1.0, {"latency": 60_000, "jitter": 0}))
        _, writer = await asyncio.open_connection(*split_address(proxy.listen_address))
        writer.write(bytes(4 * LATENCY_LANE_BYTES_MAX))
        await _until(lambda: proxy.moved_bytes("upstream")[0] >= LATENCY_LANE_BYTES_MAX)
        with pytest.raises(TimeoutError):  # it wants to send the rest for as long as it is watched
            await asyncio.wait_for(writer.drain(), 0.3)
        received = proxy.moved_bytes("upstream")[0]
        assert LATENCY_LANE_BYTES_MAX <= received <= LATENCY_LANE_BYTES_MAX + (1 << 20)
        assert proxy.moved_bytes("upstream")[1] == 0
        await proxy.stop()
        writer.transport.abort()
        server.close()

    asyncio.run(asyncio.wait_for(scenario(), WAIT_S))


def test_stop_and_start_take_the_same_port() -> None:
    """A proxy that is enabled again is where it was."""

    async def scenario() -> None:
        server, proxy = await _start(_send_all)
        address = proxy.listen_address
        reader, writer = await asyncio.open_connection(*split_address(address))
        await proxy.stop()
        try:
            assert await reader.read(1) == b""
        except ConnectionResetError:
            pass
        await proxy.start()
        assert proxy.listen_address == address
        writer.close()
        await proxy.stop()
        server.close()

    asyncio.run(asyncio.wait_for(scenario(), WAIT_S))


async def _until(is_so: Callable[[], bool]) -> None:
    """Wait for a condition; the scenario's deadline ends the wait."""
    while not is_so():  # noqa: ASYNC110 - the proxy's counters announce nothing, and must not for a test
        await asyncio.sleep(0.005)


async def _write(writer: asyncio.StreamWriter, payload: bytes) -> None:
    writer.write(payload)
    await writer.drain()
