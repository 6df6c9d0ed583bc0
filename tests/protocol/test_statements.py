"""Statements: what they say and when, that lost ones heal, and what is noted of a peer's."""

from __future__ import annotations

from geokv.core.origin import Origin
from geokv.protocol.effects import Send
from geokv.protocol.messages import Statement, StreamHeads
from geokv.protocol.streams import Stream
from tests.node.harness import MS, SECOND, Cluster


class Speaker:
    """The statements of one node, ticked by hand."""

    def __init__(self, datacenters: int = 1) -> None:
        self.cluster = Cluster(datacenters=datacenters, partitions=1).start().serving()
        self.node = self.cluster.nodes["dc1-1"]
        self.context = self.node.context
        self.statements = self.node.assembly.statements
        (self.table,) = self.context.tables.values()

    def stream(self, node: str = "dc1-1") -> Stream:
        return self.table.streams.make(0, Origin("dc1", node, 77).packed())

    def ticked(self, us: int) -> dict[str, Statement]:
        """What is stated once `us` have gone by, by peer."""
        self.context.now_us += us
        self.context.effects.clear()
        self.statements.tick()
        sent = [effect for effect in self.context.effects if isinstance(effect, Send)]
        return {effect.peer: effect.message for effect in sent if isinstance(effect.message, Statement)}

    def quiet(self) -> None:
        """Past the first full statement."""
        self.ticked(0)
        self.ticked(1 * SECOND)


def frontiers(statement: Statement) -> dict[bytes, int]:
    return {heads.origin: heads.numbers[0] for heads in statement.frontiers}


def test_frontiers_that_moved_are_stated_once_a_second() -> None:
    """Heartbeats in between carry none, and what did not move is not said again."""
    speaker = Speaker()
    speaker.quiet()
    stream = speaker.stream()
    stream.take(1)
    stream.synced(1, 0, 100, 50)
    speaker.statements.moved(stream)
    assert not frontiers(speaker.ticked(250 * MS)["dc1-2"])
    assert frontiers(speaker.ticked(1 * SECOND)["dc1-2"]) == {stream.origin: 1}
    assert not frontiers(speaker.ticked(1 * SECOND)["dc1-2"])


def test_a_lost_statement_heals() -> None:
    """Everything is stated anew now and then, and when somebody comes back."""
    speaker = Speaker()
    speaker.quiet()
    stream = speaker.stream()
    stream.take(1)
    stream.synced(1, 0, 100, 50)
    said = speaker.ticked(1 * SECOND)
    assert stream.origin not in frontiers(said["dc1-2"])  # nobody told that it moved
    speaker.statements.connected()
    said = speaker.ticked(1 * SECOND)
    assert said["dc1-2"].is_full
    assert frontiers(said["dc1-2"])[stream.origin] == 1


def test_other_datacenters_hear_clocks_and_definitions_alone() -> None:
    """Frontiers go there with the feeds."""
    speaker = Speaker(datacenters=2)
    stream = speaker.stream()
    stream.take(1)
    stream.synced(1, 0, 100, 50)
    speaker.statements.connected()
    said = speaker.ticked(5 * SECOND)
    assert frontiers(said["dc1-2"])
    assert not said["dc2-1"].frontiers
    assert said["dc2-1"].definitions == said["dc1-2"].definitions


def test_what_every_other_datacenter_covers_is_told_to_co_owners() -> None:
    """The slowest of them counts; a co-owner notes it and never lowers it."""
    speaker = Speaker(datacenters=3)
    speaker.quiet()
    stream = speaker.stream()
    stream.dcs.update({"dc2": 7, "dc3": 4})
    speaker.statements.covered(stream)
    (heads,) = speaker.ticked(1 * SECOND)["dc1-2"].shipped
    assert (heads.origin, heads.numbers) == (stream.origin, [4])
    theirs = speaker.stream("dc1-2")
    said = speaker.ticked(1 * SECOND)["dc1-2"]
    for number, noted in ((9, 9), (5, 9)):
        said.shipped = [StreamHeads(theirs.namespace, theirs.origin, [0], [number])]
        speaker.statements.heard("dc1-2", said)
        assert theirs.shipped == noted


def test_a_peers_frontier_is_noted_and_never_lowered() -> None:
    """Statements that come late say nothing new."""
    speaker = Speaker()
    stream = speaker.stream()
    said = speaker.ticked(1 * SECOND)["dc1-2"]
    for number, noted in ((3, 3), (2, 3), (8, 8)):
        said.frontiers = [StreamHeads(stream.namespace, stream.origin, [0], [number])]
        speaker.statements.heard("dc1-2", said)
        assert stream.peers["dc1-2"] == noted
