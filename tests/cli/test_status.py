"""What `geokv status` makes of what nodes say: nine nodes side by side, and what no single real node can show."""

import json
from typing import Any

import pytest

from geokv.cli import status
from geokv.errors import Unavailable
from geokv.runtime.wire.kv import RingNodeSeen, RingSeen

DCS = ("eu-west", "us-east", "ap-south")
NODES = [
    RingNodeSeen(f"{dc}-{number}", dc, f"rack-{number}", 1.0, f"127.0.0.1:{7100 + 10 * place + number}")
    for place, dc in enumerate(DCS)
    for number in (1, 2, 3)
]
RING = RingSeen("test", 256, 7, "eu-west-1", NODES, dict.fromkeys(DCS, 3))


def status_of(node: RingNodeSeen, conflicts: list[list[str]] | None = None) -> dict[str, Any]:
    """What a healthy node says of itself, as far as the table reads it."""
    return {
        "node": node.name,
        "dc": node.dc,
        "uptime_ms": 5_000,
        "namespaces": [["default", 3]],
        "names_in_conflict": conflicts or [],
        "log": {"bytes": 33_554_432},
        "calls": 2,
        "lag": {dc: {"records": 1, "bytes": 60} for dc in DCS if dc != node.dc},
        "incoming": {peer.name: {"dc": peer.dc, "partitions": 9, "staleness_ms": 500} for peer in NODES if peer.dc != node.dc},
    }


def test_metrics_of_nine_nodes_fit_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    """Every counter of every node is a number in the table of its datacenter, within 80 columns; - is not known."""
    said: dict[str, Any] = {
        node.name: {"calls.write": at, "events.client.something_that_happened": 1_000_000 + at} for at, node in enumerate(NODES)
    }
    said["us-east-2"] = Unavailable("cannot be reached")
    said["ap-south-3"]["only.here"] = 7
    status._show_metrics(RING, said, as_json=False)
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    tables = [table.splitlines() for table in text.strip().split("\n\n")]
    assert [table[0].split()[0] for table in tables] == list(DCS)
    for table in tables:
        nodes = table[0].split()[1:]
        rows = {name: dict(zip(nodes, cells, strict=True)) for name, *cells in map(str.split, table[1:])}
        assert rows.keys() == {"calls.write", "events.client.something_that_happened", "only.here"}
        for node in nodes:
            if node == "us-east-2":
                assert {row[node] for row in rows.values()} == {"-"}
            else:
                assert {name: int(row[node].replace(",", "")) for name, row in rows.items()} == {"only.here": 0, **said[node]}


def test_names_in_conflict_stand_in_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    """Each is told once, with the name that it has now, also where only one node knows of it yet."""
    said = {node.name: status_of(node) for node in NODES}
    for name in ("eu-west-1", "us-east-2"):
        said[name]["names_in_conflict"] = [["carts", "carts@us-east"]]
    tree = status._tree(RING, said)
    assert tree["names_in_conflict"] == [{"name": "carts", "alias": "carts@us-east"}]
    json.dumps(tree)
    status._show(tree)
    shown = capsys.readouterr().out
    assert shown.count("carts@us-east") == 1
    assert "two namespaces were created as 'carts'" in " ".join(shown.split())


def test_the_table_says_what_behind_is_and_folds_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """The figure of a link stands with its meaning; nine nodes of real names fit into 80 columns."""
    said: dict[str, Any] = {node.name: status_of(node) for node in NODES}
    said["ap-south-3"] = Unavailable("cannot be reached")
    status._show(status._tree(RING, said))
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines if not line.startswith("cluster")) <= 100
    for node in NODES:
        place, *_ = [line for line in lines if line.startswith(node.name)]
        assert node.address in place.split() and len(place.rstrip()) <= 80
    assert any(line.startswith("behind ms: ") for line in lines)
    assert any(line.split() == ["eu-west", "us-east", "3", "180", "500"] for line in lines)
