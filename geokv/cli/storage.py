"""`geokv storage`: the folder of a node that is stopped, the storage of one that runs, and keys.

stopped      verify, inspect, dump, flush, compact DIRECTORY
running      flush, compact, pause, resume, throttle --address HOST:PORT
keys         new-key; keys, rotate-keys of nodes that run
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from geokv.cli import exits
from geokv.cli.addresses import Place, place_options
from geokv.cli.keys import keys_option, read_ring
from geokv.cli.output import plain, print_json, print_table, text_or_base64
from geokv.core.limits import PAUSE_MS_MAX
from geokv.errors import ConfigurationError, GeokvError, RecordError, StorageError

if TYPE_CHECKING:
    from geokv.storage.disk import Disk
    from geokv.storage.wal_verify import Damage

DIRECTORY = click.argument("directory", type=click.Path(path_type=Path))
MAYBE_DIRECTORY = click.argument("directory", type=click.Path(path_type=Path), required=False)
LONG_S = 300.0  # for what is answered when it is done
AS_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON document.")
ADDRESS = click.option("--address", multiple=True, metavar="HOST:PORT", help="A node that runs; may be repeated.")


@click.group(short_help="Verify, inspect, compact a stopped node's folder; pace a running node's.")
def storage() -> None:
    """Look into the folder of a node that is stopped, and compact it; pause, slow down, flush and compact one that runs;
    keys of nodes that run, and new ones.

    DIRECTORY is what `geokv serve` was given, or a folder with several of these. Where it is encrypted its keys are given as
    `geokv serve` was given them.
    """


def _ask_each(address: tuple[str, ...], verb: str, arguments: dict[str, Any], said: str, timeout_s: float = 10.0) -> int:
    """Ask the nodes at these addresses, and say for each what came of it; `said` may name what stands in the answer."""
    from geokv.lab.ask import ask_all

    if not address:
        raise click.UsageError("which node? give --address HOST:PORT")
    failures: list[GeokvError] = []
    for at, answer in ask_all({one: one for one in address}, verb, arguments, timeout_s).items():
        if isinstance(answer, GeokvError):
            click.echo(f"{at}: {answer}", err=True)
            failures.append(answer)
        else:
            click.echo(f"{answer['node']}: {said.format(**answer)}")
    return exits.code_of(failures[0]) if failures else exits.DONE


@storage.command("pause")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.001, max=PAUSE_MS_MAX / 1000),
    default=300.0,
    show_default=True,
    help="For so long; then it goes on by itself.",
)
@ADDRESS
def pause(seconds: float, address: tuple[str, ...]) -> int:
    """Let flushes and compactions of a running node wait. Writes go on, until too much is in memory only."""
    arguments = {"duration_ms": max(1, round(seconds * 1000))}
    return _ask_each(address, "storage_pause", arguments, "flushes and compactions wait for {paused_ms_left} ms")


@storage.command("resume")
@ADDRESS
def resume(address: tuple[str, ...]) -> int:
    """End a pause."""
    return _ask_each(address, "storage_resume", {}, "flushes and compactions go on")


@storage.command("throttle")
@click.argument("bytes_per_s", type=click.IntRange(min=0))
@ADDRESS
def throttle(bytes_per_s: int, address: tuple[str, ...]) -> int:
    """Let flushes and compactions write at most BYTES_PER_S, at once and until the node's next start. 0: as configured."""
    said = f"at most {bytes_per_s} bytes per second" if bytes_per_s else "as fast as --storage-bytes-per-s says"
    return _ask_each(address, "storage_throttle", {"bytes_per_s": bytes_per_s}, said)


