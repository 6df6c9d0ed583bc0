"""What is repeated, what never is, and what the caller is told."""

import random
from itertools import pairwise

import pytest

from geokv.core.ring import key_hash
from geokv.errors import (
    Ambiguous,
    ClientClosed,
    DeadlineExceeded,
    InvalidRequest,
    NamespaceExists,
    NamespaceNotFound,
    Overloaded,
    Partial,
    Stale,
    Unavailable,
)
from geokv.protocol.client.messages import CallReturned, Closed, Failure, OperationsAdded
from geokv.protocol.client.operations import Kind
from geokv.protocol.client.settings import MS, S
from geokv.protocol.effects import Woken
from geokv.protocol.requests import AdminRequest, Detail, Outcome, ReadBatch, WriteBatch, WriteReply
from tests.protocol.client.world import World, answers, fails, silent


def ready(world: World) -> World:
    world.run_until_told(*world.put("warm"))
    world.sent.clear()
    return world


@pytest.mark.parametrize("failure", [Failure.BROKEN, Failure.FAILED, Failure.MALFORMED])
def test_a_write_whose_call_broke_is_repeated_only_as_a_retry(failure: Failure) -> None:
    """Connection lost, unexplained failure, nonsense answer: every further attempt names who was asked and since when, under
    the same id; in the end it is Ambiguous.
    """
    world = ready(World())
    for member in world.members:
        world.behaviours[member.name] = fails(failure)
    (operation,) = world.put("a")
    world.run_until_told(operation)
    error = world.result(operation)
    assert isinstance(error, Ambiguous) and error.may_have_happened and not error.retryable
    first, *others = [sent.request for sent in world.batches()]
    assert first.tried == () and len(others) >= 2
    for number, request in enumerate(others):
        assert request.operations == first.operations and len(request.tried) == min(number + 1, 3)
        assert 0 < request.first_try_ms <= 5_000
    assert [request.first_try_ms for request in others] == sorted(request.first_try_ms for request in others)


def test_a_retry_of_a_batch_holds_what_is_in_doubt_of_it_and_nothing_else() -> None:
    """Of a call some operations were answered: those are told, the others go on, apart from what is new."""
    world = ready(World({"eu": 1}))

    def behave(request: WriteBatch) -> WriteReply:
        count = len(request.keys)
        outcomes = [Outcome.APPLIED if key == b"a" or request.tried else Outcome.AMBIGUOUS for key in request.keys]
        return WriteReply([int(one) for one in outcomes], [1] * count, [1] * count, [1] * count, "eu-1", 0, 1)

    world.behaviours["eu-1"] = behave
    operations = world.put("a", "b", "c")
    world.run_until_told(*operations)
    assert all(world.result(one) == ("ok", "eu") for one in operations)
    first, *again = [sent.request for sent in world.batches()]
    assert first.keys == [b"a", b"b", b"c"] and {request.tried for request in again} == {("eu-1",)}
    assert [key for request in again for key in request.keys] == [b"b", b"c"]
    assert [name for request in again for name in request.operations] == first.operations[1:]


def test_a_retry_that_nobody_can_take_is_still_in_doubt() -> None:
    """The last word is "nothing was written", but of the last try only: the error does not say so of the operation."""
    world = ready(World())
    world.behaviours = {member.name: fails(Failure.BROKEN) for member in world.members}
    (operation,) = world.put("a")
    world.run(1 * MS)
    world.behaviours = {member.name: answers(Outcome.UNAVAILABLE) for member in world.members}
    world.run_until_told(operation)
    error = world.result(operation)
    assert isinstance(error, Ambiguous) and error.may_have_happened and "eu-" in str(error)


