"""The pages about the formats show the committed bytes."""

from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"
PAGES = Path(__file__).parents[3] / "docs" / "formats"


@pytest.mark.parametrize("kind", ["sstable", "manifest"])
def test_the_worked_example_is_the_committed_file(kind: str) -> None:
    """The page shows the whole file."""
    shown = (PAGES / f"{kind}.md").read_text(encoding="utf-8").replace("\n", "")
    assert (GOLDEN / f"format-2.{kind}").read_bytes().hex() in shown
