"""`geokv status`: every node asked by itself, and the lag between datacenters put together from what they say.

What a node says of itself is true or older than true. A node that does not answer is shown as such, and its figures as unknown.
"""

from __future__ import annotations

from statistics import median
from typing import Any, Final

import click

from geokv.cli import exits
from geokv.cli.addresses import Place, place_options
from geokv.cli.output import print_json, print_table
from geokv.errors import GeokvError

NODES_ABREAST: Final = 3


@click.command(short_help="Show the nodes, the ring and the lag between datacenters.")
@click.option("--metrics", is_flag=True, help="All counters of all nodes instead.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@place_options
def status(metrics: bool, as_json: bool, place: Place) -> int:
    """Show the nodes, the ring and the lag between datacenters.

    "records not there" counts what one datacenter has written and another one is not known to have. "behind ms" is for
    how long, at most, a datacenter has not heard the other's last word: with nothing to ship that is up to a second, the
    time between two heartbeats, and the way there and back.

    Exit code 4 where no node answers, 1 where some do not, or refuse to serve.
    """
    from geokv.lab.ask import ask_all, ring_from

    ring = ring_from(place.addresses(), place.dc, place.timeout_s)
    addresses = {node.name: node.address for node in ring.nodes}
    said = ask_all(addresses, "metrics" if metrics else "status", timeout_s=place.timeout_s)
    if metrics:
        _show_metrics(ring, said, as_json)
        return _code(said)
    tree = _tree(ring, said)
    if as_json:
        print_json(tree)
    else:
        _show(tree)
    return _code(said)


def _code(said: dict[str, Any]) -> int:
    failed = [one for one in said.values() if isinstance(one, GeokvError) or one.get("refusing")]
    return exits.EXPECTATION_FAILED if failed else exits.DONE


def _tree(ring: Any, said: dict[str, Any]) -> dict[str, Any]:
    nodes = [_node(node, said[node.name]) for node in ring.nodes]
    whole_weight = {dc: sum(node.weight for node in ring.nodes if node.dc == dc) for dc in ring.replicas}
    for node, facts in zip(ring.nodes, nodes, strict=True):
        facts["ring_share"] = node.weight / whole_weight[node.dc] if whole_weight[node.dc] else 0.0
    return {
        "cluster": ring.cluster,
        "partitions": ring.partitions,
        "ring_version": str(ring.version),
        "answered_by": ring.answered_by,
        "datacenters": [{"dc": dc, "replicas": replicas} for dc, replicas in ring.replicas.items()],
        "nodes": nodes,
        "lag": _lag(list(ring.replicas), said),
        "names_in_conflict": _conflicts(said),
        "clocks": _clocks(list(ring.replicas), said),
    }


def _clocks(dcs: list[str], said: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """How far each node says that it is off the median of the clocks it sees, and datacenters ahead of each other.

    `ahead_ms` of `from` and `to` is by how much the clocks in `to` are ahead, as the nodes of `from` see them: the median of
    all pairs, so one wrong clock does not speak for its datacenter.
    """
    answers = [one for one in said.values() if not isinstance(one, GeokvError)]
    nodes = [
        {
            "node": one["node"],
            "dc": one["dc"],
            "off_median_ms": one.get("clock_off_median_ms"),
            "lww_stamped_while_off": one.get("lww_stamped_while_off", 0),
            "refuses_lww": one.get("refuses_lww"),
        }
        for one in answers
    ]
    pairs = []
    for origin, target in ((one, other) for one in dcs for other in dcs if one != other):
        seen = [
            peer["clock_skew_ms"]
            for one in answers
            if one["dc"] == origin
            for peer in one.get("peers", ())
            if peer["dc"] == target and peer["live"] and peer.get("clock_skew_ms") is not None
        ]
        pairs.append({"from": origin, "to": target, "ahead_ms": round(median(seen)) if seen else None})
    return {"nodes": nodes, "datacenters": pairs}


def _conflicts(said: dict[str, Any]) -> list[dict[str, str]]:
    """The namespaces that lost their name to another one of that name, as any node knows them."""
    answers = [one for one in said.values() if not isinstance(one, GeokvError)]
    found = sorted({(name, alias) for one in answers for name, alias in one["names_in_conflict"]})
    return [{"name": name, "alias": alias} for name, alias in found]


def _node(node: Any, said: Any) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "node": node.name,
        "dc": node.dc,
        "rack": node.rack,
        "weight": node.weight,
        "address": node.address,
    }
    if isinstance(said, GeokvError):
        return {**facts, "state": "unreachable", "reason": str(said), "status": None}
    log, storage = said.get("log", {}), said.get("storage", {})
    refusing = said.get("refusing") or log.get("refusing_writes") or log.get("room_reason") or storage.get("refusing") or ""
    state = "refusing" if said.get("refusing") else "read-only" if refusing else "serving"
    unserved = _unserved(storage)
    refusing = refusing or unserved or storage.get("failure") or storage.get("unreadable")
    refusing = refusing or "; ".join(storage.get("unheld", ())) or _pace(storage)
    state = "partly serving" if state == "serving" and unserved else state
    return {**facts, "state": state, "reason": refusing, "status": said}


def _unserved(storage: dict[str, Any]) -> str:
    """Which partitions a node cannot serve, and because of which damaged tables; empty where it serves all."""
    from geokv.protocol.claims import shown

    return "; ".join(
        f"cannot serve {shown(one['partitions'])} of namespace {one['namespace']}: {one['file']} is damaged at byte"
        f" {one['offset']} ({one['what']}) and in quarantine; the other replicas answer"
        for one in storage.get("quarantined") or []
        if one["partitions"]
    )


def _lag(dcs: list[str], said: dict[str, Any]) -> list[dict[str, Any]]:
    """Per pair: what `from` has that `to` is not known to have, and how far behind the nodes of `to` say they are."""
    answers = [one for one in said.values() if not isinstance(one, GeokvError)]
    rows = []
    for origin in dcs:
        for target in dcs:
            if origin == target:
                continue
            there = [one["lag"][target] for one in answers if one["dc"] == origin and target in one["lag"]]
            stale = [
                feed["staleness_ms"]
                for one in answers
                if one["dc"] == target
                for feed in one["incoming"].values()
                if feed["dc"] == origin and feed["partitions"]
            ]
            known = [value for value in stale if value is not None]
            rows.append(
                {
                    "from": origin,
                    "to": target,
                    "records": _sum(one["records"] for one in there) if there else None,
                    "bytes": _sum(one["bytes"] for one in there) if there else None,
                    "behind_ms": max(known) if known and len(known) == len(stale) else None,
                }
            )
    return rows


def _sum(values: Any) -> int | None:
    found = list(values)
    return None if any(value is None for value in found) else sum(found)


def _show(tree: dict[str, Any]) -> None:
    copies = ", ".join(f"{one['dc']} {one['replicas']}" for one in tree["datacenters"])
    click.echo(f"cluster {tree['cluster']}: {tree['partitions']} partitions, copies per datacenter: {copies}\n")
    # Two tables, so that nothing is folded in 80 columns.
    columns = ("node", "dc", "rack", "ring_share", "address", "state")
    print_table(
        ("node", "datacenter", "rack", "share", "address", "state"),
        [[f"{node[key]:.0%}" if key == "ring_share" else node[key] for key in columns] for node in tree["nodes"]],
    )
    click.echo()
    print_table(
        ("node", "up s", "cells", "calls", "tables", "log MiB", "tables MiB", "not flushed MiB", "to compact MiB"),
        [_figures(node) for node in tree["nodes"]],
    )
    reasons = [f"{node['node']}: {node['reason']}" for node in tree["nodes"] if node["reason"]]
    if reasons:
        click.echo("\n" + "\n".join(reasons))
    if tree["lag"]:
        click.echo()
        print_table(
            ("from", "to", "records not there", "bytes", "behind ms"),
            [(one["from"], one["to"], one["records"], one["bytes"], one["behind_ms"]) for one in tree["lag"]],
        )
        click.echo("behind ms: since the last word from there; at rest up to a heartbeat (a second) and the way")
    _show_clocks(tree["clocks"])
    for conflict in tree["names_in_conflict"]:
        click.echo(
            f"\ntwo namespaces were created as {conflict['name']!r}: the later one is {conflict['alias']!r} now; its keys are"
            " there, and only there"
        )


def _show_clocks(clocks: dict[str, Any]) -> None:
    columns = ("node", "off_median_ms", "lww_stamped_while_off")
    click.echo()
    print_table(
        ("clock of", "off median ms", "lww stamped while off"), [[one[name] for name in columns] for one in clocks["nodes"]]
    )
    if clocks["datacenters"]:
        click.echo()
        rows = [(one["from"], one["to"], one["ahead_ms"]) for one in clocks["datacenters"]]
        print_table(("seen from", "clocks of", "ahead ms"), rows)
    for one in clocks["nodes"]:
        if one["refuses_lww"]:
            click.echo(f"\n{one['node']} takes no lww writes: {one['refuses_lww']}")


def _pace(storage: dict[str, Any]) -> str:
    """What an operator has told the storage worker live, so that nobody forgets it."""
    if left_ms := storage.get("paused_ms_left"):
        return f"flushes and compactions are paused for {left_ms // 1000} s more"
    if rate := storage.get("bytes_per_s_max"):
        return f"flushes and compactions are slowed down to {rate} bytes/s"
    return ""


def _figures(node: dict[str, Any]) -> tuple[object, ...]:
    said = node["status"]
    if said is None:
        return (node["node"], *[None] * 8)
    cells = sum(count for _, count in said["namespaces"])
    storage = said.get("storage", {})  # a node of version 0.1 has none
    sizes = (said["log"]["bytes"], *(storage.get(name) for name in ("table_bytes", "unflushed_bytes", "debt_bytes")))
    return (node["node"], said["uptime_ms"] // 1000, cells, said["calls"], storage.get("tables"), *map(_mib, sizes))


def _mib(nbytes: int | None) -> int | None:
    return None if nbytes is None else nbytes // (1 << 20)


def _show_metrics(ring: Any, said: dict[str, Any], as_json: bool) -> None:
    """A table per datacenter, and of a large one several, so that it fits where nine nodes side by side do not."""
    found = {name: None if isinstance(one, GeokvError) else one for name, one in said.items()}
    if as_json:
        print_json({"metrics": found})
        return
    names = sorted({metric for one in found.values() if one is not None for metric in one})
    for dc in ring.replicas:
        nodes = [node.name for node in ring.nodes if node.dc == dc]
        for some in (nodes[start : start + NODES_ABREAST] for start in range(0, len(nodes), NODES_ABREAST)):
            columns = [found[name] for name in some]
            print_table((dc, *some), [(metric, *(_value(one, metric) for one in columns)) for metric in names])
            click.echo()


def _value(metrics: dict[str, Any] | None, name: str) -> object:
    """0 where the node has counted none yet; None where it does not answer."""
    return None if metrics is None else metrics.get(name, 0)
