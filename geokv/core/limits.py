"""Every limit by name, with its unit. Pairs are `_warn` and `_max`; the relations between them are asserted below."""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

# One pair of key and value.
KEY_BYTES_MAX: Final = 1 * KIB
LMDB_KEY_BYTES_MAX: Final = 511  # in a namespace with the engine "lmdb": how LMDB is built everywhere
VALUE_BYTES_MAX_DEFAULT: Final = 10 * KIB
VALUE_BYTES_MAX_MAX: Final = 1 * MIB  # what a namespace may raise it to

# One client batch: the SDK cuts itself there, the server refuses beyond.
BATCH_ITEMS_MAX: Final = 1024
BATCH_BYTES_MAX: Final = 1 * MIB

# Messages and frames.
MESSAGE_BYTES_MAX: Final = 8 * MIB  # any gRPC message
READ_ANSWER_BYTES_MAX: Final = 4 * MIB  # values in one answer; the rest is asked for again
FRAME_BYTES_MAX: Final = 4 * MIB  # one group commit in the log
SEGMENT_BYTES: Final = 32 * MIB
WAN_BATCH_BYTES_MAX: Final = 256 * KIB  # raw records in one shipped batch, unless one record is larger
WAN_BATCH_RAW_BYTES_MAX: Final = 2 * MIB  # what a received batch may expand to
FEED_WINDOW_BYTES: Final = 4 * MIB  # sent and not yet synced by the receiver, per feed
FEED_PARTITION_BYTES: Final = FEED_WINDOW_BYTES // 8  # of which one partition may hold this much
LOG_READ_BYTES_MAX: Final = 1 * MIB  # what one read of the log for a feed brings

# Queues of a node.
CALLS_MAX: Final = 4096  # client calls in progress
CALL_BYTES_MAX: Final = 128 * MIB  # requests of the client calls in progress
WAITING_BYTES_MAX: Final = 16 * MIB  # appended and not yet handed to the disk
PENDING_PARTS_MAX: Final = 16384  # batches that wait for their replicas
PENDING_BYTES_MAX: Final = 64 * MIB  # of these batches; the oldest that no caller waits for are let go first
PEER_QUEUE_BYTES_MAX: Final = 32 * MIB  # messages to one peer that its stream has not taken
PEER_WRITE_BYTES_MAX: Final = 1 * MIB  # queued messages that go out as one, unless one alone is larger
METADATA_BYTES_MAX: Final = 8 * KIB  # of one call
STREAMS_PER_CONNECTION_MAX: Final = 4096  # calls in progress on one connection
LOG_BYTES_WARN: Final = 2 * 1024 * MIB
LOG_BYTES_MAX: Final = 4 * 1024 * MIB  # past it writes are refused, with the reason
NAMESPACES_MAX: Final = 256  # 1024 at 256 partitions x 6 nodes: 120 MB of frontiers, packed on the loop in 0.7 s at each flush

# Storage of a node.
MEMTABLE_BYTES: Final = 64 * MIB  # records logged between two flushes
UNFLUSHED_BYTES_WARN: Final = 192 * MIB  # records in memtables only: clients' writes are told to wait
UNFLUSHED_BYTES_MAX: Final = 384 * MIB  # and then records of other nodes are not taken either
STOP_FLUSH_BYTES_MAX: Final = 16 * MIB  # a node that stops flushes so much, a second's work, and leaves more to its log
DEBT_BYTES_MAX: Final = 2 * 1024 * MIB  # compaction behind by so much: clients' writes are told to wait
STORAGE_RETRY_MS: Final = 250
SNAPSHOTS_MAX: Final = 4  # each keeps the space of tables that the node has let go
SNAPSHOT_AGE_MS_MAX: Final = 24 * 3_600_000
SNAPSHOT_READ_BYTES_MAX: Final = 1 * MIB  # of one file of a snapshot in one answer
PAUSE_MS_MAX: Final = 3_600_000  # of the storage worker
CACHE_BYTES_DEFAULT: Final = 64 * MIB  # of a namespace with the engine "memory", on each node
CACHE_BYTES_MIN: Final = 1 * MIB
CACHE_BYTES_MAX: Final = 1024 * 1024 * MIB

# Time.
DRIFT_MS_WARN: Final = 5_000
DRIFT_MS_MAX: Final = 60_000
HLC_BOUND_AHEAD_MS: Final = 3_000
TIMEOUT_MS_MAX: Final = 300_000

