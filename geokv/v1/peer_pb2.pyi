from geokv.v1 import geo_pb2 as _geo_pb2
from geokv.v1 import kv_pb2 as _kv_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PeerFrame(_message.Message):
    __slots__ = ("hello", "messages")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    messages: _containers.RepeatedCompositeFieldContainer[PeerMessage]
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., messages: _Optional[_Iterable[_Union[PeerMessage, _Mapping]]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("cluster", "dc", "node", "incarnation", "format")
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    DC_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    cluster: str
    dc: str
    node: str
    incarnation: int
    format: int
    def __init__(self, cluster: _Optional[str] = ..., dc: _Optional[str] = ..., node: _Optional[str] = ..., incarnation: _Optional[int] = ..., format: _Optional[int] = ...) -> None: ...

class PeerMessage(_message.Message):
    __slots__ = ("replicate", "replicated", "read_cells", "cells_read", "forward", "forwarded", "statement", "feed_open", "feed_batch", "feed_ack", "feed_close", "feed_refused", "prepare", "promised", "accept", "accepted", "chosen", "copy_items", "items_copied", "definitions_wanted", "definitions", "close_ask", "close_answer", "records_wanted", "close_fill", "close_filled", "close_tell", "close_told", "close_forget", "cells_fetch", "cells_wanted", "cells_page", "feed_holes", "stability_ask", "stability_answer", "operations_ask", "operations_told", "rights_ask", "rights_given", "taken_back")
    REPLICATE_FIELD_NUMBER: _ClassVar[int]
    REPLICATED_FIELD_NUMBER: _ClassVar[int]
    READ_CELLS_FIELD_NUMBER: _ClassVar[int]
    CELLS_READ_FIELD_NUMBER: _ClassVar[int]
    FORWARD_FIELD_NUMBER: _ClassVar[int]
    FORWARDED_FIELD_NUMBER: _ClassVar[int]
    STATEMENT_FIELD_NUMBER: _ClassVar[int]
    FEED_OPEN_FIELD_NUMBER: _ClassVar[int]
    FEED_BATCH_FIELD_NUMBER: _ClassVar[int]
    FEED_ACK_FIELD_NUMBER: _ClassVar[int]
    FEED_CLOSE_FIELD_NUMBER: _ClassVar[int]
    FEED_REFUSED_FIELD_NUMBER: _ClassVar[int]
    PREPARE_FIELD_NUMBER: _ClassVar[int]
    PROMISED_FIELD_NUMBER: _ClassVar[int]
    ACCEPT_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    CHOSEN_FIELD_NUMBER: _ClassVar[int]
    COPY_ITEMS_FIELD_NUMBER: _ClassVar[int]
    ITEMS_COPIED_FIELD_NUMBER: _ClassVar[int]
    DEFINITIONS_WANTED_FIELD_NUMBER: _ClassVar[int]
    DEFINITIONS_FIELD_NUMBER: _ClassVar[int]
    CLOSE_ASK_FIELD_NUMBER: _ClassVar[int]
    CLOSE_ANSWER_FIELD_NUMBER: _ClassVar[int]
    RECORDS_WANTED_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FILL_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FILLED_FIELD_NUMBER: _ClassVar[int]
    CLOSE_TELL_FIELD_NUMBER: _ClassVar[int]
    CLOSE_TOLD_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FORGET_FIELD_NUMBER: _ClassVar[int]
    CELLS_FETCH_FIELD_NUMBER: _ClassVar[int]
    CELLS_WANTED_FIELD_NUMBER: _ClassVar[int]
    CELLS_PAGE_FIELD_NUMBER: _ClassVar[int]
    FEED_HOLES_FIELD_NUMBER: _ClassVar[int]
    STABILITY_ASK_FIELD_NUMBER: _ClassVar[int]
    STABILITY_ANSWER_FIELD_NUMBER: _ClassVar[int]
    OPERATIONS_ASK_FIELD_NUMBER: _ClassVar[int]
    OPERATIONS_TOLD_FIELD_NUMBER: _ClassVar[int]
    RIGHTS_ASK_FIELD_NUMBER: _ClassVar[int]
    RIGHTS_GIVEN_FIELD_NUMBER: _ClassVar[int]
    TAKEN_BACK_FIELD_NUMBER: _ClassVar[int]
    replicate: Replicate
    replicated: Replicated
    read_cells: ReadCells
    cells_read: CellsRead
    forward: Forward
    forwarded: Forwarded
    statement: Statement
    feed_open: _geo_pb2.FeedOpen
    feed_batch: _geo_pb2.FeedBatch
    feed_ack: _geo_pb2.FeedAck
    feed_close: _geo_pb2.FeedClose
    feed_refused: _geo_pb2.FeedRefused
    prepare: Prepare
    promised: Promised
    accept: Accept
    accepted: Accepted
    chosen: Chosen
    copy_items: CopyItems
    items_copied: ItemsCopied
    definitions_wanted: _geo_pb2.DefinitionsWanted
    definitions: _geo_pb2.Definitions
    close_ask: CloseAsk
    close_answer: CloseAnswer
    records_wanted: RecordsWanted
    close_fill: CloseFill
    close_filled: CloseFilled
    close_tell: CloseTell
    close_told: CloseTold
    close_forget: CloseForget
    cells_fetch: CellsFetch
    cells_wanted: CellsWanted
    cells_page: CellsPage
    feed_holes: _geo_pb2.FeedHoles
    stability_ask: StabilityAsk
    stability_answer: StabilityAnswer
    operations_ask: OperationsAsk
    operations_told: OperationsTold
    rights_ask: RightsAsk
    rights_given: RightsGiven
    taken_back: TakenBack
    def __init__(self, replicate: _Optional[_Union[Replicate, _Mapping]] = ..., replicated: _Optional[_Union[Replicated, _Mapping]] = ..., read_cells: _Optional[_Union[ReadCells, _Mapping]] = ..., cells_read: _Optional[_Union[CellsRead, _Mapping]] = ..., forward: _Optional[_Union[Forward, _Mapping]] = ..., forwarded: _Optional[_Union[Forwarded, _Mapping]] = ..., statement: _Optional[_Union[Statement, _Mapping]] = ..., feed_open: _Optional[_Union[_geo_pb2.FeedOpen, _Mapping]] = ..., feed_batch: _Optional[_Union[_geo_pb2.FeedBatch, _Mapping]] = ..., feed_ack: _Optional[_Union[_geo_pb2.FeedAck, _Mapping]] = ..., feed_close: _Optional[_Union[_geo_pb2.FeedClose, _Mapping]] = ..., feed_refused: _Optional[_Union[_geo_pb2.FeedRefused, _Mapping]] = ..., prepare: _Optional[_Union[Prepare, _Mapping]] = ..., promised: _Optional[_Union[Promised, _Mapping]] = ..., accept: _Optional[_Union[Accept, _Mapping]] = ..., accepted: _Optional[_Union[Accepted, _Mapping]] = ..., chosen: _Optional[_Union[Chosen, _Mapping]] = ..., copy_items: _Optional[_Union[CopyItems, _Mapping]] = ..., items_copied: _Optional[_Union[ItemsCopied, _Mapping]] = ..., definitions_wanted: _Optional[_Union[_geo_pb2.DefinitionsWanted, _Mapping]] = ..., definitions: _Optional[_Union[_geo_pb2.Definitions, _Mapping]] = ..., close_ask: _Optional[_Union[CloseAsk, _Mapping]] = ..., close_answer: _Optional[_Union[CloseAnswer, _Mapping]] = ..., records_wanted: _Optional[_Union[RecordsWanted, _Mapping]] = ..., close_fill: _Optional[_Union[CloseFill, _Mapping]] = ..., close_filled: _Optional[_Union[CloseFilled, _Mapping]] = ..., close_tell: _Optional[_Union[CloseTell, _Mapping]] = ..., close_told: _Optional[_Union[CloseTold, _Mapping]] = ..., close_forget: _Optional[_Union[CloseForget, _Mapping]] = ..., cells_fetch: _Optional[_Union[CellsFetch, _Mapping]] = ..., cells_wanted: _Optional[_Union[CellsWanted, _Mapping]] = ..., cells_page: _Optional[_Union[CellsPage, _Mapping]] = ..., feed_holes: _Optional[_Union[_geo_pb2.FeedHoles, _Mapping]] = ..., stability_ask: _Optional[_Union[StabilityAsk, _Mapping]] = ..., stability_answer: _Optional[_Union[StabilityAnswer, _Mapping]] = ..., operations_ask: _Optional[_Union[OperationsAsk, _Mapping]] = ..., operations_told: _Optional[_Union[OperationsTold, _Mapping]] = ..., rights_ask: _Optional[_Union[RightsAsk, _Mapping]] = ..., rights_given: _Optional[_Union[RightsGiven, _Mapping]] = ..., taken_back: _Optional[_Union[TakenBack, _Mapping]] = ...) -> None: ...

class Replicate(_message.Message):
    __slots__ = ("batch", "records")
    BATCH_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    batch: int
    records: bytes
    def __init__(self, batch: _Optional[int] = ..., records: _Optional[bytes] = ...) -> None: ...

class Replicated(_message.Message):
    __slots__ = ("batch", "has_gap", "newer_indexes", "newer_versions", "refused", "unknown")
    BATCH_FIELD_NUMBER: _ClassVar[int]
    HAS_GAP_FIELD_NUMBER: _ClassVar[int]
    NEWER_INDEXES_FIELD_NUMBER: _ClassVar[int]
    NEWER_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    batch: int
    has_gap: bool
    newer_indexes: _containers.RepeatedScalarFieldContainer[int]
    newer_versions: _containers.RepeatedScalarFieldContainer[int]
    refused: _containers.RepeatedScalarFieldContainer[bytes]
    unknown: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, batch: _Optional[int] = ..., has_gap: bool = ..., newer_indexes: _Optional[_Iterable[int]] = ..., newer_versions: _Optional[_Iterable[int]] = ..., refused: _Optional[_Iterable[bytes]] = ..., unknown: _Optional[_Iterable[int]] = ...) -> None: ...

