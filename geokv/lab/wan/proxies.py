"""Our one typed interface to a proxy server, the real Toxiproxy or the embedded one, over toxiproxy-python.

The library has traps, all of which end here:

- Its address is a global of the process. It is set before each call, under a lock, so several servers can
  be driven.
- Its calls wait for ever. Each gets a timeout, and runs on a thread of its own under a watchdog, since
  that timeout counts anew with every byte that trickles in.
- It swallows answers of 5xx. Every answer is looked at here, and every failure is a LabError with the
  server's words.
- Creating a proxy lets traffic in before there is a toxic. `create` makes it disabled, adds toxics, then
  enables it.

All calls block for some milliseconds: from an event loop use `await asyncio.to_thread(proxies.states)`.
They may be made from any thread.

Not here: starting a server (server.py), and what belongs together as a link (links.py).
"""

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol, TypeVar, cast
from urllib.parse import quote

import requests
from toxiproxy.api import APIConsumer
from toxiproxy.exceptions import InvalidToxic, NotFound, ProxyExists

from geokv.errors import LabError

CALL_TIMEOUT_S: Final = 5.0
WATCHDOG_S: Final = 10.0
Stream = Literal["upstream", "downstream"]
Method = Literal["GET", "POST", "DELETE"]
STREAMS: Final[tuple[Stream, Stream]] = ("upstream", "downstream")

