"""The one place where connections get their credentials, and where plaintext is kept off the network.

There is only plaintext so far, so whoever reaches the port can read and write everything: a node listens on loopback
unless the operator says in so many words that the network is trusted.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import Final

import grpc
import grpc.aio

from geokv.errors import ConfigurationError
from geokv.runtime.channel import CHANNEL_OPTIONS

ALLOW_FLAG: Final = "--allow-plaintext-network"


def split_address(address: str) -> tuple[str, int]:
    """("host", port) of "host:port" or "[v6]:port". Raises ConfigurationError."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65_535:
        raise ConfigurationError(f'"{address}" is not an address: write host:port, 127.0.0.1:7101 for example')
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`. A name other than localhost may be anything, so it is not."""
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_listen(address: str, is_plaintext_network_allowed: bool) -> None:
    """Raises ConfigurationError where plaintext would listen on the network without leave."""
    host, _ = split_address(address)
    if not is_plaintext_network_allowed and not is_loopback(host):
        raise ConfigurationError(
            f"{address} is not loopback, and connections are not encrypted: whoever reaches the port could read and "
            f"write everything. Listen on 127.0.0.1, or say {ALLOW_FLAG} where the network itself is trusted."
        )


def listen(server: grpc.aio.Server, address: str, is_plaintext_network_allowed: bool) -> int:
    """Bind `server` to `address`; the port that was bound. Raises ConfigurationError."""
    check_listen(address, is_plaintext_network_allowed)
    try:
        return server.add_insecure_port(address)
    except RuntimeError as error:
        raise ConfigurationError(
            f"cannot listen on {address}: another process (another node?) has the port, or the address is not this machine's"
        ) from error


def open_channel(address: str) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)


def open_sync_channel(address: str) -> grpc.Channel:
    """For tools that ask one thing and end."""
    return grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
