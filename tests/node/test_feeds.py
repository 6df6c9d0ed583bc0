"""Cursors: shipping between datacenters and catching up inside one, under lost, doubled, reordered and damaged messages."""

from __future__ import annotations

import pytest
import zstandard

from geokv.core.limits import FEED_PARTITION_BYTES, FEED_WINDOW_BYTES, WAN_BATCH_RAW_BYTES_MAX
from geokv.core.quorum import Consistency
from geokv.core.record import DELTA, NO_OPERATION, encode_record
from geokv.core.ring import key_hash
from geokv.errors import RecordError
from geokv.protocol.effects import Delivered
from geokv.protocol.feed_receiver import SILENT_US_MAX, decompress
from geokv.protocol.messages import FeedAck, FeedBatch, FeedClose, FeedOpen, Replicate, Replicated
from geokv.protocol.requests import Outcome
from tests.node.harness import MS, SECOND, Cluster


def keys_of_partition(cluster: Cluster, partition: int, count: int) -> list[bytes]:
    """Keys that hash into one partition."""
    shift = next(iter(cluster.nodes.values())).assembly.placement.shift
    return [key for key in (b"key-%d" % at for at in range(100_000)) if key_hash(key) >> shift == partition][:count]


def two_by_one() -> Cluster:
    """Two datacenters of one node each: one feed each way, nothing else."""
    return Cluster(datacenters=2, nodes=1, replicas=1).start().serving().run(SECOND)


def covered(cluster: Cluster, node: str, dc: str) -> dict[tuple[int, bytes], int]:
    """Per own stream, up to which number that datacenter is known to cover it."""
    return {name: stream.dcs.get(dc, 0) for name, stream in cluster.streams(node).items()}


def assert_claims_are_true(cluster: Cluster, sender: str, receivers: list[str], quorum: int) -> None:
    """What the sender believes the other datacenter covers, a quorum of its owners does cover."""
    for name, number in covered(cluster, sender, cluster.dc_of[receivers[0]]).items():
        has = [s.frontier if (s := cluster.streams(node).get(name)) is not None else 0 for node in receivers]
        assert sum(frontier >= number for frontier in has) >= quorum, (name, number, has)


def test_a_doubled_opening_does_not_begin_the_feed_twice() -> None:
    """A FeedOpen that arrives again later changes nothing: no record is skipped, nothing is claimed that is not there."""
    cluster = two_by_one()
    openings = cluster.messages(FeedOpen, "dc2-1", "dc1-1")
    for at in range(6):
        cluster.put("dc1-1", b"a%d" % at, b"v")
        cluster.run(50 * MS)
    cluster.give("dc1-1", Delivered("dc2-1", openings[-1]))
    for at in range(6):
        cluster.put("dc1-1", b"b%d" % at, b"v")
        cluster.run(5 * MS)
    cluster.run(300 * MS)
    assert_claims_are_true(cluster, "dc1-1", ["dc2-1"], 1)
    cluster.run(3 * SECOND)
    assert cluster.are_equal()
    opened = len(cluster.messages(FeedOpen, "dc2-1", "dc1-1"))
    assert opened == len(openings), "the doubled message cost a new feed"


def test_an_opening_of_an_earlier_feed_that_comes_late_is_ignored() -> None:
    """The newer feed goes on."""
    cluster = two_by_one()
    first = cluster.messages(FeedOpen, "dc2-1", "dc1-1")[-1]
    cluster.nodes["dc2-1"].assembly.receiver.reopen("test")
    cluster.run(SECOND)
    second = cluster.messages(FeedOpen, "dc2-1", "dc1-1")[-1]
    assert second.feed > first.feed
    cluster.give("dc1-1", Delivered("dc2-1", first))
    (feed,) = cluster.nodes["dc1-1"].assembly.sender
    assert feed.feed == second.feed


