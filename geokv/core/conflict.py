"""The one place where a conflict policy is chosen: how two cells of one key become one.

    lww             the cell's bytes sort as its versions do, merging is `max` (`core.cell`)
    all others      dots under a causal context, one merge for all of them (`core.cells`)
    changed         what was written under several policies, each half by its own rule (`core.cells.halves`)

`merge` is commutative, associative and idempotent for every policy, so the order in which replicas see deltas is
harmless. `append` is the merge that a replica does when a delta arrives: it may leave the folding for later. Not here: how a
delta is made from an operation (`core.cells.update`, `core.lww`), and what a reader is shown.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Final, NamedTuple

from geokv.core.cell import TAG as LWW_TAG
from geokv.core.cell import decode_lww, live_value
from geokv.core.cells import changed, codec, halves
from geokv.core.cells.cell_type import CellType
from geokv.core.cells.context import Dot
from geokv.core.cells.policies import CELL_TYPES
from geokv.core.cells.state import CellState
from geokv.core.cells.update import collected, is_tombstone
from geokv.core.cells.view import View
from geokv.core.hlc import hlc_ms
from geokv.errors import InvalidRequest

Merge = Callable[[bytes, bytes], bytes]
IsStable = Callable[[Dot], bool]
LWW: Final = "lww"
CHANGED: Final = "changed"
"""What an engine is told of a namespace whose policy was changed: how its cells merge hangs on nothing else."""


class Policy(NamedTuple):
    """What a policy's name stands for. `kind` is None for `lww`, whose cells have a form of their own.

    `fold` gives a stored cell its one canonical form. `tags`: the first bytes that the frames of its cells may have. `earlier`:
    the policies that the namespace had before; then its cells may be of those too.
    """

    name: str
    merge: Merge
    append: Merge
    fold: Callable[[bytes], bytes]
    kind: CellType | None
    tags: frozenset[int]
    earlier: tuple[str, ...] = ()

    @property
    def stored_as(self) -> str:
        """What the engine is told."""
        return CHANGED if self.earlier else self.name

    def __str__(self) -> str:
        """In words, for those who may not know that it was changed."""
        return f"{self.name} (its policy was changed; before it was {', '.join(self.earlier)})" if self.earlier else self.name

    def holds(self, cell: bytes) -> bool:
        """Whether such a cell can be here; if not, then under a definition that is not known yet. Raises RecordError."""
        if cell[:1] == LWW_TAG:
            return self.kind is None or LWW in self.earlier
        return self.kind is not None and codec.tags(cell) <= self.tags

    def decode(self, cell: bytes, now_ms: int = 0) -> CellState:
        """A cell of dots, as the policy sees it at `now_ms` (0: before all deadlines). Raises RecordError."""
        assert self.kind is not None
        return changed.decode(self.kind, cell, now_ms) if self.earlier else codec.decode(self.kind.tag, cell)

    def encode(self, state: CellState) -> bytes:
        """The canonical cell of what `decode` gave, joined with whatever it was joined with."""
        assert self.kind is not None
        return state.encoded() if isinstance(state, changed.ChangedState) else codec.encode(self.kind.tag, state)

    def encode_delta(self, held: CellState, delta: CellState) -> bytes:
        """The cell of a delta that was made upon `held`."""
        assert self.kind is not None
        if isinstance(held, changed.ChangedState):
            return held.encoded_delta(delta)
        return codec.encode(self.kind.tag, delta)

    def empty(self) -> CellState:
        """The state of a key that has no cell."""
        assert self.kind is not None
        return changed.ChangedState(self.kind) if self.earlier else CellState()

    def behind(self, stored: bytes, delta: bytes) -> bytes:
        """Both as one cell, nothing decoded and nothing folded."""
        return halves.behind(stored, delta) if self.earlier else stored + delta

    def has_outgrown(self, cell: bytes) -> bool:
        """Whether what was appended to a cell is so much that it should be folded. Raises RecordError."""
        return halves.has_outgrown(cell) if self.earlier else codec.has_outgrown(cell[0], cell)

    def is_over(self, cell: bytes, is_stable: IsStable, clock_ms: int) -> bool:
        """Whether nobody can need the cell any more: it may be collected, where it is all that a replica has of its key.

        `is_stable` tells of a dot whether every replica has it and nothing older is on its way; `clock_ms` is what every
        owner's clock has passed: a stamp below it is not given any more, so what is written next is ordered after
        a deleted `lww` cell also where that is gone. Raises RecordError for bytes that are no cell of this policy.
        """
        if self.earlier:
            held = halves.decode(cell)
            if held.lww is not None and not _is_dead(held.lww, is_stable, clock_ms, held.is_lww_ended()):
                return False
            return not held.state.items and collected(held.state, is_stable) is None
        if self.kind is not None:
            is_empty = codec.is_empty(self.kind.tag, cell)
            return is_empty and collected(codec.decode(self.kind.tag, cell), is_stable) is None
        return _is_dead(cell, is_stable, clock_ms)

    def waits(self, cell: bytes) -> tuple[bool, int]:
        """For cells of dots: (whether it waits to be collected, or for a sweep; from when on it will, 0 where it is not known).

        What a type left of itself under an earlier policy is not swept. Raises RecordError.
        """
        if self.earlier:
            held = halves.decode(cell)
            living = held.living_lww(0)
            if held.state.items or living is None:
                return not held.state.items, 0
            return False, decode_lww(living).deadline_ms
        assert self.kind is not None
        if codec.is_empty(self.kind.tag, cell):
            return True, 0
        if not self.kind.leaves_traces:
            return False, 0
        view = View(codec.decode(self.kind.tag, cell))
        return bool(self.kind.hidden(view)), self.kind.ends_ms(view)

    def living(self, cell: bytes, now_ms: int) -> bytes | None:
        """What of a cell is the same on all replicas, whichever of them have collected something: what lives, dot for dot."""
        if self.earlier:
            held = halves.decode(cell)
            return (held.living_lww(now_ms) or b"") + _listed(held.state) or None
        if self.kind is None:
            return None if live_value(cell, now_ms) is None else cell
        return _listed(codec.decode(self.kind.tag, cell)) or None

    def is_shown(self, cell: bytes, now_ms: int) -> bool:
        """Whether a reader is shown anything at `now_ms`: what is not shown is a tombstone, or has expired."""
        if self.kind is None:
            return live_value(cell, now_ms) is not None
        return not is_tombstone(self.kind, self.decode(cell, now_ms), now_ms)


def _is_dead(lww_cell: bytes, is_stable: IsStable, clock_ms: int, is_ended: bool = False) -> bool:
    decoded = decode_lww(lww_cell)
    is_dead = is_ended or decoded.is_tombstone or 0 < decoded.deadline_ms < clock_ms
    return is_dead and hlc_ms(decoded.version) < clock_ms and is_stable(Dot(decoded.origin, decoded.number))


def _listed(state: CellState) -> bytes:
    """The items, dot for dot."""
    named = ((origin, number, dots[number]) for origin, dots in sorted(state.items.items()) for number in sorted(dots))
    return b"".join([b"%b\0%d\0%d\0%b" % (origin, number, len(carried), carried) for origin, number, carried in named])


def _same(cell: bytes) -> bytes:
    return cell


def _of_dots(kind: CellType) -> Policy:
    tag = kind.tag
    merge, append, fold = partial(codec.merge, tag), partial(codec.append, tag), partial(codec.fold, tag)
    return Policy(kind.name, merge, append, fold, kind, frozenset((tag,)))


# An LWW cell's bytes sort as its versions do: the greater one is the later one.
_POLICIES: Final[dict[str, Policy]] = {LWW: Policy(LWW, max, max, _same, None, frozenset(LWW_TAG))} | {
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


@lru_cache(maxsize=1024)
def policy_after(name: str, earlier: tuple[str, ...]) -> Policy:
    """The policy of a namespace that had these before. Raises InvalidRequest as `policy_of` does."""
    policy = policy_of(name)
    if not earlier:
        return policy
    tags = policy.tags.union(*[policy_of(one).tags for one in earlier], (halves.TAG,))
    return policy._replace(merge=halves.merge, append=halves.append, fold=halves.fold, tags=tags, earlier=earlier)


_CHANGED_POLICY: Final = Policy(CHANGED, halves.merge, halves.append, halves.fold, None, frozenset(), (CHANGED,))


def stored_policy(name: str) -> Policy:
    """What an engine needs of a policy, by what `stored_as` says. Raises InvalidRequest for what this version does not know."""
    return _CHANGED_POLICY if name == CHANGED else policy_of(name)


def check_change(old: str, new: str, ttl_ms: int) -> None:
    """Raises InvalidRequest for a change of policy that cannot be, with the reason."""
    policy_of(new)
    reason = changed.why_not(old, new)
    if reason:
        can = ", ".join(changed.COMPATIBLE.get(old, ())) or "no other"
        raise InvalidRequest(f"policy {old} cannot be changed to {new}: {reason}. It can be changed to: {can}")
    if ttl_ms > 0 and new not in WITH_TTL:
        raise InvalidRequest(f"policy {new} has no TTL, and this namespace has one of {ttl_ms} ms: alter ttl_ms to 0 as well")


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
