"""Rights of bounded counters through whole nodes: who may spend, when a gift counts, who inherits, what is refused and how."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest

from geokv.core.cells.codec import decode
from geokv.core.cells.counter_bounded import BoundedValue, accounts, rights
from geokv.core.cells.operation import Operation
from geokv.core.cells.policies import type_of
from geokv.core.cells.view import View
from geokv.core.cells.wire import decode_value, encode_operation
from geokv.core.origin import unpack_origin
from geokv.core.quorum import Consistency
from geokv.protocol.effects import Loaded
from geokv.protocol.messages import FeedBatch, Replicate, RightsAsk, RightsGiven
from geokv.protocol.requests import Outcome, WriteReply
from geokv.storage.lsm.engine import LsmOptions
from tests.node.harness import MS, SECOND, Cluster
from tests.node.test_updates import cluster_with
from tests.node.test_upkeep import flushed

TICKETS = "counter_bounded"
KEY = b"concert"


def bounded(**shape: Any) -> Cluster:
    return cluster_with(TICKETS, **shape)


def update(cluster: Cluster, node: str, name: str, amount: int = 1, level: Consistency = Consistency.QUORUM) -> WriteReply:
    operation = encode_operation(Operation(name, (amount,)))
    return cluster.put(node, KEY, operation, level, namespace=TICKETS, has_updates=True)


def outcome(cluster: Cluster, node: str, name: str, amount: int = 1) -> Outcome:
    return Outcome(update(cluster, node, name, amount).outcomes[0])


def shown(cluster: Cluster, node: str) -> BoundedValue:
    packed = cluster.get(node, KEY, namespace=TICKETS).values[0]
    return BoundedValue(0) if packed is None else decode_value(TICKETS, packed)


def books(cluster: Cluster, node: str) -> dict[bytes, Any]:
    cell = cluster.cells(node, TICKETS)[KEY]
    return accounts(View(decode(type_of(TICKETS).tag, cell)))


def held(cluster: Cluster, node: str) -> dict[str, int]:
    """What the runs of each node may spend together, as `node` sees it."""
    found: dict[str, int] = {}
    known = books(cluster, node)
    for origin in set(known).union(*[account.given for account in known.values()]):
        name = unpack_origin(origin).node
        found[name] = found.get(name, 0) + rights(known, origin)
    return found


def are_equal(cluster: Cluster) -> bool:
    return all(books(cluster, name) == books(cluster, cluster.names[0]) for name in cluster.names)


def is_between(one: str, other: str) -> bool:
    return one[:3] != other[:3]


def test_the_node_that_counted_up_spends_and_another_one_asks_it() -> None:
    """Inside a datacenter a decrement finds the rights wherever they are, and waits for them."""
    cluster = bounded()
    assert outcome(cluster, "dc1-1", "increment", 10) is Outcome.APPLIED
    assert outcome(cluster, "dc1-1", "decrement", 2) is Outcome.APPLIED
    assert outcome(cluster, "dc1-2", "decrement", 3) is Outcome.APPLIED
    assert cluster.messages(RightsAsk, "dc1-2", "dc1-1")
    assert outcome(cluster, "dc1-3", "decrement", 5) is Outcome.APPLIED
    assert shown(cluster, "dc1-2") == 0
    assert min(held(cluster, "dc1-1").values()) == 0


def test_a_refusal_says_how_many_rights_there_are_here_and_elsewhere() -> None:
    """Nothing was numbered, and nobody is asked once there is nobody who has any."""
    cluster = bounded()
    update(cluster, "dc1-1", "increment", 3)
    reply = update(cluster, "dc1-2", "decrement", 5)
    assert reply.outcomes == [Outcome.NOT_ENOUGH_RIGHTS]
    assert reply.details[0].rights == (5, 3, 0)
    assert "5 needed, 3 here, 0 elsewhere" in reply.details[0].message
    assert outcome(cluster, "dc1-2", "decrement", 3) is Outcome.APPLIED
    asked = len(cluster.messages(RightsAsk))
    for node in cluster.names:
        assert update(cluster, node, "decrement").details[0].rights == (1, 0, 0)
    assert len(cluster.messages(RightsAsk)) == asked


def test_rights_cross_datacenters_where_they_are_wanted() -> None:
    """A decrement in a datacenter that has none gets them from the other."""
    cluster = bounded(datacenters=2)
    update(cluster, "dc1-1", "increment", 10)
    cluster.run_until(lambda: shown(cluster, "dc2-2") == 10)
    assert shown(cluster, "dc2-2").rights == {"dc1": 10}
    assert outcome(cluster, "dc2-2", "decrement", 4) is Outcome.APPLIED
    cluster.run_until(lambda: shown(cluster, "dc1-3") == 6)
    assert sum(shown(cluster, "dc1-3").rights.values()) == 6


def test_datacenters_that_are_cut_apart_sell_what_they_hold_and_no_more() -> None:
    """Rights that cannot be reached count as spent; the refusal says so; after the cut the rest is sold."""
    cluster = bounded(datacenters=2)
    update(cluster, "dc1-1", "increment", 10)
    cluster.run_until(lambda: shown(cluster, "dc2-1") == 10)
    assert outcome(cluster, "dc2-1", "decrement", 1) is Outcome.APPLIED
    cluster.run_until(lambda: shown(cluster, "dc1-1") == 9 and shown(cluster, "dc2-1") == 9)
    cluster.cut_apart()
    sold = dict.fromkeys(("dc1-1", "dc2-1"), 0)
    for node in sold:
        while outcome(cluster, node, "decrement") is Outcome.APPLIED:
            sold[node] += 1
    refused = update(cluster, "dc2-1", "decrement")
    assert "cannot be reached now" in refused.details[0].message and refused.details[0].rights[1] == 0
    assert sum(sold.values()) <= 9 and min(sold.values()) >= 0 and sold["dc1-1"] > 0
    cluster.heal()
    cluster.run_until(lambda: are_equal(cluster))
    left = 9 - sum(sold.values())
    for _ in range(left):
        assert outcome(cluster, "dc2-3", "decrement") is Outcome.APPLIED
    assert outcome(cluster, "dc1-2", "decrement") is Outcome.NOT_ENOUGH_RIGHTS
    cluster.run_until(lambda: shown(cluster, "dc1-1") == shown(cluster, "dc2-1") == 0)


def test_a_gift_counts_only_once_a_quorum_of_its_giver_has_it() -> None:
    """The receiver holds the giver's record, and may not spend by it: the giver could still lose it."""
    cluster = bounded(datacenters=2)
    update(cluster, "dc1-1", "increment", 10)
    cluster.run_until(lambda: shown(cluster, "dc2-1") == 10)
    cluster.run(2 * SECOND)
    # The giver's co-owners get nothing from now on; its record goes to the other datacenter as soon as its own log has it.
    cluster.is_dropped = lambda sender, receiver, message: isinstance(message, Replicate) and sender == "dc1-1"
    call = cluster.write(
        "dc2-1", {KEY: encode_operation(Operation("decrement", (4,)))}, namespace=TICKETS, has_updates=True, timeout_ms=1_500
    )
    cluster.run(800 * MS)
    given = [account.given for account in books(cluster, "dc2-1").values() if account.given]
    assert given, "the gift is not here yet"
    assert cluster.reply("dc2-1", call) is None
    cluster.run(1 * SECOND)
    assert cluster.reply("dc2-1", call).outcomes == [Outcome.NOT_ENOUGH_RIGHTS]
    cluster.is_dropped = lambda sender, receiver, message: False
    cluster.run(6 * SECOND)
    assert outcome(cluster, "dc2-1", "decrement", 4) is Outcome.APPLIED


