"""Retries: a batch that was tried before is completed where it was applied, applied where it surely was not, else left alone.

    batch that names who was tried ──> every one of them is asked about every operation (protocol.operation_ids)
        found in a log ─────────────────────────> taken in, sent to the co-owners, answered with its result
        all that were tried never will apply it > applied, as any other write
        anything else, to the deadline ─────────> AMBIGUOUS, nothing was applied

Who must answer for one that was tried: itself, where it owns the key's partition; all owners of its datacenter, where it does
not, or says that it is without its claim (it has forwarded the operation to one of them). While somebody who was tried does
not answer, the other owners here are asked to look into their logs for its records. And whoever was promised by this node,
for a retry of its own, that nobody will apply the operation here.

Invariants: before anybody is asked the operation is held here for this retry alone, so a first try that comes late is refused,
and of two retries at most one applies it: who is asked by the other gives up its own right.

Not here: what clients do (protocol.client), and how a write that is to be applied goes on (`write`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from geokv.core.cell import TAG, decode_lww, lww_version
from geokv.core.limits import RETRIES_MAX, RETRY_WINDOW_MS
from geokv.core.quorum import Consistency
from geokv.core.record import Record, decode_records
from geokv.core.ring import key_hash
from geokv.errors import InvalidRequest, RecordError
from geokv.protocol.context import Context
from geokv.protocol.forward import cut
from geokv.protocol.intake import Intake
from geokv.protocol.messages import OperationsAsk, OperationsTold
from geokv.protocol.operation_ids import EVERYWHERE, FOUND, HANDED_ON, NEVER, OTHER, UNSURE, Finding
from geokv.protocol.placement import Placement
from geokv.protocol.replication import Part, Replication
from geokv.protocol.requests import ANYBODY, Detail, Outcome, WriteBatch, WriteReply
from geokv.protocol.table import Table
from geokv.protocol.update import writer_token

ASK_AGAIN_US: Final = 200_000
FAR_SILENT_US: Final = 1_000_000  # a node of another datacenter that has not said a word for so long is not waited for
OTHERS_ID: Final = "this operation id was given to another operation before"
Respond = Callable[[WriteReply], None]
Coordinate = Callable[[WriteBatch, Callable[[WriteReply], None]], None]


class _Item:
    """One operation that is tried again."""

    __slots__ = ("answered", "index", "is_decided", "name", "partition", "required")

    def __init__(self, index: int, name: bytes, partition: int, required: set[str]) -> None:
        self.index = index
        self.name = name
        self.partition = partition
        self.required = required
        self.answered: set[str] = set()  # they never will apply it
        self.is_decided = False


class _Completion:
    """Records that were found, on their way to their level."""

    __slots__ = ("is_taking", "items", "part", "raw", "records")

    def __init__(self, items: list[_Item], records: list[Record]) -> None:
        self.items = items
        self.records = records
        self.raw = b"".join([record.raw for record in records])
        self.part: Part | None = None
        self.is_taking = False


class _Retry:
    """One batch in progress."""

    __slots__ = (
        "again_us",
        "asks",
        "batch",
        "completions",
        "deadline_us",
        "has_asked",
        "heard",
        "items",
        "reasons",
        "remaining",
        "reply",
        "respond",
        "right",
        "started_us",
        "table",
        "w",
    )

    def __init__(self, batch: WriteBatch, respond: Respond, table: Table, w: int, node: str, right: int, now_us: int) -> None:
        count = len(batch.keys)
        self.batch = batch
        self.respond: Respond | None = respond
        self.table = table
        self.w = w
        self.right = right
        self.started_us = now_us
        self.deadline_us = now_us + batch.timeout_ms * 1000 - min(100_000, batch.timeout_ms * 100)
        self.again_us = now_us
        self.reply = WriteReply([0] * count, [0] * count, [0] * count, [0] * count, node, 0, 0)
        self.remaining = count
        self.items: list[_Item] = []
        self.reasons: dict[str, str] = {}  # node -> why it cannot say
        self.asks: set[int] = set()
        self.completions: list[_Completion] = []
        self.has_asked = False
        self.heard: set[str] = set()  # who has answered anything


class Retries:
    """Coordinates batches that were tried before."""

    def __init__(
        self,
        context: Context,
        placement: Placement,
        intake: Intake,
        replication: Replication,
        resolve: Callable[[str], Table | None],
        coordinate: Coordinate,
    ) -> None:
        self._context = context
        self._placement = placement
        self._names = context.operation_ids
        self._intake = intake
        self._replication = replication
        self._resolve = resolve
        self._coordinate = coordinate
        self._open: dict[int, _Retry] = {}  # by right
        self._asks: dict[int, tuple[_Retry, str, list[_Item]]] = {}

    def __len__(self) -> int:
        return len(self._open)

    # --- a batch comes in -------------------------------------------------------------------------------------------

    def start(self, batch: WriteBatch, respond: Respond) -> None:
        """Complete or apply every operation of `batch`, or leave it alone; answers through `respond`, once."""
        context = self._context
        table = self._resolve(batch.namespace)
        right = context.next_id()
        if table is None:
            self._refuse(batch, respond, Outcome.NOT_FOUND, f"no namespace {batch.namespace!r} here")
            return
        if len(batch.operations) != len(batch.keys) or len(set(batch.operations)) != len(batch.keys):
            self._refuse(batch, respond, Outcome.INVALID, "a retry names the id of each of its operations, each once")
            return
        try:
            w = table.write_needs(batch.level, batch.w)
        except InvalidRequest as error:
            self._refuse(batch, respond, Outcome.INVALID, error.message)
            return
        if batch.first_try_ms > RETRY_WINDOW_MS:
            text = f"the first try was {batch.first_try_ms / 1000:g} s ago, and nobody remembers more than"
            text = f"{text} {RETRY_WINDOW_MS // 1000} s: read the key, and decide"
            self._refuse(batch, respond, Outcome.AMBIGUOUS, text)
            return
        if len(self._open) >= RETRIES_MAX or not self._names.hold(batch.operations, right):
            self._refuse(batch, respond, Outcome.OVERLOADED, f"{len(self._open)} retries in progress", 100)
            return
        context.note("retry.begun", len(batch.keys))
        retry = _Retry(batch, respond, table, w, context.node, right, context.now_us)
        self._open[right] = retry
        self._list(retry)
        self._finish_if_complete(retry)
        if retry.respond is not None:
            self._ask(retry)

    def _refuse(self, batch: WriteBatch, respond: Respond, outcome: Outcome, text: str, retry_after_ms: int = 0) -> None:
        count = len(batch.keys)
        details = {index: Detail(text, retry_after_ms=retry_after_ms) for index in range(count)}
        zeros = [0] * count
        respond(WriteReply([outcome] * count, zeros, list(zeros), list(zeros), self._context.node, 0, 0, details))

    def _list(self, retry: _Retry) -> None:
        """Who must answer for each operation."""
        placement = self._placement
        required: dict[int, set[str]] = {}
        for index, key in enumerate(retry.batch.keys):
            partition = key_hash(key) >> placement.shift
            if not placement.is_mine[partition]:
                item = _Item(index, retry.batch.operations[index], partition, set())
                text = f"{self._context.node} does not own this key's partition"
                self._put(retry, item, Outcome.WRONG_NODE, Detail(text))
                continue
            if partition not in required:
                required[partition] = self._answerable(retry, partition, retry.batch.tried)
            name = retry.batch.operations[index]
            others = self._answerable(retry, partition, self._names.promised_to(name))
            retry.items.append(_Item(index, name, partition, required[partition] | others))

    def _answerable(self, retry: _Retry, partition: int, tried: Iterable[str]) -> set[str]:
        """Whose word it takes that an operation of that partition was not applied and never will be."""
        dcs = retry.table.definition.dcs
        owners = {dc: set(nodes[partition]) for dc, nodes in self._placement.by_dc.items()}
        required: set[str] = set()
        for name in tried:
            if name == ANYBODY:
                required |= {node for dc in dcs for node in owners.get(dc, ())}
            elif any(name in nodes for nodes in owners.values()):
                required.add(name)
            else:
                required |= self._owners_beside(name, partition) or {name}  # of a stranger: nobody can answer for it
        return required

    def _owners_beside(self, name: str, partition: int) -> set[str]:
        """The owners of a partition to whom a node hands on what it does not coordinate: those of its datacenter."""
        peers = self._context.peers
        dc = self._context.dc if name == self._context.node else peers[name].dc if name in peers else ""
        by_dc = self._placement.by_dc
        return set(by_dc[dc][partition]) if dc in by_dc else set()

    def _is_fresh(self, retry: _Retry, item: _Item, node: str, is_handed_on: bool) -> bool:
        """Whether all who must have said now that they never will apply it: also those whom that node may have handed it to."""
        item.answered.add(node)
        others = self._owners_beside(node, item.partition) if is_handed_on else set()
        if not others <= item.required:
            item.required = item.required | others
            retry.again_us = self._context.now_us  # they are asked soon
        return item.required <= item.answered

    # --- asking -----------------------------------------------------------------------------------------------------

    def _ask(self, retry: _Retry) -> None:
        """Ask whoever has not answered yet, and for those who cannot be asked the other owners here."""
        context, batch = self._context, retry.batch
        retry.again_us = context.now_us + ASK_AGAIN_US
        age_ms = batch.first_try_ms + (context.now_us - retry.started_us) // 1000
        by_node: dict[str, list[_Item]] = {}
        silent: set[str] = set()
        for item in retry.items:
            if item.is_decided:
                continue
            by_node.setdefault(context.node, []).append(item)
            lacking = item.required - item.answered - {context.node}
            for name in lacking:
                by_node.setdefault(name, []).append(item)
            # Whoever is tried, and answers at once, knows best; nobody else is bothered then.
            dead = {name for name in lacking if retry.has_asked or not self._is_reachable(name)}
            silent |= dead
            if dead:
                for name in self._placement.owners[item.partition]:
                    if name not in lacking and name != context.node:
                        by_node.setdefault(name, []).append(item)
        retry.has_asked = True
        for name, items in by_node.items():
            if name == context.node:
                continue
            if not self._is_reachable(name):
                retry.reasons[name] = "it cannot be reached"
                continue
            ask = context.next_id()
            retry.asks.add(ask)
            self._asks[ask] = (retry, name, items)
            partitions = [item.partition for item in items]
            ids = b"".join([item.name for item in items])
            context.send(name, OperationsAsk(ask, retry.table.definition.id, partitions, ids, age_ms, sorted(silent)))
        mine = by_node.get(context.node, [])
        if mine:
            asked = [(item.partition, item.name) for item in mine]
            namespace = retry.table.definition.id

            def looked(findings: list[Finding]) -> None:
                self._heard(retry, context.node, mine, findings)

            self._names.look(namespace, asked, age_ms, silent, "", looked)

    def _is_reachable(self, name: str) -> bool:
        return name in self._context.peers and self._context.peers[name].is_connected

    def told(self, peer: str, message: OperationsTold) -> None:
        """A node answers."""
        waiting = self._asks.get(message.ask)
        if waiting is None or waiting[1] != peer or len(message.states) != len(waiting[2]):
            return
        del self._asks[message.ask]
        retry, _, items = waiting
        retry.asks.discard(message.ask)
        try:
            records = iter(decode_records(message.records))
            versions = iter(message.versions)
            findings = [
                Finding(
                    state,
                    next(records).raw if state == FOUND else b"",
                    next(versions) if state == EVERYWHERE else 0,
                    message.reason if state == UNSURE else "",
                )
                for state in message.states
            ]
        except (RecordError, StopIteration, RuntimeError) as error:
            self._context.note("retry.malformed")
            self._context.log("warning", f"an answer of {peer} about operations is no such thing: {error}")
            return
        self._heard(retry, peer, items, findings)

    def _heard(self, retry: _Retry, node: str, items: list[_Item], findings: list[Finding]) -> None:
        found: dict[int, list[tuple[_Item, Record]]] = {}
        fresh: list[_Item] = []
        if retry.respond is None:
            return
        retry.heard.add(node)
        for item, finding in zip(items, findings, strict=True):
            if item.is_decided:
                continue
            if finding.state == FOUND:
                record = decode_records(finding.raw)[0]
                if self._is_it(retry, item, record):
                    item.is_decided = True
                    found.setdefault(self._placement.set_of[item.partition], []).append((item, record))
                else:
                    self._put(retry, item, Outcome.INVALID, Detail(f"{OTHERS_ID}: on key {record.key!r}"))
            elif finding.state == OTHER:
                self._put(retry, item, Outcome.INVALID, Detail(OTHERS_ID))
            elif finding.state == EVERYWHERE:
                self._context.note("retry.found")
                table = retry.table
                self._put_done(retry, item, finding.version, b"", table.placement.replicas, len(table.definition.dcs))
            elif finding.state in (NEVER, HANDED_ON):
                if self._is_fresh(retry, item, node, finding.state == HANDED_ON):
                    fresh.append(item)
            else:
                retry.reasons[node] = finding.reason or "it cannot say"
        for pairs in found.values():
            self._context.note("retry.found", len(pairs))
            completion = _Completion([item for item, _ in pairs], [record for _, record in pairs])
            retry.completions.append(completion)
            self._complete(retry, completion)
        if fresh:
            self._apply(retry, fresh)
        self._finish_if_complete(retry)

    def _is_it(self, retry: _Retry, item: _Item, record: Record) -> bool:
        """Whether a record is of this operation, as far as it tells. A cell of dots has what an operation made, not what it
        was; and one value may be encoded in several ways.
        """
        is_same = record.operation == item.name and record.namespace == retry.table.definition.id
        is_same &= record.partition == item.partition and record.key == retry.batch.keys[item.index]
        if not is_same or retry.batch.has_updates or record.cell[:1] != TAG:
            return is_same
        return decode_lww(record.cell).is_tombstone == (retry.batch.values[item.index] is None)

    # --- it was applied nowhere -------------------------------------------------------------------------------------

    def _apply(self, retry: _Retry, items: list[_Item]) -> None:
        """Nobody has applied these and nobody else ever will: apply them, as long as nobody has taken the right to."""
        context = self._context
        mine = [item for item in items if self._names.may_number(item.name, retry.right)]
        for item in items:
            item.is_decided = True
            if item not in mine:
                self._put(retry, item, Outcome.AMBIGUOUS, Detail("a later retry of this operation has taken its place"))
        left_ms = (retry.deadline_us - context.now_us) // 1000
        if not mine or left_ms <= 0:
            for item in mine:
                self._put(retry, item, Outcome.AMBIGUOUS, Detail("the time was over before it could be applied"))
            return
        context.note("retry.applied", len(mine))
        share = cut(retry.batch, [item.index for item in mine])
        assert isinstance(share, WriteBatch)
        gone_ms = (context.now_us - retry.started_us) // 1000
        share.tried, share.first_try_ms, share.right, share.timeout_ms = (), 0, retry.right, left_ms
        share.remaining_ms = [max(0, own_ms - gone_ms) for own_ms in share.remaining_ms]

        def applied(reply: WriteReply) -> None:
            if retry.respond is None:
                return
            for position, item in enumerate(mine):
                self._copy(retry, item, reply, position)
            self._finish_if_complete(retry)

        self._coordinate(share, applied)

    def _copy(self, retry: _Retry, item: _Item, reply: WriteReply, position: int) -> None:
        """Take over what became of one that was applied."""
        merged, index = retry.reply, item.index
        merged.outcomes[index] = reply.outcomes[position]
        merged.versions[index] = reply.versions[position]
        merged.replicas[index] = reply.replicas[position]
        merged.dcs[index] = reply.dcs[position]
        if position in reply.details:
            merged.details[index] = reply.details[position]
        if reply.contexts:
            self._put_context(retry, index, reply.contexts[position])
        retry.remaining -= 1

    # --- it was applied ---------------------------------------------------------------------------------------------

    def _complete(self, retry: _Retry, completion: _Completion) -> None:
        """Take what was found into the own log, and send it to the co-owners."""
        if completion.is_taking:
            return

        is_all = is_synced = False

        def synced() -> None:
            nonlocal is_synced
            is_synced = True
            if is_all and completion.part is not None:
                self._replication.own_synced(completion.part)

        taken = self._intake.take(completion.raw, synced, may_be_early=True)
        if taken.forgotten and not taken.present:
            self._settle(retry, completion, is_everywhere=True)
            self._finish_if_complete(retry)
            return
        # Where not all was taken it is tried again: it comes with a closing, a definition is on its way, or there will be room.
        is_all = completion.is_taking = len(taken.present) == len(completion.records)
        if completion.part is None:
            peers = self._placement.peers_of_set[self._placement.set_of[completion.items[0].partition]]
            completion.part = self._replication.start(peers, completion.raw, lambda part: self._progress(retry, completion))
        if is_synced:
            synced()

    def _progress(self, retry: _Retry, completion: _Completion) -> None:
        part = completion.part
        if part is None or completion not in retry.completions or not completion.is_taking or not part.is_own_synced:
            return
        if part.replicas < retry.w or self._dcs_lacking(retry, completion):
            return
        self._settle(retry, completion)
        self._finish_if_complete(retry)

    def _dcs(self, record: Record) -> int:
        """How many datacenters are known to cover a record (of this run: of others the heads are not followed here)."""
        stream = self._context.find_stream(record.namespace, record.partition, record.origin)
        return 1 + sum([upto >= record.number for upto in stream.dcs.values()]) if stream is not None else 1

    def _dcs_lacking(self, retry: _Retry, completion: _Completion) -> bool:
        wanted = self._dcs_wanted(retry)
        return wanted > 1 and min([self._dcs(record) for record in completion.records]) < wanted

    def _dcs_wanted(self, retry: _Retry) -> int:
        level = retry.batch.level or retry.table.definition.write_level
        dcs = len(retry.table.definition.dcs)
        return dcs if level is Consistency.EACH_QUORUM else min(retry.batch.replicated_to, dcs)

    def _settle(self, retry: _Retry, completion: _Completion, is_everywhere: bool = False) -> None:
        if completion not in retry.completions:
            return  # once it was known to be everywhere the level was met, too
        part = completion.part
        retry.completions.remove(completion)
        if part is not None:
            self._replication.release(part)
        replicas = retry.table.placement.replicas if is_everywhere or part is None else part.replicas
        for item, record in zip(completion.items, completion.records, strict=True):
            self._settle_one(retry, item, record, replicas, is_everywhere)

    def _settle_one(self, retry: _Retry, item: _Item, record: Record, replicas: int, is_everywhere: bool) -> None:
        kind = retry.table.policy.kind
        dcs = len(retry.table.definition.dcs) if is_everywhere else self._dcs(record)
        if kind is None:
            self._put_done(retry, item, lww_version(record.cell), b"", replicas, dcs)
            return
        token = b""
        if not retry.batch.has_updates:
            token = writer_token(kind, retry.batch, item.index, record)
        self._put_done(retry, item, record.hlc, token, replicas, dcs)

    # --- answers ----------------------------------------------------------------------------------------------------

    def _put_done(self, retry: _Retry, item: _Item, version: int, token: bytes, replicas: int, dcs: int) -> None:
        """The operation was applied before; a newer version that stands here already is said."""
        table, key = retry.table, retry.batch.keys[item.index]
        outcome, detail = Outcome.APPLIED, None
        if table.policy.kind is None and not table.missing([key]):
            stored = table.visible(key)
            if stored is not None and lww_version(stored) > version:
                outcome, detail = Outcome.SUPERSEDED, Detail("it was applied by an earlier try; a newer version stands by now")
        if outcome is Outcome.APPLIED and dcs < self._dcs_wanted(retry):
            text = f"written here by an earlier try; {dcs} of {self._dcs_wanted(retry)} datacenters are known to have it"
            outcome, detail = Outcome.PENDING, Detail(text, self._dcs_wanted(retry), dcs)
        reply = retry.reply
        reply.versions[item.index], reply.replicas[item.index], reply.dcs[item.index] = version, replicas, dcs
        if token:
            self._put_context(retry, item.index, token)
        self._put(retry, item, outcome, detail)

    def _put_context(self, retry: _Retry, index: int, token: bytes) -> None:
        if not retry.reply.contexts:
            retry.reply.contexts = [b""] * len(retry.batch.keys)
        retry.reply.contexts[index] = token

    def _put(self, retry: _Retry, item: _Item, outcome: Outcome, detail: Detail | None = None) -> None:
        item.is_decided = True
        retry.reply.outcomes[item.index] = outcome
        if detail is not None:
            retry.reply.details[item.index] = detail
        retry.remaining -= 1

    def _finish_if_complete(self, retry: _Retry) -> None:
        if retry.remaining or retry.respond is None:
            return
        respond, retry.respond = retry.respond, None
        del self._open[retry.right]
        for ask in retry.asks:
            self._asks.pop(ask, None)
        for completion in retry.completions:
            if completion.part is not None:
                self._replication.release(completion.part)
        retry.reply.hlc = self._context.clock.last
        retry.reply.elapsed_us = self._context.now_us - retry.started_us
        respond(retry.reply)

    # --- time -------------------------------------------------------------------------------------------------------

    def wake_at_us(self) -> int | None:
        return min((min(retry.again_us, retry.deadline_us) for retry in self._open.values()), default=None)

    def tick(self) -> None:
        """Ask again, and answer what has reached its deadline with what is known."""
        now_us = self._context.now_us
        for retry in list(self._open.values()):
            if now_us >= retry.deadline_us:
                self._expire(retry, "the deadline has passed")
            elif now_us >= retry.again_us:
                for completion in list(retry.completions):
                    self._complete(retry, completion)
                    self._progress(retry, completion)
                if now_us - retry.started_us >= FAR_SILENT_US:
                    self._give_up_far(retry)
                if retry.respond is not None:
                    self._ask(retry)

    def _give_up_far(self, retry: _Retry) -> None:
        """Where a lost datacenter would have to answer, the caller is told soon: what is in doubt there stays so."""
        peers, dc = self._context.peers, self._context.dc
        for item in retry.items:
            lacking = item.required - item.answered
            is_waited_for = any(name in retry.heard or (name in peers and peers[name].dc == dc) for name in lacking)
            if not item.is_decided and lacking and not is_waited_for:
                self._context.note("retry.ambiguous")
                self._put(retry, item, Outcome.AMBIGUOUS, Detail(self._doubt(retry, item)))
        self._finish_if_complete(retry)

    def _expire(self, retry: _Retry, why: str) -> None:
        for completion in list(retry.completions):
            part = completion.part
            if part is not None and part.is_own_synced and part.replicas >= retry.w:
                self._settle(retry, completion)  # other datacenters are still to cover it
                continue
            is_here = part is not None and part.is_own_synced
            who = tuple(([self._context.node] if is_here else []) + (part.acked if part is not None else []))
            text = f"{why}: it was applied by an earlier try, and {len(who)} of {retry.w} replicas are known to have it"
            for item in completion.items:
                self._put(retry, item, Outcome.PARTIAL if who else Outcome.AMBIGUOUS, Detail(text, retry.w, len(who), who))
        for item in retry.items:
            if not item.is_decided:
                self._context.note("retry.ambiguous")
                self._put(retry, item, Outcome.AMBIGUOUS, Detail(f"{why}: {self._doubt(retry, item)}"))
        retry.deadline_us = retry.again_us = self._context.now_us + ASK_AGAIN_US  # what was applied has a deadline of its own
        self._finish_if_complete(retry)

    def _doubt(self, retry: _Retry, item: _Item) -> str:
        """Why nobody knows what became of it, in words."""
        lacking = sorted(item.required - item.answered)
        said = [f"{name} ({retry.reasons.get(name, 'it has not answered')})" for name in lacking]
        return f"whether this operation was applied is not known to {', '.join(said)}; this retry has applied nothing"

    def end(self, why: str) -> None:
        """The incarnation ends: nobody knows any more what becomes of what is in progress."""
        for retry in list(self._open.values()):
            self._expire(retry, why)
