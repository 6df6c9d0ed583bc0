"""The pages about cells and conflicts say what the code does."""

import re
from pathlib import Path

from geokv.core import limits
from geokv.core.cells.policies import CELL_TYPES
from geokv.core.conflict import POLICIES
from tests.core.cells.test_codec import GOLDEN_COUNTER, GOLDEN_SET, GOLDEN_TOKEN
from tests.core.cells.test_halves import BESIDE, ENDED

DOCS = Path(__file__).parents[3] / "docs"


def test_the_format_page_shows_the_committed_bytes() -> None:
    """Each worked example is one that a test decodes."""
    page = (DOCS / "formats" / "cells.md").read_text(encoding="utf-8").replace("\n", "")
    for example in (GOLDEN_SET, GOLDEN_COUNTER, GOLDEN_TOKEN):
        assert example.hex() in page
    for halves in (BESIDE, ENDED):
        assert halves in page and f"{len(halves) // 2} bytes:" in page
    assert f"{len(GOLDEN_SET)} bytes:" in page and f"{len(GOLDEN_COUNTER)} bytes:" in page


def test_the_format_page_lists_every_type_with_its_tag() -> None:
    """The table of payloads is the table of the code."""
    page = (DOCS / "formats" / "cells.md").read_text(encoding="utf-8")
    listed = {(int(tag), name) for tag, name in re.findall(r"^\| (\d+) \| `(\w+)` \|", page, re.MULTILINE)}
    assert listed == {(kind.tag, name) for name, kind in CELL_TYPES.items()}


def test_the_page_about_conflicts_helps_to_choose_every_policy() -> None:
    """Each is in the first table, and each type in the table of what was tried, without a disagreement."""
    page = (DOCS / "conflicts.md").read_text(encoding="utf-8")
    choosing, tried = page.split("## Worked examples")[0], page.split("## How it is tried")[1]
    assert set(re.findall(r"`(\w+)`", choosing)) == set(POLICIES)
    rows = re.findall(r"^\| `(\w+)` \| ([\d,]+) \| [\d,]+ \| [\d,]+ \| (\d+) \|$", tried, re.MULTILINE)
    assert {name for name, _, _ in rows} == set(CELL_TYPES)
    assert all(int(count.replace(",", "")) >= 3_000 and wrong == "0" for _, count, wrong in rows)


def test_the_limits_on_the_page_are_those_of_the_code() -> None:
    """The numbers that a user meets in errors."""
    page = (DOCS / "conflicts.md").read_text(encoding="utf-8")
    assert f"From {limits.SIBLINGS_WARN} siblings" in page and f"from {limits.SIBLINGS_MAX}\non" in page
    assert f"{limits.CELL_ITEMS_MAX:,} items\nand {limits.CELL_BYTES_MAX // limits.MIB} MiB" in page
    assert f"{limits.ELEMENT_BYTES_MAX // limits.KIB} KiB per element" in page and f"{limits.MAP_DEPTH_MAX} deep" in page
