"""Rights of bounded counters move to where they are spent: inside a datacenter and across, in the background.

    a decrement lacks rights ──> take over what earlier runs of this node left
                             ──> RightsAsk to co-owners that hold some, then to other datacenters' owners
        giver: `give`, an update of its own at QUORUM ──> RightsGiven: what is certain now
                             ──> enough: it goes on     nobody left to ask, or its time is up: NOT_ENOUGH_RIGHTS
    every now and then, for keys that are spent from: ask for a fair share before it is lacking

The giver shares by demand: what both hold, in proportion to what was wanted from both of late; what the asker lacks right now
comes first. Two that lack at once do not swap: who sorts earlier keeps what it has.

Invariants: a gift is told only when a quorum of the giver's datacenter has synced it (`protocol.rights_sheet` says why); one
gift per key is under way. Rights of a node that cannot be reached stay with it. Everything here may be lost with the run: the
cells alone say who holds what. Bounded are the keys that are waited for (WAITS_MAX), the gifts under way (GIFTS_MAX) and the
asks behind one (GIFTS_WAITING_MAX), and the keys that are watched (DEMANDS_MAX): who comes beyond is refused, or left to later.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from itertools import islice
from typing import TYPE_CHECKING, Final

from geokv.core.cells.counter_bounded import account_of
from geokv.core.cells.operation import AMOUNT_MAX, Operation
from geokv.core.cells.state import CellState
from geokv.core.cells.view import View
from geokv.core.cells.wire import encode_operation
from geokv.core.conflict import BOUNDED
from geokv.core.origin import Origin, unpack_origin
from geokv.core.quorum import Consistency, needed
from geokv.core.ring import key_hash
from geokv.errors import NotEnoughRights, StorageError
from geokv.protocol.context import Context
from geokv.protocol.messages import RightsAsk, RightsGiven
from geokv.protocol.requests import Outcome, OwnBatch, WriteReply
from geokv.protocol.rights_sheet import Place, Sheet, Words, reckon
from geokv.protocol.table import Table

if TYPE_CHECKING:
    from geokv.protocol.write import WriteCall, WritePart

WAIT_US: Final = 2_000_000  # how long a decrement waits for rights, at most
ANSWER_US: Final = 1_000_000  # who has not answered by then is not asked for a while
ANSWER_IN_US: Final = 10_000  # before a call's deadline
LOOK_AGAIN_US: Final = 20_000  # for a record that is on its way here
BALANCE_US: Final = 500_000
BALANCE_KEYS_MAX: Final = 64  # looked at each time
DEMAND_HALF_US: Final = 4_000_000  # half of a demand is forgotten after so long
OWN_TIMEOUT_MS: Final = 2_000
WAITS_MAX: Final = 4_096
GIFTS_WAITING_MAX: Final = 64
GIFTS_MAX: Final = 1_024
DEMANDS_MAX: Final = 4_096
RECEIVED_MAX: Final = 16_384


class _Wait:
    """Decrements of one key that lack rights."""

    __slots__ = ("asked", "key", "looks_us", "open", "parts", "table", "takes_over", "until_us")

    def __init__(self, table: Table, key: bytes, until_us: int) -> None:
        self.table = table
        self.key = key
        self.until_us = until_us
        self.looks_us = until_us  # when to look again without a cause
        self.parts: list[WritePart] = []
        self.asked: set[str] = set()
        self.open: dict[int, tuple[str, int]] = {}  # ask -> (who, until when)
        self.takes_over = False


class Rights:
    """See the module."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._words = Words()
        self._received: OrderedDict[Place, int] = OrderedDict()  # what this run was given for certain, as last reckoned
        self._waits: dict[Place, _Wait] = {}
        self._asks: dict[int, int] = {}  # those that may still be answered, and when they were made
        self._balancing: dict[Place, int] = {}  # asked at
        self._silent: dict[str, int] = {}  # node -> until when it is not asked
        self._giving: dict[Place, list[tuple[str, RightsAsk]]] = {}  # a gift is under way: who else has asked
        self._demand: OrderedDict[Place, tuple[float, int]] = OrderedDict()
        self._balance_us = 0
        # The node puts itself there once it is made.
        self.coordinate: Callable[[OwnBatch, Callable[[WriteReply], None]], None] = lambda batch, respond: None
        self.issue: Callable[[WritePart, Table], None] = lambda part, table: None
        self.is_over: Callable[[bytes, int], bool] = lambda origin, partition: False
        self.is_heir: Callable[[bytes, int], bool] = lambda origin, partition: False

    # --- what may be spent ------------------------------------------------------------------------------------------

    def sheet(self, table: Table, key: bytes, state: CellState | None = None) -> Sheet:
        """How the rights of a key stand. Its cell must be in memory."""
        place = (table.definition.id, key)
        if state is None:
            state = self._context.decoded.state(table.policy, table.definition.id, key, table.visible(key))
        partition = key_hash(key) >> table.placement.shift
        sheet = reckon(
            state,
            self._context.packed,
            self._words.of(place),
            lambda origin: self.is_over(origin, partition),
            lambda origin: self.is_heir(origin, partition),
        )
        self._received[place] = sheet.received
        if len(self._received) > RECEIVED_MAX:
            self._received.popitem(last=False)
        return sheet

    def check(self, table: Table, key: bytes, state: CellState, operation: Operation) -> None:
        """Raises NotEnoughRights where this run may not do that: asked for every operation just before it is numbered."""
        if operation.name == "increment":
            return
        amount: int = operation.arguments[-1]
        if operation.name == "take_over":
            held = self.sheet(table, key, state).left.get(operation.arguments[0], 0)
            if amount > held:
                raise NotEnoughRights(f"{amount} rights are not left to be taken over", needed=amount, here=held)
            return
        own = account_of(View(state).of_origin(self._context.packed)).balance
        if amount <= own + self._received.get((table.definition.id, key), 0):
            return
        sheet = self.sheet(table, key, state)
        if amount > sheet.here:
            self._context.note("rights.refused")
            raise self._lacking(amount, sheet)

    def _lacking(self, amount: int, sheet: Sheet) -> NotEnoughRights:
        here, peers = max(sheet.here, 0), self._context.peers
        far = sum(held for node, held in sheet.nodes.items() if node not in peers or not self._context.is_live(node))
        where = f" ({min(far, sheet.elsewhere)} of them with nodes that cannot be reached now)" if far else ""
        text = f"not enough rights here: {amount} needed, {here} here, {sheet.elsewhere} elsewhere{where}"
        return NotEnoughRights(text, needed=amount, here=here, elsewhere=sheet.elsewhere)

    # --- decrements that lack rights --------------------------------------------------------------------------------

    def short(self, call: WriteCall, table: Table, indexes: Iterable[int]) -> dict[bytes, list[int]]:
        """Those of the call's decrements that lack rights now, by their keys."""
        free: dict[bytes, int] = {}
        short: dict[bytes, list[int]] = {}
        for index in indexes:
            operation, key = call.updates[index], call.batch.keys[index]
            assert operation is not None
            if operation.name not in ("increment", "decrement"):
                continue
            try:
                if self._lacks(table, key, operation, free, is_known=key in short):
                    short.setdefault(key, []).append(index)
            except StorageError:
                continue  # a cache has let go of it, and now it cannot be read: who makes the update says so
        return short

    def _lacks(self, table: Table, key: bytes, operation: Operation, free: dict[bytes, int], is_known: bool) -> bool:
        """Whether that lacks rights; `free`: what those before it leave, by key. `is_known`: one did. Raises StorageError."""
        if key not in free:
            free[key] = self._free(table, key)
        amount: int = operation.arguments[0]
        if operation.name == "increment":
            free[key] += amount
            return False
        self._wanted((table.definition.id, key), amount)
        if amount > free[key] and not is_known:
            before = self._free(table, key)
            free[key] += self.sheet(table, key).here - before  # it may be more than was reckoned last
        if amount > free[key]:
            return True
        free[key] -= amount
        return False

    def _free(self, table: Table, key: bytes) -> int:
        """What may be spent, as far as it was reckoned last."""
        received = self._received.get((table.definition.id, key))
        if received is None:
            return self.sheet(table, key).here
        state = self._context.decoded.state(table.policy, table.definition.id, key, table.visible(key))
        return account_of(View(state).of_origin(self._context.packed)).balance + received

    def wait(self, part: WritePart, table: Table) -> None:
        """Decrements of one key lack rights: have some brought, or refuse them."""
        key, place = part.call.batch.keys[part.indexes[0]], (table.definition.id, part.call.batch.keys[part.indexes[0]])
        part.holds = (Outcome.NOT_ENOUGH_RIGHTS, "not enough rights here, and none came in time")
        wait = self._waits.get(place)
        if wait is None:
            if len(self._waits) >= WAITS_MAX:
                self._context.note("rights.too_many_wait")
                self.issue(part, table)
                return
            wait = self._waits[place] = _Wait(table, key, self._context.now_us + WAIT_US)
        wait.parts.append(part)
        self._go_on(wait)

    def _go_on(self, wait: _Wait) -> None:
        """Let go on what has its rights now; ask for the others; refuse them where there is nobody to ask."""
        context, table = self._context, wait.table
        place = (table.definition.id, wait.key)
        wait.parts = [part for part in wait.parts if not part.is_done]
        is_missing = table.missing([wait.key])
        if not wait.parts or self._waits.get(place) is not wait or (is_missing and context.now_us >= wait.until_us):
            self._end(wait, place)
            return
        if is_missing:
            wait.looks_us = min(wait.until_us, context.now_us + ANSWER_US)
            context.loading.load(table.cells, [wait.key], lambda error: self._go_on(wait) if not error else None)
            return
        sheet = self.sheet(table, wait.key)
        here = sheet.here
        lacking: list[WritePart] = []
        for part in wait.parts:
            need = _need(part)
            is_late = part.call.deadline_us - ANSWER_IN_US <= context.now_us
            if is_late or (need <= here and not lacking):
                here -= min(need, here)
                self.issue(part, table)
            else:
                lacking.append(part)
        wait.parts = lacking
        need = sum(_need(part) for part in lacking) - max(here, 0)
        if lacking and context.now_us < wait.until_us and (self._take_over(wait, sheet) or self._ask_for(wait, sheet, need)):
            deadlines = [part.call.deadline_us - ANSWER_IN_US for part in lacking]
            wait.looks_us = min([wait.until_us, *deadlines, *[until_us for _, until_us in wait.open.values()]])
            if sheet.arriving:
                wait.looks_us = min(wait.looks_us, context.now_us + LOOK_AGAIN_US)
            return
        self._end(wait, place)

    def _end(self, wait: _Wait, place: Place) -> None:
        """Nothing more comes for those that still wait."""
        if self._waits.get(place) is wait:
            del self._waits[place]
        for ask in wait.open:
            self._asks.pop(ask, None)
        parts, wait.parts = wait.parts, []
        for part in parts:
            if not part.is_done:
                self.issue(part, wait.table)  # what still lacks is refused there, each by itself

    def _take_over(self, wait: _Wait, sheet: Sheet) -> bool:
        """Whether rights that earlier runs of this node left behind are being taken over."""
        if wait.takes_over:
            return True
        if not sheet.left:
            return False
        wait.takes_over = True

        def done(reply: WriteReply) -> None:
            wait.takes_over = False
            if any(outcome >= Outcome.INVALID for outcome in reply.outcomes):
                wait.until_us = self._context.now_us  # the log or the quorum refuses: so it would the decrement
            self._go_on(wait)

        self._inherit(wait.table, wait.key, sheet, done)
        return True

    def _inherit(self, table: Table, key: bytes, sheet: Sheet, then: Callable[[WriteReply], None]) -> None:
        """Take over what earlier runs of this node left."""
        self._context.note("rights.taken_over", len(sheet.left))
        amounts = [(origin, min(left, AMOUNT_MAX)) for origin, left in sheet.left.items()]
        self._do(table, key, [Operation("take_over", pair) for pair in amounts], then)

    def _do(self, table: Table, key: bytes, operations: list[Operation], then: Callable[[WriteReply], None]) -> None:
        """An update of this node's own, at QUORUM."""
        self.coordinate(
            OwnBatch(
                table.definition.name,
                [key] * len(operations),
                [encode_operation(operation) for operation in operations],
                Consistency.QUORUM,
                timeout_ms=OWN_TIMEOUT_MS,
                has_updates=True,
                own=operations,
            ),
            then,
        )

    # --- asking -----------------------------------------------------------------------------------------------------

    def _ask_for(self, wait: _Wait, sheet: Sheet, lack: int) -> bool:
        """Ask who holds some: co-owners first, then other datacenters. Whether anybody may still bring something."""
        if wait.open or sheet.arriving:
            return True
        for is_here in (True, False):
            for node, held in self._holders(sheet, is_here):
                if node in wait.asked or lack <= 0:
                    continue
                wait.asked.add(node)
                until_us = min(wait.until_us, self._context.now_us + ANSWER_US)
                wait.open[self._ask(node, wait.table, wait.key, min(lack, held), sheet.here)] = (node, until_us)
                lack -= held
            if wait.open:
                return True
        return False

    def _holders(self, sheet: Sheet, is_here: bool) -> list[tuple[str, int]]:
        """Live nodes in this datacenter, or in the others, that hold rights: those with the most first."""
        context = self._context
        found = [
            (node, held)
            for node, held in sheet.nodes.items()
            if node in context.peers
            and (context.peers[node].dc == context.dc) == is_here
            and context.is_live(node)
            and self._silent.get(node, 0) <= context.now_us
        ]
        return sorted(found, key=lambda one: (-one[1], one[0]))

    def _ask(self, node: str, table: Table, key: bytes, amount: int, here: int) -> int:
        context, place = self._context, (table.definition.id, key)
        ask = context.next_id()
        self._asks[ask] = context.now_us
        context.count("rights.asked")
        demand = int(self._demand_of(place))
        context.send(node, RightsAsk(ask, place[0], key, context.packed, amount, max(here, 0), demand))
        return ask

    def answered(self, peer: str, message: RightsGiven) -> None:
        """Somebody says what it has given, for certain."""
        context = self._context
        if unpack_origin(message.origin).node != peer or message.namespace not in context.tables:
            return
        place = (message.namespace, message.key)
        pairs = zip(message.receivers, message.totals, strict=True)
        own = [(receiver, total) for receiver, total in pairs if unpack_origin(receiver).node == context.node]
        news = [self._words.note(place, message.origin, receiver, total) for receiver, total in own]
        self._received.pop(place, None)
        if self._asks.pop(message.ask, None) is None:
            return
        self._balancing.pop(place, None)
        wait = self._waits.get(place)
        if wait is not None:
            wait.open.pop(message.ask, None)
            if any(news) and message.left:
                wait.asked.discard(peer)  # it may be asked for more
            self._go_on(wait)

    # --- giving -----------------------------------------------------------------------------------------------------

    def asked(self, peer: str, message: RightsAsk) -> None:
        """Another owner asks for rights."""
        context = self._context
        table = context.tables.get(message.namespace)
        who = unpack_origin(message.origin)
        if (
            table is None
            or table.policy.name != BOUNDED
            or who.node != peer
            or who.incarnation != context.peers[peer].incarnation
        ):
            return
        if not message.key or not table.placement.is_mine[key_hash(message.key) >> table.placement.shift]:
            return
        place = (message.namespace, message.key)
        under_way = self._giving.get(place)
        if under_way is not None and len(under_way) < GIFTS_WAITING_MAX:
            under_way.append((peer, message))
        elif under_way is not None or len(self._giving) >= GIFTS_MAX:
            context.note("rights.too_many_ask")
        else:
            self._giving[place] = []
            self._give_loaded(peer, message, table)

    def _give_loaded(self, peer: str, message: RightsAsk, table: Table) -> None:
        def loaded(error: str) -> None:
            if error:
                self._given(peer, message, table, is_certain=False)
            else:
                self._give(peer, message, table)

        if table.missing([message.key]):
            self._context.loading.load(table.cells, [message.key], loaded)
        else:
            loaded("")

    def _give(self, peer: str, message: RightsAsk, table: Table, is_again: bool = False) -> None:
        try:
            sheet = self.sheet(table, message.key)
        except StorageError:  # as in `short`
            self._given(peer, message, table, is_certain=False)
            return
        if sheet.left and not is_again:
            self._inherit(table, message.key, sheet, lambda reply: self._give(peer, message, table, is_again=True))
            return
        amount = self._share(message, sheet.here)
        if amount <= 0:
            self._given(peer, message, table, is_certain=False)
            return

        def done(reply: WriteReply) -> None:
            is_given = reply.outcomes[0] < Outcome.INVALID
            if is_given:
                self._context.note("rights.given")
                self._context.count("rights.moved", amount)
            self._given(peer, message, table, is_certain=is_given)

        self._do(table, message.key, [Operation("give", (message.origin, amount))], done)

    def _share(self, message: RightsAsk, here: int) -> int:
        """How much to give: what the asker lacks, and its fair share by what is wanted there and here."""
        place = (message.namespace, message.key)
        if place in self._waits and self._context.packed < message.origin:
            return 0
        both = here + message.here
        spare = max(1, both // 10)  # so that little demand moves little, and none of the two is left with nothing
        wanted, ours = message.demand + spare, int(self._demand_of(place)) + spare
        fair = both * wanted // (wanted + ours) - message.here
        return min(max(min(message.amount, here), fair, 0), here, AMOUNT_MAX)

    def _given(self, peer: str, message: RightsAsk, table: Table, is_certain: bool) -> None:
        """Say what is certain by now; then turn to who has asked meanwhile. `is_certain`: the last gift has met its quorum."""
        context, place = self._context, (message.namespace, message.key)
        receivers: list[bytes] = []
        totals: list[int] = []
        left = 0
        if not table.missing([message.key]):
            state = context.decoded.state(table.policy, place[0], message.key, table.visible(message.key))
            entries = View(state).of_origin(context.packed)
            if entries and (is_certain or self._is_synced(table, message.key, max(entry.number for entry in entries))):
                for receiver, total in account_of(entries).given.items():
                    if unpack_origin(receiver).node == peer:
                        receivers.append(receiver)
                        totals.append(total)
            left = max(self.sheet(table, message.key, state).here, 0)
        context.send(peer, RightsGiven(message.ask, message.namespace, message.key, context.packed, receivers, totals, left))
        others = self._giving.get(place)
        if others:
            self._give_loaded(*others.pop(0), table)
        else:
            self._giving.pop(place, None)

    def _is_synced(self, table: Table, key: bytes, number: int) -> bool:
        """Whether a quorum of this datacenter has stated that it covers that number of this run."""
        stream = table.streams.get(key_hash(key) >> table.placement.shift, self._context.packed)
        if stream is None or stream.frontier < number:
            return False
        covering = 1 + sum(upto >= number for upto in stream.peers.values())
        return covering >= needed(Consistency.QUORUM, 0, table.placement.replicas)

    def give_away(self, table: Table, key: bytes, receiver: Origin | None, then: Callable[[int, int], None]) -> None:
        """Give all that this node may spend of a key; `then` is told how many were given, and how many are left."""
        place = (table.definition.id, key)

        def given(reply: WriteReply, amount: int) -> None:
            is_given = reply.outcomes[0] < Outcome.INVALID
            self._context.note("rights.given_away", int(is_given))
            then(amount if is_given else 0, 0 if is_given else amount)
            if receiver is not None:
                ask = RightsAsk(self._context.next_id(), *place, receiver.packed(), 0, 0, 0)
                self._given(receiver.node, ask, table, is_certain=is_given)

        def loaded(error: str, is_again: bool = False) -> None:
            try:
                sheet = None if error else self.sheet(table, key)
            except StorageError:  # as in `short`
                sheet = None
            if sheet is not None and sheet.left and not is_again:
                self._inherit(table, key, sheet, lambda reply: loaded("", is_again=True))
            elif sheet is None or sheet.here <= 0 or receiver is None or place in self._giving:
                then(0, 0 if sheet is None else max(sheet.here, 0))
            else:
                amount = min(sheet.here, AMOUNT_MAX)
                self._giving[place] = []
                operation = Operation("give", (receiver.packed(), amount))
                self._do(table, key, [operation], lambda reply: given(reply, amount))

        if table.missing([key]):
            self._context.loading.load(table.cells, [key], loaded)
        else:
            loaded("")

    # --- demand, and balance ----------------------------------------------------------------------------------------

    def _wanted(self, place: Place, amount: int) -> None:
        self._demand[place] = (self._demand_of(place) + amount, self._context.now_us)
        self._demand.move_to_end(place)
        if len(self._demand) > DEMANDS_MAX:
            self._demand.popitem(last=False)

    def _demand_of(self, place: Place) -> float:
        """What was wanted here of late, the newest counting most."""
        known = self._demand.get(place)
        return known[0] * 0.5 ** ((self._context.now_us - known[1]) / DEMAND_HALF_US) if known is not None else 0.0

    def _balance(self) -> None:
        """Ask for a fair share of what is wanted here before it is lacking."""
        context = self._context
        for node in [node for node, until_us in self._silent.items() if until_us <= context.now_us]:
            del self._silent[node]
        for place, asked_us in list(self._balancing.items()):
            if context.now_us - asked_us >= ANSWER_US:
                del self._balancing[place]
        for ask, asked_us in list(self._asks.items()):
            if context.now_us - asked_us >= 2 * WAIT_US:
                del self._asks[ask]
        for place in list(islice(self._demand, BALANCE_KEYS_MAX)):
            self._demand.move_to_end(place)
            demand = self._demand_of(place)
            table = context.tables.get(place[0])
            if demand < 0.5 or table is None:
                del self._demand[place]
            elif place not in self._waits and place not in self._balancing and not table.missing([place[1]]):
                self._ask_share(table, place, demand)

    def _ask_share(self, table: Table, place: Place, demand: float) -> None:
        if self._free(table, place[1]) >= demand:
            return
        sheet = self.sheet(table, place[1])
        for is_here in (True, False):
            for node, held in self._holders(sheet, is_here)[:1]:
                if held > max(sheet.here, 0):
                    self._balancing[place] = self._context.now_us
                    self._ask(node, table, place[1], 0, sheet.here)
                    return

    # --- time -------------------------------------------------------------------------------------------------------

    def wake_at_us(self) -> int | None:
        due = [wait.looks_us for wait in self._waits.values()]
        if self._demand or self._asks:
            due.append(self._balance_us)
        return min(due, default=None)

    def tick(self) -> None:
        now_us = self._context.now_us
        for wait in [wait for wait in self._waits.values() if wait.looks_us <= now_us]:
            for ask in [ask for ask, (_, until_us) in wait.open.items() if until_us <= now_us]:
                node, _ = wait.open.pop(ask)
                self._asks.pop(ask, None)
                self._silent[node] = now_us + 2 * ANSWER_US
                self._context.note("rights.silent")
            self._go_on(wait)
        if now_us >= self._balance_us:
            self._balance_us = now_us + BALANCE_US
            self._balance()

    def status(self) -> dict[str, int]:
        """What is under way, for `status`."""
        return {"waiting": len(self._waits), "giving": len(self._giving), "watched": len(self._demand)}


def _need(part: WritePart) -> int:
    """What the decrements of a part need together."""
    operations = [part.call.updates[index] for index in part.indexes]
    return sum(operation.arguments[0] for operation in operations if operation is not None)