class ReadCells(_message.Message):
    __slots__ = ("query", "namespace", "keys", "digests")
    QUERY_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    query: int
    namespace: int
    keys: _containers.RepeatedScalarFieldContainer[bytes]
    digests: bool
    def __init__(self, query: _Optional[int] = ..., namespace: _Optional[int] = ..., keys: _Optional[_Iterable[bytes]] = ..., digests: bool = ...) -> None: ...

class CellsRead(_message.Message):
    __slots__ = ("query", "cells", "digests", "error", "collections")
    QUERY_FIELD_NUMBER: _ClassVar[int]
    CELLS_FIELD_NUMBER: _ClassVar[int]
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    COLLECTIONS_FIELD_NUMBER: _ClassVar[int]
    query: int
    cells: _containers.RepeatedScalarFieldContainer[bytes]
    digests: bytes
    error: str
    collections: int
    def __init__(self, query: _Optional[int] = ..., cells: _Optional[_Iterable[bytes]] = ..., digests: _Optional[bytes] = ..., error: _Optional[str] = ..., collections: _Optional[int] = ...) -> None: ...

class Forward(_message.Message):
    __slots__ = ("call", "write", "read")
    CALL_FIELD_NUMBER: _ClassVar[int]
    WRITE_FIELD_NUMBER: _ClassVar[int]
    READ_FIELD_NUMBER: _ClassVar[int]
    call: int
    write: _kv_pb2.WriteRequest
    read: _kv_pb2.ReadRequest
    def __init__(self, call: _Optional[int] = ..., write: _Optional[_Union[_kv_pb2.WriteRequest, _Mapping]] = ..., read: _Optional[_Union[_kv_pb2.ReadRequest, _Mapping]] = ...) -> None: ...

