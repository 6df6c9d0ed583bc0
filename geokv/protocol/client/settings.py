"""How a client behaves: where it begins, which datacenters it may use, and its timings, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MS: Final = 1_000
S: Final = 1_000_000
OPERATIONS_MAX: Final = 131_072  # waiting for an answer in one client; more are refused
MANY_SLICE: Final = 16_384  # what the hosts hand over at once of a longer list


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """All times in microseconds."""

    addresses: tuple[str, ...]
    dc: str = ""  # empty: that of the node that answers first, seen from outside
    failover: tuple[str, ...] = ()

    # One call of a kind to a node at a time makes the largest batches. A second one leaves beside it when it is worth a
    # call by itself. To a node far away, where waiting for the first to come back costs more than small batches do,
    # several may be under way.
    calls_near_max: int = 2
    worth_a_call: int = 24
    # A write goes to the first live owner of its key. From this many operations under way on they go to one owner
    # together, each time to another: a call of 64 writes costs the nodes a third of what three of 21 do.
    together_from: int = 16
    two_calls_from: int = 96  # gets, where they are nearly all that is under way: half to one owner, half to the next
    far_us: int = 20 * MS
    calls_far_max: int = 8
    # Nodes pause for 100 ms without being dead (a collection, a slow disk), so a silence is asked about only after
    # five times that, and the question gets time for the longest way round the planet.
    silence_us: int = 500 * MS
    probe_timeout_us: int = 700 * MS
    probe_again_us: int = 100 * MS  # a node that is down is asked again, doubling
    probe_again_us_max: int = 1 * S
    # Writes under way to a node that was judged dead wait this long for a late answer, then nobody knows.
    grace_us: int = 1 * S
    # An operation tries its datacenter for this long before it goes to the next by itself, and gives up after this
    # long.
    leave_after_us: int = 300 * MS
    leave_after_failures: int = 3
    give_up_us: int = 1 * S
    # A datacenter is returned to when it was healthy for this long; doubling when it soon has to be left again.
    failback_us: int = 5 * S
    failback_us_max: int = 60 * S
    relapse_us: int = 30 * S
    probe_left_us: int = 1 * S
    # The version of a ring says which, not how new: while nodes differ (a rolling change) the client does not chase
    # each.
    ring_again_us: int = 1 * S
    # Retries: base, doubled, with the jitter taking off up to half.
    backoff_us: int = 25 * MS
    backoff_us_max: int = 1 * S
    # A write in doubt is tried again only where so much time is left: what is known is worth more than no answer.
    doubt_left_us: int = 250 * MS
    # The first address is asked for the ring, the next one too when it has not answered after this long.
    bootstrap_stagger_us: int = 250 * MS
    bootstrap_timeout_us: int = 1 * S
