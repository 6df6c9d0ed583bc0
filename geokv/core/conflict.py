"""The one place where a conflict policy is chosen: how two cells of one key become one.

`merge` is commutative, associative and idempotent for every policy, so the order in which replicas see deltas is
harmless. Not here: how a delta is made from an operation (`node.update`), and what a reader is shown.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from geokv.errors import InvalidRequest

Merge = Callable[[bytes, bytes], bytes]

# An LWW cell's bytes sort as its versions do: the greater one is the later one.
_MERGES: Final[dict[str, Merge]] = {"lww": max}
POLICIES: Final = tuple(sorted(_MERGES))


def merge_of(policy: str) -> Merge:
    """The merge of a policy. Raises InvalidRequest for a policy that this version does not know."""
    merge = _MERGES.get(policy)
    if merge is None:
        raise InvalidRequest(f"unknown policy {policy!r}: choose one of {', '.join(POLICIES)}")
    return merge