class Forwarded(_message.Message):
    __slots__ = ("call", "write", "read")
    CALL_FIELD_NUMBER: _ClassVar[int]
    WRITE_FIELD_NUMBER: _ClassVar[int]
    READ_FIELD_NUMBER: _ClassVar[int]
    call: int
    write: _kv_pb2.WriteReply
    read: _kv_pb2.ReadReply
    def __init__(self, call: _Optional[int] = ..., write: _Optional[_Union[_kv_pb2.WriteReply, _Mapping]] = ..., read: _Optional[_Union[_kv_pb2.ReadReply, _Mapping]] = ...) -> None: ...

class Statement(_message.Message):
    __slots__ = ("sent_us", "echo_us", "wall_ms", "hlc", "log_sequence", "is_full", "frontiers", "shipped", "definition_dcs", "definition_counts", "collected_namespaces", "collection_counts")
    SENT_US_FIELD_NUMBER: _ClassVar[int]
    ECHO_US_FIELD_NUMBER: _ClassVar[int]
    WALL_MS_FIELD_NUMBER: _ClassVar[int]
    HLC_FIELD_NUMBER: _ClassVar[int]
    LOG_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    IS_FULL_FIELD_NUMBER: _ClassVar[int]
    FRONTIERS_FIELD_NUMBER: _ClassVar[int]
    SHIPPED_FIELD_NUMBER: _ClassVar[int]
    DEFINITION_DCS_FIELD_NUMBER: _ClassVar[int]
    DEFINITION_COUNTS_FIELD_NUMBER: _ClassVar[int]
    COLLECTED_NAMESPACES_FIELD_NUMBER: _ClassVar[int]
    COLLECTION_COUNTS_FIELD_NUMBER: _ClassVar[int]
    sent_us: int
    echo_us: int
    wall_ms: int
    hlc: int
    log_sequence: int
    is_full: bool
    frontiers: _containers.RepeatedCompositeFieldContainer[_geo_pb2.StreamHeads]
    shipped: _containers.RepeatedCompositeFieldContainer[_geo_pb2.StreamHeads]
    definition_dcs: _containers.RepeatedScalarFieldContainer[str]
    definition_counts: _containers.RepeatedScalarFieldContainer[int]
    collected_namespaces: _containers.RepeatedScalarFieldContainer[int]
    collection_counts: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, sent_us: _Optional[int] = ..., echo_us: _Optional[int] = ..., wall_ms: _Optional[int] = ..., hlc: _Optional[int] = ..., log_sequence: _Optional[int] = ..., is_full: bool = ..., frontiers: _Optional[_Iterable[_Union[_geo_pb2.StreamHeads, _Mapping]]] = ..., shipped: _Optional[_Iterable[_Union[_geo_pb2.StreamHeads, _Mapping]]] = ..., definition_dcs: _Optional[_Iterable[str]] = ..., definition_counts: _Optional[_Iterable[int]] = ..., collected_namespaces: _Optional[_Iterable[int]] = ..., collection_counts: _Optional[_Iterable[int]] = ...) -> None: ...