def test_a_new_run_of_the_receiver_opens_its_feed_whatever_number_it_draws() -> None:
    """Numbers of feeds rise in one run only; a restart of the receiver without a word of the lost connection is no obstacle."""
    cluster = two_by_one()
    for _ in range(4):
        cluster.nodes.pop("dc2-1")  # the other side is told of the new stream, not of the end of the old one
        cluster.start("dc2-1")
        cluster.run(SECOND)
        cluster.put("dc1-1", b"k", b"v%d" % cluster.now_us)
        cluster.run(500 * MS)
        assert cluster.are_equal()


def test_a_lost_batch_is_noticed_and_sent_again() -> None:
    """The next batch or heartbeat shows the gap; the receiver opens anew with its frontiers."""
    cluster = two_by_one()
    lost = cluster.lose_one(lambda message: isinstance(message, FeedBatch) and bool(message.payload))
    cluster.put("dc1-1", b"k", b"v")
    cluster.run(SECOND)
    assert lost
    assert cluster.are_equal()
    assert cluster.notes["feed.gap"] == 1


def test_a_doubled_batch_is_taken_once() -> None:
    """Every message between the datacenters comes twice: the replicas are equal, and so are their logs' records."""
    cluster = two_by_one()
    cluster.is_doubled = lambda s, r, m: True
    for at in range(20):
        cluster.put("dc1-1", b"k%d" % (at % 3), b"v%d" % at)
    cluster.run(SECOND)
    assert cluster.are_equal()
    counts = [sum(s.frontier for s in cluster.streams(node).values()) for node in cluster.nodes]
    assert counts == [20, 20]


def test_a_feed_opened_anew_while_a_log_read_is_under_way_skips_nothing() -> None:
    """What was read for the old feed is not put into the new one, and everything comes."""
    cluster = two_by_one()
    cluster.cut("dc1-1", "dc2-1")
    for at in range(50):
        cluster.put("dc1-1", b"k%d" % at, b"v")
    cluster.slow_reads.add("dc1-1")
    cluster.heal()
    cluster.run(50 * MS)
    assert cluster.reading
    cluster.nodes["dc2-1"].assembly.receiver.reopen("test")
    cluster.run(50 * MS)
    assert len(cluster.reading) == 2
    cluster.slow_reads.clear()
    cluster.run(SECOND)
    assert cluster.are_equal()
    assert_claims_are_true(cluster, "dc1-1", ["dc2-1"], 1)


def test_a_malformed_batch_is_refused_counted_and_sent_again() -> None:
    """Bytes that are no batch change nothing; the feed is opened anew after a pause, not at once and not for ever."""
    cluster = two_by_one()

    def spoil(sender: str, receiver: str, message: object) -> bool:
        if isinstance(message, FeedBatch) and message.payload and cluster.now_us < healthy_us:
            message.payload = message.payload[:-3] + b"xyz"
        return False

    healthy_us = cluster.now_us + 3 * SECOND
    cluster.is_dropped = spoil
    begun = len(cluster.messages(FeedOpen))
    cluster.put("dc1-1", b"k", b"v")
    cluster.run(2 * SECOND)
    assert cluster.cells("dc2-1") == {}
    assert cluster.notes["feed.malformed"] >= 1
    assert len(cluster.messages(FeedOpen)) - begun < 10
    cluster.run(4 * SECOND)
    assert cluster.are_equal()


def test_a_receiver_without_room_asks_again_calmly_and_gets_everything() -> None:
    """A full disk at the receiver costs a few openings a second, and nothing once there is room."""
    cluster = two_by_one()
    room = cluster.disks["dc2-1"].room_bytes
    cluster.room("dc2-1", 100, "the disk is full")
    begun = len(cluster.messages(FeedOpen))
    for at in range(60):
        cluster.put("dc1-1", b"k%d" % at, b"v")
        cluster.run(50 * MS)
    assert len(cluster.messages(FeedOpen)) - begun < 20
    cluster.room("dc2-1", room)
    cluster.run(3 * SECOND)
    assert cluster.are_equal()


