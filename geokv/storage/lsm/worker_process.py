"""The worker process: runs jobs that come through a pipe, at low priority, and ends with the node.

    stdin    pickled orders: Job, Throttle, KeyOrder      stdout   pickled answers: tables, or the error; None: it goes on

A thread reads the orders, so that pausing and a new rate count at once, in the midst of a job. When the pipe ends,
because the node closed it or is no more, the process ends on the spot, whatever it is doing: what it had written is
orphaned, and removed when the engine opens next.

Invariants: one job at a time, in order. Nothing but pipes ties it to the node, and only what its parent wrote is
unpickled. Not here: the parent's side (`worker`).
"""

from __future__ import annotations

import gc
import os
import pickle
import queue
import signal
import sys
import threading
from functools import partial
from pathlib import Path
from typing import BinaryIO

from geokv.errors import GeokvError, StorageError
from geokv.storage.encryption.keys import Keys, parse_keys
from geokv.storage.lsm.jobs import Job, KeyOrder
from geokv.storage.lsm.pacing import Pacer, Progress, Throttle
from geokv.storage.lsm.shared_disk import SharedDisk
from geokv.storage.node_jobs import do


def serve(root: Path, orders: BinaryIO, answers: BinaryIO) -> None:
    """Run jobs until `orders` ends, which ends the process."""
    lock = threading.Lock()

    def say(answer: object) -> None:
        with lock:
            pickle.dump(answer, answers)
            answers.flush()

    progress = Progress(partial(say, None))
    pacer = Pacer(progress)
    jobs: queue.Queue[Job | KeyOrder] = queue.Queue()
    threading.Thread(target=_read_orders, args=(orders, jobs, pacer), daemon=True).start()
    keys = Keys()
    gc.disable()  # a job makes millions of objects, and walking them again and again is a tenth of its work
    while True:
        job = jobs.get()
        if isinstance(job, KeyOrder):
            keys = Keys(parse_keys(job.lines, "the keys of the node"))
        else:
            say(_answer(root, job, pacer, progress, keys))
            gc.collect()  # once, should some of them be in cycles


def _answer(root: Path, job: Job, pacer: Pacer, progress: Progress, keys: Keys) -> object:
    try:
        # For this job only: a file that stays open takes its space after the node has removed it.
        disk = SharedDisk(root, keys, progress)
        try:
            return do(disk, job, pacer)
        finally:
            disk.close()
    except GeokvError as error:
        return error
    except Exception as error:
        return StorageError(f"job {job.number} failed: {type(error).__name__}: {error}")


def _read_orders(orders: BinaryIO, jobs: queue.Queue[Job | KeyOrder], pacer: Pacer) -> None:
    try:
        while True:
            order = pickle.load(orders)
            if isinstance(order, Throttle):
                pacer.set(order)
            else:
                jobs.put(order)
    finally:
        os._exit(0)  # the node is gone, or wants no more


def main() -> None:
    """`python -m geokv.storage.lsm.worker_process ROOT NICENESS`"""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the node's process, too, which ends this one
    os.nice(int(sys.argv[2]))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what anything prints must not stand among the answers
    try:
        serve(Path(sys.argv[1]), sys.stdin.buffer, answers)
    except BrokenPipeError:
        os._exit(0)  # nobody waits for the answer


if __name__ == "__main__":
    main()