class Ballot(_message.Message):
    __slots__ = ("round", "node")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    round: int
    node: str
    def __init__(self, round: _Optional[int] = ..., node: _Optional[str] = ...) -> None: ...

class AcceptedValue(_message.Message):
    __slots__ = ("ballot", "value")
    BALLOT_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    ballot: Ballot
    value: bytes
    def __init__(self, ballot: _Optional[_Union[Ballot, _Mapping]] = ..., value: _Optional[bytes] = ...) -> None: ...

class Prepare(_message.Message):
    __slots__ = ("ballot", "items")
    BALLOT_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    ballot: Ballot
    items: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, ballot: _Optional[_Union[Ballot, _Mapping]] = ..., items: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Promised(_message.Message):
    __slots__ = ("ballot", "items", "accepted", "chosen", "refused", "higher")
    BALLOT_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    CHOSEN_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    HIGHER_FIELD_NUMBER: _ClassVar[int]
    ballot: Ballot
    items: _containers.RepeatedScalarFieldContainer[bytes]
    accepted: _containers.RepeatedCompositeFieldContainer[AcceptedValue]
    chosen: bytes
    refused: bool
    higher: Ballot
    def __init__(self, ballot: _Optional[_Union[Ballot, _Mapping]] = ..., items: _Optional[_Iterable[bytes]] = ..., accepted: _Optional[_Iterable[_Union[AcceptedValue, _Mapping]]] = ..., chosen: _Optional[bytes] = ..., refused: bool = ..., higher: _Optional[_Union[Ballot, _Mapping]] = ...) -> None: ...

