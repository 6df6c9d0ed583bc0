"""Finding the cluster, noticing that nodes and datacenters are gone, going elsewhere and coming back."""

import pytest

from geokv.errors import Ambiguous, DeadlineExceeded, InvalidRequest, Unavailable
from geokv.protocol.client.messages import CallReturned, Failure, RingAsk, RingTold
from geokv.protocol.client.operations import Kind, Operation
from geokv.protocol.client.settings import MS, S
from geokv.protocol.requests import Outcome, ReadBatch
from tests.protocol.client.world import World, answers, fails, silent


def two(**settings: object) -> World:
    """Two datacenters, the ring known."""
    world = World({"eu": 3, "us": 3}, failover=("us",), **settings)  # type: ignore[arg-type]
    world.run_until_told(*world.put(*[f"k{index}" for index in range(30)]))
    world.run(1 * S)
    world.sent.clear()
    return world


def kinds(world: World) -> list[str]:
    return [event.kind for event in world.events if event.kind.startswith("fail")]


def first_served(world: World, within_us: int, every_us: int = 20 * MS) -> tuple[int, list[Operation]]:
    """Put every 20 ms until one that was added after the start is served; how long that took, and all that were
    added.
    """
    started_us = world.now_us
    operations: list[Operation] = []
    while world.now_us - started_us < within_us:
        operations += world.put(f"new{len(operations)}")
        world.run(every_us)
        if any(world.is_told(one) and world.result(one) == ("ok", "us") for one in operations):
            return world.now_us - started_us, operations
    raise AssertionError("not served in time")


# --- finding the cluster
# --------------------------------------------------------------------------------------------------


def test_the_next_address_is_asked_when_the_first_is_silent() -> None:
    """A first address in a black hole costs a quarter of a second, not the caller's whole time."""
    world = World(addresses=("eu-1:1", "eu-2:1"))
    world.ring_behaviours["eu-1"] = silent
    (operation,) = world.put("a")
    world.run_until_told(operation)
    assert world.result(operation) == ("ok", "eu")
    assert world.told_at_us[id(operation)] - operation.started_us < 300 * MS


def test_addresses_where_nobody_listens_are_passed_at_once() -> None:
    """Refused connections lead to the next address without waiting."""
    world = World(addresses=("eu-1:1", "eu-2:1", "eu-3:1"))
    world.ring_behaviours["eu-1"] = world.ring_behaviours["eu-2"] = fails(Failure.REFUSED)
    (operation,) = world.put("a")
    world.run_until_told(operation)
    assert world.told_at_us[id(operation)] - operation.started_us < 20 * MS


def test_a_cluster_that_starts_later_is_found_within_the_callers_time() -> None:
    """The client keeps trying while somebody waits."""
    world = World()
    world.refuse("eu-1")
    (operation,) = world.put("a")
    world.run(2 * S)
    world.heal()
    world.run_until_told(operation)
    assert world.result(operation) == ("ok", "eu")


def test_a_cluster_that_cannot_be_found_is_named_in_the_error() -> None:
    """Unavailable at the deadline, with the addresses and why; and then the client rests."""
    world = World()
    world.refuse("eu-1")
    (operation,) = world.put("a", timeout_us=1 * S)
    world.run(1 * S)
    error = world.result(operation)
    assert isinstance(error, Unavailable)
    assert "eu-1:1" in str(error) and "connection refused" in str(error)
    world.run(10 * S)
    asked = len(world.sent)
    world.run(60 * S)
    assert len(world.sent) == asked, "nobody waits, so nobody is asked"


def test_a_datacenter_that_does_not_exist_is_refused_by_name() -> None:
    """A misspelt dc= or failover= is InvalidRequest with the names that there are."""
    for settings in ({"dc": "eu-wset"}, {"dc": "eu", "failover": ("mars",)}):
        world = World(**settings)  # type: ignore[arg-type]
        (operation,) = world.put("a")
        world.run_until_told(operation)
        error = world.result(operation)
        assert isinstance(error, InvalidRequest) and "eu" in str(error).split("has", 1)[1]