@pytest.mark.parametrize("failure", [Failure.BROKEN, Failure.FAILED, Failure.MALFORMED, Failure.TIMEOUT])
def test_a_read_whose_call_broke_is_repeated(failure: Failure) -> None:
    """A read is asked again until it succeeds."""
    world = ready(World())
    for member in world.members:
        world.behaviours[member.name] = fails(failure)
    (operation,) = world.get("a")
    world.run(100 * MS)
    world.heal()
    world.run_until_told(operation)
    assert world.result(operation) == ("ok", "eu")
    assert len(world.batches(ReadBatch)) > 1


@pytest.mark.parametrize("failure", [Failure.REFUSED, Failure.NOT_SENT, Failure.NOT_READY])
def test_a_write_that_was_not_sent_goes_to_the_next_owner_at_once(failure: Failure) -> None:
    """A refused connection costs no waiting: the second owner has the write in the next millisecond."""
    world = ready(World())
    owner = _first_owner(world, "a")
    world.behaviours[owner] = fails(failure)
    (operation,) = world.put("a")
    world.run_until_told(operation)
    assert world.result(operation) == ("ok", "eu")
    assert world.nodes_asked()[0] == owner != world.nodes_asked()[1]
    assert world.told_at_us[id(operation)] - operation.started_us <= 3 * MS


def test_a_node_that_takes_no_calls_is_left_alone_until_it_answers_a_probe() -> None:
    """One that drains or recovers says so once, and is asked for nothing but the ring until it gives that."""
    world = ready(World())
    owner = _first_owner(world, "a")
    world.behaviours[owner] = world.ring_behaviours[owner] = fails(Failure.NOT_READY)
    for _ in range(20):
        (operation,) = world.put("a")
        world.run_until_told(operation)
        world.run(50 * MS)
    assert world.nodes_asked().count(owner) == 1
    world.heal()
    world.run(3 * S)
    (operation,) = world.put("a")
    world.run_until_told(operation)
    assert world.nodes_asked().count(owner) == 2


@pytest.mark.parametrize("outcome", [Outcome.UNAVAILABLE, Outcome.OVERLOADED, Outcome.WRONG_NODE])
def test_what_was_not_numbered_is_repeated_with_growing_pauses(outcome: Outcome) -> None:
    """The same write leaves again and again, each pause longer up to the jitter, until the node takes it."""
    world = ready(World({"eu": 1}))
    world.behaviours["eu-1"] = answers(outcome, Detail(retry_after_ms=1))
    (operation,) = world.put("a")
    world.run(400 * MS)
    world.heal()
    world.run_until_told(operation)
    assert world.result(operation) == ("ok", "eu")
    times = [at_us for at_us, effect in world.sent if isinstance(effect.request, WriteBatch)]
    pauses = [later - earlier for earlier, later in pairwise(times)]
    assert len(pauses) >= 3
    assert all(12 * MS <= pause <= 1500 * MS for pause in pauses)
    assert pauses[-1] > pauses[0]


def test_unavailable_is_tried_at_other_owners() -> None:
    """A node that cannot coordinate is not asked again before the others were."""
    world = ready(World())
    owner = _first_owner(world, "a")
    world.behaviours[owner] = answers(Outcome.UNAVAILABLE)
    (operation,) = world.put("a")
    world.run_until_told(operation)
    assert world.result(operation) == ("ok", "eu")
    assert len(set(world.nodes_asked())) == 2


def test_unavailable_everywhere_is_given_up_after_a_second() -> None:
    """When all owners keep saying that the level cannot be met, the caller learns it well before its deadline."""
    world = ready(World())
    for member in world.members:
        world.behaviours[member.name] = answers(Outcome.UNAVAILABLE, Detail("2 of 3 are down", 2, 1))
    (operation,) = world.put("a", timeout_us=60 * S)
    world.run_until_told(operation)
    error = world.result(operation)
    assert isinstance(error, Unavailable) and (error.required, error.achieved) == (2, 1)
    assert 1 * S <= world.told_at_us[id(operation)] - operation.started_us <= 3 * S


