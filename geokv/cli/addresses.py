"""Which nodes a command talks to: --node, else GEOKV_NODES, else the lab that runs in this directory.

Not here: anything about an address that answers or not; that is the client's.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from geokv.errors import ConfigurationError, LabNotFound

if TYPE_CHECKING:
    from geokv.client import Client

LAB_DEFAULT = ".geokv-lab"
COMPOSE = "compose"
LAB_HELP = '{}; "compose": the containers of docker-compose.geo.yml.'


@dataclass(frozen=True, slots=True)
class Place:
    """Where a command was told to go."""

    nodes: tuple[str, ...]
    dc: str
    failover: tuple[str, ...]
    timeout_s: float
    lab: str

    def addresses(self) -> list[str]:
        """The addresses to begin with. Raises ConfigurationError where none are named, LabNotFound where the
        lab that was named does not run.
        """
        if self.nodes:
            return [part for text in self.nodes for part in text.split(",") if part]
        if named := os.environ.get("GEOKV_NODES", ""):
            return [part.strip() for part in named.split(",") if part.strip()]
        if self.lab == COMPOSE:
            from geokv.lab.compose import host_addresses

            return host_addresses(self.dc)
        from geokv.lab.state import LabDirectory

        directory = LabDirectory(self.lab)
        if directory.read() is not None:
            return directory.addresses(self.dc)
        if self.lab != LAB_DEFAULT:
            raise LabNotFound(f"no lab runs in {directory.path}; start one with `geokv lab up --directory {self.lab}`")
        raise ConfigurationError(
            f"which cluster? give --node HOST:PORT or GEOKV_NODES, or start a lab (`geokv lab up`); none runs in {self.lab}"
        )

    def client(self) -> Client:
        """A client, to be used in a `with` block."""
        from geokv.client import Client

        return Client(self.addresses(), dc=self.dc, failover=self.failover, timeout=self.timeout_s)


def place_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that say where to go; it gets one `place`."""

    def with_place(
        *arguments: Any, node: tuple[str, ...], dc: str, failover: tuple[str, ...], timeout: float, lab: str, **rest: Any
    ) -> Any:
        return command(*arguments, place=Place(node, dc, failover, timeout, lab), **rest)

    with_place.__name__ = command.__name__
    with_place.__doc__ = command.__doc__
    with_place.__click_params__ = list(getattr(command, "__click_params__", []))  # type: ignore[attr-defined]
    options = (
        click.option("--node", multiple=True, metavar="HOST:PORT", help="A node to begin with; may be repeated. [GEOKV_NODES]"),
        click.option("--dc", default="", metavar="NAME", help="The datacenter to use first."),
        click.option("--failover", multiple=True, metavar="NAME", help="Datacenters to use while that one cannot be."),
        click.option(
            "--timeout",
            type=click.FloatRange(min=0.001, max=300),
            default=5.0,
            show_default=True,
            metavar="SECONDS",
            help="For the whole call with its retries.",
        ),
        click.option(
            "--lab", default=LAB_DEFAULT, show_default=True, metavar="DIRECTORY", help=LAB_HELP.format("A running lab")
        ),
    )
    for option in reversed(options):
        with_place = option(with_place)
    return with_place
