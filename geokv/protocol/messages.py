"""What nodes say to each other: one small value per message. proto/geokv/v1/peer.proto and geo.proto are their wire forms.

Each message is ASK (it opens an exchange) or ANSWER (it replies to one). Between datacenters asks travel on the
stream that their sender dialled and answers come back on it, so a link's faults hit what that side started. Messages
may be lost, doubled and reordered; every machine lives with that.

`records` is always the records' own bytes, one behind the other (core.record), never re-encoded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

StreamKey = tuple[int, int, bytes]
"""(namespace id, partition, packed origin): the name of a stream."""


@dataclass(slots=True)
class StreamHeads:
    """Frontiers of the streams of one (namespace, origin): `numbers[i]` belongs to `partitions[i]`."""

    namespace: int
    origin: bytes
    partitions: list[int]
    numbers: list[int]


# --- replication inside a datacenter --------------------------------------------------------------------------------


@dataclass(slots=True)
class Replicate:
    """ASK. Take these records: freshly written (or repaired) ones, or ones that came over the WAN and go on to co-owners."""

    batch: int
    records: bytes


@dataclass(slots=True)
class Replicated:
    """ANSWER, once all of the batch is synced. `contiguous`: no stream in it has a gap before these records.

    `newer`: (index of the record, version that this replica holds and that wins over it; 0 where it may have been written by
    who had seen the record: then nothing is to be stamped above it). `refused`: origins whose
    records were not taken because this replica promised to take no more of them. `unknown`: namespace ids without a
    definition here.
    """

    batch: int
    contiguous: bool = True
    newer: list[tuple[int, int]] = field(default_factory=list)
    refused: list[bytes] = field(default_factory=list)
    unknown: list[int] = field(default_factory=list)


@dataclass(slots=True)
class ReadCells:
    """ASK for the cells of `keys`, or for their digests (8 bytes each; absent: eight zeros)."""

    query: int
    namespace: int
    keys: list[bytes]
    digests: bool


@dataclass(slots=True)
class CellsRead:
    """ANSWER: per key its cell (empty bytes: absent), or all digests in one string of 8 bytes each.

    `collections`: with cells, the sender's count of collections, no older than they are.
    """

    query: int
    cells: list[bytes]
    digests: bytes
    error: str = ""
    collections: int = 0


@dataclass(slots=True)
class Forward:
    """ASK: do this client batch, whose keys you own. Exactly one of `write`, `read` is set (protocol.requests)."""

    call: int
    write: object = None
    read: object = None


@dataclass(slots=True)
class Forwarded:
    """ANSWER to Forward: the reply, with one entry per item of the forwarded batch."""

    call: int
    write: object = None
    read: object = None


@dataclass(slots=True)
class Statement:
    """ASK without an answer, sent at every heartbeat: what this node has synced.

    `log_sequence`: frames synced by this run of this disk. `sent_us`: the sender's monotonic clock; `echo_us`: the
    newest `sent_us` that it had of the receiver (0: none), so that each end measures with its own clock. `hlc`:
    sender's clock. `frontiers`: changed ones, or all when `is_full`. `shipped`: of own streams, what every other DC's
    frontier covers. `definitions`: per DC, how many definition slots the sender knows without a gap. `collections`: per
    namespace, the sender's count of collections.
    """

    sent_us: int
    echo_us: int
    wall_ms: int
    hlc: int
    log_sequence: int
    is_full: bool
    frontiers: list[StreamHeads]
    shipped: list[StreamHeads]
    definitions: dict[str, int]
    collections: dict[int, int] = field(default_factory=dict)


@dataclass(slots=True)
class TakenBack:
    """ASK without an answer: all claims that the sender took back, namespace -> partitions (see protocol.claims).

    `changes` counts within the sender's run, for words that come late. `logged`: up to where these streams' numbers came
    through its log. That is no claim: it says what need not be sent again, and from whose log it can be had.
    """

    changes: int
    partitions: dict[int, list[int]]
    logged: list[StreamHeads]


# --- feeds: catching up from a co-owner's log, and shipping between datacenters -------------------------------------


@dataclass(slots=True)
class FeedOpen:
    """ASK: send me from your log what lies beyond these frontiers, of these partitions.

    `own_only`: only streams that the sender's node originated (shipping); otherwise all streams (catching up from a
    co-owner). `feed` is drawn by the receiver and rises; an open with a newer one replaces the older. Streams not
    named start at 0.
    """

    feed: int
    own_only: bool
    partitions: list[int]
    frontiers: list[StreamHeads]


@dataclass(slots=True)
class FeedBatch:
    """ANSWER: records, in order per stream, as one zstd frame with checksum. `sequence` counts 1, 2, 3 … in this feed.

    The heartbeat rides along (and comes alone, with no records, when there is nothing to send): `sent_hlc`:
    everything that was originated up to here has been sent, but for `behind` (partition -> HLC up to which that one
    is sent); `heads`: numbers that the sender's own streams have reached (only in heartbeats); `echo_us` as in
    Statement.
    """

    feed: int
    sequence: int
    raw_bytes: int
    payload: bytes
    sent_hlc: int
    behind: dict[int, int]
    heads: list[StreamHeads]
    sent_us: int
    echo_us: int


@dataclass(slots=True)
class FeedAck:
    """ASK side's progress: batches up to `synced` are in this node's own log, up to `quorum` on a quorum of owners here.

    `covered`: frontiers of this DC (a quorum of owners) for streams of the sender, for what the batch numbers cannot
    say.
    """

    feed: int
    synced: int
    quorum: int
    covered: list[StreamHeads]
    sent_us: int
    echo_us: int


@dataclass(slots=True)
class FeedClose:
    """ASK: this feed is over (caught up, or another receiver has taken the partitions)."""

    feed: int


@dataclass(slots=True)
class FeedRefused:
    """ANSWER: no such feed (the sender restarted); open a new one, or see `reason`."""

    feed: int
    reason: str


@dataclass(slots=True)
class FeedHoles:
    """ANSWER: of these streams the sender's log lacks what comes next, though it covers them to the numbers given."""

    feed: int
    heads: list[StreamHeads]


