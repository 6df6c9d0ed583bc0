"""The file CLUSTER in a node's directory: whose directory this is, so that no node ever opens another's.

    geokv-directory 2
    cluster = three-dc
    dc = eu-west
    node = eu-west-1
    generation = 2026-11-21     only after a restore: sets the cluster apart from the one that the backup was made of
    checksum = 2c5f01ba         CRC-32 of all lines above; format 1 had none

What else a node knows of itself is in its log and in the state that is flushed beside its tables; this must be readable
before these are, without a key, and by people.
"""

from __future__ import annotations

from typing import Final
from zlib import crc32

from geokv.errors import ConfigurationError, StorageError
from geokv.storage.disk import Disk

FILE: Final = "CLUSTER"
_HEADER: Final = "geokv-directory"
_FORMAT: Final = 2
_WITHOUT_CHECKSUM: Final = 1
_CHECKSUM: Final = "checksum"
_BYTES_MAX: Final = 1024


def claim_directory(disk: Disk, cluster: str, dc: str, node: str, generation: str = "") -> None:
    """Check that the directory is this node's, or make it so where it is new. Raises ConfigurationError, StorageError.

    `generation` counts where it is new.
    """
    wanted = {"cluster": cluster, "dc": dc, "node": node}
    if not disk.exists(FILE):
        _write(disk, {**wanted, "generation": generation} if generation else wanted)
        return
    found = _parse(disk.read_at(FILE, 0, _BYTES_MAX))
    for name, value in wanted.items():
        if found.get(name) != value:
            raise ConfigurationError(
                f'this directory belongs to {name} "{found.get(name)}" (node "{found.get("node")}" of datacenter '
                f'"{found.get("dc")}" in cluster "{found.get("cluster")}"), not to {name} "{value}": '
                "give this node a directory of its own"
            )


def demand_whole(disk: Disk) -> None:
    """Raises StorageError where the file is damaged, or is not there and a log or tables are: it was the first to be."""
    if disk.exists(FILE):
        _parse(disk.read_at(FILE, 0, _BYTES_MAX))
    elif any(disk.exists(folder) and disk.list(folder) for folder in ("log", "lsm")):
        raise StorageError(
            f"the file {FILE} is not there, and a log or tables are: whose they are is not known. Put the file back; each "
            "node's differs from the others' in the name only",
            path=FILE,
        )


def owner_of(disk: Disk) -> str:
    """The node whose directory this is; empty where nobody has claimed it. Raises StorageError."""
    return _parse(disk.read_at(FILE, 0, _BYTES_MAX)).get("node", "") if disk.exists(FILE) else ""


def generation_of(disk: Disk) -> str:
    """What sets the cluster of this directory apart from others of the same name; empty unless it was restored."""
    return _parse(disk.read_at(FILE, 0, _BYTES_MAX)).get("generation", "") if disk.exists(FILE) else ""


def told_to_peers(cluster: str, generation: str) -> str:
    """The cluster as nodes name it to each other: those of another generation are of another cluster."""
    return f"{cluster} (restored: {generation})" if generation else cluster


def _write(disk: Disk, facts: dict[str, str]) -> None:
    lines = [f"{_HEADER} {_FORMAT}", *(f"{name} = {value}" for name, value in facts.items())]
    temporary = FILE + ".new"
    if disk.exists(temporary):
        disk.remove(temporary)
    text = "".join(f"{line}\n" for line in lines)
    disk.append(temporary, f"{text}{_CHECKSUM} = {crc32(text.encode()):08x}\n".encode())
    disk.sync(temporary)
    disk.rename(temporary, FILE)
    disk.sync_dir("")


def _parse(payload: bytes) -> dict[str, str]:
    try:
        header, *lines = payload.decode().splitlines()
        name, version = header.split()
        pairs = dict(line.split(" = ", 1) for line in lines)
    except ValueError:
        raise _damaged() from None
    if name != _HEADER or version not in {str(_FORMAT), str(_WITHOUT_CHECKSUM)}:
        raise StorageError(f'the file {FILE} says "{header}": this version of geokv reads "{_HEADER} {_FORMAT}"', path=FILE)
    if version == str(_FORMAT):
        above = payload[: payload.rfind(_CHECKSUM.encode())]
        if payload != above + f"{_CHECKSUM} = {crc32(above):08x}\n".encode():
            raise _damaged()
    return pairs


def _damaged() -> StorageError:
    return StorageError(f"the file {FILE} is damaged: this is not a directory of geokv, or not a whole one", path=FILE)
