"""As much of HTTP/1.1 as the control interface of the proxies needs: requests with a length, answers,
keep-alive.

Invariants: headers and bodies are bounded, and a client that is slow or silent is hung up on. A browser is
refused (user agent `Mozilla/...`), as Toxiproxy does, so that no web page can reach into a lab.

Not here: what the requests mean (control.py).
"""

import asyncio
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Final
from urllib.parse import unquote

from geokv.lab.wan.control import TEXT_TYPE, Answer

HEAD_BYTES_MAX: Final = 16 << 10
BODY_BYTES_MAX: Final = 4 << 20
HTTP_CONNECTIONS_MAX: Final = 256
IDLE_TIMEOUT_S: Final = 60.0
READ_TIMEOUT_S: Final = 15.0
WRITE_TIMEOUT_S: Final = 30.0

Handler = Callable[[str, str, bytes], Awaitable[Answer]]


class BadRequest(Exception):
    """What was sent is no request that we take; the connection ends with this answer."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.answer = Answer(status, reason + "\n", TEXT_TYPE)


class HttpServer:
    """Serves a handler on one listening address."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    async def start(self, host: str, port: int) -> int:
        """Listen and return the port; OSError where that is taken."""
        self._server = await asyncio.start_server(self._serve, host, port, limit=HEAD_BYTES_MAX)
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stop listening and hang up."""
        if self._server is not None:
            self._server.close()
            for writer in list(self._open):
                writer.transport.abort()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._open) >= HTTP_CONNECTIONS_MAX:
            writer.transport.abort()
            return
        self._open.add(writer)
        try:
            while await self._serve_one(reader, writer):
                pass
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass  # the client went away or fell silent
        finally:
            self._open.discard(writer)
            writer.close()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; whether another may follow on this connection."""
        try:
            async with asyncio.timeout(IDLE_TIMEOUT_S):
                method, target, headers = _parse_head(await _read_head(reader))
            async with asyncio.timeout(READ_TIMEOUT_S):
                body = await reader.readexactly(_body_length(headers))
            answer = await self._answer(method, target, headers, body)
            stays = headers.get("connection", "").lower() != "close"
        except BadRequest as refused:
            answer, stays = refused.answer, False
        writer.write(_render(answer, stays))
        async with asyncio.timeout(WRITE_TIMEOUT_S):
            await writer.drain()
        return stays

    async def _answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Answer:
        if headers.get("user-agent", "").startswith("Mozilla/"):
            return Answer(403, "User agent not allowed\n", TEXT_TYPE)
        return await self._handler(method, unquote(target.partition("?")[0]), body)


async def _read_head(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError as error:
        raise BadRequest(431, f"the request head is larger than {HEAD_BYTES_MAX} bytes") from error


def _parse_head(head: bytes) -> tuple[str, str, dict[str, str]]:
    request_line, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    words = request_line.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise BadRequest(400, "this is not an HTTP/1.1 request")
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            raise BadRequest(400, "a header line has no colon")
        headers[name.strip().lower()] = value.strip()
    if words[2] == "HTTP/1.0":
        headers["connection"] = "close"
    return words[0], words[1], headers


def _body_length(headers: dict[str, str]) -> int:
    if "transfer-encoding" in headers:
        raise BadRequest(411, "a body needs a Content-Length")
    length = headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()):
        raise BadRequest(400, "Content-Length is not a number")
    if len(length) > 12 or int(length) > BODY_BYTES_MAX:
        raise BadRequest(413, f"the body is larger than {BODY_BYTES_MAX} bytes")
    return int(length)


def _render(answer: Answer, stays: bool) -> bytes:
    body = answer.body.encode()
    lines = [f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}"]
    if answer.content_type:
        lines.append(f"Content-Type: {answer.content_type}")
    if answer.status != HTTPStatus.NO_CONTENT:
        lines.append(f"Content-Length: {len(body)}")
    if not stays:
        lines.append("Connection: close")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body
