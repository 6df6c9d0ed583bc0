"""Consistency levels and the number of replicas that each asks for.

    level         write waits for                    read asks
    ONE           the coordinator                    one replica
    TWO           two replicas                       two
    QUORUM        floor(N/2)+1                       floor(N/2)+1
    ALL           N                                  N
    EACH_QUORUM   QUORUM here, then in every DC      refused

Every ring is local to its datacenter, so LOCAL_ONE and LOCAL_QUORUM are synonyms of ONE and QUORUM.
"""

from __future__ import annotations

from enum import IntEnum

from geokv.errors import InvalidRequest


class Consistency(IntEnum):
    """A consistency level. DEFAULT stands for the namespace's own."""

    DEFAULT = 0
    ONE = 1
    TWO = 2
    QUORUM = 3
    ALL = 4
    EACH_QUORUM = 5

    def __str__(self) -> str:
        """Its name, as in print(); on the wire and in comparisons it is its number."""
        return self.name

    @classmethod
    def parse(cls, level: Consistency | str | int) -> Consistency:
        """A level, its name in any case, or a synonym. Raises InvalidRequest naming the choices."""
        if isinstance(level, str):
            name = level.upper()
            name = {"LOCAL_ONE": "ONE", "LOCAL_QUORUM": "QUORUM"}.get(name, name)
            found = cls.__members__.get(name)
        else:
            # True is no level, though Python takes it for 1.
            found = next((member for member in cls if member == level and not isinstance(level, bool)), None)
        if found is None:
            names = ", ".join(member.name for member in cls if member)
            raise InvalidRequest(f"unknown consistency level {level!r}: choose one of {names}")
        return found


def needed(level: Consistency, explicit: int, replicas: int) -> int:
    """How many of `replicas` must answer. `explicit` (r or w of the request; 0: none) overrides the level.

    Raises InvalidRequest where more are asked for than there are.
    """
    wanted = explicit or {
        Consistency.ONE: 1,
        Consistency.TWO: 2,
        Consistency.ALL: replicas,
    }.get(level, replicas // 2 + 1)
    if wanted > replicas:
        asked = f"r/w = {explicit}" if explicit else f"level {level.name}"
        raise InvalidRequest(f"{asked} needs {wanted} replicas, but this namespace has {replicas} in a datacenter")
    return wanted
