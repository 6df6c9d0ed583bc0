"""Read coordination: own cell, digests from the others, cells where they differ, the merge, and repair of who was stale.

    own cells ──┐
    digests  ───┴─ all equal? ── yes ──> answer
                       │ no
                       └─ ask the cells, merge ──> answer ──> repair who was stale      (repair=before: repair, then answer)

A key whose own cell is on its way to the disk waits for that sync: a replica never shows what it has not synced. An
owner that stays silent is replaced by another one after `ASK_MORE_US`.

Invariants: with R+W>N the answer merges at least one replica of every write acknowledged before the read began.
Where cells differ and a replica has collected since the read began, it begins anew: what that one has no more was a
tombstone perhaps, and another one's cell was read before it came there.
Repair carries cells as they are; it makes no dots. It names the receiver's count of collections, as it was known before any
cell was read: who has collected since takes nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from typing import Final

import mmh3

from geokv.core.cell import live_value, lww_version
from geokv.core.cells.update import show
from geokv.core.conflict import Policy
from geokv.core.hlc import hlc_ms
from geokv.core.limits import BATCH_ITEMS_MAX, CALLS_MAX, READ_ANSWER_BYTES_MAX, TIMEOUT_MS_MAX
from geokv.core.quorum import Consistency, needed
from geokv.core.record import CELL, NO_OPERATION, encode_record
from geokv.core.ring import key_hash
from geokv.errors import InvalidRequest, NamespaceNotFound, RecordError, StorageError
from geokv.protocol.context import Context
from geokv.protocol.intake import Intake
from geokv.protocol.messages import CellsRead, ReadCells
from geokv.protocol.replication import Part, Replication
from geokv.protocol.requests import Detail, Outcome, ReadBatch, ReadReply
from geokv.protocol.table import Table

ASK_MORE_US: Final = 150_000
SERVE_US_MAX: Final = 10_000_000  # a co-owner's question that has waited so long for the disk is not answered any more
UNSET: Final = 255
NO_DIGEST: Final = bytes(8)
Respond = Callable[[ReadReply], None]
Then = Callable[[list[bytes | None] | None], None]


def digest_of(cell: bytes | None) -> bytes:
    """Eight bytes that stand for a cell; zeros where there is none."""
    return mmh3.hash_bytes(cell)[:8] if cell is not None else NO_DIGEST


def _are_of(table: Table, cells: Iterable[bytes]) -> bool:
    """Whether a replica's cells are of the policy that is known here, and not of one that it was changed to."""
    try:
        return all(not cell or table.policy.holds(cell) for cell in cells)
    except RecordError:
        return True  # damaged: who merges it, tells


class ReadCall:
    """One client batch of gets in progress."""

    __slots__ = ("batch", "deadline_us", "nbytes", "policy", "remaining", "reply", "respond", "started_us", "table")

    def __init__(self, batch: ReadBatch, respond: Respond, coordinator: str, now_us: int) -> None:
        count = len(batch.keys)
        self.batch = batch
        self.respond: Respond | None = respond
        self.reply = ReadReply([UNSET] * count, [None] * count, [0] * count, [0] * count, coordinator, 0, 0)
        self.started_us = now_us
        self.deadline_us = now_us + batch.timeout_ms * 1000 - min(100_000, batch.timeout_ms * 100)
        self.remaining = 0
        self.nbytes = 0  # of the values in the reply
        self.table: Table | None = None
        self.policy: Policy | None = None  # that the answer's form is of


class ReadPart:
    """The share of a call that one owner set answers."""

    __slots__ = (
        "asked",
        "call",
        "cells",
        "collections",
        "digests",
        "error",
        "fetches",
        "fetching",
        "has_own",
        "indexes",
        "is_done",
        "is_outdated",
        "keys",
        "peers",
        "query",
        "r",
        "repairs",
        "theirs",
        "then",
    )

    def __init__(self, call: ReadCall, indexes: list[int], keys: list[bytes], r: int, peers: tuple[str, ...]) -> None:
        self.call = call
        self.indexes = indexes
        self.keys = keys
        self.r = r
        self.peers = peers
        self.asked: list[str] = []
        self.digests: dict[str, bytes] = {}  # peer -> its digests of all keys
        self.fetching: dict[str, list[int]] = {}  # peer -> positions whose cells are wanted of it
        self.fetches: dict[int, tuple[str, list[int]]] = {}  # query -> (peer, positions), not answered yet
        self.repairs: list[Part] = []
        self.theirs: dict[str, dict[int, bytes | None]] = {}  # peer -> position -> its cell
        self.cells: list[bytes | None] | None = None  # own cells, once settled
        self.query = 0
        self.has_own = True  # the own copy can be read
        self.error = ""  # why a replica that was asked could not answer
        self.collections: dict[str, int] = {}  # replica -> its count of collections, known before any cell was read
        self.is_outdated = False  # somebody has collected since: what was read must not repair it
        self.is_done = False
        self.then: Then | None = None  # who wants the cells themselves, instead of a client its values


