"""Closing a stream of which some numbers are in no log: whole cells come from the owner that covers them."""

from __future__ import annotations

from geokv.core.limits import LOG_READ_BYTES_MAX
from geokv.protocol.messages import CellsFetch, CellsPage, CellsWanted, CloseAnswer, CloseAsk, CloseTell, Replicate
from geokv.protocol.requests import Outcome
from tests.node.harness import SECOND, Cluster
from tests.node.test_closing import is_closed_everywhere


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
    assert cluster.notes["close.covered_by_cells"] == 1


def test_what_is_covered_by_cells_is_so_after_a_crash() -> None:
    """The cells and the claim are in the log of the one who took them."""
    cluster, old = one_lacks([b"a"])
    cluster.is_dropped = lambda s, r, m: isinstance(m, CloseTell)
    cluster.run_until(lambda: cluster.notes.get("close.covered_by_cells", 0) == 1)
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
    cluster.run_until(lambda: cluster.notes.get("close.covered_by_cells", 0) == 1)
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