def test_overloaded_waits_as_long_as_the_node_says() -> None:
    """retry_after is honoured; and where it lies beyond the deadline the caller is told at once."""
    world = ready(World({"eu": 1}))
    world.behaviours["eu-1"] = answers(Outcome.OVERLOADED, Detail(retry_after_ms=700))
    patient, hasty = world.add([world.operation("a"), world.operation("b", timeout_us=500 * MS)])
    world.run(10 * MS)
    error = world.result(hasty)
    assert isinstance(error, Overloaded) and error.retry_after == pytest.approx(0.7)
    world.heal()
    world.run_until_told(patient)
    assert world.told_at_us[id(patient)] - patient.started_us >= 700 * MS


@pytest.mark.parametrize(
    ("outcome", "kind"),
    [
        (Outcome.INVALID, InvalidRequest),
        (Outcome.NOT_FOUND, NamespaceNotFound),
        (Outcome.STALE, Stale),
        (Outcome.DEADLINE, DeadlineExceeded),
        (Outcome.ALREADY_EXISTS, NamespaceExists),
    ],
)
def test_other_outcomes_are_told_and_not_repeated(outcome: Outcome, kind: type[Exception]) -> None:
    """Each error outcome has its class, and one attempt."""
    world = ready(World({"eu": 1}))
    world.behaviours["eu-1"] = answers(outcome, Detail("because", 3, 1, ("eu-1",), 250))
    (operation,) = world.put("a")
    world.run_until_told(operation)
    error = world.result(operation)
    assert type(error) is kind and "because" in str(error)
    assert len(world.batches()) == 1
    if kind is Stale:
        assert error.behind_ms == 250


@pytest.mark.parametrize(("outcome", "kind"), [(Outcome.PARTIAL, Partial), (Outcome.AMBIGUOUS, Ambiguous)])
def test_a_write_in_doubt_is_completed_by_a_retry_where_there_is_time(outcome: Outcome, kind: type[Exception]) -> None:
    """With time left it is tried again, naming who said so; without, that answer is told as it came."""
    world = ready(World({"eu": 1}))
    detail = Detail("because", 3, 1, ("eu-1",), 250)
    world.behaviours["eu-1"] = answers(outcome, detail)
    (late,) = world.put("a", timeout_us=200 * MS)
    world.run_until_told(late)
    error = world.result(late)
    assert type(error) is kind and "because" in str(error) and len(world.batches()) == 1
    if isinstance(error, Partial):
        assert (error.required, error.achieved, error.replicas) == (3, 1, ("eu-1",))
    (operation,) = world.put("b")
    world.run(5 * MS)
    world.behaviours["eu-1"] = answers(Outcome.APPLIED)
    world.run_until_told(operation)
    assert world.result(operation) == ("ok", "eu")
    assert [sent.request.tried for sent in world.batches()][1:3] == [(), ("eu-1",)]


def test_items_of_one_batch_have_their_own_outcomes() -> None:
    """One refused item leaves its neighbours done, and one that was not numbered is repeated alone."""
    world = ready(World({"eu": 1}))
    script = [[Outcome.APPLIED, Outcome.INVALID, Outcome.UNAVAILABLE, Outcome.SUPERSEDED], [Outcome.APPLIED]]

    def behave(batch: WriteBatch) -> WriteReply:
        outcomes = [int(outcome) for outcome in script.pop(0)]
        ones = [1] * len(outcomes)
        return WriteReply(outcomes, ones, ones, ones, "eu-1", 5, 1)

    world.behaviours["eu-1"] = behave
    done, refused, repeated, superseded = world.put("a", "b", "c", "d")
    world.run_until_told(done, refused, repeated, superseded)
    assert [effect.request.keys for effect in world.batches()] == [[b"a", b"b", b"c", b"d"], [b"c"]]
    assert world.result(done) == world.result(repeated) == world.result(superseded) == ("ok", "eu")
    assert isinstance(world.result(refused), InvalidRequest)