@pytest.mark.parametrize("is_planted", [False, True], ids=["honest", "planted"])
def test_what_spending_an_uncertain_gift_would_cost(is_planted: bool) -> None:
    """The receiver alone has the gift's record; if its disk is lost, it has spent what, for all others, it never had.

    So it must be refused; and with the rule taken out it is not, which shows that this test would see it.
    """
    cluster = bounded()
    update(cluster, "dc1-1", "increment", 10)
    cluster.run(2 * SECOND)
    if is_planted:
        cluster.nodes["dc1-2"].assembly.rights.is_over = lambda origin, partition: True
    cluster.slow_disks.add("dc1-1")
    cluster.is_dropped = lambda sender, receiver, message: (
        receiver == "dc1-3" and (sender == "dc1-1" or isinstance(message, FeedBatch))
    )
    item = {KEY: encode_operation(Operation("decrement", (4,)))}
    first = cluster.write("dc1-2", item, namespace=TICKETS, has_updates=True)
    cluster.run(200 * MS)
    second = cluster.write("dc1-2", item, namespace=TICKETS, has_updates=True)
    cluster.run(200 * MS)
    replies = [cluster.reply("dc1-2", call) for call in (first, second)]
    applied = [reply is not None and reply.outcomes == [Outcome.APPLIED] for reply in replies]
    assert any(applied) is is_planted
    assert (min(held(cluster, "dc1-3").values()) < 0) is is_planted


