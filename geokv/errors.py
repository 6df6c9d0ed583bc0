"""The one tree of errors. Each class says who must act: the caller, the operator, or nobody (try again).

`retryable` means that the same request may simply be sent again: nothing was numbered, or it was a read. All of them survive
pickle (they travel between processes) and carry what is needed to act as attributes.
"""

from __future__ import annotations

from typing import Any, ClassVar


class GeokvError(Exception):
    """Base of everything that geokv raises."""

    code: ClassVar[str] = "INTERNAL"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str = "", **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details = details
        for name, value in details.items():
            setattr(self, name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.details)


def _rebuild(kind: type[GeokvError], message: str, details: dict[str, Any]) -> GeokvError:
    return kind(message, **details)


# --- the caller must change the request -----------------------------------------------------------------------------


class InvalidRequest(GeokvError):
    """The request can never succeed as it is; the message says what to change."""

    code = "INVALID_ARGUMENT"


class NamespaceNotFound(InvalidRequest):
    """No namespace of that name here (yet). `.namespace`."""

    code = "NOT_FOUND"
    namespace: str = ""


class NamespaceExists(InvalidRequest):
    """The name is taken by a namespace with other settings."""

    code = "ALREADY_EXISTS"


class SnapshotNotFound(InvalidRequest):
    """A node holds no snapshot of that name (any more)."""


class Conflicting(GeokvError):
    """A key has several concurrent values, and nobody said how to make one of them. `.siblings`; see `resolver=`."""

    code = "CONFLICT"
    siblings: tuple[Any, ...] = ()


class ClientClosed(GeokvError):
    """The client was closed, or belongs to the process that this one was forked from. Make a new one."""

    code = "CLIENT_CLOSED"


# --- try again, maybe later or elsewhere ----------------------------------------------------------------------------


class Unavailable(GeokvError):
    """Too few replicas; nothing was numbered. `.required`, `.achieved`."""

    code = "UNAVAILABLE"
    retryable = True
    required: int = 0
    achieved: int = 0


class Overloaded(GeokvError):
    """A bounded queue is full; nothing was numbered. `.retry_after` in seconds."""

    code = "RESOURCE_EXHAUSTED"
    retryable = True
    retry_after: float = 0.1


class Stale(GeokvError):
    """This datacenter has not seen what was asked for. `.behind_ms`."""

    code = "STALE"
    retryable = True
    behind_ms: int = 0


class NotEnoughRights(GeokvError):
    """A bounded counter has too few rights where it was asked; nothing was numbered, and it may be tried again.

    `.needed`, `.here`: what can be spent there now; `.elsewhere`: what is left of the value then, with other nodes, as far as
    is known there. Rights move by themselves to where they are needed; those of a node that cannot be reached stay with it.
    """

    code = "NOT_ENOUGH_RIGHTS"
    retryable = True
    needed: int = 0
    here: int = 0
    elsewhere: int = 0


# --- the outcome is not what was asked, or not known ----------------------------------------------------------------


class Partial(GeokvError):
    """Written, but on fewer replicas than asked; it may still spread. `.required`, `.achieved`, `.replicas`."""

    code = "PARTIAL"
    required: int = 0
    achieved: int = 0
    replicas: tuple[str, ...] = ()
    may_have_happened: bool = True


class DeadlineExceeded(GeokvError):
    """The time given has passed. `.may_have_happened` says whether a write may have been done."""

    code = "DEADLINE_EXCEEDED"
    may_have_happened: bool = False


class Ambiguous(GeokvError):
    """Nobody knows whether the write was done. `.may_have_happened` is True."""

    code = "AMBIGUOUS"
    may_have_happened: bool = True


# --- the operator must act ------------------------------------------------------------------------------------------


class ConfigurationError(GeokvError):
    """A flag, an environment variable or a file says something that cannot be."""

    code = "CONFIGURATION"


class TopologyError(ConfigurationError):
    """A topology file is wrong; the message starts with file and line."""


class EncryptionKeyError(ConfigurationError):
    """A file is encrypted with a key that is missing, or is another one. Not damage. `.key_id`, `.path`."""

    key_id: str = ""
    path: str = ""


class StorageError(GeokvError):
    """The disk failed or holds what cannot be right. The node refuses rather than guesses."""

    code = "STORAGE"


class Damaged(StorageError):
    """A file holds what nobody wrote there: a checksum says so. `.path`, `.offset`, `.what`. Not: a read that failed."""

    code = "DAMAGED"
    path: str = ""
    offset: int = 0
    what: str = ""


class DiskFull(StorageError):
    """No room left; reads go on, writes are refused until there is room."""

    code = "DISK_FULL"


class CorruptLog(StorageError):
    """Damage in the middle of the log, or a hole in it; the message says how to go on."""


class RecordError(StorageError):
    """Bytes that are not a record of a known format, or whose checksum is wrong."""


class WireError(GeokvError):
    """A message that breaks the protocol: malformed, oversized, or from a stranger."""

    code = "WIRE"


class LabError(GeokvError):
    """The lab could not do what it was asked to."""

    code = "LAB"


class LabNotFound(LabError):
    """No lab runs in that directory."""

    code = "LAB_NOT_FOUND"


class LabExists(LabError):
    """A lab runs in that directory already."""

    code = "LAB_EXISTS"
