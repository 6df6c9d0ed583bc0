"""The checkers: what must hold in every run, whatever the faults. Each returns "ok", or what failed with key, client and time.

    checker                 promise (numbers are DESIGN's rules)                                     judged from
    acknowledged_survives   1: an acknowledged write outlives power cuts and W-1 lost disks          disks, engines, history
    converged               2: after healing every owner of a partition holds the same cells         engines
    no_resurrection         3: a deleted or expired key does not come back                           history, engines
    causal_on_key           6: a write that saw another is ordered after it                          history
    read_your_quorum        R+W>N: a quorum read sees each quorum write acknowledged before it       history
    reads_are_written       what a read returns was written, under that version                      history, logs
    claims                  7: no frontier and no Replicated runs ahead of the disk                  disks, while it runs
    levels_honest           6: as many replicas as a reply states have it synced when it is said     disks, while it runs
    numbers_unique          a stream's number names one record, for ever                             logs, while it runs
    hlc_rises               a node's HLC strictly rises along its log, restarts or not               logs, while it runs

Of namespaces with durability "interval" only these are demanded: converged, numbers_unique, hlc_rises, and the frontiers of
claims; a crash may take what was acknowledged and read.

Of namespaces with other policies than `lww`: `typed_checkers`.

Not here: how disks are read (`truth`), what clients recorded (`history`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Final

from geokv.core.cell import LwwCell, decode_lww, live_value, lww_version
from geokv.core.cells import halves
from geokv.core.quorum import Consistency, needed
from geokv.errors import Damaged, StorageError
from geokv.protocol.requests import Outcome
from geokv.sim.clocks import EPOCH_US
from geokv.sim.held import Held
from geokv.sim.history import Operation
from geokv.sim.truth import Image, image_of, includes, is_lww, is_over, is_same
from geokv.sim.typed_checkers import TYPED_CHECKERS, books_survive
from geokv.sim.world import World

OK: Final = "ok"


def final_cells(world: World) -> dict[str, Held]:
    """Per node that runs and does not refuse: all its cells that it claims to have, read from its engine.

    A node whose cells cannot be read is missing: it takes back its claim soon.
    """
    cells: dict[str, Held] = {}
    namespace_of: dict[bytes, int] = {}
    for name, host in world.hosts.items():
        if host.node is not None and not host.node.is_refusing:
            try:
                tables = host.tables()
            except Damaged:
                continue
            held = cells[name] = Held(world.topology.partitions, getattr(host.node, "unserved", {}), namespace_of)
            for table in sorted(tables):
                namespace_of.update(dict.fromkeys(tables[table], table))
                held.update((key, halves.fold(cell)) for key, cell in tables[table].items() if held.answers(key))
    return cells


def latest_ms(world: World) -> int:
    """No clock of the world shows more."""
    return (EPOCH_US + world.now_us + world.clock_error_us()) // 1_000


def _may_be_collected(world: World, operation: Operation) -> bool:
    """Whether what deleted the key, or a value that has expired, may have been collected: then nothing tells of the write."""
    ends = world.truth.registry.ends.get(operation.key, {})
    now_ms = latest_ms(world)
    return any(version >= operation.version and since_ms <= now_ms for version, since_ms in ends.items())


def _is_kept(world: World, operation: Operation, cell: bytes | None) -> bool:
    """Whether `cell` is what the write made, or ordered after it; or is gone, as it may be."""
    if cell is None:
        return _may_be_collected(world, operation)
    version = lww_version(cell)
    if version != operation.version:
        return version > operation.version
    decoded = decode_lww(cell)
    is_same = decoded.value == (operation.value or b"") and decoded.is_tombstone == (operation.value is None)
    # Two writes may carry one version; then their origins and numbers decide, and another value is the winner's.
    return is_same or not operation.is_acknowledged or operation.coordinator == "" or _is_of_another(operation, decoded)


def _is_of_another(operation: Operation, cell: LwwCell) -> bool:
    return operation.coordinator.encode() not in cell.origin.split(b"\0")


def _promised(world: World, operations: Iterable[Operation]) -> list[Operation]:
    """Those of namespaces that acknowledge what is synced, and nothing else."""
    return [operation for operation in operations if not operation.key.startswith(world.truth.unpromised)]


def acknowledged_survives(world: World) -> str:
    """At the end: every owner of the key, in every datacenter, has the write or what is ordered after it."""
    cells = final_cells(world)
    for operation in _promised(world, world.history.acknowledged()):
        if not operation.version or is_excused(world, operation, ()):
            continue
        for dc in world.topology.dc_names:
            for name in world.owners(operation.key, dc):
                is_asked = name in cells and cells[name].answers(operation.key)
                if is_asked and not _is_kept(world, operation, cells[name].get(operation.key)):
                    return f"{name} lacks {operation}: it has {_shown(cells[name].get(operation.key))}"
    return OK


def is_excused(world: World, operation: Operation, lost: Iterable[str]) -> bool:
    """Whether as many disks of the coordinator's datacenter were lost since it began as were said to hold the write."""
    gone = {name for when_us, name in world.truth.losses if when_us >= operation.started_us} | set(lost)
    here = sum(1 for name in gone if world.dc_of[name] == operation.coordinator_dc)
    return here >= max(operation.replicas, 1)


