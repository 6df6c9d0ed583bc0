"""`geokv backup`: backups of a whole cluster, made while it runs; verified and restored without it."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from geokv.cli import exits
from geokv.cli.addresses import Place, place_options
from geokv.cli.keys import keys_option, read_ring
from geokv.cli.output import print_json, print_table

AS_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON document.")
FOLDER = click.argument("backup", type=click.Path(path_type=Path), metavar="REPOSITORY/NAME")


@click.group(short_help="Back a whole cluster up while it runs; verify and restore.")
def backup() -> None:
    """Back a whole cluster up while it runs, and restore it into empty directories.

    A backup is a folder, REPOSITORY/NAME. Backups in one repository share what did not change between them.
    """


@backup.command("create")
@FOLDER
@click.option(
    "--only", multiple=True, metavar="NODE", help="Only this node; may be repeated. Such a backup cannot be restored."
)
@keys_option
@AS_JSON
@place_options
def create(backup: Path, only: tuple[str, ...], as_json: bool, place: Place, key_file: Path | None, key_command: str) -> int:
    """Make a backup of all nodes at one cut. Run it again after it was broken off: it goes on.

    What is encrypted stays so, and comes without keys; with them it is looked into, too.
    """
    from geokv.backup.create import create as create_backup

    ring = read_ring(key_file, key_command)
    made, moved = create_backup(place.addresses(), backup, _reporter(as_json), place.dc, only, ring)
    if as_json:
        sizes = {
            "fetched_files": moved.fetched_files,
            "fetched_bytes": moved.fetched_bytes,
            "shared_files": moved.shared_files,
            "shared_bytes": moved.shared_bytes,
        }
        print_json({"backup": str(backup), "cut": made.cut, "nodes": sorted(made.files), "missing": made.missing, **sizes})
    else:
        seconds = (made.done_ms - made.begun_ms) / 1000
        click.echo(
            f"{backup}: {len(made.files)} nodes, {made.nbytes} bytes ({moved.fetched_bytes} fetched,"
            f" {moved.shared_bytes} shared with earlier backups) in {seconds:.1f} s"
        )
    return exits.DONE


@backup.command("list")
@click.argument("repository", type=click.Path(path_type=Path))
@AS_JSON
def list_backups(repository: Path, as_json: bool) -> int:
    """Show the backups in a repository, oldest first."""
    from geokv.backup.form import Backup
    from geokv.backup.repository import backups

    trees: list[dict[str, Any]] = []
    for folder, found in backups(repository):
        if isinstance(found, Backup):
            trees.append(
                {
                    "name": folder.name,
                    "when": datetime.fromtimestamp(found.begun_ms / 1000, UTC).isoformat(timespec="seconds"),
                    "cluster": found.cluster,
                    "nodes": len(found.files),
                    "missing": found.missing,
                    "bytes": found.nbytes,
                    "cut": found.cut,
                    "error": "",
                }
            )
        else:
            trees.append({"name": folder.name, "error": str(found)})
    if as_json:
        print_json({"repository": str(repository), "backups": trees})
    else:
        columns = ("name", "when", "cluster", "nodes", "bytes", "error")
        print_table(columns, [tuple(tree.get(name, "") for name in columns) for tree in trees])
    return exits.DONE


@backup.command("verify")
@FOLDER
@keys_option
@AS_JSON
def verify(backup: Path, as_json: bool, key_file: Path | None, key_command: str) -> int:
    """Read and check every byte, without a node. Exit code 1, with what is wrong, where it is not whole.

    What is encrypted is compared with its SHA-256 where its keys are not given; with them its content is checked, too.
    """
    from geokv.backup.repository import read
    from geokv.backup.verify import unread
    from geokv.backup.verify import verify as verify_backup

    ring = read_ring(key_file, key_command)
    made = read(backup)
    wrong = list(verify_backup(backup, made, ring=ring))
    closed = {} if ring else unread(backup, made)
    if as_json:
        faults = [one._asdict() for one in wrong]
        print_json({"backup": str(backup), "is_whole": not wrong, "wrong": faults, "contents_unchecked": closed})
    else:
        verdict = f"{len(wrong)} faults" if wrong else "whole"
        click.echo(f"{backup}: {len(made.files)} nodes, {sum(map(len, made.files.values()))} files: {verdict}")
        for one in wrong:
            click.echo(f"  {backup / one.node / one.path}: {one.what}")
        for node, ids in closed.items():
            click.echo(
                f"  {node}: encrypted with key {', '.join(ids)}, which is not given: every byte was compared with its SHA-256,"
                " the contents were not checked; --encryption-key-file does that"
            )
    return exits.EXPECTATION_FAILED if wrong else exits.DONE


@backup.command("remove")
@FOLDER
def remove(backup: Path) -> int:
    """Remove a backup. What others share with it stays."""
    from geokv.backup.repository import remove as remove_backup

    remove_backup(backup)
    click.echo(f"{backup}: removed")
    return exits.DONE


@backup.command("restore")
@FOLDER
@click.option(
    "--directory",
    type=click.Path(path_type=Path),
    required=True,
    help="With --all the folder of all nodes, else the node's own.",
)
@click.option("--all", "is_all", is_flag=True, help="All nodes, each into DIRECTORY/NODE.")
@click.option("--node", "node", metavar="NODE", help="This node, into DIRECTORY itself.")
@click.option(
    "--generation",
    metavar="WORD",
    help="Sets the restored cluster apart from the former one. With --node the same word for each of its nodes;"
    " with --all drawn where it is not given.",
)
@click.option("--topology", type=click.Path(path_type=Path), help="Check that this topology has the ring of the backup.")
@keys_option
@AS_JSON
def restore(
    backup: Path,
    directory: Path,
    is_all: bool,
    node: str | None,
    generation: str | None,
    topology: Path | None,
    as_json: bool,
    key_file: Path | None,
    key_command: str,
) -> int:
    """Restore into empty directories, as a new cluster of the same name that the former one cannot talk to.

    Where nodes are encrypted the keys of all of them are given, in one file.
    """
    from geokv.backup.repository import read
    from geokv.backup.restore import restore as restore_backup
    from geokv.lab.lab import read_topology

    if is_all == (node is not None):
        raise click.UsageError("give --all, or --node NODE")
    if node is not None and generation is None:
        raise click.UsageError(
            "--node needs --generation WORD: choose a word for this restore, and give the same one for each node of the cluster"
        )
    chosen = generation or f"{datetime.now(UTC):%Y-%m-%d}-{secrets.token_hex(4)}"
    targets = {name: directory / name for name in read(backup).files} if node is None else {node: directory}
    parsed = None if topology is None else read_topology(topology)
    made = restore_backup(backup, targets, chosen, _reporter(as_json), parsed, read_ring(key_file, key_command))
    if as_json:
        nodes = {name: str(path) for name, path in targets.items()}
        print_json({"cluster": made.cluster, "generation": chosen, "cut": made.cut, "nodes": nodes})
    else:
        click.echo(
            f"cluster {made.cluster}, generation {chosen}: {len(targets)} nodes restored. Start them all with `geokv serve`;"
            " what is left of the former cluster cannot talk to them"
        )
    return exits.DONE


def _reporter(as_json: bool) -> Callable[[str], None]:
    """Progress is for people, and goes where it is not taken for the result."""
    return (lambda text: None) if as_json else (lambda text: click.echo(text, err=True))
