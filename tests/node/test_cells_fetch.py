"""Closing a stream of which some numbers are in no log: whole cells come from the owner that covers them."""

from __future__ import annotations

from typing import Any

from geokv.core.cell import encode_lww
from geokv.core.limits import LOG_READ_BYTES_MAX
from geokv.core.quorum import Consistency
from geokv.core.record import decode_records
from geokv.protocol.cells_fetch import SCAN_KEYS_MAX
from geokv.protocol.effects import Loaded
from geokv.protocol.messages import (
    CellsFetch,
    CellsPage,
    CellsWanted,
    CloseAnswer,
    CloseAsk,
    CloseTell,
    FeedBatch,
    Replicate,
)
from geokv.protocol.requests import Outcome
from geokv.protocol.streams import Stream
from geokv.storage.lsm.engine import LsmOptions
from tests.node.harness import SECOND, Cluster
from tests.node.test_closing import is_closed_everywhere
from tests.node.test_upkeep import flushed


def one_lacks(keys: list[bytes], value: bytes = b"v") -> tuple[Cluster, bytes]:
    """dc1-3 lacks what dc1-1 wrote and dc1-2 holds; dc1-1 comes back as its own closer, and no log holds it any more."""
    cluster = Cluster(partitions=1).start().serving()
    cluster.room("dc1-1", 1 << 30)
    cluster.room("dc1-2", 1 << 30)
    cluster.is_dropped = lambda s, r, m: isinstance(m, Replicate) and r == "dc1-3"
    call = cluster.write("dc1-1", dict.fromkeys(keys, value))
    cluster.settle()
    assert cluster.reply("dc1-1", call).outcomes == [Outcome.APPLIED] * len(keys)
    old = cluster.nodes["dc1-1"].origin.packed()
    cluster.crash("dc1-1")
    cluster.is_dropped = lambda s, r, m: False
    cluster.is_held = lambda s, r, m: isinstance(m, CloseAnswer)
    for name in cluster.nodes:
        forget_places(cluster, name)
    cluster.start("dc1-1")
    cluster.settle()
    cluster.held.clear()  # the answers are made anew, when no log holds anything
    cluster.is_held = lambda s, r, m: False
    for name in cluster.nodes:
        forget_places(cluster, name)
    return cluster, old


def forget_places(cluster: Cluster, name: str) -> None:
    for stream in cluster.streams(name).values():
        stream.drop_places(1 << 20)


def test_cells_come_from_the_owner_that_covers_what_no_log_holds() -> None:
    """The closing ends, the owner that lacked the record has its cell, and its frontier says so."""
    cluster, old = one_lacks([b"a", b"b"])
    cluster.run_until(lambda: is_closed_everywhere(cluster, old))
    assert cluster.are_equal()
    assert len(cluster.messages(CellsPage)) == 1
    assert cluster.notes["cells.covered"] == 1


def test_what_is_covered_by_cells_is_so_after_a_crash() -> None:
    """The cells and the claim are in the log of the one who took them."""
    cluster, old = one_lacks([b"a"])
    cluster.is_dropped = lambda s, r, m: isinstance(m, CloseTell)
    cluster.run_until(lambda: cluster.notes.get("cells.covered", 0) == 1)
    cluster.restart("dc1-3")
    stream = cluster.streams("dc1-3")[0, old]
    assert (stream.frontier, stream.received) == (1, 1)
    assert cluster.cells("dc1-3").keys() == {b"a"}
    cluster.is_dropped = lambda s, r, m: False
    cluster.run_until(lambda: is_closed_everywhere(cluster, old))
    assert cluster.are_equal()


