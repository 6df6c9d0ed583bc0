"""What `geokv gc status` makes of the answers of several nodes."""

from typing import Any

from geokv.cli.gc import gathered


def _answer(node: str, oldest_ms: int | None, is_known: bool = True) -> dict[str, Any]:
    """As a node tells of one namespace."""
    figures = dict.fromkeys(("held", "tombstones", "with_deadline", "in_memory", "collected"), 1)
    age_ms = None if oldest_ms is None else 1_000 - oldest_ms
    oldest = {"oldest_ms": oldest_ms, "oldest_age_ms": age_ms, "oldest_is_known": is_known}
    rest = {"namespace": "n", "policy": "set_aw", "in_memory_is_estimate": False, "waits_for": []}
    return {"node": node, "namespaces": [figures | oldest | rest]}


def test_the_oldest_of_all_nodes_is_shown_unless_one_does_not_know_its_own() -> None:
    """The least that any told; a node with nothing that waits changes nothing, one that cannot tell leaves no figure."""
    (row,) = gathered([_answer("a", 300), _answer("b", 200), _answer("c", None)])
    assert (row["oldest_ms"], row["oldest_age_ms"], row["held"]) == (200, 800, 3)
    (row,) = gathered([_answer("a", None, is_known=False), _answer("b", 200)])
    assert (row["oldest_ms"], row["oldest_age_ms"], row["oldest_is_known"]) == (None, None, False)
