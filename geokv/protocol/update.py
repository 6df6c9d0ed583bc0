"""Updates of cells of dots: from what a client asks to deltas, and what must be known before one can be made.

    item ──decode, check──> operation ─┬─ its context names what has not come ──> wait for it, to the deadline: STALE
                                       ├─ it takes away, and has no context ────> ask a read quorum what there is
                       ├─ it spends rights that are not here ───> have some brought (`protocol.rights`)
                                       └─ else ─────────────────────────────────> at once
    then: the delta under the next dot of this origin ──> record (`WriteCoordinator` sends it as any other)

A context comes from a client and is not trusted: what it names must have been stated by some owner, or the update waits. An
entry that a closed stream has lost exists nowhere any more: it is ignored, and the answer names it.

Invariants: nothing is numbered before all of a part is made and the log has room for it; an update that fails alone leaves the
others; the previous dot that a delta names is the newest of this origin on that key, on its way or not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

from geokv.core.cell import lww_version
from geokv.core.cells import halves
from geokv.core.cells.cell_type import CellType
from geokv.core.cells.codec import decode_token, encode_token
from geokv.core.cells.context import NUMBER_MAX, CausalContext, Dot, subtract_spans
from geokv.core.cells.operation import DELETE, Operation
from geokv.core.cells.outlived import Removal
from geokv.core.cells.state import CellState
from geokv.core.cells.update import check, is_taking, update
from geokv.core.cells.wire import decode_operation
from geokv.core.conflict import BOUNDED, LWW, check_ttl
from geokv.core.hlc import hlc_ms
from geokv.core.limits import READ_ANSWER_BYTES_MAX, SIBLINGS_WARN
from geokv.core.origin import unpack_origin
from geokv.core.record import DELTA, NO_OPERATION, Record, encode_record
from geokv.errors import GeokvError, InvalidRequest, NotEnoughRights, Stale, StorageError, Unavailable
from geokv.protocol.commit import Entry
from geokv.protocol.context import Context
from geokv.protocol.requests import Detail, Outcome, WriteBatch
from geokv.protocol.rights import Rights
from geokv.protocol.streams import Stream
from geokv.protocol.table import Table

if TYPE_CHECKING:
    from geokv.protocol.write import WriteCall, WritePart

LOOK_AGAIN_US: Final = 20_000
EXPIRED: Final = "the time of this operation was over before it was numbered; nothing was written"
TRIED_LATE: Final = "a retry of this operation has taken its place; nothing was written here"
LWW_TOKEN_BYTES: Final = 8
Gather = Callable[[Table, list[bytes], int, Callable[[list[bytes | None] | None], None]], None]
"""(table, keys, deadline, then): the merged cells of a read quorum; None where they cannot be had in time."""


class Sight(NamedTuple):
    """What a context names, held against the streams: what is heeded, what exists nowhere any more, what has not come."""

    heeded: CausalContext
    lost: list[Dot]
    missing: list[Dot]
    covered: Mapping[bytes, int]


class Made(NamedTuple):
    """One delta, made and not numbered yet."""

    item: int
    stream: Stream
    number: int
    raw: bytes
    version: int
    token: bytes
    stored: bytes
    removal: Removal | None


class Updater:
    """Makes deltas for the write coordinator, of namespaces whose cells have dots."""

    def __init__(
        self,
        context: Context,
        gather: Gather,
        rights: Rights,
        refuse: Callable[[WriteCall, list[int], Outcome, Detail], None],
        finish: Callable[[WritePart], None],
        launch: Callable[[WritePart, Table, list[Entry], list[bytes]], None],
    ) -> None:
        """`refuse` settles single operations, `finish` a part all of whose operations were refused, `launch` sends a part."""
        self._context = context
        self._gather = gather
        self._rights = rights
        rights.issue = self._issue_loaded
        self._refuse = refuse
        self._finish = finish
        self._launch = launch
        self._decoded = context.decoded
        self._waiting: list[WritePart] = []
        self._look_again_us: int | None = None

    # --- what is asked ----------------------------------------------------------------------------------------------

    def read(self, call: WriteCall, table: Table) -> None:
        """Decode and check what every item of the batch asks; refuses those that can never succeed."""
        batch = call.batch
        for index in range(len(batch.keys)):
            if index in call.reply.details:
                continue  # refused for its size already
            try:
                call.updates[index] = _operation(table, batch, index)
            except InvalidRequest as error:
                text = f"namespace {table.definition.name!r} holds {table.policy}: {error}"
                self._refuse(call, [index], Outcome.INVALID, Detail(text))

    def cut(self, part: WritePart, table: Table) -> list[tuple[WritePart, Callable[[WritePart, Table], None]]]:
        """The part in shares: what can be done at once, what needs a read quorum first, what waits for its context."""
        call = part.call
        ready: list[int] = []
        taking: list[int] = []
        shares: list[tuple[WritePart, Callable[[WritePart, Table], None]]] = []
        for index in part.indexes:
            operation = call.updates[index]
            assert operation is not None
            if operation.context is None and is_taking(operation) and table.placement.replicas > 1:
                taking.append(index)
            elif operation.context is not None and self._missing(call, table, index):
                shares.append((part.piece([index]), self._await))
            else:
                ready.append(index)
        if table.policy.name == BOUNDED:
            for short in self._rights.short(call, table, ready).values():
                ready = [index for index in ready if index not in short]
                shares.append((part.piece(short), self._rights.wait))
        if taking:
            shares.append((part.piece(taking), self._ask_quorum))
        if ready:
            shares.append((part.piece(ready), self.issue))
        return shares

    # --- what must be known first -----------------------------------------------------------------------------------

    def _missing(self, call: WriteCall, table: Table, index: int) -> list[Dot]:
        operation = call.updates[index]
        assert operation is not None and operation.context is not None
        key = call.batch.keys[index]
        try:
            return self._look(table, call.partitions[index], operation, self._state(table, key)).missing
        except StorageError:
            return []  # a cache has let go of it, and now it cannot be read: `issue` says so

    def _state(self, table: Table, key: bytes) -> CellState:
        return self._decoded.state(table.policy, table.definition.id, key, table.visible(key))

    def _look(self, table: Table, partition: int, operation: Operation, held: CellState) -> Sight:
        """Hold a client's context against the streams of its partition."""
        kind, context = table.policy.kind, operation.context
        assert kind is not None and context is not None
        streams = table.streams.partitions[partition]
        heeded = dict(context.spans)
        sight = Sight(CausalContext(heeded), [], [], covered := {})
        takes_unseen = kind.takes_unseen and not operation.path
        for origin, spans in context.spans.items():
            stream = streams.get(origin)
            if stream is None:
                if held.context.contains(origin, spans[-1]):
                    continue
                if partition in self._context.closed.get(origin, ()):  # all that ever came of it is here
                    sight.lost.append(Dot(origin, spans[-1]))
                    here = held.context.spans.get(origin, ())
                    heeded[origin] = subtract_spans(spans, subtract_spans(spans, here))
                    if not heeded[origin]:
                        del heeded[origin]
                else:
                    sight.missing.append(Dot(origin, spans[-1]))
                continue
            covered[origin] = stream.received
            last = spans[-1]
            if stream.last is not None and last > stream.last:
                sight.lost.append(Dot(origin, last))
                left = subtract_spans(spans, (stream.last, NUMBER_MAX))
                if not left:
                    del heeded[origin]
                    continue
                heeded[origin], last = left, left[-1]
            known = max(stream.received, *stream.peers.values(), *stream.dcs.values(), 0) if takes_unseen else stream.received
            if last > known and not held.context.contains(origin, last):
                sight.missing.append(Dot(origin, last))
        return sight

    def _await(self, part: WritePart, table: Table) -> None:
        """Look again every now and then, until the deadline of the call ends the waiting."""
        missing = self._missing(part.call, table, part.indexes[0])
        text = f"this context names what has not arrived here ({_named(missing)}): try again, or where it was read"
        part.holds = (Outcome.STALE, text)
        self._context.note("write.context_ahead")
        self._waiting.append(part)
        if self._look_again_us is None:
            self._look_again_us = self._context.now_us + LOOK_AGAIN_US

    def wake_at_us(self) -> int | None:
        return self._look_again_us

    def tick(self) -> None:
        if self._look_again_us is None or self._context.now_us < self._look_again_us:
            return
        waiting, self._waiting = self._waiting, []
        for part in waiting:
            table = part.call.table
            if part.is_done or table is None:
                continue
            if self._missing(part.call, table, part.indexes[0]):
                self._waiting.append(part)
            else:
                self._issue_loaded(part, table)
        self._look_again_us = self._context.now_us + LOOK_AGAIN_US if self._waiting else None

    def _ask_quorum(self, part: WritePart, table: Table) -> None:
        keys = [part.call.batch.keys[index] for index in part.indexes]
        text = "what is to be taken away was not confirmed by a read quorum; nothing was written"
        part.holds = (Outcome.UNAVAILABLE, text)

        def answered(cells: list[bytes | None] | None) -> None:
            if part.is_done:
                return
            if cells is None:
                self._refuse(part.call, part.indexes, Outcome.UNAVAILABLE, Detail(text, part.w))
                self._finish(part)
            else:
                self._issue_loaded(part, table, dict(zip(part.indexes, cells, strict=True)))

        self._gather(table, keys, part.call.deadline_us, answered)

    def _issue_loaded(self, part: WritePart, table: Table, gathered: Mapping[int, bytes | None] | None = None) -> None:
        """Go on with what had to wait, once what it builds upon is in memory again."""
        missing = table.missing([part.call.batch.keys[index] for index in part.indexes])

        def loaded(error: str) -> None:
            if part.is_done:
                return
            if error:
                text = f"{self._context.node} cannot read what it holds of these keys ({error}); nothing was written"
                self._refuse(part.call, part.indexes, Outcome.UNAVAILABLE, Detail(text))
                self._finish(part)
            else:
                self.issue(part, table, gathered)

        if missing:
            self._context.loading.load(table.cells, missing, loaded)
        else:
            self.issue(part, table, gathered)

    # --- deltas -----------------------------------------------------------------------------------------------------

    def issue(self, part: WritePart, table: Table, gathered: Mapping[int, bytes | None] | None = None) -> None:
        """Make the deltas of `part`, and send them; `gathered`: what a read quorum holds."""
        if table.policy is part.call.policy:
            self._issue(part, table, gathered)
            return
        text = f"the policy of namespace {table.definition.name!r} was changed meanwhile; nothing was written: try again"
        self._refuse(part.call, part.indexes, Outcome.UNAVAILABLE, Detail(text))
        self._finish(part)

    def _issue(self, part: WritePart, table: Table, gathered: Mapping[int, bytes | None] | None) -> None:
        context, call = self._context, part.call
        part.indexes = self._numberable(call, part.indexes)
        hlc = context.clock.stamps(context.wall_ms, len(part.indexes)) - 1
        first_hlc = hlc + 1
        lost = context.claims.mine(table.definition.id)
        made: list[Made] = []
        numbers: dict[Stream, int] = {}
        changed: dict[bytes, tuple[bytes, CellState]] = {}
        for index in part.indexes:
            hlc += 1
            try:
                if call.partitions[index] in lost:  # taken back while this waited
                    raise Unavailable(context.claims.why(table.definition.id, call.partitions[index]))
                one = self._make(call, table, index, hlc, numbers, changed, (gathered or {}).get(index))
            except (InvalidRequest, Stale, NotEnoughRights, StorageError, Unavailable) as error:
                self._refuse(call, [index], *_outcome_of(error))
            else:
                made.append(one)
        nbytes = sum([len(one.raw) for one in made])
        no_room = context.commit.reserve(nbytes) if made else ""
        if no_room:
            outcome = Outcome.UNAVAILABLE if context.commit.room_reason else Outcome.OVERLOADED
            self._refuse(call, [one.item for one in made], outcome, Detail(no_room, retry_after_ms=50))
            made = []
        namespace = table.definition.id
        if not made:
            for key in changed:
                self._decoded.drop(namespace, key)  # it was joined with what is not to be
            self._finish(part)
            return
        for stream, number in numbers.items():
            stream.received = number
        for key, (stored, state) in changed.items():
            table.waiting[key] = stored
            self._decoded.keep(namespace, key, stored, state)
        context.commit.originated(first_hlc)
        table.came(first_hlc)
        part.indexes = [one.item for one in made]
        part.versions = [one.version for one in made]
        part.numbers = [one.number for one in made]
        part.streams = [one.stream for one in made]
        self._note(call, table, made, changed)
        self._remember(part)
        for one in made:
            call.context_bytes += len(one.token)
            if call.context_bytes <= READ_ANSWER_BYTES_MAX:
                call.reply.contexts[one.item] = one.token
            else:
                call.reply.details[one.item] = Detail("the answer has no room for this context: read it")
        self._launch(part, table, [(one.raw, one.stream, one.number) for one in made], [one.raw for one in made])

    def _numberable(self, call: WriteCall, indexes: list[int]) -> list[int]:
        """Those that may still be numbered here: not what a retry has taken over, nor what is too late."""
        remaining_ms = call.batch.remaining_ms
        if remaining_ms:
            gone_ms = (self._context.now_us - call.started_us) // 1000
            expired = [index for index in indexes if remaining_ms[index] <= gone_ms]
            if expired:
                self._context.note("write.expired", len(expired))
                self._refuse(call, expired, Outcome.DEADLINE, Detail(EXPIRED))
                indexes = [index for index in indexes if remaining_ms[index] > gone_ms]
        names, right = self._context.operation_ids, call.batch.right
        if not names.held or not call.batch.operations:
            return indexes
        left = [index for index in indexes if names.may_number(call.batch.operations[index], right)]
        late = [index for index in indexes if index not in left]
        if late:
            self._context.note("write.tried_late", len(late))
            self._refuse(call, late, Outcome.AMBIGUOUS, Detail(TRIED_LATE))
        return left

    def _remember(self, part: WritePart) -> None:
        operations = part.call.batch.operations
        if operations:
            names = [operations[index] for index in part.indexes]
            self._context.operation_ids.numbered(names, part.numbers, part.versions)

    def _note(self, call: WriteCall, table: Table, made: list[Made], changed: Mapping[bytes, tuple[bytes, CellState]]) -> None:
        """Note what updates met that did not replace all that is held here: puts with a context, and siblings without one; and
        what takes away, for what will arrive.
        """
        kind, context = table.policy.kind, self._context
        assert kind is not None
        for item, removal in [(one.item, one.removal) for one in made if one.removal is not None]:
            key = call.batch.keys[item]
            context.journal.took(table, key, removal, changed[key][1], context.wall_ms)
        if not kind.is_contested:
            return
        for one in made:
            operation = call.updates[one.item]
            if kind.name == "siblings" or (operation is not None and operation.context is not None):
                key = call.batch.keys[one.item]
                dot = Dot(context.packed, one.number)
                context.journal.met_dots(table, key, changed[key][1], dot, one.version, context.wall_ms)

    def _make(
        self,
        call: WriteCall,
        table: Table,
        index: int,
        hlc: int,
        numbers: dict[Stream, int],
        changed: dict[bytes, tuple[bytes, CellState]],
        gathered: bytes | None,
    ) -> Made:
        """One delta and its record. Raises what `update` raises; then nothing has changed."""
        kind, batch, packed = table.policy.kind, call.batch, self._context.packed
        assert kind is not None
        key, partition, namespace = batch.keys[index], call.partitions[index], table.definition.id
        stored, state = changed.get(key) or (table.visible(key), self._state(table, key))
        operation, covered = self._heeded(call, table, index, hlc, state)
        held = state
        if gathered is not None:
            held = state.copy()
            held.join(table.policy.decode(gathered))
        if table.policy.name == BOUNDED:
            self._rights.check(table, key, state, operation)
        stream = table.streams.partitions[partition].get(packed) or table.streams.make(partition, packed)
        number = numbers.get(stream, stream.received) + 1
        size = len(stored or b"") + len(gathered or b"")
        delta = update(kind, held, operation, Dot(packed, number), stamp=hlc, covered=covered, held_bytes=size, is_checked=True)
        cell = table.policy.encode_delta(held, delta)
        name = batch.operations[index] if batch.operations else NO_OPERATION
        raw = encode_record(DELTA, partition, namespace, number, hlc, name, packed, key, cell)
        token = b"" if batch.has_updates else encode_token(_seen(kind, operation, held, delta, packed))
        self._watch_siblings(table, key, state, delta)
        state.join(delta)
        removal = None
        if not delta.items and is_taking(operation):
            removal = Removal(Dot(packed, number), hlc, operation, state.context.copy(), delta.marks)
        numbers[stream] = number
        after = cell if stored is None else table.policy.behind(stored, cell)
        if table.policy.has_outgrown(after):
            after = table.policy.encode(state)
        changed[key] = (after, state)
        return Made(index, stream, number, raw, hlc, token, after, removal)

    def _heeded(
        self, call: WriteCall, table: Table, index: int, hlc: int, held: CellState
    ) -> tuple[Operation, Mapping[bytes, int]]:
        """The operation with the deadline that its TTL means, and with what is to be heeded of its context."""
        operation = call.updates[index]
        assert operation is not None
        if operation.name == "put" and table.policy.name == "siblings":
            ttl_ms = call.batch.ttl_ms or table.definition.ttl_ms
            operation = operation._replace(arguments=(operation.arguments[0], hlc_ms(hlc) + ttl_ms if ttl_ms > 0 else 0))
        if operation.context is None:
            return operation, {}
        sight = self._look(table, call.partitions[index], operation, held)
        if sight.lost:
            self._context.note("write.context_lost")
            text = f"ignored of the context, because it was lost with the node that had it: {_named(sight.lost)}"
            call.reply.details[index] = Detail(text)
        return operation._replace(context=sight.heeded), sight.covered

    def _watch_siblings(self, table: Table, key: bytes, state: CellState, delta: CellState) -> None:
        """Count, and say once at the limit, that a key gathers siblings."""
        if table.policy.name not in ("siblings", "register_mv"):
            return
        before = state.count()
        if before + 1 >= SIBLINGS_WARN and delta.items:
            after = state.copy()
            after.join(delta)
            if after.count() >= SIBLINGS_WARN:
                self._context.note("siblings.many")
                if after.count() == SIBLINGS_WARN > before:
                    text = f"key {key!r} in namespace {table.definition.name!r} has {SIBLINGS_WARN} siblings: who writes it"
                    self._context.log("warning", f"{text} does not hand back the context of what it read")


