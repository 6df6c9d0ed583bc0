"""Credentials, options and the table of methods: what keeps a server from starting, and why."""

from __future__ import annotations

from collections import Counter

import grpc
import pytest

from geokv.errors import ConfigurationError
from geokv.runtime import channel, credentials, methods


async def handler(*_: object) -> None:
    """Stands for an implementation."""


ALL = {method.path: handler for method in methods.METHODS}


def test_complete_table_is_registered_by_service() -> None:
    """Each service of the table becomes one handler."""
    assert len(methods.generic_handlers(ALL)) == len({method.service for method in methods.METHODS})


def test_implementation_without_an_entry_keeps_the_server_from_starting() -> None:
    """Nobody adds a method and forgets who may call it."""
    with pytest.raises(ConfigurationError, match=r"not in the table.*/geokv.v1.Kv/Scan"):
        methods.generic_handlers({**ALL, "/geokv.v1.Kv/Scan": handler})


def test_entry_without_an_implementation_keeps_the_server_from_starting() -> None:
    """A method that is promised is served."""
    partial = {path: it for path, it in ALL.items() if path != methods.KV_READ.path}
    with pytest.raises(ConfigurationError, match=r"without an implementation.*/geokv.v1.Kv/Read"):
        methods.generic_handlers(partial)


def test_paths_and_options_stand_once() -> None:
    """No method and no option is listed twice, where the later one would silently win."""
    for names in (
        [method.path for method in methods.METHODS],
        [name for name, _ in channel.CHANNEL_OPTIONS],
        [name for name, _ in channel.SERVER_OPTIONS],
    ):
        assert max(Counter(names).values()) == 1


def test_pings_of_our_channels_are_allowed_by_our_servers() -> None:
    """Keepalive is never taken for an attack: the server allows pings twice as often as channels send them."""
    client, server = dict(channel.CHANNEL_OPTIONS), dict(channel.SERVER_OPTIONS)
    allowed = server["grpc.http2.min_recv_ping_interval_without_data_ms"]
    assert int(allowed) * 2 <= int(client["grpc.keepalive_time_ms"])


@pytest.mark.parametrize("address", ["127.0.0.1:0", "localhost:7101", "[::1]:7101", "127.8.8.8:1"])
def test_loopback_needs_no_leave(address: str) -> None:
    """Plaintext on loopback is the default."""
    credentials.check_listen(address, False)


@pytest.mark.parametrize("address", ["0.0.0.0:7101", "[::]:7101", "10.0.0.1:7101", "node-1:7101"])
def test_network_needs_leave(address: str) -> None:
    """Plaintext on the network is refused with the flag that allows it, and allowed with it."""
    with pytest.raises(ConfigurationError, match="--allow-plaintext-network"):
        credentials.check_listen(address, False)
    credentials.check_listen(address, True)


@pytest.mark.parametrize("address", ["", "7101", ":7101", "host:", "host:port", "host:70000", "host:-1"])
def test_what_is_no_address_is_refused(address: str) -> None:
    """The message shows how an address looks."""
    with pytest.raises(ConfigurationError, match="host:port"):
        credentials.split_address(address)


async def test_second_server_on_a_port_is_refused() -> None:
    """Ports are not shared: the second to bind fails with a message that says so."""
    first, second = (grpc.aio.server(options=channel.SERVER_OPTIONS) for _ in range(2))
    port = credentials.listen(first, "127.0.0.1:0", False)
    with pytest.raises(ConfigurationError, match="another process"):
        credentials.listen(second, f"127.0.0.1:{port}", False)
    await first.stop(None)
    await second.stop(None)
