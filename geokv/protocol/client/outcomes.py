"""From what a node said about an item, or how a call failed, to the error that the caller sees.

Invariants: an error that is `retryable` is made only where nothing was numbered, or for a read. A write whose call
broke or ran out of time always says `may_have_happened`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from geokv.errors import (
    Ambiguous,
    DeadlineExceeded,
    GeokvError,
    InvalidRequest,
    NamespaceExists,
    NamespaceNotFound,
    NotEnoughRights,
    Overloaded,
    Partial,
    Stale,
    Unavailable,
    WireError,
)
from geokv.protocol.client.messages import Failure
from geokv.protocol.client.operations import Kind, Operation
from geokv.protocol.requests import Detail, Outcome

FIRST_ERROR: Final = int(Outcome.INVALID)
NOT_NUMBERED: Final = frozenset({Outcome.UNAVAILABLE, Outcome.OVERLOADED, Outcome.WRONG_NODE})
ADMIN_READS: Final = frozenset({"namespace_list", "namespace_show", "status", "ring", "metrics", "digest", "conflicts", "gc"})
IN_DOUBT: Final = frozenset({Outcome.PARTIAL, Outcome.AMBIGUOUS})
_NOTHING: Final = Detail()

Build = Callable[[Operation, Detail], GeokvError]


def may_repeat(operation: Operation) -> bool:
    """Whether doing it twice is harmless: a read."""
    kind = operation.options.kind
    if kind == Kind.ADMIN:
        return operation.value.verb in ADMIN_READS
    return kind != Kind.WRITE


def _not_found(operation: Operation, detail: Detail) -> GeokvError:
    name = operation.options.namespace
    return NamespaceNotFound(detail.message or f"there is no namespace {name!r}", namespace=name)


def _unavailable(operation: Operation, detail: Detail) -> GeokvError:
    return Unavailable(
        detail.message or "too few replicas answered; nothing was written",
        required=detail.required,
        achieved=detail.achieved,
    )


def _partial(operation: Operation, detail: Detail) -> GeokvError:
    message = detail.message or (
        f"written on {detail.achieved} of the {detail.required} replicas asked for; it may still spread"
    )
    return Partial(message, required=detail.required, achieved=detail.achieved, replicas=tuple(detail.replicas))


def _not_enough(operation: Operation, detail: Detail) -> GeokvError:
    needed, here, elsewhere = detail.rights or (0, 0, 0)
    message = detail.message or f"not enough rights here: {needed} needed, {here} here, {elsewhere} elsewhere"
    return NotEnoughRights(message, needed=needed, here=here, elsewhere=elsewhere)


def _overloaded(operation: Operation, detail: Detail) -> GeokvError:
    return Overloaded(detail.message or "the node has too much to do", retry_after=(detail.retry_after_ms or 100) / 1000)


def _deadline(operation: Operation, detail: Detail) -> GeokvError:
    return DeadlineExceeded(detail.message or "the time given has passed", may_have_happened=False)


_BUILD: Final[dict[int, Build]] = {
    Outcome.INVALID: lambda operation, detail: InvalidRequest(detail.message or "the node refused the request"),
    Outcome.NOT_FOUND: _not_found,
    Outcome.UNAVAILABLE: _unavailable,
    Outcome.OVERLOADED: _overloaded,
    Outcome.PARTIAL: _partial,
    Outcome.AMBIGUOUS: lambda operation, detail: Ambiguous(
        detail.message or "nobody knows whether the write was done", may_have_happened=True
    ),
    Outcome.STALE: lambda operation, detail: Stale(
        detail.message or f"the datacenter is {detail.behind_ms} ms behind", behind_ms=detail.behind_ms
    ),
    Outcome.DEADLINE: _deadline,
    Outcome.NOT_ENOUGH_RIGHTS: _not_enough,
    Outcome.ALREADY_EXISTS: lambda operation, detail: NamespaceExists(
        detail.message or "the namespace exists with other settings"
    ),
    Outcome.WRONG_NODE: lambda operation, detail: Unavailable(
        detail.message or "the node asked does not own the key, and the ring that it has is no newer"
    ),
}


def error_of(operation: Operation, outcome: int, detail: Detail | None) -> GeokvError:
    """The error for an item's error outcome."""
    build = _BUILD.get(outcome)
    if build is None:
        message = f"the node answered with outcome {outcome}, which this version does not know"
        return WireError(message) if may_repeat(operation) else Ambiguous(message, may_have_happened=True)
    return build(operation, detail or _NOTHING)


def error_of_call(operation: Operation, failure: Failure, message: str, retry_after_ms: int) -> GeokvError:
    """The error for an operation whose whole call failed."""
    if failure == Failure.OVERLOADED:
        return _overloaded(operation, Detail(message=message, retry_after_ms=retry_after_ms))
    if failure in (Failure.REJECTED, Failure.UNWRITABLE):
        return InvalidRequest(message)
    if failure < Failure.OVERLOADED or may_repeat(operation):
        return Unavailable(message)
    if failure == Failure.TIMEOUT:
        return DeadlineExceeded(message, may_have_happened=True)
    return Ambiguous(f"the call failed after it was sent ({message}); the write may have been done", may_have_happened=True)


def in_doubt(operation: Operation, error: GeokvError) -> GeokvError:
    """The error of an operation that may have been applied by an earlier try, whatever became of the last one."""
    trouble = operation.trouble
    if trouble is None or not trouble.tried or getattr(error, "may_have_happened", False):
        return error
    if operation.options.given is not None and isinstance(error, InvalidRequest):
        return error  # the caller's own name: perhaps given twice
    asked = ", ".join(trouble.tried)
    message = f"whether an earlier try was applied is not known (asked was {asked}); of the last one: {error.message}"
    return Ambiguous(message, may_have_happened=True)


def error_of_deadline(operation: Operation, was_sent: bool) -> GeokvError:
    """The error for an operation whose own time has passed. `was_sent`: a call with it is under way."""
    seconds = (operation.deadline_us - operation.started_us) / 1e6
    if was_sent:
        may_have_happened = not may_repeat(operation)
        doubt = "; the write may have been done" if may_have_happened else ""
        return DeadlineExceeded(f"no answer within {seconds:g} s{doubt}", may_have_happened=may_have_happened)
    trouble = operation.trouble
    if trouble is not None and trouble.failure is not None:
        last = trouble.failure
        # None: nobody could be asked, and its message says what was done to find somebody.
        times = {0: "waited", 1: "tried once in"}.get(trouble.attempts, f"tried {trouble.attempts} times in")
        return type(last)(f"{last.message} ({times} {seconds:g} s)", **last.details)
    return DeadlineExceeded(f"not sent within {seconds:g} s", may_have_happened=False)
