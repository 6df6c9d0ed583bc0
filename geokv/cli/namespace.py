"""`geokv namespace`: sets of keys with their own policy, levels and limits."""

from __future__ import annotations

from typing import Any

import click

from geokv.cli.addresses import Place, place_options
from geokv.cli.kv import LEVEL_HELP
from geokv.cli.output import print_json, print_table
from geokv.errors import NamespaceExists, NamespaceNotFound

_json = click.option("--json", "as_json", is_flag=True, help="One JSON document.")


CACHE_NOTE = (
    "engine memory: a cache. The least recently used keys are evicted, and a restarted node begins empty; what is promised of"
    " acknowledged writes, convergence, deletes and counters does not hold here. It takes policy lww only; its replicas are not"
    " compared with each other, and it neither holds up nor proves that anything is stable"
)


def _settings(command: Any) -> Any:
    """Options of both create and alter."""
    for option in (
        click.option("--ttl", type=click.FloatRange(min=0), metavar="SECONDS", help="Default time to live; 0 for none."),
        click.option("--value-bytes-max", type=click.IntRange(1), help="The largest value."),
        click.option("--key-bytes-max", type=click.IntRange(1), help="The longest key."),
        click.option("--write-level", metavar="LEVEL", help=f"Default of writes: {LEVEL_HELP}"),
        click.option("--read-level", metavar="LEVEL", help="Default of reads."),
        click.option("--memory-bytes-max", type=click.IntRange(1), help="On each node, with --engine memory."),
        click.option(
            "--dictionary/--no-dictionary",
            default=None,
            help="Compress tables with a dictionary trained on their values, where that pays: many small, similar values.",
        ),
        click.option("--interval-ms", type=click.IntRange(1), help="How often to sync, with --durability interval."),
    ):
        command = option(command)
    return command


@click.group()
def namespace() -> None:
    """Create, list, show, alter and delete namespaces."""


@namespace.command("create")
@click.argument("name")
@click.option("--policy", default="lww", show_default=True, help="How conflicts are resolved.")
@click.option("--in-dc", "dcs", multiple=True, metavar="NAME", help="A datacenter that holds it; all where not given.")
@click.option("--durability", type=click.Choice(["always", "interval"]), help="When a write counts as durable.")
@click.option(
    "--engine",
    type=click.Choice(["lsm", "lmdb", "rocksdb", "memory"]),
    help="Where nodes keep it; memory is a bounded cache.",
)
@click.option("--exist-ok", is_flag=True, help="One of this name with the same policy will do.")
@_settings
@_json
@place_options
def create(name: str, policy: str, dcs: tuple[str, ...], exist_ok: bool, as_json: bool, place: Place, **settings: Any) -> None:
    """Create namespace NAME."""
    chosen = _given(settings)
    if dcs:
        chosen["dcs"] = list(dcs)
    with place.client() as client:
        try:
            made = client.create_namespace(name, policy=policy, exist_ok=exist_ok, **chosen).settings
        except NamespaceExists as error:  # in the words of this command
            raise NamespaceExists(error.message.replace(" exist_ok", " --exist-ok"), **error.details) from error
    made = made or {"name": name}
    if made.get("engine") == "memory":
        click.echo(CACHE_NOTE, err=True)
    _show_one(made, as_json)


@namespace.command("list")
@_json
@place_options
def list_(as_json: bool, place: Place) -> None:
    """List all namespaces."""
    with place.client() as client:
        found = client.namespaces()
    if as_json:
        print_json({"namespaces": found})
        return
    columns = ("name", "policy", "datacenters", "write level", "read level", "ttl ms", "durability", "engine")
    keys = ("name", "policy", "dcs", "write_level", "read_level", "ttl_ms", "durability", "engine")
    print_table(columns, [[_shown(one.get(key)) for key in keys] for one in found])


@namespace.command("show")
@click.argument("name")
@_json
@place_options
def show(name: str, as_json: bool, place: Place) -> None:
    """Show the settings of namespace NAME."""
    with place.client() as client:
        found = _find(client.namespaces(), name)
    _show_one(found, as_json)


@namespace.command("alter")
@click.argument("name")
@_settings
@click.option("--policy", help="Another, compatible policy; what is stored stays (docs/conflicts.md, Changing the policy).")
@click.option("--link-off", "off", multiple=True, metavar="FROM>TO", help="Do not ship over this link; the log is kept.")
@click.option("--links-on", is_flag=True, help="Ship over all links again, from where it stopped.")
@_json
@place_options
def alter(name: str, off: tuple[str, ...], links_on: bool, as_json: bool, place: Place, **settings: Any) -> None:
    """Change settings of namespace NAME: those that are given.

    The links that are off are those of the last --link-off options, all of them together.
    """
    if off and links_on:
        raise click.UsageError("give --link-off or --links-on, not both")
    chosen = _given(settings)
    if off or links_on:
        chosen["links_off"] = list(off)
    if not chosen:
        flags = [option.opts[0] for option in alter.params if option.name in (*settings, "off", "links_on")]
        raise click.UsageError(f"nothing to alter: give at least one of {', '.join(flags)}")
    with place.client() as client:
        before = str(_find(client.namespaces(), name)["policy"]) if "policy" in chosen else ""
        found = client.alter_namespace(name, **chosen)
    if before and before != found["policy"]:
        click.echo(_changed_policy(name, before, found["policy"]), err=True)
    _show_one(found, as_json)


@namespace.command("delete")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@_json
@place_options
def delete(name: str, yes: bool, as_json: bool, place: Place) -> None:
    """Delete namespace NAME with all its keys, in every datacenter and for ever."""
    if not yes:
        click.confirm(f"Delete namespace {name} with all its keys, in every datacenter?", abort=True, err=True)
    with place.client() as client:
        client.delete_namespace(name)
    if as_json:
        print_json({"deleted": name})
    else:
        click.echo(f"deleted: {name}")


def _changed_policy(name: str, before: str, now: str) -> str:
    from geokv.core.cells.changed import FROM_NOW_ON

    return (
        f"warning: the policy of {name} was changed from {before} to {now}. What is stored stays and is shown as before; from"
        f" now on {FROM_NOW_ON.get(now, 'the new rule decides')}. A datacenter that is cut off goes on as {before} until it"
        f" hears of it. There is no way back to {before} unless docs/conflicts.md names one."
    )


def _given(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that were given, with levels in capitals."""
    given = {name: value for name, value in settings.items() if value is not None}
    for name in ("write_level", "read_level"):
        if name in given:
            given[name] = given[name].upper()
    return given


def _find(found: list[dict[str, Any]], name: str) -> dict[str, Any]:
    for one in found:
        if one.get("name") == name:
            return one
    known = ", ".join(str(one.get("name")) for one in found)
    raise NamespaceNotFound(f"no namespace {name!r}; there are: {known}", namespace=name)


def _show_one(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json({"namespace": found})
    else:
        print_table(("setting", "value"), [(key, _shown(value)) for key, value in found.items()])


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} {one}" for key, one in value.items())
    return "-" if value is None else str(value)