def survives_now(world: World, lost: Iterable[str]) -> str:
    """What if the power failed everywhere now, and the disks of `lost` were gone? Judged from the disks alone."""
    lost = set(lost)
    images: dict[str, Image] = {}
    for name, host in world.hosts.items():
        if name not in lost and host.node is not None:
            try:
                images[name] = image_of(host.storage.surviving())
            except StorageError as error:
                return f"after a power cut the disk of {name} cannot be read: {error}"
            if name not in world.truth.rotten and (missing := _vanished(world, name, images[name])):
                return missing
    for operation in _promised(world, world.history.acknowledged()):
        if operation.version and not is_excused(world, operation, lost | (set(world.hosts) - set(images))):
            owners = world.owners(operation.key, operation.coordinator_dc)
            if not any(_is_kept(world, operation, images[name].cells.get(operation.key)) for name in owners if name in images):
                return f"after a power cut, without the disks of {sorted(lost)}, nobody has {operation}"
    gone = set(world.hosts) - set(images) | {name for _, name in world.truth.losses}
    spare = world.options.replicas // 2
    is_promised = all(sum(world.dc_of[name] == dc for name in gone) <= spare for dc in world.topology.dc_names)
    if is_promised and (fault := books_survive([image.cells for image in images.values()])):
        return f"after a power cut, without the disks of {sorted(lost)}: {fault}"
    return OK


def _vanished(world: World, name: str, image: Image) -> str:
    """What the disk was seen to hold durably and no longer does."""
    for key, cell in world.truth.images[name].cells.items():
        if not includes(image.cells.get(key), cell) and not _may_be_gone_from_disk(world, image.cells.get(key), cell):
            return f"the disk of {name} held {key!r} {_shown(cell)}, synced, and has {_shown(image.cells.get(key))} now"
    return ""


def _may_be_gone_from_disk(world: World, now: bytes | None, before: bytes) -> bool:
    """Whether a collection, and what was written after it, explain that a disk does not hold all that it held."""
    if is_lww(before) and (now is None or is_lww(now)):
        return now is None and is_over(before, latest_ms(world))
    held, left = halves.decode(before), halves.Halves() if now is None else halves.decode(now)
    seen = left.state.context
    if held.lww is not None and not is_over(held.lww, latest_ms(world)):
        dot = halves.dot_of(held.lww)
        is_there = left.lww is not None and left.lww >= held.lww
        if not is_there and not seen.contains(*dot) and not held.is_lww_ended():
            return False
    return all(seen.contains(origin, number) for origin, dots in held.state.items.items() for number in dots)


