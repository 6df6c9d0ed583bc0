"""The rate through flushes is measured on real nodes, and told apart from that before the first of them."""

import asyncio
from pathlib import Path

import pytest

from benchmarks import steady


def test_the_rates_of_a_short_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All keys, from what was really written. Takes some seconds: three nodes start, and are written to for one."""
    monkeypatch.setattr(steady, "WINDOW_S", 0.2)
    figures = asyncio.run(steady.measure(tmp_path, 3_000, first_per_s=10_000.0))
    assert figures["writes"] >= 3_000 and figures["errors"] == 0
    windows = figures["windows"]
    assert all(one["is_quiet"] and one["flushes"] == 0 and one["writes_per_s"] > 0 for one in windows)
    assert figures["steady_vs_first"] == pytest.approx(figures["steady_per_s"] / 10_000.0)
    quiet = [one["writes_per_s"] for one in windows[1:]]
    assert figures["before_flush_vs_first"] == (pytest.approx(sum(quiet) / len(quiet) / 10_000.0) if quiet else None)
    assert [nbytes for _, nbytes in figures["compaction_debt_bytes"]] == [0] * len(windows)