class ReadCoordinator:
    """Coordinates reads on an owner, and answers those of other coordinators."""

    def __init__(
        self, context: Context, replication: Replication, intake: Intake, resolve: Callable[[str], Table | None]
    ) -> None:
        self._context = context
        self._replication = replication
        self._intake = intake
        self._resolve = resolve
        self._by_query: dict[int, ReadPart] = {}
        self._deadlines: list[tuple[int, int, ReadPart]] = []
        self._order = 0
        self._calls = 0
        self._serving: set[tuple[str, int]] = set()  # (peer, query) that wait for the disk; as many as loads may wait

    @property
    def calls(self) -> int:
        return self._calls

    # --- a client's batch -------------------------------------------------------------------------------------------

    def start(self, batch: ReadBatch, respond: Respond) -> None:
        """Coordinate `batch`, all of whose keys this node owns; answers through `respond`, once."""
        context = self._context
        call = ReadCall(batch, respond, context.node, context.now_us)
        self._calls += 1
        try:
            table = self._checked(batch)
            replicas = table.placement.replicas
            r = needed(batch.level or table.definition.read_level, batch.r, replicas)
            if batch.repair_before:
                r = max(r, replicas // 2 + 1)
        except InvalidRequest as error:
            outcome = Outcome.NOT_FOUND if isinstance(error, NamespaceNotFound) else Outcome.INVALID
            self._refuse(call, range(len(batch.keys)), outcome, str(error))
            self._finish_if_complete(call)
            return
        call.table, call.policy = table, table.policy
        if table.policy.kind is not None:
            call.reply.policy, call.reply.contexts = table.policy.name, [b""] * len(batch.keys)
        parts = self._admit(call, table, r)
        call.remaining = len(parts)
        for part in parts:
            self._gather(part, table)
        self._finish_if_complete(call)

    def quorum(self, table: Table, keys: list[bytes], deadline_us: int, then: Then) -> None:
        """The merged cells of `keys`, all of one owner set, as a majority of its owners holds them.

        `then` gets None where they cannot be had by the deadline; it is called once.
        """
        context, placement = self._context, table.placement
        call = ReadCall(ReadBatch(table.definition.name, keys), lambda reply: None, context.node, context.now_us)
        call.deadline_us, call.table, call.remaining, call.policy = deadline_us, table, 1, table.policy
        self._calls += 1
        peers = placement.peers_of_set[placement.set_of[key_hash(keys[0]) >> placement.shift]]
        if not context.claims.is_whole:
            for partition in {key_hash(key) >> placement.shift for key in keys}:
                peers = context.claims.holders(peers, table.definition.id, partition)
        part = ReadPart(call, list(range(len(keys))), keys, placement.replicas // 2 + 1, peers)
        part.then = then
        if 1 + len(context.peers.live(peers, context.now_us)) < part.r:
            self._expire(part, f"too few replicas are live{self._lacking(table)}")
        else:
            self._gather(part, table)

    def _checked(self, batch: ReadBatch) -> Table:
        table = self._resolve(batch.namespace)
        if table is None:
            raise NamespaceNotFound(
                f"no namespace {batch.namespace!r} here: create it first (geokv namespace create)",
                namespace=batch.namespace,
            )
        if not 0 < len(batch.keys) <= BATCH_ITEMS_MAX:
            raise InvalidRequest(f"a batch of {len(batch.keys)} keys: between 1 and {BATCH_ITEMS_MAX}")
        if not 0 < batch.timeout_ms <= TIMEOUT_MS_MAX:
            raise InvalidRequest(f"timeout of {batch.timeout_ms} ms: between 1 and {TIMEOUT_MS_MAX}")
        if batch.level is Consistency.EACH_QUORUM:
            raise InvalidRequest("EACH_QUORUM is a level of writes: read at QUORUM, or at ALL")
        if self._context.dc not in table.definition.dcs:
            raise InvalidRequest(
                f"namespace {batch.namespace!r} is not held by {self._context.dc}: ask one of {', '.join(table.definition.dcs)}"
            )
        return table

    def _admit(self, call: ReadCall, table: Table, r: int) -> list[ReadPart]:
        context = self._context
        placement = table.placement
        keys = call.batch.keys
        if context.is_refusing or self._calls > CALLS_MAX:
            outcome = Outcome.UNAVAILABLE if context.is_refusing else Outcome.OVERLOADED
            self._refuse(call, range(len(keys)), outcome, context.is_refusing or f"{self._calls} calls in progress")
            return []
        by_set: dict[int, list[int]] = {}
        set_of, shift, key_max = placement.set_of, placement.shift, table.definition.key_bytes_max
        for index, key in enumerate(keys):
            if not 0 < len(key) <= key_max:
                self._refuse(call, (index,), Outcome.INVALID, f"key of {len(key)} bytes: between 1 and {key_max}")
                continue
            partition = key_hash(key) >> shift
            if placement.is_mine[partition]:
                by_set.setdefault(set_of[partition], []).append(index)
            else:
                self._refuse(call, (index,), Outcome.WRONG_NODE, f"{context.node} does not own this key's partition")
        parts: list[ReadPart] = []
        for peers, indexes in self._by_peers(call, table, by_set):
            live = 1 + len(context.peers.live(peers, context.now_us))
            if live < r:
                text = f"{r} replicas needed, {live} of {placement.replicas} live{self._lacking(table)}"
                self._refuse(call, indexes, Outcome.UNAVAILABLE, text, r, live)
            else:
                parts.append(ReadPart(call, indexes, [keys[index] for index in indexes], r, peers))
        return parts

    def _by_peers(
        self, call: ReadCall, table: Table, by_set: dict[int, list[int]]
    ) -> Iterable[tuple[tuple[str, ...], list[int]]]:
        """The keys of each owner set with the others who may be asked for them; what this node cannot serve is refused."""
        claims, placement, namespace = self._context.claims, table.placement, table.definition.id
        if claims.is_whole:
            return [(placement.peers_of_set[owner_set], indexes) for owner_set, indexes in by_set.items()]
        found: dict[tuple[str, ...], list[int]] = {}
        for owner_set, indexes in by_set.items():
            for index in indexes:
                partition = key_hash(call.batch.keys[index]) >> placement.shift
                if partition in claims.mine(namespace):
                    self._refuse(call, (index,), Outcome.UNAVAILABLE, claims.why(namespace, partition))
                else:
                    peers = claims.holders(placement.peers_of_set[owner_set], namespace, partition)
                    found.setdefault(peers, []).append(index)
        return found.items()

    def _lacking(self, table: Table) -> str:
        """Who does not count towards a level though it lives, in words."""
        lacking = self._context.claims.lacking(table.definition.id)
        return f"; {', '.join(lacking)} cannot serve some partitions (see geokv status)" if lacking else ""

    def _refuse(
        self, call: ReadCall, indexes: Iterable[int], outcome: Outcome, text: str, required: int = 0, achieved: int = 0
    ) -> None:
        detail = Detail(text, required, achieved, retry_after_ms=50 if outcome is Outcome.OVERLOADED else 0)
        for index in indexes:
            call.reply.outcomes[index] = outcome
            call.reply.details[index] = detail

    # --- gathering --------------------------------------------------------------------------------------------------

    def _gather(self, part: ReadPart, table: Table) -> None:
        context = self._context
        part.collections = {**table.collections_of, context.node: table.collections}
        if part.r > 1:
            part.query = context.next_id()
            self._by_query[part.query] = part
            live = context.peers.live(part.peers, context.now_us)
            start = part.query % len(live)
            for peer in (live[start:] + live[:start])[: part.r - 1]:
                self._ask(part, table, peer)
            self._order += 1
            heappush(self._deadlines, (context.now_us + ASK_MORE_US, self._order, part))
        self._when_settled(table, part.keys, lambda: self._own_cells(part, table))
        if part.r == 1 and not part.is_done:  # it waits for the disk
            self._order += 1
            heappush(self._deadlines, (part.call.deadline_us, self._order, part))

    def _ask(self, part: ReadPart, table: Table, peer: str) -> None:
        part.asked.append(peer)
        self._context.send(peer, ReadCells(part.query, table.definition.id, part.keys, digests=True))

    def _when_settled(self, table: Table, keys: list[bytes], then: Callable[[], None]) -> None:
        """Run `then` once what was on its way to the disk for these keys is synced."""
        if table.is_settled(keys):
            then()
        else:
            self._context.count("read.waited_for_sync")
            self._context.commit.after_pending(then)

    def _own_cells(self, part: ReadPart, table: Table) -> None:
        def looked(cells: list[bytes | None], error: str) -> None:
            if part.is_done:
                return
            if error:
                self._without_own(part, table, error)
                return
            part.cells = cells
            self._progress(part, table)

        self._look(table, part.keys, looked, lambda: not part.is_done and not part.call.batch.is_gone)

    def _without_own(self, part: ReadPart, table: Table, error: str) -> None:
        """The own copy cannot be read: others answer in its place, where there are enough of them."""
        self._context.note("read.own_copy_unreadable")
        part.has_own, part.cells, part.error = False, [None] * len(part.keys), error
        if not part.query:
            part.query = self._context.next_id()
            self._by_query[part.query] = part
            self._order += 1
            heappush(self._deadlines, (self._context.now_us + ASK_MORE_US, self._order, part))
        while len(part.asked) < part.r and self._ask_another(part, table):
            pass
        if len(part.asked) < part.r:
            self._expire(part, f"{self._context.node} cannot read its own copy, and no other replica is left to ask")
        else:
            self._progress(part, table)

    def _look(
        self, table: Table, keys: list[bytes], then: Callable[[list[bytes | None], str], None], is_wanted: Callable[[], bool]
    ) -> None:
        """`then` gets what a reader is shown of these keys, once it is in memory; or why it cannot be read."""
        try:
            cells, missing = table.look(keys)
        except StorageError as failure:
            then([], str(failure))
            return
        if not missing:
            then(cells, self._unserved(table, keys))
            return
        self._context.count("read.loaded", len(missing))
        get = table.visible if table.is_interval else table.cells.get

        def loaded(error: str) -> None:
            found: list[bytes | None] = []
            try:
                found = [] if error else table.folded([get(key) for key in keys])
            except StorageError as failure:  # a cache has let go of it, or its namespace was deleted
                error = str(failure)
            then(found, error or self._unserved(table, keys))

        self._context.loading.load(table.cells, missing, loaded, is_wanted)

    def _unserved(self, table: Table, keys: list[bytes]) -> str:
        """Why what is here of these keys may not be shown: asked when it is, since a claim may be taken back meanwhile."""
        namespace, shift = table.definition.id, table.placement.shift
        lost = self._context.claims.mine(namespace)
        found = next((key_hash(key) >> shift for key in keys if key_hash(key) >> shift in lost), None) if lost else None
        return "" if found is None else self._context.claims.why(namespace, found)

    def answered(self, peer: str, message: CellsRead) -> None:
        """A replica answered with digests or with cells."""
        part = self._by_query.get(message.query)
        table = part.call.table if part is not None else None
        if part is None or part.is_done or table is None or peer not in part.asked:
            return
        if message.error:
            part.error = message.error
            self._drop_replica(part, peer)
            self._ask_another(part, table)
        elif message.query != part.query:
            self._cells_came(part, table, peer, message)
        elif len(message.digests) == 8 * len(part.keys):
            part.digests.setdefault(peer, message.digests)
        self._progress(part, table)

    def _cells_came(self, part: ReadPart, table: Table, peer: str, message: CellsRead) -> None:
        """Take the cells that a replica sent: those of the first positions asked, as many as one answer holds."""
        asked, positions = part.fetches.get(message.query, ("", []))
        if asked != peer or not 0 < len(message.cells) <= len(positions):
            return
        if not _are_of(table, message.cells):
            self._context.note("read.policy_unknown")
            self._drop_replica(part, peer)
            self._ask_another(part, table)
            return
        if message.collections not in (0, part.collections.get(peer, 0)):  # 0: an older version does not say
            table.collections_of[peer] = max(message.collections, table.collections_of.get(peer, 0))
            self._read_again(part)
            return
        del part.fetches[message.query], self._by_query[message.query]
        part.theirs[peer].update(zip(positions, [cell or None for cell in message.cells], strict=False))
        if len(message.cells) < len(positions):
            self._fetch(part, table, peer, positions[len(message.cells) :])

    def _fetch(self, part: ReadPart, table: Table, peer: str, positions: list[int]) -> None:
        query = self._context.next_id()
        part.fetches[query] = (peer, positions)
        self._by_query[query] = part
        keys = [part.keys[at] for at in positions]
        self._context.send(peer, ReadCells(query, table.definition.id, keys, digests=False))

    def _drop_replica(self, part: ReadPart, peer: str) -> None:
        """Go on without a replica whose answer, or the rest of it, will not come."""
        if peer in part.digests and len(part.theirs.get(peer, ())) == len(part.fetching.get(peer, ())):
            return  # all that is wanted of it is here
        part.digests.pop(peer, None)
        part.fetching.pop(peer, None)
        part.theirs.pop(peer, None)
        for query in [query for query, (asked, _) in part.fetches.items() if asked == peer]:
            del part.fetches[query], self._by_query[query]

    def _progress(self, part: ReadPart, table: Table) -> None:
        """Answer as soon as R replicas are known to agree or their cells are here."""
        cells = part.cells
        if part.is_done or cells is None or len(part.digests) + part.has_own < part.r:
            return
        if part.r == 1 and part.has_own:
            self._settle(part, cells, 1)
            return
        own = b"".join([digest_of(cell) for cell in cells])
        for peer, digests in part.digests.items():
            if digests != own and peer not in part.fetching:
                differ = [at for at in range(len(cells)) if digests[8 * at : 8 * at + 8] != own[8 * at : 8 * at + 8]]
                part.fetching[peer], part.theirs[peer] = differ, {}
                self._context.count("read.digest_mismatch", len(differ))
                self._fetch(part, table, peer, differ)
        if not part.fetches:
            self._merge(part, table, cells)

    def _merge(self, part: ReadPart, table: Table, own: list[bytes | None]) -> None:
        if part.theirs and part.collections[self._context.node] != table.collections:
            self._read_again(part)
            return
        merged = list(own)
        for cells in part.theirs.values():
            for at, cell in cells.items():
                here = merged[at]
                if cell is not None:
                    merged[at] = cell if here is None else table.merge(here, cell)
        replicas = len(part.digests) + part.has_own
        repairs = self._repairs(part, table, own, merged) if part.theirs else {}
        if not part.has_own:
            repairs.pop(self._context.node, None)
        if not repairs:
            self._settle(part, merged, replicas)
        elif part.call.batch.repair_before:
            self._repair_before(part, merged, replicas, repairs)
        else:
            self._settle(part, merged, replicas)
            for peer, records in repairs.items():
                self._repair(peer, records)

    # --- repair -----------------------------------------------------------------------------------------------------

    def _repairs(self, part: ReadPart, table: Table, own: list[bytes | None], merged: list[bytes | None]) -> dict[str, bytes]:
        """Replica (this one included) -> the cells that it lacks, as records without a number."""
        context = self._context
        shift = table.placement.shift
        lacks: dict[str, list[bytes]] = {}
        count_of = part.collections
        for at in {at for cells in part.theirs.values() for at in cells}:
            cell = merged[at]
            if cell is None:
                continue
            key = part.keys[at]
            names = [context.node] if own[at] != cell else []
            names += [peer for peer in part.digests if part.theirs.get(peer, {}).get(at, own[at]) != cell]
            for name in names:
                count = count_of.get(name, 0)
                record = encode_record(
                    CELL, key_hash(key) >> shift, table.definition.id, count, 0, NO_OPERATION, b"", key, cell
                )
                lacks.setdefault(name, []).append(record)
        return {peer: b"".join(records) for peer, records in sorted(lacks.items())}

    def _repair(self, peer: str, records: bytes) -> None:
        context = self._context
        context.note("read.repaired")
        if peer == context.node:
            self._intake.take(records, lambda: None)
        elif not self._replication.is_full:
            sent = self._replication.start((peer,), records, lambda _: None)
            self._replication.release(sent)

    def _repair_before(self, part: ReadPart, merged: list[bytes | None], replicas: int, repairs: dict[str, bytes]) -> None:
        """Answer only when all who were asked hold what the answer says."""
        waits = set(repairs)

        def repaired(replica: str) -> None:
            waits.discard(replica)
            if not waits and not part.is_outdated:
                self._settle(part, merged, replicas)

        for replica, records in repairs.items():
            self._context.note("read.repaired_before")
            if replica == self._context.node:
                self._intake.take(records, lambda: repaired(self._context.node))
            else:
                sent = self._replication.start(
                    (replica,), records, lambda sent: repaired(sent.peers[0]) if sent.acked else None
                )
                sent.on_refused = lambda: setattr(part, "is_outdated", True)
                part.repairs.append(sent)

    # --- answering --------------------------------------------------------------------------------------------------

    def _settle(self, part: ReadPart, cells: list[bytes | None], replicas: int) -> None:
        if part.is_done:
            return
        self._close(part)
        call = part.call
        reply = call.reply
        if part.then is not None:
            part.then(cells)
        elif call.table is not None and call.table.policy is not call.policy:
            text = f"the policy of namespace {call.batch.namespace!r} was changed meanwhile: try again"
            self._refuse(call, part.indexes, Outcome.UNAVAILABLE, text)
        elif call.policy is not None and call.policy.kind is not None:
            self._show(part, call.policy, cells, replicas)
        else:
            now_ms = self._now_ms()
            for index, cell in zip(part.indexes, cells, strict=True):
                reply.outcomes[index] = Outcome.APPLIED
                reply.replicas[index] = replicas
                if cell is not None:
                    value = live_value(cell, now_ms)
                    if value is not None:
                        if call.nbytes + len(value) > READ_ANSWER_BYTES_MAX:
                            reply.outcomes[index] = Outcome.ASK_AGAIN
                            continue
                        call.nbytes += len(value)
                    reply.values[index] = value
                    reply.versions[index] = lww_version(cell)
        call.remaining -= 1
        self._finish_if_complete(call)

    def _now_ms(self) -> int:
        return hlc_ms(max(self._context.clock.last, self._context.wall_ms << 16))

    def _show(self, part: ReadPart, policy: Policy, cells: list[bytes | None], replicas: int) -> None:
        """Answer with what cells of dots show, and with what the reader has seen."""
        call, reply, now_ms = part.call, part.call.reply, self._now_ms()
        assert policy.kind is not None
        for index, cell in zip(part.indexes, cells, strict=True):
            reply.outcomes[index] = Outcome.APPLIED
            reply.replicas[index] = replicas
            if cell is None:
                continue
            try:
                shown, token = show(policy.kind, policy.decode(cell, now_ms), now_ms)
            except RecordError as error:
                self._refuse(call, (index,), Outcome.UNAVAILABLE, f"the cell of this key cannot be read: {error}")
                continue
            nbytes = len(shown or b"") + len(token)
            if call.nbytes and call.nbytes + nbytes > READ_ANSWER_BYTES_MAX:
                reply.outcomes[index] = Outcome.ASK_AGAIN
                continue
            call.nbytes += nbytes
            reply.values[index], reply.contexts[index] = shown, token

    def _close(self, part: ReadPart) -> None:
        part.is_done = True
        for query in (part.query, *part.fetches):
            self._by_query.pop(query, None)
        for sent in part.repairs:
            self._replication.release(sent)

    def _finish_if_complete(self, call: ReadCall) -> None:
        if call.remaining or call.respond is None:
            return
        respond, call.respond = call.respond, None
        self._calls -= 1
        call.reply.hlc = self._context.clock.last
        call.reply.elapsed_us = self._context.now_us - call.started_us
        respond(call.reply)

    # --- another coordinator's read ---------------------------------------------------------------------------------

    def serve(self, peer: str, message: ReadCells) -> None:
        """Answer a co-owner's question for cells or digests."""
        context = self._context
        table = context.tables.get(message.namespace)
        if table is None or context.is_refusing:
            why = context.is_refusing or f"no namespace with id {message.namespace:x} here"
            context.send(peer, CellsRead(message.query, [], b"", why))
            return
        self._when_settled(table, message.keys, lambda: self._serve_settled(peer, message, table))

    def _serve_settled(self, peer: str, message: ReadCells, table: Table) -> None:
        context, asked = self._context, (peer, message.query)
        if asked in self._serving:
            return  # it asks again since it waits; the disk has been asked
        until_us = context.now_us + SERVE_US_MAX

        def looked(cells: list[bytes | None], error: str) -> None:
            self._serving.discard(asked)
            self._serve_looked(peer, message, cells, error)

        self._serving.add(asked)
        self._look(table, message.keys, looked, lambda: context.now_us < until_us and context.is_live(peer))

    def _serve_looked(self, peer: str, message: ReadCells, found: list[bytes | None], error: str) -> None:
        if error:
            self._context.send(peer, CellsRead(message.query, [], b"", f"{self._context.node} cannot read its copy ({error})"))
            return
        if message.digests:
            digests = b"".join([digest_of(cell) for cell in found])
            self._context.send(peer, CellsRead(message.query, [], digests))
            return
        cells: list[bytes] = []
        nbytes = 0
        for cell in found:
            nbytes += len(cell or b"")
            if cells and nbytes > READ_ANSWER_BYTES_MAX:
                break  # the coordinator asks for the rest
            cells.append(cell or b"")
        table = self._context.tables.get(message.namespace)
        count = 0 if table is None else table.collections
        self._context.send(peer, CellsRead(message.query, cells, b"", collections=count))

    # --- time -------------------------------------------------------------------------------------------------------

    def lost(self, peer: str) -> None:
        """A replica is gone: ask another one in its place at once."""
        for part in dict.fromkeys(self._by_query.values()):
            table = part.call.table
            if not part.is_done and peer in part.asked and table is not None:
                self._drop_replica(part, peer)
                if peer not in part.digests:
                    self._ask_another(part, table)
                    self._progress(part, table)

    def wake_at_us(self) -> int | None:
        while self._deadlines and self._deadlines[0][2].is_done:
            heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def tick(self) -> None:
        now_us = self._context.now_us
        while self._deadlines and (self._deadlines[0][0] <= now_us or self._deadlines[0][2].is_done):
            part = heappop(self._deadlines)[2]
            if part.is_done:
                continue
            if now_us >= part.call.deadline_us:
                self._expire(part, "the deadline has passed")
            elif part.is_outdated:
                self._read_again(part)
            else:
                self._ask_more(part)
                self._order += 1
                heappush(self._deadlines, (min(part.call.deadline_us, now_us + ASK_MORE_US), self._order, part))

    def _read_again(self, part: ReadPart) -> None:
        """Somebody has collected tombstones since this read began: what others have may be what they deleted."""
        table = part.call.table
        assert table is not None
        self._context.note("read.again_after_collection")
        again = ReadPart(part.call, part.indexes, part.keys, part.r, part.peers)
        again.then = part.then
        self._close(part)
        self._gather(again, table)

    def _ask_more(self, part: ReadPart) -> None:
        """Some replica stays silent: ask the live ones that were not asked, or ask again who lost the question."""
        table = part.call.table
        if table is None:
            return
        context = self._context
        slow = dict.fromkeys(peer for peer, _ in part.fetches.values())
        is_enough = len(part.digests) - len(slow) + part.has_own >= part.r
        for peer in slow:
            if is_enough or not context.is_live(peer):
                self._drop_replica(part, peer)
        self._progress(part, table)
        if part.is_done or self._ask_another(part, table):
            return
        for query, (peer, positions) in part.fetches.items():
            keys = [part.keys[at] for at in positions]
            context.send(peer, ReadCells(query, table.definition.id, keys, digests=False))
        for peer in context.peers.live(part.asked, context.now_us):
            if peer not in part.digests:
                context.send(peer, ReadCells(part.query, table.definition.id, part.keys, digests=True))

    def _ask_another(self, part: ReadPart, table: Table) -> bool:
        """Ask a live replica that was not asked yet; False where there is none."""
        for peer in self._context.peers.live(part.peers, self._context.now_us):
            if peer not in part.asked:
                self._context.note("read.asked_more")
                self._ask(part, table, peer)
                return True
        return False

    def _expire(self, part: ReadPart, why: str) -> None:
        self._close(part)
        if part.then is not None:
            part.then(None)
        achieved = len(part.digests) + (part.cells is not None and part.has_own)
        text = f"{why}: {achieved} of {part.r} replicas answered" + (f"; {part.error}" if part.error else "")
        self._refuse(part.call, part.indexes, Outcome.UNAVAILABLE, text, part.r, achieved)
        part.call.remaining -= 1
        self._finish_if_complete(part.call)

    def end(self, why: str) -> None:
        for _, _, part in self._deadlines:
            if not part.is_done:
                self._expire(part, why)
        self._deadlines.clear()