def test_many_cells_come_in_pages() -> None:
    """No page is larger than a read of the log; a page that is lost is asked for again."""
    cluster, old = one_lacks([b"k%03d" % at for at in range(150)], bytes(9_000))
    lost = cluster.lose_one(lambda message: isinstance(message, CellsPage) and bool(message.after))
    cluster.run_until(lambda: is_closed_everywhere(cluster, old), 60 * SECOND)
    assert lost
    assert cluster.are_equal()
    assert max(len(page.records) for page in cluster.messages(CellsPage)) <= LOG_READ_BYTES_MAX


def test_the_closer_itself_takes_cells_where_it_is_the_one_who_lacks_them() -> None:
    """A run that is closed by a node which never had its records: that node takes the cells too."""
    cluster = Cluster(partitions=1).start().serving()
    cluster.is_dropped = lambda s, r, m: isinstance(m, Replicate) and r == "dc1-3"
    cluster.put("dc1-1", b"k", b"v")
    old = cluster.nodes["dc1-1"].origin.packed()
    cluster.crash("dc1-1")
    cluster.is_dropped = lambda s, r, m: isinstance(m, CloseAsk) and s == "dc1-1"
    cluster.is_held = lambda s, r, m: isinstance(m, CloseAnswer)
    cluster.start("dc1-1")
    cluster.admin("dc1-3", "close_node", node="dc1-1")
    for name in cluster.nodes:
        forget_places(cluster, name)
    cluster.held.clear()
    cluster.is_held = lambda s, r, m: False
    cluster.run_until(lambda: cluster.notes.get("cells.covered", 0) == 1)
    cluster.is_dropped = lambda s, r, m: False
    cluster.run_until(lambda: is_closed_everywhere(cluster, old), 60 * SECOND)
    assert cluster.are_equal()
    assert cluster.messages(CellsWanted, "dc1-3")


def test_a_doubled_or_foreign_page_changes_nothing() -> None:
    """Pages that were not asked for, or come twice, are not taken for more than they are."""
    cluster, old = one_lacks([b"a", b"b"])
    cluster.is_doubled = lambda s, r, m: isinstance(m, CellsPage | CellsFetch | CellsWanted)
    cluster.run_until(lambda: is_closed_everywhere(cluster, old))
    assert cluster.are_equal()
    (stream,) = [stream for name, stream in cluster.streams("dc1-3").items() if name[1] == old] or [None]
    assert stream is None or stream.frontier == 2


def test_another_datacenter_gets_as_cells_what_no_log_holds() -> None:
    """The feed finds the hole and tells it; one owner over there fetches cells, its co-owners fetch them from it."""
    cluster = Cluster(datacenters=2, partitions=1).start().serving()
    loses = (FeedBatch, Replicate)
    cluster.is_dropped = lambda s, r, m: isinstance(m, loses) and (r == "dc1-3" or isinstance(m, FeedBatch))
    cluster.put("dc1-1", b"k", b"v")
    old = cluster.nodes["dc1-1"].origin.packed()
    cluster.crash("dc1-1")
    cluster.is_held = lambda s, r, m: isinstance(m, CloseAnswer)
    for name in cluster.nodes:
        forget_places(cluster, name)
    cluster.start("dc1-1")
    cluster.settle()
    cluster.held.clear()
    cluster.is_held = lambda s, r, m: False
    for name in cluster.nodes:
        forget_places(cluster, name)
    cluster.is_dropped = lambda s, r, m: False
    cluster.run_until(lambda: is_closed_everywhere(cluster, old), 60 * SECOND)
    assert cluster.are_equal()
    assert cluster.messages(CellsFetch) or cluster.messages(CellsWanted)
    assert cluster.notes["cells.covered"] >= 4  # dc1-3 and all of the other datacenter
    assert not any(run.waiting for run in cluster.nodes["dc1-1"].runs)


def frontier(cluster: Cluster, name: str, stream: tuple[int, bytes]) -> int:
    found = cluster.streams(name).get(stream)
    return found.frontier if found is not None else 0