def test_a_word_that_is_lost_is_asked_for_again() -> None:
    """The gift is made once, and counts when the giver says it again."""
    cluster = bounded()
    update(cluster, "dc1-1", "increment", 10)
    lost = cluster.lose_one(lambda message: isinstance(message, RightsGiven))
    assert outcome(cluster, "dc1-2", "decrement", 10) is Outcome.NOT_ENOUGH_RIGHTS
    assert lost
    cluster.run(4 * SECOND)
    assert outcome(cluster, "dc1-2", "decrement", 10) is Outcome.APPLIED


def test_a_doubled_ask_takes_nothing_twice() -> None:
    """Asks and answers may come twice; the books stay whole."""
    cluster = bounded(datacenters=2)
    cluster.is_doubled = lambda sender, receiver, message: isinstance(message, RightsAsk | RightsGiven)
    update(cluster, "dc1-1", "increment", 10)
    cluster.run_until(lambda: shown(cluster, "dc2-1") == 10)
    sold = sum(outcome(cluster, node, "decrement") is Outcome.APPLIED for node in cluster.names * 4)
    assert sold == 10
    cluster.run_until(lambda: are_equal(cluster))
    assert min(held(cluster, "dc1-1").values()) == 0


def test_the_next_run_of_a_node_takes_over_what_the_last_one_left() -> None:
    """Once its streams are closed: exactly what was left, and once."""
    cluster = bounded()
    update(cluster, "dc1-1", "increment", 10)
    update(cluster, "dc1-1", "decrement", 3)
    for _ in range(2):
        cluster.restart("dc1-1")
        cluster.serving()
    cluster.run_until(lambda: outcome(cluster, "dc1-1", "decrement", 7) is Outcome.APPLIED)
    assert cluster.notes["rights.taken_over"]
    assert outcome(cluster, "dc1-1", "decrement") is Outcome.NOT_ENOUGH_RIGHTS
    cluster.run_until(lambda: are_equal(cluster))
    assert set(held(cluster, "dc1-2").values()) == {0}


def test_nothing_is_taken_over_before_the_streams_of_all_earlier_runs_are_closed() -> None:
    """An owner that has not answered may hold what the last run has spent or given."""
    cluster = bounded(datacenters=2)
    update(cluster, "dc1-1", "increment", 10)
    cluster.run_until(lambda: shown(cluster, "dc2-1") == 10)
    cluster.cut_apart()
    cluster.restart("dc1-1")
    cluster.serving()
    cluster.run(5 * SECOND)
    refused = update(cluster, "dc1-1", "decrement")
    assert refused.outcomes == [Outcome.NOT_ENOUGH_RIGHTS] and refused.details[0].rights == (1, 0, 10)
    cluster.heal()
    cluster.run_until(lambda: outcome(cluster, "dc1-1", "decrement") is Outcome.APPLIED)


def test_rights_of_a_node_that_is_gone_stay_with_it_until_it_is_back() -> None:
    """Its co-owners sell what they hold; what it holds nobody takes."""
    cluster = bounded()
    update(cluster, "dc1-1", "increment", 5)
    update(cluster, "dc1-2", "increment", 4)
    cluster.crash("dc1-1")
    sold = sum(outcome(cluster, "dc1-3", "decrement") is Outcome.APPLIED for _ in range(9))
    assert sold == 4
    cluster.start("dc1-1").serving()
    cluster.run_until(lambda: outcome(cluster, "dc1-3", "decrement", 5) is Outcome.APPLIED)
    assert shown(cluster, "dc1-2") == 0


@pytest.mark.parametrize("level", [Consistency.ONE, Consistency.TWO, Consistency.DEFAULT])
def test_a_weaker_level_is_raised_to_a_quorum(level: Consistency) -> None:
    """What is spent must survive: with one replica alone nothing is spent."""
    cluster = bounded()
    assert update(cluster, "dc1-1", "increment", 5, level).replicas[0] >= 2
    assert update(cluster, "dc1-1", "decrement", 1, level).replicas[0] >= 2
    cluster.crash("dc1-2")
    cluster.crash("dc1-3")
    assert update(cluster, "dc1-1", "decrement", 1, Consistency.ONE).outcomes == [Outcome.UNAVAILABLE]


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (Operation("give", (b"dc1\0dc1-2\0" + bytes(8), 1)), "for nodes only"),
        (Operation("take_over", (b"dc1\0dc1-2\0" + bytes(8), 1)), "for nodes only"),
        (Operation("reset"), "no operation 'reset': it has decrement, increment"),
        (Operation("delete"), "cannot be deleted"),
        (Operation("decrement", (0,)), "not from 1"),
    ],
)
def test_what_would_break_the_bound_is_refused(operation: Operation, message: str) -> None:
    """Clients neither move rights nor take them away."""
    cluster = bounded()
    reply = cluster.put("dc1-1", KEY, encode_operation(operation), namespace=TICKETS, has_updates=True)
    assert reply.outcomes == [Outcome.INVALID]
    assert message in reply.details[0].message