def test_a_batch_behind_a_gap_is_never_claimed_for_the_datacenter() -> None:
    """A co-owner that lacks an earlier record acknowledges no later one, also when that comes a second time."""
    cluster = Cluster(datacenters=2).start().serving().run(SECOND)
    (key_1, key_2) = keys_of_partition(cluster, 0, 2)
    receiver = cluster.nodes["dc2-1"].assembly.placement.owners[0][0]
    others = [n for n in cluster.names if n.startswith("dc2") and n != receiver]
    relayed: list[object] = []

    def is_dropped(sender: str, to: str, message: object) -> bool:
        if isinstance(message, Replicate) and sender == receiver:
            if len(relayed) < 2:
                relayed.append(message)
                return True  # the first record reaches no co-owner …
            return to == others[1] or message in relayed
        return False

    cluster.is_dropped = is_dropped
    for node in others:  # … and catching up is slow
        cluster.nodes[node].assembly.receiver.stated = lambda peer, frontiers: None  # type: ignore[method-assign]
    cluster.put("dc1-1", key_1, b"v")
    cluster.run(200 * MS)
    call = cluster.write("dc1-1", {key_2: b"v"}, Consistency.EACH_QUORUM, timeout_ms=20_000)
    cluster.run(200 * MS)
    doubled = [m for m in cluster.messages(Replicate, receiver, others[0]) if m not in relayed]
    assert doubled
    cluster.give(others[0], Delivered(receiver, doubled[-1]))
    cluster.run(4 * SECOND)
    assert_claims_are_true(cluster, "dc1-1", [receiver, *others], 2)
    assert cluster.reply("dc1-1", call) is None


def test_a_resent_record_that_still_stands_behind_a_gap_is_not_contiguous() -> None:
    """A replica that holds a record, but not the one before it, says so however often it is asked."""
    cluster = Cluster().start().serving()
    (key_1, key_2) = keys_of_partition(cluster, 3, 2)
    cluster.is_dropped = lambda s, r, m: isinstance(m, Replicate) and r == "dc1-2"
    cluster.put("dc1-1", key_1, b"v")
    cluster.is_dropped = lambda s, r, m: False
    cluster.nodes["dc1-2"].assembly.receiver.stated = lambda peer, frontiers: None  # type: ignore[method-assign]
    cluster.put("dc1-1", key_2, b"v")
    (message,) = cluster.messages(Replicate, "dc1-1", "dc1-2")[1:]
    cluster.give("dc1-2", Delivered("dc1-1", message))
    cluster.settle()
    assert [m.contiguous for m in cluster.messages(Replicated, "dc1-2") if m.batch == message.batch] == [False, False]


def test_the_acknowledgement_of_what_is_covered_heals_when_it_is_lost() -> None:
    """A datacenter's frontier that was told in a lost message is told again."""
    cluster = Cluster(datacenters=2).start().serving().run(SECOND)
    cluster.is_dropped = lambda s, r, m: isinstance(m, FeedAck)
    cluster.put("dc1-1", b"k", b"v")
    cluster.run(4 * SECOND)

    def forget_batches(sender: str, receiver: str, message: object) -> bool:
        if isinstance(message, FeedAck):
            message.quorum = 0  # only the frontiers tell of it now
        return False

    cluster.is_dropped = forget_batches
    (stream,) = cluster.streams("dc1-1").values()
    cluster.run_until(lambda: stream.dcs.get("dc2", 0) == 1, 30 * SECOND)


def test_a_lost_opening_of_a_feed_inside_a_datacenter_is_repeated() -> None:
    """A replica that is behind asks again when nobody answers."""
    cluster = Cluster().start().serving()
    cluster.is_dropped = lambda s, r, m: isinstance(m, (Replicate, FeedOpen)) and "dc1-3" in (s, r)
    cluster.put("dc1-1", b"k", b"v")
    cluster.run(8 * SECOND)
    assert cluster.messages(FeedOpen, "dc1-3")
    cluster.is_dropped = lambda s, r, m: isinstance(m, Replicate) and r == "dc1-3"
    cluster.run(2 * SILENT_US_MAX + 2 * SECOND)
    assert cluster.are_equal()


