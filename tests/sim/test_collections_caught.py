"""Collections are trusted because each rule about them, broken on purpose in the real node, brings something back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from geokv.core.record import CELL, decode_records, encode_record
from geokv.core.topology import Topology
from geokv.node.node import Node
from geokv.sim.checkers import OK
from geokv.sim.faults import FaultOptions
from geokv.sim.host import Machine, Recover
from geokv.sim.real_node import real_node
from geokv.sim.run import Run, RunOptions
from geokv.sim.schedule import MS, SECOND
from geokv.sim.workload import WorkloadOptions
from geokv.sim.world import WorldOptions
from geokv.storage.position import Position

# Many keys, each written and deleted a few times, read with repairs: what comes back is not overwritten at once.
WORK = WorkloadOptions(
    clients_per_dc=3,
    hot_keys=8,
    cold_keys=60,
    hot_share=0.4,
    puts=0.35,
    deletes=0.25,
    ttl_share=0.0,
    think_us=60 * MS,
    value_bytes_max=400,
    policies=(),
)
WORLD = WorldOptions(dcs=1, partitions=4)
FAULTS = FaultOptions(count=(6, 12), noise=3.0, loss=0.08, reorder=0.25, cut_one_way=3.0, pause=3.0, cut_node=2.0)


class FewerOwners:
    """A placement that forgets one owner of each partition."""

    def __init__(self, placement: Any) -> None:
        self._placement = placement

    def __getattr__(self, name: str) -> Any:
        return getattr(self._placement, name)

    def everyone(self, partition: int) -> list[tuple[str, str]]:
        return list(self._placement.everyone(partition)[:-1])


def asks_fewer_than_all(node: Node) -> None:
    """Stability without one of the replicas."""
    node.assembly.stability._placement = FewerOwners(node.assembly.placement)  # type: ignore[assignment]


def collects_beside_the_memtable(node: Node) -> None:
    """A rule counts before the memtables of its moment are flushed."""
    engine: Any = node.assembly.engine
    original = engine.next_compaction

    def next_compaction(rules: Any = None) -> Any:
        return original({number: replace(rule, since=Position()) for number, rule in (rules or {}).items()})

    engine.next_compaction = next_compaction


def takes_any_repair(node: Node) -> None:
    """A repair is taken whatever count of collections it names."""
    original = node.assembly.intake.take

    def take(records: bytes, *arguments: Any, **options: Any) -> Any:
        pieces = []
        for one in decode_records(records):
            table = node.context.tables.get(one.namespace)
            if one.kind == CELL and table is not None:
                count = table.collections
                piece = encode_record(
                    CELL, one.partition, one.namespace, count, one.hlc, one.operation, one.origin, one.key, one.cell
                )
                pieces.append(piece)
            else:
                pieces.append(one.raw)
        return original(b"".join(pieces), *arguments, **options)

    node.assembly.intake.take = take  # type: ignore[method-assign]


def planted(bug: Callable[[Node], None]) -> Callable[[Topology], Recover]:
    """The real node, with a bug in it from its first moment on."""

    def of(topology: Topology) -> Recover:
        recover = real_node(topology)

        def with_bug(*arguments: Any) -> Machine:
            node = recover(*arguments)
            assert isinstance(node, Node)
            bug(node)
            return node

        return with_bug

    return of


def found(bug: Callable[[Node], None], seed: int) -> set[str]:
    options = RunOptions(WORLD, WORK, FAULTS, faulty_us=10 * SECOND, calm_us_max=10 * SECOND, probes=0)
    run = Run(seed, options, planted(bug))
    run.run()
    return {name for name, verdict in run.verdicts.items() if verdict != OK}


@pytest.mark.parametrize("seed", [1, 2])
def test_the_real_node_passes_under_the_same_faults(seed: int) -> None:
    """Without a bug no checker complains. Some seconds: each is a run of a whole cluster."""
    assert found(lambda node: None, seed) == set()
