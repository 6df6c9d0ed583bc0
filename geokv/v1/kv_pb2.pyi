from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Detail(_message.Message):
    __slots__ = ("index", "message", "required", "achieved", "replicas", "behind_ms", "retry_after_ms", "needed", "here", "elsewhere")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    REQUIRED_FIELD_NUMBER: _ClassVar[int]
    ACHIEVED_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    BEHIND_MS_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    NEEDED_FIELD_NUMBER: _ClassVar[int]
    HERE_FIELD_NUMBER: _ClassVar[int]
    ELSEWHERE_FIELD_NUMBER: _ClassVar[int]
    index: int
    message: str
    required: int
    achieved: int
    replicas: _containers.RepeatedScalarFieldContainer[str]
    behind_ms: int
    retry_after_ms: int
    needed: bytes
    here: bytes
    elsewhere: bytes
    def __init__(self, index: _Optional[int] = ..., message: _Optional[str] = ..., required: _Optional[int] = ..., achieved: _Optional[int] = ..., replicas: _Optional[_Iterable[str]] = ..., behind_ms: _Optional[int] = ..., retry_after_ms: _Optional[int] = ..., needed: _Optional[bytes] = ..., here: _Optional[bytes] = ..., elsewhere: _Optional[bytes] = ...) -> None: ...

class WriteRequest(_message.Message):
    __slots__ = ("namespace", "keys", "values", "deletes", "level", "w", "ttl_ms", "replicated_to", "timeout_ms", "seen_hlc", "operations", "contexts", "ring_version", "has_updates", "tried", "first_try_ms", "remaining_ms")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    DELETES_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    W_FIELD_NUMBER: _ClassVar[int]
    TTL_MS_FIELD_NUMBER: _ClassVar[int]
    REPLICATED_TO_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    SEEN_HLC_FIELD_NUMBER: _ClassVar[int]
    OPERATIONS_FIELD_NUMBER: _ClassVar[int]
    CONTEXTS_FIELD_NUMBER: _ClassVar[int]
    RING_VERSION_FIELD_NUMBER: _ClassVar[int]
    HAS_UPDATES_FIELD_NUMBER: _ClassVar[int]
    TRIED_FIELD_NUMBER: _ClassVar[int]
    FIRST_TRY_MS_FIELD_NUMBER: _ClassVar[int]
    REMAINING_MS_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    keys: _containers.RepeatedScalarFieldContainer[bytes]
    values: _containers.RepeatedScalarFieldContainer[bytes]
    deletes: _containers.RepeatedScalarFieldContainer[int]
    level: int
    w: int
    ttl_ms: int
    replicated_to: int
    timeout_ms: int
    seen_hlc: int
    operations: bytes
    contexts: _containers.RepeatedScalarFieldContainer[bytes]
    ring_version: int
    has_updates: bool
    tried: _containers.RepeatedScalarFieldContainer[str]
    first_try_ms: int
    remaining_ms: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, namespace: _Optional[str] = ..., keys: _Optional[_Iterable[bytes]] = ..., values: _Optional[_Iterable[bytes]] = ..., deletes: _Optional[_Iterable[int]] = ..., level: _Optional[int] = ..., w: _Optional[int] = ..., ttl_ms: _Optional[int] = ..., replicated_to: _Optional[int] = ..., timeout_ms: _Optional[int] = ..., seen_hlc: _Optional[int] = ..., operations: _Optional[bytes] = ..., contexts: _Optional[_Iterable[bytes]] = ..., ring_version: _Optional[int] = ..., has_updates: bool = ..., tried: _Optional[_Iterable[str]] = ..., first_try_ms: _Optional[int] = ..., remaining_ms: _Optional[_Iterable[int]] = ...) -> None: ...

class WriteReply(_message.Message):
    __slots__ = ("outcomes", "versions", "replicas", "dcs", "coordinator", "hlc", "elapsed_us", "details", "ring_version", "contexts")
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    DCS_FIELD_NUMBER: _ClassVar[int]
    COORDINATOR_FIELD_NUMBER: _ClassVar[int]
    HLC_FIELD_NUMBER: _ClassVar[int]
    ELAPSED_US_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    RING_VERSION_FIELD_NUMBER: _ClassVar[int]
    CONTEXTS_FIELD_NUMBER: _ClassVar[int]
    outcomes: bytes
    versions: _containers.RepeatedScalarFieldContainer[int]
    replicas: bytes
    dcs: bytes
    coordinator: str
    hlc: int
    elapsed_us: int
    details: _containers.RepeatedCompositeFieldContainer[Detail]
    ring_version: int
    contexts: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, outcomes: _Optional[bytes] = ..., versions: _Optional[_Iterable[int]] = ..., replicas: _Optional[bytes] = ..., dcs: _Optional[bytes] = ..., coordinator: _Optional[str] = ..., hlc: _Optional[int] = ..., elapsed_us: _Optional[int] = ..., details: _Optional[_Iterable[_Union[Detail, _Mapping]]] = ..., ring_version: _Optional[int] = ..., contexts: _Optional[_Iterable[bytes]] = ...) -> None: ...

class ReadRequest(_message.Message):
    __slots__ = ("namespace", "keys", "level", "r", "timeout_ms", "seen_hlc", "repair_before", "ring_version")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    R_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    SEEN_HLC_FIELD_NUMBER: _ClassVar[int]
    REPAIR_BEFORE_FIELD_NUMBER: _ClassVar[int]
    RING_VERSION_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    keys: _containers.RepeatedScalarFieldContainer[bytes]
    level: int
    r: int
    timeout_ms: int
    seen_hlc: int
    repair_before: bool
    ring_version: int
    def __init__(self, namespace: _Optional[str] = ..., keys: _Optional[_Iterable[bytes]] = ..., level: _Optional[int] = ..., r: _Optional[int] = ..., timeout_ms: _Optional[int] = ..., seen_hlc: _Optional[int] = ..., repair_before: bool = ..., ring_version: _Optional[int] = ...) -> None: ...

class ReadReply(_message.Message):
    __slots__ = ("outcomes", "values", "found", "versions", "replicas", "coordinator", "hlc", "elapsed_us", "details", "ring_version", "contexts", "policy")
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    FOUND_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    COORDINATOR_FIELD_NUMBER: _ClassVar[int]
    HLC_FIELD_NUMBER: _ClassVar[int]
    ELAPSED_US_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    RING_VERSION_FIELD_NUMBER: _ClassVar[int]
    CONTEXTS_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    outcomes: bytes
    values: _containers.RepeatedScalarFieldContainer[bytes]
    found: bytes
    versions: _containers.RepeatedScalarFieldContainer[int]
    replicas: bytes
    coordinator: str
    hlc: int
    elapsed_us: int
    details: _containers.RepeatedCompositeFieldContainer[Detail]
    ring_version: int
    contexts: _containers.RepeatedScalarFieldContainer[bytes]
    policy: str
    def __init__(self, outcomes: _Optional[bytes] = ..., values: _Optional[_Iterable[bytes]] = ..., found: _Optional[bytes] = ..., versions: _Optional[_Iterable[int]] = ..., replicas: _Optional[bytes] = ..., coordinator: _Optional[str] = ..., hlc: _Optional[int] = ..., elapsed_us: _Optional[int] = ..., details: _Optional[_Iterable[_Union[Detail, _Mapping]]] = ..., ring_version: _Optional[int] = ..., contexts: _Optional[_Iterable[bytes]] = ..., policy: _Optional[str] = ...) -> None: ...