@storage.command("verify")
@DIRECTORY
@keys_option
@AS_JSON
def verify(directory: Path, as_json: bool, key_file: Path | None, key_command: str) -> int:
    """Read and check all that tables, trees and log hold. Exit code 1, with file and offset, where something is damaged."""
    from geokv.storage import offline

    found = []
    ring = read_ring(key_file, key_command)
    for folder in offline.node_folders(directory):
        with offline.locked(folder, ring) as disk:
            checked = offline.verify(disk, folder.name)
            found.append((folder, checked._replace(damage=[*_claim_damage(disk, folder), *checked.damage])))
    is_clean = not any(one.damage for _, one in found)
    if as_json:
        nodes = [
            {
                "node": one.node,
                "directory": str(folder),
                "tables": one.tables,
                "trees": one.trees,
                "segments": one.segments,
                "damage": [
                    {"path": damage.path, "file": str(folder / damage.path), "offset": damage.offset, "what": damage.what}
                    for damage in one.damage
                ],
            }
            for folder, one in found
        ]
        print_json({"directory": str(directory), "is_clean": is_clean, "nodes": nodes})
    else:
        for folder, one in found:
            verdict = f"{len(one.damage)} damaged" if one.damage else "clean"
            click.echo(f"{folder}: {one.tables} tables, {one.trees} trees, {one.segments} segments of the log: {verdict}")
            for damage in one.damage:
                click.echo(f"  {folder / damage.path} offset {damage.offset}: {damage.what}")
    return exits.DONE if is_clean else exits.EXPECTATION_FAILED


def _is_in_backup(folder: Path) -> bool:
    return (folder.parent / "backup.json").exists()


def _claim_damage(disk: Disk, folder: Path) -> list[Damage]:
    """What is wrong with the file that says whose folder this is; in a backup there is none."""
    from geokv.server.identity import FILE, demand_whole
    from geokv.storage.wal_verify import Damage

    try:
        if not _is_in_backup(folder):
            demand_whole(disk)
    except StorageError as error:
        return [Damage(FILE, 0, str(error))]
    return []


@storage.command("inspect")
@DIRECTORY
@keys_option
@AS_JSON
def inspect(directory: Path, as_json: bool, key_file: Path | None, key_command: str) -> int:
    """Show which tables, trees and segments there are, and what stands in them, in figures."""
    from geokv.storage import offline

    trees = []
    ring = read_ring(key_file, key_command)
    for folder in offline.node_folders(directory):
        with offline.locked(folder, ring) as disk:
            trees.append(offline.inspect(disk, folder.name))
    if as_json:
        print_json({"nodes": [_plain(tree) for tree in trees]})
        return exits.DONE
    for tree in trees:
        position = tree["position"]
        keys = [(one["id"] or "plain", "yes" if one["is_active"] else "", *_counts(one["files"])) for one in tree["keys"]]
        click.echo(f"{tree['node']}: recovery begins at byte {position['offset']} of segment {position['segment']}\n")
        print_table(("key", "for new files", "tables", "segments", "other files"), keys)
        click.echo()
        columns = ("path", "key_id", "level", "pairs", "partials", "tombstones", "bytes")
        rows = [(space["id"], *(table[name] for name in columns)) for space in tree["namespaces"] for table in space["tables"]]
        print_table(("namespace", *columns), rows)
        if tree["trees"]:
            click.echo()
            tree_columns = ("namespace", "path", "pairs", "bytes")
            print_table(tree_columns, [tuple(one[name] for name in tree_columns) for one in tree["trees"]])
        for one in tree["quarantined"]:
            click.echo(f"in quarantine: {one['path']} of namespace {one['namespace']}, byte {one['offset']}: {one['what']}")
        click.echo()
        print_table(tuple(tree["segments"][0]) if tree["segments"] else (), [tuple(one.values()) for one in tree["segments"]])
    return exits.DONE


def _counts(files: dict[str, int]) -> tuple[int, int, int]:
    return files.get("table", 0), files.get("log", 0), files.get("state", 0)


def _plain(tree: Any) -> Any:
    """The same tree with text in place of bytes."""
    if isinstance(tree, dict):
        plain: dict[str, Any] = {}
        for name, value in tree.items():
            plain |= text_or_base64(name, value) if isinstance(value, bytes) else {name: _plain(value)}
        return plain
    return [_plain(one) for one in tree] if isinstance(tree, list) else tree