class Accept(_message.Message):
    __slots__ = ("ballot", "items", "values")
    BALLOT_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    ballot: Ballot
    items: _containers.RepeatedScalarFieldContainer[bytes]
    values: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, ballot: _Optional[_Union[Ballot, _Mapping]] = ..., items: _Optional[_Iterable[bytes]] = ..., values: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Accepted(_message.Message):
    __slots__ = ("ballot", "items", "refused", "higher")
    BALLOT_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    HIGHER_FIELD_NUMBER: _ClassVar[int]
    ballot: Ballot
    items: _containers.RepeatedScalarFieldContainer[bytes]
    refused: bool
    higher: Ballot
    def __init__(self, ballot: _Optional[_Union[Ballot, _Mapping]] = ..., items: _Optional[_Iterable[bytes]] = ..., refused: bool = ..., higher: _Optional[_Union[Ballot, _Mapping]] = ...) -> None: ...

class Chosen(_message.Message):
    __slots__ = ("items", "values")
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedScalarFieldContainer[bytes]
    values: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, items: _Optional[_Iterable[bytes]] = ..., values: _Optional[_Iterable[bytes]] = ...) -> None: ...

class CopyItems(_message.Message):
    __slots__ = ("copy", "after")
    COPY_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    copy: int
    after: bytes
    def __init__(self, copy: _Optional[int] = ..., after: _Optional[bytes] = ...) -> None: ...

class ItemsCopied(_message.Message):
    __slots__ = ("copy", "is_fresh", "items", "promised", "accepted", "chosen", "is_last")
    COPY_FIELD_NUMBER: _ClassVar[int]
    IS_FRESH_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    PROMISED_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    CHOSEN_FIELD_NUMBER: _ClassVar[int]
    IS_LAST_FIELD_NUMBER: _ClassVar[int]
    copy: int
    is_fresh: bool
    items: _containers.RepeatedScalarFieldContainer[bytes]
    promised: _containers.RepeatedCompositeFieldContainer[Ballot]
    accepted: _containers.RepeatedCompositeFieldContainer[AcceptedValue]
    chosen: bytes
    is_last: bool
    def __init__(self, copy: _Optional[int] = ..., is_fresh: bool = ..., items: _Optional[_Iterable[bytes]] = ..., promised: _Optional[_Iterable[_Union[Ballot, _Mapping]]] = ..., accepted: _Optional[_Iterable[_Union[AcceptedValue, _Mapping]]] = ..., chosen: _Optional[bytes] = ..., is_last: bool = ...) -> None: ...

class CloseAsk(_message.Message):
    __slots__ = ("close", "node", "current", "origins", "partitions", "runs", "log_sequence")
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    CURRENT_FIELD_NUMBER: _ClassVar[int]
    ORIGINS_FIELD_NUMBER: _ClassVar[int]
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    LOG_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    close: int
    node: str
    current: bytes
    origins: _containers.RepeatedScalarFieldContainer[bytes]
    partitions: _containers.RepeatedScalarFieldContainer[int]
    runs: _containers.RepeatedScalarFieldContainer[int]
    log_sequence: int
    def __init__(self, close: _Optional[int] = ..., node: _Optional[str] = ..., current: _Optional[bytes] = ..., origins: _Optional[_Iterable[bytes]] = ..., partitions: _Optional[_Iterable[int]] = ..., runs: _Optional[_Iterable[int]] = ..., log_sequence: _Optional[int] = ...) -> None: ...

