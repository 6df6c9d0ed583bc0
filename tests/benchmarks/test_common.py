import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.common import (
    BenchmarkError,
    Server,
    cell,
    cpu_seconds_of,
    descendants,
    disk_directory,
    fdatasync_us,
    file_system,
    file_system_among,
    free_ports,
    machine_cpu_seconds,
    machine_facts,
    median,
    percentile,
    quotient,
    servers,
    table,
)

CHECKOUT = Path(__file__).resolve().parents[2]
SLEEPER = [sys.executable, "-S", "-c", "import time; print('up', flush=True); time.sleep(600)"]
needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.mark.parametrize(("percent", "expected"), [(50, 50), (99, 99), (100, 100), (1, 1), (0.5, 1), (99.1, 100)])
def test_percentiles_of_one_to_a_hundred(percent: float, expected: float) -> None:
    """The nearest rank, on numbers where it can be read off."""
    assert percentile(list(range(1, 101)), percent) == expected


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.integers(1, 100))
def test_a_percentile_is_the_smallest_that_enough_do_not_exceed(numbers: list[float], percent: int) -> None:
    """The definition, checked against every number."""
    ordered = sorted(numbers)
    found = percentile(ordered, percent)
    assert found == min(n for n in ordered if 100 * sum(m <= n for m in ordered) >= percent * len(ordered))


def test_what_was_not_measured_is_none() -> None:
    """None, never 0, from nothing, from a missing part, and from a division by 0."""
    assert percentile([], 50) is None
    assert median([]) is None
    assert median([None, None]) is None
    assert quotient(None, 2) is None
    assert quotient(2, None) is None
    assert quotient(2, 0) is None


def test_medians_leave_out_what_was_not_measured() -> None:
    """A round that failed does not pull the median to 0."""
    assert median([None, 3, 1, None, 2]) == 2
    assert median([1, 4]) == 2.5


def test_a_percentile_out_of_range_is_refused() -> None:
    """0 and 101 are mistakes of the caller."""
    for percent in (0, -1, 101):
        with pytest.raises(ValueError, match="percent"):
            percentile([1.0], percent)


def test_a_table_lines_up() -> None:
    """Names to the left, figures to the right, all lines of one length."""
    assert table(["name", "n"], [["a", "1,000"], ["longer", "2"]]).splitlines() == [
        "name        n",
        "------  -----",
        "a       1,000",
        "longer      2",
    ]
    with pytest.raises(ValueError, match="cells"):
        table(["name", "n"], [["a"]])


def test_cells_show_a_dash_for_none() -> None:
    """A reader of the table cannot take a missing figure for 0."""
    assert [cell(None), cell(1234.56), cell(0.126, 2)] == ["-", "1,235", "0.13"]


MOUNTS = [
    "/dev/sda / ext4 rw 0 0",
    "tmpfs /tmp tmpfs rw 0 0",
    "/dev/sdb /tmp/a\\040disk xfs rw 0 0",
    "/dev/sdc /tmp/a\\040disk btrfs rw 0 0",
]


@pytest.mark.parametrize(
    ("directory", "expected"),
    [
        ("/home/me", "ext4"),
        ("/tmp/x", "tmpfs"),
        ("/tmp/a disk/x", "btrfs"),
        ("/tmp", "tmpfs"),
        ("/tmpfoo", "ext4"),
    ],
)
def test_the_innermost_and_last_mount_names_the_file_system(directory: str, expected: str) -> None:
    """Also under a mount over a mount, with a blank in its name, and beside a name that begins alike."""
    assert file_system_among(MOUNTS, Path(directory)) == expected


def test_a_directory_in_memory_is_refused() -> None:
    """A sync there costs nothing, so figures from it would be worth nothing."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or file_system(memory) != "tmpfs":
        pytest.skip("no tmpfs at /dev/shm")
    with pytest.raises(BenchmarkError, match="in memory"):
        disk_directory(memory)


def test_the_machine_states_its_facts(tmp_path: Path) -> None:
    """The keys that a result file promises, and a sync that took time."""
    facts = machine_facts(tmp_path)
    assert {"cpu", "cores", "kernel", "python", "filesystem", "fdatasync_us"} <= facts.keys()
    assert facts["cores"] >= 1
    sync_us = fdatasync_us(tmp_path)
    assert sync_us is None or sync_us > 0
    assert list(tmp_path.iterdir()) == []


def test_free_ports_can_be_listened_on() -> None:
    """All at the same time."""
    ports = free_ports(8)
    assert len(set(ports)) == 8
    with contextlib.ExitStack() as held:
        for port in ports:
            held.enter_context(socket.socket()).bind(("127.0.0.1", port))


@needs_proc
def test_servers_are_gone_after_the_block_even_when_it_raises(tmp_path: Path) -> None:
    """Nothing is left to disturb the next measurement."""
    pids: list[int] = []

    def start_and_fail() -> None:
        with servers([SLEEPER, SLEEPER], tmp_path) as running:
            pids.extend(server.pid for server in running)
            assert set(pids) <= descendants(os.getpid())
            raise KeyError

    with pytest.raises(KeyError):
        start_and_fail()
    assert len(pids) == 2
    assert not any(map(is_alive, pids))


def test_a_server_that_ended_is_reported_with_its_last_words(tmp_path: Path) -> None:
    """The reason stands in the error, not in a file that is deleted with the directory."""
    server = Server([sys.executable, "-c", "import sys; sys.exit('port is taken')"], tmp_path / "log")

    def has_ended() -> bool:
        try:
            server.check()
        except BenchmarkError as error:
            return "port is taken" in str(error)
        return False

    wait_until(has_ended)
    server.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_servers_die_with_a_benchmark_that_is_killed(tmp_path: Path) -> None:
    """kill -9 of the benchmark leaves no server behind."""
    program = (
        "import sys, time, pathlib\nfrom benchmarks.common import Server\n"
        "server = Server(sys.argv[2:], pathlib.Path(sys.argv[1]))\n"
        "print(server.pid, flush=True)\ntime.sleep(600)"
    )
    log = tmp_path / "log"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(log), *SLEEPER], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        wait_until(lambda: "up" in log.read_text())
        parent.send_signal(signal.SIGKILL)
    wait_until(lambda: not is_alive(pid))


@needs_proc
def test_the_machine_uses_at_least_what_we_use() -> None:
    """The whole is no smaller than its part (give or take a tick per core)."""
    before, ours_before_s = machine_cpu_seconds(), time.process_time()
    while (ours_s := time.process_time() - ours_before_s) < 0.2:
        sum(range(10_000))
    after = machine_cpu_seconds()
    assert before is not None
    assert after is not None
    assert after - before >= ours_s - 0.05


@needs_proc
def test_cpu_time_of_a_process_grows_as_it_works() -> None:
    """Ticks are counted, and a process that is gone makes the figure None instead of too small."""
    before = cpu_seconds_of([os.getpid()])
    assert before is not None

    def has_grown() -> bool:
        sum(range(100_000))
        after = cpu_seconds_of([os.getpid()])
        return after is not None and after >= before + 0.05

    wait_until(has_grown)
    with subprocess.Popen([sys.executable, "-S", "-c", ""]) as ended:
        ended.wait()
    assert cpu_seconds_of([os.getpid(), ended.pid]) is None