def converged(world: World) -> str:
    """Every owner of every partition, in all datacenters, holds the same: byte for byte, but for what a collection may take."""
    cells = final_cells(world)
    if not cells:
        return "no node runs"
    for name, host in world.hosts.items():
        if name not in cells and host.node is not None and not host.node.is_refusing:
            return f"{name} has a damaged table, and its claim stands"
    keys = sorted({key for table in cells.values() for key in table})
    now_ms = latest_ms(world)
    for key in keys:
        owners = [name for dc in world.topology.dc_names for name in world.owners(key, dc) if name in cells]
        holders = [name for name in owners if cells[name].answers(key)]
        for name in holders[1:]:
            one, other = cells[holders[0]].get(key), cells[name].get(key)
            if not is_same(one, other, now_ms):
                return f"key {key!r}: {holders[0]} has {_shown(one)}, {name} has {_shown(other)}"
    return OK


def _shown(cell: bytes | None) -> str:
    if cell is None:
        return "nothing"
    if not is_lww(cell):
        held = halves.decode(cell)
        return repr(held.state) if held.lww is None else f"{held.state!r} beside {_shown(held.lww)}"
    decoded = decode_lww(cell)
    value = "a tombstone" if decoded.is_tombstone else repr(decoded.value)
    return f"{value} version={decoded.version:x} origin={decoded.origin!r} number={decoded.number}"


# --- from the history -----------------------------------------------------------------------------------------------


def _by_key(operations: Iterable[Operation]) -> dict[bytes, list[Operation]]:
    grouped: dict[bytes, list[Operation]] = {}
    for operation in operations:
        grouped.setdefault(operation.key, []).append(operation)
    return grouped


def causal_on_key(world: World) -> str:
    """A client's acknowledged write to a key is ordered after every version of it that the client was told before."""
    for operations in _by_key(o for o in _promised(world, world.history.plain()) if o.version).values():
        told: dict[str, list[Operation]] = {}
        for operation in operations:
            mine = told.setdefault(operation.client, [])
            if operation.is_write and operation.is_acknowledged:
                for earlier in mine:
                    if earlier.ended_us <= operation.started_us and not operation.version > earlier.version:
                        return f"{operation} is not ordered after what its client was told before: {earlier}"
            mine.append(operation)
    return OK


def _asked_replicas(world: World, operation: Operation) -> int:
    return needed(operation.level, operation.explicit, world.options.replicas)


def read_your_quorum(world: World) -> str:
    """A read sees, in its datacenter, each write acknowledged there before it began whose replicas overlap with the read's."""
    writes = _by_key(o for o in _promised(world, world.history.acknowledged()) if o.version)
    attempts = _by_key(o for o in world.history.writes() if o.value is None or o.ttl_ms > 0)
    for read in world.history.reads():
        asked = _asked_replicas(world, read)
        for write in writes.get(read.key, ()):
            is_before = write.ended_us <= read.started_us and write.version > read.version
            if not is_before or is_excused(world, write, ()) or not _must_see(world, write, read, asked):
                continue
            if read.value is None and read.version == 0 and _may_be_gone(write, read, attempts.get(read.key, ())):
                continue
            return f"{read} does not see {write}"
    return OK


def _must_see(world: World, write: Operation, read: Operation, asked: int) -> bool:
    replicas = world.options.replicas
    if write.coordinator_dc == read.coordinator_dc:
        return write.replicas + asked > replicas
    is_everywhere = write.level is Consistency.EACH_QUORUM and write.outcome is not Outcome.PENDING
    return is_everywhere and write.dcs >= len(world.topology.dc_names) and asked >= replicas // 2 + 1


def _may_be_gone(write: Operation, read: Operation, takers: Iterable[Operation]) -> bool:
    """Whether a delete, or a put that expires, may be what the read saw (it tells no version of what is absent)."""
    return any(taker.started_us <= read.ended_us and (not taker.version or taker.version >= write.version) for taker in takers)