class StreamHeld(_message.Message):
    __slots__ = ("namespace", "partition", "origin", "frontier", "beyond", "log_from", "is_unclaimed")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    FRONTIER_FIELD_NUMBER: _ClassVar[int]
    BEYOND_FIELD_NUMBER: _ClassVar[int]
    LOG_FROM_FIELD_NUMBER: _ClassVar[int]
    IS_UNCLAIMED_FIELD_NUMBER: _ClassVar[int]
    namespace: int
    partition: int
    origin: bytes
    frontier: int
    beyond: _containers.RepeatedScalarFieldContainer[int]
    log_from: int
    is_unclaimed: bool
    def __init__(self, namespace: _Optional[int] = ..., partition: _Optional[int] = ..., origin: _Optional[bytes] = ..., frontier: _Optional[int] = ..., beyond: _Optional[_Iterable[int]] = ..., log_from: _Optional[int] = ..., is_unclaimed: bool = ...) -> None: ...

class TakenBack(_message.Message):
    __slots__ = ("changes", "namespaces", "logged")
    class Namespace(_message.Message):
        __slots__ = ("namespace", "partitions")
        NAMESPACE_FIELD_NUMBER: _ClassVar[int]
        PARTITIONS_FIELD_NUMBER: _ClassVar[int]
        namespace: int
        partitions: _containers.RepeatedScalarFieldContainer[int]
        def __init__(self, namespace: _Optional[int] = ..., partitions: _Optional[_Iterable[int]] = ...) -> None: ...
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    NAMESPACES_FIELD_NUMBER: _ClassVar[int]
    LOGGED_FIELD_NUMBER: _ClassVar[int]
    changes: int
    namespaces: _containers.RepeatedCompositeFieldContainer[TakenBack.Namespace]
    logged: _containers.RepeatedCompositeFieldContainer[_geo_pb2.StreamHeads]
    def __init__(self, changes: _Optional[int] = ..., namespaces: _Optional[_Iterable[_Union[TakenBack.Namespace, _Mapping]]] = ..., logged: _Optional[_Iterable[_Union[_geo_pb2.StreamHeads, _Mapping]]] = ...) -> None: ...

class Closing(_message.Message):
    __slots__ = ("origin", "partition", "value")
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    origin: bytes
    partition: int
    value: bytes
    def __init__(self, origin: _Optional[bytes] = ..., partition: _Optional[int] = ..., value: _Optional[bytes] = ...) -> None: ...

class CloseAnswer(_message.Message):
    __slots__ = ("close", "origins", "partitions", "held", "closings", "seen_more")
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    ORIGINS_FIELD_NUMBER: _ClassVar[int]
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    CLOSINGS_FIELD_NUMBER: _ClassVar[int]
    SEEN_MORE_FIELD_NUMBER: _ClassVar[int]
    close: int
    origins: _containers.RepeatedScalarFieldContainer[bytes]
    partitions: _containers.RepeatedScalarFieldContainer[int]
    held: _containers.RepeatedCompositeFieldContainer[StreamHeld]
    closings: _containers.RepeatedCompositeFieldContainer[Closing]
    seen_more: str
    def __init__(self, close: _Optional[int] = ..., origins: _Optional[_Iterable[bytes]] = ..., partitions: _Optional[_Iterable[int]] = ..., held: _Optional[_Iterable[_Union[StreamHeld, _Mapping]]] = ..., closings: _Optional[_Iterable[_Union[Closing, _Mapping]]] = ..., seen_more: _Optional[str] = ...) -> None: ...

class RecordsWanted(_message.Message):
    __slots__ = ("close", "namespace", "partition", "origin", "numbers")
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    NUMBERS_FIELD_NUMBER: _ClassVar[int]
    close: int
    namespace: int
    partition: int
    origin: bytes
    numbers: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, close: _Optional[int] = ..., namespace: _Optional[int] = ..., partition: _Optional[int] = ..., origin: _Optional[bytes] = ..., numbers: _Optional[_Iterable[int]] = ...) -> None: ...