def test_an_item_that_times_out_leaves_its_batch_mates_untouched() -> None:
    """In one call, the hasty item is told at its own deadline; the patient ones get their answer later."""
    world = ready(World({"eu": 1}))
    world.behaviours["eu-1"] = silent
    hasty, patient = world.add([world.operation("a", timeout_us=100 * MS), world.operation("b")])
    (effect,) = world.batches()
    assert effect.request.timeout_ms > 4_000, "the node gets the longest time that anyone in the batch has"
    world.run(300 * MS)
    error = world.result(hasty)
    assert isinstance(error, DeadlineExceeded) and error.may_have_happened
    assert world.told_at_us[id(hasty)] - hasty.started_us == 100 * MS
    assert not world.is_told(patient)
    reply = WriteReply([0, 0], [1, 2], [2, 2], [1, 1], "eu-1", 5, 1)
    world.handle(CallReturned(effect.call, reply))
    assert world.result(patient) == ("ok", "eu")


def test_the_deadline_of_what_was_never_sent_says_so() -> None:
    """Behind a call that hangs, a write expires with may_have_happened = False."""
    world = ready(World({"eu": 1}))
    world.behaviours["eu-1"] = silent
    world.put("first")
    (operation,) = world.put("a", timeout_us=200 * MS)
    world.run(200 * MS)
    error = world.result(operation)
    assert isinstance(error, DeadlineExceeded) and not error.may_have_happened


def test_a_read_that_ran_out_of_time_cannot_have_happened() -> None:
    """DeadlineExceeded of a read says may_have_happened = False."""
    world = ready(World({"eu": 1}))
    world.behaviours["eu-1"] = silent
    (operation,) = world.get("a", timeout_us=200 * MS)
    world.run(250 * MS)
    error = world.result(operation)
    assert isinstance(error, DeadlineExceeded) and not error.may_have_happened


def test_a_read_leaves_time_to_ask_somebody_else() -> None:
    """A node that lives but does not answer a read gets half of the time; then another owner is asked, in time."""
    world = ready(World())
    owner = _first_owner(world, "a")
    world.behaviours[owner] = silent
    (operation,) = world.get("a", timeout_us=1 * S)
    world.run_until_told(operation)
    assert world.result(operation) == ("ok", "eu")


def test_a_late_answer_to_a_call_that_was_given_up_is_ignored() -> None:
    """What comes back after its time changes nothing and is counted."""
    world = ready(World({"eu": 1}))
    world.behaviours["eu-1"] = silent
    (operation,) = world.put("a", timeout_us=50 * MS)
    (effect,) = world.batches()
    world.run(60 * MS)
    assert effect.call in world.cancelled
    world.handle(CallReturned(effect.call, WriteReply([0], [1], [1], [1], "eu-1", 1, 1)))
    assert world.notes["client.late_reply"] == 1
    assert isinstance(world.result(operation), DeadlineExceeded)


def test_a_reply_with_the_wrong_number_of_items_is_not_believed() -> None:
    """A node that answers two items for one write makes it Ambiguous; a read is asked again."""
    world = ready(World({"eu": 1}))
    world.behaviours["eu-1"] = lambda batch: WriteReply([0, 0], [1, 1], [1, 1], [1, 1], "eu-1", 5, 1)
    (operation,) = world.put("a")
    world.run_until_told(operation)
    assert isinstance(world.result(operation), Ambiguous)


def test_a_process_that_stood_still_blames_no_node() -> None:
    """After a pause of the client itself, the answer that is waiting to be read counts, and nobody is judged down."""
    world = ready(World({"eu": 3}, delay_us=20 * MS))
    world.run(1 * S)
    operations = world.put(*[f"k{index}" for index in range(20)], timeout_us=20 * S)
    answers_waiting = [(effect.call, effect.request) for _, effect in world.sent if effect.call in world.under_way]
    world.now_us += 8 * S  # nothing is delivered, no timer runs
    world.handle(Woken())
    for call, request in answers_waiting:
        if isinstance(request, WriteBatch):
            world.handle(CallReturned(call, world._serve("eu-1", request)))
    world.run(1 * S)
    assert all(world.result(operation) == ("ok", "eu") for operation in operations)
    assert not world.events


