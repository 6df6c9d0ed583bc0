"""How operations become batches, and how they are routed."""

from collections import Counter

from geokv.core.limits import BATCH_BYTES_MAX, BATCH_ITEMS_MAX
from geokv.core.quorum import Consistency
from geokv.core.ring import Member, Ring
from geokv.errors import Overloaded
from geokv.protocol.client.messages import Failure, OperationsAbandoned, RingMember
from geokv.protocol.client.operations import Kind, Operation, Options
from geokv.protocol.client.settings import MS, OPERATIONS_MAX, S
from geokv.protocol.requests import Outcome, ReadBatch, ReadReply
from tests.protocol.client.world import PARTITIONS, World, fails, silent


def warm(world: World) -> World:
    """Let the client find the ring, and forget how it did."""
    world.run_until_told(*world.put("warm"))
    world.sent.clear()
    return world


def test_the_first_operation_leaves_at_once() -> None:
    """An idle client waits for nobody: the batch leaves in the very event that brought the operation."""
    world = warm(World())
    world.put("a")
    assert [effect.request.keys for effect in world.batches()] == [[b"a"]]


def test_what_arrives_while_a_call_is_under_way_leaves_together() -> None:
    """Ten puts of one node, one by one during a call, make one more call and not ten."""
    world = warm(World({"eu": 1}))
    world.put("a")
    for index in range(10):
        world.put(f"b{index}")
    assert len(world.batches()) == 1
    world.run(1 * MS)
    assert [len(effect.request.keys) for effect in world.batches()] == [1, 10]


def test_a_batch_worth_a_call_does_not_wait() -> None:
    """Beside a call under way a second one leaves when it is large, and no third."""
    world = warm(World({"eu": 1}))
    world.put("a")
    for start in (0, 1000):
        world.put(*[f"b{start + index}" for index in range(world.machine.settings.worth_a_call)])
    assert [len(effect.request.keys) for effect in world.batches()] == [1, world.machine.settings.worth_a_call]


def test_calls_to_a_node_far_away_overlap() -> None:
    """Over a long way several small calls are under way at once, up to the limit."""
    world = warm(World({"eu": 1}, delay_us=80 * MS))
    for index in range(20):
        world.put(f"k{index}")
    assert len(world.batches()) == world.machine.settings.calls_far_max


def test_a_batch_is_cut_at_1024_items() -> None:
    """3,000 puts to one node leave as 1,024, 1,024 and 952."""
    world = warm(World({"eu": 1}))
    operations = world.put(*[f"k{index}" for index in range(3000)])
    world.run_until_told(*operations)
    assert [len(effect.request.keys) for effect in world.batches()] == [BATCH_ITEMS_MAX, BATCH_ITEMS_MAX, 952]


def test_a_batch_is_cut_at_1_mib() -> None:
    """No batch holds more than 1 MiB of keys and values, and all of them arrive in order."""
    world = warm(World({"eu": 1}))
    operations = world.add([world.operation(f"k{index:03}", bytes(9_000)) for index in range(500)])
    world.run_until_told(*operations)
    batches = [effect.request for effect in world.batches()]
    assert all(sum(map(len, batch.keys)) + sum(map(len, batch.values)) <= BATCH_BYTES_MAX for batch in batches)
    assert len(batches) >= 5
    assert [key for batch in batches for key in batch.keys] == [operation.key for operation in operations]


def test_one_operation_larger_than_a_batch_travels_alone() -> None:
    """A value of the greatest size with its key is above 1 MiB; it is a batch by itself."""
    world = warm(World({"eu": 1}))
    big, small = world.add([world.operation("big", bytes(BATCH_BYTES_MAX)), world.operation("small")])
    world.run_until_told(big, small)
    assert [len(effect.request.keys) for effect in world.batches()] == [1, 1]


def test_different_options_travel_apart() -> None:
    """Namespace, level, TTL and kind each make a batch of their own; equal ones share it."""
    world = warm(World({"eu": 1}))
    kinds = [
        world.options(),
        world.options(namespace="other"),
        world.options(level=Consistency.ALL),
        world.options(ttl_ms=9),
        world.options(Kind.READ),
    ]
    for options in kinds:
        assert options is world.options(options.kind, options.namespace, level=options.level, ttl_ms=options.ttl_ms)
    world.add([world.operation(f"k{index}", options=options) for index in range(2) for options in kinds])
    assert sorted(len(effect.request.keys) for _, effect in world.sent) == [2] * 5


