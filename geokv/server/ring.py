"""The ring as a client needs it: all nodes, with the addresses of the viewpoint that asks.

`version` is a digest of the topology, not a counter: nobody numbers edits of a static file. A client whose version differs
from the one in a reply asks again.
"""

from __future__ import annotations

from hashlib import blake2b

from geokv.core.topology import OUTSIDE, Topology, clients_of, render_topology
from geokv.errors import InvalidRequest
from geokv.runtime.wire.kv import RingNodeSeen, RingSeen


def ring_version(topology: Topology) -> int:
    """48 bits, never 0 (which stands for not known)."""
    digest = blake2b(render_topology(topology).encode(), digest_size=6).digest()
    return int.from_bytes(digest, "big") or 1


def viewpoint_of(topology: Topology, asked: str) -> str:
    """The viewpoint that a client means: its datacenter by name, a viewpoint in full, or nothing for outside.

    Raises InvalidRequest with the names that there are.
    """
    if not asked:
        return OUTSIDE
    if asked in topology.dc_names:
        return clients_of(asked)
    if asked in topology.viewpoints():
        return asked
    raise InvalidRequest(f'no datacenter "{asked}" here; there are: {", ".join(topology.dc_names)}')


def ring_seen(topology: Topology, answered_by: str, viewpoint: str) -> RingSeen:
    """What a client at `viewpoint` (one of the topology's) is told."""
    nodes = [
        RingNodeSeen(node.name, node.dc, node.rack, float(node.weight), topology.address(node, viewpoint))
        for node in topology.nodes
    ]
    replicas = {dc.name: dc.replicas for dc in topology.datacenters}
    return RingSeen(topology.cluster, topology.partitions, ring_version(topology), answered_by, nodes, replicas)
