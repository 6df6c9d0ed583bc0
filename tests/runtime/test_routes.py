"""Which stream a message takes: for every kind, and every pair of nodes, one that both ends expect."""

from __future__ import annotations

import pytest

from geokv.protocol import messages as m
from geokv.runtime.routes import PeerFacts, Purpose, Side, candidates, is_expected, peers_of
from tests.runtime.small_node import small_topology

TOPOLOGY = small_topology({"a-1": 1, "a-2": 2, "b-1": 3})
OTHER_SIDE = {Side.DIALLED: Side.ACCEPTED, Side.ACCEPTED: Side.DIALLED}


def facts(own: str, other: str) -> PeerFacts:
    return peers_of(TOPOLOGY, own)[other]


def test_every_stream_has_one_end_that_dials_and_one_that_expects_it() -> None:
    """What one node dials the other accepts, and does not dial itself."""
    for own in ("a-1", "a-2", "b-1"):
        for name, peer in peers_of(TOPOLOGY, own).items():
            back = facts(name, own)
            for purpose in peer.dials:
                assert is_expected(peer, (purpose, Side.DIALLED))
                assert is_expected(back, (purpose, Side.ACCEPTED))
                assert not peer.is_near or purpose not in back.dials


def test_the_lower_name_dials_inside_a_datacenter_and_both_dial_between() -> None:
    """One stream per pair and purpose inside a datacenter; between datacenters each side has its own."""
    assert facts("a-1", "a-2").dials == (Purpose.REPLICATION, Purpose.BULK)
    assert facts("a-2", "a-1").dials == ()
    assert facts("a-1", "b-1").dials == facts("b-1", "a-1").dials == (Purpose.REPLICATION,)


@pytest.mark.parametrize("kind", m.ASKS + m.ANSWERS + m.EITHER, ids=lambda kind: kind.__name__)
def test_every_message_takes_a_stream_that_exists(kind: type) -> None:
    """For each kind and pair there is a stream, and the other end has it, seen from its side."""
    for own, other in (("a-1", "a-2"), ("a-2", "a-1"), ("a-1", "b-1"), ("b-1", "a-1")):
        for name in candidates(facts(own, other), kind):
            purpose, side = name
            assert is_expected(facts(own, other), name)
            assert is_expected(facts(other, own), (purpose, OTHER_SIDE[side]))


@pytest.mark.parametrize("kind", m.ASKS, ids=lambda kind: kind.__name__)
def test_asks_between_datacenters_go_on_the_senders_stream(kind: type) -> None:
    """So a link's faults hit what its side began."""
    assert candidates(facts("a-1", "b-1"), kind) == ((Purpose.REPLICATION, Side.DIALLED),)


@pytest.mark.parametrize("kind", m.ANSWERS, ids=lambda kind: kind.__name__)
def test_answers_between_datacenters_come_back_on_the_askers_stream(kind: type) -> None:
    """The answer travels on the stream that the asker dialled."""
    assert candidates(facts("a-1", "b-1"), kind) == ((Purpose.REPLICATION, Side.ACCEPTED),)


def test_catching_up_does_not_stand_in_front_of_writes() -> None:
    """Inside a datacenter feeds and records go on different streams."""
    near = facts("a-1", "a-2")
    assert candidates(near, m.FeedBatch)[0][0] is Purpose.BULK
    assert candidates(near, m.Replicate)[0][0] is Purpose.REPLICATION
