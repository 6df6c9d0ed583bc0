"""What all verbs of administration share: how arguments are read, and how errors are answered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from geokv.errors import (
    GeokvError,
    InvalidRequest,
    NamespaceExists,
    NamespaceNotFound,
    Overloaded,
    Unavailable,
)
from geokv.protocol.requests import AdminReply, AdminRequest, Outcome

Respond = Callable[[AdminReply], None]
Verb = Callable[[Mapping[str, Any], AdminRequest, Respond], None]
_OUTCOMES: Final[tuple[tuple[type[GeokvError], Outcome], ...]] = (
    (NamespaceNotFound, Outcome.NOT_FOUND),
    (NamespaceExists, Outcome.ALREADY_EXISTS),
    (InvalidRequest, Outcome.INVALID),
    (Overloaded, Outcome.OVERLOADED),
    (Unavailable, Outcome.UNAVAILABLE),
)


def text_of(arguments: Mapping[str, Any], name: str) -> str:
    """A text argument. Raises InvalidRequest where it is missing."""
    value = arguments.get(name)
    if not isinstance(value, str) or not value:
        raise InvalidRequest(f"argument {name!r} is missing")
    return value


def number_of(arguments: Mapping[str, Any], name: str, least: int, most: int) -> int:
    """A whole number inside these bounds. Raises InvalidRequest."""
    value = arguments.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise InvalidRequest(f"{name} = {value!r}: a whole number from {least} to {most}")
    return value


def reply_of(error: GeokvError) -> AdminReply:
    """An error as a reply."""
    outcome = next((outcome for kind, outcome in _OUTCOMES if isinstance(error, kind)), Outcome.AMBIGUOUS)
    return AdminReply(outcome, {}, str(error))
