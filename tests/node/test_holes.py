"""Holes in logs, when messages are late, lost or overtaken, peers are gone, disks are full, and many want cells at once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from geokv.core.cell import encode_lww
from geokv.core.quorum import Consistency
from geokv.core.record import DELTA, NO_OPERATION, encode_record
from geokv.core.ring import key_hash
from geokv.protocol import cells_fetch, control
from geokv.protocol.effects import Delivered
from geokv.protocol.messages import (
    Accept,
    CellsPage,
    CellsWanted,
    Chosen,
    CloseAnswer,
    CloseTell,
    Definitions,
    FeedBatch,
    FeedHoles,
    FeedOpen,
    ItemsCopied,
    Prepare,
    Replicate,
    Replicated,
    StreamHeads,
)
from geokv.protocol.requests import Outcome
from tests.node.harness import MS, SECOND, Cluster
from tests.node.test_cells_fetch import frontier
from tests.node.test_closing import is_closed_everywhere

THERE = ("dc2-1", "dc2-2", "dc2-3")
PAGE_BYTES = 1_000  # instead of a read of the log: some ten cells


def is_page(sender: str, receiver: str, message: object) -> bool:
    return isinstance(message, CellsPage)


def nothing(sender: str, receiver: str, message: object) -> bool:
    return False


def keys_of(count: int, prefix: bytes = b"k") -> list[bytes]:
    return [prefix + b"%04d" % at for at in range(count)]


def write_all(cluster: Cluster, name: str, keys: Iterable[bytes], value: bytes = b"v", namespace: str = "default") -> None:
    call = cluster.write(name, dict.fromkeys(keys, value), namespace=namespace)
    cluster.run_until(lambda: cluster.reply(name, call) is not None)
    assert set(cluster.reply(name, call).outcomes) == {Outcome.APPLIED}


def forget_logs(cluster: Cluster, dc: str = "dc1") -> None:
    """No log of that datacenter holds anything of what it covers."""
    for name, node in cluster.nodes.items():
        for table in node.assembly.context.tables.values() if name.startswith(dc) else ():
            for stream in table.streams:
                stream.drop_places(1 << 20)


def hole(
    keys: Iterable[bytes] = (b"k",), value: bytes = b"v", partitions: int = 1, senders: tuple[str, ...] = ("dc1-1",)
) -> tuple[Cluster, bytes]:
    """dc2 has seen nothing of what the senders wrote, and no log holds it; dc2 is still cut off from their batches."""
    datacenters = len({name[:3] for name in senders} | {"dc2"})
    cluster = Cluster(datacenters=datacenters, partitions=partitions).start().serving()
    cluster.is_dropped = lambda s, r, m: isinstance(m, FeedBatch) and r in THERE
    for sender in senders:
        write_all(cluster, sender, keys, value)
        forget_logs(cluster, sender[:3])
    return cluster, cluster.nodes[senders[0]].origin.packed()


def receiver_of(cluster: Cluster, sender: str = "dc1-1") -> str:
    return next(name for name in THERE if name in cluster.nodes and sender in cluster.nodes[name].assembly.receiver.shipping)


# --- what is told of a hole -----------------------------------------------------------------------------------------------


def test_status_tells_of_a_hole_for_as_long_as_it_stands() -> None:
    """However long the cells take, their partition is behind and the data are as old as they are."""
    cluster, _ = hole()
    cluster.is_dropped = is_page
    for seconds in range(2, 14, 2):
        cluster.run(2 * SECOND)
        incoming = cluster.nodes[receiver_of(cluster)].status()["incoming"]["dc1-1"]
        assert incoming["partitions_behind"] == 1
        assert incoming["staleness_ms"] >= seconds * 1000


def test_a_hole_of_which_the_word_was_lost_is_told_again() -> None:
    """Nothing else would tell of it where the stream gets no more records."""
    cluster, old = hole()
    lost = cluster.lose_one(lambda message: isinstance(message, FeedHoles))
    cluster.run_until(lambda: all(frontier(cluster, name, (0, old)) == 1 for name in THERE), 60 * SECOND)
    assert lost
    assert cluster.are_equal()


def test_writes_to_a_stream_with_a_hole_do_not_tell_it_each_time() -> None:
    """A place that cannot be read is tried, logged and told once in a while, not with every frame."""
    cluster = Cluster(datacenters=2, partitions=1).start().serving()
    cluster.is_dropped = lambda s, r, m: isinstance(m, FeedBatch)
    cluster.put("dc1-1", b"k", b"v")
    bad = cluster.streams("dc1-1")[0, cluster.nodes["dc1-1"].origin.packed()].place(1)
    disk = cluster.disks["dc1-1"]
    read = disk.read
    disk.read = lambda places: None if bad in places else read(places)  # type: ignore[method-assign]
    cluster.is_dropped = is_page
    cluster.run(4 * SECOND)
    tried, told = cluster.notes["feed.log_unreadable"], len(cluster.messages(FeedHoles))
    assert tried and told
    for _ in range(100):
        cluster.put("dc1-1", b"k", b"w")
    assert cluster.notes["feed.log_unreadable"] - tried <= 2
    assert len(cluster.messages(FeedHoles)) - told <= 2


def test_nothing_is_sent_beyond_a_hole_before_it_is_filled() -> None:
    """The receiver could not take it, so it would be sent again with every opening."""
    cluster, old = hole(keys_of(3))
    write_all(cluster, "dc1-1", keys_of(5, b"x"))
    cluster.is_dropped = is_page
    sender = cluster.nodes["dc1-1"].assembly.sender
    sent = sender.records
    cluster.run(15 * SECOND)
    assert sender.records == sent
    cluster.is_dropped = nothing
    cluster.run_until(lambda: frontier(cluster, receiver_of(cluster), (0, old)) == 8, 60 * SECOND)


def test_a_lost_batch_is_asked_for_at_once_while_a_hole_stands() -> None:
    """A hole in one partition slows no other one."""
    cluster = Cluster(datacenters=2, partitions=2).start().serving()
    cluster.is_dropped = lambda s, r, m: isinstance(m, FeedBatch)
    write_all(cluster, "dc1-1", keys_of(8))
    for name in ("dc1-1", "dc1-2", "dc1-3"):
        next(stream for (partition, _), stream in cluster.streams(name).items() if partition == 0).drop_places(1 << 20)
    cluster.is_dropped = is_page
    cluster.run(10 * SECOND)
    there = receiver_of(cluster)
    for key in [key for key in keys_of(20, b"w") if key_hash(key) >> 63 == 1][:5]:
        cluster.run(730 * MS)
        lost: list[object] = []

        def is_dropped(sender: str, receiver: str, message: object, lost: list[object] = lost) -> bool:
            if not lost and sender == "dc1-1" and isinstance(message, FeedBatch) and message.payload:
                lost.append(message)
                return True
            return is_page(sender, receiver, message)

        cluster.is_dropped = is_dropped
        cluster.put("dc1-1", key, b"v")
        cluster.put("dc1-1", key, b"w")
        newest = cluster.cells("dc1-1")[key]
        cluster.run_until(lambda key=key, newest=newest: cluster.cells(there).get(key) == newest, 500 * MS)
        assert lost


# --- who fills it ---------------------------------------------------------------------------------------------------------


def test_a_co_owner_that_is_gone_is_not_waited_for() -> None:
    """It stated that it had what is missing, and crashed: the others fetch cells from the sender."""
    cluster = Cluster(datacenters=2, partitions=1).start().serving()
    had = receiver_of(cluster)
    others = [name for name in THERE if name != had]
    cluster.is_dropped = lambda s, r, m: (
        (r in others and isinstance(m, Replicate | FeedBatch)) or (s in others and isinstance(m, FeedOpen))
    )
    cluster.put("dc1-1", b"k", b"v")
    cluster.run(3 * SECOND)
    stream = (0, cluster.nodes["dc1-1"].origin.packed())
    assert [frontier(cluster, name, stream) for name in (had, *others)] == [1, 0, 0]
    forget_logs(cluster)
    cluster.crash(had)
    cluster.is_dropped = nothing
    cluster.run_until(lambda: all(frontier(cluster, name, stream) == 1 for name in others), 60 * SECOND)
    assert cluster.get(others[0], b"k").values == [b"v"]


def test_the_next_hole_of_a_stream_waits_for_co_owners_too() -> None:
    """A hole that came in another way is forgotten: the next one begins with a time of its own."""
    cluster = Cluster(datacenters=2, partitions=1).start().serving()
    there = receiver_of(cluster)
    cluster.is_dropped = lambda s, r, m: isinstance(m, FeedBatch)
    cluster.put("dc1-1", b"a", b"v")
    old = cluster.nodes["dc1-1"].origin.packed()
    link = cluster.nodes[there].assembly.receiver.shipping["dc1-1"]
    namespace = cluster.streams("dc1-1")[0, old].namespace
    cluster.give(there, Delivered("dc1-1", FeedHoles(link.feed, [StreamHeads(namespace, old, [0], [1])])))
    cluster.is_dropped = nothing
    cluster.run_until(lambda: frontier(cluster, there, (0, old)) == 1)  # its log could bring it after all
    cluster.run(10 * SECOND)
    cluster.is_dropped = lambda s, r, m: isinstance(m, FeedBatch)
    cluster.put("dc1-1", b"b", b"v")
    forget_logs(cluster)
    cluster.is_dropped = nothing
    cluster.run_until(lambda: bool(cluster.messages(FeedHoles)))
    told_us = cluster.now_us
    cluster.run_until(lambda: bool(cluster.messages(CellsWanted)))
    assert cluster.now_us - told_us >= 2900 * MS


def test_what_a_promise_refuses_opens_no_feed_anew() -> None:
    """A closing that waits for a datacenter stands in the way of that hole, and of nothing else."""
    cluster = Cluster(datacenters=3, partitions=1).start().serving()
    cluster.is_dropped = lambda s, r, m: isinstance(m, FeedBatch) and r in THERE
    cluster.put("dc1-1", b"k", b"v")
    old = cluster.nodes["dc1-1"].origin.packed()
    for name in ("dc3-1", "dc3-2", "dc3-3", "dc1-1"):
        cluster.crash(name)
    cluster.start("dc1-1")
    forget_logs(cluster)
    cluster.is_dropped = nothing
    cluster.run(10 * SECOND)
    there = receiver_of(cluster)
    assert cluster.streams(there)[0, old].is_refused
    opened = len(cluster.messages(FeedOpen, there, "dc1-1"))
    cluster.run(15 * SECOND)
    assert len(cluster.messages(FeedOpen, there, "dc1-1")) == opened


# --- pages ----------------------------------------------------------------------------------------------------------------


def test_a_page_that_was_late_does_not_multiply_those_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was asked for several times, and comes as often: each later page is asked for once."""
    monkeypatch.setattr(cells_fetch, "LOG_READ_BYTES_MAX", PAGE_BYTES)
    cluster, old = hole(keys_of(40))
    cluster.is_dropped, cluster.is_held = nothing, is_page
    cluster.run(20 * SECOND)
    giver, there, _ = cluster.held[0]
    assert len(cluster.held) > 3
    cluster.release()
    cluster.run_until(lambda: frontier(cluster, there, (0, old)) == 40, 60 * SECOND)
    later = [page.after for page in cluster.messages(CellsPage, giver, there) if page.after]
    assert len(set(later)) == len(later) >= 3


