"""The client machine: batching, routing, retries and failover of the SDK, with no clock, socket or thread.

    OperationsAdded -> route (partition, ring) -> group (node, options) -> SendBatch
    CallReturned / CallFailed -> Resolve for what is decided, a retry for what was not numbered, the group's next batch

Invariants: every operation added is resolved exactly once, by its deadline plus the host's delay, unless it was
abandoned. A write that may have been numbered is repeated only as a retry, which names every node that may have done it
(protocol.retries). A caller that gives up changes nothing for those that travel with it. Every request carries the highest
HLC that this client was told.

Not here: sockets and what callers see (geokv.client), who is up (health), how batches are cut (batching).
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from geokv.core.ring import key_hash
from geokv.errors import Ambiguous, ClientClosed, GeokvError, InvalidRequest, Overloaded, Unavailable
from geokv.protocol.client.batching import NEVER, Call, Group, read_batch, write_batch
from geokv.protocol.client.bootstrap import Bootstrap
from geokv.protocol.client.desk import Desk
from geokv.protocol.client.health import Health
from geokv.protocol.client.messages import (
    CallFailed,
    CallReturned,
    CancelCall,
    Closed,
    Effect,
    Event,
    Failure,
    ForgetAddress,
    OperationsAbandoned,
    OperationsAdded,
    Resolve,
    RingTold,
)
from geokv.protocol.client.nodes import Datacenters, DatacenterState, NodeState
from geokv.protocol.client.operations import OPTIONS_MAX, Kind, Operation, Options, Trouble
from geokv.protocol.client.outcomes import (
    FIRST_ERROR,
    IN_DOUBT,
    NOT_NUMBERED,
    error_of,
    error_of_call,
    error_of_deadline,
    in_doubt,
    may_repeat,
)
from geokv.protocol.client.settings import MS, OPERATIONS_MAX, ClientSettings
from geokv.protocol.effects import Woken
from geokv.protocol.requests import (
    AdminReply,
    AdminRequest,
    Detail,
    Outcome,
    ReadBatch,
    ReadReply,
    Reply,
    WriteBatch,
    WriteReply,
)

_ANSWER_MARGIN_US_MAX: Final = 250 * MS  # of a caller's time, kept back for the way of the answer
_READ_ATTEMPT_US_MIN: Final = 250 * MS
_FOR_GOOD: Final = frozenset({Failure.REJECTED, Failure.UNWRITABLE})
_REACH: Final = frozenset({Failure.REFUSED, Failure.NOT_SENT, Failure.NOT_READY})  # it takes no calls now
_SERVED: Final = frozenset(
    {
        Failure.OVERLOADED,
        Failure.MALFORMED,
        Failure.REJECTED,
        Failure.FAILED,
    }
)


class ClientMachine:
    """One client. `handle(event, now_us)` and `wake_at_us()`, as every machine."""

    def __init__(self, settings: ClientSettings, rng: random.Random) -> None:
        self.settings = settings
        self.seen_hlc = 0
        self.outstanding = 0
        self._prefix = rng.getrandbits(64).to_bytes(8, "big")
        self.datacenters = Datacenters(settings.dc, settings.failover, self._prefix[0])
        self._next_operation = 0
        self._desk = desk = Desk(settings, rng)
        desk.watch = self._watch
        self._bootstrap = Bootstrap(desk, lambda: bool(self._stranded or self._ready_waiters), self._refuse_waiting)
        self._health = Health(desk, self.datacenters, self._take_back, self._found)
        self._stranded: list[Operation] = []  # nobody can be asked now
        self._stranded_due_us = NEVER
        self._ready_waiters: list[Operation] = []
        self._turn = 0
        self._retried: dict[tuple[Options, tuple[str, ...]], Options] = {}
        self._adopted_us = -NEVER
        self._is_closed = False

    def wake_at_us(self) -> int | None:
        return self._desk.wake_at_us()

    def handle(self, event: Event, now_us: int) -> list[Effect]:
        desk = self._desk
        desk.begin(now_us)
        match event:
            case OperationsAdded(operations):
                self._add(operations)
            case CallReturned():
                self._returned(event)
            case CallFailed():
                if call := desk.calls.get(event.call):
                    self._failed(call, event.failure, event.message, event.retry_after_ms)
            case OperationsAbandoned(operations):
                self._abandon(operations)
            case Closed():
                self._close()
            case Woken():
                pass
        desk.run_timers()
        effects, desk.effects = desk.effects, []
        return effects

    # --- operations in
    # ----------------------------------------------------------------------------------------------------

    def _add(self, operations: list[Operation]) -> None:
        number = self._next_operation
        for operation in operations:
            number += 1
            operation.number = number
        self._next_operation = number
        if self._is_closed:
            closed = ClientClosed("the client is closed; make a new one")
            self._tell_all(operations, closed, is_counted=False)
            return
        room = OPERATIONS_MAX - self.outstanding
        if len(operations) > room:
            message = f"{OPERATIONS_MAX} operations wait for an answer already; wait for some before adding more"
            self._tell_all(operations[room:], Overloaded(message, retry_after=0.1), is_counted=False)
            operations = operations[:room]
        if not operations:
            return
        self.outstanding += len(operations)
        if operations[0].options.kind is Kind.ADMIN:
            operations = self._askable(operations)
        if operations:
            self._route(operations)

    def _route(self, operations: list[Operation]) -> None:
        """Put each operation into the group of the node that is asked first for its key, and send what may go."""
        datacenters = self.datacenters
        if not datacenters.is_known:
            self._strand(operations)
            self._bootstrap.begin()
            return
        if datacenters.refusal is not None:
            self._tell_all(operations, datacenters.refusal)
            return
        dc, shift = datacenters.current(), datacenters.shift
        first, (anyone, next_one) = dc.first, self._together(dc, operations[0])
        is_busy = self.outstanding >= self.settings.together_from
        half = len(operations)
        if half >= self.settings.two_calls_from and 4 * half >= 3 * self.outstanding and may_repeat(operations[0]):
            half //= 2  # of gets that are nearly all that this client has under way: in one call nodes would stand idle
        touched: list[Group] = []
        for index, operation in enumerate(operations):
            options = operation.options
            if index == half:
                anyone = next_one
            if operation.trouble is not None or options.kind >= Kind.ADMIN:
                node, options = self._choose(operation), self._options_now(operation)
            elif is_busy or options.kind is Kind.READ:
                node = anyone[key_hash(operation.key) >> shift]
            else:
                node = first[key_hash(operation.key) >> shift]
            if node is None:
                self._strand([operation])
                continue
            group = node.groups.get(options) or self._group(node, operation, options)
            if group is None:
                continue
            pending = group.pending
            if not pending or not group.is_touched:
                group.is_touched = True
                touched.append(group)
            pending.append(operation)
        for group in touched:
            group.is_touched = False
            self._flush(group)

    def _together(self, dc: DatacenterState, first: Operation) -> tuple[list[NodeState | None], list[NodeState | None]]:
        """Two tables of whom to ask, that send as much as can be to the same node: of updates the one that made the last."""
        partition = key_hash(first.key) >> self.datacenters.shift
        if first.options.is_update:
            steady = dc.steady(partition, self._desk.now_us)
            return steady, steady
        return dc.turns(partition)

    def _options_now(self, operation: Operation) -> Options:
        """Its options; of retries that name the same nodes one and the same: they travel together, and with nothing else."""
        options, trouble = operation.options, operation.trouble
        if trouble is None or not trouble.tried:
            return options
        tried = trouble.tried
        found = self._retried.get((options, tried))
        if found is None:
            if len(self._retried) >= OPTIONS_MAX:
                self._retried.clear()
            found = self._retried[options, tried] = replace(options, tried=tried, base=options)
        return found

    def _group(self, node: NodeState, operation: Operation, options: Options) -> Group | None:
        """A new group, or None for what is not batched: that is on its way then."""
        if options.kind is Kind.ADMIN:
            self._launch_admin(node, operation)
            return None
        if options.kind is Kind.READY:
            self._await_ready(operation)
            return None
        given = options.given
        if given is not None and not given.is_taken_by(operation):
            self._tell_all([operation], InvalidRequest("this operation id is under way in another call: wait for its answer"))
            return None
        if given is not None and given.asked and operation.trouble is None:
            trouble = operation.trouble = Trouble(self._desk.now_us)
            trouble.tried, trouble.first_us = tuple(sorted(given.asked)), given.first_us
            options = self._options_now(operation)
        if len(node.groups) >= OPTIONS_MAX:
            node.groups = {known: group for known, group in node.groups.items() if group.calls or group.pending}
        group = node.groups[options] = Group(node, options)
        return group

    def _askable(self, operations: list[Operation]) -> list[Operation]:
        """Requests for certain nodes: of those that cannot be asked it is told at once, the others are left."""
        left = []
        for operation in operations:
            name = operation.value.node
            node = self.datacenters.nodes.get(name)
            if name and (node is None or not node.is_up):
                why = "there is no such node" if node is None else f"it cannot be reached: {node.reason}"
                self._tell_all([operation], Unavailable(f"{name} was not asked: {why}"))
            else:
                left.append(operation)
        return left

    def _choose(self, operation: Operation) -> NodeState | None:
        """Whom to ask, for what has failed before and for what has no key."""
        datacenters, trouble = self.datacenters, operation.trouble
        if operation.options.kind is Kind.ADMIN and operation.value.node:
            return datacenters.nodes.get(operation.value.node)
        order = datacenters.order
        index = order.index(datacenters.current())
        if trouble is not None:
            index = max(index, min(trouble.dc_index, len(order) - 1))
        turn = trouble.turn if trouble is not None else 0
        for dc in (*order[index:], *order[:index]):
            if operation.options.kind >= Kind.ADMIN:
                live = dc.live
                self._turn += 1
                node = live[self._turn % len(live)] if live else None
            else:
                node = dc.choose(key_hash(operation.key) >> datacenters.shift, turn)
            if node is not None:
                return node
        return None

    # --- operations that wait without a node
    # ------------------------------------------------------------------------------

    def _strand(self, operations: list[Operation]) -> None:
        self._stranded.extend(operations)
        due_us = min([operation.deadline_us for operation in operations])
        if due_us < self._stranded_due_us:
            self._stranded_due_us = due_us
            self._desk.at(due_us, self._check_stranded, None)
        if self.datacenters.is_known:
            self._desk.note("client.stranded", len(operations))
            self._bootstrap.begin()

    def _check_stranded(self, _: None) -> None:
        waiting, self._stranded = self._stranded, []
        self._stranded_due_us = NEVER
        now_us = self._desk.now_us
        late = [operation for operation in waiting if operation.deadline_us <= now_us]
        rest = [operation for operation in waiting if operation.deadline_us > now_us]
        if late:
            reason = self._why_nobody()
            for operation in late:
                if operation.trouble is None:
                    operation.trouble = Trouble(now_us)
                operation.trouble.failure = operation.trouble.failure or Unavailable(reason)
            self._expire_unsent(late)
        if rest:
            self._strand(rest)

    def _refuse_waiting(self, error: InvalidRequest) -> None:
        """There will be no ring for this client as it is."""
        waiting, self._stranded, self._ready_waiters = [*self._stranded, *self._ready_waiters], [], []
        self._stranded_due_us = NEVER
        self._tell_all(waiting, error)

    def _why_nobody(self) -> str:
        if not self.datacenters.is_known:
            return f"cannot reach the cluster: {self._bootstrap.describe()}"
        down = [node for dc in self.datacenters.order for node in dc.nodes.values() if not node.is_up]
        reasons = "; ".join(f"{node.name} at {node.address}: {node.reason}" for node in down)
        return f"no node can be reached: {reasons}"

    def _found(self) -> None:
        """A node or a ring was found: those who waited may go on."""
        if self._ready_waiters and self._is_ready():
            waiting, self._ready_waiters = self._ready_waiters, []
            self._tell_ready(waiting)
        if self._stranded:
            waiting, self._stranded = self._stranded, []
            self._stranded_due_us = NEVER
            self._route(waiting)

    def _is_ready(self) -> bool:
        return self.datacenters.is_known and any(node.has_answered for node in self.datacenters.current().live)

    def _await_ready(self, operation: Operation) -> None:
        if self._is_ready():
            self._tell_ready([operation])
            return
        self._ready_waiters.append(operation)
        self._desk.at(operation.deadline_us, self._check_ready_waiter, operation)
        for node in self.datacenters.current().live:
            self._health.probe(node)

    def _check_ready_waiter(self, operation: Operation) -> None:
        if operation in self._ready_waiters:
            self._ready_waiters.remove(operation)
            self._expire_unsent([operation])

    def _tell_ready(self, waiting: list[Operation]) -> None:
        for operation in waiting:
            self._resolve([operation], AdminReply(Outcome.APPLIED), {}, self.datacenters.current())

    # --- calls out
    # --------------------------------------------------------------------------------------------------------

    def _flush(self, group: Group) -> None:
        """Send what may go; set a timer for what must wait."""
        node, settings = group.node, self.settings
        while group.pending and node.is_up:
            if group.calls:
                is_far = node.round_trip_us > settings.far_us
                if group.calls >= (settings.calls_far_max if is_far else settings.calls_near_max):
                    break
                if not is_far and len(group.pending) < settings.worth_a_call:
                    break
            self._launch(group, group.cut())
        if group.pending:
            deadline_us = min([operation.deadline_us for operation in group.pending])
            if deadline_us < group.deadline_us:
                group.deadline_us = deadline_us
                self._desk.at(deadline_us, self._check_group, group)

    def _check_group(self, group: Group) -> None:
        now_us = self._desk.now_us
        if not group.pending or group.deadline_us > now_us:
            return
        late = [operation for operation in group.pending if operation.deadline_us <= now_us]
        group.pending = [operation for operation in group.pending if operation.deadline_us > now_us]
        group.deadline_us = NEVER
        self._expire_unsent(late)
        self._flush(group)

    def _expire_unsent(self, late: list[Operation]) -> None:
        self._desk.note("client.expired", len(late))
        self._tell_each(late, [error_of_deadline(operation, was_sent=False) for operation in late])

    def _launch(self, group: Group, batch: list[Operation]) -> None:
        now_us = self._desk.now_us
        options, version = group.options, self.datacenters.version
        latest_us = max([operation.deadline_us for operation in batch])
        left_us = max(latest_us - now_us, MS)
        request: WriteBatch | ReadBatch
        if options.kind is Kind.WRITE:
            timeout_ms = (left_us - min(left_us // 8, _ANSWER_MARGIN_US_MAX)) // MS or 1
            request = write_batch(options, batch, self._prefix, timeout_ms, self.seen_hlc, version, now_us, latest_us)
            if options.given is not None:
                options.given.asked.add(group.node.name)
        else:
            # Half of what is left, so that there is time to ask somebody else.
            left_us = max(left_us // 2, min(left_us, _READ_ATTEMPT_US_MIN))
            timeout_ms = (left_us - min(left_us // 8, _ANSWER_MARGIN_US_MAX)) // MS or 1
            request = read_batch(options, batch, timeout_ms, self.seen_hlc, version)
        group.node.dc.turn()
        group.calls += 1
        self._desk.start(group.node, group.node.address, group, batch, request, now_us + left_us)

    def _launch_admin(self, node: NodeState, operation: Operation) -> None:
        now_us = self._desk.now_us
        left_us = max(operation.deadline_us - now_us, MS)
        asked: AdminRequest = operation.value
        timeout_ms = (left_us - min(left_us // 8, _ANSWER_MARGIN_US_MAX)) // MS or 1
        request = AdminRequest(asked.verb, asked.arguments, timeout_ms)
        self._desk.start(node, node.address, None, [operation], request, now_us + left_us)

    # --- a call under way
    # ---------------------------------------------------------------------------------------------------

    def _watch(self, call: Call) -> None:
        """Look at the call again when something about it may be due."""
        due_us = min(call.expires_us, call.deadline_us)
        node = call.node
        if node is not None and call.operations and node.is_up:
            quiet_from_us = max(call.started_us, node.last_reply_us)
            silence_us = quiet_from_us + self.settings.silence_us
            if silence_us <= self._desk.now_us:
                silence_us = self._desk.now_us + self.settings.silence_us
            due_us = min(due_us, silence_us)
        call.wake_us = due_us
        self._desk.at(due_us, self._check, call)

    def _check(self, call: Call) -> None:
        now_us = self._desk.now_us
        if call.is_over or call.wake_us > now_us:
            return
        if call.operations and call.expires_us <= now_us and self._expire(call):
            return
        if now_us < self._desk.patience_us:
            call.wake_us = self._desk.patience_us
            self._desk.at(call.wake_us, self._check, call)
            return
        if call.deadline_us <= now_us:
            self._time_out(call)
            return
        if call.operations:
            self._health.look_at(call)
        self._watch(call)

    def _expire(self, call: Call) -> bool:
        """Tell those whose own time has passed; the call goes on for the others. True: there are none, it is over."""
        now_us = self._desk.now_us
        late = [operation for operation in call.operations if not operation.is_done and operation.deadline_us <= now_us]
        call.has_leavers = True
        self._desk.note("client.expired", len(late))
        self._tell_each(late, [error_of_deadline(operation, was_sent=True) for operation in late])
        return self._is_deserted(call)

    def _is_deserted(self, call: Call) -> bool:
        """Whether nobody waits for the call any more; it is cancelled then."""
        waiting = [operation.deadline_us for operation in call.operations if not operation.is_done]
        if waiting:
            call.expires_us = min(waiting)
            return False
        self._desk.cancel(call)
        if call.group is not None:
            self._flush(call.group)
        return True

    def _time_out(self, call: Call) -> None:
        node = call.node
        latest_us = max([operation.deadline_us for operation in call.operations], default=0)
        if node is not None and node.is_up and latest_us > self._desk.now_us and not may_repeat(call.operations[0]):
            call.deadline_us = latest_us  # it was cut short because the node seemed dead
            self._watch(call)
            return
        waited_s = (self._desk.now_us - call.started_us) / 1e6
        name = node.name if node is not None else call.address
        failure = Failure.TIMEOUT if node is None or node.is_up else Failure.BROKEN
        self._desk.effects.append(CancelCall(call.number))
        self._failed(call, failure, f"no answer from {name} within {waited_s:.3g} s", 0)

    def _abandon(self, operations: list[Operation]) -> None:
        """Drop what has not left; what has left comes back to nobody."""
        for operation in operations:
            if not operation.is_done:
                operation.is_done = True
                self.outstanding -= 1
        gone = set(map(id, operations))
        self._stranded = [operation for operation in self._stranded if id(operation) not in gone]
        self._ready_waiters = [operation for operation in self._ready_waiters if id(operation) not in gone]
        options = {operation.options for operation in operations}
        for node in self.datacenters.nodes.values():
            for group in [group for group in node.groups.values() if (group.options.base or group.options) in options]:
                group.pending = [operation for operation in group.pending if id(operation) not in gone]
            for call in list(node.calls.values()):
                if any(operation.is_done for operation in call.operations):
                    call.has_leavers = True
                    self._is_deserted(call)

    # --- calls back
    # ---------------------------------------------------------------------------------------------------------

    def _returned(self, event: CallReturned) -> None:
        call = self._desk.calls.get(event.call)
        if call is None:
            self._desk.note("client.late_reply")
            return
        reply, node = event.reply, call.node
        self._desk.end(call)
        if node is not None:
            node.note_round_trip(self._desk.now_us - call.started_us, self._desk.now_us)
        if isinstance(reply, RingTold):
            self._told(call, reply)
            return
        assert node is not None
        if call.group is not None and call.group.pending:
            self._flush(call.group)  # before the callers are told: the next batch is on its way meanwhile
        if isinstance(reply, AdminReply):
            self._take_admin(call, reply)
        else:
            self._take_items(call, reply)
        self._health.answered(node)
        if event.ring_version and event.ring_version != self.datacenters.version:
            self._ask_ring(node, "client.ring_differs")

    def _take_admin(self, call: Call, reply: AdminReply) -> None:
        node, operation = call.node, call.operations[0]
        assert node is not None
        if operation.is_done:
            return
        if reply.outcome < FIRST_ERROR:
            self._resolve([operation], reply, {}, node.dc)
            return
        error = error_of(operation, reply.outcome, Detail(message=reply.message))
        if reply.outcome not in NOT_NUMBERED or not self._try_again(operation, error, reply.outcome):
            self._tell_each([operation], [error])

    def _take_items(self, call: Call, reply: WriteReply | ReadReply) -> None:
        node = call.node
        assert node is not None
        if reply.hlc > self.seen_hlc:
            self.seen_hlc = reply.hlc
        if len(reply.outcomes) != len(call.operations):
            message = f"{node.name} answered {len(reply.outcomes)} items for {len(call.operations)}"
            self._settle_failure(call, Failure.MALFORMED, message, 0)
            return
        if not call.has_leavers and max(reply.outcomes) < FIRST_ERROR:
            dc = node.dc
            if dc.troubles:
                self._health.note_success(dc)
            self._resolve(call.operations, reply, {}, dc)
            return
        self._take_mixed(call, reply, node)

    def _take_mixed(self, call: Call, reply: WriteReply | ReadReply, node: NodeState) -> None:
        """Some of the items failed, or have nobody who waits for them any more."""
        told: list[Operation | None] = []
        errors: dict[int, GeokvError] = {}
        again: list[Operation] = []
        outcomes = reply.outcomes
        for index, operation in enumerate(call.operations):
            outcome = outcomes[index]
            told.append(None if operation.is_done else operation)
            if operation.is_done or outcome < FIRST_ERROR:
                continue
            if outcome == Outcome.ASK_AGAIN and may_repeat(operation):
                told[index] = None
                again.append(operation)
                continue
            error = error_of(operation, outcome, reply.details.get(index))
            if self._try_item_again(operation, node, error, outcome):
                told[index] = None
            else:
                errors[index] = error
        if Outcome.WRONG_NODE in outcomes:
            self._ask_ring(node, "client.wrong_node")
        if all(outcome == Outcome.UNAVAILABLE for outcome in outcomes):
            self._health.note_trouble(node.dc)
        elif min(outcomes) < FIRST_ERROR:
            self._health.note_success(node.dc)
        self._resolve(told, reply, errors, node.dc)
        if again:
            self._desk.note("client.asked_again", len(again))
            self._route(again)

    def _failed(self, call: Call, failure: Failure, message: str, retry_after_ms: int) -> None:
        node = call.node
        self._desk.end(call)
        if node is None:
            self._bootstrap.failed(call, failure, message)
            return
        self._desk.note(f"client.call_{failure.name.lower()}")
        if node.probe is call:
            node.probe = None
            self._health.judge_down(node, message)
        elif failure in _REACH:
            self._health.judge_down(node, message)
        elif failure is Failure.BROKEN and node.is_up:
            self._health.probe(node)
        elif failure in _SERVED:
            self._health.answered(node)
        self._settle_failure(call, failure, message, retry_after_ms)
        if call.group is not None:
            self._flush(call.group)

    def _settle_failure(self, call: Call, failure: Failure, message: str, retry_after_ms: int) -> None:
        """Repeat what may be repeated of a call that failed, and tell the rest."""
        told: list[Operation] = []
        errors: list[GeokvError] = []
        for operation in call.operations:
            if operation.is_done:
                continue
            error = error_of_call(operation, failure, message, retry_after_ms)
            if failure <= Failure.OVERLOADED or may_repeat(operation):
                is_planned = error.retryable and self._try_again(operation, error, None)
            else:
                is_planned = failure not in _FOR_GOOD and self._try_in_doubt(operation, call.node, error)
            if not is_planned:
                told.append(operation)
                errors.append(error)
        if told:
            self._tell_each(told, errors)

    # --- trying again
    # -------------------------------------------------------------------------------------------------------

    def _try_again(self, operation: Operation, error: GeokvError, outcome: int | None) -> bool:
        """Plan another attempt; False where there is no time or no sense in it. `outcome` is None where a call
        failed.
        """
        desk, settings = self._desk, self.settings
        now_us = desk.now_us
        trouble = operation.trouble
        if trouble is None:
            trouble = operation.trouble = Trouble(now_us)
        trouble.attempts += 1
        trouble.failure = error
        delay_us = desk.backoff_us(settings.backoff_us, settings.backoff_us_max, trouble.attempts - 1)
        if isinstance(error, Overloaded):
            delay_us = max(delay_us, round(error.retry_after * 1e6))
        elif outcome is not None:
            trouble.turn += 1
            if now_us - trouble.since_us >= settings.leave_after_us and trouble.turn >= settings.leave_after_failures:
                if self._step_to_next(operation, trouble):
                    delay_us = 0
                elif now_us - trouble.since_us >= settings.give_up_us:
                    return False
        else:
            trouble.turn += 1
            if trouble.attempts == 1:
                delay_us = 0  # that node is out of the way now; another one may do
        if now_us + delay_us >= operation.deadline_us:
            return False
        desk.note("client.retry")
        desk.at(now_us + delay_us, self._retry, operation)
        return True

    def _try_item_again(self, operation: Operation, node: NodeState, error: GeokvError, outcome: int) -> bool:
        """Plan another attempt at what a node has answered with an error, where there is sense in it."""
        if outcome in NOT_NUMBERED:
            return self._try_again(operation, error, outcome)
        trouble = operation.trouble
        if outcome == Outcome.AMBIGUOUS and trouble is not None and not self._is_near_any(node.dc, trouble.tried):
            return False  # that datacenter cannot find it out: it is not that its nodes have been tried
        return outcome in IN_DOUBT and self._try_in_doubt(operation, node, error)

    def _is_near_any(self, dc: DatacenterState, tried: tuple[str, ...]) -> bool:
        return not tried or any(name in dc.nodes for name in tried)

    def _try_in_doubt(self, operation: Operation, node: NodeState | None, error: GeokvError) -> bool:
        """Plan a retry of a write that `node` may have applied; False where there is too little time for it."""
        if operation.options.kind is not Kind.WRITE or node is None:
            return False
        trouble = operation.trouble
        if trouble is None:
            trouble = operation.trouble = Trouble(self._desk.now_us)
        if not trouble.tried:
            given = operation.options.given
            trouble.first_us = operation.started_us if given is None else given.first_us
        if node.name not in trouble.tried:
            trouble.tried = (*trouble.tried, node.name)
        if operation.deadline_us - self._desk.now_us < self.settings.doubt_left_us:
            return False
        self._desk.note("client.retry_in_doubt")
        return self._try_again(operation, error, None)

    def _step_to_next(self, operation: Operation, trouble: Trouble) -> bool:
        """The operation gives its datacenter up by itself and turns to the next one, where there is one."""
        datacenters = self.datacenters
        here = max(trouble.dc_index, datacenters.order.index(datacenters.current()))
        if here + 1 >= len(datacenters.order):
            return False
        trouble.dc_index = here + 1
        trouble.since_us = self._desk.now_us
        trouble.turn = 0
        self._desk.note("client.operation_moved")
        return True

    def _retry(self, operation: Operation) -> None:
        if not operation.is_done:
            self._route([operation])

    def _take_back(self, nodes: Iterable[NodeState]) -> None:
        """These nodes are not used now: what waits for them goes elsewhere, reads under way too; writes get a last
        chance.
        """
        again: list[Operation] = []
        for node in nodes:
            for group in node.groups.values():
                again.extend(group.pending)
                group.pending = []
                group.deadline_us = NEVER
            if not node.is_up:
                self._give_up_calls(node)
        if again:
            self._route(again)

    def _give_up_calls(self, node: NodeState) -> None:
        grace_us = self._desk.now_us + self.settings.grace_us
        for call in list(node.calls.values()):
            if not call.operations:
                continue
            if may_repeat(call.operations[0]):
                self._desk.cancel(call)
                self._settle_failure(call, Failure.BROKEN, f"{node.name} cannot be reached: {node.reason}", 0)
            elif call.deadline_us > grace_us:
                call.deadline_us = grace_us
                self._watch(call)

    # --- the ring
    # -----------------------------------------------------------------------------------------------------------

    def _told(self, call: Call, told: RingTold) -> None:
        """A node told the ring: it is up, and the ring may be newer than ours."""
        node, datacenters = call.node, self.datacenters
        if node is not None:
            node.probe = None
        if reason := self._objection(told):
            self._desk.note("client.strange_ring")
            if node is not None:
                self._health.judge_down(node, reason)
            else:
                self._bootstrap.failed(call, Failure.MALFORMED, reason)
            return
        if not datacenters.is_known or (told.version != datacenters.version and self._may_adopt()):
            self._adopt(told)
        answered = node or datacenters.nodes.get(told.answered_by)
        if node is None:
            self._bootstrap.told(call)
            self._bootstrap.end()
        if answered is not None and (node is not None or answered.address == call.address):
            self._health.answered(answered)
        self._found()

    def _ask_ring(self, node: NodeState, why: str) -> None:
        """The node has another ring than we: ask for it, but not all the time where nodes differ among themselves."""
        if self._may_adopt():
            self._desk.note(why)
            self._health.probe(node)

    def _may_adopt(self) -> bool:
        return self._desk.now_us - self._adopted_us >= self.settings.ring_again_us

    def _objection(self, told: RingTold) -> str:
        """Why this ring cannot be used, or nothing."""
        known = self.datacenters
        if not told.members:
            return "it told a ring without nodes"
        if known.is_known and told.cluster != known.cluster:
            return f"it belongs to cluster {told.cluster!r}, not {known.cluster!r}"
        return ""

    def _adopt(self, told: RingTold) -> None:
        datacenters = self.datacenters
        addresses = {node.address for node in datacenters.nodes.values()} | set(self.settings.addresses)
        self._adopted_us = self._desk.now_us
        gone = datacenters.adopt(told)
        self._desk.note("client.ring_adopted")
        for node in gone:
            node.is_up = False
            node.reason = "it is no longer in the ring"
        self._take_back(gone)
        for address in sorted(addresses - {node.address for node in datacenters.nodes.values()}):
            if not any(call.address == address for call in self._desk.calls.values()):
                self._desk.effects.append(ForgetAddress(address))

    # --- telling
    # ------------------------------------------------------------------------------------------------------------

    def _resolve(
        self,
        told: list[Operation] | list[Operation | None],
        reply: Reply | None,
        errors: dict[int, GeokvError],
        dc: DatacenterState,
    ) -> None:
        count = 0
        for operation in told:
            if operation is not None:
                operation.is_done = True
                count += 1
        if count:
            self.outstanding -= count
            for index, error in errors.items():
                operation = told[index]
                assert operation is not None
                errors[index] = in_doubt(operation, error)
            self._desk.effects.append(Resolve(told, reply, errors, dc.name, dc.replicas))  # type: ignore[arg-type]

    def _tell_each(self, operations: list[Operation], errors: list[GeokvError]) -> None:
        for operation in operations:
            operation.is_done = True
        self.outstanding -= len(operations)
        told = {index: in_doubt(operation, errors[index]) for index, operation in enumerate(operations)}
        self._desk.effects.append(Resolve(list(operations), None, told))

    def _tell_all(self, operations: list[Operation], error: GeokvError, is_counted: bool = True) -> None:
        """The same error for all; a new object each, since a traceback belongs to one caller."""
        if not is_counted:
            self.outstanding += len(operations)
        if operations:
            self._tell_each(operations, [type(error)(error.message, **error.details) for _ in operations])

    def _close(self) -> None:
        """Tell everybody who still waits: writes under way may have happened, nothing else has."""
        self._is_closed = True
        self._bootstrap.end()
        closed = ClientClosed("the client was closed while this operation waited")
        for call in list(self._desk.calls.values()):
            self._desk.cancel(call)
            for operation in call.operations:
                if not operation.is_done:
                    doubt = "the client was closed while this write was under way; it may have been done"
                    is_read = may_repeat(operation)
                    self._tell_all([operation], closed if is_read else Ambiguous(doubt, may_have_happened=True))
        for node in self.datacenters.nodes.values():
            for group in node.groups.values():
                self._tell_all(group.pending, closed)
                group.pending = []
        waiting = [*self._stranded, *self._ready_waiters, *self._desk.planned(Operation)]
        self._stranded, self._ready_waiters = [], []
        unique = {id(operation): operation for operation in waiting if not operation.is_done}
        self._tell_all(list(unique.values()), closed)
        self._desk.clear()