@storage.command("dump")
@DIRECTORY
@keys_option
@click.option(
    "--file", "path", default="", metavar="PATH", help="One table, tree or segment, as `inspect` and `verify` name it."
)
@click.option("--limit", type=click.IntRange(min=1), help="So many cells at most.")
def dump(directory: Path, path: str, limit: int | None, key_file: Path | None, key_command: str) -> int:
    """Print the cells that tables, trees and log hold, one JSON document per line, newest first."""
    from geokv.storage import offline

    left = limit
    is_known = not path
    ring = read_ring(key_file, key_command)
    for folder in offline.node_folders(directory):
        with offline.locked(folder, ring) as disk:
            is_known = is_known or offline.has_file(disk, path)
            for pair in offline.dump(disk, path):
                if left == 0:
                    return exits.DONE
                left = None if left is None else left - 1
                line: dict[str, Any] = {"node": folder.name, "path": pair.path, "namespace": f"{pair.namespace:016x}"}
                print_json(line | text_or_base64("key", pair.key) | _cell_line(pair.cell))
    if not is_known:
        raise ConfigurationError(f"{path} is no table, tree or segment here: `geokv storage inspect {directory}` names them")
    return exits.DONE


def _cell_line(cell: bytes) -> dict[str, Any]:
    """What a cell says by itself: of `lww`, or of a type; of several policies only its bytes."""
    from geokv.core.cell import decode_lww
    from geokv.core.cells.codec import decode
    from geokv.core.cells.policies import CELL_TYPES
    from geokv.core.cells.view import View

    try:
        lww = decode_lww(cell)
    except RecordError:
        line: dict[str, Any] = dict(text_or_base64("cell", cell))
        for kind in CELL_TYPES.values():
            if cell[0] == kind.tag:
                with suppress(RecordError, ValueError, LookupError):  # a delta of the log may be half of something
                    view = View(decode(kind.tag, cell))
                    is_present = kind.is_present(view)
                    line = {"type": kind.name, "is_tombstone": not is_present} | line
                    line["value"] = plain(kind.value(view)) if is_present else None
        return line
    said = {"version": str(lww.version), "is_tombstone": lww.is_tombstone, "deadline_ms": lww.deadline_ms}
    return said | text_or_base64("value", None if lww.is_tombstone else lww.value)


@storage.command("compact")
@MAYBE_DIRECTORY
@click.option("--namespace", metavar="NAME", help="Of a node that runs: only this one.")
@ADDRESS
@keys_option
def compact(
    directory: Path | None, namespace: str | None, address: tuple[str, ...], key_file: Path | None, key_command: str
) -> int:
    """Make the tables of each namespace one run, and trees compact: the least space, and the fastest to read."""
    from geokv.storage import offline

    if directory is None:
        return _ask_each(address, "storage_compact", {"namespace": namespace}, "compacted, {tables} tables", LONG_S)
    if address:
        raise click.UsageError("DIRECTORY is of a node that is stopped, --address of one that runs: give one of them")

    ring = read_ring(key_file, key_command)
    for folder in offline.node_folders(directory):
        if _is_in_backup(folder):
            raise ConfigurationError(
                f"{folder} stands in a backup, which must not change: restore it, and compact what comes of it"
            )
        with offline.locked(folder, ring, is_read_only=False) as disk:
            count = offline.compact(disk)
        click.echo(f"{folder}: {count} namespaces compacted")
    return exits.DONE


