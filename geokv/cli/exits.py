"""What each exit code means, and which error leads to which.

0  done                      3  not found: the key, the namespace, the lab
1  expectation failed        4  unavailable: nothing was written, try again or elsewhere
2  usage                     5  outcome unknown: it may have happened, in part or later
"""

from __future__ import annotations

from typing import Final

from geokv.errors import (
    Ambiguous,
    ConfigurationError,
    Conflicting,
    DeadlineExceeded,
    GeokvError,
    InvalidRequest,
    LabError,
    LabExists,
    LabNotFound,
    NamespaceExists,
    NamespaceNotFound,
    NotEnoughRights,
    Overloaded,
    Partial,
    Stale,
    StorageError,
    Unavailable,
)

DONE: Final = 0
EXPECTATION_FAILED: Final = 1
USAGE: Final = 2
NOT_FOUND: Final = 3
UNAVAILABLE: Final = 4
UNKNOWN_OUTCOME: Final = 5
INTERRUPTED: Final = 130

# The first that fits; so the narrower classes stand before their bases.
_CODES: Final[tuple[tuple[type[GeokvError], int], ...]] = (
    (NamespaceNotFound, NOT_FOUND),
    (NamespaceExists, EXPECTATION_FAILED),
    (InvalidRequest, USAGE),
    (ConfigurationError, USAGE),
    (Unavailable, UNAVAILABLE),
    (Overloaded, UNAVAILABLE),
    (Stale, UNAVAILABLE),
    (NotEnoughRights, UNAVAILABLE),
    (Conflicting, EXPECTATION_FAILED),
    (Partial, UNKNOWN_OUTCOME),
    (Ambiguous, UNKNOWN_OUTCOME),
    (StorageError, EXPECTATION_FAILED),
    (LabNotFound, NOT_FOUND),
    (LabExists, EXPECTATION_FAILED),
    (LabError, UNAVAILABLE),
)


def code_of(error: GeokvError) -> int:
    """The exit code that an error leads to."""
    if isinstance(error, DeadlineExceeded):
        return UNKNOWN_OUTCOME if error.may_have_happened else UNAVAILABLE
    return next((code for kind, code in _CODES if isinstance(error, kind)), EXPECTATION_FAILED)


def advice_for(error: GeokvError) -> str:
    """What to do, where the error's own words do not say it already."""
    if isinstance(error, Partial):
        return "it is written on fewer replicas than asked for and may still spread; read the key before you write again"
    if isinstance(error, Ambiguous) or (isinstance(error, DeadlineExceeded) and error.may_have_happened):
        return "read the key before you write again"
    if isinstance(error, Overloaded):
        return f"try again in {error.retry_after:g} s"
    if isinstance(error, DeadlineExceeded):
        return "nothing was written; try again, or give more time with --timeout"
    if isinstance(error, Unavailable):
        return "`geokv status` shows which nodes are up"
    return ""
