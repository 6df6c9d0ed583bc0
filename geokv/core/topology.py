"""The topology of a cluster: its datacenters, their nodes, the links between them, and who reaches a node
where.

Text in, values out: reading the file and opening sockets is somebody else's work. A topology file is TOML:

    cluster = "three-dc"              # a node of another cluster is refused by this name
    partitions = 256                  # Q, a power of two, fixed for the life of the cluster

    [[datacenter]]
    name = "eu-west"
    replicas = 3                      # copies of each partition inside this datacenter

    [[datacenter.node]]
    name = "eu-west-1"                # unique in the whole cluster
    rack = "a"
    weight = 1                        # share of the ring, 1 where it is not given
    address = "127.0.0.1:7101"        # as the nodes of the same datacenter reach it
    from = { us-east = "127.0.0.1:7301", outside = "127.0.0.1:7401" }

    [[link]]                          # stands for both directions, unless the other has an entry of its own
    from = "eu-west"
    to = "us-east"
    round_trip_ms = 84
    jitter_ms = 2                     # the round trip is round_trip_ms +/- jitter_ms
    bandwidth_kb_s = 20000            # for the whole link; left out: not limited

Addresses depend on who asks, because between datacenters there may stand a proxy for each pair. A
*viewpoint* is the name of a datacenter (a node in it asks), `outside` (somebody in none of them), or
`clients.<datacenter>` (a client that lives near that datacenter but survives its loss).

    viewpoint            node in the same datacenter    node in another one
    eu-west              its address                    its from["eu-west"]
    clients.eu-west      from["clients.eu-west"], else from["outside"]
    outside              from["outside"]

Invariants:
- A node without any `from` has one address for everybody. A node with `from` names every other datacenter and
  `outside`, so that no viewpoint falls back to an address that goes round the proxies.
- Node names and addresses are unique in the cluster; every two datacenters have a link.
- `parse_topology(render_topology(t), ...) == t`.

Not here: the ring (tokens and owners), which is computed from these values, and the proxies behind the
addresses.
"""

import math
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, NoReturn

from geokv.core.ring import PARTITIONS_DEFAULT, PARTITIONS_MAX
from geokv.core.topology_lines import LineMap
from geokv.errors import TopologyError