def _operation(table: Table, batch: WriteBatch, index: int) -> Operation:
    """What an item asks, checked as far as it can be without the cell. Raises InvalidRequest."""
    kind, name = table.policy.kind, table.definition.name
    assert kind is not None
    value = batch.values[index]
    if batch.has_updates:
        if value is None:
            raise InvalidRequest("an update without an operation")
        operation = _decoded_operation(kind, value) if len(value) <= 64 else _decode(kind, value)
    elif value is None:
        operation = Operation(DELETE)
    elif kind.name == "siblings":
        operation = Operation("put", (value, 0))
    elif "write" in kind.signature:
        operation = Operation("write", (value,))
    else:
        has = ", ".join(sorted(kind.signature))
        raise InvalidRequest(f"it has no put, but {has}")
    check_ttl(kind.name, batch.ttl_ms)
    if not batch.has_updates:
        check(kind, operation)
    token = batch.contexts[index] if batch.contexts else b""
    if token and kind.heeds_context(operation):
        is_older = len(token) == LWW_TOKEN_BYTES and LWW in table.policy.earlier
        seen = _seen_before(table, batch.keys[index], token) if is_older else decode_token(token)
        operation = operation._replace(context=seen)
    bytes_max = table.definition.value_bytes_max
    size = max([len(one) for one in operation.arguments if isinstance(one, bytes)], default=0)
    if size > bytes_max:
        raise InvalidRequest(
            f"value of {size} bytes: at most {bytes_max} in namespace {name!r}"
            f" (raise it with: geokv namespace alter {name} --value-bytes-max N)"
        )
    return operation


