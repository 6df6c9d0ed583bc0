"""Claims: of which partitions a replica says that it has everything up to its frontiers, and which of these it took back.

A table that is damaged takes state away other than by merging or collecting. What it held is unknown, so for every partition
of its namespace that it may have held keys of the node takes its claim back: durably, before the table is set aside.

    with its claim      coordinates, answers reads, gives cells, states its frontiers, counts in those of its datacenter
    without it          none of these; it takes what others write, acknowledges what its log has synced, and ships from its log

Without the claim a stream goes on taking its numbers in order: its `frontier` then says what came through the log, so that
nothing comes twice and nobody keeps a log for it for ever. It says nothing of what is here. Peers hear such numbers apart
from those that are claimed (`TakenBack`), and count them for retention and catching up alone.

    why a read still sees every acknowledged write (R + W > N): of N owners k are without their claim. A write on W owners is
    on at least W-k of the N-k others, and a read asks R of these; R + (W-k) > N-k.

Invariants: a claim that was taken back stays so; it comes back by re-entry only, which does not exist yet, never by repair (a
lost tombstone would bring its value back). Not here: when one is taken back (`protocol.quarantine`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

NOTHING: Final[frozenset[int]] = frozenset()


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """A claim that this node took back: of which partitions of a namespace, and because of which table."""

    namespace: int
    table: int
    path: str
    offset: int
    what: str
    partitions: tuple[int, ...]
    noted_ms: int

    def packed(self) -> list[Any]:
        return [self.namespace, self.table, self.path, self.offset, self.what, list(self.partitions), self.noted_ms]


def unpacked(body: Any) -> Withdrawal:
    """Inverse of `Withdrawal.packed`."""
    namespace, table, path, offset, what, partitions, noted_ms = body
    return Withdrawal(namespace, table, path, offset, what, tuple(partitions), noted_ms)


def shown(partitions: Iterable[int]) -> str:
    """Partition numbers as a reader wants them: "partitions 0-7, 12"."""
    spans: list[list[int]] = []
    for number in sorted(partitions):
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return "partitions " + (", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans) or "none")


class Claims:
    """What this node took back, and what it has heard that others did. `is_whole`: nobody did, the usual case."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._gone: dict[str, dict[int, frozenset[int]]] = {}  # node -> namespace -> partitions
        self._heard: dict[str, tuple[int, int]] = {}  # node -> its run, and how many changes it has told of
        self.withdrawals: dict[int, Withdrawal] = {}  # by table; this node's own
        self.is_whole = True

    # --- this node --------------------------------------------------------------------------------------------------

    def withdraw(self, withdrawal: Withdrawal) -> bool:
        """Take a claim back; False where it was already, because of the same table."""
        if withdrawal.table in self.withdrawals:
            return False
        self.withdrawals[withdrawal.table] = withdrawal
        mine = self._gone.setdefault(self._node, {})
        mine[withdrawal.namespace] = mine.get(withdrawal.namespace, NOTHING) | frozenset(withdrawal.partitions)
        self.is_whole = False
        return True

    def mine(self, namespace: int) -> frozenset[int]:
        """The partitions of a namespace whose claim this node took back."""
        return NOTHING if self.is_whole else self._gone.get(self._node, {}).get(namespace, NOTHING)

    def all_mine(self) -> Mapping[int, frozenset[int]]:
        """By namespace."""
        return self._gone.get(self._node, {})

    def why(self, namespace: int, partition: int) -> str:
        """Why this node does not answer for a partition (empty: it does)."""
        for one in self.withdrawals.values():
            if one.namespace == namespace and partition in one.partitions:
                return (
                    f"{self._node} cannot serve partition {partition}: its table {one.path} is damaged at byte {one.offset}"
                    f" ({one.what}) and in quarantine"
                )
        return ""

    # --- anybody ----------------------------------------------------------------------------------------------------

    def heard(self, node: str, incarnation: int, changes: int, partitions: Mapping[int, Iterable[int]]) -> None:
        """Another node has told all that it took back. An older word, come late, changes nothing."""
        known = self._heard.get(node)
        if known is not None and known[0] == incarnation and changes < known[1]:
            return
        self._heard[node] = (incarnation, changes)
        told = {namespace: frozenset(numbers) for namespace, numbers in partitions.items()}
        if told:
            self._gone[node] = told
        else:
            self._gone.pop(node, None)
        self.is_whole = not self._gone

    def holds(self, node: str, namespace: int, partition: int) -> bool:
        """Whether a node's claim stands, as far as is known here."""
        return self.is_whole or partition not in self._gone.get(node, {}).get(namespace, NOTHING)

    def holders(self, nodes: Iterable[str], namespace: int, partition: int) -> tuple[str, ...]:
        """Those of `nodes` whose claim stands."""
        return tuple(node for node in nodes if self.holds(node, namespace, partition))

    def lacking(self, namespace: int) -> list[str]:
        """Who took back a claim in that namespace, in words for an error; empty: nobody."""
        return sorted(node for node, gone in self._gone.items() if gone.get(namespace))
