"""Forwarding: a node that does not own a key hands the operation to the first live owner and passes the answer on.

A batch is cut by owner; what this node owns, and has its claim for, it coordinates itself. One hop only: who gets a
forwarded batch and does not own its keys answers WRONG_NODE.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from heapq import heappop, heappush
from typing import Final

from geokv.core.limits import CALLS_MAX, READ_ANSWER_BYTES_MAX
from geokv.core.ring import key_hash
from geokv.protocol.context import Context
from geokv.protocol.messages import Forward, Forwarded
from geokv.protocol.placement import Placement
from geokv.protocol.requests import Detail, Outcome, ReadBatch, ReadReply, WriteBatch, WriteReply
from geokv.protocol.table import Table

FORWARDS_REMEMBERED_MAX: Final = 16_384
Batch = WriteBatch | ReadBatch
BatchReply = WriteReply | ReadReply
Respond = Callable[[BatchReply], None]


class _Split:
    """One client batch that is answered by several owners."""

    __slots__ = ("batch", "merged", "nbytes", "policy", "remaining", "respond")

    def __init__(self, batch: Batch, remaining: int, respond: Respond, coordinator: str) -> None:
        count = len(batch.keys)
        self.batch = batch
        self.remaining = remaining
        self.nbytes = 0  # of the values in the merged answer
        self.policy: str | None = None  # of the shares that were answered
        self.respond = respond
        self.merged: BatchReply = (
            WriteReply([0] * count, [0] * count, [0] * count, [0] * count, coordinator, 0, 0)
            if isinstance(batch, WriteBatch)
            else ReadReply([0] * count, [None] * count, [0] * count, [0] * count, coordinator, 0, 0)
        )

    def put(self, indexes: list[int], reply: BatchReply) -> None:
        merged = self.merged
        if isinstance(reply, ReadReply) and Outcome.APPLIED in reply.outcomes:
            if self.policy is None:
                self.policy = reply.policy
            elif self.policy != reply.policy:  # it is being changed, and not all have heard of it
                again: list[int] = [Outcome.ASK_AGAIN] * len(indexes)
                reply = replace(reply, outcomes=again, values=[None] * len(indexes), contexts=[])
        for position, index in enumerate(indexes):
            merged.outcomes[index] = reply.outcomes[position]
            merged.versions[index] = reply.versions[position]
            merged.replicas[index] = reply.replicas[position]
            if position in reply.details:
                merged.details[index] = reply.details[position]
            if isinstance(merged, WriteReply) and isinstance(reply, WriteReply):
                merged.dcs[index] = reply.dcs[position]
                self._put_context(merged.contexts, index, reply.contexts, position)
            elif isinstance(merged, ReadReply) and isinstance(reply, ReadReply):
                if self._put_value(merged, index, reply.values[position]):
                    self._put_context(merged.contexts, index, reply.contexts, position)
                merged.policy = merged.policy or reply.policy
        merged.coordinator = reply.coordinator
        merged.hlc = max(merged.hlc, reply.hlc)
        merged.elapsed_us = max(merged.elapsed_us, reply.elapsed_us)
        self.remaining -= 1
        if not self.remaining:
            self.respond(merged)

    def _put_value(self, merged: ReadReply, index: int, value: bytes | None) -> bool:
        """Each owner kept to the limit of one answer; all of them together must too."""
        if value is not None and self.nbytes and self.nbytes + len(value) > READ_ANSWER_BYTES_MAX:
            merged.outcomes[index] = Outcome.ASK_AGAIN
            return False
        self.nbytes += len(value or b"")
        merged.values[index] = value
        return True

    def _put_context(self, merged: list[bytes], index: int, contexts: list[bytes], position: int) -> None:
        """Contexts are there for policies that have them, in all shares or in none (but for a share that failed)."""
        if contexts:
            if not merged:
                merged.extend([b""] * len(self.batch.keys))
            merged[index] = contexts[position]
            self.nbytes += len(contexts[position])


class Forwarder:
    """Cuts batches by owner and keeps those that others answer."""

    def __init__(
        self,
        context: Context,
        placement: Placement,
        coordinate: Callable[[Batch, Respond], None],
        resolve: Callable[[str], Table | None],
    ) -> None:
        self._context = context
        self._placement = placement
        self._coordinate = coordinate
        self._resolve = resolve
        self._open: dict[int, tuple[_Split, list[int], str]] = {}
        self._deadlines: list[tuple[int, int]] = []
        self._taken: dict[tuple[str, int], None] = {}  # forwarded calls that others gave us, oldest first

    def start(self, batch: Batch, respond: Respond) -> None:
        """Coordinate or forward every operation of `batch`; answers through `respond`, once."""
        context = self._context
        if (self._placement.owns_all and context.claims.is_whole) or not batch.keys:
            self._coordinate(batch, respond)
            return
        table = None if context.claims.is_whole else self._resolve(batch.namespace)
        by_owner: dict[str, list[int]] = {}
        for index, key in enumerate(batch.keys):
            partition = key_hash(key) >> self._placement.shift
            owners = self._placement.owners[partition]
            if table is not None:  # those who took their claim back come last
                able = context.claims.holders(owners, table.definition.id, partition)
                owners = able if any(map(context.is_live, able)) else owners
            owner = context.node if context.node in owners else self._first_live(owners)
            by_owner.setdefault(owner, []).append(index)
        if list(by_owner) == [context.node]:
            self._coordinate(batch, respond)
            return
        split = _Split(batch, len(by_owner), respond, context.node)
        for owner, indexes in by_owner.items():
            share = cut(batch, indexes)
            if owner == context.node:
                self._coordinate(share, lambda reply, indexes=indexes: split.put(indexes, reply))  # type: ignore[misc]
            else:
                self._forward(owner, share, split, indexes)

    def _first_live(self, owners: tuple[str, ...]) -> str:
        return next((owner for owner in owners if self._context.is_live(owner)), owners[0])

    def _forward(self, owner: str, share: Batch, split: _Split, indexes: list[int]) -> None:
        context = self._context
        if not context.is_live(owner):
            self._fail(split, indexes, Outcome.UNAVAILABLE, f"no owner of this key's partition is live (first: {owner})")
            return
        if len(self._open) >= CALLS_MAX:
            self._fail(split, indexes, Outcome.OVERLOADED, f"{len(self._open)} forwarded calls in progress")
            return
        call = context.next_id()
        self._open[call] = (split, indexes, owner)
        heappush(self._deadlines, (context.now_us + share.timeout_ms * 1000, call))
        is_write = isinstance(share, WriteBatch)
        context.count("forwarded")
        context.send(owner, Forward(call, share if is_write else None, None if is_write else share))

    def _fail(self, split: _Split, indexes: list[int], outcome: Outcome, text: str) -> None:
        count = len(indexes)
        details = {position: Detail(text) for position in range(count)}
        node = self._context.node
        if isinstance(split.batch, WriteBatch):
            split.put(indexes, WriteReply([outcome] * count, [0] * count, [0] * count, [0] * count, node, 0, 0, details))
        else:
            split.put(indexes, ReadReply([outcome] * count, [None] * count, [0] * count, [0] * count, node, 0, 0, details))

    def asked(self, peer: str, message: Forward) -> None:
        """Another node forwards a batch: coordinate it."""
        batch = message.write or message.read
        if not isinstance(batch, (WriteBatch, ReadBatch)) or not self._is_new(peer, message.call):
            return

        def answer(reply: BatchReply) -> None:
            is_write = isinstance(reply, WriteReply)
            self._context.send(peer, Forwarded(message.call, reply if is_write else None, None if is_write else reply))

        self._coordinate(batch, answer)

    def _is_new(self, peer: str, call: int) -> bool:
        """Whether this forwarded call was not here before: done again, an old write would be stamped above newer ones."""
        if (peer, call) in self._taken:
            self._context.note("forward.doubled")
            return False
        self._taken[peer, call] = None
        if len(self._taken) > FORWARDS_REMEMBERED_MAX:
            del self._taken[next(iter(self._taken))]
        return True

    def answered(self, peer: str, message: Forwarded) -> None:
        """The owner's answer to a forwarded batch."""
        waiting = self._open.get(message.call)
        reply = message.write or message.read
        if waiting is None or waiting[2] != peer or not isinstance(reply, (WriteReply, ReadReply)):
            return
        split, indexes, _ = waiting
        if len(reply.outcomes) == len(indexes) and isinstance(reply, WriteReply) == isinstance(split.batch, WriteBatch):
            del self._open[message.call]
            split.put(indexes, reply)

    def lost(self, peer: str) -> None:
        """The owner is gone: nobody here knows what became of what it was given."""
        for call, (split, indexes, owner) in list(self._open.items()):
            if owner == peer:
                del self._open[call]
                self._unknown(split, indexes, f"the connection to {owner} broke")

    def _unknown(self, split: _Split, indexes: list[int], why: str) -> None:
        is_write = isinstance(split.batch, WriteBatch)
        self._fail(split, indexes, Outcome.AMBIGUOUS if is_write else Outcome.UNAVAILABLE, why)

    def wake_at_us(self) -> int | None:
        while self._deadlines and self._deadlines[0][1] not in self._open:
            heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def tick(self) -> None:
        while self._deadlines and self._deadlines[0][0] <= self._context.now_us:
            waiting = self._open.pop(heappop(self._deadlines)[1], None)
            if waiting is not None:
                self._unknown(waiting[0], waiting[1], f"{waiting[2]} did not answer in time")


def cut(batch: Batch, indexes: list[int]) -> Batch:
    """The share of a batch with these operations."""
    keys = [batch.keys[index] for index in indexes]
    if isinstance(batch, ReadBatch):
        return replace(batch, keys=keys)
    return replace(
        batch,
        keys=keys,
        values=[batch.values[index] for index in indexes],
        operations=[batch.operations[index] for index in indexes] if batch.operations else [],
        contexts=[batch.contexts[index] for index in indexes] if batch.contexts else [],
        remaining_ms=[batch.remaining_ms[index] for index in indexes] if batch.remaining_ms else [],
    )
