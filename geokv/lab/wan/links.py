"""Links: all proxies from one place to one datacenter, changed as one.

A Toxiproxy proxy has one upstream, so what people call "the link from eu-west to us-east" is a proxy for
each node of us-east and each place from which it is reached:

    from                 to its nodes    used by
    eu-west              us-east         the nodes of eu-west
    clients.eu-west      us-east         clients that live near eu-west
    clients.us-east      us-east         clients that live near us-east: their own datacenter, no latency
    outside              us-east         operators, the command line: no latency

Two disasters are told apart. *Lost*: the datacenter is gone for everybody, its own clients included, who
survive it and reach the others. *Isolated*: its links are cut with its clients inside, who still reach it,
and only it.

Latency is half the round trip in each direction. A bandwidth limit belongs to the nodes of a link and is
shared out evenly: one share for each pair of nodes, because Toxiproxy limits every connection by itself;
what one does not use is not lent to another.

Invariants: what is shown is read back from the server, never remembered, so several processes can change
one lab.

Not here: choosing addresses of nodes, and starting anything.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from geokv.core.topology import OUTSIDE, NodeSpec, Topology, clients_of
from geokv.errors import InvalidRequest, LabError
from geokv.lab.wan.proxies import STREAMS, Proxies, ProxyState, Stream, ToxicSpec

LinkCondition = Literal["up", "cut", "refused", "mixed"]
SEPARATOR: Final = "_"  # stands in no name of a node, a datacenter or a viewpoint

Row = tuple[str, str]  # viewpoint it comes from, datacenter it goes to


@dataclass(frozen=True, slots=True)
class LinkState:
    """What the server says about one link; a figure is None where it is not limited or its proxies differ."""

    from_view: str
    to_dc: str
    condition: LinkCondition
    round_trip_ms: int | None
    jitter_ms: int | None
    bandwidth_kb_s: int | None
    proxies: int


def proxy_name(from_view: str, node: str) -> str:
    """Return the name of the proxy through which `from_view` reaches `node`."""
    return f"{from_view}{SEPARATOR}{node}"


def any_free_port(from_view: str, node: NodeSpec) -> str:
    """Let a proxy listen on loopback, wherever there is room."""
    return "127.0.0.1:0"


class Links:
    """The links of one topology over the proxies of one server. Calls block; see proxies.py."""

    def __init__(self, topology: Topology, proxies: Proxies) -> None:
        self.topology = topology
        self._proxies = proxies

    def build(
        self,
        addresses: Mapping[str, str],
        listen: Callable[[str, NodeSpec], str] = any_free_port,
    ) -> Topology:
        """Make all proxies for nodes at `addresses` (node name to host:port), as the topology's links say.

        Returns the topology with the real addresses of every viewpoint, which nodes and clients are to use.
        """
        seen: dict[str, dict[str, str]] = {node.name: {} for node in self.topology.nodes}
        for from_view, to_dc in self.rows():
            for node in self.topology.datacenter(to_dc).nodes:
                toxics = self._toxics_at_start(from_view, to_dc)
                name = proxy_name(from_view, node.name)
                made = self._proxies.create(name, addresses[node.name], listen(from_view, node), toxics)
                seen[node.name][from_view] = made.listen
        return self.topology.with_addresses(addresses, seen)

    def rows(self) -> list[Row]:
        """Return every link as (from, to): from datacenters, from their clients, from outside."""
        names = self.topology.dc_names
        between = [(one, other) for one in names for other in names if one != other]
        clients = [(clients_of(one), other) for one in names for other in names]
        return [*between, *clients, *((OUTSIDE, name) for name in names)]

    def show(self) -> list[LinkState]:
        """Return every link as the server has it now."""
        states = self._proxies.states()
        return [self._read(row, states) for row in self.rows()]

    def condition(self, from_view: str, to_dc: str) -> LinkCondition:
        """Return how one link is."""
        return self._read((from_view, to_dc), self._proxies.states()).condition

    def set_latency(self, from_dc: str, to_dc: str, round_trip_ms: int, jitter_ms: int = 0, both_ways: bool = True) -> None:
        """Change the round trip (+/- jitter) of a link, of its clients too, while connections stand."""
        if not 0 <= jitter_ms <= round_trip_ms:
            raise InvalidRequest(f"jitter_ms = {jitter_ms} must be between 0 and round_trip_ms = {round_trip_ms}")
        rows = self._between(from_dc, to_dc, both_ways)
        self._set(rows, lambda row: _latency(round_trip_ms, jitter_ms))

    def set_bandwidth(self, from_dc: str, to_dc: str, kb_s: int | None, both_ways: bool = True) -> None:
        """Limit the bandwidth of a link between the nodes of two datacenters, in KB/s for all of it, or
        lift the limit.
        """
        if kb_s is not None and kb_s < 1:
            raise InvalidRequest(f"bandwidth = {kb_s} KB/s; the least is 1 (to stop a link, cut it)")
        rows = [row for row in self._between(from_dc, to_dc, both_ways) if row[0] in self.topology.dc_names]
        if kb_s is None:
            self._each(rows, lambda proxy: self._remove(proxy, [f"bandwidth_{stream}" for stream in STREAMS]))
        else:
            self._set(rows, lambda row: self._bandwidth(row, kb_s))

    def cut(self, from_dc: str, to_dc: str, both_ways: bool = True) -> None:
        """Turn a link into a black hole: connections stand, nothing comes through."""
        self._set(self._between(from_dc, to_dc, both_ways), lambda row: _black_hole())

    def refuse(self, from_dc: str, to_dc: str, both_ways: bool = True) -> None:
        """Close the connections of a link and refuse new ones."""
        self._each(self._between(from_dc, to_dc, both_ways), lambda proxy: self._enable(proxy, False))

    def heal(self, from_dc: str, to_dc: str, both_ways: bool = True) -> None:
        """Undo cut and refuse on a link; latency and bandwidth stay. Connections that a cut held are
        closed.
        """
        self._heal(self._between(from_dc, to_dc, both_ways))

    def lose_dc(self, dc: str) -> None:
        """Cut a datacenter off from everybody, its own clients included; they still reach the others."""
        self._set(self._around(dc, self._is_lost_with), lambda row: _black_hole())

    def isolate_dc(self, dc: str) -> None:
        """Cut a datacenter, with its clients inside, off from the others; operators outside still see it."""
        self._set(self._around(dc, self._is_isolated_with), lambda row: _black_hole())

    def heal_dc(self, dc: str) -> None:
        """Undo the loss or isolation of a datacenter."""
        self._heal([row for row in self.rows() if self._is_lost_with(dc, row) or self._is_isolated_with(dc, row)])

    def heal_all(self) -> None:
        """Undo every cut and refusal."""
        self._heal(self.rows())

    def sent_bytes(self) -> dict[Row, int]:
        """Return the bytes that each link has sent, both directions together (see Proxies.sent_bytes)."""
        counts = self._proxies.sent_bytes()
        return {row: sum(sum(counts.get(name, {}).values()) for name in self._names(row)) for row in self.rows()}

    # Which links belong together.

    def _between(self, from_dc: str, to_dc: str, both_ways: bool) -> list[Row]:
        """The links between two places: from a datacenter come its nodes and its clients."""
        if to_dc not in self.topology.dc_names:
            raise InvalidRequest(f'no datacenter "{to_dc}"; there are: {", ".join(self.topology.dc_names)}')
        wanted = [(from_dc, to_dc)]
        if from_dc in self.topology.dc_names:
            wanted += [(clients_of(from_dc), to_dc)]
            if both_ways and from_dc != to_dc:
                wanted += [(to_dc, from_dc), (clients_of(to_dc), from_dc)]
        found = [row for row in self.rows() if row in wanted]
        if not found:
            known = ", ".join(sorted({row[0] for row in self.rows()}))
            raise InvalidRequest(f'no link from "{from_dc}"; links come from: {known}')
        return found

    def _around(self, dc: str, belongs: Callable[[str, Row], bool]) -> list[Row]:
        if dc not in self.topology.dc_names:
            raise InvalidRequest(f'no datacenter "{dc}"; there are: {", ".join(self.topology.dc_names)}')
        return [row for row in self.rows() if belongs(dc, row)]

    @staticmethod
    def _is_lost_with(dc: str, row: Row) -> bool:
        """Everything that leads to it, and everything that its nodes send."""
        return dc in row

    @staticmethod
    def _is_isolated_with(dc: str, row: Row) -> bool:
        """What crosses its border, except from outside."""
        inside = (dc, clients_of(dc))
        return row[0] != OUTSIDE and (row[0] in inside) != (row[1] == dc)

    def _names(self, row: Row) -> list[str]:
        return [proxy_name(row[0], node.name) for node in self.topology.datacenter(row[1]).nodes]

    # What is done to each proxy.

    def _set(self, rows: Iterable[Row], toxics: Callable[[Row], list[ToxicSpec]]) -> None:
        """Add or change toxics on all proxies of the links."""
        states = self._proxies.states()
        for row in rows:
            for name in self._names(row):
                proxy = _known(states, name)
                for toxic in toxics(row):
                    if proxy.toxic(toxic.name) != toxic:
                        self._proxies.set_toxic(name, toxic, proxy)

    def _each(self, rows: Iterable[Row], change: Callable[[ProxyState], None]) -> None:
        states = self._proxies.states()
        for row in rows:
            for name in self._names(row):
                change(_known(states, name))

    def _heal(self, rows: Iterable[Row]) -> None:
        def heal(proxy: ProxyState) -> None:
            self._remove(proxy, [f"cut_{stream}" for stream in STREAMS])
            self._enable(proxy, True)

        self._each(rows, heal)

    def _remove(self, proxy: ProxyState, toxic_names: Iterable[str]) -> None:
        for name in toxic_names:
            if proxy.toxic(name) is not None:
                self._proxies.remove_toxic(proxy.name, name)

    def _enable(self, proxy: ProxyState, wanted: bool) -> None:
        if proxy.is_enabled != wanted:
            self._proxies.set_enabled(proxy.name, wanted)

    # Toxics.

    def _toxics_at_start(self, from_view: str, to_dc: str) -> list[ToxicSpec]:
        """The toxics that the topology's link asks for; own clients and outside have none."""
        names = self.topology.dc_names
        from_dc = next((name for name in names if from_view in (name, clients_of(name))), None)
        if from_dc is None or from_dc == to_dc:
            return []
        link = self.topology.link(from_dc, to_dc)
        toxics = _latency(round(link.round_trip_ms), round(link.jitter_ms))
        if link.bandwidth_kb_s is not None and from_view in names:
            toxics += self._bandwidth((from_view, to_dc), link.bandwidth_kb_s)
        return toxics

    def _bandwidth(self, row: Row, kb_s: int) -> list[ToxicSpec]:
        share = max(1, kb_s // self._pairs(row))
        return [_toxic("bandwidth", stream, "bandwidth", rate=share) for stream in STREAMS]

    def _pairs(self, row: Row) -> int:
        return len(self.topology.datacenter(row[0]).nodes) * len(self.topology.datacenter(row[1]).nodes)

    # Reading back.

    def _read(self, row: Row, states: Mapping[str, ProxyState]) -> LinkState:
        proxies = [states[name] for name in self._names(row) if name in states]
        missing = len(proxies) < len(self._names(row))
        conditions = {_condition(proxy) for proxy in proxies}
        rate = _same(_attribute(proxy, "bandwidth", "rate", min) for proxy in proxies)
        return LinkState(
            *row,
            condition=conditions.pop() if len(conditions) == 1 and not missing else "mixed",
            round_trip_ms=_same(_attribute(proxy, "latency", "latency", sum) for proxy in proxies),
            jitter_ms=_same(_attribute(proxy, "latency", "jitter", sum) for proxy in proxies),
            bandwidth_kb_s=None if rate is None else rate * self._pairs(row),
            proxies=len(proxies),
        )


def _known(states: Mapping[str, ProxyState], name: str) -> ProxyState:
    if name not in states:
        raise LabError(f'the proxy server has no proxy "{name}"; is this the server of this lab?')
    return states[name]


def _toxic(prefix: str, stream: Stream, kind: str, **attributes: int) -> ToxicSpec:
    return ToxicSpec(f"{prefix}_{stream}", kind, stream, attributes)


def _latency(round_trip_ms: int, jitter_ms: int) -> list[ToxicSpec]:
    """Half in each direction; an odd millisecond falls to the way back."""
    up = _toxic("latency", "upstream", "latency", latency=round_trip_ms // 2, jitter=jitter_ms // 2)
    back_ms, back_jitter_ms = round_trip_ms - round_trip_ms // 2, jitter_ms - jitter_ms // 2
    return [up, _toxic("latency", "downstream", "latency", latency=back_ms, jitter=back_jitter_ms)]


def _black_hole() -> list[ToxicSpec]:
    return [_toxic("cut", stream, "timeout", timeout=0) for stream in STREAMS]


def _condition(proxy: ProxyState) -> LinkCondition:
    if not proxy.is_enabled:
        return "refused"
    cut = sum(proxy.toxic(f"cut_{stream}") is not None for stream in STREAMS)
    return ("up", "mixed", "cut")[cut]


def _attribute(proxy: ProxyState, prefix: str, attribute: str, fold: Callable[[list[int]], int]) -> int | None:
    """Fold an attribute over both directions of a proxy; None where it has no such toxic."""
    toxics = [toxic for stream in STREAMS if (toxic := proxy.toxic(f"{prefix}_{stream}"))]
    return fold([toxic.attributes[attribute] for toxic in toxics]) if toxics else None


def _same(values: Iterable[int | None]) -> int | None:
    found = set(values)
    return found.pop() if len(found) == 1 else None
