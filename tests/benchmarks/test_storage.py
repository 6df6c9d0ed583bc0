"""The benchmarks of storage: stores give back what was put, figures carry their names, and what was not measured is None."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import steady, storage
from benchmarks.stores import Geokv, WorkedJob


def test_geokv_s_store_gives_back_what_was_put_through_flushes_and_a_restart(tmp_path: Path) -> None:
    """Put, overwritten, flushed, compacted, opened anew: every get and scan is right, absent keys are absent.

    Takes a second: the worker process is started.
    """
    store = Geokv(tmp_path)
    for version in range(3):
        for start in range(0, 600, 200):
            store.put([(storage.key_of(at), b"%d %d" % (version, at)) for at in range(start, start + 200)])
        store.settle()
    store.put([(storage.key_of(7), b"last")])
    for _ in range(2):
        assert store.get(storage.key_of(7)) == b"last"
        assert store.get(storage.key_of(599)) == b"2 599"
        assert store.get(b"absent") is None
        assert [key for key, _ in store.scan(storage.key_of(590))] == [storage.key_of(at) for at in range(590, 600)]
        assert store.debt_bytes() == 0
        store.close()
        store = Geokv(tmp_path)
    store.close()


def test_a_stall_is_a_job_s_where_every_job_of_its_kind_makes_it() -> None:
    """The calmest of the longer half tells; what comes between jobs, or in one that is too short to tell, is nobody's."""
    flushes = [WorkedJob("flush", at, at + 1.0) for at in (0.0, 10.0, 20.0)]
    jobs = [*flushes, WorkedJob("flush", 30.0, 30.1), WorkedJob("compaction to level 1", 40.0, 45.0)]
    ticks = [(0.5, 0.030), (5.0, 0.500), (10.5, 0.012), (10.6, 0.004), (20.99, 0.025), (30.05, 0.001), (39.99, 0.040)]
    assert storage.stalls_of(jobs, ticks) == {"compaction to level 1": [40.0], "flush": [12.0, 25.0]}
    assert storage.stalls_of([], ticks) == {}


def test_the_summary_has_every_key_and_none_for_what_is_missing() -> None:
    """Without RocksDB and LMDB the ratios are None, not 0."""
    ours = {"load_per_s": 10.0, "put_empty_per_s": 20.0, "overwrite_per_s": 10.0, "absent_get_per_s": 5.0, "rss_mb": 1.0}
    alone = storage.summary({"geokv": ours}, 1000)
    assert (alone["put_vs_rocksdb"], alone["put_vs_lmdb"], alone["overwrite_vs_empty"]) == (None, None, 0.5)
    both = storage.summary({"geokv": ours, "rocksdb": {"load_per_s": 40.0}}, 1000)
    assert both["put_vs_rocksdb"] == 0.25 and both["pairs"] == 1000
    assert set(storage.AIMS) <= set(both)


def test_what_a_steady_run_is_compared_with_comes_from_a_result_file(tmp_path: Path) -> None:
    """The median of geokv with 256 callers; another file is refused."""
    file = tmp_path / "first.json"
    file.write_text(json.dumps({"median": {"geokv": {"256": {"writes_per_s": 123.5}}}}))
    assert steady.first_of(file) == 123.5
    file.write_text("{}")
    with pytest.raises(KeyError):
        steady.first_of(file)