# --- agreement: single-decree Paxos per item, in batches ------------------------------------------------------------

Ballot = tuple[int, str]
"""(round, node that proposes): totally ordered."""


@dataclass(slots=True)
class Prepare:
    """ASK, phase 1."""

    ballot: Ballot
    items: list[bytes]


@dataclass(slots=True)
class Promised:
    """ANSWER to Prepare, per item in its order: the accepted ballot and value where there is one, and whether it is chosen.

    `refused` is set, and the rest empty, where a higher ballot was promised for any item: `higher` names it.
    """

    ballot: Ballot
    items: list[bytes]
    accepted: list[tuple[Ballot, bytes] | None]
    chosen: list[bool]
    refused: bool = False
    higher: Ballot = (0, "")


@dataclass(slots=True)
class Accept:
    """ASK, phase 2."""

    ballot: Ballot
    items: list[bytes]
    values: list[bytes]


@dataclass(slots=True)
class Accepted:
    """ANSWER to Accept. `refused` as in Promised."""

    ballot: Ballot
    items: list[bytes]
    refused: bool = False
    higher: Ballot = (0, "")


@dataclass(slots=True)
class Chosen:
    """ASK without an answer: these items stand."""

    items: list[bytes]
    values: list[bytes]


@dataclass(slots=True)
class CopyItems:
    """ASK of a member with a new disk: all items from `after` on (b"" at first)."""

    copy: int
    after: bytes