assert KEY_BYTES_MAX + VALUE_BYTES_MAX_MAX + 4 * KIB < WAN_BATCH_RAW_BYTES_MAX
assert BATCH_BYTES_MAX * 2 + BATCH_ITEMS_MAX * 512 < FRAME_BYTES_MAX < SEGMENT_BYTES // 4
assert WAN_BATCH_BYTES_MAX <= FEED_PARTITION_BYTES < FEED_WINDOW_BYTES < PEER_QUEUE_BYTES_MAX
assert WAN_BATCH_RAW_BYTES_MAX < MESSAGE_BYTES_MAX and FRAME_BYTES_MAX < MESSAGE_BYTES_MAX
assert VALUE_BYTES_MAX_MAX < READ_ANSWER_BYTES_MAX and READ_ANSWER_BYTES_MAX + BATCH_ITEMS_MAX * KIB < MESSAGE_BYTES_MAX
assert SNAPSHOT_READ_BYTES_MAX + KIB < MESSAGE_BYTES_MAX
assert PEER_WRITE_BYTES_MAX < MESSAGE_BYTES_MAX < PEER_QUEUE_BYTES_MAX and MESSAGE_BYTES_MAX < CALL_BYTES_MAX
assert FRAME_BYTES_MAX < MEMTABLE_BYTES < UNFLUSHED_BYTES_WARN < UNFLUSHED_BYTES_MAX < LOG_BYTES_WARN
assert VALUE_BYTES_MAX_DEFAULT + KEY_BYTES_MAX + 4 * KIB < CACHE_BYTES_MIN <= CACHE_BYTES_DEFAULT <= CACHE_BYTES_MAX
assert DRIFT_MS_WARN < DRIFT_MS_MAX and LOG_BYTES_WARN < LOG_BYTES_MAX

# Cells of the conflict layer; checked where an update is made, never where cells merge.
CELL_ITEMS_MAX: Final = 65_536  # elements, fields, registers of one key
CELL_BYTES_MAX: Final = 2 * MIB  # payloads of one key
ELEMENT_BYTES_MAX: Final = 1 * KIB  # an element of a set, a member of a sorted set, the name of a field
SIBLINGS_WARN: Final = 8
SIBLINGS_MAX: Final = 64
MAP_DEPTH_MAX: Final = 8
APPENDED_BYTES_MIN: Final = 1 * KIB  # a stored cell is folded when more than this, and more than itself, is appended

assert SIBLINGS_WARN < SIBLINGS_MAX <= CELL_ITEMS_MAX
assert CELL_BYTES_MAX + CELL_ITEMS_MAX * 16 < MESSAGE_BYTES_MAX and APPENDED_BYTES_MIN < CELL_BYTES_MAX
assert ELEMENT_BYTES_MAX * (MAP_DEPTH_MAX + 1) + VALUE_BYTES_MAX_MAX < CELL_BYTES_MAX

# Retries of operations: what an owner remembers of what it has numbered, and of what it shall refuse.
RETRY_WINDOW_MS: Final = 300_000  # a first try that is longer ago is not retried: AMBIGUOUS
OPERATIONS_REMEMBERED_MAX: Final = 3_000_000  # of this run, 32 bytes each: the window is shorter where more is written
OPERATIONS_HELD_MAX: Final = 131_072  # that only one retry, or nobody, may number here
RETRIES_MAX: Final = 1024  # batches of retries in progress
RETRY_SCAN_BYTES_MAX: Final = 16 * MIB  # of the log, looked through for one question
FOUND_BYTES_MAX: Final = 2 * MIB  # records in one answer, unless one alone is larger

assert TIMEOUT_MS_MAX <= RETRY_WINDOW_MS and FOUND_BYTES_MAX < MESSAGE_BYTES_MAX // 2
assert BATCH_ITEMS_MAX <= OPERATIONS_HELD_MAX

# The conflict journal of a node.
CONFLICTS_PER_NAMESPACE_MAX: Final = 1_000
CONFLICTS_MAX: Final = 10_000  # of all namespaces
CONFLICTS_PER_WRITE_MAX: Final = 8  # how many of those that one write met are noted
LOSER_BYTES_MAX: Final = 1 * KIB  # of each of the two values
REMOVALS_MAX: Final = 4_096  # of what a node took away, that it remembers for the journal
REMOVALS_PER_KEY_MAX: Final = 32
RESTORED_MAX: Final = 8  # how many times that a loser was brought back are told, the newest

assert CONFLICTS_PER_NAMESPACE_MAX <= CONFLICTS_MAX