def test_each_key_goes_to_the_first_owner() -> None:
    """Every write goes to the node that the ring names first for its key, while few are under way."""
    world = warm(World({"eu": 5}))
    for at in range(0, 200, 10):
        world.run_until_told(*world.put(*[f"k{at + index}" for index in range(10)]))
    ring = Ring(PARTITIONS, [Member(member.name, member.rack) for member in world.members])
    for effect in world.batches():
        for key in effect.request.keys:
            assert effect.address == ring.owners_of_key(key, 3)[0] + ":1"
    assert sum(len(effect.request.keys) for effect in world.batches()) == 200
    assert len(set(world.nodes_asked())) == 5


def test_many_writes_at_once_go_together_to_one_owner_of_each() -> None:
    """Where all nodes own all keys 200 puts are one call, the next ones another node's; elsewhere they go to owners."""
    world = warm(World({"eu": 3}))
    for round_number in range(6):
        world.run_until_told(*world.put(*[f"k{round_number}-{index}" for index in range(200)]))
    assert [len(effect.request.keys) for effect in world.batches()] == [200] * 6
    assert sorted(Counter(world.nodes_asked()).values()) == [2, 2, 2]
    world = warm(World({"eu": 5}))
    world.put(*[f"k{index}" for index in range(200)])
    ring = Ring(PARTITIONS, [Member(member.name, member.rack) for member in world.members])
    for effect in world.batches():
        assert all(effect.address.removesuffix(":1") in ring.owners_of_key(key, 3) for key in effect.request.keys)
    assert len(world.batches()) < 5


def test_many_writes_at_once_pass_a_busy_node_by() -> None:
    """A node that still has a call under way is not the next one to be asked."""
    world = warm(World({"eu": 3}))
    world.behaviours["eu-2"] = silent
    for round_number in range(6):
        world.put(*[f"k{round_number}-{index}" for index in range(50)])
        world.run(20 * MS)
    assert Counter(world.nodes_asked())["eu-2"] <= 1


def updates(world: World, round_number: int) -> list[Operation]:
    """Fifty updates of a type's cells, added at once."""
    options = Options(Kind.WRITE, "likes", is_update=True)
    return world.add([world.operation(f"k{round_number}-{index}", options=options) for index in range(50)])


def test_many_updates_at_once_stay_with_one_owner_for_a_while() -> None:
    """It has their cells decoded; seconds later it is another one's turn, so that one client's load is spread, too."""
    world = warm(World({"eu": 3}))
    asked = set()
    for second in range(6):
        for round_number in range(5):
            world.run_until_told(*updates(world, round_number))
        assert len(set(world.nodes_asked())) == 1, second
        asked.update(world.nodes_asked())
        world.sent.clear()
        world.run(5 * S)
    assert len(asked) > 1


def test_updates_do_not_stay_with_a_node_that_says_nothing() -> None:
    """After a tenth of a second others are asked."""
    world = warm(World({"eu": 3}))
    world.run_until_told(*updates(world, 0))
    (steady,) = set(world.nodes_asked())
    world.behaviours[steady] = silent
    world.sent.clear()
    for round_number in range(10):
        updates(world, round_number)
        world.run(40 * MS)
    others = [node for node in world.nodes_asked() if node != steady]
    assert len(others) >= 5


def test_operation_ids_are_unique_and_kept_over_retries() -> None:
    """16 bytes per write, no two alike, and the same ones when a write is sent again."""
    world = warm(World({"eu": 1}))
    world.behaviours["eu-1"] = fails(Failure.OVERLOADED)
    operations = world.put("a", "b", "c")
    world.run(20 * MS)
    world.heal()
    world.run_until_told(*operations)
    by_key: dict[bytes, set[bytes]] = {}
    for effect in world.batches():
        for key, identity in zip(effect.request.keys, effect.request.operations, strict=True):
            assert len(identity) == 16
            by_key.setdefault(key, set()).add(identity)
    assert len(world.batches()) > 1
    assert all(len(identities) == 1 for identities in by_key.values())
    assert len(set.union(*by_key.values())) == 3


def test_every_request_carries_the_highest_hlc_told() -> None:
    """What any node said of its clock is in the next batch to any other, reads included; a lower one later changes
    nothing.
    """
    world = warm(World())
    world.hlc = 9_000_000
    world.run_until_told(*world.put("a"))
    world.hlc = 50
    world.run_until_told(*world.put("b"))
    world.get(*[f"k{index}" for index in range(50)])
    seen = {effect.request.seen_hlc for effect in world.batches(ReadBatch)}
    assert seen == {9_000_001}