_T = TypeVar("_T")
_one_at_a_time = threading.Lock()
_STATUS_OF: Final = {ProxyExists: 409, NotFound: 404, InvalidToxic: 400}
_SAMPLE = re.compile(r"^toxiproxy_proxy_sent_bytes_total\{(.*)\} (\S+)$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


class _Response(Protocol):
    """What we use of an answer of the library."""

    status_code: int
    text: str

    def json(self) -> Any: ...


@dataclass(frozen=True)
class ToxicSpec:
    """One toxic, as it is or as it is wanted; attributes in the units of Toxiproxy (ms, KB/s)."""

    name: str
    type: str
    stream: Stream
    attributes: Mapping[str, int] = field(default_factory=dict)
    toxicity: float = 1.0


@dataclass(frozen=True)
class ProxyState:
    """One proxy as the server describes it."""

    name: str
    listen: str
    upstream: str
    is_enabled: bool
    toxics: tuple[ToxicSpec, ...]

    def toxic(self, name: str) -> ToxicSpec | None:
        """Return one of its toxics by name."""
        return next((toxic for toxic in self.toxics if toxic.name == name), None)


class Proxies:
    """The proxies of one server."""

    def __init__(self, host: str, port: int, timeout_s: float = WATCHDOG_S) -> None:
        self.host = host
        self.port = port
        self.timeout_s = timeout_s

    def probe(self) -> str:
        """Return the version of the server; LabError where nothing answers, or something that is no
        Toxiproxy.
        """
        answer = self._call("GET", "/version")
        try:
            return str(answer.json()["version"])
        except (ValueError, KeyError, TypeError) as error:
            raise LabError(f"what answers on {self.host}:{self.port} is not a Toxiproxy") from error

    def states(self) -> dict[str, ProxyState]:
        """Return every proxy as the server sees it now."""
        return {name: _state(described) for name, described in self._call("GET", "/proxies").json().items()}

    def state(self, name: str) -> ProxyState:
        """Return one proxy; LabError (.status 404) where there is none of that name."""
        return _state(self._call("GET", _path(name)).json())

    def create(self, name: str, upstream: str, listen: str = "127.0.0.1:0", toxics: Sequence[ToxicSpec] = ()) -> ProxyState:
        """Make a proxy that never lets a byte through without its toxics; LabError (.status 409) where it
        exists.
        """
        wanted = {"name": name, "upstream": upstream, "listen": listen, "enabled": False}
        self._call("POST", "/proxies", wanted)
        for toxic in toxics:
            self.add_toxic(name, toxic)
        return self.set_enabled(name, True)

    def delete(self, name: str) -> None:
        """Remove a proxy and close its connections."""
        self._call("DELETE", _path(name))

    def set_enabled(self, name: str, wanted: bool) -> ProxyState:
        """Let a proxy listen again, on the same port, or close its listener and connections ("connection
        refused").
        """
        return _state(self._call("POST", _path(name), {"enabled": wanted}).json())

    def add_toxic(self, proxy: str, toxic: ToxicSpec) -> None:
        """Add a toxic; LabError (.status 409) where the proxy has one of that name."""
        self._call("POST", f"{_path(proxy)}/toxics", _wire(toxic))

    def set_toxic(self, proxy: str, toxic: ToxicSpec, known: ProxyState | None = None) -> None:
        """Add a toxic, or change the one of that name in place; `known` spares the look whether it is
        there.
        """
        if (known or self.state(proxy)).toxic(toxic.name) is None:
            self.add_toxic(proxy, toxic)
        else:
            self._call("POST", f"{_path(proxy)}/toxics/{quote(toxic.name, safe='')}", _wire(toxic))

    def remove_toxic(self, proxy: str, name: str) -> None:
        """Remove a toxic; one that is not there is fine."""
        try:
            self._call("DELETE", f"{_path(proxy)}/toxics/{quote(name, safe='')}")
        except LabError as error:
            if error.details.get("status") != 404 or "toxic" not in error.message:
                raise

    def reset(self) -> None:
        """Enable every proxy and remove every toxic of the server."""
        self._call("POST", "/reset")

    def sent_bytes(self) -> dict[str, dict[str, int]]:
        """Return how many bytes each proxy has sent, by direction.

        The embedded server counts as it goes, the real one when a connection ends.
        """
        counts: dict[str, dict[str, int]] = {}
        for line in self._call("GET", "/metrics").text.splitlines():
            if sample := _SAMPLE.match(line):
                labels = dict(_LABEL.findall(sample[1]))
                by_stream = counts.setdefault(labels["proxy"], dict.fromkeys(STREAMS, 0))
                by_stream[labels["direction"]] += int(float(sample[2]))
        return counts

    def _call(self, method: Method, path: str, body: Mapping[str, Any] | None = None) -> _Response:
        """Make one call under the watchdog and return its answer, or raise LabError with what the server
        said.
        """

        def call() -> _Response:
            if not _one_at_a_time.acquire(timeout=self.timeout_s):
                raise LabError("another call to a proxy server of this process does not come back")
            try:
                APIConsumer.host, APIConsumer.port = self.host, self.port
                return _perform(method, path, body)
            finally:
                _one_at_a_time.release()

        where = f"{method} {path} on the proxy server {self.host}:{self.port}"
        answer = _watched(call, self.timeout_s, where)
        if answer.status_code >= 300:
            raise LabError(f"{where}: {answer.status_code}, {_reason(answer.text)}", status=answer.status_code)
        return answer


def _perform(method: Method, path: str, body: Mapping[str, Any] | None) -> _Response:
    """Make one call of the library; what it raises becomes a LabError with the status that it stands for."""
    try:
        match method:
            case "GET":
                answer = APIConsumer.get(path, timeout=CALL_TIMEOUT_S)
            case "POST":
                answer = APIConsumer.post(path, json=body, timeout=CALL_TIMEOUT_S)
            case _:
                answer = APIConsumer.delete(path, timeout=CALL_TIMEOUT_S)
    except (ProxyExists, NotFound, InvalidToxic) as error:
        said = error.args[0].decode("utf-8", "replace") if isinstance(error.args[0], bytes) else str(error)
        raise LabError(f"{method} {path}: {_reason(said)}", status=_STATUS_OF[type(error)]) from error
    except requests.RequestException as error:
        raise LabError(f"the proxy server does not answer {method} {path}: {error}") from error
    return cast(_Response, answer)


def _watched(call: Callable[[], _T], timeout_s: float, what: str) -> _T:
    """Run a call on a thread of its own; LabError when it takes longer, and the thread is left to itself."""
    outcome: list[_T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(call())
        except BaseException as error:  # whatever it is, it belongs to the caller
            failure.append(error)

    thread = threading.Thread(target=run, name="proxy-server-call", daemon=True)
    thread.start()
    thread.join(timeout_s)
    if failure:
        raise failure[0]
    if not outcome:
        raise LabError(f"{what} takes longer than {timeout_s} s; the server hangs")
    return outcome[0]


def _path(proxy: str) -> str:
    return "/proxies/" + quote(proxy, safe="")


def _reason(text: str) -> str:
    """Return the `error` of an error body such as {"error": "proxy not found", "status": 404}, else the
    text.
    """
    said = re.search(r'"error":"((?:[^"\\]|\\.)*)"', text)
    return (said[1].replace('\\"', '"') if said else text.strip())[:500]


def _wire(toxic: ToxicSpec) -> dict[str, Any]:
    return {
        "name": toxic.name,
        "type": toxic.type,
        "stream": toxic.stream,
        "toxicity": toxic.toxicity,
        "attributes": dict(toxic.attributes),
    }


def _state(described: Mapping[str, Any]) -> ProxyState:
    toxics = tuple(
        ToxicSpec(each["name"], each["type"], each["stream"], dict(each["attributes"]), float(each["toxicity"]))
        for each in described["toxics"]
    )
    return ProxyState(described["name"], described["listen"], described["upstream"], described["enabled"], toxics)
