"""What is really on the disks, kept beside the run: the measure for what nodes claim and promise.

An `Image` is the durable content of one disk: for every log frame that was verified, byte for byte, to survive a power cut at
that moment, its numbered records and the merged cell of every key. It is built from what the disk would still hold, never from
what a node or the log says. The `Registry` knows every numbered record that was ever written to any log.

`Truth` watches all hosts and judges at the moment of each claim:

    Send(Statement)     every number up to a stated frontier is in the sender's image         -> claims
    Send(Replicated)    every record of the batch is in the sender's image                    -> claims
    Answer(WriteReply)  as many owners' images as stated hold the version, or a later one     -> levels_honest
    a record written    no other record has its stream and number                             -> numbers_unique
    an own record       its HLC is above that of all this node's earlier ones, restarts or not -> hlc_rises

A number of a run that is over and that no image holds is void: it is required of nobody. A number counts as held where the
image's cell of its key is not older than its record (whole cells may stand for records).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from geokv.core.cell import TAG, decode_lww, lww_version
from geokv.core.cells import halves
from geokv.core.cells.codec import decode, tags
from geokv.core.cells.context import Dot
from geokv.core.origin import unpack_origin
from geokv.core.record import CELL, CONTROL, DELTA, NO_OPERATION, Record, decode_records
from geokv.errors import RecordError
from geokv.protocol.effects import Answer, Asked, Delivered, Effect, Event, Persist, Send
from geokv.protocol.messages import Replicate, Replicated, Statement, StreamKey
from geokv.protocol.requests import Outcome, WriteBatch, WriteReply
from geokv.sim.disks import Storage
from geokv.storage.lsm.facts import policy_of_tables

if TYPE_CHECKING:
    from geokv.sim.host import Host

FAULTS_KEPT: Final = 20
ANSWER_US_MAX: Final = 1_000_000  # from when a batch was looked at to the answer, on a slow disk
_STATED: Final = frozenset((Outcome.APPLIED, Outcome.SUPERSEDED, Outcome.PENDING, Outcome.PARTIAL))


def is_lww(cell: bytes) -> bool:
    return cell[:1] == TAG


def is_over(cell: bytes | None, now_ms: int) -> bool:
    """Whether a cell shows nothing any more, so that one replica may have collected it and another not yet."""
    if cell is None:
        return True
    held = halves.decode(cell)
    return not held.state.items and held.living_lww(now_ms) is None


def is_same(one: bytes | None, other: bytes | None, now_ms: int) -> bool:
    """Whether two replicas agree. Collections leave their mark: what is over may be gone, and of a key that is written anew one
    replica has still seen what the other has forgotten; what lives is the same, dot for dot."""
    if one == other or (is_over(one, now_ms) and is_over(other, now_ms)):
        return True
    if one is None or other is None:
        return False
    mine, theirs = halves.decode(one), halves.decode(other)
    return mine.state.items == theirs.state.items and mine.living_lww(now_ms) == theirs.living_lww(now_ms)


def includes(held: bytes | None, cell: bytes) -> bool:
    """Whether what is held contains all that a cell says."""
    if held is None:
        return False
    if is_lww(cell) and is_lww(held):
        return held >= cell
    if _is_plain(held, cell):
        return decode(cell[0], held).context.covers(decode(cell[0], cell).context)
    mine, theirs = halves.decode(held), halves.decode(cell)
    has_lww = theirs.lww is None or (mine.lww is not None and lww_version(mine.lww) >= lww_version(theirs.lww))
    return has_lww and mine.state.context.covers(theirs.state.context)


def _is_plain(known: bytes, cell: bytes) -> bool:
    """Whether both are of one type, whose policy was not changed."""
    first = known[0]
    return first == cell[0] and first not in (halves.TAG, halves.LWW_TAG) and tags(known) == tags(cell) == {first}


class Image:
    """Durable content of one disk. Keys are told apart by their bytes alone: workloads use a key in one namespace only."""

    __slots__ = ("cells", "is_read_anew", "numbers", "verified")

    def __init__(self, is_read_anew: bool = False) -> None:
        self.is_read_anew = is_read_anew  # from a disk that was in use before
        self.cells: dict[bytes, bytes] = {}
        self.numbers: dict[StreamKey, set[int]] = {}
        self.verified: dict[StreamKey, int] = {}

    def add(self, records: Iterable[Record]) -> None:
        cells = self.cells
        for record in records:
            if record.kind == CONTROL:
                continue
            known = cells.get(record.key)
            cells[record.key] = record.cell if known is None else halves.append(known, record.cell)
            if record.kind == DELTA:
                self._add_number(record)

    def add_numbers(self, records: Iterable[Record]) -> None:
        for record in records:
            if record.kind == DELTA:
                self._add_number(record)

    def _add_number(self, record: Record) -> None:
        stream = (record.namespace, record.partition, record.origin)
        numbers = self.numbers.get(stream)
        if numbers is None:
            numbers = self.numbers[stream] = set()
        numbers.add(record.number)

    def add_cells(self, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        for key, cell in pairs:
            known = self.cells.get(key)
            self.cells[key] = cell if known is None else halves.append(known, cell)

    def holds(self, key: bytes, version: int, dots: Iterable[Dot]) -> bool:
        """Whether the cell of `key` is of that version or a later one; of a cell of dots, whether it has seen one of these."""
        cell = self.cells.get(key)
        if cell is None:
            return False
        if is_lww(cell):
            return lww_version(cell) >= version
        if _is_plain(cell, cell):
            context = decode(cell[0], cell).context
        else:
            held = halves.decode(cell)
            context = held.state.context
            if held.lww is not None and lww_version(held.lww) >= version:
                return True
        return any(context.contains(dot.origin, dot.number) for dot in dots)


def image_of(storage: Storage) -> Image:
    """Read a disk from scratch, as recovery would: the tables, then the log; of tables that are damaged what can be read.

    Raises StorageError.
    """
    image = Image(is_read_anew=True)
    if storage.damaged_tables():
        return readable_image_of(storage)
    _, engine, log = storage.open()
    for namespace in engine.stored_namespaces():
        image.add_cells(engine.create(namespace, policy_of_tables(engine.tables(namespace))).items())
    for _, _, payload in log.replay():
        image.add(decode_records(payload))
    return image


def readable_image_of(storage: Storage) -> Image:
    """What a node makes of a disk that lost a table: what can be read of the others, and the log behind them.

    Of the log before that it has the records, to give them to others, and not their cells.
    """
    image = Image(is_read_anew=True)
    for cells in storage.readable_cells():
        image.add_cells(cells)
    _, engine, log = storage.open()
    for segment, offset, payload in log.replay(0):
        if (segment, offset) >= engine.position:
            image.add(decode_records(payload))
        else:
            image.add_numbers(decode_records(payload))
    return image


class Registry:
    """Every numbered record that any log ever took, and every version of every key (of a cell of dots: its stamp)."""

    def __init__(self) -> None:
        self.records: dict[StreamKey, dict[int, Record]] = {}
        self.cells: dict[tuple[bytes, int], list[bytes]] = {}
        self.dots: dict[tuple[bytes, int], list[Dot]] = {}
        self.ends: dict[bytes, dict[int, int]] = {}  # lww key -> version -> since when it shows nothing (0: a delete)
        self.named: dict[tuple[bytes, bytes], list[Dot]] = {}  # (operation id, key) of cells of dots

    def add(self, record: Record) -> Record | None:
        """Note a record; returns a different one of the same stream and number where there is one."""
        stream = self.records.setdefault((record.namespace, record.partition, record.origin), {})
        known = stream.setdefault(record.number, record)
        if known is record:
            if is_lww(record.cell):
                self.cells.setdefault((record.key, lww_version(record.cell)), []).append(record.cell)
                decoded = decode_lww(record.cell)
                if decoded.is_tombstone or decoded.deadline_ms:
                    ends = self.ends.setdefault(record.key, {})
                    ends[decoded.version] = min(decoded.deadline_ms, ends.get(decoded.version, decoded.deadline_ms))
            else:
                dot = Dot(record.origin, record.number)
                self.dots.setdefault((record.key, record.hlc), []).append(dot)
                if record.operation != NO_OPERATION:
                    self.named.setdefault((record.operation, record.key), []).append(dot)
            return None
        return None if known.raw == record.raw else known


class Truth:
    """An observer of all hosts; `faults` has what was found, per checker."""

    def __init__(
        self,
        now_us: Callable[[], int],
        dc_of: dict[str, str],
        quorum_of: Callable[[str], int],
        incarnation_of: Callable[[str], int],
    ) -> None:
        self.registry = Registry()
        self.images: dict[str, Image] = {name: Image() for name in dc_of}
        self.faults: dict[str, list[str]] = {"claims": [], "levels_honest": [], "numbers_unique": [], "hlc_rises": []}
        self.checked = {"claims": 0, "levels_honest": 0, "numbers_unique": 0, "hlc_rises": 0}
        self.losses: list[tuple[int, str]] = []
        self.rotten: set[str] = set()  # nodes whose disk lost what nobody has found out yet
        self.set_aside: dict[str, int] = {}  # nodes that have found it out, and when
        self.unpromised: tuple[bytes, ...] = ()  # how the keys begin whose writes are acknowledged before they are synced
        self._newest: dict[str, int] = {}  # node -> HLC of its newest own record
        self._now_us = now_us
        self._dc_of = dc_of
        self._quorum_of = quorum_of
        self._incarnation_of = incarnation_of
        self._unverified: dict[str, list[tuple[int, int, bytes]]] = {name: [] for name in dc_of}
        self._batches: dict[tuple[str, str, int], bytes] = {}
        self._asked: dict[tuple[str, int], tuple[int, WriteBatch]] = {}

    def _fault(self, checker: str, text: str) -> None:
        if len(self.faults[checker]) < FAULTS_KEPT:
            self.faults[checker].append(f"at {self._now_us() / 1e6:.6f} s: {text}")

    # --- watching ---------------------------------------------------------------------------------------------------

    def saw_event(self, host: Host, event: Event) -> None:
        if event.__class__ is Delivered:
            message = event.message
            if message.__class__ is Replicate:
                self._batches[host.name, event.peer, message.batch] = message.records
        elif isinstance(event, Asked) and isinstance(event.request, WriteBatch):
            self._asked[host.name, event.call] = (self._now_us(), event.request)

    def saw_effect(self, host: Host, effect: Effect) -> None:
        if effect.__class__ is Send:
            message = effect.message
            if message.__class__ is Replicated:
                self._judge_replicated(host, effect.peer, message)
            elif message.__class__ is Statement:
                self._judge_statement(host, message)
        elif effect.__class__ is Answer:
            self._judge_answer(host, effect)

    def saw_performed(self, host: Host, effect: Effect) -> None:
        pass

    def saw_written(self, host: Host, effect: Persist, segment: int, offset: int) -> None:
        self._unverified[host.name].append((segment, offset, effect.payload))
        try:
            records = decode_records(effect.payload, verify=False)
        except RecordError as error:
            self._fault("numbers_unique", f"{host.name} logged what is no record: {error}")
            return
        for record in records:
            if record.kind == DELTA:
                self._judge_hlc(host, record)
                self.checked["numbers_unique"] += 1
                other = self.registry.add(record)
                if other is not None:
                    self._fault(
                        "numbers_unique",
                        f"{host.name} logged {_named(record)} key {record.key!r}, which is also key {other.key!r}",
                    )

    def _judge_hlc(self, host: Host, record: Record) -> None:
        if unpack_origin(record.origin).node != host.name:
            return
        hlc = self._newest.get(host.name, 0)
        self.checked["hlc_rises"] += 1
        is_new = record.number not in self.registry.records.get((record.namespace, record.partition, record.origin), {})
        if is_new and record.hlc <= hlc:
            self._fault("hlc_rises", f"{host.name} stamped {_named(record)} {record.hlc:x}, after {hlc:x}")
        if record.hlc > hlc:
            self._newest[host.name] = record.hlc

    def saw_durable(self, host: Host) -> None:
        self.verify(host)

    def saw_disk(self, host: Host, what: str) -> None:
        """The disk lost power, or is another one."""
        if what == "power":
            self.verify(host)
            self._unverified[host.name].clear()
            return
        if what == "bit rot":
            # Who has not read it cannot know: claims are judged by what was there, until the table is set aside.
            self.losses.append((self._now_us(), host.name))
            self.rotten.add(host.name)
            return
        if what == "quarantine":
            self.verify(host)
            self.rotten.discard(host.name)
            self.set_aside[host.name] = self._now_us()
            self.images[host.name] = readable_image_of(host.storage.surviving())
            return
        self.losses.append((self._now_us(), host.name))
        self._newest.pop(host.name, None)
        self._unverified[host.name].clear()
        self.images[host.name] = image_of(host.storage.surviving())

    def verify(self, host: Host) -> None:
        """Take into the image what the disk would keep by now."""
        waiting = self._unverified[host.name]
        if not waiting:
            return
        image = self.images[host.name]
        left = []
        for segment, offset, payload in waiting:
            if host.storage.is_durable(segment, offset, payload):
                image.add(decode_records(payload, verify=False))
            else:
                left.append((segment, offset, payload))
        self._unverified[host.name] = left

    # --- judging ----------------------------------------------------------------------------------------------------

    def _is_held(self, image: Image, stream: StreamKey, record: Record) -> bool:
        if record.number in image.numbers.get(stream, ()):
            return True
        held = image.cells.get(record.key)
        if held is None and image.is_read_anew:
            # What was collected before the disk was read anew has left no trace there.
            return not is_lww(record.cell) or record.key in self.registry.ends
        return includes(held, record.cell)

    def _judge_replicated(self, host: Host, peer: str, message: Replicated) -> None:
        records = self._batches.pop((host.name, peer, message.batch), None)
        if records is None or message.refused or message.unknown:
            return  # who refuses any of a batch is not counted as having it
        self.verify(host)
        image = self.images[host.name]
        for record in decode_records(records, verify=False):
            self.checked["claims"] += 1
            stream = (record.namespace, record.partition, record.origin)
            if record.key.startswith(self.unpromised):
                continue
            if record.kind == CELL and not message.contiguous:
                continue  # it says so: a repair that a collection has overtaken is not taken
            if self._now_us() < self.set_aside.get(host.name, -ANSWER_US_MAX) + ANSWER_US_MAX:
                continue  # it was looked at before the table was found to be damaged, and answered after a sync
            if not self._is_held(image, stream, record):
                self._fault(
                    "claims",
                    f"{host.name} told {peer} that it has {_named(record)}, key {record.key!r}: not on its disk",
                )

    def _judge_statement(self, host: Host, message: Statement) -> None:
        self.verify(host)
        image = self.images[host.name]
        for heads in message.frontiers:
            for partition, number in zip(heads.partitions, heads.numbers, strict=True):
                stream = (heads.namespace, partition, heads.origin)
                done = image.verified.get(stream, 0)
                if number > done:
                    self._judge_frontier(host, image, stream, done, number)
                    image.verified[stream] = number

    def _judge_frontier(self, host: Host, image: Image, stream: StreamKey, above: int, upto: int) -> None:
        known = self.registry.records.get(stream, {})
        for number in range(above + 1, upto + 1):
            record = known.get(number)
            self.checked["claims"] += 1
            if record is not None and not self._is_held(image, stream, record) and not self._is_void(stream, number):
                self._fault("claims", f"{host.name} states frontier {upto}, but {_named(record)} is not on its disk")
                return

    def _is_void(self, stream: StreamKey, number: int) -> bool:
        """Whether the run that numbered it is over, and no disk holds it."""
        origin = unpack_origin(stream[2])
        is_over = self._incarnation_of(origin.node) != origin.incarnation
        return is_over and not any(number in image.numbers.get(stream, ()) for image in self.images.values())

    def _judge_answer(self, host: Host, effect: Answer) -> None:
        asked = self._asked.pop((host.name, effect.call), None)
        reply = effect.reply
        if asked is None or not isinstance(reply, WriteReply):
            return
        started_us, batch = asked
        dc = self._dc_of.get(reply.coordinator)
        for index, outcome in enumerate(reply.outcomes):
            if batch.keys[index].startswith(self.unpromised):
                continue
            if outcome in _STATED and dc is not None and reply.replicas[index]:
                self.checked["levels_honest"] += 1
                self._judge_item(started_us, dc, batch.keys[index], reply, index)

    def _judge_item(self, started_us: int, dc: str, key: bytes, reply: WriteReply, index: int) -> None:
        version, stated = reply.versions[index], reply.replicas[index]
        holders = self.holders(key, version, started_us)
        here = sum(1 for name in holders if self._dc_of[name] == dc)
        if here < stated:
            self._fault(
                "levels_honest",
                f"{reply.coordinator} said {stated} replicas have {key!r} version {version:x}; {here} have it synced",
            )
        per_dc: dict[str, int] = {}
        for name in holders:
            per_dc[self._dc_of[name]] = per_dc.get(self._dc_of[name], 0) + 1
        elsewhere = sum(1 for name, count in per_dc.items() if name != dc and count >= self._quorum_of(name))
        if reply.dcs[index] > 1 + elsewhere:
            self._fault(
                "levels_honest",
                f"{reply.coordinator} said {reply.dcs[index]} DCs have {key!r} version {version:x}; {1 + elsewhere} have it",
            )

    def holders(self, key: bytes, version: int, since_us: int) -> list[str]:
        """Nodes whose disk holds that version or a later one, or held it and was lost since `since_us`."""
        lost = {name for when_us, name in self.losses if when_us >= since_us}
        dots = self.registry.dots.get((key, version), ())
        return [name for name, image in self.images.items() if image.holds(key, version, dots) or name in lost]


def _named(record: Record) -> str:
    return f"({record.namespace:x}, {record.partition}, {record.origin!r}) number {record.number}"
