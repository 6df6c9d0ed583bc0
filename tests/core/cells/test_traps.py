"""The traps into which stores of this kind have fallen, each by name."""

import pytest

from geokv.core.cells.codec import decode, decode_token, encode, encode_token
from geokv.core.cells.context import NUMBER_MAX, CausalContext, Dot
from geokv.core.cells.operation import Operation
from geokv.core.cells.policies import type_of
from geokv.core.cells.state import CellState
from geokv.core.cells.update import collected, is_tombstone, sweep, update, value
from geokv.core.conflict import policy_of
from geokv.core.limits import SIBLINGS_MAX
from geokv.core.origin import Origin
from geokv.errors import InvalidRequest, NotEnoughRights, Stale

LIKES = ((b"likes", "counter_pn"),)
TAGS = ((b"tags", "set_aw"),)


class Node:
    """A replica and the run of it that coordinates; numbers count over all keys of its partition."""

    def __init__(self, policy: str, dc: str, incarnation: int = 1) -> None:
        self.kind = type_of(policy)
        self.dc = dc
        self.incarnation = incarnation
        self.number = 0
        self.state = CellState()

    @property
    def origin(self) -> bytes:
        return Origin(self.dc, "n", self.incarnation).packed()

    def do(
        self,
        name: str,
        *arguments: object,
        path: tuple[tuple[bytes, str], ...] = (),
        context: CausalContext | None = None,
        stamp: int = 0,
    ) -> CellState:
        self.number += 3
        operation = Operation(name, arguments, path, context)
        delta = update(self.kind, self.state, operation, Dot(self.origin, self.number), stamp=stamp)
        self.state.join(delta)
        return delta

    def restart(self) -> None:
        self.incarnation += 1
        self.number = 0

    def read(self) -> CausalContext:
        return self.state.context.copy()

    @property
    def shown(self) -> object:
        return value(self.kind, self.state)


def pair(policy: str) -> tuple[Node, Node]:
    return Node(policy, "eu"), Node(policy, "us")


def settle(*nodes: Node) -> None:
    """All have what all had; every order of joining gives the same bytes."""
    states = [node.state.copy() for node in nodes]
    for node in nodes:
        for state in states:
            node.state.join(state)
    assert len({encode(node.kind.tag, node.state) for node in nodes}) == 1


def collect(node: Node) -> None:
    left = collected(node.state, lambda _: True)
    node.state = CellState() if left is None else left


def test_a_node_that_lost_its_disk_makes_no_dot_twice() -> None:
    """Its new run is another origin, so what it writes first is not taken for what it wrote first before."""
    eu, us = pair("set_aw")
    eu.do("add", b"old")
    settle(eu, us)
    us.do("remove", b"old")
    eu.state = CellState()
    eu.restart()
    eu.do("add", b"new")
    settle(eu, us)
    assert eu.shown == {b"new"}


def test_a_node_that_was_restored_from_an_old_copy_makes_no_dot_twice() -> None:
    """The copy says number 3; others have seen number 6 of the old run, and must still take what the new run numbers 3."""
    eu, us = pair("siblings")
    first = eu.do("put", b"1", 0)
    copy = eu.state.copy()
    eu.do("put", b"2", 0, context=eu.read())
    settle(eu, us)
    eu.state = copy
    eu.restart()
    third = eu.do("put", b"3", 0)
    assert {*first.items} != {*third.items}
    settle(eu, us)
    assert eu.shown == [b"2", b"3"]


def test_a_node_that_saw_the_key_as_absent_makes_no_dot_twice() -> None:
    """After a collection it finds no previous dot; its next one is still above all that it ever numbered."""
    eu, us = pair("set_aw")
    eu.do("add", b"a")
    eu.do("delete")
    settle(eu, us)
    collect(eu)
    assert not eu.state.context.spans
    delta = eu.do("add", b"b")
    assert delta.context.spans[eu.origin] == (0, 9)
    us.state.join(delta)
    settle(eu, us)
    assert us.shown == {b"b"} and us.state.context.spans[eu.origin] == (0, 9)


