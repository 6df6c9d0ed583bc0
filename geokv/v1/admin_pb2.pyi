from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AdminRequest(_message.Message):
    __slots__ = ("verb", "arguments_json", "timeout_ms")
    VERB_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_JSON_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    verb: str
    arguments_json: bytes
    timeout_ms: int
    def __init__(self, verb: _Optional[str] = ..., arguments_json: _Optional[bytes] = ..., timeout_ms: _Optional[int] = ...) -> None: ...

class AdminReply(_message.Message):
    __slots__ = ("outcome", "body_json", "message")
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    BODY_JSON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    outcome: int
    body_json: bytes
    message: str
    def __init__(self, outcome: _Optional[int] = ..., body_json: _Optional[bytes] = ..., message: _Optional[str] = ...) -> None: ...

class RingRequest(_message.Message):
    __slots__ = ("viewpoint",)
    VIEWPOINT_FIELD_NUMBER: _ClassVar[int]
    viewpoint: str
    def __init__(self, viewpoint: _Optional[str] = ...) -> None: ...

class RingNode(_message.Message):
    __slots__ = ("name", "dc", "rack", "weight", "address")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DC_FIELD_NUMBER: _ClassVar[int]
    RACK_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    name: str
    dc: str
    rack: str
    weight: float
    address: str
    def __init__(self, name: _Optional[str] = ..., dc: _Optional[str] = ..., rack: _Optional[str] = ..., weight: _Optional[float] = ..., address: _Optional[str] = ...) -> None: ...

class RingDatacenter(_message.Message):
    __slots__ = ("name", "replicas")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    name: str
    replicas: int
    def __init__(self, name: _Optional[str] = ..., replicas: _Optional[int] = ...) -> None: ...

class RingReply(_message.Message):
    __slots__ = ("cluster", "partitions", "version", "nodes", "datacenters", "answered_by")
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    DATACENTERS_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_BY_FIELD_NUMBER: _ClassVar[int]
    cluster: str
    partitions: int
    version: int
    nodes: _containers.RepeatedCompositeFieldContainer[RingNode]
    datacenters: _containers.RepeatedCompositeFieldContainer[RingDatacenter]
    answered_by: str
    def __init__(self, cluster: _Optional[str] = ..., partitions: _Optional[int] = ..., version: _Optional[int] = ..., nodes: _Optional[_Iterable[_Union[RingNode, _Mapping]]] = ..., datacenters: _Optional[_Iterable[_Union[RingDatacenter, _Mapping]]] = ..., answered_by: _Optional[str] = ...) -> None: ...

class FetchRequest(_message.Message):
    __slots__ = ("snapshot", "path", "offset", "length")
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    snapshot: str
    path: str
    offset: int
    length: int
    def __init__(self, snapshot: _Optional[str] = ..., path: _Optional[str] = ..., offset: _Optional[int] = ..., length: _Optional[int] = ...) -> None: ...

class FetchReply(_message.Message):
    __slots__ = ("content",)
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    content: bytes
    def __init__(self, content: _Optional[bytes] = ...) -> None: ...
