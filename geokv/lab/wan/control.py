"""Toxiproxy's HTTP interface over our proxies: what each request does, and what it answers.

    GET    /version              POST /populate               POST /reset           GET /metrics
    GET    /proxies              POST /proxies
    GET    /proxies/P            POST or PATCH /proxies/P     DELETE /proxies/P
    GET    /proxies/P/toxics     POST /proxies/P/toxics
    GET    /proxies/P/toxics/T   POST or PATCH .../toxics/T   DELETE .../toxics/T

Status codes, JSON shapes, defaults and error bodies are those of Toxiproxy 2.12, in its habits too: only
the first JSON value of a body counts, key names match whatever their case, null means "not given", unknown
keys are ignored. Two differences, both refusals with status 400 where Toxiproxy would go on: a toxic other
than latency, bandwidth, timeout and reset_peer is refused by its name, and so is a negative bandwidth,
which stops the real server.

Invariants: changes are made one after another; a refused request has changed nothing but what its answer
lists.

Not here: HTTP itself (http_server.py).
"""

import asyncio
import json
import random
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from geokv.lab.wan.relay import AlreadyStarted, Direction, Proxy, format_address, resolve
from geokv.lab.wan.toxics import ATTRIBUTES, Toxic

VERSION: Final = "2.12.0"
PROXIES_MAX: Final = 4_096
TOXICS_MAX: Final = 64
WHOLE_MAX: Final = (1 << 63) - 1
JSON_TYPE: Final = "application/json"
TEXT_TYPE: Final = "text/plain; charset=utf-8"


class Answer(NamedTuple):
    """An HTTP answer."""

    status: int
    body: str = ""
    content_type: str = JSON_TYPE