def test_interleaved_stale_writers_make_no_sibling_explosion() -> None:
    """Two clients that never see each other's writes, but always their own, hold one value each, for ever."""
    node = Node("siblings", "eu")
    ours, theirs = node.read(), node.read()
    for turn in range(50):
        ours.join(node.do("put", b"ours %d" % turn, 0, context=ours).context)
        theirs.join(node.do("put", b"theirs %d" % turn, 0, context=theirs).context)
    assert node.shown == [b"ours 49", b"theirs 49"]


def test_a_stale_context_never_removes_what_it_did_not_see() -> None:
    """The value that came after the read stays beside the one that is written with it."""
    node = Node("siblings", "eu")
    node.do("put", b"1", 0)
    stale = node.read()
    node.do("put", b"2", 0)
    node.do("put", b"3", 0, context=stale)
    assert node.shown == [b"2", b"3"]
    node.do("delete", context=stale)
    assert node.shown == [b"2", b"3"]
    node.do("delete", context=node.read())
    assert is_tombstone(node.kind, node.state)


def test_blind_puts_are_refused_before_they_explode() -> None:
    """The limit is told, with what to do; nothing is dropped."""
    node = Node("siblings", "eu")
    for turn in range(SIBLINGS_MAX):
        node.do("put", b"%d" % turn, 0)
    with pytest.raises(InvalidRequest, match="with the context of that read"):
        node.do("put", b"one more", 0)
    node.do("put", b"all", 0, context=node.read())
    assert node.shown == [b"all"]


def test_contexts_are_never_pruned() -> None:
    """After a hundred runs the context still names the first, and its late delta brings nothing back."""
    node, other = Node("set_aw", "eu"), Node("set_aw", "us")
    late = node.do("add", b"first")
    node.do("remove", b"first")
    for _ in range(100):
        node.restart()
        node.do("add", b"x")
    settle(node, other)
    other.state.join(late)
    assert other.shown == {b"x"} and len(other.state.context.spans) == 101


def test_a_counter_does_not_over_count_on_a_repeated_delta() -> None:
    """A record that is delivered again, late, and inside a whole cell counts once."""
    eu, us = pair("counter_pn")
    first = eu.do("increment", 5)
    second = eu.do("increment", 2)
    for delta in (second, first, second, eu.state, first):
        us.state.join(delta)
        assert us.shown == 7


def test_a_counter_that_was_collected_here_and_counts_anew_meets_its_tombstone_there() -> None:
    """Of two beginnings the later stands: the old mark takes nothing from the new count."""
    eu, us = pair("counter_pn")
    eu.do("increment", 5)
    eu.do("delete")
    settle(eu, us)
    collect(eu)
    delta = eu.do("increment", 1)
    us.state.join(delta)
    assert (eu.shown, us.shown) == (1, 1)
    settle(eu, us)
    assert (eu.shown, us.shown) == (1, 1)
    us.do("reset")
    settle(eu, us)
    assert eu.shown == 0


def test_a_counter_that_was_collected_there_is_counted_on_here() -> None:
    """Whoever still holds the mark goes on from it, and brings it along: the collected replica does not show the sum before."""
    eu, us = pair("counter_pn")
    eu.do("increment", 5)
    eu.do("delete")
    settle(eu, us)
    collect(us)
    us.state.join(eu.do("increment", 1))
    assert (eu.shown, us.shown) == (1, 1)


def test_a_concurrent_increment_survives_a_reset_and_nothing_else_does() -> None:
    """The reset takes exactly the totals that it saw."""
    eu, us = pair("counter_pn")
    eu.do("increment", 100)
    settle(eu, us)
    eu.do("increment", 3)
    us.do("reset")
    settle(eu, us)
    assert eu.shown == 3


def test_two_concurrent_resets_take_the_same_counts_once() -> None:
    """Their marks are joined, not added."""
    eu, us = pair("counter_pn")
    eu.do("increment", 10)
    settle(eu, us)
    us.do("reset")
    eu.do("decrement", 4)
    eu.do("reset")
    eu.do("increment", 1)
    settle(eu, us)
    assert eu.shown == 1