@dataclass(slots=True)
class ItemsCopied:
    """ANSWER: one page of acceptor states. `is_fresh`: the answering member has a new disk itself.

    Per item: promised ballot, accepted ballot and value (round 0: none), chosen.
    """

    copy: int
    is_fresh: bool
    items: list[bytes]
    promised: list[Ballot]
    accepted: list[tuple[Ballot, bytes] | None]
    chosen: list[bool]
    is_last: bool


@dataclass(slots=True)
class DefinitionsWanted:
    """ASK, in a DC or across: the definition slots of `dc` from `first` on."""

    dc: str
    first: int


@dataclass(slots=True)
class Definitions:
    """ANSWER: chosen values of slots `first`, `first`+1, … of `dc`."""

    dc: str
    first: int
    values: list[bytes]


# --- closing the streams of what ran before -------------------------------------------------------------------------


@dataclass(slots=True)
class CloseAsk:
    """ASK: promise to take no more of `origins` (packed; all of one node) in `partitions`, and say what you have of them.

    `current`: the node's present origin, which stays open (b"" when the closer is not the node itself).
    `log_sequence` and `runs`: what the closer's own disk knows (its newest frame of the last run, and all its runs),
    for whoever has seen more of it.
    """

    close: int
    node: str
    current: bytes
    origins: list[bytes]
    partitions: list[int]
    runs: list[int]
    log_sequence: int


@dataclass(slots=True)
class StreamHeld:
    """What a replica holds of one stream: all numbers up to `frontier`, and `beyond` it; `log_from`: the first that its log
    still holds (numbers below it are covered, but in no log here). `is_unclaimed`: it took its claim back, so the numbers
    below `log_from` are not here."""

    namespace: int
    partition: int
    origin: bytes
    frontier: int
    beyond: list[int]
    log_from: int
    is_unclaimed: bool = False


@dataclass(slots=True)
class CloseAnswer:
    """ANSWER, after the promise is synced.

    `origins`: what was asked plus what else this replica knows as open of that node, for all of which it has promised.
    `closings`: (origin, partition, value) that it already knows (empty value: closed and forgotten). `seen_more`: why the
    closer's disk holds less than this peer has seen of it, in words (empty: it does not).
    """

    close: int
    origins: list[bytes]
    partitions: list[int]
    held: list[StreamHeld]
    closings: list[tuple[bytes, int, bytes]]
    seen_more: str


@dataclass(slots=True)
class RecordsWanted:
    """ASK of a closer: these numbers of a stream, from your log."""

    close: int
    namespace: int
    partition: int
    origin: bytes
    numbers: list[int]


@dataclass(slots=True)
class CloseFill:
    """ASK (closer to owner: take these in, though you promised) and ANSWER to RecordsWanted (owner to closer)."""

    close: int
    records: bytes


@dataclass(slots=True)
class CloseFilled:
    """ANSWER to CloseFill, once synced."""

    close: int
    held: list[StreamHeld]


@dataclass(slots=True)
class CellsFetch:
    """ASK (closer to owner): numbers that you lack are covered by `holder` and in no log; take its cells instead."""

    close: int
    namespace: int
    partition: int
    origin: bytes
    holder: str


@dataclass(slots=True)
class CellsWanted:
    """ASK (owner to owner): your cells of this partition, in key order, those after a key.

    `collections`: the sender's count of collections when it began to fetch; the cells come with it as their number.
    """

    close: int
    namespace: int
    partition: int
    origin: bytes
    after: bytes = b""
    collections: int = 0


@dataclass(slots=True)
class CellsPage:
    """ANSWER to CellsWanted. `frontier`: what the sender covers of the stream, with all that these cells hold."""

    close: int
    namespace: int
    partition: int
    origin: bytes
    after: bytes
    frontier: int
    records: bytes
    is_last: bool


@dataclass(slots=True)
class CloseTell:
    """ASK: these closings were agreed: (origin, partition, value) each."""

    close: int
    closings: list[tuple[bytes, int, bytes]]


