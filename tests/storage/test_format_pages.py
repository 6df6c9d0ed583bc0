"""The pages about the formats show the committed bytes."""

from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"
PAGES = Path(__file__).parents[2] / "docs" / "formats"


@pytest.mark.parametrize(("kind", "length"), [("wal", 205), ("checkpoint", 64)])
def test_the_worked_example_is_the_committed_file(kind: str, length: int) -> None:
    """The page shows the file's first bytes, up to where only zeros follow or the example stops."""
    shown = (PAGES / f"{kind}.md").read_text(encoding="utf-8").replace("\n", "")
    assert (GOLDEN / f"format-1.{kind}").read_bytes()[:length].hex() in shown
