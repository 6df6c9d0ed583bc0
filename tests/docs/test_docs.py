"""What README and docs/ show is run: every Python block, and every shell block of geokv commands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from geokv.server.config import SETTINGS
from geokv.testing import Cluster

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# What sets the machine up, needs an engine, or runs for minutes is run elsewhere: by CI itself, or by hand as its page tells.
ELSEWHERE = re.compile(
    r"^\s*(make|docker|docker-compose|git|pip|d=|scripts/|python -m benchmarks|benchmarks/|apt|go )"
    r"|geokv (serve|sim soak|lab demo|bench)|--lab compose|127\.0\.0\.1:|TOXIPROXY",
    re.MULTILINE,
)


def blocks(language: str) -> list[object]:
    found = []
    for page in PAGES:
        for match in BLOCK.finditer(page.read_text()):
            line = page.read_text()[: match.start()].count("\n") + 1
            if match.group(1) == language and not ELSEWHERE.search(match.group(2)):
                found.append(pytest.param(match.group(2), id=f"{page.relative_to(ROOT)}:{line}"))
    return found


@pytest.fixture(scope="module")
def nodes() -> Iterator[str]:
    """The address of a node for blocks that find theirs in GEOKV_NODES."""
    with Cluster(nodes=1) as cluster:
        yield cluster.address


def run(command: list[str], directory: Path, text: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **variables, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(
        command, input=text, cwd=directory, env=environment, capture_output=True, text=True, timeout=100, check=False
    )


@pytest.mark.timeout(120)
@pytest.mark.parametrize("block", blocks("python"))
def test_python_block_runs(block: str, tmp_path: Path, nodes: str) -> None:
    """A Python block runs as it stands; those that start nodes take a few seconds."""
    done = run([sys.executable, "-W", "error", "-"], tmp_path, block, GEOKV_NODES=nodes)
    assert done.returncode == 0, done.stderr


@pytest.mark.timeout(120)
@pytest.mark.parametrize("block", blocks("sh"))
def test_shell_block_runs(block: str, tmp_path: Path) -> None:
    """A block of geokv commands runs as it stands; those with a lab take some seconds."""
    try:
        done = run(["bash", "-eo", "pipefail"], tmp_path, block)
        assert done.returncode == 0, done.stdout + done.stderr
    finally:
        if (tmp_path / ".geokv-lab").exists():
            run(["geokv", "lab", "down"], tmp_path, "")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    """A relative link names a file that is there."""
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_page_of_settings_lists_every_setting() -> None:
    """docs/operate/settings.md names every setting of a node with its default."""
    page = (ROOT / "docs" / "operate" / "settings.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| `?([^|`]*)`? \|[^|]*\|$", page, re.MULTILINE))
    assert rows == {s.name: "" if s.default is None else str(s.default) for s in SETTINGS}