@pytest.mark.parametrize("failure", [Failure.REJECTED, Failure.UNWRITABLE])
def test_a_datacenter_that_no_node_knows_is_refused_at_once(failure: Failure) -> None:
    """Nodes that say so end the search: every caller gets InvalidRequest with their words, and no time passes."""
    world = World(addresses=("eu-1:1", "eu-2:1", "eu-3:1"))
    world.refuse("eu-1")
    for name in ("eu-2", "eu-3"):
        world.ring_behaviours[name] = fails(failure, 'no datacenter "mars" here; there are: eu')
    put, get = world.put("a")[0], world.get("b")[0]
    started_us = world.now_us
    world.run_until_told(put, get)
    assert world.now_us - started_us < 100 * MS
    for operation in (put, get):
        error = world.result(operation)
        assert isinstance(error, InvalidRequest) and not error.retryable
        assert "there are: eu" in error.message and "connection refused" not in error.message
    world.sent.clear()
    world.run(10 * S)
    assert not world.sent
    world.heal()
    (later,) = world.put("a")
    world.run_until_told(later)
    assert world.result(later) == ("ok", "eu")


def test_one_node_that_tells_the_ring_is_enough() -> None:
    """A refusal by one address (another program's, say) does not end the search while another one tells."""
    world = World(addresses=("eu-1:1", "eu-2:1"))
    world.ring_behaviours["eu-1"] = fails(Failure.REJECTED, "unimplemented")
    (operation,) = world.put("a")
    world.run_until_told(operation)
    assert world.result(operation) == ("ok", "eu")


@pytest.mark.parametrize("timeout_us", [50 * MS, 1 * S, 5 * S])
def test_a_failure_to_reach_the_cluster_counts_what_was_asked(timeout_us: int) -> None:
    """The number in the error is that of the questions that left, and how long was waited stands beside it."""
    world = World()
    world.refuse("eu-1")
    (operation,) = world.put("a", timeout_us=timeout_us)
    world.run_until_told(operation)
    asked = len(world.batches(RingAsk))
    times = "asked once" if asked == 1 else f"asked {asked} times"
    assert world.result(operation).message.endswith(f"{times} (waited {timeout_us / S:g} s)")


def test_without_a_datacenter_stated_that_of_the_answering_node_is_used() -> None:
    """dc="" takes the datacenter of the node that told the ring, and asks as one from outside."""
    world = World({"eu": 2, "us": 2}, dc="", addresses=("us-1:1",))
    world.run_until_told(*world.put("a"))
    assert {name[:2] for name in world.nodes_asked()} == {"us"}
    assert world.batches(RingAsk)[0].request == RingAsk("")


def test_a_node_of_another_cluster_is_not_used() -> None:
    """When a known address starts to belong to another cluster, its node is down, with the reason."""
    world = two()
    world.ring_behaviours["eu-1"] = lambda _: RingTold("strange", 16, 99, list(world.members), {"eu": 3, "us": 3})
    world.behaviours["eu-1"] = fails(Failure.REFUSED)
    world.put(*[f"k{index}" for index in range(10)])
    world.run(2 * S)
    assert "strange" in world.machine.datacenters.nodes["eu-1"].reason
    assert world.machine.datacenters.cluster == "test"


def test_ready_waits_for_a_node_of_the_datacenter_in_use() -> None:
    """wait_ready is told when a node has answered at the address that the ring gives, and not before."""
    world = World(addresses=("boot:1",))
    world.behaviours["boot"] = silent
    for name in ("eu-1", "eu-2", "eu-3"):
        world.ring_behaviours[name] = silent
    (operation,) = world.add([world.operation("", None, Kind.READY, options=world.options(Kind.READY))])
    world.run(100 * MS)
    assert world.machine.datacenters.is_known and not world.is_told(operation)
    assert world.forgotten == ["boot:1"]
    world.heal()
    world.run_until_told(operation)
    assert world.result(operation) == ("ok", "eu")


# --- nodes
# ------------------------------------------------------------------------------------------------------------------


