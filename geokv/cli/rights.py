"""`geokv rights`: bounded counters' rights of nodes, or of a datacenter, that leave."""

from __future__ import annotations

import time
from typing import Any

import click

from geokv.cli import exits
from geokv.cli.output import print_json, print_table
from geokv.errors import GeokvError

_POLL_S = 0.2


@click.group()
def rights() -> None:
    """Move the rights of bounded counters away from what leaves."""


@rights.command("drain")
@click.option("--address", multiple=True, required=True, metavar="HOST:PORT", help="A node that leaves; may be repeated.")
@click.option("--scope", type=click.Choice(["node", "dc"]), default="node", show_default=True, help="Who gets them.")
@click.option(
    "--timeout", "timeout_s", type=click.FloatRange(min=0), default=60.0, show_default=True, help="To wait, in seconds."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def drain(address: tuple[str, ...], scope: str, timeout_s: float, as_json: bool) -> int:
    """Have nodes give away all rights that they hold: to their co-owners, or with --scope dc to other datacenters.

    For a datacenter that leaves name all its nodes, and route its clients elsewhere first. Exit code 1 where rights are left or
    it is not done in time; it goes on by itself, and asked again it is one more pass.
    """
    from geokv.lab.ask import ask_all

    nodes = {one: one for one in address}
    said = ask_all(nodes, "rights_drain", {"scope": scope})
    deadline_s = time.monotonic() + timeout_s
    while _is_under_way(said) and time.monotonic() < deadline_s:
        time.sleep(_POLL_S)
        said = ask_all(nodes, "rights_drain", {"begin": False})
    failures = [one for one in said.values() if isinstance(one, GeokvError)]
    if len(failures) == len(said):
        raise failures[0]
    rows = [{"address": at, **(one if isinstance(one, dict) else {"failure": str(one)})} for at, one in said.items()]
    if as_json:
        print_json({"nodes": rows})
    else:
        columns = ("address", "is_done", "keys", "given", "rights", "left", "failure")
        print_table(columns, [[row.get(name) for name in columns] for row in rows])
    is_whole = not failures and all(row["is_done"] and not row["left"] and not row["failure"] for row in rows)
    return exits.DONE if is_whole else exits.EXPECTATION_FAILED


def _is_under_way(said: dict[str, Any]) -> bool:
    return any(isinstance(one, dict) and not one["is_done"] for one in said.values())
