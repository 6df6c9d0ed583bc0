"""What exhaustive tests tried, and how often something fell short: the table that `make soak` ends with.

    pytest --samples=soak --tally FILE      each such test adds a line of JSON when it is over, also when it fails
    python -m tests.tally FILE              the sum, as a table in Markdown

A test that fails stops at its first failure: it counts as one that fell short, of those that it had tried by then.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Count:
    """How many were tried so far."""

    tried: int = 0

    def add(self, tried: int = 1) -> None:
        self.tried += tried


class Tally:
    """Where a run writes its counts; nowhere without a path."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    @contextmanager
    def of(self, what: str) -> Iterator[Count]:
        """Count what is tried inside, as a row `what` of the table."""
        count, short = Count(), 1
        try:
            yield count
            short = 0
        finally:
            if self._path is not None:
                with self._path.open("a", encoding="utf-8") as lines:  # one short line: whole, whoever else appends
                    lines.write(json.dumps({"what": what, "tried": count.tried, "short": short}) + "\n")


def table(lines: Iterator[str]) -> str:
    """The rows in the order in which they first came."""
    sums: dict[str, list[int]] = {}
    for line in lines:
        entry = json.loads(line)
        row = sums.setdefault(entry["what"], [0, 0])
        row[0] += entry["tried"]
        row[1] += entry["short"]
    rows = [f"| {what} | {tried:,} | {short} |" for what, (tried, short) in sums.items()]
    return "\n".join(["| what | tried | fell short |", "|---|---|---|", *rows])


if __name__ == "__main__":
    with Path(sys.argv[1]).open(encoding="utf-8") as file:
        print(table(file))
