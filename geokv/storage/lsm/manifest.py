"""The manifest: which tables are live and where, up to which place of the log they hold everything, and which meta counts.

One file, `lsm/MANIFEST`, always whole: the next one is written beside it, synced, renamed over it, and the folder
synced. Only then may a file that it no longer names be removed; only then may the log before `position` go.

    lsm/MANIFEST                  what counts
    lsm/MANIFEST.tmp              an interrupted switch: removed on opening
    lsm/0000000000030001.sst      table 1 of job 3: live where the manifest names it, else an orphan: removed on opening
    lsm/META-0000000000000003     the node's state at `position` (`lsm.meta`): the one that the manifest names, else an orphan

A table that was found damaged is named as quarantined: its file is kept, and is nobody's any more.

The position names a frame by segment and offset of its payload. Frames before it are in tables, so recovery merges
from there on. It is exact on purpose: what is merged again could bring back what was collected meanwhile.

Manifests of formats 1 and 2 hold the meta themselves. They are read; the next one that is written is of format 3.

Invariants: after a crash at any moment the manifest is the old or the new one, and every file that it names is
there, whole. Tables without a manifest are refused, not removed: somebody lost it. Format page: docs/formats/manifest.md.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from struct import Struct
from typing import Final

from geokv.errors import StorageError
from geokv.storage.disk import Disk
from geokv.storage.encryption.keys import Keys
from geokv.storage.lsm.facts import FOLDER, JOB_SHIFT, DamagedTable, TableFacts, decode_placed
from geokv.storage.lsm.meta import MetaFile, meta_jobs, meta_name, read_meta
from geokv.storage.lsm.sealing import Kind, damaged
from geokv.storage.lsm.small_file import HEADER_BYTES_MAX, decode_small_file, encode_small_file, key_id_of
from geokv.storage.position import Position

NAME: Final = f"{FOLDER}/MANIFEST"
TEMPORARY: Final = f"{FOLDER}/MANIFEST.tmp"
MAGIC: Final = b"geokvman"
FORMAT: Final = 3
META_INSIDE: Final = 2  # up to this format it held the node's state itself
_STATE = Struct("<QQQQIII")
_STATE_1 = Struct("<QQQII")
_NAMESPACE = Struct("<QI")
_COUNT = Struct("<I")
_DAMAGED = Struct("<QH")
_HAS_QUARANTINED: Final = 1  # a flag of the header
_TABLE_NAME = re.compile(r"([0-9a-f]{16})\.sst")


@dataclass(frozen=True, slots=True)
class State:
    """What a manifest says. A value: a change makes a new one.

    `meta` is what stands in `meta_file`; after a manifest of format 1 or 2 it is here and in no file yet.
    """

    next_job: int = 1
    position: Position = field(default_factory=Position)
    meta: bytes = field(default=b"", repr=False)
    meta_file: MetaFile = field(default_factory=MetaFile)
    tables: Mapping[int, tuple[TableFacts, ...]] = field(default_factory=dict)
    """By namespace, newest first (`TableFacts.recency`)."""
    quarantined: tuple[DamagedTable, ...] = ()
    """Set aside: kept, and neither read nor merged. Their files may be gone."""

    def all_tables(self) -> Iterable[TableFacts]:
        for tables in self.tables.values():
            yield from tables


# --- the file -------------------------------------------------------------------------------------------------------


def write_manifest(disk: Disk, state: State) -> None:
    """Let `state` stand, durably."""
    stage_manifest(disk, state)
    switch_manifest(disk)


def stage_manifest(disk: Disk, state: State) -> None:
    """Have it ready beside the one that stands. After an error that one stands."""
    if disk.exists(TEMPORARY):  # what an earlier failure left; its unsynced pages must not be written upon
        disk.remove(TEMPORARY)
    disk.append(TEMPORARY, encode_manifest(state, disk.keys))
    disk.sync(TEMPORARY)


def switch_manifest(disk: Disk) -> None:
    """Let what is ready stand. After an error it is unknown which of the two stands: remove no file of either."""
    disk.rename(TEMPORARY, NAME)
    disk.sync_dir(FOLDER)


def open_manifest(disk: Disk) -> State:
    """What stands, after removing what does not belong to it; a first one is made where nothing is there.

    Raises StorageError on damage, on a newer format, and where files stand without a manifest or are missing.
    """
    disk.make_folder(FOLDER)
    names = disk.list(FOLDER)
    numbers = table_numbers(disk)
    if not disk.exists(NAME):
        if numbers:
            raise StorageError(
                f"{NAME} is missing though {len(numbers)} tables are there: put it back, "
                f"or move the folder {FOLDER!r} away to let this node start as a new one",
                path=NAME,
            )
        write_manifest(disk, State())
        return State()
    state = read_manifest(disk)
    named = {facts.number for facts in state.all_tables()}
    kept = {one.facts.number for one in state.quarantined}
    if missing := sorted(named - numbers):
        raise damaged(NAME, 0, f"it names table {missing[0]:016x}, which is not there")
    # A process that was killed may have renamed this one into place without syncing the folder: before that is made
    # good a power cut would bring back the older one, which names what is removed here.
    disk.sync_dir(FOLDER)
    if TEMPORARY.rpartition("/")[2] in names:
        disk.remove(TEMPORARY)
    for orphan in sorted(numbers - named - kept):
        disk.remove(f"{FOLDER}/{orphan:016x}.sst")
    metas = meta_jobs(disk)
    for job in sorted(metas - {state.meta_file.job}):
        disk.remove(meta_name(job))
    newest_job = max([state.next_job - 1, *metas, *(number >> JOB_SHIFT for number in numbers)])
    return replace(state, next_job=newest_job + 1)


def table_numbers(disk: Disk) -> set[int]:
    """Of the tables whose files are there, live or not."""
    return {int(match[1], 16) for match in map(_TABLE_NAME.fullmatch, disk.list(FOLDER)) if match}


def read_manifest(disk: Disk) -> State:
    """What stands, and nothing else is touched. Raises StorageError."""
    state = decode_manifest(disk.read_at(NAME, 0, disk.size(NAME)), disk.keys)
    return replace(state, meta=read_meta(disk, state.meta_file)) if state.meta_file.job else state


def manifest_key_id(disk: Disk) -> str:
    """The key that the one that stands is written with; empty: none, it is plain. Raises StorageError."""
    return key_id_of(disk.read_at(NAME, 0, HEADER_BYTES_MAX), MAGIC, FORMAT, NAME)


# --- the bytes ------------------------------------------------------------------------------------------------------


def encode_manifest(state: State, keys: Keys | None = None) -> bytes:
    assert state.meta_file.length == len(state.meta), "the node's state is written before the manifest that names it"
    pieces = [_STATE.pack(state.next_job, *state.position, *state.meta_file, len(state.tables))]
    for namespace, tables in sorted(state.tables.items()):
        pieces.append(_NAMESPACE.pack(namespace, len(tables)))
        pieces += [facts.encode_placed() for facts in tables]
    if state.quarantined:
        pieces.append(_COUNT.pack(len(state.quarantined)))
        for one in state.quarantined:
            what = one.what.encode()[:1024]
            pieces += [_DAMAGED.pack(one.offset, len(what)), what, one.facts.encode_placed()]
    flags = _HAS_QUARANTINED if state.quarantined else 0
    return encode_small_file(b"".join(pieces), MAGIC, FORMAT, Kind.MANIFEST, keys or Keys(), flags)


def decode_manifest(raw: bytes, keys: Keys | None = None) -> State:
    """Inverse of `encode_manifest`, without `meta`, which is in its file. Raises StorageError, EncryptionKeyError."""
    form, flags, body = decode_small_file(raw, MAGIC, FORMAT, Kind.MANIFEST, keys or Keys(), NAME, _HAS_QUARANTINED)
    try:
        return _decode_state(body, form, bool(flags & _HAS_QUARANTINED))
    except (ValueError, struct.error) as error:
        raise damaged(NAME, 0, f"it cannot be read ({error})") from error


def _decode_state(body: bytes, form: int, has_quarantined: bool) -> State:
    meta, file = b"", MetaFile()
    if form <= META_INSIDE:
        next_job, segment, offset, length, namespaces = _STATE_1.unpack_from(body)
        at = _STATE_1.size + length
        meta = body[_STATE_1.size : at]
        if len(meta) != length:
            raise ValueError("its lengths do not fit together")
    else:
        next_job, segment, offset, job, length, crc, namespaces = _STATE.unpack_from(body)
        file, at = MetaFile(job, length, crc), _STATE.size
    tables: dict[int, tuple[TableFacts, ...]] = {}
    for _ in range(namespaces):
        namespace, count = _NAMESPACE.unpack_from(body, at)
        at += _NAMESPACE.size
        held: list[TableFacts] = []
        for _ in range(count):
            facts, at = decode_placed(body, at, form)
            held.append(facts)
        tables[namespace] = tuple(held)
    quarantined: list[DamagedTable] = []
    if has_quarantined:
        (count,) = _COUNT.unpack_from(body, at)
        at += _COUNT.size
        for _ in range(count):
            damaged_at, length = _DAMAGED.unpack_from(body, at)
            at += _DAMAGED.size + length
            what = body[at - length : at].decode(errors="replace")
            facts, at = decode_placed(body, at, form)
            quarantined.append(DamagedTable(facts, damaged_at, what))
    if at != len(body):
        raise ValueError("its lengths do not fit together")
    return State(next_job, Position(segment, offset), meta, file, tables, tuple(quarantined))