def test_admin_requests_that_change_are_not_repeated_blindly_and_others_are() -> None:
    """namespace_create with a broken call is Ambiguous after one attempt; status is asked again."""
    world = ready(World({"eu": 1}))
    world.behaviours["eu-1"] = fails(Failure.BROKEN)
    options = world.options(Kind.ADMIN)
    create, status = world.add(
        [world.operation("", AdminRequest(verb, {}), Kind.ADMIN, options=options) for verb in ("namespace_create", "status")]
    )
    world.run(20 * MS)
    assert isinstance(world.result(create), Ambiguous)
    world.heal()
    world.run_until_told(status)
    assert world.result(status) == ("ok", "eu")


def test_closing_tells_everybody() -> None:
    """Under way: Ambiguous for writes, ClientClosed for reads. Waiting, planned and late comers: ClientClosed."""
    world = ready(World({"eu": 2}))
    world.behaviours = {"eu-1": silent, "eu-2": silent}
    write = world.put(*[f"k{index}" for index in range(12)])
    waiting = world.put(*[f"w{index}" for index in range(3)])
    read = world.get(*[f"k{index}" for index in range(20)])
    world.handle(Closed())
    assert all(isinstance(world.result(operation), Ambiguous) for operation in write)
    assert all(isinstance(world.result(operation), ClientClosed) for operation in (*waiting, *read))
    assert world.machine.outstanding == 0 and world.machine.wake_at_us() is None
    late = world.operation("late")
    world.handle(OperationsAdded([late]))
    assert isinstance(world.result(late), ClientClosed)


def test_every_operation_is_told_exactly_once_whatever_fails() -> None:
    """300 operations against nodes that fail in every way at random: each is told once (the world checks it), by its
    deadline.
    """
    for seed in range(20):
        world = World({"eu": 3, "us": 2}, seed=seed, failover=("us",))
        rng = random.Random(seed)
        choices = [None, None, silent, *(fails(failure) for failure in Failure), answers(Outcome.UNAVAILABLE)]
        operations = []
        for _ in range(30):
            for member in world.members:
                behaviour = rng.choice(choices)
                if behaviour is None:
                    world.behaviours.pop(member.name, None)
                else:
                    world.behaviours[member.name] = behaviour
                if rng.random() < 0.3:
                    world.ring_behaviours[member.name] = silent
                else:
                    world.ring_behaviours.pop(member.name, None)
            timeout_us = rng.choice([50 * MS, 500 * MS, 3 * S])
            operations += world.put(*[f"p{rng.random()}" for _ in range(5)], timeout_us=timeout_us)
            operations += world.get(*[f"g{rng.random()}" for _ in range(5)], timeout_us=timeout_us)
            world.run(rng.randrange(300) * MS)
        world.run(5 * S)
        for operation in operations:
            assert world.told_at_us[id(operation)] <= operation.deadline_us
        assert world.machine.outstanding == 0


def _first_owner(world: World, key: str) -> str:
    """The node that is asked first for a key."""
    datacenters = world.machine.datacenters
    node = datacenters.current().first[key_hash(key.encode()) >> datacenters.shift]
    assert node is not None
    return node.name


def test_a_batch_says_how_much_time_each_caller_has_left() -> None:
    """Where they differ; where they are nearly alike, nothing is said of each."""
    world = ready(World({"eu": 1}))
    world.add([world.operation("a", timeout_us=5 * S), world.operation("b", timeout_us=1 * S)])
    world.add([world.operation("c", timeout_us=5 * S), world.operation("d", timeout_us=5 * S - 50 * MS)])
    world.run(100 * MS)
    uneven, even = [sent.request for sent in world.batches()]
    assert uneven.remaining_ms == [uneven.timeout_ms, uneven.timeout_ms - 4000] and even.remaining_ms == []