def test_a_delete_that_covers_counts_tells_what_they_were() -> None:
    """A delete that saw a newer reset takes the item together with its totals, also where an older mark stands."""
    eu, us, ap = Node("counter_pn", "eu"), Node("counter_pn", "us"), Node("counter_pn", "ap")
    eu.state.join(us.do("increment", 1))
    us.state.join(eu.do("delete"))
    ap.state.join(us.do("increment", 1))
    eu.state.join(ap.do("reset"))
    us.state.join(eu.do("delete"))
    us.do("increment", 1)
    settle(eu, us, ap)
    assert us.shown == 1


def test_a_late_delta_of_a_counter_takes_nothing_from_it() -> None:
    """A replica that never had the item which a reset saw shows no negative rest of an older one."""
    eu, us, ap = Node("counter_pn", "eu"), Node("counter_pn", "us"), Node("counter_pn", "ap")
    first = eu.do("increment", 5)
    us.state.join(eu.do("increment", 5))
    reset = us.do("reset")
    ap.state.join(first)
    ap.state.join(reset)
    assert ap.shown == 0


def test_a_context_older_than_the_counter_does_not_reset_it() -> None:
    """What the reader saw can no longer be told from the totals, so the answer is STALE, not a guess."""
    node = Node("counter_pn", "eu")
    node.do("increment", 5)
    stale = node.read()
    node.do("increment", 1)
    with pytest.raises(Stale, match="counted on since"):
        node.do("reset", context=stale)
    node.do("reset", context=node.read())
    assert node.shown == 0


def test_a_counter_in_a_map_has_no_reset_anomaly() -> None:
    """A field removed while it is counted up elsewhere comes back with the unseen count alone."""
    eu, us = pair("map_rr")
    eu.do("increment", 10, path=LIKES)
    settle(eu, us)
    eu.do("remove", b"likes")
    us.do("increment", 1, path=LIKES)
    settle(eu, us)
    assert eu.shown == {LIKES[0]: 1}
    eu.do("remove", b"likes")
    assert is_tombstone(eu.kind, eu.state)
    eu.do("increment", 2, path=LIKES)
    settle(eu, us)
    assert us.shown == {LIKES[0]: 2}


def test_equal_timestamps_with_different_values_have_one_winner_everywhere() -> None:
    """The dot decides; the loser stays in the cell until a write that saw it."""
    eu, us = pair("register_lww")
    eu.do("write", b"from eu", stamp=1000)
    us.do("write", b"from us", stamp=1000)
    settle(eu, us)
    assert eu.shown == us.shown == b"from us"
    assert eu.state.count() == 2
    eu.do("write", b"later", stamp=1)
    assert eu.shown == b"later" and eu.state.count() == 1


def test_a_clock_that_is_behind_does_not_lose_to_what_it_saw() -> None:
    """The version is moved above what the coordinator holds."""
    eu, us = pair("register_lww")
    eu.do("write", b"1", stamp=5000)
    settle(eu, us)
    us.do("write", b"2", stamp=10)
    settle(eu, us)
    assert eu.shown == b"2"


def test_repair_and_replication_make_no_new_dots() -> None:
    """Merging whole cells back and forth changes nothing and leaves the same bytes."""
    eu, us = pair("siblings")
    eu.do("put", b"1", 0)
    us.do("put", b"2", 0)
    settle(eu, us)
    policy = policy_of("siblings")
    cell = encode(eu.kind.tag, eu.state)
    for _ in range(3):
        cell = policy.merge(cell, encode(us.kind.tag, us.state))
    assert cell == encode(eu.kind.tag, eu.state)
    assert {(o, n) for o, dots in eu.state.items.items() for n in dots} == {(eu.origin, 3), (us.origin, 3)}