class Refusal(Exception):
    """A request that is answered with an error."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.message = message
        self.status = status


class Control:
    """All proxies of one server, and the requests that change them."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._proxies: dict[str, Proxy] = {}
        self._changing = asyncio.Lock()

    async def answer(self, method: str, path: str, body: bytes) -> Answer:
        """Answer one request; `path` is decoded and without its query."""
        try:
            async with self._changing:
                return await self._route(method, path, body)
        except Refusal as refusal:
            return _error(refusal)
        except OSError as error:
            return _error(Refusal(error.strerror or str(error), 500))

    async def close(self) -> None:
        """Stop every proxy."""
        async with self._changing:
            for proxy in self._proxies.values():
                await proxy.stop()
            self._proxies.clear()

    async def _route(self, method: str, path: str, body: bytes) -> Answer:
        match method, path.removeprefix("/").split("/"):
            case "GET", ["version"]:
                return Answer(200, f'{{"version": "{VERSION}"}}\n', "application/json;charset=utf-8")
            case "GET", ["metrics"]:
                return Answer(200, self._metrics(), "text/plain; version=0.0.4; charset=utf-8")
            case "POST", ["reset"]:
                return await self._reset()
            case "POST", ["populate"]:
                return await self._populate(body)
            case "GET", ["proxies"]:
                return _json(200, {name: describe(self._proxies[name]) for name in sorted(self._proxies)})
            case "POST", ["proxies"]:
                return await self._create(body)
            case _, ["proxies", name] if name:
                return await self._on_proxy(method, name, body)
            case _, ["proxies", name, "toxics"] if name:
                return self._on_toxics(method, name, body)
            case _, ["proxies", name, "toxics", toxic] if name and toxic:
                return self._on_toxic(method, name, toxic, body)
            case _, ["version" | "metrics" | "reset" | "populate" | "proxies"]:
                return Answer(405, "", "")
        return Answer(404, "404 page not found\n", TEXT_TYPE)

    async def _on_proxy(self, method: str, name: str, body: bytes) -> Answer:
        match method:
            case "GET":
                return _json(200, describe(self._proxy(name)))
            case "POST" | "PATCH":
                return await self._update(self._proxy(name), body)
            case "DELETE":
                await self._proxy(name).stop()
                del self._proxies[name]
                return Answer(204, "", "")
        return Answer(405, "", "")

    def _on_toxics(self, method: str, name: str, body: bytes) -> Answer:
        match method:
            case "GET":
                return _json(200, _describe_toxics(self._proxy(name)))
            case "POST":
                return self._add_toxic(self._proxy(name), body)
        return Answer(405, "", "")

    def _on_toxic(self, method: str, name: str, toxic_name: str, body: bytes) -> Answer:
        if method not in ("GET", "POST", "PATCH", "DELETE"):
            return Answer(405, "", "")
        proxy = self._proxy(name)
        found = proxy.find(toxic_name)
        if found is None:
            raise Refusal("toxic not found", 404)
        direction, toxic = found
        match method:
            case "POST" | "PATCH":
                _update_toxic(toxic, _fields(body))
                proxy.change(direction, toxic)
            case "DELETE":
                proxy.remove(direction, toxic)
                return Answer(204, "", "")
        return _json(200, _describe_toxic(toxic))

    def _proxy(self, name: str) -> Proxy:
        if name not in self._proxies:
            raise Refusal("proxy not found", 404)
        return self._proxies[name]

    async def _create(self, body: bytes) -> Answer:
        fields = _fields(body)
        name, listen, upstream = (_text(fields, key, "") for key in ("name", "listen", "upstream"))
        is_enabled = _boolean(fields, "enabled", True)
        for key, value in (("name", name), ("upstream", upstream)):
            if not value:
                raise Refusal(f"missing required field: {key}", 400)
        if name in self._proxies:
            raise Refusal("proxy already exists", 409)
        proxy = await self._add(Proxy(name, listen, upstream, self._rng), is_enabled)
        return _json(201, describe(proxy))

    async def _add(self, proxy: Proxy, is_enabled: bool) -> Proxy:
        if len(self._proxies) >= PROXIES_MAX and proxy.name not in self._proxies:
            raise Refusal(f"more than {PROXIES_MAX} proxies; delete some", 400)
        if is_enabled:
            await proxy.start()
        self._proxies[proxy.name] = proxy
        return proxy

    async def _update(self, proxy: Proxy, body: bytes) -> Answer:
        fields = _fields(body)
        listen = _text(fields, "listen", proxy.listen_address)
        upstream = _text(fields, "upstream", proxy.upstream_address)
        is_enabled = _boolean(fields, "enabled", proxy.is_enabled)
        if await _differs(proxy, listen, upstream):
            await proxy.stop()
            proxy.listen_address, proxy.upstream_address = listen, upstream
        if is_enabled and not proxy.is_enabled:
            await proxy.start()
        elif not is_enabled:
            await proxy.stop()
        return _json(200, describe(proxy))

    async def _populate(self, body: bytes) -> Answer:
        done: list[Proxy] = []
        try:
            for name, listen, upstream, is_enabled in _wanted_proxies(body):
                done.append(await self._add_or_replace(Proxy(name, listen, upstream, self._rng), is_enabled))
        except Refusal as refusal:
            return _populated(done, refusal)
        except OSError as error:
            return _populated(done, Refusal(error.strerror or str(error), 500))
        return _populated(done, None)

    async def _add_or_replace(self, proxy: Proxy, is_enabled: bool) -> Proxy:
        existing = self._proxies.get(proxy.name)
        if existing is not None:
            if not await _differs(existing, proxy.listen_address, proxy.upstream_address):
                return existing
            await existing.stop()
        return await self._add(proxy, is_enabled)

    async def _reset(self) -> Answer:
        """Enable every proxy and remove every toxic."""
        for proxy in self._proxies.values():
            try:
                await proxy.start()
            except AlreadyStarted:
                pass
            for direction, toxics in proxy.toxics.items():
                for toxic in list(toxics):
                    proxy.remove(direction, toxic)
        return Answer(204, "", "")

    def _add_toxic(self, proxy: Proxy, body: bytes) -> Answer:
        direction, toxic = _read_toxic(_fields(body), proxy)
        proxy.add(direction, toxic)
        return _json(200, _describe_toxic(toxic))

    def _metrics(self) -> str:
        """The byte counters, under the names that Toxiproxy gives them, but counted while connections
        live.
        """
        lines = []
        for index, which in enumerate(("received", "sent")):
            metric = f"toxiproxy_proxy_{which}_bytes_total"
            lines.append(f"# TYPE {metric} counter")
            for proxy in self._proxies.values():
                lines += [_sample(metric, proxy, direction, index) for direction in proxy.toxics]
        return "\n".join(lines) + "\n"


def describe(proxy: Proxy) -> dict[str, Any]:
    """Return what GET /proxies/P shows."""
    return {
        "name": proxy.name,
        "listen": proxy.listen_address,
        "upstream": proxy.upstream_address,
        "enabled": proxy.is_enabled,
        "toxics": _describe_toxics(proxy),
    }


def _describe_toxics(proxy: Proxy) -> list[dict[str, Any]]:
    return [_describe_toxic(toxic) for toxics in proxy.toxics.values() for toxic in toxics]


def _describe_toxic(toxic: Toxic) -> dict[str, Any]:
    return {
        "attributes": toxic.attributes,
        "name": toxic.name,
        "type": toxic.type,
        "stream": toxic.stream,
        "toxicity": int(toxic.toxicity) if toxic.toxicity.is_integer() else toxic.toxicity,
    }


def _sample(metric: str, proxy: Proxy, direction: Direction, index: int) -> str:
    labels = {"direction": direction, "proxy": proxy.name, "listener": proxy.listen_address}
    labels["upstream"] = proxy.upstream_address
    quoted = ",".join(f"{key}={json.dumps(value)}" for key, value in labels.items())
    return f"{metric}{{{quoted}}} {proxy.moved_bytes(direction)[index]}"


async def _differs(proxy: Proxy, listen: str, upstream: str) -> bool:
    """Whether a proxy listens elsewhere or leads elsewhere; names are resolved, so localhost is 127.0.0.1."""
    _, host, port = await resolve(listen)
    wanted = format_address((host, port))
    return wanted != proxy.listen_address or upstream != proxy.upstream_address