def _seen_before(table: Table, key: bytes, token: bytes) -> CausalContext:
    """What a context of the time when the namespace was `lww` names: the lww cell that is here, where it is not later."""
    stored = table.visible(key)
    held = halves.decode(stored) if stored is not None else halves.Halves()
    dot = held.lww_dot()
    if dot is None or held.lww is None or lww_version(held.lww) > int.from_bytes(token, "big"):
        return CausalContext()
    return CausalContext({dot.origin: (dot.number - 1, dot.number)})


def _decode(kind: CellType, packed: bytes) -> Operation:
    """An operation that came as such, checked. Raises InvalidRequest."""
    operation = decode_operation(packed)
    if kind.name == "siblings" and operation.name == "put":
        operation = operation._replace(arguments=(*operation.arguments[:1], 0))
    if operation.name in kind.for_nodes:
        raise InvalidRequest(f"{operation.name!r} is for nodes only: rights move by themselves to where they are wanted")
    check(kind, operation)
    return operation


_decoded_operation = lru_cache(maxsize=4096)(_decode)  # many are alike: one more, the same element


def _seen(kind: CellType, operation: Operation, held: CellState, delta: CellState, origin: bytes) -> CausalContext:
    """What the writer has seen once this update of `origin` is made: its context or what it replaced, and itself."""
    if operation.context is not None:
        seen = operation.context.copy()
    elif kind.name == "siblings" and operation.name != DELETE:
        seen = CausalContext()
    else:
        seen = held.context.copy()
    seen.add(origin, *delta.context.spans[origin][-2:])
    return seen


