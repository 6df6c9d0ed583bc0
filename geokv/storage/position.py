"""A place in the log, between two frames."""

from __future__ import annotations

from typing import NamedTuple


class Position(NamedTuple):
    """Frames whose payload begins before it are on one side, all others on the other."""

    segment: int = 0
    offset: int = 0
