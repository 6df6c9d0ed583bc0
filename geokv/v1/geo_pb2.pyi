from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StreamHeads(_message.Message):
    __slots__ = ("namespace", "origin", "partitions", "numbers")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    NUMBERS_FIELD_NUMBER: _ClassVar[int]
    namespace: int
    origin: bytes
    partitions: _containers.RepeatedScalarFieldContainer[int]
    numbers: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, namespace: _Optional[int] = ..., origin: _Optional[bytes] = ..., partitions: _Optional[_Iterable[int]] = ..., numbers: _Optional[_Iterable[int]] = ...) -> None: ...

class FeedOpen(_message.Message):
    __slots__ = ("feed", "own_only", "partitions", "frontiers")
    FEED_FIELD_NUMBER: _ClassVar[int]
    OWN_ONLY_FIELD_NUMBER: _ClassVar[int]
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    FRONTIERS_FIELD_NUMBER: _ClassVar[int]
    feed: int
    own_only: bool
    partitions: _containers.RepeatedScalarFieldContainer[int]
    frontiers: _containers.RepeatedCompositeFieldContainer[StreamHeads]
    def __init__(self, feed: _Optional[int] = ..., own_only: bool = ..., partitions: _Optional[_Iterable[int]] = ..., frontiers: _Optional[_Iterable[_Union[StreamHeads, _Mapping]]] = ...) -> None: ...

class FeedBatch(_message.Message):
    __slots__ = ("feed", "sequence", "raw_bytes", "payload", "sent_hlc", "behind_partitions", "behind_hlcs", "heads", "sent_us", "echo_us")
    FEED_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    RAW_BYTES_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    SENT_HLC_FIELD_NUMBER: _ClassVar[int]
    BEHIND_PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    BEHIND_HLCS_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    SENT_US_FIELD_NUMBER: _ClassVar[int]
    ECHO_US_FIELD_NUMBER: _ClassVar[int]
    feed: int
    sequence: int
    raw_bytes: int
    payload: bytes
    sent_hlc: int
    behind_partitions: _containers.RepeatedScalarFieldContainer[int]
    behind_hlcs: _containers.RepeatedScalarFieldContainer[int]
    heads: _containers.RepeatedCompositeFieldContainer[StreamHeads]
    sent_us: int
    echo_us: int
    def __init__(self, feed: _Optional[int] = ..., sequence: _Optional[int] = ..., raw_bytes: _Optional[int] = ..., payload: _Optional[bytes] = ..., sent_hlc: _Optional[int] = ..., behind_partitions: _Optional[_Iterable[int]] = ..., behind_hlcs: _Optional[_Iterable[int]] = ..., heads: _Optional[_Iterable[_Union[StreamHeads, _Mapping]]] = ..., sent_us: _Optional[int] = ..., echo_us: _Optional[int] = ...) -> None: ...

class FeedAck(_message.Message):
    __slots__ = ("feed", "synced", "quorum", "covered", "sent_us", "echo_us")
    FEED_FIELD_NUMBER: _ClassVar[int]
    SYNCED_FIELD_NUMBER: _ClassVar[int]
    QUORUM_FIELD_NUMBER: _ClassVar[int]
    COVERED_FIELD_NUMBER: _ClassVar[int]
    SENT_US_FIELD_NUMBER: _ClassVar[int]
    ECHO_US_FIELD_NUMBER: _ClassVar[int]
    feed: int
    synced: int
    quorum: int
    covered: _containers.RepeatedCompositeFieldContainer[StreamHeads]
    sent_us: int
    echo_us: int
    def __init__(self, feed: _Optional[int] = ..., synced: _Optional[int] = ..., quorum: _Optional[int] = ..., covered: _Optional[_Iterable[_Union[StreamHeads, _Mapping]]] = ..., sent_us: _Optional[int] = ..., echo_us: _Optional[int] = ...) -> None: ...

class FeedClose(_message.Message):
    __slots__ = ("feed",)
    FEED_FIELD_NUMBER: _ClassVar[int]
    feed: int
    def __init__(self, feed: _Optional[int] = ...) -> None: ...

class FeedRefused(_message.Message):
    __slots__ = ("feed", "reason")
    FEED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    feed: int
    reason: str
    def __init__(self, feed: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class FeedHoles(_message.Message):
    __slots__ = ("feed", "heads")
    FEED_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    feed: int
    heads: _containers.RepeatedCompositeFieldContainer[StreamHeads]
    def __init__(self, feed: _Optional[int] = ..., heads: _Optional[_Iterable[_Union[StreamHeads, _Mapping]]] = ...) -> None: ...

class DefinitionsWanted(_message.Message):
    __slots__ = ("dc", "first")
    DC_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    dc: str
    first: int
    def __init__(self, dc: _Optional[str] = ..., first: _Optional[int] = ...) -> None: ...

class Definitions(_message.Message):
    __slots__ = ("dc", "first", "values")
    DC_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    dc: str
    first: int
    values: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, dc: _Optional[str] = ..., first: _Optional[int] = ..., values: _Optional[_Iterable[bytes]] = ...) -> None: ...