def writer_token(kind: CellType, batch: WriteBatch, index: int, record: Record) -> bytes:
    """What the writer of an item has seen, as far as its record tells: what its context named or it replaced, and itself."""
    held = halves.decode(record.cell)
    delta, dot = held.state, held.lww_dot()
    if dot is not None:  # it was written before the policy was changed
        delta.context.add(dot.origin, dot.number - 1, dot.number)
    token = batch.contexts[index] if batch.contexts else b""
    if token:
        try:
            seen = decode_token(token)
        except InvalidRequest:
            return b""
        seen.add(record.origin, *delta.context.spans[record.origin][-2:])
        return encode_token(seen)
    if kind.name == "siblings" and batch.values[index] is not None:
        seen = CausalContext()
        seen.add(record.origin, *delta.context.spans[record.origin][-2:])
        return encode_token(seen)
    return encode_token(delta.context)


def _named(dots: list[Dot]) -> str:
    """Some dots in words."""
    named = [f"number {dot.number} of {unpack_origin(dot.origin)}" for dot in dots[:3]]
    return ", ".join(named) + (f" and {len(dots) - 3} more" if len(dots) > 3 else "")


def _outcome_of(error: GeokvError) -> tuple[Outcome, Detail]:
    """What an update that cannot be made is answered with. Nothing was numbered."""
    if isinstance(error, NotEnoughRights):
        return Outcome.NOT_ENOUGH_RIGHTS, Detail(error.message, rights=(error.needed, error.here, error.elsewhere))
    if isinstance(error, Stale):
        return Outcome.STALE, Detail(error.message)
    if isinstance(error, Unavailable):
        return Outcome.UNAVAILABLE, Detail(error.message)
    if isinstance(error, StorageError):
        return Outcome.UNAVAILABLE, Detail(f"the cell of this key cannot be read: {error}")
    return Outcome.INVALID, Detail(error.message)