@storage.command("flush")
@MAYBE_DIRECTORY
@ADDRESS
@keys_option
@click.option(
    "--topology",
    type=click.Path(path_type=Path),
    help="The topology file of the node; where it is not given, topology.toml in or above DIRECTORY.",
)
def flush(
    directory: Path | None, address: tuple[str, ...], topology: Path | None, key_file: Path | None, key_command: str
) -> int:
    """Put into tables what only the log holds.

    A node that is stopped in good order has done so by itself where that was a second's work: at most 16 MiB of log, and
    no flush or compaction running. Whatever it left, its next start reads from the log.
    """
    if directory is None:
        return _ask_each(address, "storage_flush", {}, "flushed, {tables} tables", LONG_S)
    if address:
        raise click.UsageError("DIRECTORY is of a node that is stopped, --address of one that runs: give one of them")
    from geokv.server.boot import flush as flush_node
    from geokv.server.config import read_config
    from geokv.server.identity import owner_of
    from geokv.storage import offline

    failures: list[GeokvError] = []
    keys = {"encryption_key_file": key_file, "encryption_key_command": key_command or None}
    ring = read_ring(key_file, key_command)
    for folder in offline.node_folders(directory):
        with offline.locked(folder, ring) as disk:
            node = owner_of(disk)
        beside = [folder / "topology.toml", folder.parent / "topology.toml"]
        chosen = topology or next((path for path in beside if path.is_file()), None)
        if chosen is None or not node:
            raise ConfigurationError(f"which topology {folder} belongs to is not known: give --topology")
        try:
            flush_node(read_config({"topology": str(chosen), "node": node, "directory": str(folder), **keys}, {}, None))
        except GeokvError as error:
            click.echo(f"{folder}: {error}", err=True)
            failures.append(error)
        else:
            click.echo(f"{folder}: flushed")
    return exits.code_of(failures[0]) if failures else exits.DONE


# --- keys -----------------------------------------------------------------------------------------------------------


@storage.command("new-key")
@click.option("--id", "key_id", default="", help="Its id, 16 characters at most; else the date and four random digits.")
@click.option("--bits", type=click.Choice(("128", "256")), default="256", show_default=True, help="Its length.")
@click.option(
    "--append",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Put the line at the end of this key file, which is made where it is not there, instead of printing it.",
)
def new_key(key_id: str, bits: str, path: Path | None) -> int:
    """Make a key: a line of a key file. The last line of the file is the key with which new files are written."""
    from geokv.storage.encryption.new_key import append_line, drawn_id, new_line

    chosen = key_id or drawn_id()
    line = new_line(chosen, int(bits) // 8)
    if path is None:
        click.echo(line, nl=False)
    else:
        append_line(path, line)
        click.echo(f"{path}: key {chosen} added; nodes that run take it with `geokv storage rotate-keys`, or SIGHUP")
    return exits.DONE


@storage.command("keys")
@AS_JSON
@place_options
def keys_of_nodes(as_json: bool, place: Place) -> int:
    """Show which keys the files of running nodes are written with, and which are not needed any more."""
    return _ask_keys({}, as_json, place)


@storage.command("rotate-keys")
@AS_JSON
@place_options
def rotate_keys(as_json: bool, place: Place) -> int:
    """Have running nodes read their key file, or run their key command, again.

    From then on new files are written with its last key; what is there is rewritten by and by. A node that could not start
    again with these keys says so, and goes on with those that it had. Exit code 1 where one does.
    """
    return _ask_keys({"rotate": True}, as_json, place)


def _ask_keys(arguments: dict[str, Any], as_json: bool, place: Place) -> int:
    from geokv.lab.ask import ask_all, ring_from

    ring = ring_from(place.addresses(), place.dc, place.timeout_s)
    said = ask_all({node.name: node.address for node in ring.nodes}, "keys", arguments, timeout_s=place.timeout_s)
    failed = {name: str(one) for name, one in said.items() if isinstance(one, GeokvError)}
    answers = {name: one for name, one in said.items() if not isinstance(one, GeokvError)}
    if as_json:
        print_json({"nodes": [{"node": name, **one} for name, one in answers.items()], "failed": failed})
    else:
        rows = [
            (name, key["id"] or "plain", "yes" if key["is_active"] else "", *_counts(key["files"]), _is_needed(key))
            for name, one in answers.items()
            for key in one["keys"]
        ]
        print_table(("node", "key", "for new files", "tables", "segments", "other files", "needed"), rows)
        for name, error in failed.items():
            click.echo(f"{name}: {error}", err=True)
    return exits.EXPECTATION_FAILED if failed else exits.DONE


def _is_needed(key: dict[str, Any]) -> str:
    return "yes" if key["files"] or key["is_active"] else "no longer"