def test_a_dead_node_is_left_out_and_taken_back() -> None:
    """Refused: the others take over at once. Up again: noticed by a probe, without any operation."""
    world = two()
    world.refuse("eu-2")
    operations = world.put(*[f"k{index}" for index in range(30)])
    world.run_until_told(*operations)
    assert all(world.result(one) == ("ok", "eu") for one in operations)
    assert [(event.kind, event.node) for event in world.events] == [("node_down", "eu-2")]
    world.heal()
    world.run(2 * S)
    assert [(event.kind, event.node) for event in world.events] == [("node_down", "eu-2"), ("node_up", "eu-2")]
    world.sent.clear()
    world.put(*[f"k{index}" for index in range(10)])
    assert "eu-2" in world.nodes_asked()


def test_a_silent_node_is_noticed_and_new_writes_go_elsewhere() -> None:
    """One node of three becomes a black hole: within 1.5 s new writes of its keys are served by others, its reads
    too.
    """
    world = two()
    world.behaviours["eu-2"] = world.ring_behaviours["eu-2"] = silent
    hung = world.put(*[f"k{index}" for index in range(30)])
    reads = world.get(*[f"k{index}" for index in range(30)])
    world.run(1_300 * MS)
    fresh = world.put(*[f"n{index}" for index in range(30)])
    world.run(10 * MS)
    assert all(world.result(one) == ("ok", "eu") for one in (*reads, *fresh))
    assert kinds(world) == []
    world.run(1 * S)
    assert all(world.result(one) == ("ok", "eu") for one in hung)
    assert {request.tried for request in (sent.request for sent in world.batches())} == {(), ("eu-2",)}


def test_a_slow_call_on_a_node_that_answers_others_is_left_alone() -> None:
    """A write that takes seconds is no reason to give its node up while the node says anything at all."""
    world = two()
    options = world.options(replicated_to=2, timeout_us=5 * S)
    slow = world.operation("a", options=options)
    asked: list[object] = []

    def only_slow(request: object) -> object:
        if getattr(request, "replicated_to", 0) and not asked:
            asked.append(request)
            return None
        return world._serve("eu-1", request)

    for name in ("eu-1", "eu-2", "eu-3"):
        world.behaviours[name] = only_slow
    world.add([slow])
    world.run(4 * S)
    assert not world.events and not world.is_told(slow)


def test_writes_to_a_node_judged_dead_are_answered_if_it_speaks_in_time() -> None:
    """The last chance is one: a late answer within the grace counts as an answer."""
    world = two(grace_us=2 * S)
    world.behaviours["eu-2"] = world.ring_behaviours["eu-2"] = silent
    operations = world.put(*[f"k{index}" for index in range(30)])
    world.run(1_500 * MS)
    (call,) = [effect for effect in world.under_way.values() if hasattr(effect.request, "keys")]
    world.handle(CallReturned(call.call, world._serve("eu-2", call.request)))
    assert all(world.result(one) == ("ok", "eu") for one in operations)


# --- datacenters
# ----------------------------------------------------------------------------------------------------------


def test_a_black_hole_is_left_within_two_seconds() -> None:
    """Packets to the own datacenter vanish: new writes are served by the next one in less than 2 s."""
    world = two()
    world.dark("eu")
    took_us, _ = first_served(world, within_us=5 * S)
    assert took_us <= 2 * S
    assert kinds(world) == ["failover"]
    assert (world.events[-1].dc, world.events[-1].from_dc) == ("us", "eu")


def test_writes_under_way_into_a_black_hole_are_in_doubt_elsewhere() -> None:
    """In the next datacenter they name who was asked: there it is found out, or not; then they may have happened."""
    world = two()
    world.dark("eu")
    world.behaviours |= {f"us-{number}": answers(Outcome.AMBIGUOUS) for number in (1, 2, 3)}
    operations = world.put("a", "b", "c", timeout_us=8 * S)
    world.run(9 * S)
    for operation in operations:
        assert isinstance(world.result(operation), Ambiguous | DeadlineExceeded)
        assert world.result(operation).may_have_happened
    elsewhere = [sent.request for sent in world.batches() if sent.address.startswith("us")]
    assert elsewhere and all(any(name.startswith("eu-") for name in request.tried) for request in elsewhere)