def no_resurrection(world: World) -> str:
    """Deleted and expired keys stay gone: in what was read, and in what the engines hold at the end."""
    for read in world.history.reads():
        if read.value is not None and (fault := _is_expired(world, read)):
            return fault
    acknowledged = _promised(world, world.history.acknowledged())
    deletes = _by_key(o for o in acknowledged if o.value is None and o.version)
    for read in world.history.reads():
        for delete in deletes.get(read.key, ()):
            is_back = read.value is not None and read.version < delete.version and delete.ended_us <= read.started_us
            if is_back and not is_excused(world, delete, ()) and _must_see(world, delete, read, _asked_replicas(world, read)):
                return f"{read} brings back what was deleted by {delete}"
    return _back_at_the_end(world, deletes)


def _is_expired(world: World, read: Operation) -> str:
    for cell in world.truth.registry.cells.get((read.key, read.version), ()):
        decoded = decode_lww(cell)
        # A node judges by its own clock, which may be behind; beyond all skew that clocks have here the value is a ghost.
        latest_us = decoded.deadline_ms * 1_000 - EPOCH_US + world.clock_error_us()
        if decoded.deadline_ms and decoded.value == read.value and read.started_us > latest_us:
            return f"{read} shows a value that expired at {latest_us / 1e6:.6f} s at the latest"
    return ""


def _back_at_the_end(world: World, deletes: dict[bytes, list[Operation]]) -> str:
    for name, table in final_cells(world).items():
        for key, gone in deletes.items():
            newest = max(gone, key=lambda operation: operation.version)
            cell = table.get(key)
            is_live = cell is not None and live_value(cell, 0) is not None
            if cell is not None and is_live and lww_version(cell) < newest.version and not is_excused(world, newest, ()):
                return f"{name} shows {key!r} {_shown(cell)} at the end, deleted by {newest}"
    return OK


def reads_are_written(world: World) -> str:
    """A value that a read returned stands in some log under that key and version."""
    for read in _promised(world, world.history.reads()):
        if read.value is None:
            continue
        cells = world.truth.registry.cells.get((read.key, read.version), ())
        if not any(decode_lww(cell).value == read.value for cell in cells):
            return f"{read} returns what nobody wrote"
    return OK


# --- all of them ----------------------------------------------------------------------------------------------------


def _observed(name: str) -> Callable[[World], str]:
    def check(world: World) -> str:
        faults = world.truth.faults[name]
        return f"{faults[0]} ({len(faults)} in all)" if faults else OK

    return check


CHECKERS: Final[dict[str, Callable[[World], str]]] = {
    "acknowledged_survives": acknowledged_survives,
    "converged": converged,
    "no_resurrection": no_resurrection,
    "causal_on_key": causal_on_key,
    "read_your_quorum": read_your_quorum,
    "reads_are_written": reads_are_written,
    "claims": _observed("claims"),
    "levels_honest": _observed("levels_honest"),
    "numbers_unique": _observed("numbers_unique"),
    "hlc_rises": _observed("hlc_rises"),
}


def check_all(world: World, probed: Iterable[str] = ()) -> dict[str, str]:
    """Every checker's verdict. `probed`: verdicts of `survives_now` taken while the world ran."""
    verdicts = {name: check(world) for name, check in CHECKERS.items()}
    cells = final_cells(world)
    verdicts |= {name: check(world, cells, is_excused) for name, check in TYPED_CHECKERS.items()}
    failed = [verdict for verdict in probed if verdict != OK]
    if failed:
        verdicts["acknowledged_survives"] = failed[0]
    return verdicts


def probe(world: World, rng: random.Random) -> str:
    """`survives_now` with as many disks lost, in each datacenter, as a majority can do without."""
    spare = world.options.replicas // 2
    lost = [name for dc in world.topology.dc_names for name in rng.sample(world.nodes_of(dc), spare)]
    return survives_now(world, lost)
