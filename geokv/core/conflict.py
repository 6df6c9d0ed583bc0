"""The one place where a conflict policy is chosen: how two cells of one key become one.

    lww             the cell's bytes sort as its versions do, merging is `max` (`core.cell`)
    all others      dots under a causal context, one merge for all of them (`core.cells`)

`merge` is commutative, associative and idempotent for every policy, so the order in which replicas see deltas is
harmless. `append` is the merge that a replica does when a delta arrives: it may leave the folding for later. Not here: how a
delta is made from an operation (`core.cells.update`, `core.lww`), and what a reader is shown.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple

from geokv.core.cell import decode_lww, live_value
from geokv.core.cells import codec
from geokv.core.cells.cell_type import CellType
from geokv.core.cells.context import Dot
from geokv.core.cells.policies import CELL_TYPES
from geokv.core.cells.update import collected, is_tombstone
from geokv.core.cells.view import View
from geokv.core.hlc import hlc_ms
from geokv.errors import InvalidRequest

Merge = Callable[[bytes, bytes], bytes]
IsStable = Callable[[Dot], bool]
LWW: Final = "lww"


class Policy(NamedTuple):
    """What a policy's name stands for. `kind` is None for `lww`, whose cells have a form of their own.

    `fold` gives a stored cell its one canonical form.
    """

    name: str
    merge: Merge
    append: Merge
    fold: Callable[[bytes], bytes]
    kind: CellType | None

    def is_over(self, cell: bytes, is_stable: IsStable, clock_ms: int) -> bool:
        """Whether nobody can need the cell any more: it may be collected, where it is all that a replica has of its key.

        `is_stable` tells of a dot whether every replica has it and nothing older is on its way; `clock_ms` is what every
        owner's clock has passed: a stamp below it is not given any more, so what is written next is ordered after
        a deleted `lww` cell also where that is gone. Raises RecordError for bytes that are no cell of this policy.
        """
        if self.kind is not None:
            return self.may_be_over(cell) and collected(codec.decode(self.kind.tag, cell), is_stable) is None
        decoded = decode_lww(cell)
        is_dead = decoded.is_tombstone or 0 < decoded.deadline_ms < clock_ms
        return is_dead and hlc_ms(decoded.version) < clock_ms and is_stable(Dot(decoded.origin, decoded.number))

    def may_be_over(self, cell: bytes) -> bool:
        """A quick look, for cells of dots: whether it holds no item. Raises RecordError."""
        assert self.kind is not None
        return codec.is_empty(self.kind.tag, cell)

    def waits(self, cell: bytes) -> tuple[bool, int]:
        """For cells of dots: (whether it waits to be collected, or for a sweep; from when on it will, 0 where it is not known).

        Raises RecordError.
        """
        assert self.kind is not None
        if self.may_be_over(cell):
            return True, 0
        if not self.kind.leaves_traces:
            return False, 0
        view = View(codec.decode(self.kind.tag, cell))
        return bool(self.kind.hidden(view)), self.kind.ends_ms(view)

    def living(self, cell: bytes, now_ms: int) -> bytes | None:
        """What of a cell is the same on all replicas, whichever of them have collected something: what lives, dot for dot."""
        if self.kind is None:
            return None if live_value(cell, now_ms) is None else cell
        items = codec.decode(self.kind.tag, cell).items
        named = ((origin, number, dots[number]) for origin, dots in sorted(items.items()) for number in sorted(dots))
        return (
            b"".join([b"%b\0%d\0%d\0%b" % (origin, number, len(carried), carried) for origin, number, carried in named]) or None
        )

    def is_shown(self, cell: bytes, now_ms: int) -> bool:
        """Whether a reader is shown anything at `now_ms`: what is not shown is a tombstone, or has expired."""
        if self.kind is None:
            return live_value(cell, now_ms) is not None
        return not is_tombstone(self.kind, codec.decode(self.kind.tag, cell), now_ms)


def _same(cell: bytes) -> bytes:
    return cell


def _of_dots(kind: CellType) -> Policy:
    tag = kind.tag
    merge, append, fold = partial(codec.merge, tag), partial(codec.append, tag), partial(codec.fold, tag)
    return Policy(kind.name, merge, append, fold, kind)


# An LWW cell's bytes sort as its versions do: the greater one is the later one.
_POLICIES: Final[dict[str, Policy]] = {LWW: Policy(LWW, max, max, _same, None)} | {
    name: _of_dots(kind) for name, kind in CELL_TYPES.items()
}
POLICIES: Final = tuple(sorted(_POLICIES))
BOUNDED: Final = "counter_bounded"
"""Whose decrements spend what must not be spent twice: it is always written to a quorum, and synced first."""
WITH_TTL: Final = (LWW, "siblings")
"""Policies whose values may end by themselves."""


def policy_of(name: str) -> Policy:
    """Raises InvalidRequest for a policy that this version does not know."""
    policy = _POLICIES.get(name)
    if policy is None:
        raise InvalidRequest(f"unknown policy {name!r}: choose one of {', '.join(POLICIES)}")
    return policy


def merge_of(name: str) -> Merge:
    """The merge of a policy. Raises InvalidRequest for a policy that this version does not know."""
    return policy_of(name).merge


def check_ttl(name: str, ttl_ms: int) -> None:
    """Raises InvalidRequest for a time to live where the policy has none."""
    if ttl_ms > 0 and name not in WITH_TTL:
        raise InvalidRequest(f"policy {name!r} has no TTL: only {' and '.join(WITH_TTL)} have; leave it out")


def check_durability(name: str, durability: str) -> None:
    """Raises InvalidRequest where a policy cannot live with what a power cut may take."""
    if name == BOUNDED and durability == "interval":
        raise InvalidRequest(
            f'policy {name!r} needs durability "always": a decrement that a power cut took could be made again'
        )