def test_reads_under_way_into_a_black_hole_are_served_elsewhere() -> None:
    """A read that hung in the lost datacenter is answered by the next one, within its own time."""
    world = two()
    world.dark("eu")
    operations = world.get("a", "b", "c")
    world.run_until_told(*operations)
    assert all(world.result(operation) == ("ok", "us") for operation in operations)
    assert all(world.told_at_us[id(one)] - one.started_us <= 2 * S for one in operations)


def test_a_datacenter_that_refuses_is_left_at_once() -> None:
    """When all nodes refuse the connection, the very same write is served by the next datacenter within
    milliseconds.
    """
    world = two()
    world.refuse("eu-1", "eu-2", "eu-3")
    (operation,) = world.put("a")
    world.run_until_told(operation)
    assert world.result(operation) == ("ok", "us")
    assert world.told_at_us[id(operation)] - operation.started_us <= 500 * MS
    assert kinds(world) == ["failover"]


def test_a_datacenter_that_cannot_coordinate_is_left_after_a_while() -> None:
    """All nodes answer UNAVAILABLE: after at least 300 ms of trying the next datacenter serves the write."""
    world = two()
    for name in ("eu-1", "eu-2", "eu-3"):
        world.behaviours[name] = answers(Outcome.UNAVAILABLE)
    (operation,) = world.put("a")
    world.run_until_told(operation)
    assert world.result(operation) == ("ok", "us")
    assert 300 * MS <= world.told_at_us[id(operation)] - operation.started_us <= 2 * S
    assert kinds(world) == ["failover"]


def test_one_key_that_cannot_be_served_moves_alone() -> None:
    """While other keys succeed here, an operation that keeps being refused turns to the next datacenter by itself."""
    world = two()

    def refuse_one(request: object) -> object:
        reply = world._serve("eu-1", request)
        for index, key in enumerate(request.keys):  # type: ignore[attr-defined]
            if key == b"bad":
                reply.outcomes[index] = Outcome.UNAVAILABLE
        return reply

    for name in ("eu-1", "eu-2", "eu-3"):
        world.behaviours[name] = refuse_one
    (bad,) = world.put("bad")
    while not world.is_told(bad):
        world.put(*[f"good{index}" for index in range(10)])
        world.run(10 * MS)
    assert world.result(bad) == ("ok", "us")
    assert kinds(world) == []


def test_a_short_silence_is_no_reason_to_leave() -> None:
    """A pause of 400 ms of all nodes changes nothing, and no node is even asked."""
    world = two(delay_us=400 * MS)
    operations = world.put(*[f"k{index}" for index in range(30)])
    world.run_until_told(*operations)
    assert all(world.result(one) == ("ok", "eu") for one in operations)
    assert world.events == [] and world.notes["client.silence"] == 0


def test_the_client_returns_after_five_healthy_seconds_and_not_before() -> None:
    """Healed, the own datacenter is watched for 5 s, then used again; nothing fails on the way."""
    world = two()
    world.dark("eu")
    first_served(world, within_us=5 * S)
    world.heal()
    healed_us = world.now_us
    while kinds(world)[-1] != "failback":
        (operation,) = world.put("a")
        world.run(50 * MS)
        assert world.result(operation)[0] == "ok"
        assert world.now_us - healed_us < 10 * S
    assert 5 * S <= world.now_us - healed_us <= 7 * S
    world.sent.clear()
    world.put("b")
    assert world.nodes_asked()[0].startswith("eu")


def test_a_flapping_datacenter_is_not_returned_to() -> None:
    """Healthy for 3 s out of 6, again and again: one failover and no return."""
    world = two()
    world.dark("eu")
    first_served(world, within_us=5 * S)
    for _ in range(5):
        world.heal()
        world.run(3 * S)
        world.dark("eu")
        world.run(3 * S)
    assert kinds(world) == ["failover"]


