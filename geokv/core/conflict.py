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

from geokv.core.cell import live_value
from geokv.core.cells import codec
from geokv.core.cells.cell_type import CellType
from geokv.core.cells.policies import CELL_TYPES
from geokv.core.cells.update import is_tombstone
from geokv.errors import InvalidRequest

Merge = Callable[[bytes, bytes], bytes]
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
