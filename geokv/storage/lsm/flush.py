"""Flush: tables from the frames of the log, without the node that wrote them.

The log already holds, synced, all that a memtable does. So the worker reads the frames between two positions, merges
their cells by key as the node did, sorts, and writes one run per namespace. The node only drops its memtable when
that stands. The other way, a sorted run that the node writes, would cost the node the sorting and the writing under
its interpreter lock, which is what a worker is there to avoid.

    frames [begin, end)  -->  namespace -> key -> merged cell  -->  sorted  -->  tables of level 0, run = the job's number

What a replica logged are deltas, not merged with older tables, so the cells are Partial unless the namespace has no
table yet. Namespaces that are not in the job (deleted ones) are passed over, as are the node's own notes.

A tombstone of dots carries no time, but the records that it is merged from do: it is as old as the first of them, or newer.

Invariants: reads only what was synced (the planner says up to where). Memory: the cells of the frames, which the
node bounds by when it flushes, one segment, and one stretch. Not here: when to flush, and up to where (the node).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

from geokv.core.conflict import Merge
from geokv.core.partial import Partial
from geokv.core.record import decode_pairs
from geokv.errors import CorruptLog, RecordError, StorageError
from geokv.storage.advice import WHAT_TO_DO
from geokv.storage.disk import Disk
from geokv.storage.encryption.cipher import TAG_BYTES
from geokv.storage.lsm.facts import TableFacts
from geokv.storage.lsm.jobs import Flush
from geokv.storage.lsm.merging import STRETCH_BYTES, Stretch
from geokv.storage.lsm.table_writer import Pace, unpaced, write_tables
from geokv.storage.lsm.traits import traits_of
from geokv.storage.position import Position
from geokv.storage.wal_cipher import cipher_of, payloads_of
from geokv.storage.wal_format import SEGMENT_HEADER_BYTES, decode_segment_header
from geokv.storage.wal_recovery import segment_name


@dataclass(frozen=True, slots=True)
class Collected:
    """`cells`: by namespace and key. `since`: likewise the least HLC of a key's records, where cells carry no version; 0: of
    one it is not known (a repaired cell's)."""

    cells: dict[int, dict[bytes, bytes]]
    since: dict[int, dict[bytes, int]]


def flush(disk: Disk, job: Flush, pace: Pace = unpaced) -> tuple[TableFacts, ...]:
    """Do the job; the tables that it wrote, durable. Raises StorageError, DiskFull."""
    policies = policies_of(job)
    return write(disk, job, collect(disk, job.begin, job.end, policies, policies), pace)


def policies_of(job: Flush) -> dict[int, str]:
    """By namespace."""
    return {namespace.id: namespace.policy for namespace in job.namespaces}


def write(disk: Disk, job: Flush, collected: Collected, pace: Pace) -> tuple[TableFacts, ...]:
    """Write tables of what was collected, which is used up."""
    written: list[TableFacts] = []
    for namespace in job.namespaces:
        stretches = _in_order(collected.cells.pop(namespace.id), is_whole=namespace.is_first)
        since = partial(_since, collected.since.pop(namespace.id, {}))
        options = replace(job.options, has_dictionary=namespace.has_dictionary)
        made = write_tables(disk, job.number, namespace.id, namespace.policy, stretches, options, pace, len(written), since)
        written += made
    return tuple(facts.at(0, job.number) for facts in written)


def _since(first: dict[bytes, int], key: bytes) -> int:
    return first.get(key, 0)


def collect(disk: Disk, begin: Position, end: Position, policies: Mapping[int, str], dated: Collection[int]) -> Collected:
    """The cells of these namespaces in the frames of [begin, end), each merged from all its records.

    `dated`: those of which it is wanted how old they are.
    """
    cells: dict[int, dict[bytes, bytes]] = {namespace: {} for namespace in policies}
    traits = {namespace: traits_of(policy) for namespace, policy in policies.items()}
    merges: dict[int, Merge] = {namespace: one.merge for namespace, one in traits.items()}
    since: dict[int, dict[bytes, int]] = {namespace: {} for namespace in dated if traits[namespace].waits is not None}
    for pairs in _frames(disk, begin, end):
        for namespace, hlc, key, cell in pairs:
            held = cells.get(namespace)
            if held is not None:
                stored = held.get(key)
                held[key] = cell if stored is None else merges[namespace](stored, cell)
                if namespace in since:
                    first = since[namespace]
                    first[key] = min(first.get(key, hlc), hlc)
    return Collected(cells, since)


def _in_order(cells: dict[bytes, bytes], is_whole: bool) -> Iterator[Stretch]:
    """In stretches of STRETCH_BYTES, if all cells were of one size; together they are no more than a memtable."""
    keys = sorted(cells)
    most = max(STRETCH_BYTES * len(keys) // max(sum(map(len, cells.values())), 1), 1)
    for at in range(0, len(keys), most):
        held = keys[at : at + most]
        found = map(cells.__getitem__, held)
        yield held, list(found if is_whole else map(Partial, found))


def _frames(disk: Disk, begin: Position, end: Position) -> Iterator[list[tuple[int, int, bytes, bytes]]]:
    """Namespace, HLC, key and cell of the records in each frame of [begin, end)."""
    for segment in range(max(begin.segment, 1), end.segment + 1):
        name = segment_name(segment)
        length = end.offset if segment == end.segment else disk.size(name)
        if length <= SEGMENT_HEADER_BYTES:
            continue  # `end` names a segment that no frame of it is in
        image = disk.read_at(name, 0, length + TAG_BYTES)
        header = decode_segment_header(image, segment, name)
        if header is None or len(image) < length:
            raise StorageError(f"{name} cannot be flushed: its header is damaged, or it is cut", path=name, offset=0)
        cipher = cipher_of(header, segment, disk.keys)
        if cipher is None:
            image = image[:length]  # the last payload ends there; an encrypted one has its tag behind it
        try:
            for start, payload in payloads_of(image, segment, header, cipher):
                if (segment, start) >= begin:
                    yield decode_pairs(payload)  # the frame's own checksum covers them
        except RecordError as error:
            raise CorruptLog(f"{name}: {error}. {WHAT_TO_DO}", path=name) from error