def test_after_a_relapse_the_return_takes_longer() -> None:
    """Lost again right after the return: the next one comes after 10 healthy seconds."""
    world = two()
    for expected_s in (5, 10, 20):
        world.dark("eu")
        first_served(world, within_us=5 * S)
        world.heal()
        healed_us = world.now_us
        count = len(kinds(world))
        while len(kinds(world)) == count:
            world.run(50 * MS)
        assert expected_s * S <= world.now_us - healed_us <= (expected_s + 2) * S


def test_a_minority_is_not_healthy() -> None:
    """One node of three is back: the client stays where it is."""
    world = two()
    world.dark("eu")
    first_served(world, within_us=5 * S)
    del world.behaviours["eu-1"], world.ring_behaviours["eu-1"]
    world.run(30 * S)
    assert kinds(world) == ["failover"]
    del world.behaviours["eu-2"], world.ring_behaviours["eu-2"]
    world.run(7 * S)
    assert kinds(world) == ["failover", "failback"]


def test_failover_goes_on_in_the_stated_order() -> None:
    """Own, second, third; and when the second heals first, back to the second."""
    world = World({"eu": 2, "us": 2, "ap": 2}, failover=("us", "ap"))
    world.run_until_told(*world.put("a"))
    world.dark("eu")
    world.dark("us")
    started_us = world.now_us
    while not any(effect.address.startswith("ap") for effect in world.batches()):
        world.put("k")
        world.run(50 * MS)
        assert world.now_us - started_us < 5 * S
    for name in ("us-1", "us-2"):
        del world.behaviours[name], world.ring_behaviours[name]
    world.run(8 * S)
    assert [(event.kind, event.dc) for event in world.events if event.kind.startswith("fail")] == [
        ("failover", "us"),
        ("failover", "ap"),
        ("failback", "us"),
    ]


def test_with_everything_lost_operations_wait_and_go_where_life_returns_first() -> None:
    """All datacenters gone: nothing is lost while there is time, and the first node that answers is used."""
    world = two()
    world.refuse(*[member.name for member in world.members])
    (operation,) = world.put("a", timeout_us=20 * S)
    world.run(5 * S)
    assert not world.is_told(operation)
    del world.behaviours["us-2"], world.ring_behaviours["us-2"]
    world.run_until_told(operation)
    assert world.result(operation) == ("ok", "us")


def test_with_everything_lost_the_error_names_the_nodes() -> None:
    """Unavailable at the deadline; the message says which nodes could not be reached and why."""
    world = World()
    world.run_until_told(*world.put("a"))
    world.refuse("eu-1", "eu-2", "eu-3")
    (operation,) = world.put("b", timeout_us=2 * S)
    world.run(2 * S)
    error = world.result(operation)
    assert isinstance(error, Unavailable) and "connection refused" in str(error)


def test_a_client_without_failover_stays_and_recovers() -> None:
    """With one datacenter there is no failover event; when it is back, it is used."""
    world = World()
    world.run_until_told(*world.put("a"))
    world.dark("eu")
    world.put("b")
    world.run(3 * S)
    world.heal()
    (operation,) = world.put("c")
    world.run_until_told(operation)
    assert world.result(operation) == ("ok", "eu")
    assert kinds(world) == []


def test_an_idle_client_sends_nothing() -> None:
    """Healthy and unused: no probe, no timer."""
    world = two()
    world.run(1 * S)
    world.sent.clear()
    world.run(3600 * S)
    assert world.sent == [] and world.machine.wake_at_us() is None


@pytest.mark.parametrize("delay_ms", [1, 80, 250])
def test_detection_works_over_long_ways(delay_ms: int) -> None:
    """At 80 and 250 ms round trip a healthy cluster causes no event, and a black hole is left within 2.5 s."""
    world = two(delay_us=delay_ms * MS)
    operations = world.put(*[f"k{index}" for index in range(50)]) + world.get(*[f"k{index}" for index in range(50)])
    world.run_until_told(*operations)
    assert world.events == [] and len(world.batches(ReadBatch)) > 0
    world.dark("eu")
    took_us, _ = first_served(world, within_us=5 * S)
    assert took_us <= 2_500 * MS
