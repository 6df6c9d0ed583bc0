"""What replicas that have come to rest must agree about."""

from __future__ import annotations

from geokv.lab.ask import ask
from geokv.testing import Cluster


def living(cluster: Cluster, namespace: str = "default") -> list[dict[str, tuple[int, str]]]:
    """Of each node, by partition: how much lives there, and the hash over it. What is dead some have collected already."""
    found = []
    for name in cluster.names:
        said = ask(cluster.address_of(name), "digest", {"namespace": namespace}, timeout_s=10.0)["partitions"]
        found.append({partition: (one["live"], one["hash"]) for partition, one in said.items() if one["live"]})
    return found