def test_a_page_that_was_overtaken_claims_nothing_for_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two first pages, of two lists, come in the wrong order: what was written between the lists is not skipped."""
    monkeypatch.setattr(cells_fetch, "LOG_READ_BYTES_MAX", PAGE_BYTES)
    cluster, old = hole(keys_of(40))
    cluster.is_held = is_page
    cluster.run_until(lambda: len(cluster.held) == 1)
    giver, there, first = cluster.held[0]
    write_all(cluster, giver, keys_of(5, b"a"))  # the next list's first page ends earlier
    write_all(cluster, giver, keys_of(40), b"new")
    forget_logs(cluster)
    cluster.run_until(lambda: len(cluster.held) == 2)
    second = cluster.held[1][2]
    assert isinstance(first, CellsPage) and isinstance(second, CellsPage)
    assert (first.frontier, second.frontier) == (40, 85)
    cluster.held.reverse()
    cluster.slow_disks.add(there)
    cluster.release()
    cluster.settle()  # both came while the first was on its way to the disk
    cluster.slow_disks.clear()
    cluster.is_held = is_page  # a round trip takes longer than a sync
    cluster.settle()
    cluster.release()
    cluster.is_dropped = nothing
    cluster.run_until(lambda: frontier(cluster, there, (0, old)) == 85, 60 * SECOND)
    assert cluster.cells(there) == cluster.cells(giver)


def test_a_list_that_takes_long_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks again while it is made does not begin it anew: the first page comes."""
    monkeypatch.setattr(cells_fetch, "SCAN_KEYS_MAX", 10)
    cluster, old = hole()
    for name in ("dc1-1", "dc1-2", "dc1-3"):
        assembly = cluster.nodes[name].assembly
        table = next(iter(assembly.context.tables.values()))
        table.cells.update(dict.fromkeys(keys_of(4_000, b"x"), encode_lww(1, old, 1, False, 0, 0, b"")))
        cells = assembly.closings.cells

        def slow_tick(is_listing: Any = cells.wake_at_us, tick: Any = cells.tick) -> None:
            if is_listing() is not None:
                cluster.now_us += 20 * MS  # a step on a busy node: the list takes 8 s
            tick()

        cells.tick = slow_tick  # type: ignore[method-assign]
    cluster.is_dropped = nothing
    cluster.run_until(lambda: bool(cluster.messages(CellsPage)), 30 * SECOND)
    assert len(cluster.messages(CellsWanted)) >= 2