def test_a_lost_closing_of_a_feed_is_repeated() -> None:
    """A sender that did not hear that a feed is over hears it when it sends the next batch."""
    cluster = Cluster().start().serving()
    cluster.is_dropped = lambda s, r, m: isinstance(m, (Replicate, FeedClose)) and "dc1-3" in (s, r)
    cluster.put("dc1-1", b"k", b"v")
    cluster.run_until(cluster.are_equal)
    cluster.run(2 * SECOND)
    assert any(len(list(cluster.nodes[node].assembly.sender)) for node in ("dc1-1", "dc1-2"))
    cluster.is_dropped = lambda s, r, m: False
    cluster.run(2 * SECOND)
    assert not any(len(list(cluster.nodes[node].assembly.sender)) for node in cluster.nodes)


def test_a_replica_that_missed_everything_becomes_equal_without_being_read() -> None:
    """What a co-owner did not get comes to it from the others' logs."""
    cluster = Cluster().start().serving()
    cluster.is_dropped = lambda s, r, m: isinstance(m, Replicate) and r == "dc1-3"
    for at in range(100):
        cluster.put("dc1-1", b"k%d" % at, b"v")
    cluster.run(20 * SECOND)
    assert cluster.are_equal()
    assert not list(cluster.nodes["dc1-1"].assembly.sender), "the feed is closed once nothing is missing"


def test_one_blocked_partition_does_not_fill_the_window() -> None:
    """A partition whose records are not acknowledged holds a share of the window; the others go on."""
    cluster = two_by_one()
    cluster.admin("dc1-1", "namespace_create", name="large", value_bytes_max=100_000)
    cluster.run(2 * SECOND)
    cluster.is_dropped = lambda s, r, m: isinstance(m, FeedAck)
    blocked = keys_of_partition(cluster, 1, 100)
    for key in blocked[:40]:
        cluster.put("dc1-1", key, bytes(90_000), namespace="large")
    (feed,) = cluster.nodes["dc1-1"].assembly.sender
    assert feed.partition_bytes[1] <= FEED_PARTITION_BYTES + 100_000
    assert feed.in_flight_bytes + feed.pending_bytes < FEED_WINDOW_BYTES // 2
    (other,) = keys_of_partition(cluster, 2, 1)
    cluster.put("dc1-1", other, b"v", namespace="large")
    cluster.run(100 * MS)
    assert other in cluster.cells("dc2-1", "large")
    cluster.is_dropped = lambda s, r, m: False
    cluster.run(5 * SECOND)
    assert cluster.are_equal("large")


def test_staleness_is_not_told_as_small_while_a_backlog_is_being_drained() -> None:
    """Heartbeats and batches of other partitions do not make a stream that is behind look fresh."""
    cluster = two_by_one()
    cluster.run(2 * SECOND)
    cluster.slow_reads.add("dc1-1")
    cluster.cut("dc1-1", "dc2-1")
    cluster.put("dc1-1", b"k", b"v")
    cut_us = cluster.now_us
    cluster.run(2 * SECOND)
    cluster.heal()
    cluster.run(5 * SECOND)
    incoming = cluster.nodes["dc2-1"].status()["incoming"]["dc1-1"]
    assert cluster.cells("dc2-1") == {}
    assert incoming["staleness_ms"] >= (cluster.now_us - cut_us) // 1000 - 500
    cluster.slow_reads.clear()
    cluster.run(2 * SECOND)
    assert cluster.nodes["dc2-1"].status()["incoming"]["dc1-1"]["staleness_ms"] < 1000


def test_a_deleted_namespace_leaves_the_feeds() -> None:
    """No cursor stands on streams of a namespace that is gone, and nobody tries to catch up with them."""
    cluster = Cluster(datacenters=2).start().serving().run(2 * SECOND)
    cluster.admin("dc1-1", "namespace_create", name="gone")
    cluster.run(2 * SECOND)
    cluster.is_dropped = lambda s, r, m: isinstance(m, Replicate) and r == "dc1-3"
    cluster.put("dc1-1", b"k", b"v", namespace="gone")
    cluster.run(300 * MS)
    cluster.admin("dc1-1", "namespace_delete", name="gone")
    cluster.is_dropped = lambda s, r, m: False
    cluster.run(10 * SECOND)
    for node in cluster.nodes.values():
        assert not [
            stream for feed in node.assembly.sender for stream in feed.sent if stream.namespace not in node.context.tables
        ]
        assert not [link for link in node.assembly.receiver.links() if not link.own_only]
    call = cluster.write("dc1-1", {b"k": b"v"}, Consistency.EACH_QUORUM)
    cluster.run(300 * MS)
    assert cluster.reply("dc1-1", call).outcomes == [Outcome.APPLIED]


