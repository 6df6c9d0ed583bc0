"""Doing a job: the one call behind the worker process, the simulator and the tests."""

from __future__ import annotations

from geokv.storage.disk import Disk
from geokv.storage.lsm.compaction import compact
from geokv.storage.lsm.facts import TableFacts
from geokv.storage.lsm.flush import flush
from geokv.storage.lsm.jobs import Flush, Job, Quarantine
from geokv.storage.lsm.table_writer import Pace, unpaced


def run_job(disk: Disk, job: Job, pace: Pace = unpaced) -> tuple[TableFacts, ...]:
    """The tables that the job wrote, durable and not yet live. Raises StorageError, DiskFull; then none is left."""
    if isinstance(job, Quarantine):
        return ()
    return flush(disk, job, pace) if isinstance(job, Flush) else compact(disk, job, pace)
