"""Upkeep: when the engine flushes and compacts, and when writers must wait for it.

    log grows by a memtable ──> Build(flush) ──> Built ──> the log before it may go ──> Build(compaction) … while one is due
    fails ──> again after a pause that doubles, for each of the two its own

    asked for    flush_soon: all that is synced now, for snapshots and operators      compact_soon: each namespace into one run
    paused       for a time that is bounded, or slower: the worker is told, also in the midst of a job

One job at a time: damaged tables are set aside before a flush, a flush goes before any compaction; so a table that cannot
be compacted does not keep others from being written. A flush begins from what is synced and whole in the tables, with the
node's own state of that moment; recovery begins exactly there.

    not flushed     unflushed_bytes_warn    clients' writes are told to wait
                    unflushed_bytes_max     records of other nodes are not taken either
    compaction      debt_bytes_max          clients' writes are told to wait

Invariants: what is in memory only is bounded. Not here: what a job does (the engine), where it runs (the host).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from geokv.core.limits import MIB
from geokv.errors import Overloaded, StorageError, Unavailable
from geokv.node.config import NodeConfig
from geokv.protocol.context import Context
from geokv.protocol.effects import Build, Built, Pace, Stopping
from geokv.storage.engine import Engine
from geokv.storage.lsm.collection import CollectionRule
from geokv.storage.position import Position

RETRY_US: Final = (1_000_000, 60_000_000)
ASK_AGAIN_S: Final = 5.0

Done = Callable[[str], None]


@dataclass(slots=True)
class _Pause:
    """After a failure: why, until when nothing is tried, and how long the next pause is."""

    failure: str = ""
    until_us: int | None = None
    length_us: int = RETRY_US[0]

    def is_over(self, now_us: int) -> bool:
        return self.until_us is not None and now_us >= self.until_us


class Upkeep:
    """Plans the engine's jobs for one run of a node."""

    def __init__(self, context: Context, engine: Engine, config: NodeConfig, replayed_bytes: int) -> None:
        """`replayed_bytes`: what the log holds that recovery put into the memtables."""
        self._context = context
        self._engine = engine
        self._config = config
        self._memtable_bytes = min(config.memtable_bytes, config.log_bytes_max // 4)  # well before the log is full
        self._flushed_bytes = self._begun_bytes = -replayed_bytes  # as `commit.appended_bytes` counts
        self._token = 0
        self._job = ""
        self._begun: Any = None  # the newest flush, until it is done: one that failed is begun again as it was
        self._is_stopping = False
        self._pauses = {"flush": _Pause(), "compaction": _Pause(), "quarantine": _Pause()}
        self._pauses["compaction"].until_us = context.now_us  # an earlier run may have left something to compact
        self._debt_bytes = engine.debt_bytes()
        self.flushes = self.compactions = 0
        self.rules: Mapping[int, CollectionRule] = {}  # what compactions may collect, by namespace
        self._wanted: list[Done] = []  # who waits for a flush that is not begun yet
        self._serving: list[Done] = []  # and for the one under way
        self._to_compact: list[int] = []  # namespaces that an operator wants merged into one run each
        self._compacted: list[Done] = []  # who waits for that
        self.paused_until_us: int | None = None
        self.bytes_per_s = 0  # what an operator has set; 0: as configured
        self.meta: Callable[[], bytes] = bytes  # the node puts itself there once it is made
        self.on_flushed: Callable[[], None] = lambda: None
        self.damaged: Callable[[], tuple[Any, ...]] = tuple  # the tables that may be set aside now

    @property
    def unflushed_bytes(self) -> int:
        """Records that are in memtables, and in the log, only."""
        return self._context.commit.appended_bytes - self._flushed_bytes

    @property
    def debt_bytes(self) -> int:
        """What compaction is behind by."""
        return self._debt_bytes

    @property
    def failure(self) -> str:
        """Why the last flush, or else the last compaction, failed; empty where neither did."""
        return next((pause.failure for pause in self._pauses.values() if pause.failure), "")

    def refusal(self) -> str:
        """Why clients' writes must wait (empty: they need not)."""
        if self.unflushed_bytes > self._config.unflushed_bytes_warn:
            why = f": {self.failure}" if self.failure else ", the disk or the processor is too slow for this rate of writes"
            return f"{self.unflushed_bytes // MIB} MiB wait to be flushed{why}"
        if self._debt_bytes > self._config.debt_bytes_max:
            why = f": {self.failure}" if self.failure else ", more is written than it can merge"
            return f"compaction is {self._debt_bytes // MIB} MiB behind{why}"
        return ""

    def refusal_of_peers(self) -> str:
        """Why nothing more can be taken of other nodes (empty: it can)."""
        if self.unflushed_bytes > self._config.unflushed_bytes_max:
            return f"{self.unflushed_bytes // MIB} MiB wait to be flushed"
        return ""

    # --- planning ---------------------------------------------------------------------------------------------------

    def landed(self) -> None:
        """A frame is synced, and what it brought is in the tables."""
        if not self._job and self._pauses["flush"].until_us is None and (self._wanted or self._is_due()):
            self._flush()

    def tick(self) -> None:
        """Try again what failed, and go on where a pause is over."""
        if self.paused_until_us is not None and self._context.now_us >= self.paused_until_us:
            self._context.log("info", "the pause of the storage worker is over")
            self.resume()
        flush, compaction, quarantine = self._pauses["flush"], self._pauses["compaction"], self._pauses["quarantine"]
        if quarantine.is_over(self._context.now_us):
            quarantine.until_us = None
        self.set_aside()
        self._flush_wanted()
        if not self._job and flush.is_over(self._context.now_us):
            flush.until_us = None
            self._flush()
        is_wanted = compaction.until_us is None and self._engine.wants_compaction
        if not self._job and (compaction.is_over(self._context.now_us) or is_wanted):
            compaction.until_us = None
            self._compact()

    def set_aside(self) -> None:
        """Set damaged tables aside whose claims were taken back."""
        if self._job or self._is_stopping or self._pauses["quarantine"].until_us is not None:
            return
        tables = self.damaged()
        if tables:
            self._begin("quarantine", self._engine.begin_quarantine(tables))

    def _is_due(self) -> bool:
        return self._context.commit.appended_bytes - self._begun_bytes >= self._memtable_bytes

    def flush_soon(self, done: Done) -> None:
        """Flush all that is synced now, once that can be; `done` with why it failed, or empty. Raises Unavailable."""
        if self.paused_until_us is not None:
            raise Unavailable(f"the storage worker is paused for {self.paused_ms_left / 1000:.0f} s more: resume it first")
        if self._begun is not None and not self._job:
            raise Unavailable(f"{self.failure or 'the last flush failed'}; it is tried again soon")
        self._wanted.append(done)
        self._flush_wanted()

    def _flush_wanted(self) -> None:
        if self._wanted and not self._job and self._begun is None:
            self._flush()

    def compact_soon(self, namespaces: Iterable[int], done: Done) -> None:
        """Merge all tables of each namespace into one run, one after the other; `done` as above. Raises Overloaded."""
        if self._to_compact or self._compacted:
            raise Overloaded("a compaction that was asked for is under way", retry_after=ASK_AGAIN_S)
        self._to_compact = list(namespaces)
        self._compacted.append(done)
        if not self._job:
            self._compact()

    def pause(self, duration_us: int) -> None:
        """No more writes of flushes and compactions, until `resume` or so much later."""
        self.paused_until_us = self._context.now_us + duration_us
        self._pace()

    def resume(self) -> None:
        self.paused_until_us = None
        self._pace()

    def throttle(self, bytes_per_s: int) -> None:
        """How fast flushes and compactions write; 0: as configured."""
        self.bytes_per_s = bytes_per_s
        self._pace()

    def _pace(self) -> None:
        self._context.effects.append(Pace(self.bytes_per_s, self.paused_until_us is not None))

    @property
    def running(self) -> str:
        """What is under way: flush, compaction or quarantine; empty: nothing."""
        return self._job

    @property
    def paused_ms_left(self) -> int:
        """How long the worker stays paused; 0: it is not."""
        return 0 if self.paused_until_us is None else max(1, (self.paused_until_us - self._context.now_us) // 1000)

    def flush(self) -> bool:
        """Flush what there is now; False where a job is under way, a flush failed just now, or half a batch is on the disk."""
        if self._job or self._is_stopping or self._pauses["flush"].until_us is not None:
            return False
        self._flush()
        return bool(self._job)

    def look_again(self) -> None:
        """Something may be due for compaction: a namespace was deleted, or tombstones may be collected."""
        if self._pauses["compaction"].until_us is None:
            self._pauses["compaction"].until_us = self._context.now_us

    def stopping(self, event: Stopping) -> None:
        """The node is about to stop: with a last flush, unless that takes long, the next start has nothing to replay."""
        self._is_stopping = True
        self._flushed("the node stops")
        self._end_compacting("the node stops")
        if 0 < self.unflushed_bytes <= event.flush_bytes_max and not self._job:
            self._flush()

    def _flush(self) -> None:
        commit = self._context.commit
        if self._begun is not None:
            self._begun = self._engine.flush_again(self._begun)
        elif commit.is_whole and commit.position != (0, 0):
            self._begun_bytes = commit.appended_bytes
            self._begun = self._engine.begin_flush(Position(*commit.position), self.meta())
            self._serving, self._wanted = self._wanted, []
        else:
            return  # with a frame that is to come soon, or once all of this one is told
        self._begin("flush", self._begun)

    def _compact(self) -> None:
        while self._to_compact and not self._job:
            try:
                job = self._engine.full_compaction(self._to_compact.pop(0))
            except StorageError as error:
                self._to_compact.clear()
                self._end_compacting(str(error))
                return
            if job is not None:
                self._begin("compaction", job)
                return
        if self._compacted:
            self._end_compacting("")
        job = self._engine.next_compaction(self.rules)
        if job is not None:
            self._begin("compaction", job)

    def _end_compacting(self, error: str) -> None:
        self._to_compact = []
        told, self._compacted = self._compacted, []
        for done in told:
            done(error)

    def _flushed(self, error: str) -> None:
        """Tell who waits for the flush that ended. After a failure also those behind it: it may fail for long."""
        told, self._serving = self._serving, []
        if error:
            told, self._wanted = told + self._wanted, []
        for done in told:
            done(error)

    def _begin(self, what: str, job: Any) -> None:
        self._job = what
        self._token += 1
        self._context.effects.append(Build(self._token, job))

    def built(self, event: Built) -> None:
        """The job under way is done, or has failed."""
        assert event.token == self._token, f"Built({event.token}), expected {self._token}"
        what, self._job = self._job, ""
        self._debt_bytes = self._engine.debt_bytes()
        if event.error:
            self._failed(what, event.error)
            return
        self._pauses[what] = _Pause()
        if what == "flush":
            self.flushes += 1
            self._begun = None
            self._flushed_bytes = self._begun_bytes
            self.on_flushed()
            self._flushed("")
        elif what == "compaction":
            self.compactions += 1
        self._context.count(f"storage.{what}")
        if self._is_stopping:
            return
        self.set_aside()
        self.landed()
        if not self._job and self._pauses["compaction"].until_us is None:
            self._compact()

    def _failed(self, what: str, error: str) -> None:
        context = self._context
        if self._is_stopping:
            return
        context.note(f"{what}.failed")
        if what == "flush":
            self._flushed(error)
        elif self._compacted:
            self._end_compacting(error)
        pause = self._pauses[what]
        pause.failure = f"the {what} failed: {error}"
        pause.until_us = context.now_us + pause.length_us
        context.log("error", f"{pause.failure}; the log is kept, and it is tried again in {pause.length_us / 1e6:g} s")
        pause.length_us = min(RETRY_US[1], pause.length_us * 2)
        self.set_aside()
        self.landed()  # a flush need not wait for a compaction that failed