@dataclass(slots=True)
class CloseTold:
    """ANSWER, once synced. `covered`: the (origin, partition) whose streams this replica covers to their last number."""

    close: int
    covered: list[tuple[bytes, int]]


@dataclass(slots=True)
class CloseForget:
    """ASK without an answer: every replica covers these; only remember that they are closed."""

    closings: list[tuple[bytes, int]]


# --- rights of bounded counters -------------------------------------------------------------------------------------


@dataclass(slots=True)
class RightsAsk:
    """ASK: give `origin`, the sender's run, rights of a bounded counter, `amount` of them if you can.

    `here`: what the sender may spend now; `demand`: how much was wanted there of late, so that the giver can share fairly.
    """

    ask: int
    namespace: int
    key: bytes
    origin: bytes
    amount: int
    here: int
    demand: int


@dataclass(slots=True)
class RightsGiven:
    """ANSWER: what `origin`, the sender's run, has given so far to runs of the receiver's node, in total.

    `receivers[i]` was given `totals[i]`: only what a quorum of the sender's datacenter has synced. `left`: what the sender may
    spend now.
    """

    ask: int
    namespace: int
    key: bytes
    origin: bytes
    receivers: list[bytes]
    totals: list[int]
    left: int


# --- stability ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class StabilityAsk:
    """ASK, in a DC or across: what have you synced in these partitions of a namespace, and what may you still number?"""

    round: int
    namespace: int
    partitions: list[int]


@dataclass(slots=True)
class StabilityAnswer:
    """ANSWER: one moment of the sender. `origin`: its present run. `partitions`: those that it owns and speaks of.

    `unclaimed`: of these, those whose claim was taken back; `closing`: those in which one of its earlier runs is not closed.
    `clock_ms`: it will stamp nothing at or below it. `frontiers`: of all streams that it knows as open, 0 where it has none of
    one; `heads`: the highest numbers of its present run, synced or not.
    """

    round: int
    namespace: int
    origin: bytes
    partitions: list[int]
    unclaimed: list[int]
    closing: list[int]
    clock_ms: int
    frontiers: list[StreamHeads]
    heads: list[StreamHeads]


# --- operations that are tried again --------------------------------------------------------------------------------


@dataclass(slots=True)
class OperationsAsk:
    """ASK: what became of these operations (`ids`: 16 bytes each) of one namespace, the first try of which is `age_ms` ago?

    What the receiver has not numbered it never will from now on. `nodes`: whose records it shall look for in its log, too.
    """

    ask: int
    namespace: int
    partitions: list[int]
    ids: bytes
    age_ms: int
    nodes: list[str]


@dataclass(slots=True)
class OperationsTold:
    """ANSWER, once that is synced: one state per operation (`protocol.operation_ids`).

    `records`: those that were found, in order. `versions`: of those that every replica here has. `reason`: why the receiver
    cannot tell of some.
    """

    ask: int
    states: bytes
    records: bytes
    versions: list[int]
    reason: str = ""


ASKS: Final = (
    RightsAsk,
    Replicate,
    ReadCells,
    Forward,
    Statement,
    TakenBack,
    FeedOpen,
    FeedAck,
    FeedClose,
    Prepare,
    Accept,
    Chosen,
    CopyItems,
    DefinitionsWanted,
    CloseAsk,
    RecordsWanted,
    CellsFetch,
    CellsWanted,
    CloseTell,
    CloseForget,
    StabilityAsk,
    OperationsAsk,
)
ANSWERS: Final = (
    RightsGiven,
    Replicated,
    CellsRead,
    Forwarded,
    FeedBatch,
    FeedRefused,
    FeedHoles,
    Promised,
    Accepted,
    ItemsCopied,
    Definitions,
    CloseAnswer,
    CloseFilled,
    CellsPage,
    CloseTold,
    StabilityAnswer,
    OperationsTold,
)
EITHER: Final = (CloseFill,)