def test_expiry_and_repair_do_not_bring_each_other_back() -> None:
    """An expired value is a tombstone on every replica, whoever repairs whom, and goes only once it is swept and stable."""
    eu, us = pair("siblings")
    eu.do("put", b"session", 5000)
    settle(eu, us)
    assert value(eu.kind, eu.state, now_ms=4999) == [b"session"]
    assert is_tombstone(eu.kind, eu.state, now_ms=5000)
    assert collected(eu.state, lambda _: True) is eu.state
    assert sweep(eu.kind, eu.state, Dot(eu.origin, 20), lambda _: False, now_ms=5000) is None
    delta = sweep(eu.kind, eu.state, Dot(eu.origin, 20), lambda _: True, now_ms=5000)
    assert delta is not None
    eu.state.join(delta)
    eu.state.join(us.state)
    assert not eu.state.items and collected(eu.state, lambda _: True) is None
    us.state.join(eu.state)
    assert not us.state.items


def test_a_set_emptied_in_one_datacenter_while_its_field_is_removed_in_another() -> None:
    """Both take what they saw; an addition that neither saw is what is left."""
    eu, us = pair("map_rr")
    eu.do("add", b"red", path=TAGS)
    eu.do("add", b"blue", path=TAGS)
    settle(eu, us)
    eu.do("remove", b"red", path=TAGS)
    eu.do("remove", b"blue", path=TAGS)
    us.do("remove", b"tags")
    settle(eu, us)
    assert is_tombstone(eu.kind, eu.state)
    us.do("remove", b"tags")
    eu.do("add", b"green", path=TAGS)
    settle(eu, us)
    assert us.shown == {TAGS[0]: {b"green"}}


def test_a_key_created_in_two_datacenters_at_once_holds_what_both_gave_it() -> None:
    """Also where they give one field two types."""
    eu, us = pair("map_rr")
    eu.do("increment", 1, path=LIKES)
    us.do("increment", 2, path=LIKES)
    us.do("add", b"me", path=((b"likes", "set_aw"),))
    settle(eu, us)
    assert eu.shown == {LIKES[0]: 3, (b"likes", "set_aw"): {b"me"}}
    eu.do("remove", b"likes")
    assert is_tombstone(eu.kind, eu.state)


def test_a_removal_swept_here_does_not_beat_a_later_addition_there() -> None:
    """In a set where removals win, the sweep travels: the replica that still holds the removal drops it before it decides."""
    eu, us = pair("set_rw")
    eu.do("add", b"a")
    eu.do("remove", b"a")
    settle(eu, us)
    delta = sweep(eu.kind, eu.state, Dot(eu.origin, 50), lambda _: True)
    assert delta is not None
    eu.state.join(delta)
    eu.number = 50
    addition = eu.do("add", b"a")
    us.state.join(addition)
    us.state.join(delta)
    assert eu.shown == us.shown == {b"a"}


def test_a_delete_that_arrives_before_the_older_put_still_takes_it() -> None:
    """The context has seen the put; when it comes it is dead."""
    eu, us = pair("register_mv")
    put = eu.do("write", b"1")
    us.state.join(eu.do("delete"))
    assert collected(us.state, lambda dot: dot.number < 6) is us.state
    us.state.join(put)
    assert is_tombstone(us.kind, us.state) and not us.state.items


def test_a_tombstone_is_not_collected_before_its_own_dot_is_stable() -> None:
    """All replicas cover the put, not all the delete: whoever collected now would get the value back from a repair."""
    eu, us = pair("set_aw")
    eu.do("add", b"a")
    settle(eu, us)
    us.do("remove", b"a")
    covered = {eu.origin: 3, us.origin: 0}
    assert collected(us.state, lambda dot: dot.number <= covered[dot.origin]) is us.state
    covered[us.origin] = 3
    assert collected(us.state, lambda dot: dot.number <= covered[dot.origin]) is None


def test_collecting_in_a_live_map_drops_the_marks_of_empty_fields_alone() -> None:
    """A counter that was reset and counted on keeps its mark, or the sum before would come back."""
    node = Node("map_rr", "eu")
    views = ((b"views", "counter_pn"),)
    for path in (LIKES, views):
        node.do("increment", 5, path=path)
        node.do("reset", path=path)
    node.do("increment", 1, path=views)
    assert len(node.state.marks[node.origin]) == 2
    collect(node)
    assert node.shown == {views[0]: 1} and len(node.state.marks[node.origin]) == 1