def test_a_hole_in_a_running_stream_is_filled_with_cells() -> None:
    """No closing is needed: the origin's log lacks what another datacenter has never seen."""
    cluster = Cluster(datacenters=2, partitions=1).start().serving()
    cluster.is_dropped = lambda s, r, m: isinstance(m, FeedBatch)
    cluster.put("dc1-1", b"k", b"v")
    stream = (0, cluster.nodes["dc1-1"].origin.packed())
    for name in ("dc1-1", "dc1-2", "dc1-3"):
        forget_places(cluster, name)
    cluster.is_dropped = lambda s, r, m: isinstance(m, CellsPage)
    cluster.run(2 * SECOND)
    (link,) = [n.assembly.receiver.shipping["dc1-1"] for n in cluster.nodes.values() if "dc1-1" in n.assembly.receiver.shipping]
    assert link.behind == {0: 0}  # a later heartbeat promises nothing about what is missing
    cluster.is_dropped = lambda s, r, m: False
    cluster.run_until(lambda: all(frontier(cluster, f"dc2-{n}", stream) == 1 for n in (1, 2, 3)), 60 * SECOND)
    assert cluster.are_equal()
    over_the_wan = {s for s, r, m in cluster.sent if isinstance(m, CellsWanted) and r == "dc1-1"}
    assert len(over_the_wan) == 1  # its co-owners have them from that one


def test_a_hole_that_a_co_owner_can_fill_costs_no_cells_over_the_wan() -> None:
    """A new receiver that lacks what the old one had taken in catches up inside its datacenter."""
    cluster = Cluster(datacenters=2, partitions=1).start().serving()
    there = ["dc2-1", "dc2-2", "dc2-3"]
    at = next(at for at, n in enumerate(there) if "dc1-1" in cluster.nodes[n].assembly.receiver.shipping)
    receiver, lacking = there[at], there[(at + 1) % 3]
    cluster.is_dropped = lambda s, r, m: r == lacking and isinstance(m, Replicate | FeedBatch)
    cluster.put("dc1-1", b"k", b"v", Consistency.EACH_QUORUM)
    stream = (0, cluster.nodes["dc1-1"].origin.packed())
    assert frontier(cluster, lacking, stream) == 0
    for name in ("dc1-1", "dc1-2", "dc1-3"):
        forget_places(cluster, name)
    cluster.crash(receiver)
    cluster.is_dropped = lambda s, r, m: False
    cluster.run_until(lambda: frontier(cluster, lacking, stream) == 1, 60 * SECOND)
    assert "dc1-1" in cluster.nodes[lacking].assembly.receiver.shipping
    assert not cluster.messages(CellsWanted)


def test_a_log_that_cannot_be_read_holds_up_one_stream_alone() -> None:
    """A feed reads one by one what it could not read at once, and tells of what cannot be read: it comes as cells."""
    cluster = Cluster(datacenters=2, partitions=2).start().serving()
    cluster.is_dropped = lambda s, r, m: isinstance(m, FeedBatch)
    for at in range(8):
        cluster.put("dc1-1", b"k%d" % at, b"v")
    first = min(s.place(1) for s in cluster.streams("dc1-1").values() if s.place(1))
    disk = cluster.disks["dc1-1"]
    read = disk.read
    disk.read = lambda places: None if first in places else read(places)  # type: ignore[method-assign]
    cluster.run(3 * SECOND)
    cluster.is_dropped = lambda s, r, m: False
    cluster.run_until(lambda: len(cluster.cells("dc2-1")) == len(cluster.cells("dc2-2")) == 8, 60 * SECOND)
    assert cluster.notes["feed.log_unreadable"] >= 1
    assert cluster.are_equal()


