"""`geokv status`: every node asked by itself, and the lag between datacenters put together from what they say.

What a node says of itself is true or older than true. A node that does not answer is shown as such, and its figures as unknown.
"""

from __future__ import annotations

from typing import Any

import click

from geokv.cli import exits
from geokv.cli.addresses import Place, place_options
from geokv.cli.output import print_json, print_table
from geokv.errors import GeokvError


@click.command(short_help="Show the nodes, the ring and the lag between datacenters.")
@click.option("--metrics", is_flag=True, help="All counters of all nodes instead.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@place_options
def status(metrics: bool, as_json: bool, place: Place) -> int:
    """Show the nodes, the ring and the lag between datacenters.

    Exit code 4 where no node answers, 1 where some do not, or refuse to serve.
    """
    from geokv.lab.ask import ask_all, ring_from

    ring = ring_from(place.addresses(), place.dc, place.timeout_s)
    addresses = {node.name: node.address for node in ring.nodes}
    said = ask_all(addresses, "metrics" if metrics else "status", timeout_s=place.timeout_s)
    if metrics:
        _show_metrics(said, as_json)
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
    }


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
    refusing = refusing or storage.get("failure", "")
    return {**facts, "state": state, "reason": refusing, "status": said}


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
    print_table(
        ("node", "datacenter", "rack", "share", "address", "state", "up s", "cells", "calls"),
        [_node_row(node) for node in tree["nodes"]],
    )
    click.echo()
    print_table(
        ("node", "tables", "log MiB", "tables MiB", "not flushed MiB", "compaction behind MiB"),
        [_storage_row(node) for node in tree["nodes"]],
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


def _node_row(node: dict[str, Any]) -> tuple[object, ...]:
    place = (node["node"], node["dc"], node["rack"], f"{node['ring_share']:.0%}", node["address"], node["state"])
    said = node["status"]
    if said is None:
        return (*place, None, None, None)
    cells = sum(count for _, count in said["namespaces"])
    return (*place, said["uptime_ms"] // 1000, cells, said["calls"])


def _storage_row(node: dict[str, Any]) -> tuple[object, ...]:
    said = node["status"]
    if said is None:
        return (node["node"], None, None, None, None, None)
    storage = said.get("storage", {})  # a node of version 0.1 has none
    names = ("table_bytes", "unflushed_bytes", "debt_bytes")
    return (node["node"], storage.get("tables"), _mib(said["log"]["bytes"]), *(_mib(storage.get(name)) for name in names))


def _mib(nbytes: int | None) -> int | None:
    return None if nbytes is None else nbytes // (1 << 20)


def _show_metrics(said: dict[str, Any], as_json: bool) -> None:
    found = {name: None if isinstance(one, GeokvError) else one for name, one in said.items()}
    if as_json:
        print_json({"metrics": found})
        return
    names = sorted({metric for one in found.values() if one is not None for metric in one})
    rows = [(metric, *(None if one is None else one.get(metric, 0) for one in found.values())) for metric in names]
    print_table(("metric", *found), rows)
