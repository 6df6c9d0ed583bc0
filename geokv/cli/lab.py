"""`geokv lab`: several datacenters on this machine, as real processes with a WAN between them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from geokv.cli import exits
from geokv.cli.addresses import LAB_DEFAULT
from geokv.cli.output import console, print_json, print_table

_directory = click.option(
    "--directory", default=LAB_DEFAULT, show_default=True, metavar="PATH", help="Where the lab keeps everything."
)
_json = click.option("--json", "as_json", is_flag=True, help="One JSON document.")
_proxies = click.option(
    "--proxies",
    type=click.Choice(["real", "embedded"]),
    help="Which Toxiproxy: the real one, or the one inside geokv. The real one where it is on the PATH.",
)
_topology = click.option(
    "--topology", metavar="FILE", help="Datacenters, nodes and links; three datacenters of three nodes where not given."
)


@click.group()
def lab() -> None:
    """Run several datacenters on this machine."""


@lab.command("up")
@_directory
@_topology
@_proxies
@_json
def up(directory: str, topology: str | None, proxies: Any, as_json: bool) -> None:
    """Start a lab, which stays until `geokv lab down`.

    Each node is a process of its own. What is written stays in the directory, so a lab that went down comes up with
    its values.
    """
    from geokv.lab.state import LabDirectory
    from geokv.lab.supervisor import bring_up

    place = LabDirectory(directory)
    started_s = time.monotonic()
    with _progress("starting the lab", as_json):
        state = bring_up(place, topology, proxies)
    seconds = time.monotonic() - started_s
    addresses = place.addresses()
    tree = {
        "directory": str(place.path),
        "cluster": state.cluster,
        "supervisor_pid": state.supervisor_pid,
        "nodes": len(state.node_pids),
        "proxies": state.proxy_kind,
        "addresses": addresses,
        "seconds": round(seconds, 2),
    }
    if as_json:
        print_json(tree)
        return
    click.echo(f"{state.cluster}: {len(state.node_pids)} nodes are up after {seconds:.1f} s, in {place.path}")
    where = "" if directory == LAB_DEFAULT else f" --lab {directory}"
    click.echo(f"from here, through the proxies:  geokv status{where}")
    click.echo(f"from a program:                  Client({addresses[0]!r})")


@lab.command("down")
@_directory
@click.option("--wipe", is_flag=True, help="Remove what the nodes have stored, too.")
def down(directory: str, wipe: bool) -> None:
    """End a lab. That none runs is no error."""
    import shutil

    from geokv.lab.state import LabDirectory
    from geokv.lab.supervisor import bring_down

    place = LabDirectory(directory)
    was_up = bring_down(place)
    if wipe and place.nodes.is_dir():
        shutil.rmtree(place.nodes)
    click.echo("the lab is down" if was_up else f"no lab runs in {place.path}")


@lab.command("status")
@_directory
@_json
def status(directory: str, as_json: bool) -> int:
    """Show a lab's processes and links."""
    from geokv.cli.wan import link_rows, opened, show_links

    place, state, links = opened(directory)
    rows = link_rows(links)
    nodes = [_node(name, pid, place) for name, pid in state.node_pids.items()]
    if as_json:
        print_json({"directory": str(place.path), "supervisor_pid": state.supervisor_pid, "nodes": nodes, "links": rows})
    else:
        click.echo(
            f"{state.cluster} in {place.path}, up since {state.started_at}, supervisor {state.supervisor_pid}, "
            f"proxies {state.proxy_kind} at {state.proxy_host}:{state.proxy_port}\n"
        )
        shown = [(one["node"], str(one["pid"]), one["state"], one["address"]) for one in nodes]  # a pid has no commas
        print_table(("node", "process", "state", "address"), shown)
        click.echo()
        show_links(rows)
    return exits.DONE if all(node["state"] == "running" for node in nodes) else exits.EXPECTATION_FAILED


def _node(name: str, pid: int, place: Any) -> dict[str, Any]:
    return {
        "node": name,
        "pid": pid,
        "state": "running" if _is_running(pid) else "ended",
        "address": place.topology().address(name, "outside"),
    }


def _is_running(pid: int) -> bool:
    import os

    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


@lab.command("demo")
@_topology
@_proxies
@click.option("--lose", metavar="DC", help="The datacenter that is lost; the first of the topology where not given.")
@click.option("--directory", metavar="PATH", help="Keep everything there; a temporary directory where not given.")
@click.option("--seconds", type=click.FloatRange(1, 30), default=6.0, show_default=True, help="Length of each phase.")
@click.option("--rate", type=click.IntRange(1, 5000), default=60, show_default=True, help="Writes a second, per datacenter.")
@_json
def demo(
    topology: str | None, proxies: Any, lose: str | None, directory: str | None, seconds: float, rate: int, as_json: bool
) -> int:
    """The main job: three datacenters take writes, lose one of them, carry on, and become equal again.

    Clients in every datacenter write and read; one datacenter is lost, for its own clients too, and heals; then
    every replica is read. Exit code 1 where an acknowledged write was lost or the datacenters differ.
    """
    from geokv.lab.demo.run import DemoOptions, run_demo

    screen = console(to_stderr=True)
    shows = not as_json or screen.is_terminal

    def say(text: str) -> None:
        if shows:
            screen.print(text, markup=False)

    report = run_demo(DemoOptions(topology, lose, directory, seconds, rate, proxies), say)
    if as_json:
        print_json(report.as_dict())
    else:
        from geokv.lab.demo.report import print_report

        print_report(report, console())
    return exits.DONE if report.is_ok else exits.EXPECTATION_FAILED


def _progress(text: str, is_quiet: bool) -> Any:
    """A spinner on a terminal, nothing elsewhere."""
    from contextlib import nullcontext

    screen = console(to_stderr=True)
    return screen.status(text) if screen.is_terminal and not is_quiet else nullcontext()
