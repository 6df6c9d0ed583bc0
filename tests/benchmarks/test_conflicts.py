"""The benchmark of the conflict layer measures what it says, and its figures about cells are within the limits."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.conflicts import counter_bytes, merge_times_ms, set_bytes


def test_cells_stay_small_and_merge_fast() -> None:
    """Bytes are exact; the times have room for a machine that does something else."""
    assert counter_bytes() < 400 and set_bytes() < 24
    merge_ms, delta_ms = merge_times_ms()
    assert merge_ms < 50 and delta_ms < 1


@pytest.mark.timeout(120)
def test_a_short_run_fills_in_every_figure(tmp_path: Path) -> None:
    """Three real nodes and a few callers, for some seconds."""
    target = tmp_path / "figures.json"
    flags = ["--rounds", "1", "--keys", "8", "--seconds", "0.3", "--callers", "8", "--json", str(target)]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.conflicts", *flags],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(target.read_text(encoding="utf-8"))
    assert figures.pop("machine")["cores"] >= 1
    assert all(isinstance(value, int | float) and value > 0 for value in figures.values()) and "set_vs_lww_writes" in figures
