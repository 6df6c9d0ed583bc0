"""Tasks and threads with owners: nothing fails unseen, nothing is left behind."""

from __future__ import annotations

import asyncio
import threading

import pytest

from geokv.runtime.counters import NAMES_MAX, Counters, Histogram
from geokv.runtime.supervisor import Supervisor
from geokv.runtime.threads import WorkThread
from tests.runtime.waiting import until


async def test_failing_task_is_counted_and_begun_again() -> None:
    """A kept task that fails twice runs a third time; both failures are counted."""
    counters, runs = Counters(), []

    async def work() -> None:
        runs.append(1)
        if len(runs) < 3:
            raise ValueError("not yet")

    supervisor = Supervisor(counters, lambda *_: None)
    supervisor.keep("work", work)
    await until(lambda: len(runs) == 3, "the third run")
    assert counters["supervisor.restarts"] == 2
    await supervisor.close()


async def test_failure_of_a_task_that_runs_once_is_told() -> None:
    """Whoever gave the task away is told its name and error."""
    told: list[tuple[str, str]] = []

    async def work() -> None:
        raise ValueError("broken")

    supervisor = Supervisor(Counters(), lambda name, error: told.append((name, str(error))))
    supervisor.once("work", work())
    await until(lambda: told, "the failure")
    assert told == [("work", "broken")]
    await supervisor.close()


async def test_close_leaves_no_task_behind() -> None:
    """After close all tasks are done, and a new one is refused."""
    supervisor = Supervisor(Counters(), lambda *_: None)
    task = supervisor.once("forever", asyncio.Event().wait())  # type: ignore[arg-type]
    await supervisor.close()
    assert task.cancelled()
    with pytest.raises(RuntimeError, match="after the end"):
        supervisor.once("late", asyncio.sleep(0))


async def test_close_cancels_again_what_took_a_cancellation_for_something_else() -> None:
    """A library may turn a cancellation into an error of its own, and the task goes on: it ends all the same."""
    swallowed: list[int] = []

    async def stubborn() -> None:
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if len(swallowed) == 2:
                    raise
                swallowed.append(1)

    supervisor = Supervisor(Counters(), lambda *_: None)
    task = supervisor.once("stubborn", stubborn())
    await asyncio.sleep(0)
    await asyncio.wait_for(supervisor.close(), 10)
    assert task.cancelled()


async def test_thread_works_in_order_and_reports_on_the_loop() -> None:
    """Results come in the order of the jobs, errors as errors, all on the loop's thread."""
    thread = WorkThread("test", asyncio.get_running_loop())
    reports: list[object] = []
    own = threading.get_ident()

    def done(result: object, error: Exception | None) -> None:
        assert threading.get_ident() == own
        reports.append(error or result)

    failure = ValueError("bad disk")

    def fail() -> None:
        raise failure

    thread.submit(lambda: threading.get_ident() != own, done)
    thread.submit(fail, done)
    thread.submit(lambda: 3, done)
    assert thread.waiting == 3
    await thread.close()
    await until(lambda: len(reports) == 3, "three reports")
    assert reports == [True, failure, 3]
    assert thread.waiting == 0


def test_counters_are_bounded() -> None:
    """A bug that makes up names cannot fill the memory; what it counts is still counted."""
    counters = Counters()
    for number in range(NAMES_MAX + 10):
        counters.add(f"name.{number}")
    counters.add("name.1", 5)
    assert counters["counters.overflow"] == 10
    assert counters["name.1"] == 6


def test_histogram_counts_each_value_once() -> None:
    """A value at a bound belongs below it; the last bucket takes the rest."""
    histogram = Histogram((1.0, 10.0))
    for value in (0.5, 1.0, 5.0, 11.0):
        histogram.add(value)
    assert histogram.counts == [2, 1, 1]
    assert (histogram.total, histogram.largest) == (17.5, 11.0)