def test_a_record_of_an_unknown_namespace_waits_for_its_definition() -> None:
    """It is not counted as arrived, and comes again once the definition is there."""
    cluster = two_by_one()
    cluster.is_held = lambda s, r, m: type(m).__name__ == "Definitions"
    cluster.admin("dc1-1", "namespace_create", name="carts")
    cluster.put("dc1-1", b"k", b"v", namespace="carts")
    cluster.run(2 * SECOND)
    assert set(covered_in(cluster, "carts")) == {0}
    cluster.release()
    cluster.run(3 * SECOND)
    assert cluster.are_equal("carts")
    assert set(covered_in(cluster, "carts")) == {1}


def covered_in(cluster: Cluster, namespace: str) -> list[int]:
    return [stream.dcs.get("dc2", 0) for stream in cluster.streams("dc1-1", namespace).values()]


def test_a_record_whose_origin_is_no_origin_is_refused() -> None:
    """Garbage with a fitting checksum makes no stream; the node goes on."""
    cluster = Cluster().start().serving()
    namespace = next(iter(cluster.nodes["dc1-1"].context.tables))
    record = encode_record(DELTA, 0, namespace, 1, 1, NO_OPERATION, b"\xff\xfe", b"k", b"cell")
    cluster.give("dc1-1", Delivered("dc1-2", Replicate(1, record)))
    cluster.run(10 * SECOND)
    assert not cluster.streams("dc1-1")
    assert cluster.put("dc1-1", b"k", b"v").outcomes == [Outcome.APPLIED]


# --- one batch's bytes -----------------------------------------------------------------------------------------------


def frame(raw: bytes, is_checked: bool = True) -> bytes:
    return zstandard.ZstdCompressor(level=3, write_checksum=is_checked).compress(raw)


def test_a_whole_frame_is_read() -> None:
    """What was compressed comes back."""
    raw = b"record" * 1000
    assert decompress(frame(raw), len(raw)) == raw


@pytest.mark.parametrize(
    ("payload", "raw_bytes"),
    [
        (frame(b"abc"), 2),
        (frame(b"abc"), 4),
        (frame(b"abc"), -5),
        (frame(b"abc"), WAN_BATCH_RAW_BYTES_MAX + 1),
        (frame(bytes(256 << 20)), WAN_BATCH_RAW_BYTES_MAX),
        (frame(b"abc") + frame(b"def"), 3),
        (frame(b"abc") + b"trailing", 3),
        (frame(b"abc")[:-1], 3),
        (frame(b"abc" * 100)[:-4] + b"oops", 300),
        (b"", 3),
        (b"not zstd at all", 3),
    ],
    ids=["short", "long", "negative", "too large", "bomb", "two frames", "trailing", "cut", "checksum", "empty", "garbage"],
)
def test_anything_but_one_whole_frame_of_the_stated_size_is_refused(payload: bytes, raw_bytes: int) -> None:
    """Bombs, second frames, wrong sizes and wrong checksums are errors, found without expanding more than the limit."""
    with pytest.raises(RecordError):
        decompress(payload, raw_bytes)


def test_a_frame_that_wants_a_huge_window_is_refused() -> None:
    """A few bytes cannot make the reader set aside a hundred megabytes."""
    parameters = zstandard.ZstdCompressionParameters(window_log=27, enable_ldm=True, write_content_size=False)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    payload = compressor.compress(b"abc" * 1000) + compressor.flush()
    with pytest.raises(RecordError):
        decompress(payload, 3000)
