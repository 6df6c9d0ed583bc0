"""The one table of gRPC channel and server options, each with its reason.

Nobody else passes options to gRPC: a value that is tuned here holds for nodes, clients and tests alike.

Left alone on purpose: the BDP probe (`grpc.http2.bdp_probe`). It sizes the flow-control window to the link; without it a
stream over an 80 ms link moved 0.3 MB/s instead of 42.
"""

from __future__ import annotations

from typing import Final

from geokv.core.limits import MESSAGE_BYTES_MAX, METADATA_BYTES_MAX, STREAMS_PER_CONNECTION_MAX

Options = tuple[tuple[str, int | str], ...]

KEEPALIVE_MS: Final = 3_000  # a quiet connection is asked whether it lives
KEEPALIVE_TIMEOUT_MS: Final = 3_000  # and is given up without an answer: a half-open one lasts six seconds at most
RECONNECT_MS_MIN: Final = 100
RECONNECT_MS_MAX: Final = 1_000
CONNECT_MS_MAX: Final = 1_000

_BOTH: Final[Options] = (
    # The library's own 4 MiB would refuse what our limits allow; unlimited would let a stranger fill the memory.
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    # A peer that vanished behind a cut sends no reset: only asking finds out.
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    # 0: as many pings as it takes; the default stops asking after two without traffic in between.
    ("grpc.http2.max_pings_without_data", 0),
    # Beyond the first a call is refused now and then, beyond the second always.
    ("grpc.max_metadata_size", METADATA_BYTES_MAX),
    ("grpc.absolute_max_metadata_size", METADATA_BYTES_MAX * 2),
)

CHANNEL_OPTIONS: Final[Options] = (
    *_BOTH,
    # After a cut of 25 s the defaults (back-off up to 120 s, 20 s to connect) took 17 s to come back.
    ("grpc.initial_reconnect_backoff_ms", RECONNECT_MS_MIN),
    ("grpc.max_reconnect_backoff_ms", RECONNECT_MS_MAX),
    # Misnamed in the library: how long one try to connect may take.
    ("grpc.min_reconnect_backoff_ms", CONNECT_MS_MAX),
    # Channels to one address share a TCP connection otherwise: bulk would stand before replication, and a link's
    # faults would hit what another purpose had dialled.
    ("grpc.use_local_subchannel_pool", 1),
    # Who retries what is decided by machines that know whether anything was numbered.
    ("grpc.enable_retries", 0),
    # Addresses are hosts and ports; a TXT look-up for a service config would only delay the first call.
    ("grpc.service_config_disable_resolution", 1),
    # A proxy of the environment (http_proxy) must not come between nodes.
    ("grpc.enable_http_proxy", 0),
)

SERVER_OPTIONS: Final[Options] = (
    *_BOTH,
    # Two nodes on one port must fail, not share the connections between them.
    ("grpc.so_reuseport", 0),
    ("grpc.max_concurrent_streams", STREAMS_PER_CONNECTION_MAX),
    # Our own channels ask each KEEPALIVE_MS; faster pings than half of that are an attack, and end the connection.
    ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_MS // 2),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", KEEPALIVE_MS // 2),
    ("grpc.http2.max_ping_strikes", 10),
)
