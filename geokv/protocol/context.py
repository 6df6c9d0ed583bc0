"""What the machines of one node share: its name, its clocks, its tables, and the list that effects are put on.

Invariants: `effects` is the only way out; `now_us` and `wall_us` are set by the node before each event and never read
from a clock.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from geokv.core.hlc import HybridClock
from geokv.core.origin import Origin, is_origin
from geokv.protocol.claims import Claims
from geokv.protocol.decoded import Decoded
from geokv.protocol.effects import Effect, Log, Note, Send
from geokv.protocol.journal import Journal
from geokv.protocol.loading import Loading
from geokv.protocol.messages import CloseForget
from geokv.protocol.operation_ids import OperationIds

if TYPE_CHECKING:
    from geokv.protocol.commit import Commit
    from geokv.protocol.peers import Peers
    from geokv.protocol.streams import Stream
    from geokv.protocol.table import Table


class Context:
    """Shared by the machines of one run of one node."""

    def __init__(
        self,
        cluster: str,
        origin: Origin,
        partitions: int,
        peers: Peers,
        clock: HybridClock,
        commit: Commit,
        effects: list[Effect],
        rng: random.Random,
        now_us: int = 0,
        wall_us: int = 0,
    ) -> None:
        self.cluster = cluster
        self.origin = origin
        self.dc = origin.dc
        self.node = origin.node
        self.packed = origin.packed()
        self.packed_dc = origin.dc.encode() + b"\0"  # as all origins of this datacenter begin
        self.partitions = partitions
        self.peers = peers
        self.clock = clock
        self.commit = commit
        self.effects = effects
        self.loading = Loading(effects)
        self.rng = rng
        self.tables: dict[int, Table] = {}
        self.now_us = now_us
        self.wall_us = wall_us
        self.bound_ms = 0  # durable: no run of this node has given or will give a stamp above it before a higher one is
        self.kept_until_us = 0  # a backup is being taken: until then no closing is forgotten, and nothing new collected
        self.is_refusing = ""  # why clients are not served
        self.distrusted = ""  # why this disk cannot be trusted: then peers are not answered either
        self.counters: dict[str, int] = {}
        self.promised: dict[bytes, set[int]] = {}  # origin -> partitions: no more of it is taken
        self.deleted: set[int] = set()  # ids of namespaces that were deleted: their records are nobody's any more
        self.closed: dict[bytes, set[int]] = {}  # origin -> partitions: closed and covered everywhere, only remembered
        self.journal = Journal()
        self.claims = Claims(origin.node)
        self.decoded = Decoded()
        self.operation_ids = OperationIds(self)
        self.on_refused: Callable[[str], None] = lambda reason: None
        self._next_id = rng.getrandbits(31) << 20

    @property
    def wall_ms(self) -> int:
        return self.wall_us // 1000

    @property
    def is_keeping(self) -> bool:
        """Whether everything stays that another node's copy of just now may lack (`node.snapshots`)."""
        return self.now_us < self.kept_until_us

    def until_next_us(self, step_us: int) -> int:
        """How long until the wall clock's next multiple of `step_us`: what waits for it leaves at one moment."""
        return step_us - self.wall_us % step_us

    def next_id(self) -> int:
        """A name for an exchange with a peer, not used before by this run nor, in all likelihood, by an earlier one."""
        self._next_id += 1
        return self._next_id

    def send(self, peer: str, message: object) -> None:
        self.effects.append(Send(peer, message))

    def note(self, name: str, count: int = 1) -> None:
        """Count a rare or telling event, here and at the host."""
        self.counters[name] = self.counters.get(name, 0) + count
        self.effects.append(Note(name, count))

    def count(self, name: str, count: int = 1) -> None:
        """Count an everyday event, here only."""
        self.counters[name] = self.counters.get(name, 0) + count

    def tell_forgotten(self, peer: str, pairs: Iterable[tuple[bytes, int]]) -> None:
        """Tell a peer that still speaks of streams which every replica covers that only their closing is remembered."""
        gone = [pair for pair in pairs if pair[1] in self.closed.get(pair[0], ())]
        if gone:
            self.note("close.told_forgotten")
            self.send(peer, CloseForget(gone))

    def log(self, level: str, text: str) -> None:
        self.effects.append(Log(level, text))

    def is_live(self, node: str) -> bool:
        return node == self.node or self.peers.is_live(node, self.now_us)

    def stream(self, table: Table, partition: int, origin: bytes) -> Stream | None:
        """The stream of that name, made if it is new; None where its origin is closed for good, or is none."""
        stream = table.streams.partitions[partition].get(origin)
        if stream is None:
            if partition in self.closed.get(origin, ()) or not is_origin(origin):
                return None
            stream = table.streams.make(partition, origin)
            stream.is_refused = partition in self.promised.get(origin, ())
        return stream

    def find_stream(self, namespace: int, partition: int, origin: bytes) -> Stream | None:
        """The stream of that name where it is known here; never makes one."""
        table = self.tables.get(namespace)
        if table is None or not 0 <= partition < self.partitions:
            return None
        return table.streams.partitions[partition].get(origin)
