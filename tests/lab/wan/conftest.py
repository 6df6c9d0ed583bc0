"""Proxy servers of both kinds, and upstreams to put behind them."""

import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any, NamedTuple, cast

import pytest

from geokv.lab.wan.server import REAL_COMMAND, Kind, ProxyServer, has_real, start_server

WAIT_S = 20.0


class Reply(NamedTuple):
    """An HTTP answer of a proxy server."""

    status: int
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


class Api:
    """The HTTP interface of a proxy server, without any library in between."""

    def __init__(self, server: ProxyServer) -> None:
        self.server = server

    def __call__(self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None) -> Reply:
        sent = body if isinstance(body, str) or body is None else json.dumps(body)
        with closing(http.client.HTTPConnection(self.server.host, self.server.port, timeout=WAIT_S)) as connection:
            connection.request(method, path, sent, headers or {})
            answer = connection.getresponse()
            return Reply(answer.status, answer.read().decode())

    def proxy(self, name: str, upstream: tuple[str, int], **fields: object) -> tuple[str, int]:
        """Make a proxy and return where it listens."""
        wanted = {"name": name, "listen": "127.0.0.1:0", "upstream": f"{upstream[0]}:{upstream[1]}", **fields}
        made = self("POST", "/proxies", wanted)
        assert made.status == 201, made
        return address_of(made.json["listen"])

    def toxic(self, proxy: str, kind: str, stream: str = "downstream", **attributes: int) -> None:
        made = self("POST", f"/proxies/{proxy}/toxics", {"type": kind, "stream": stream, "attributes": attributes})
        assert made.status == 200, made


class Upstream:
    """A TCP server with a thread for each connection; `serve` is given the connection."""

    def __init__(self, serve: Callable[[socket.socket], None]) -> None:
        self._serve = serve
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.address: tuple[str, int] = self._listener.getsockname()
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.settimeout(WAIT_S)
            self._open.append(connection)
            threading.Thread(target=self._run, args=(connection,), daemon=True).start()

    def _run(self, connection: socket.socket) -> None:
        with closing(connection):
            try:
                self._serve(connection)
            except OSError:
                pass  # the test closed or cut it

    def close(self) -> None:
        self._listener.close()
        for connection in self._open:
            connection.close()


def address_of(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


def echo(connection: socket.socket) -> None:
    """Send back what comes."""
    while piece := connection.recv(65_536):
        connection.sendall(piece)


def read_exactly(connection: socket.socket, length: int) -> bytes:
    """Read `length` bytes; fewer where the stream ends before."""
    pieces = []
    while length:
        piece = connection.recv(min(length, 65_536))
        if not piece:
            break
        pieces.append(piece)
        length -= len(piece)
    return b"".join(pieces)


@pytest.fixture(scope="module", params=["embedded", pytest.param("real", marks=pytest.mark.go)])
def kind(request: pytest.FixtureRequest) -> Kind:
    if request.param == "real" and not has_real():
        pytest.skip(f"{REAL_COMMAND} is not on the PATH: only the embedded proxy server is tested")
    return cast(Kind, request.param)


@pytest.fixture(scope="module")
def server(kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxyServer]:
    with start_server(tmp_path_factory.mktemp(f"wan-{kind}"), kind) as running:
        yield running


@pytest.fixture
def api(server: ProxyServer) -> Iterator[Api]:
    """The HTTP interface; every test finds the server without proxies."""
    interface = Api(server)
    yield interface
    for name in interface("GET", "/proxies").json:
        assert interface("DELETE", f"/proxies/{name}").status == 204


@pytest.fixture
def upstream() -> Iterator[Callable[[Callable[[socket.socket], None]], tuple[str, int]]]:
    """Start an upstream that serves every connection with a function; returns its address."""
    with ExitStack() as stack:

        def start(serve: Callable[[socket.socket], None]) -> tuple[str, int]:
            made = Upstream(serve)
            stack.callback(made.close)
            return made.address

        yield start


@pytest.fixture
def connect() -> Iterator[Callable[[tuple[str, int]], socket.socket]]:
    """Connect to an address; closed at the end of the test."""
    with ExitStack() as stack:

        def connect_to(address: tuple[str, int]) -> socket.socket:
            connection = stack.enter_context(closing(socket.create_connection(address, timeout=WAIT_S)))
            connection.settimeout(WAIT_S)
            return connection

        yield connect_to
