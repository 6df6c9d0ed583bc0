"""`geokv wan`: the links of a lab's WAN, shown and changed while everything runs."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from geokv.cli.addresses import COMPOSE, LAB_DEFAULT, LAB_HELP
from geokv.cli.output import print_json, print_table
from geokv.errors import LabNotFound

if TYPE_CHECKING:
    from geokv.lab.state import LabDirectory, LabState
    from geokv.lab.wan.links import Links

_lab = click.option(
    "--lab", "directory", default=LAB_DEFAULT, show_default=True, metavar="DIRECTORY", help=LAB_HELP.format("The lab")
)
_one_way = click.option("--one-way", is_flag=True, help="Only from the first to the second.")


def opened(directory: str) -> tuple[LabDirectory, LabState, Links]:
    """The lab that runs in a directory. Raises LabNotFound where none does."""
    from geokv.lab.state import LabDirectory
    from geokv.lab.wan.links import Links
    from geokv.lab.wan.proxies import Proxies

    place = LabDirectory(directory)
    state = place.read()
    if state is None:
        raise LabNotFound(f"no lab runs in {place.path}; start one with `geokv lab up`, or name its place")
    return place, state, Links(place.topology(), Proxies(state.proxy_host, state.proxy_port))


def found(directory: str) -> Links:
    """The links of a lab, or of the containers. Raises LabError."""
    if directory != COMPOSE:
        return opened(directory)[2]
    from geokv.lab.compose import host_links

    return host_links()


def link_rows(links: Links) -> list[dict[str, Any]]:
    return [asdict(link) for link in links.show()]


def show_links(rows: list[dict[str, Any]]) -> None:
    print_table(
        ("from", "to", "link", "round trip ms", "jitter ms", "KB/s"),
        [
            (row["from_view"], row["to_dc"], row["condition"], row["round_trip_ms"], row["jitter_ms"], row["bandwidth_kb_s"])
            for row in rows
        ],
    )


@click.group("wan")
def wan_group() -> None:
    """Show and change the links between the datacenters of a lab.

    A link is everything between two datacenters, of nodes and of clients. Changes hold at once, in both directions
    unless --one-way is given.
    """


@wan_group.command("show")
@_lab
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def show(directory: str, as_json: bool) -> None:
    """Show every link as the proxies have it now."""
    rows = link_rows(found(directory))
    if as_json:
        print_json({"links": rows})
    else:
        show_links(rows)


@wan_group.group("set")
def set_() -> None:
    """Change a link's latency or bandwidth."""


@set_.command("latency")
@click.argument("from_dc")
@click.argument("to_dc")
@click.argument("round_trip_ms", type=click.IntRange(0, 60_000))
@click.option("--jitter", type=click.IntRange(0, 60_000), default=0, metavar="MS", help="The round trip varies by so much.")
@_one_way
@_lab
def latency(from_dc: str, to_dc: str, round_trip_ms: int, jitter: int, one_way: bool, directory: str) -> None:
    """Give the link between FROM_DC and TO_DC a round trip of ROUND_TRIP_MS."""
    links = _links(directory, from_dc, to_dc)
    if jitter > round_trip_ms:
        raise click.BadParameter(f"{jitter} is more than the round trip of {round_trip_ms}", param_hint="--jitter")
    links.set_latency(from_dc, to_dc, round_trip_ms, jitter, not one_way)
    click.echo(f"{_pair(from_dc, to_dc, one_way)}: {round_trip_ms} ms round trip")


@set_.command("bandwidth")
@click.argument("from_dc")
@click.argument("to_dc")
@click.argument("kb_s", metavar="KB_S|none")
@_one_way
@_lab
def bandwidth(from_dc: str, to_dc: str, kb_s: str, one_way: bool, directory: str) -> None:
    """Limit the nodes' link between FROM_DC and TO_DC to KB_S kilobytes a second, or lift the limit with "none".

    The connections between their nodes share it in equal whole kilobytes, rounded down.
    """
    links = _links(directory, from_dc, to_dc)
    if kb_s != "none" and not (kb_s.isdecimal() and 1 <= int(kb_s) <= 100_000_000):
        raise click.BadParameter(f"{kb_s!r}: a whole number from 1 to 100000000, or none", param_hint="KB_S")
    links.set_bandwidth(from_dc, to_dc, None if kb_s == "none" else int(kb_s), not one_way)
    click.echo(f"{_pair(from_dc, to_dc, one_way)}: {'no limit' if kb_s == 'none' else f'{kb_s} KB/s'}")


@wan_group.command("cut")
@click.argument("from_dc")
@click.argument("to_dc")
@click.option("--refuse", is_flag=True, help="Refuse connections, instead of swallowing everything.")
@_one_way
@_lab
def cut(from_dc: str, to_dc: str, refuse: bool, one_way: bool, directory: str) -> None:
    """Cut the link between FROM_DC and TO_DC: a black hole, as when a cable is cut."""
    links = _links(directory, from_dc, to_dc)
    (links.refuse if refuse else links.cut)(from_dc, to_dc, not one_way)
    click.echo(f"{_pair(from_dc, to_dc, one_way)}: {'refused' if refuse else 'cut'}")


@wan_group.command("heal")
@click.argument("from_dc", required=False)
@click.argument("to_dc", required=False)
@_lab
def heal(from_dc: str | None, to_dc: str | None, directory: str) -> None:
    """Undo cuts: of one link, of everything around one datacenter, or, without arguments, of all."""
    names = [name for name in (from_dc, to_dc) if name is not None]
    links = _links(directory, *names)
    if from_dc is None:
        links.heal_all()
    elif to_dc is None:
        links.heal_dc(from_dc)
    else:
        links.heal(from_dc, to_dc)
    click.echo(f"healed: {' and '.join(names) or 'everything'}")


@wan_group.command("lose-dc")
@click.argument("dc")
@_lab
def lose_dc(dc: str, directory: str) -> None:
    """Lose DC for everybody, also for its own clients, who go on in other datacenters."""
    _links(directory, dc).lose_dc(dc)
    click.echo(f"{dc} is lost; `geokv wan heal {dc}` brings it back")


@wan_group.command("isolate-dc")
@click.argument("dc")
@_lab
def isolate_dc(dc: str, directory: str) -> None:
    """Isolate DC, with its clients inside: they reach it, and only it."""
    _links(directory, dc).isolate_dc(dc)
    click.echo(f"{dc} is isolated; `geokv wan heal {dc}` brings it back")


def _links(directory: str, *dcs: str) -> Links:
    """The links, after a check of the names."""
    links = found(directory)
    known = links.topology.dc_names
    for dc in dcs:
        if dc not in known:
            raise click.BadParameter(f"no datacenter {dc!r}; there are: {', '.join(known)}", param_hint="DC")
    if len(dcs) == 2 and dcs[0] == dcs[1]:
        raise click.BadParameter(f"a link leads to another datacenter, not from {dcs[0]} to itself", param_hint="TO_DC")
    return links


def _pair(from_dc: str, to_dc: str, one_way: bool) -> str:
    return f"{from_dc} {'->' if one_way else '<->'} {to_dc}"
