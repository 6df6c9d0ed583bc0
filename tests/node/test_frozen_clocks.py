"""Clocks that stand still: order on a key comes from what was seen, not from the time that passes."""

from __future__ import annotations

import pytest

from geokv.core.cell import decode_lww
from geokv.protocol.requests import Outcome, WriteBatch
from tests.node.harness import Cluster

PUTS = 100_000
KEYS = [b"k%d" % number for number in range(50)]


@pytest.mark.parametrize("nodes", [("dc1-1",), ("dc1-1", "dc1-2", "dc1-3")], ids=["one node", "three nodes"])
def test_no_later_put_of_a_client_is_lost_to_its_earlier_one_in_one_clock_tick(nodes: tuple[str, ...]) -> None:
    """A hundred thousand puts while no clock moves: each is above the one before on its key, and the last one stands.

    More than the 16 bits of the clock's counter hold, so it takes some seconds.
    """
    cluster = Cluster().start().serving()
    before_us, seen_hlc = cluster.now_us, 0
    newest = dict.fromkeys(KEYS, 0)
    last: dict[bytes, bytes] = {}
    for turn in range(PUTS // 1000):
        keys = KEYS * (1000 // len(KEYS))
        values = [b"%d/%d" % (turn, at) for at in range(len(keys))]
        name = nodes[turn % len(nodes)]
        call = cluster.ask(name, WriteBatch("default", keys, list(values), seen_hlc=seen_hlc))
        cluster.settle()
        reply = cluster.reply(name, call)
        assert reply.outcomes == [Outcome.APPLIED] * len(keys)
        seen_hlc = reply.hlc
        for key, value, version in zip(keys, values, reply.versions, strict=True):
            assert version > newest[key]
            newest[key], last[key] = version, value
    assert cluster.now_us == before_us
    for name in cluster.names:
        cells = cluster.cells(name)
        assert {key: decode_lww(cells[key]).value for key in KEYS} == last