OUTSIDE = "outside"
DATACENTERS_MAX = 64
NODES_MAX = 1_024
WEIGHT_MAX = 1_000
ROUND_TRIP_MS_MAX = 60_000
BANDWIDTH_KB_S_MAX = 100_000_000
TEXT_BYTES_MAX = 4 << 20

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,30}")
_HOST = re.compile(r"\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_NAME_RULE = "use 1 to 31 of a-z, 0-9 and -, beginning with a letter or digit"
_LINE_IN_MESSAGE = re.compile(r"\s*\(at line (\d+), column \d+\)")
_CLIENTS_PREFIX = "clients."

Path = tuple[str | int, ...]


def clients_of(dc: str) -> str:
    """Return the viewpoint of the clients that live near datacenter `dc`."""
    return _CLIENTS_PREFIX + dc


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """One node; `seen_from` holds its (viewpoint, address) pairs, sorted, and is empty where all use
    `address`.
    """

    name: str
    dc: str
    rack: str
    weight: int | float
    address: str
    seen_from: tuple[tuple[str, str], ...] = ()

    def address_from(self, viewpoint: str) -> str:
        """Return the address for `viewpoint`; KeyError where the node states none for it."""
        if not self.seen_from or viewpoint == self.dc:
            return self.address
        stated = dict(self.seen_from)
        if viewpoint.startswith(_CLIENTS_PREFIX):
            return stated.get(viewpoint, stated[OUTSIDE])
        return stated[viewpoint]


@dataclass(frozen=True, slots=True)
class Datacenter:
    """One datacenter: its nodes and how many of them hold each partition."""

    name: str
    replicas: int
    nodes: tuple[NodeSpec, ...]


@dataclass(frozen=True, slots=True)
class Link:
    """What lies between two datacenters; `bandwidth_kb_s` (1 KB is 1,000 bytes) is for the whole link, or
    None.
    """

    from_dc: str
    to_dc: str
    round_trip_ms: float
    jitter_ms: float = 0
    bandwidth_kb_s: int | None = None


@dataclass(frozen=True, slots=True)
class Topology:
    """A whole cluster. Made by `parse_topology`; values made by hand are not checked until they are
    rendered and read.
    """

    cluster: str
    partitions: int
    datacenters: tuple[Datacenter, ...]
    links: tuple[Link, ...] = ()

    @property
    def nodes(self) -> tuple[NodeSpec, ...]:
        """All nodes of all datacenters, in the order of the file."""
        return tuple(node for dc in self.datacenters for node in dc.nodes)

    @property
    def dc_names(self) -> tuple[str, ...]:
        """The names of the datacenters, in the order of the file."""
        return tuple(dc.name for dc in self.datacenters)

    def datacenter(self, name: str) -> Datacenter:
        """Return a datacenter by name; KeyError with the known names."""
        for dc in self.datacenters:
            if dc.name == name:
                return dc
        raise KeyError(f"no datacenter {name!r}; there are: {', '.join(self.dc_names)}")

    def node(self, name: str) -> NodeSpec:
        """Return a node by name; KeyError with the known names."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(f"no node {name!r}; there are: {', '.join(node.name for node in self.nodes)}")

    def link(self, from_dc: str, to_dc: str) -> Link:
        """Return the link from one datacenter to another: its own entry, else that of the other direction,
        turned.
        """
        by_pair = {(link.from_dc, link.to_dc): link for link in self.links}
        if own := by_pair.get((from_dc, to_dc)):
            return own
        if other := by_pair.get((to_dc, from_dc)):
            return replace(other, from_dc=from_dc, to_dc=to_dc)
        raise KeyError(f"no link between {from_dc!r} and {to_dc!r}")

    def viewpoints(self) -> tuple[str, ...]:
        """Every viewpoint: the datacenters, `outside`, and the clients near each datacenter."""
        return (*self.dc_names, OUTSIDE, *map(clients_of, self.dc_names))

    def address(self, node: NodeSpec | str, viewpoint: str) -> str:
        """Return where `viewpoint` reaches `node`; KeyError for an unknown node or viewpoint."""
        if viewpoint not in self.viewpoints():
            raise KeyError(f"no viewpoint {viewpoint!r}; there are: {', '.join(self.viewpoints())}")
        found = self.node(node) if isinstance(node, str) else node
        return found.address_from(viewpoint)

    def with_addresses(self, direct: Mapping[str, str], seen_from: Mapping[str, Mapping[str, str]] | None = None) -> "Topology":
        """Return this topology with the addresses of all nodes replaced: node name to address, and to
        viewpoint to address.
        """
        views = seen_from or {}

        def moved(node: NodeSpec) -> NodeSpec:
            pairs = tuple(sorted(views.get(node.name, {}).items()))
            return replace(node, address=direct[node.name], seen_from=pairs)

        return replace(
            self,
            datacenters=tuple(replace(dc, nodes=tuple(map(moved, dc.nodes))) for dc in self.datacenters),
        )

    def warnings(self) -> tuple[str, ...]:
        """Return what works but is weaker than it looks, one sentence each."""
        return tuple(
            f'datacenter "{dc.name}" has {racks} rack(s) for {dc.replicas} replicas: '
            "losing one rack takes more than one copy of some partitions"
            for dc in self.datacenters
            if (racks := len({node.rack for node in dc.nodes})) < dc.replicas
        )


def is_name(text: str) -> bool:
    """Whether a node or a datacenter may be called so."""
    return _NAME.fullmatch(text) is not None


def parse_topology(text: str, source: str = "topology") -> Topology:
    """Read a topology from TOML text; TopologyError with `source`, the line and the reason where it makes
    no sense.
    """
    if len(text.encode("utf-8", "surrogatepass")) > TEXT_BYTES_MAX:
        raise _fault(source, 1, f"the file is larger than {TEXT_BYTES_MAX} bytes; this cannot be a topology")
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise _not_toml(error, text, source) from error
    return _Reader(source, LineMap(text)).topology(document)


def render_topology(topology: Topology) -> str:
    """Write a topology as the TOML text that `parse_topology` reads back to an equal value."""
    lines = [f'cluster = "{topology.cluster}"', f"partitions = {topology.partitions}"]
    for dc in topology.datacenters:
        lines += ["", "[[datacenter]]", f'name = "{dc.name}"', f"replicas = {dc.replicas}"]
        for node in dc.nodes:
            lines += ["", *_render_node(node)]
    for link in topology.links:
        lines += ["", *_render_link(link)]
    return "\n".join(lines) + "\n"


def _render_node(node: NodeSpec) -> Iterator[str]:
    yield "[[datacenter.node]]"
    yield f'name = "{node.name}"'
    yield f'rack = "{node.rack}"'
    yield f"weight = {node.weight}"
    yield f'address = "{node.address}"'
    if node.seen_from:
        yield "from = { " + ", ".join(f'"{view}" = "{address}"' for view, address in node.seen_from) + " }"


def _render_link(link: Link) -> Iterator[str]:
    yield "[[link]]"
    yield f'from = "{link.from_dc}"'
    yield f'to = "{link.to_dc}"'
    yield f"round_trip_ms = {link.round_trip_ms}"
    yield f"jitter_ms = {link.jitter_ms}"
    if link.bandwidth_kb_s is not None:
        yield f"bandwidth_kb_s = {link.bandwidth_kb_s}"


def _not_toml(error: Exception, text: str, source: str) -> TopologyError:
    message = str(error)
    at_line = _LINE_IN_MESSAGE.search(message)
    line = int(at_line[1]) if at_line else text.count("\n") + 1
    reason = _LINE_IN_MESSAGE.sub("", message).replace("(at end of document)", "at the end of the file")
    return _fault(source, line, f"this is not TOML: {reason}")


def _fault(source: str, line: int, reason: str) -> TopologyError:
    """An error that names its place in the message and, for programs, as `.source`, `.line` and `.reason`."""
    return TopologyError(f"{source}:{line}: {reason}", source=source, line=line, reason=reason)


class _Reader:
    """Turns the parsed document into values, and every fault into a TopologyError at its line."""

    def __init__(self, source: str, lines: LineMap) -> None:
        self._source = source
        self._lines = lines
        self._line_of_node: dict[str, int] = {}
        self._owner_of_address: dict[str, str] = {}

    def topology(self, document: dict[str, Any]) -> Topology:
        self._only(document, (), {"cluster", "partitions", "datacenter", "link"})
        cluster = self._name(document, (), "cluster")
        partitions = self._partitions(document)
        datacenters = tuple(self._datacenters(document))
        names = {dc.name for dc in datacenters}
        for index, dc in enumerate(datacenters):
            self._check_views(dc, index, names)
        links = tuple(self._links(document, names))
        self._every_pair(names, links)
        return Topology(cluster, partitions, datacenters, links)

    def _partitions(self, document: dict[str, Any]) -> int:
        value = self._whole(document, (), "partitions", 1, PARTITIONS_MAX, default=PARTITIONS_DEFAULT)
        if value & (value - 1):
            self._fail(("partitions",), f"partitions = {value} is not a power of two; 256 suits most clusters")
        return value

    def _datacenters(self, document: dict[str, Any]) -> Iterator[Datacenter]:
        tables = self._tables(document, (), "datacenter", DATACENTERS_MAX)
        if not tables:
            self._fail((), "there is no [[datacenter]]; a cluster has at least one")
        seen: dict[str, int] = {}
        for index, table in enumerate(tables):
            path: Path = ("datacenter", index)
            self._only(table, path, {"name", "replicas", "node"})
            name = self._name(table, path, "name")
            if name == OUTSIDE:
                self._fail((*path, "name"), f'a datacenter cannot be called "{OUTSIDE}": that is a viewpoint')
            self._once(seen, name, (*path, "name"), "datacenter")
            nodes = tuple(self._nodes(table, path, name))
            yield Datacenter(name, self._replicas(table, path, name, nodes), nodes)

    def _replicas(self, table: dict[str, Any], path: Path, name: str, nodes: Sequence[NodeSpec]) -> int:
        replicas = self._whole(table, path, "replicas", 1, NODES_MAX)
        owners = sum(node.weight > 0 for node in nodes)
        if replicas > owners:
            has = _count(owners, "node") + ("" if owners == len(nodes) else " with a weight above 0")
            reason = f'replicas = {replicas}, but datacenter "{name}" has {has}; lower replicas or add nodes'
            self._fail((*path, "replicas"), reason)
        return replicas

    def _nodes(self, table: dict[str, Any], dc_path: Path, dc: str) -> Iterator[NodeSpec]:
        tables = self._tables(table, dc_path, "node", NODES_MAX)
        if not tables:
            self._fail(dc_path, f'datacenter "{dc}" has no [[datacenter.node]]')
        for index, node in enumerate(tables):
            path: Path = (*dc_path, "node", index)
            self._only(node, path, {"name", "rack", "weight", "address", "from"})
            name = self._name(node, path, "name")
            self._once(self._line_of_node, name, (*path, "name"), "node")
            if len(self._line_of_node) > NODES_MAX:
                self._fail(path, f"more than {NODES_MAX} nodes")
            yield NodeSpec(
                name,
                dc,
                self._name(node, path, "rack"),
                self._weight(node, path),
                self._address(node.get("address"), (*path, "address"), name),
                self._seen_from(node, path, name),
            )

    def _weight(self, node: dict[str, Any], path: Path) -> int | float:
        weight = self._number(node, path, "weight", default=1)
        if not 0 <= weight <= WEIGHT_MAX:
            self._fail((*path, "weight"), f"weight = {weight}; it must be between 0 (owns nothing) and {WEIGHT_MAX}")
        return weight

    def _seen_from(self, node: dict[str, Any], path: Path, name: str) -> tuple[tuple[str, str], ...]:
        table = node.get("from", {})
        here = (*path, "from")
        if not isinstance(table, dict):
            self._fail(here, f"from must be a table of viewpoint = address, not {_kind(table)}")
        return tuple(sorted((view, self._address(value, (*here, view), name)) for view, value in table.items()))

    def _address(self, value: object, path: Path, node: str) -> str:
        """Check an address, and that no other node has it."""
        if value is None:
            self._fail(path, f'"{path[-1]}" is missing in node "{node}"; write it as "host:port"')
        if not isinstance(value, str):
            self._fail(path, f'{path[-1]} must be text "host:port", not {_kind(value)}')
        host, _, port = value.rpartition(":")
        is_port = port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65_535
        if not is_port or not _HOST.fullmatch(host):
            self._fail(path, f'"{value}" is not an address; write host:port (port 1 to 65535), [host]:port for IPv6')
        if self._owner_of_address.setdefault(value, node) != node:
            self._fail(path, f'address "{value}" is already that of node "{self._owner_of_address[value]}"')
        return value

    def _check_views(self, dc: Datacenter, dc_index: int, names: set[str]) -> None:
        """Demand that a node with viewpoints has one for each other datacenter and for outside, and no
        unknown one.
        """
        needed = names - {dc.name} | {OUTSIDE}
        clients = {clients_of(name) for name in names}
        for index, node in enumerate(dc.nodes):
            path: Path = ("datacenter", dc_index, "node", index, "from")
            stated = {view for view, _ in node.seen_from}
            if unknown := sorted(stated - needed - clients):
                why = "uses the address itself" if unknown[0] == dc.name else "is no datacenter"
                known = ", ".join(sorted(needed | clients))
                self._fail((*path, unknown[0]), f'from: "{unknown[0]}" {why}; known here: {known}')
            missing = sorted(needed - stated) or sorted(clients - stated if clients & stated else ())
            if stated and missing:
                self._fail(
                    path,
                    f'node "{node.name}" has no address from "{missing[0]}"; name all viewpoints or none',
                )

    def _links(self, document: dict[str, Any], names: set[str]) -> Iterator[Link]:
        seen: dict[str, int] = {}
        for index, table in enumerate(self._tables(document, (), "link", DATACENTERS_MAX**2)):
            path: Path = ("link", index)
            self._only(table, path, {"from", "to", "round_trip_ms", "jitter_ms", "bandwidth_kb_s"})
            link = self._link(table, path, names)
            self._once(seen, f"{link.from_dc} -> {link.to_dc}", path, "link")
            yield link

    def _link(self, table: dict[str, Any], path: Path, names: set[str]) -> Link:
        ends = [self._name(table, path, key) for key in ("from", "to")]
        for key, end in zip(("from", "to"), ends, strict=True):
            if end not in names:
                self._fail(
                    (*path, key),
                    f'link {key} "{end}": no such datacenter; there are: {", ".join(sorted(names))}',
                )
        if ends[0] == ends[1]:
            self._fail((*path, "to"), f'a link leads to another datacenter, this one from "{ends[0]}" to itself')
        round_trip = self._milliseconds(table, path, "round_trip_ms", None)
        jitter = self._milliseconds(table, path, "jitter_ms", 0)
        if jitter > round_trip:
            self._fail((*path, "jitter_ms"), f"jitter_ms = {jitter} is more than round_trip_ms = {round_trip}")
        has_limit = "bandwidth_kb_s" in table
        rate = self._whole(table, path, "bandwidth_kb_s", 1, BANDWIDTH_KB_S_MAX) if has_limit else None
        return Link(ends[0], ends[1], round_trip, jitter, rate)

    def _milliseconds(self, table: dict[str, Any], path: Path, key: str, default: int | None) -> float:
        value = self._number(table, path, key, default)
        if not 0 <= value <= ROUND_TRIP_MS_MAX:
            self._fail((*path, key), f"{key} = {value}; it must be between 0 and {ROUND_TRIP_MS_MAX}")
        return value

    def _every_pair(self, names: Iterable[str], links: Iterable[Link]) -> None:
        linked = {frozenset((link.from_dc, link.to_dc)) for link in links}
        for one, other in combinations(sorted(names), 2):
            if frozenset((one, other)) not in linked:
                self._fail(("link",), f'no [[link]] between "{one}" and "{other}"; every two datacenters need one')

    # What every value goes through.

    def _fail(self, path: Path, reason: str) -> NoReturn:
        raise _fault(self._source, self._lines.line(path), reason)

    def _only(self, table: dict[str, Any], path: Path, known: set[str]) -> None:
        for key in table:
            if key not in known:
                where = "at the top" if not path else f"in [[{'.'.join(p for p in path if isinstance(p, str))}]]"
                self._fail((*path, key), f'unknown key "{key}" {where}; known: {", ".join(sorted(known))}')

    def _required(self, table: dict[str, Any], path: Path, key: str) -> Any:
        if key not in table:
            self._fail(path, f'"{key}" is missing')
        return table[key]

    def _name(self, table: dict[str, Any], path: Path, key: str) -> str:
        value = self._required(table, path, key)
        if not isinstance(value, str):
            self._fail((*path, key), f"{key} must be text, not {_kind(value)}")
        if not is_name(value):
            self._fail((*path, key), f'{key} = "{value[:60]}" is not a name; {_NAME_RULE}')
        return str(value)

    def _whole(
        self,
        table: dict[str, Any],
        path: Path,
        key: str,
        lowest: int,
        highest: int,
        default: int | None = None,
    ) -> int:
        value = self._required(table, path, key) if default is None else table.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool):
            self._fail((*path, key), f"{key} must be a whole number, not {_kind(value)}")
        if not lowest <= value <= highest:
            self._fail((*path, key), f"{key} = {value}; it must be between {lowest} and {highest}")
        return int(value)

    def _number(self, table: dict[str, Any], path: Path, key: str, default: int | None) -> int | float:
        value = self._required(table, path, key) if default is None else table.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self._fail((*path, key), f"{key} must be a number, not {_kind(value)}")
        if not math.isfinite(value):
            self._fail((*path, key), f"{key} = {value} is not a finite number")
        return value

    def _tables(self, table: dict[str, Any], path: Path, key: str, at_most: int) -> list[dict[str, Any]]:
        value = table.get(key, [])
        here = (*path, key)
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            name = ".".join(part for part in here if isinstance(part, str))
            self._fail(here, f"{key} must be written as [[{name}]], once for each")
        if len(value) > at_most:
            self._fail(here, f"{len(value)} times [[{key}]]; at most {at_most}")
        return list(value)

    def _once(self, seen: dict[str, int], name: str, path: Path, what: str) -> None:
        if name in seen:
            self._fail(path, f'{what} "{name}" stands twice, first in line {seen[name]}')
        seen[name] = self._lines.line(path)


def _kind(value: object) -> str:
    kinds = {
        bool: "true/false",
        str: "text",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "a table",
    }
    return kinds.get(type(value), type(value).__name__)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