def _wanted_proxies(body: bytes) -> list[tuple[str, str, str, bool]]:
    """Read the list of POST /populate, all of it before any proxy is made."""
    listed = _first_json(body)
    if listed is None:
        listed = []
    if not isinstance(listed, list) or not all(isinstance(item, dict) for item in listed):
        raise _bad_body("a list of proxies is needed")
    wanted = []
    for number, item in enumerate(listed, start=1):
        fields = _lower(item)
        name, listen, upstream = (_text(fields, key, "") for key in ("name", "listen", "upstream"))
        for key, value in (("name", name), ("upstream", upstream)):
            if not value:
                raise Refusal(f"missing required field: {key} at proxy {number}", 400)
        wanted.append((name, listen, upstream, _boolean(fields, "enabled", True)))
    return wanted


def _populated(done: Iterable[Proxy], refusal: Refusal | None) -> Answer:
    shown = [describe(proxy) for proxy in done] or None
    if refusal is None:
        return _json(201, {"proxies": shown})
    return _json(refusal.status, {"error": refusal.message, "status": refusal.status, "proxies": shown})


def _read_toxic(fields: dict[str, Any], proxy: Proxy) -> tuple[Direction, Toxic]:
    """Check a new toxic in the order in which Toxiproxy does, so that the same fault gets the same answer."""
    kind, stream, name = (
        _text(fields, "type", ""),
        _text(fields, "stream", "downstream"),
        _text(fields, "name", ""),
    )
    toxicity = _number(fields, "toxicity", 1.0)
    given = fields.get("attributes")
    if given is not None and not isinstance(given, dict):
        raise _bad_body("attributes must be an object")
    if stream.lower() not in proxy.toxics:
        raise Refusal("stream was invalid, can be either upstream or downstream", 400)
    direction: Direction = "upstream" if stream.lower() == "upstream" else "downstream"
    if kind not in ATTRIBUTES:
        raise Refusal(f'invalid toxic type: "{kind[:60]}" is not known here; known: {", ".join(ATTRIBUTES)}', 400)
    toxic = Toxic(name or f"{kind}_{stream}", kind, stream, toxicity, dict.fromkeys(ATTRIBUTES[kind], 0))
    if proxy.find(toxic.name) is not None:
        raise Refusal("toxic already exists", 409)
    if len(proxy.toxics[direction]) >= TOXICS_MAX:
        raise Refusal(f"more than {TOXICS_MAX} toxics on one stream; remove some", 400)
    toxic.attributes.update(_attributes(toxic, given))
    return direction, toxic


def _update_toxic(toxic: Toxic, fields: dict[str, Any]) -> None:
    toxicity = _number(fields, "toxicity", toxic.toxicity)
    toxic.attributes.update(_attributes(toxic, fields.get("attributes")))
    toxic.toxicity = toxicity


def _attributes(toxic: Toxic, given: object) -> dict[str, int]:
    """Return the known attributes of a toxic that were given."""
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise _bad_body("attributes must be an object")
    fields = _lower(given)
    known = {key: fields[key] for key in toxic.attributes if fields.get(key) is not None}
    for key, value in known.items():
        if not isinstance(value, int) or isinstance(value, bool) or abs(value) > WHOLE_MAX:
            raise _bad_body(f"attributes.{key} must be a whole number")
        if key == "rate" and value < 0:
            raise _bad_body("attributes.rate must not be negative")
    return known


def _fields(body: bytes) -> dict[str, Any]:
    value = _first_json(body)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _bad_body("an object is needed")
    return _lower(value)


def _first_json(body: bytes) -> Any:
    try:
        text = body.decode("utf-8", "replace").lstrip(" \t\r\n")
        if not text:
            raise _bad_body("EOF")
        return json.JSONDecoder().raw_decode(text)[0]
    except (ValueError, RecursionError) as error:
        raise _bad_body(str(error)) from error


def _lower(fields: dict[str, Any]) -> dict[str, Any]:
    return {key.lower(): value for key, value in fields.items()}


def _text(fields: dict[str, Any], key: str, default: str) -> str:
    value = fields.get(key)
    if value is None:
        return default
    if not isinstance(value, str):
        raise _bad_body(f"{key} must be a string")
    return value


def _boolean(fields: dict[str, Any], key: str, default: bool) -> bool:
    value = fields.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise _bad_body(f"{key} must be true or false")
    return value


def _number(fields: dict[str, Any], key: str, default: float) -> float:
    value = fields.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e38:
        raise _bad_body(f"{key} must be a number")
    return float(value)


def _bad_body(reason: str) -> Refusal:
    return Refusal(f"bad request body: {reason}", 400)


def _json(status: int, value: object) -> Answer:
    return Answer(status, json.dumps(value, separators=(",", ":"), ensure_ascii=False))


def _error(refusal: Refusal) -> Answer:
    body = json.dumps({"error": refusal.message, "status": refusal.status}, separators=(",", ":"), ensure_ascii=False)
    return Answer(refusal.status, body + "\n", TEXT_TYPE)