def test_keys_are_listed_in_steps_and_once() -> None:
    """A large namespace is looked at in steps, with other work between them, and not again for every page."""
    cluster, old = one_lacks([b"k%03d" % at for at in range(400)], bytes(9_000))
    steps: list[bool] = []
    for name in ("dc1-1", "dc1-2"):
        giver = cluster.nodes[name].assembly
        table = next(iter(giver.context.tables.values()))
        others = (b"other-%06d" % at for at in range(2 * SCAN_KEYS_MAX))
        table.cells.update(dict.fromkeys(others, encode_lww(1, old, 1, False, 0, 0, b"")))
        is_listing, tick = giver.closings.cells.wake_at_us, giver.closings.cells.tick

        def counted(is_listing: Any = is_listing, tick: Any = tick) -> None:
            steps.append(is_listing() is not None)
            tick()

        giver.closings.cells.tick = counted  # type: ignore[method-assign]
    cluster.run_until(lambda: is_closed_everywhere(cluster, old), 120 * SECOND)
    pages = cluster.messages(CellsPage)
    assert len(pages) > 2
    assert sum(steps) == 2  # after the first SCAN_KEYS_MAX, and the second


def test_a_jump_over_many_numbers_costs_no_index() -> None:
    """What cells cover far above the log's places does not stretch the index of places."""
    stream = Stream(1, 0, b"o")
    for number in (1, 2, 3):
        assert stream.take(number)
        stream.synced(number, 0, number * 100, 50)
    stream.cover(1_000_000)
    assert stream.take(1_000_001)
    stream.synced(1_000_001, 0, 900, 50)
    assert (stream.frontier, len(stream.places), stream.place(1_000_001)) == (1_000_001, 1, (0, 900, 50))
    assert stream.log_from() == 1_000_001


def giver_with_tables() -> tuple[Cluster, CellsWanted]:
    """dc1-1 has fifty cells on its disk only and caches nothing; what a peer asks for to get them."""
    cluster = Cluster(partitions=1)
    cluster.disks["dc1-1"].options = LsmOptions(block_cache_bytes=0, row_cache_bytes=0)
    cluster.start().serving()
    for at in range(50):
        cluster.put("dc1-1", b"k%03d" % at, bytes(50), Consistency.ALL)
    flushed(cluster, "dc1-1")
    stream = next(stream for stream in cluster.streams("dc1-1").values() if stream.frontier)
    return cluster, CellsWanted(7, stream.namespace, stream.partition, stream.origin, b"")


def test_a_giver_whose_keys_cannot_be_listed_says_so_and_goes_on() -> None:
    """One damaged block does not end its run; once it can be read it gives the cells."""
    cluster, wanted = giver_with_tables()
    cluster.disks["dc1-1"].folder.fail("read_at", name=".sst")
    cluster.give_message("dc1-2", "dc1-1", wanted)
    cluster.run(SECOND)
    assert cluster.notes["cells.unreadable"] == 1 and not cluster.messages(CellsPage)
    assert any("cells that dc1-2 wants cannot be read: " in effect.text for name, effect in cluster.logs if name == "dc1-1")
    cluster.give_message("dc1-2", "dc1-1", wanted)
    cluster.run(SECOND)
    (page,) = cluster.messages(CellsPage)
    assert len(list(decode_records(page.records))) == 50


def test_a_giver_whose_cells_went_after_they_were_loaded_says_so_and_goes_on() -> None:
    """The cache has let go of them and the disk does not read any more: no page, no end of the run."""
    cluster, wanted = giver_with_tables()
    cluster.slow_loads.add("dc1-1")
    cluster.give_message("dc1-2", "dc1-1", wanted)
    cluster.run_until(lambda: bool(cluster.loading))
    ((name, effect),) = cluster.loading
    cluster.loading.clear()
    cluster.disks["dc1-1"].folder.fail("read_at", name=".sst", times=-1)
    cluster.give(name, Loaded(effect.token, [""]))
    cluster.run(SECOND)
    assert cluster.notes["cells.unreadable"] == 1 and not cluster.messages(CellsPage)
    assert cluster.put("dc1-1", b"new", b"v").outcomes == [Outcome.APPLIED]
