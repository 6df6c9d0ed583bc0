"""The page about trees shows the bytes that are written."""

from __future__ import annotations

from pathlib import Path

from geokv.storage.position import Position
from geokv.storage.tree.values import TreeFacts, decode_facts, encode_facts, seal, seed_of, unseal

PAGE = Path(__file__).parents[3] / "docs" / "formats" / "tree.md"
VALUE = bytes.fromhex("785e267663656c6c")
FACTS = bytes.fromhex("eaf1e5fa01000000020000000000000000100000000000000500000000000000" + "06000000000000000700000000000000")


def test_the_worked_example_is_what_is_written_and_read() -> None:
    """These bytes of format 1 are written still, and still read."""
    seed, facts = seed_of(7), TreeFacts(Position(2, 4096), 5, 6, 7)
    assert seal(b"cell", b"k", seed) == VALUE and unseal(VALUE, b"k", seed, "p") == b"cell"
    assert encode_facts(facts, seed) == FACTS and decode_facts(FACTS, seed, "p") == facts
    shown = PAGE.read_text(encoding="utf-8").replace("\n", "")
    assert VALUE.hex() in shown and FACTS.hex() in shown