class CloseFill(_message.Message):
    __slots__ = ("close", "records")
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    close: int
    records: bytes
    def __init__(self, close: _Optional[int] = ..., records: _Optional[bytes] = ...) -> None: ...

class CloseFilled(_message.Message):
    __slots__ = ("close", "held")
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    close: int
    held: _containers.RepeatedCompositeFieldContainer[StreamHeld]
    def __init__(self, close: _Optional[int] = ..., held: _Optional[_Iterable[_Union[StreamHeld, _Mapping]]] = ...) -> None: ...

class CloseTell(_message.Message):
    __slots__ = ("close", "closings")
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    CLOSINGS_FIELD_NUMBER: _ClassVar[int]
    close: int
    closings: _containers.RepeatedCompositeFieldContainer[Closing]
    def __init__(self, close: _Optional[int] = ..., closings: _Optional[_Iterable[_Union[Closing, _Mapping]]] = ...) -> None: ...

class CloseTold(_message.Message):
    __slots__ = ("close", "covered_origins", "covered_partitions")
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    COVERED_ORIGINS_FIELD_NUMBER: _ClassVar[int]
    COVERED_PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    close: int
    covered_origins: _containers.RepeatedScalarFieldContainer[bytes]
    covered_partitions: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, close: _Optional[int] = ..., covered_origins: _Optional[_Iterable[bytes]] = ..., covered_partitions: _Optional[_Iterable[int]] = ...) -> None: ...

class CloseForget(_message.Message):
    __slots__ = ("origins", "partitions")
    ORIGINS_FIELD_NUMBER: _ClassVar[int]
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    origins: _containers.RepeatedScalarFieldContainer[bytes]
    partitions: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, origins: _Optional[_Iterable[bytes]] = ..., partitions: _Optional[_Iterable[int]] = ...) -> None: ...

class CellsFetch(_message.Message):
    __slots__ = ("close", "namespace", "partition", "origin", "holder")
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    close: int
    namespace: int
    partition: int
    origin: bytes
    holder: str
    def __init__(self, close: _Optional[int] = ..., namespace: _Optional[int] = ..., partition: _Optional[int] = ..., origin: _Optional[bytes] = ..., holder: _Optional[str] = ...) -> None: ...

class CellsWanted(_message.Message):
    __slots__ = ("close", "namespace", "partition", "origin", "after", "collections")
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    COLLECTIONS_FIELD_NUMBER: _ClassVar[int]
    close: int
    namespace: int
    partition: int
    origin: bytes
    after: bytes
    collections: int
    def __init__(self, close: _Optional[int] = ..., namespace: _Optional[int] = ..., partition: _Optional[int] = ..., origin: _Optional[bytes] = ..., after: _Optional[bytes] = ..., collections: _Optional[int] = ...) -> None: ...

class CellsPage(_message.Message):
    __slots__ = ("close", "namespace", "partition", "origin", "after", "frontier", "records", "is_last")
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    FRONTIER_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    IS_LAST_FIELD_NUMBER: _ClassVar[int]
    close: int
    namespace: int
    partition: int
    origin: bytes
    after: bytes
    frontier: int
    records: bytes
    is_last: bool
    def __init__(self, close: _Optional[int] = ..., namespace: _Optional[int] = ..., partition: _Optional[int] = ..., origin: _Optional[bytes] = ..., after: _Optional[bytes] = ..., frontier: _Optional[int] = ..., records: _Optional[bytes] = ..., is_last: bool = ...) -> None: ...

class RightsAsk(_message.Message):
    __slots__ = ("ask", "namespace", "key", "origin", "amount", "here", "demand")
    ASK_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    HERE_FIELD_NUMBER: _ClassVar[int]
    DEMAND_FIELD_NUMBER: _ClassVar[int]
    ask: int
    namespace: int
    key: bytes
    origin: bytes
    amount: bytes
    here: bytes
    demand: bytes
    def __init__(self, ask: _Optional[int] = ..., namespace: _Optional[int] = ..., key: _Optional[bytes] = ..., origin: _Optional[bytes] = ..., amount: _Optional[bytes] = ..., here: _Optional[bytes] = ..., demand: _Optional[bytes] = ...) -> None: ...

