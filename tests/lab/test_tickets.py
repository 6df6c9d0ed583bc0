"""A hundred tickets, sold in two datacenters of real nodes by buyers who want more than there are: a hundred are sold."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from geokv import Client
from geokv.errors import Ambiguous, DeadlineExceeded, GeokvError, NotEnoughRights, Overloaded, Partial, Unavailable
from geokv.lab.lab import Lab, read_topology
from geokv.lab.state import LabDirectory

pytestmark = pytest.mark.timeout(180)  # real nodes, and rights of a killed one come back once its last run is closed

TICKETS = 100
TOPOLOGY = """
cluster = "tickets"
partitions = 16

[[datacenter]]
name = "here"
replicas = 3
node = [
  { name = "here-1", rack = "a", address = "127.0.0.1:7111" },
  { name = "here-2", rack = "b", address = "127.0.0.1:7112" },
  { name = "here-3", rack = "c", address = "127.0.0.1:7113" },
]

[[datacenter]]
name = "there"
replicas = 1
node = [{ name = "there-1", rack = "a", address = "127.0.0.1:7211" }]

[[link]]
from = "here"
to = "there"
round_trip_ms = 20
"""


class Buyers:
    """Threads that buy one ticket after the other in one datacenter, until `is_enough` says so of a refusal."""

    def __init__(self, lab: Lab, dc: str, is_enough: Callable[[NotEnoughRights], bool], count: int = 4) -> None:
        self.sold = 0  # as we were told
        self.unknown = 0  # they may have got one
        self.seen: list[int] = []
        self._is_enough = is_enough
        self._lock = threading.Lock()
        self._client = Client(lab.client_addresses(dc), dc=dc)
        self._threads = [threading.Thread(target=self._buy) for _ in range(count)]

    def start(self) -> "Buyers":
        for thread in self._threads:
            thread.start()
        return self

    def join(self) -> "Buyers":
        for thread in self._threads:
            thread.join(90)
            assert not thread.is_alive(), "a buyer still buys"
        self._client.close()
        return self

    def _buy(self) -> None:
        tickets = self._client.bounded_counters("tickets")
        deadline_s = time.monotonic() + 80
        while time.monotonic() < deadline_s:
            try:
                tickets.decrement("concert", timeout=5.0)
                self._count(sold=1)
            except NotEnoughRights as refused:
                if self._is_enough(refused):
                    return
            except (Partial, Ambiguous):
                self._count(unknown=1)
            except DeadlineExceeded as error:
                self._count(unknown=int(error.may_have_happened))
            except (Unavailable, Overloaded):
                pass  # a node is gone: nothing was written
            try:
                self.seen.append(tickets.value("concert"))
            except GeokvError:
                pass  # that node is gone

    def _count(self, sold: int = 0, unknown: int = 0) -> None:
        with self._lock:
            self.sold += sold
            self.unknown += unknown


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    path = tmp_path / "tickets.toml"
    path.write_text(TOPOLOGY, encoding="utf-8")
    with Lab(read_topology(path), LabDirectory(tmp_path / "lab")) as running:
        yield running


def put_up(lab: Lab) -> None:
    """The tickets are there, and both datacenters know it."""
    with Client(list(lab.addresses("here").values()), dc="here") as kv:
        kv.create_namespace("tickets", policy="counter_bounded")
        kv.bounded_counters("tickets").increment("concert", TICKETS)
    await_value(lab, TICKETS)


def await_value(lab: Lab, value: int) -> None:
    """Both datacenters show that value within half a minute."""
    for dc in lab.topology.dc_names:
        with Client(lab.client_addresses(dc), dc=dc) as kv:
            deadline_s, shown = time.monotonic() + 30, None
            while shown != value:
                assert time.monotonic() < deadline_s, f"{dc} shows {shown}, not {value}"
                try:
                    shown = kv.bounded_counters("tickets").value("concert")
                except GeokvError:
                    time.sleep(0.1)


def test_buyers_on_both_sides_get_exactly_as_many_as_there_are(lab: Lab) -> None:
    """Rights move to whoever asks; everybody is refused in the end, and nobody saw less than none."""
    put_up(lab)
    buyers = [Buyers(lab, dc, lambda refused: refused.here == refused.elsewhere == 0).start() for dc in ("here", "there")]
    both = [one.join() for one in buyers]
    assert sum(one.sold for one in both) == TICKETS
    assert all(one.sold for one in both)
    assert min(min(one.seen) for one in both) >= 0
    await_value(lab, 0)


def test_a_cut_link_and_a_killed_node_sell_no_ticket_twice_and_lose_none(lab: Lab) -> None:
    """Both sides sell what they hold while they are cut apart; after the cut and the node's return the rest is sold."""
    put_up(lab)
    first = [Buyers(lab, dc, lambda refused: True, 2).start() for dc in ("here", "there")]
    lab.links.cut("here", "there")
    lab.nodes["here-2"].kill()
    done = [one.join() for one in first]
    lab.nodes["here-2"].start()
    lab.links.heal("here", "there")
    rest = [Buyers(lab, dc, lambda refused: refused.here == refused.elsewhere == 0).start() for dc in ("here", "there")]
    done += [one.join() for one in rest]
    sold, unknown = sum(one.sold for one in done), sum(one.unknown for one in done)
    assert sold <= TICKETS <= sold + unknown
    assert min(seen for one in done for seen in one.seen) >= 0
    await_value(lab, 0)