def test_a_context_from_before_a_collection_is_no_reason_to_wait() -> None:
    """What it names is gone from the cell, and the frontier says that it was here."""
    node = Node("set_aw", "eu")
    node.do("add", b"a")
    old = node.read()
    node.do("delete")
    collect(node)
    operation = Operation("remove", (b"a",), context=old)
    with pytest.raises(Stale):
        update(node.kind, node.state, operation, Dot(node.origin, 9))
    delta = update(node.kind, node.state, operation, Dot(node.origin, 9), covered={node.origin: 6})
    assert delta.context.spans == {node.origin: (0, 9)}


def test_a_forged_context_does_not_dominate_for_ever() -> None:
    """An entry of 2^63-1 is found beyond every frontier; where it must be known it is refused as STALE."""
    forged = decode_token(encode_token(CausalContext({Origin("us", "n", 1).packed(): (0, NUMBER_MAX)})))
    assert forged.beyond({Origin("us", "n", 1).packed(): 12}) == [(Origin("us", "n", 1).packed(), NUMBER_MAX)]
    node = Node("set_aw", "eu")
    node.do("add", b"a")
    with pytest.raises(Stale, match="has not all arrived here"):
        node.do("remove", b"a", context=forged)
    with pytest.raises(InvalidRequest, match="not a context"):
        decode_token(encode_token(CausalContext({node.origin: (0, NUMBER_MAX + 1)})))
    own = Node("siblings", "eu")
    own.do("put", b"1", 0)
    with pytest.raises(InvalidRequest, match="not been numbered yet"):
        own.do("put", b"2", 0, context=CausalContext({own.origin: (0, NUMBER_MAX)}))
    own.do("put", b"3", 0, context=own.read())
    assert own.shown == [b"3"]


def test_a_bounded_counter_is_never_spent_twice() -> None:
    """Rights of one datacenter are not spent in another; given ones are; the answer says how many there are."""
    eu, us = pair("counter_bounded")
    eu.do("increment", 10)
    settle(eu, us)
    with pytest.raises(NotEnoughRights, match="1 needed, 0 here") as caught:
        us.do("decrement", 1)
    assert (caught.value.needed, caught.value.here) == (1, 0)
    eu.do("give", us.origin, 4)
    us.state.join(eu.do("decrement", 6))
    us.do("decrement", 4)
    with pytest.raises(NotEnoughRights):
        eu.do("decrement", 1)
    settle(eu, us)
    assert eu.shown == 0


def test_rights_of_a_closed_origin_pass_to_one_successor() -> None:
    """What it had not spent can be spent again, once."""
    eu, us = pair("counter_bounded")
    eu.do("increment", 10)
    eu.do("decrement", 3)
    closed = eu.origin
    eu.restart()
    with pytest.raises(NotEnoughRights):
        eu.do("decrement", 1)
    with pytest.raises(NotEnoughRights, match="8 needed, 7 here"):
        eu.do("take_over", closed, 8)
    eu.do("take_over", closed, 7)
    with pytest.raises(NotEnoughRights):
        eu.do("take_over", closed, 1)
    eu.do("decrement", 7)
    with pytest.raises(NotEnoughRights):
        eu.do("decrement", 1)
    settle(eu, us)
    assert us.shown == 0


def test_a_bounded_counter_shows_no_negative_value_when_a_decrement_comes_first() -> None:
    """What was spent elsewhere arrives before the increment that allowed it."""
    eu, us, ap = Node("counter_bounded", "eu"), Node("counter_bounded", "us"), Node("counter_bounded", "ap")
    eu.do("increment", 5)
    eu.do("give", us.origin, 5)
    settle(eu, us)
    ap.state.join(us.do("decrement", 5))
    assert ap.shown == 0
    with pytest.raises(InvalidRequest, match="cannot be deleted"):
        eu.do("delete")


def test_a_cell_survives_its_bytes() -> None:
    """What the traps leave is what is stored."""
    eu, us = pair("map_rr")
    eu.do("increment", 10, path=LIKES)
    us.do("remove", b"likes")
    settle(eu, us)
    assert decode(eu.kind.tag, encode(eu.kind.tag, eu.state)) == eu.state