def test_a_delete_is_refused() -> None:
    """A decrement elsewhere could spend what is gone."""
    cluster = bounded()
    update(cluster, "dc1-1", "increment", 5)
    reply = cluster.put("dc1-1", KEY, None, namespace=TICKETS)
    assert reply.outcomes == [Outcome.INVALID] and "cannot be deleted" in reply.details[0].message


def test_the_decrements_of_one_batch_do_not_spend_one_right_twice() -> None:
    """As many succeed as there are rights."""
    cluster = bounded()
    update(cluster, "dc1-1", "increment", 5)
    one = encode_operation(Operation("decrement", (1,)))
    for node, applied in (("dc1-1", 3), ("dc1-2", 2)):
        call = cluster.ask(node, _batch([one] * 3))
        cluster.run_until(lambda node=node, call=call: cluster.reply(node, call) is not None)  # type: ignore[misc]
        assert cluster.reply(node, call).outcomes.count(Outcome.APPLIED) == applied


def _batch(operations: list[bytes]) -> Any:
    from geokv.protocol.requests import WriteBatch

    return WriteBatch(TICKETS, [KEY] * len(operations), list(operations), Consistency.QUORUM, has_updates=True)


def test_two_that_lack_rights_at_once_do_not_swap_them_for_ever() -> None:
    """Each has three and needs five: one of them gets its five."""
    cluster = bounded()
    update(cluster, "dc1-1", "increment", 3)
    update(cluster, "dc1-2", "increment", 3)
    cluster.run(1 * SECOND)
    item = {KEY: encode_operation(Operation("decrement", (5,)))}
    calls = [(node, cluster.write(node, item, namespace=TICKETS, has_updates=True)) for node in ("dc1-1", "dc1-2")]
    cluster.run_until(lambda: all(cluster.reply(*call) is not None for call in calls))
    outcomes = sorted(cluster.reply(*call).outcomes[0] for call in calls)
    assert outcomes == [Outcome.APPLIED, Outcome.NOT_ENOUGH_RIGHTS]


def test_rights_move_before_they_are_lacking() -> None:
    """Where much is spent, a share is asked for in the background; then a decrement waits for nobody."""
    cluster = bounded(datacenters=2)
    update(cluster, "dc1-1", "increment", 1_000)
    cluster.run_until(lambda: shown(cluster, "dc2-1") == 1_000)
    for _ in range(20):
        assert outcome(cluster, "dc2-1", "decrement", 1) is Outcome.APPLIED
        cluster.run(100 * MS)
    assert held(cluster, "dc2-1")["dc2-1"] >= 10
    cluster.cut_apart()
    for _ in range(10):
        assert outcome(cluster, "dc2-1", "decrement", 1) is Outcome.APPLIED


def test_a_gift_that_has_not_arrived_yet_is_waited_for() -> None:
    """The giver's word is faster than its record: what the datacenter has not seen is not spent."""
    cluster = bounded(datacenters=2)
    update(cluster, "dc1-1", "increment", 10)
    cluster.run_until(lambda: shown(cluster, "dc2-1") == 10)
    cluster.is_held = lambda sender, receiver, message: isinstance(message, FeedBatch) and is_between(sender, receiver)
    call = cluster.write("dc2-1", {KEY: encode_operation(Operation("decrement", (4,)))}, namespace=TICKETS, has_updates=True)
    cluster.run(500 * MS)
    assert cluster.messages(RightsGiven, receiver="dc2-1") and cluster.reply("dc2-1", call) is None
    cluster.release()
    cluster.run_until(lambda: cluster.reply("dc2-1", call) is not None)
    assert cluster.reply("dc2-1", call).outcomes == [Outcome.APPLIED]


