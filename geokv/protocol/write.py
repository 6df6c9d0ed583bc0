"""Write coordination: a client's batch becomes numbered records, goes to the owners, and is answered when its level is met.

    batch ──check, reserve room, is the level reachable?── no ──> refused, nothing numbered (safe to retry)
                    │ yes
                    ├─ stamp, number, encode          one part per owner set
                    ├─ Replicate to the co-owners     at once
                    ├─ Persist in the own log         at once; always among the W
                    └─ W replicas have it synced ──> EACH_QUORUM: and the other DCs' frontiers cover it ──> answer

A replica that holds a newer version says so with its acknowledgement; then the coordinator stamps once more above it, and
only where that loses too is the outcome SUPERSEDED. Not above one whose writer may have seen this very write, under way as
it still is here (found by a retry, or read): that one was to replace it, so it stands, and the outcome is SUPERSEDED at once.

Invariants: an outcome below INVALID is given only when the coordinator's own log and W-1 others have synced the
record (durability "interval": have taken it). UNAVAILABLE, OVERLOADED, INVALID and NOT_FOUND mean that nothing was
numbered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from typing import Final

from geokv.core.cell import VERSION_MAX, decode_lww, lww_version
from geokv.core.cells.operation import Operation
from geokv.core.cells.wire import OPERATION_BYTES_MAX
from geokv.core.conflict import Policy
from geokv.core.hlc import hlc_from_ms, hlc_ms
from geokv.core.limits import BATCH_ITEMS_MAX, CALLS_MAX, STORAGE_RETRY_MS, TIMEOUT_MS_MAX
from geokv.core.lww import encode_lww_record, records_bytes_max
from geokv.core.partial import Partial
from geokv.core.quorum import Consistency
from geokv.core.record import NO_OPERATION
from geokv.core.ring import key_hash
from geokv.errors import InvalidRequest, NamespaceNotFound, StorageError
from geokv.protocol.commit import Entry
from geokv.protocol.context import Context
from geokv.protocol.replication import Part, Replication
from geokv.protocol.requests import Detail, Outcome, OwnBatch, WriteBatch, WriteReply
from geokv.protocol.rights import Rights
from geokv.protocol.streams import Stream
from geokv.protocol.table import Table
from geokv.protocol.update import EXPIRED, TRIED_LATE, Gather, Updater

UNSET: Final = 255
Respond = Callable[[WriteReply], None]


class WriteCall:
    """One client batch in progress."""

    __slots__ = (
        "batch",
        "context_bytes",
        "dcs_needed",
        "deadline_us",
        "order",
        "partitions",
        "parts",
        "policy",
        "remaining",
        "reply",
        "respond",
        "started_us",
        "table",
        "updates",
    )

    def __init__(self, batch: WriteBatch, respond: Respond, coordinator: str, now_us: int) -> None:
        count = len(batch.keys)
        self.batch = batch
        self.respond: Respond | None = respond
        self.reply = WriteReply([UNSET] * count, [0] * count, [0] * count, [0] * count, coordinator, 0, 0)
        self.started_us = now_us
        # The answer must be on its way before the caller's own deadline.
        self.deadline_us = now_us + batch.timeout_ms * 1000 - min(100_000, batch.timeout_ms * 100)
        self.remaining = 0
        self.parts: list[WritePart] = []
        self.partitions: list[int] = []  # of every key
        self.table: Table | None = None
        self.policy: Policy | None = None  # under which it was asked
        self.dcs_needed = 0
        self.order = 0
        self.context_bytes = 0  # in the reply
        self.updates: list[Operation | None] = []  # what every item asks, where the policy is not `lww`


class WritePart:
    """The share of a call that goes to one owner set. `part` is None as long as nothing of it is numbered."""

    __slots__ = (
        "attempt",
        "call",
        "holds",
        "indexes",
        "is_done",
        "lost",
        "numbers",
        "part",
        "streams",
        "versions",
        "w",
        "waits_for",
    )

    def __init__(self, call: WriteCall, indexes: list[int], w: int) -> None:
        self.call = call
        self.indexes = indexes
        self.w = w
        self.attempt = 1
        self.is_done = False
        self.versions: list[int] = []
        self.numbers: list[int] = []
        self.streams: list[Stream] = []
        self.part: Part | None = None
        self.waits_for: dict[int, int] = {}  # position -> how many more datacenters must cover it
        self.lost: set[int] = set()
        self.holds = (Outcome.UNAVAILABLE, "")  # what it is answered with if its time ends before it is numbered

    def piece(self, indexes: list[int]) -> WritePart:
        """Some operations of a part that is not numbered yet, to go on by themselves."""
        return WritePart(self.call, indexes, self.w)


class WriteCoordinator:
    """Coordinates the writes that clients (or forwarding nodes) bring to this owner."""

    def __init__(
        self,
        context: Context,
        replication: Replication,
        resolve: Callable[[str], Table | None],
        gather: Gather,
        rights: Rights,
    ) -> None:
        self._context = context
        self._replication = replication
        self._resolve = resolve
        self._updater = Updater(context, gather, rights, self._refuse_one, self._nothing_left, self._launch)
        self._deadlines: list[tuple[int, int, WriteCall]] = []
        self._order = 0
        self._calls = 0
        self._awaiting_dcs: dict[Stream, list[tuple[WritePart, int, str]]] = {}
        self.log_refuses = ""
        self.clock_refuses = ""  # lww writes alone
        self.stamped = 0  # lww writes of this run
        self.storage_refuses = ""  # flushes or compactions are so far behind that clients shall wait

    @property
    def calls(self) -> int:
        return self._calls

    # --- a batch comes in -------------------------------------------------------------------------------------------

    def start(self, batch: WriteBatch, respond: Respond) -> None:
        """Coordinate `batch`, all of whose keys this node owns; answers through `respond`, once."""
        context = self._context
        call = WriteCall(batch, respond, context.node, context.now_us)
        self._calls += 1
        try:
            table = self._checked(batch)
            level = batch.level or table.definition.write_level
            w = table.write_needs(level, batch.w)
            call.dcs_needed = self._dcs_needed(table, level, batch.replicated_to)
        except InvalidRequest as error:
            outcome = Outcome.NOT_FOUND if isinstance(error, NamespaceNotFound) else Outcome.INVALID
            self._refuse(call, range(len(batch.keys)), outcome, str(error))
            self._finish_if_complete(call)
            return
        call.table, call.policy = table, table.policy
        self._check_items(call, table)
        if batch.remaining_ms:
            self._refuse_expired(call)
        if batch.operations and self._context.operation_ids.held:
            self._refuse_late(call)
        if table.policy.kind is None:
            self._check_contexts(call, table)
        else:
            call.updates = [None] * len(batch.keys)
            call.reply.contexts = [b""] * len(batch.keys)
            if isinstance(batch, OwnBatch):
                call.updates = list(batch.own)
            else:
                self._updater.read(call, table)
        parts = self._admit(call, table, w)
        if parts:
            self._order += 1
            call.order = self._order
            heappush(self._deadlines, (call.deadline_us, call.order, call))
            if table.policy.kind is None:
                call.remaining, call.parts = len(parts), parts
                for part in parts:
                    self._begin(part, table)
            else:
                shares = [share for part in parts for share in self._updater.cut(part, table)]
                call.remaining, call.parts = len(shares), [part for part, _ in shares]
                for part, begin in shares:
                    begin(part, table)
        self._finish_if_complete(call)

    def _checked(self, batch: WriteBatch) -> Table:
        table = self._resolve(batch.namespace)
        count = len(batch.keys)
        if table is None:
            raise NamespaceNotFound(
                f"no namespace {batch.namespace!r} here: create it first (geokv namespace create)",
                namespace=batch.namespace,
            )
        if not 0 < count <= BATCH_ITEMS_MAX:
            raise InvalidRequest(f"a batch of {count} operations: between 1 and {BATCH_ITEMS_MAX}")
        if len(batch.values) != count:
            raise InvalidRequest(f"{count} keys with {len(batch.values)} values")
        columns = (batch.operations, batch.contexts, batch.remaining_ms)
        if any(column and len(column) != count for column in columns):
            lengths = ", ".join(str(len(column)) for column in columns)
            raise InvalidRequest(f"{count} keys with columns (operations, contexts, remaining_ms) of {lengths} entries")
        if not 0 < batch.timeout_ms <= TIMEOUT_MS_MAX:
            raise InvalidRequest(f"timeout of {batch.timeout_ms} ms: between 1 and {TIMEOUT_MS_MAX}")
        if batch.ttl_ms < -1:
            raise InvalidRequest(f"ttl of {batch.ttl_ms} ms: give more than 0, or none")
        if self._context.dc not in table.definition.dcs:
            raise InvalidRequest(
                f"namespace {batch.namespace!r} is not held by {self._context.dc}: ask one of {', '.join(table.definition.dcs)}"
            )
        if batch.has_updates and table.policy.kind is None:
            raise InvalidRequest(f"namespace {batch.namespace!r} holds plain values (lww): it has put and delete, no updates")
        return table

    def _dcs_needed(self, table: Table, level: Consistency, replicated_to: int) -> int:
        """How many DCs in all must cover the write before the answer (0 or 1: this one)."""
        count = len(table.definition.dcs)
        if level is Consistency.EACH_QUORUM:
            return count
        if replicated_to > count:
            raise InvalidRequest(f"replicated_to={replicated_to}, but {count} datacenters hold this namespace")
        return replicated_to

    def _check_items(self, call: WriteCall, table: Table) -> None:
        """Mark the operations that can never succeed."""
        definition = table.definition
        batch = call.batch
        key_max = definition.key_bytes_max
        value_max = OPERATION_BYTES_MAX if batch.has_updates else definition.value_bytes_max
        lengths = list(map(len, batch.keys))
        value_lengths = [len(value) for value in batch.values if value is not None]
        if min(lengths) > 0 and max(lengths) <= key_max and max(value_lengths, default=0) <= value_max:
            return  # nearly always
        for index, key in enumerate(batch.keys):
            value = batch.values[index]
            if 0 < len(key) <= key_max and (value is None or len(value) <= value_max):
                continue
            if not key:
                text = "empty key: a key has at least one byte"
            elif len(key) > key_max:
                text = f"key of {len(key)} bytes: at most {key_max}"
            else:
                text = (
                    f"value of {len(value or b'')} bytes: at most {value_max} in namespace {definition.name!r}"
                    f" (raise it with: geokv namespace alter {definition.name} --value-bytes-max N)"
                )
            self._refuse(call, (index,), Outcome.INVALID, text)

    def _refuse_expired(self, call: WriteCall) -> None:
        """Refuse what nobody waits for any more: its caller was told that the time is up."""
        late = [index for index, left_ms in enumerate(call.batch.remaining_ms) if left_ms <= 0]
        if late:
            self._context.note("write.expired", len(late))
            self._refuse(call, late, Outcome.DEADLINE, EXPIRED)

    def _refuse_late(self, call: WriteCall) -> None:
        """Refuse first tries of what a retry has taken over, here or elsewhere."""
        names, batch = self._context.operation_ids, call.batch
        late = [index for index, name in enumerate(batch.operations) if not names.may_number(name, batch.right)]
        if late:
            self._context.note("write.tried_late", len(late))
            self._refuse(call, late, Outcome.AMBIGUOUS, TRIED_LATE)

    def _check_contexts(self, call: WriteCall, table: Table) -> None:
        """Mark the operations whose context is none, or is ahead of everything that can be here."""
        batch = call.batch
        if batch.contexts:
            limit = hlc_from_ms(self._context.wall_ms + self._context.clock.drift_ms_max)
            for index, token in enumerate(batch.contexts):
                if not token:
                    continue
                version = int.from_bytes(token, "big")
                if len(token) == 8 and version > limit:
                    try:
                        stored = table.visible(batch.keys[index])  # a clock may have been far ahead when it was made
                    except StorageError as error:
                        self._refuse(call, (index,), Outcome.UNAVAILABLE, self._unreadable(error))
                        continue
                    limit_here = lww_version(stored) if stored is not None else 0
                else:
                    limit_here = limit
                if len(token) != 8 or version > limit_here:
                    self._refuse(call, (index,), Outcome.INVALID, "this context was not made by this cluster")

    def _admit(self, call: WriteCall, table: Table, w: int) -> list[WritePart]:
        """Cut the batch by owner set and refuse, before anything is numbered, what cannot reach its level."""
        context = self._context
        placement = table.placement
        outcomes = call.reply.outcomes
        by_set: dict[int, list[int]] = {}
        set_of, shift, is_mine = placement.set_of, placement.shift, placement.is_mine
        keys, values = call.batch.keys, call.batch.values
        call.partitions = partitions = [key_hash(key) >> shift for key in keys]
        lost = context.claims.mine(table.definition.id)
        for index, partition in enumerate(partitions):
            if outcomes[index] == UNSET:
                if partition in lost:
                    self._refuse(call, (index,), Outcome.UNAVAILABLE, context.claims.why(table.definition.id, partition))
                elif is_mine[partition]:
                    by_set.setdefault(set_of[partition], []).append(index)
                else:
                    self._refuse(call, (index,), Outcome.WRONG_NODE, f"{context.node} does not own this key's partition")
        refusal = self._refusal(records_bytes_max(keys, values, context.packed))
        if self.clock_refuses and table.policy.kind is None:
            refusal = Outcome.UNAVAILABLE, self.clock_refuses
        parts: list[WritePart] = []
        for owner_set, indexes in by_set.items():
            if refusal:
                self._refuse(call, indexes, *refusal)
                continue
            live = 1 + len(context.peers.live(placement.peers_of_set[owner_set], context.now_us))
            if live < w:
                text = f"{w} replicas needed, {live} of {placement.replicas} live"
                self._refuse(call, indexes, Outcome.UNAVAILABLE, text, w, live)
                continue
            parts.append(WritePart(call, indexes, w))
        return parts

    def _refusal(self, nbytes: int) -> tuple[Outcome, str] | None:
        context = self._context
        if context.is_refusing:
            return Outcome.UNAVAILABLE, context.is_refusing
        if self.log_refuses:
            return Outcome.UNAVAILABLE, self.log_refuses
        if self.storage_refuses:
            return Outcome.OVERLOADED, self.storage_refuses
        no_room = context.commit.reserve(2 * nbytes)
        if no_room and context.commit.room_reason:
            return Outcome.UNAVAILABLE, f"read-only: {no_room}"
        if no_room:
            return Outcome.OVERLOADED, no_room
        if self._calls > CALLS_MAX or self._replication.is_full:
            return Outcome.OVERLOADED, f"{self._calls} calls in progress"
        return None

    def _refuse(
        self, call: WriteCall, indexes: Iterable[int], outcome: Outcome, text: str, required: int = 0, achieved: int = 0
    ) -> None:
        retry_after_ms = (STORAGE_RETRY_MS if self.storage_refuses else 50) if outcome is Outcome.OVERLOADED else 0
        detail = Detail(text, required, achieved, retry_after_ms=retry_after_ms)
        for index in indexes:
            call.reply.outcomes[index] = outcome
            call.reply.details[index] = detail

    def _refuse_one(self, call: WriteCall, indexes: list[int], outcome: Outcome, detail: Detail) -> None:
        for index in indexes:
            call.reply.outcomes[index] = outcome
            call.reply.details[index] = detail

    def _nothing_left(self, part: WritePart) -> None:
        """All operations of a part were refused before anything of it was numbered."""
        part.is_done = True
        part.call.remaining -= 1
        self._finish_if_complete(part.call)

    # --- numbering --------------------------------------------------------------------------------------------------

    def _unreadable(self, error: StorageError) -> str:
        return f"{self._context.node} cannot read what it holds of this key ({error}); nothing was numbered"

    def _begin(self, part: WritePart, table: Table) -> None:
        """Write a part, unless what its cells build upon cannot be read."""
        try:
            stored = _stored(table, part)
        except StorageError as error:  # a cache has let go of what was loaded, and now it cannot be read
            self._refuse(part.call, part.indexes, Outcome.UNAVAILABLE, self._unreadable(error))
            self._nothing_left(part)
        else:
            self._write(part, table, part.indexes, stored)

    def _write(
        self,
        part: WritePart,
        table: Table,
        indexes: list[int],
        before: list[bytes | None],
        above: dict[int, int] | None = None,
    ) -> None:
        """Stamp, number and encode the operations of `part`, hand them to the log and to the co-owners.

        `before`: what is stored of each key. `above`: version to exceed, per position in the part (second attempt).
        """
        context = self._context
        batch = part.call.batch
        definition = table.definition
        packed, namespace, call_partitions = context.packed, definition.id, part.call.partitions
        keys, values, operations, contexts = batch.keys, batch.values, batch.operations, batch.contexts
        hlc = context.clock.stamps(context.wall_ms, len(indexes)) - 1
        context.commit.originated(hlc + 1)
        table.came(hlc + 1)
        self.stamped += len(indexes)
        ttl_ms = batch.ttl_ms or definition.ttl_ms
        deadline_ms = hlc_ms(hlc) + ttl_ms if ttl_ms > 0 else 0
        waiting = table.waiting
        partitions = table.streams.partitions
        entries: list[Entry] = []
        raws: list[bytes] = []
        versions: list[int] = []
        numbers: list[int] = []
        streams: list[Stream] = []
        unseen: bytes | None = None  # what is replaced although the client had read an older one
        for position, index in enumerate(indexes):
            key = keys[index]
            value = values[index]
            hlc += 1
            version, replaced = hlc, 0
            stored = waiting.get(key)
            if type(stored) is not bytes:
                stored = before[position]
            if stored is not None:
                replaced = int.from_bytes(stored[1:9], "big")
                if replaced >= version:
                    version = min(replaced + 1, VERSION_MAX)
            if contexts and contexts[index]:
                seen = int.from_bytes(contexts[index], "big")
                if seen < replaced and above is None:
                    unseen = stored
                replaced = max(replaced, seen)
                version = max(version, seen + 1)
            if above is not None:
                version = max(version, above[position] + 1)
            partition = call_partitions[index]
            stream = partitions[partition].get(packed) or table.streams.make(partition, packed)
            number = stream.received + 1
            stream.received = number
            raw, cell = encode_lww_record(
                partition,
                namespace,
                number,
                hlc,
                operations[index] if operations else NO_OPERATION,
                packed,
                key,
                version,
                deadline_ms if value is not None else 0,
                replaced,
                value,
            )
            if unseen is not None:
                context.journal.overwrote_lww(table, key, unseen, cell, context.wall_ms)
                unseen = None
            waiting[key] = cell if stored is None or cell > stored else stored
            entries.append((raw, stream, number))
            raws.append(raw)
            versions.append(version)
            numbers.append(number)
            streams.append(stream)
        part.versions, part.numbers, part.streams = versions, numbers, streams
        if operations:
            names = operations if len(indexes) == len(operations) else [operations[index] for index in indexes]
            context.operation_ids.numbered(names, numbers, versions)
        self._launch(part, table, entries, raws)

    def _launch(self, part: WritePart, table: Table, entries: list[Entry], raws: list[bytes]) -> None:
        """Hand the numbered records of a part to the co-owners and to the log."""
        context, placement = self._context, table.placement
        records = b"".join(raws)
        peers = placement.peers_of_set[placement.set_of[part.call.partitions[part.indexes[0]]]]
        sent = self._replication.start(peers, records, lambda _: self._progress(part))
        part.part = sent
        if table.is_interval:
            sync_by_us = context.now_us + table.definition.interval_ms * 1000
            context.commit.add(entries, len(records), (table,), None, sync_by_us)
            self._replication.own_synced(sent)
        else:
            context.commit.add(entries, len(records), (table,), lambda: self._replication.own_synced(sent), None)

    # --- answers come in --------------------------------------------------------------------------------------------

    def _progress(self, part: WritePart) -> None:
        sent = part.part
        if part.is_done or sent is None or not sent.is_own_synced or len(sent.acked) + 1 < part.w:
            return
        if part.waits_for:
            return  # its level was met before: an answer that comes later changes nothing
        if not sent.newer:
            self._achieved(part)
        elif part.attempt == 1 and part.call.table is not None:
            self._write_again(part, part.call.table, sent)
        else:
            part.lost = set(sent.newer)
            self._achieved(part)

    def _write_again(self, part: WritePart, table: Table, sent: Part) -> None:
        """Some replica holds a newer version of some keys: settle the others, stamp those once more above it."""
        seen = self._seen_by_newer(part, table, sent)
        lost = [position for position in sorted(sent.newer) if position not in seen]
        kept = [position for position in range(len(part.indexes)) if position not in sent.newer]
        self._replication.release(sent)
        for positions, is_lost in ((kept, False), (seen, True)):
            if positions:
                share = self._share(part, positions)
                share.lost = set(range(len(positions))) if is_lost else set()
                part.call.remaining += 1
                self._achieved(share)
        if not lost:
            self._nothing_left(part)
            return
        batch, packed = part.call.batch, self._context.packed
        indexes = [part.indexes[position] for position in lost]
        again_bytes = records_bytes_max([batch.keys[i] for i in indexes], [batch.values[i] for i in indexes], packed)
        part_again = part.piece(indexes)
        # Under another policy it is no table of lww cells any more.
        changed = "" if table.policy is part.call.policy else "the policy was changed meanwhile"
        cannot = changed or self._context.commit.reserve(again_bytes) or self._cannot_go_on(part)
        stored: list[bytes | None] = []
        try:
            stored = [] if cannot else _stored(table, part_again)
        except StorageError as error:
            cannot = str(error)
        if cannot:
            part.is_done = True
            again = self._share(part, lost)
            again.lost = set(range(len(lost)))
            self._achieved(again)  # it cannot be tried again: it lost, and the outcome says so
            return
        self._context.note("write.stamped_again", len(lost))
        part.attempt = 2
        part.indexes = [part.indexes[position] for position in lost]
        self._write(part, table, part.indexes, stored, {at: sent.newer[position] for at, position in enumerate(lost)})

    def _seen_by_newer(self, part: WritePart, table: Table, sent: Part) -> list[int]:
        """Those that lost to a version whose writer may have seen them, as a replica says or as is held here."""
        seen = [position for position, above in sorted(sent.newer.items()) if not above]
        if table.policy is not part.call.policy:
            return seen
        for position in [position for position, above in sorted(sent.newer.items()) if above]:
            try:
                (held,) = _stored(table, part.piece([part.indexes[position]]))
            except StorageError:
                continue
            if held is not None and lww_version(held) > part.versions[position] <= decode_lww(held).replaced:
                seen.append(position)
        return seen

    def _cannot_go_on(self, part: WritePart) -> str:
        """Why this node does not number for these partitions any more (empty: it does)."""
        call, claims = part.call, self._context.claims
        lost = claims.mine(call.table.definition.id) if call.table is not None else ()
        found = next((call.partitions[i] for i in part.indexes if call.partitions[i] in lost), None) if lost else None
        return "" if found is None or call.table is None else claims.why(call.table.definition.id, found)

    def _share(self, part: WritePart, positions: list[int]) -> WritePart:
        """Some operations of a part, to be settled on their own."""
        share = WritePart(part.call, [part.indexes[position] for position in positions], part.w)
        share.attempt = part.attempt
        share.part = part.part
        share.versions = [part.versions[position] for position in positions]
        share.numbers = [part.numbers[position] for position in positions]
        share.streams = [part.streams[position] for position in positions]
        part.call.parts.append(share)
        return share

    def _achieved(self, part: WritePart) -> None:
        """The level is met here; now the other datacenters, where the request wants them."""
        call = part.call
        if call.dcs_needed > 1 and call.table is not None:
            self._await_dcs(part, call.table)
            if part.waits_for or part.is_done:
                return
        self._settle(part)

    def _settle(self, part: WritePart, is_pending: bool = False) -> None:
        """Write the outcomes of a part whose level is met (`is_pending`: met here, not yet in the other datacenters)."""
        sent = part.part
        if part.is_done or sent is None:
            return
        part.is_done = True
        call = part.call
        reply = call.reply
        count = len(part.indexes)
        outcomes: list[int] = [Outcome.PENDING if is_pending else Outcome.APPLIED] * count
        for position in part.lost:
            outcomes[position] = Outcome.SUPERSEDED
        replicas = [sent.replicas] * count
        dcs = [1 + _covering(stream, number) for stream, number in zip(part.streams, part.numbers, strict=True)]
        if count == len(reply.outcomes):  # all of the batch, the usual case
            reply.outcomes, reply.versions, reply.replicas, reply.dcs = outcomes, part.versions, replicas, dcs
        else:
            columns = zip(part.indexes, outcomes, part.versions, replicas, dcs, strict=True)
            for index, *row in columns:
                reply.outcomes[index], reply.versions[index], reply.replicas[index], reply.dcs[index] = row
        if is_pending:
            reply.details.update(dict.fromkeys(part.indexes, self._pending_detail(part)))
        self._replication.release(sent)
        call.remaining -= 1
        self._finish_if_complete(call)

    def _pending_detail(self, part: WritePart) -> Detail:
        """Which datacenters are still to cover the write, and why that may take long."""
        self._stop_waiting(part)
        table = part.call.table
        dcs = table.definition.dcs if table is not None else ()
        lacking = [dc for dc in dcs if any(s.dcs.get(dc, 0) < n for s, n in zip(part.streams, part.numbers, strict=True))]
        lacking = [dc for dc in lacking if dc != self._context.dc]
        off = [dc for dc in lacking if table is not None and dc not in table.ships_to(self._context.dc)]
        why = f" (shipping to {', '.join(off)} is switched off for this namespace)" if off else ""
        text = f"written here; still to be confirmed by {', '.join(lacking)}{why}"
        return Detail(text, part.call.dcs_needed, part.call.dcs_needed - len(lacking))

    def _finish_if_complete(self, call: WriteCall) -> None:
        if call.remaining or call.respond is None:
            return
        respond, call.respond = call.respond, None
        self._calls -= 1
        call.reply.hlc = self._context.clock.last
        call.reply.elapsed_us = self._context.now_us - call.started_us
        respond(call.reply)

    # --- other datacenters ------------------------------------------------------------------------------------------

    def _await_dcs(self, part: WritePart, table: Table) -> None:
        """Wait, per record, for as many other datacenters as the request wants and do not cover it yet."""
        others = table.ships_to(self._context.dc)
        wanted = part.call.dcs_needed - 1
        for position, stream in enumerate(part.streams):
            number = part.numbers[position]
            lacking = [dc for dc in others if stream.dcs.get(dc, 0) < number]
            missing = wanted - _covering(stream, number)
            if missing > 0:
                part.waits_for[position] = missing
                for dc in lacking:
                    self._awaiting_dcs.setdefault(stream, []).append((part, position, dc))
        if len(others) < wanted and part.waits_for:
            self._settle(part, is_pending=True)  # nothing to wait for: name it at once

    def covered(self, stream: Stream) -> None:
        """Another datacenter's frontier on an own stream has moved."""
        waits = self._awaiting_dcs.pop(stream, None)
        if not waits:
            return
        still = [wait for wait in waits if not self._is_met(stream, *wait)]
        if still:
            self._awaiting_dcs[stream] = still

    def _is_met(self, stream: Stream, part: WritePart, position: int, dc: str) -> bool:
        """Whether one wait is over; settles its part with the last one."""
        if part.is_done:
            return True
        if stream.dcs.get(dc, 0) < part.numbers[position]:
            return False
        left = part.waits_for.get(position, 0) - 1
        if left > 0:
            part.waits_for[position] = left
        else:
            part.waits_for.pop(position, None)
        if not part.waits_for:
            self._settle(part)
        return True

    def _stop_waiting(self, part: WritePart) -> None:
        """Nobody waits for the other datacenters any more."""
        for stream in dict.fromkeys(part.streams):
            still = [wait for wait in self._awaiting_dcs.pop(stream, ()) if wait[0] is not part]
            if still:
                self._awaiting_dcs[stream] = still

    # --- time -------------------------------------------------------------------------------------------------------

    def wake_at_us(self) -> int | None:
        while self._deadlines and self._deadlines[0][2].respond is None:
            heappop(self._deadlines)
        due_us = self._deadlines[0][0] if self._deadlines else None
        look_us = self._updater.wake_at_us()
        return due_us if look_us is None else look_us if due_us is None else min(due_us, look_us)

    def tick(self) -> None:
        """Answer what has reached its deadline with what is known."""
        self._updater.tick()
        now_us = self._context.now_us
        while self._deadlines and (self._deadlines[0][0] <= now_us or self._deadlines[0][2].respond is None):
            call = heappop(self._deadlines)[2]
            if call.respond is not None:
                self._expire(call, "the deadline has passed")

    def _expire(self, call: WriteCall, why: str) -> None:
        for part in [part for part in call.parts if not part.is_done]:
            if part.part is None:
                outcome, text = part.holds
                self._refuse(call, part.indexes, outcome, f"{why}: {text}")
                part.is_done = True
            elif part.waits_for:
                self._settle(part, is_pending=True)
            else:
                self._fall_short(part, why)
        call.remaining = 0
        self._finish_if_complete(call)

    def _fall_short(self, part: WritePart, why: str) -> None:
        """PARTIAL with who has it; AMBIGUOUS where not even the own log is known to have it."""
        sent = part.part
        assert sent is not None
        part.is_done = True
        who = tuple(([self._context.node] if sent.is_own_synced else []) + sent.acked)
        outcome = Outcome.PARTIAL if who else Outcome.AMBIGUOUS
        held = f"synced by {', '.join(who)}" if who else "no replica has said that it is synced"
        detail = Detail(f"{why}: {len(who)} of {part.w} replicas; {held}", part.w, len(who), who)
        for position, index in enumerate(part.indexes):
            part.call.reply.outcomes[index] = outcome
            part.call.reply.versions[index] = part.versions[position]
            part.call.reply.replicas[index] = len(who)
            part.call.reply.details[index] = detail
        self._replication.release(sent)

    def end(self, why: str) -> None:
        """The incarnation ends: nobody knows any more what becomes of what is in progress."""
        for _, _, call in self._deadlines:
            if call.respond is not None:
                self._expire(call, why)
        self._deadlines.clear()


def _stored(table: Table, part: WritePart) -> list[bytes | None]:
    """What is stored of each key of a part, whole. Raises StorageError; nothing was numbered before it."""
    keys = part.call.batch.keys
    waiting, flying, get = table.waiting, table.flying, table.cells.get
    found = [waiting.get(keys[index]) or flying.get(keys[index]) or get(keys[index]) for index in part.indexes]
    if Partial in map(type, found):
        found = [table.visible(keys[i]) if type(cell) is Partial else cell for i, cell in zip(part.indexes, found, strict=True)]
    return found


def _covering(stream: Stream, number: int) -> int:
    """How many other datacenters cover that number of an own stream."""
    covered = stream.dcs
    return sum([upto >= number for upto in covered.values()]) if covered else 0