def test_a_fetch_goes_on_where_the_log_had_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """A partition larger than the free room comes in as room is made, page by page, not from the first key each time."""
    monkeypatch.setattr(cells_fetch, "LOG_READ_BYTES_MAX", PAGE_BYTES)
    cluster, old = hole(keys_of(40))
    cluster.is_dropped = nothing
    cluster.is_held = lambda s, r, m: isinstance(m, CellsPage) and bool(m.after)
    cluster.run_until(lambda: bool(cluster.held))
    giver, there, _ = cluster.held[0]
    cluster.room(there, 0, "the disk is full")
    cluster.release()
    cluster.run(5 * SECOND)
    assert frontier(cluster, there, (0, old)) == 0
    cluster.room(there, 32 << 20)
    cluster.run_until(lambda: frontier(cluster, there, (0, old)) == 40, 60 * SECOND)
    assert [wanted.after for wanted in cluster.messages(CellsWanted, there, giver)].count(b"") == 1


def test_pages_of_a_namespace_that_is_not_known_yet_make_no_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its definition comes between two pages: what the first one brought was dropped, so the last one claims nothing."""
    monkeypatch.setattr(cells_fetch, "LOG_READ_BYTES_MAX", PAGE_BYTES)
    cluster = Cluster(partitions=1).start().serving()
    definition = (Prepare, Accept, Chosen, ItemsCopied, Definitions)
    cluster.is_dropped = lambda s, r, m: r == "dc1-3" and isinstance(m, definition)
    cluster.admin("dc1-1", "namespace_create", name="n")
    write_all(cluster, "dc1-1", keys_of(40), namespace="n")
    old = cluster.nodes["dc1-1"].origin.packed()
    cluster.crash("dc1-1")
    cluster.is_held = lambda s, r, m: isinstance(m, CloseAnswer)
    forget_logs(cluster)
    cluster.start("dc1-1").settle()
    cluster.held.clear()  # the answers are made anew, when no log holds anything
    cluster.is_held = lambda s, r, m: isinstance(m, CellsPage) and bool(m.after)
    forget_logs(cluster)
    cluster.run(20 * SECOND)
    assert cluster.nodes["dc1-3"].assembly.table_named("n") is None
    cluster.is_dropped = nothing
    cluster.run_until(lambda: cluster.nodes["dc1-3"].assembly.table_named("n") is not None, 60 * SECOND)
    cluster.release()
    cluster.run_until(lambda: is_closed_everywhere(cluster, old), 60 * SECOND)
    assert len(cluster.cells("dc1-3", "n")) == 40
    assert cluster.are_equal("n")


# --- many at once ---------------------------------------------------------------------------------------------------------


def test_fetches_that_do_not_end_let_others_go_first() -> None:
    """As many as there may be at a time are stuck for whatever reason: the holes behind them are filled."""
    cluster, old = hole(keys_of(80), partitions=8)
    cluster.is_dropped = lambda s, r, m: isinstance(m, CellsPage) and m.partition < cells_fetch.FETCHES_MAX
    there = receiver_of(cluster)
    cluster.run_until(lambda: all(frontier(cluster, there, (at, old)) for at in range(4, 8)), 60 * SECOND)
    assert not any(frontier(cluster, there, (at, old)) for at in range(4))
    cluster.is_dropped = nothing
    cluster.run_until(lambda: all(frontier(cluster, there, (at, old)) for at in range(8)), 90 * SECOND)


def test_slow_pages_of_two_senders_come_to_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """More holes than fetches, and each page slower than a fetch is patient: none of them pushes another one out."""
    monkeypatch.setattr(cells_fetch, "LOG_READ_BYTES_MAX", PAGE_BYTES)
    senders = ("dc1-1", "dc3-1")
    cluster, _ = hole(keys_of(160), partitions=8, senders=senders)
    cluster.is_dropped = nothing
    late: list[tuple[int, str, str, object]] = []

    def is_held(sender: str, receiver: str, message: object) -> bool:
        if is_page(sender, receiver, message) and sender[:3] != receiver[:3]:
            late.append((cluster.now_us + 2500 * MS, sender, receiver, message))
            return True
        return False

    def has_all() -> bool:
        while late and late[0][0] <= cluster.now_us:
            _, sender, receiver, message = late.pop(0)
            cluster.give(receiver, Delivered(sender, message))
        streams = [(s, at, cluster.nodes[s].origin.packed()) for s in senders for at in range(8)]
        return all(
            any(frontier(cluster, name, (at, origin)) == frontier(cluster, s, (at, origin)) for name in THERE)
            for s, at, origin in streams
        )

    cluster.is_held = is_held
    cluster.run_until(has_all, 120 * SECOND)


# --- feeds that are opened anew, as each filled hole has them -------------------------------------------------------------


def test_what_came_over_a_feed_is_acknowledged_before_it_is_opened_anew() -> None:
    """An acknowledgement that waits for company leaves at once: EACH_QUORUM writes do not wait for `covered`."""
    cluster = Cluster(datacenters=2, partitions=1).start().serving()
    cluster.run(5 * SECOND)
    call = cluster.write("dc1-1", {b"k": b"v"}, Consistency.EACH_QUORUM)
    cluster.run(MS)
    assert cluster.cells(receiver_of(cluster)).keys() == {b"k"}
    assert cluster.reply("dc1-1", call) is None
    cluster.nodes[receiver_of(cluster)].assembly.receiver.reopen("tested", "dc1-1")
    cluster.run(MS)
    assert cluster.reply("dc1-1", call).outcomes == [Outcome.APPLIED]


def test_a_feed_that_is_opened_anew_all_the_time_still_tells_what_is_covered() -> None:
    """A quorum that came about after the feed of its batch is told of within a second or two."""
    cluster = Cluster(datacenters=2, partitions=1).start().serving()
    cluster.run(5 * SECOND)
    there = receiver_of(cluster)
    cluster.is_held = lambda s, r, m: isinstance(m, Replicated) and r == there and s in THERE
    call = cluster.write("dc1-1", {b"k": b"v"}, Consistency.EACH_QUORUM)
    cluster.run(100 * MS)
    assert cluster.held
    for _ in range(4):
        cluster.nodes[there].assembly.receiver.reopen("tested", "dc1-1")
        cluster.run(MS)
        cluster.release()
        cluster.run(499 * MS)
    assert cluster.reply("dc1-1", call).outcomes == [Outcome.APPLIED]


# --- around it ------------------------------------------------------------------------------------------------------------


def test_a_closing_that_is_done_waits_for_nobody() -> None:
    """Status names who is waited for, and no longer than that."""
    cluster = Cluster(partitions=1).start().serving()
    cluster.put("dc1-1", b"k", b"v")
    cluster.is_dropped = lambda s, r, m: isinstance(m, CloseTell) and r == "dc1-3"
    cluster.restart("dc1-1")

    def closings() -> list[tuple[bool, str]]:
        return [(run["is_done"], run["waiting"]) for run in cluster.nodes["dc1-1"].status()["closing"]]

    cluster.run_until(lambda: any("dc1-3" in waiting for _, waiting in closings()), 60 * SECOND)
    cluster.is_dropped = nothing
    cluster.run_until(lambda: all(is_done for is_done, _ in closings()), 60 * SECOND)
    cluster.run(SECOND)
    assert closings() == [(True, "")]


def test_what_cells_cover_costs_no_index_after_a_restart() -> None:
    """A checkpoint's frontier stands far above the first records' places: the next record stretches nothing between."""
    cluster = Cluster(partitions=1, memtable_bytes=50_000).start().serving()
    for key in (b"a", b"b", b"c"):
        cluster.put("dc1-1", key, b"v")
    old = cluster.nodes["dc1-1"].origin.packed()
    stream = cluster.streams("dc1-3")[0, old]
    covered = 1_000_000
    note = [stream.namespace, 0, old, covered]
    cluster.nodes["dc1-3"].log_control(control.COVERED, note, lambda: stream.cover(covered))
    cluster.run(SECOND)
    write_all(cluster, "dc1-2", keys_of(20), bytes(9_000))
    cluster.run_until(lambda: cluster.disks["dc1-3"].is_flushed)
    cluster.cut("dc1-1", "dc1-3")
    cluster.cut("dc1-2", "dc1-3")
    cluster.restart("dc1-3")
    cluster.settle()
    stream = cluster.streams("dc1-3")[0, old]
    assert (stream.frontier, len(stream.places)) == (covered, 3)
    cell = encode_lww(1, old, 1, False, 0, 0, b"")
    record = encode_record(DELTA, 0, stream.namespace, covered + 1, 0, NO_OPERATION, old, b"z", cell)
    cluster.give("dc1-3", Delivered("dc1-2", Replicate(1, record)))
    cluster.settle()
    assert (stream.frontier, len(stream.places)) == (covered + 1, 1)