def test_a_newer_ring_is_asked_for_and_used() -> None:
    """A reply with another ring version brings the ring, and keys move to the new node."""
    world = warm(World({"eu": 3}))
    world.run(2 * S)
    world.sizes = {"eu": 4}
    world.members.append(RingMember("eu-4", "eu", "d", 1.0, "eu-4:1"))
    world.ring_version = 6
    world.run_until_told(*world.put("a"))
    world.run(10 * MS)
    world.put(*[f"k{index}" for index in range(100)])
    assert Counter(world.nodes_asked())["eu-4"] == 1
    assert world.batches()[-1].request.ring_version == 6


def test_nodes_that_differ_about_the_ring_are_not_chased() -> None:
    """While every reply names another version, the ring is asked for about once a second and not per reply."""
    world = warm(World({"eu": 1}))
    for _ in range(300):
        world.ring_version += 1
        world.run_until_told(*world.put("k"))
        world.run(9 * MS)
    assert 2 <= world.notes["client.ring_adopted"] <= 6


def test_a_node_that_left_the_ring_gives_its_waiting_operations_back() -> None:
    """Operations that waited for a node which is gone go to the others, and its connection is let go."""
    world = warm(World({"eu": 3}))
    world.run(2 * S)
    world.behaviours["eu-3"] = silent
    world.put(*[f"a{index}" for index in range(10)])
    waiting = world.put(*[f"b{index}" for index in range(5)])
    world.members = [member for member in world.members if member.name != "eu-3"]
    world.ring_version = 6
    world.run(200 * MS)
    assert all(map(world.is_told, waiting))
    assert world.machine.datacenters.nodes.keys() == {"eu-1", "eu-2"}


def test_more_than_a_client_may_have_waiting_is_refused() -> None:
    """The bound on waiting operations holds: the surplus is Overloaded at once, the others are served."""
    world = warm(World({"eu": 1}))
    world.behaviours["eu-1"] = silent
    operations = world.put(*["k"] * (OPERATIONS_MAX + 5))
    assert [world.is_told(operation) for operation in operations[-6:]] == [False, True, True, True, True, True]
    assert isinstance(world.result(operations[-1]), Overloaded)
    world.run_until_told(*operations)
    assert world.machine.outstanding == 0


def test_a_full_client_refuses_one_more_and_goes_on() -> None:
    """With no room at all nothing of an addition is taken, and those before it are served as ever."""
    world = warm(World({"eu": 1}))
    world.behaviours["eu-1"] = silent
    operations = world.put(*["k"] * OPERATIONS_MAX)
    (late,) = world.put("late")
    assert isinstance(world.result(late), Overloaded)
    del world.behaviours["eu-1"]
    world.run_until_told(*operations)
    assert world.machine.outstanding == 0


def test_abandoned_operations_are_not_sent_and_others_are() -> None:
    """Of what waits behind a call, the abandoned ones are dropped; their neighbours leave as planned."""
    world = warm(World({"eu": 1}))
    world.put("first")
    gone, stays = world.put("gone", "stays")
    world.handle(OperationsAbandoned([gone]))
    world.run_until_told(stays)
    assert [effect.request.keys for effect in world.batches()] == [[b"first"], [b"stays"]]
    assert not world.is_told(gone)
    assert world.machine.outstanding == 0


def test_a_call_whose_callers_are_all_gone_is_cancelled() -> None:
    """With nobody left who waits for it, a call under way is cancelled; with somebody left, it is not."""
    world = warm(World({"eu": 1}))
    world.behaviours["eu-1"] = silent
    one, two = world.put("one", "two")
    world.handle(OperationsAbandoned([one]))
    assert not world.cancelled
    world.handle(OperationsAbandoned([two]))
    assert world.cancelled == [world.batches()[-1].call]


def test_gets_that_an_answer_had_no_room_for_are_asked_again_at_once() -> None:
    """Values of many megabytes come in several answers, without a pause and without anybody noticing."""
    world = warm(World({"eu": 1}))

    def a_hundred_fit(request: ReadBatch) -> object:
        reply: ReadReply = world._serve("eu-1", request)
        for index in range(100, len(request.keys)):
            reply.outcomes[index], reply.values[index] = Outcome.ASK_AGAIN, None
        return reply

    world.behaviours["eu-1"] = a_hundred_fit
    operations = world.get(*[f"k{index}" for index in range(350)])
    world.run_until_told(*operations)
    assert all(world.result(operation) == ("ok", "eu") for operation in operations)
    assert [len(effect.request.keys) for effect in world.batches(ReadBatch)] == [350, 250, 150, 50]