@pytest.mark.parametrize(("scope", "heirs"), [("dc", "dc2"), ("node", "dc1")])
def test_a_node_that_drains_gives_all_its_rights_away(scope: str, heirs: str) -> None:
    """Of a datacenter that leaves to the others, of a node that leaves to its co-owners; also what its last run had left."""
    cluster = bounded(datacenters=2)
    one = encode_operation(Operation("increment", (7,)))
    keys = [b"key-%d" % number for number in range(40)]
    for key in keys:
        cluster.put("dc1-1", key, one, namespace=TICKETS, has_updates=True)
    cluster.restart("dc1-1")
    cluster.serving()
    cluster.run_until(lambda: cluster.nodes["dc1-1"].runs[0].is_done)
    cluster.admin("dc1-1", "rights_drain", scope=scope)
    cluster.run_until(lambda: bool(cluster.admin("dc1-1", "rights_drain", begin=False).body["is_done"]))
    progress = cluster.admin("dc1-1", "rights_drain", begin=False).body
    assert (progress["keys"], progress["given"], progress["rights"]) == (40, 40, 280), progress
    assert (progress["left"], progress["failure"]) == (0, "")
    cluster.crash("dc1-1")
    seven = encode_operation(Operation("decrement", (7,)))
    for key in keys:
        reply = cluster.put(f"{heirs}-2", key, seven, namespace=TICKETS, has_updates=True)
        assert reply.outcomes == [Outcome.APPLIED], reply.details


def test_a_drain_with_nobody_to_give_to_says_what_is_left() -> None:
    """And nothing is lost: the node goes on spending it."""
    cluster = bounded(datacenters=2)
    update(cluster, "dc1-1", "increment", 9)
    cluster.cut_apart()
    cluster.run(2 * SECOND)
    cluster.admin("dc1-1", "rights_drain", scope="dc")
    cluster.run_until(lambda: cluster.admin("dc1-1", "rights_drain", begin=False).body["is_done"] is True)
    progress = cluster.admin("dc1-1", "rights_drain", begin=False).body
    assert (progress["rights"], progress["left"]) == (0, 9)
    assert outcome(cluster, "dc1-1", "decrement", 9) is Outcome.APPLIED
    assert "choose node" in cluster.admin("dc1-1", "rights_drain", scope="rack").message


def on_a_disk_that_fails() -> tuple[Cluster, Callable[[], None]]:
    """dc1-1 holds all rights, on its disk only; the other loads its cell, and has it fail from then on."""
    cluster = Cluster(partitions=1)
    cluster.disks["dc1-1"].options = LsmOptions(block_cache_bytes=0, row_cache_bytes=0)
    cluster.start().serving().create(TICKETS, TICKETS)
    assert outcome(cluster, "dc1-1", "increment", 10) is Outcome.APPLIED
    flushed(cluster, "dc1-1")
    cluster.slow_loads.add("dc1-1")

    def load_and_fail() -> None:
        cluster.run_until(lambda: bool(cluster.loading))
        cluster.disks["dc1-1"].folder.fail("read_at", errno.EIO, name=".sst", times=-1)
        ((name, effect),) = cluster.loading
        cluster.loading.clear()
        cluster.give(name, Loaded(effect.token, [""] * len(effect.parts)))

    return cluster, load_and_fail


def test_a_decrement_whose_cell_cannot_be_read_any_more_is_refused() -> None:
    """A cache let go of it between its load and its turn, and then the disk failed: no end of the run."""
    cluster, load_and_fail = on_a_disk_that_fails()
    operation = encode_operation(Operation("decrement", (1,)))
    call = cluster.write("dc1-1", {KEY: operation}, namespace=TICKETS, has_updates=True)
    load_and_fail()
    assert cluster.reply("dc1-1", call).outcomes == [Outcome.UNAVAILABLE]
    assert not cluster.ended


def test_who_cannot_read_how_many_rights_it_has_gives_none() -> None:
    """As above, of an ask, and of all that a node gives away: told as nothing, and the asker goes on."""
    cluster, load_and_fail = on_a_disk_that_fails()
    operation = encode_operation(Operation("decrement", (1,)))
    call = cluster.write("dc1-2", {KEY: operation}, namespace=TICKETS, has_updates=True)
    load_and_fail()
    cluster.run_until(lambda: cluster.reply("dc1-2", call) is not None)
    assert cluster.reply("dc1-2", call).outcomes == [Outcome.NOT_ENOUGH_RIGHTS]

    cluster, load_and_fail = on_a_disk_that_fails()
    told: list[tuple[int, int]] = []
    node = cluster.nodes["dc1-1"]
    table = node.assembly.table_named(TICKETS)
    assert table is not None
    node.assembly.rights.give_away(table, KEY, cluster.nodes["dc1-2"].origin, lambda given, left: told.append((given, left)))
    for effect in list(node.assembly.effects):
        cluster._perform("dc1-1", effect)
    node.assembly.effects.clear()
    load_and_fail()
    assert told == [(0, 0)]