class RightsGiven(_message.Message):
    __slots__ = ("ask", "namespace", "key", "origin", "receivers", "totals", "left")
    ASK_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    RECEIVERS_FIELD_NUMBER: _ClassVar[int]
    TOTALS_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    ask: int
    namespace: int
    key: bytes
    origin: bytes
    receivers: _containers.RepeatedScalarFieldContainer[bytes]
    totals: _containers.RepeatedScalarFieldContainer[bytes]
    left: bytes
    def __init__(self, ask: _Optional[int] = ..., namespace: _Optional[int] = ..., key: _Optional[bytes] = ..., origin: _Optional[bytes] = ..., receivers: _Optional[_Iterable[bytes]] = ..., totals: _Optional[_Iterable[bytes]] = ..., left: _Optional[bytes] = ...) -> None: ...

class StabilityAsk(_message.Message):
    __slots__ = ("round", "namespace", "partitions")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    round: int
    namespace: int
    partitions: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, round: _Optional[int] = ..., namespace: _Optional[int] = ..., partitions: _Optional[_Iterable[int]] = ...) -> None: ...

class StabilityAnswer(_message.Message):
    __slots__ = ("round", "namespace", "origin", "partitions", "unclaimed", "closing", "clock_ms", "frontiers", "heads")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    UNCLAIMED_FIELD_NUMBER: _ClassVar[int]
    CLOSING_FIELD_NUMBER: _ClassVar[int]
    CLOCK_MS_FIELD_NUMBER: _ClassVar[int]
    FRONTIERS_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    round: int
    namespace: int
    origin: bytes
    partitions: _containers.RepeatedScalarFieldContainer[int]
    unclaimed: _containers.RepeatedScalarFieldContainer[int]
    closing: _containers.RepeatedScalarFieldContainer[int]
    clock_ms: int
    frontiers: _containers.RepeatedCompositeFieldContainer[_geo_pb2.StreamHeads]
    heads: _containers.RepeatedCompositeFieldContainer[_geo_pb2.StreamHeads]
    def __init__(self, round: _Optional[int] = ..., namespace: _Optional[int] = ..., origin: _Optional[bytes] = ..., partitions: _Optional[_Iterable[int]] = ..., unclaimed: _Optional[_Iterable[int]] = ..., closing: _Optional[_Iterable[int]] = ..., clock_ms: _Optional[int] = ..., frontiers: _Optional[_Iterable[_Union[_geo_pb2.StreamHeads, _Mapping]]] = ..., heads: _Optional[_Iterable[_Union[_geo_pb2.StreamHeads, _Mapping]]] = ...) -> None: ...

class OperationsAsk(_message.Message):
    __slots__ = ("ask", "namespace", "partitions", "ids", "age_ms", "nodes")
    ASK_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    AGE_MS_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    ask: int
    namespace: int
    partitions: _containers.RepeatedScalarFieldContainer[int]
    ids: bytes
    age_ms: int
    nodes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, ask: _Optional[int] = ..., namespace: _Optional[int] = ..., partitions: _Optional[_Iterable[int]] = ..., ids: _Optional[bytes] = ..., age_ms: _Optional[int] = ..., nodes: _Optional[_Iterable[str]] = ...) -> None: ...

class OperationsTold(_message.Message):
    __slots__ = ("ask", "states", "records", "versions", "reason")
    ASK_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ask: int
    states: bytes
    records: bytes
    versions: _containers.RepeatedScalarFieldContainer[int]
    reason: str
    def __init__(self, ask: _Optional[int] = ..., states: _Optional[bytes] = ..., records: _Optional[bytes] = ..., versions: _Optional[_Iterable[int]] = ..., reason: _Optional[str] = ...) -> None: ...
