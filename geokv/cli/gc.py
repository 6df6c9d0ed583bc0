"""`geokv gc`: deleted and expired keys on their way out, and who holds them up.

Every node is asked by itself: each keeps its own copies, and collects them by itself once all agree.
"""

from __future__ import annotations

from typing import Any

import click

from geokv.cli import exits
from geokv.cli.addresses import Place, place_options
from geokv.cli.kv import option_json
from geokv.cli.output import print_json, print_table
from geokv.errors import GeokvError, NamespaceNotFound

_SUMMED = ("held", "tombstones", "with_deadline", "in_memory", "collected")


@click.group()
def gc() -> None:
    """Show what waits to be collected, and who holds it up."""


@gc.command("status")
@click.option("--namespace", metavar="NAME", help="This one alone.")
@option_json
@place_options
def status(namespace: str | None, as_json: bool, place: Place) -> int:
    """Show how many tombstones and expired cells are held, since when, and who keeps them from being collected.

    "held" counts copies: each replica keeps its own. "oldest" is since when, at most: "-" where nothing waits, or it is not
    known of all that does. Exit code 4 where no node answers, 1 where some do not.
    """
    from geokv.lab.ask import ask_all, ring_from

    ring = ring_from(place.addresses(), place.dc, place.timeout_s)
    arguments = {"namespace": namespace} if namespace is not None else None
    said = ask_all({node.name: node.address for node in ring.nodes}, "gc", arguments, timeout_s=place.timeout_s)
    answers = [one for one in said.values() if not isinstance(one, GeokvError)]
    if not answers:
        unknown = next((one for one in said.values() if isinstance(one, NamespaceNotFound)), None)
        raise unknown or next(one for one in said.values() if isinstance(one, GeokvError))
    tree = {
        "namespaces": gathered(answers),
        "nodes": answers,
        "silent": sorted(name for name, one in said.items() if isinstance(one, GeokvError)),
    }
    if as_json:
        print_json(tree)
    else:
        _show(tree)
    return exits.EXPECTATION_FAILED if tree["silent"] else exits.DONE


def gathered(answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per namespace, what all nodes said of it."""
    found: dict[str, dict[str, Any]] = {}
    for answer in answers:
        for one in answer["namespaces"]:
            row = found.setdefault(
                one["namespace"],
                {"namespace": one["namespace"], "policy": one["policy"]}
                | dict.fromkeys(_SUMMED, 0)
                | {"is_estimate": False, "oldest_ms": None, "oldest_age_ms": None, "oldest_is_known": True, "waits_for": []},
            )
            for name in _SUMMED:
                row[name] += one[name]
            row["is_estimate"] |= one["in_memory_is_estimate"]
            row["oldest_is_known"] &= one["oldest_is_known"]
            if one["oldest_ms"] is not None and (row["oldest_ms"] is None or one["oldest_ms"] < row["oldest_ms"]):
                row["oldest_ms"], row["oldest_age_ms"] = one["oldest_ms"], one["oldest_age_ms"]
            row["waits_for"] = _joined(row["waits_for"], one["waits_for"], answer["node"])
    for row in found.values():
        if not row["oldest_is_known"]:  # what one node cannot date may be the oldest
            row["oldest_ms"] = row["oldest_age_ms"] = None
    return [found[name] for name in sorted(found)]


def _joined(waits: list[dict[str, Any]], more: list[dict[str, Any]], by: str) -> list[dict[str, Any]]:
    """Whom the nodes wait for, each once, with the longest time, and who says so."""
    known = {(one["node"], one["reason"]): one for one in waits}
    for one in more:
        held = known.setdefault((one["node"], one["reason"]), one | {"said_by": []})
        held["since_ms"] = max(held["since_ms"], one["since_ms"])
        held["partitions"] = max(held["partitions"], one["partitions"])
        held["said_by"] = [*held["said_by"], by]
    return list(known.values())


def _show(tree: dict[str, Any]) -> None:
    print_table(
        ("namespace", "policy", "held", "with deadline", "in memory", "oldest s", "collected"),
        [
            (
                one["namespace"],
                one["policy"],
                one["held"],
                one["with_deadline"],
                f"~{one['in_memory']}" if one["is_estimate"] else one["in_memory"],
                None if one["oldest_age_ms"] is None else one["oldest_age_ms"] // 1000,
                one["collected"],
            )
            for one in tree["namespaces"]
        ],
    )
    waits = [(one["namespace"], wait) for one in tree["namespaces"] for wait in one["waits_for"]]
    if waits:
        click.echo()
        print_table(
            ("namespace", "waits for", "datacenter", "because", "for s", "partitions"),
            [
                (name, wait["node"], wait["dc"], wait["reason"], wait["since_ms"] // 1000, wait["partitions"])
                for name, wait in waits
            ],
        )
    if tree["silent"]:
        click.echo(f"\nnot asked: {', '.join(tree['silent'])} did not answer")
