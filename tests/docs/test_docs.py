"""What README and docs/ show is run: every Python block, and every shell block of geokv commands.

Blocks between `geokv lab up` and `geokv lab down` share one lab, which these two begin and end.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
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
IN_LAB = re.compile(r"\Ageokv lab up\b.*\n((?:.*\n)*)geokv lab down\n\Z")
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


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The directory of a lab. Its keeper brings it down when its pipe closes, hence also where this process is killed."""
    directory = tmp_path_factory.mktemp("lab")
    with (directory / "keeper.log").open("wb") as log:
        keeper = subprocess.Popen(
            ["bash", "-ec", "geokv lab up >&2; echo up; cat; geokv lab down >&2"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=directory,
            env=environment(),
            start_new_session=True,
        )
    assert keeper.stdout is not None
    said = keeper.stdout.readline()
    assert said == b"up\n", (directory / "keeper.log").read_text()
    yield directory
    keeper.communicate(timeout=60)
    assert keeper.returncode == 0, (directory / "keeper.log").read_text()


def environment(**variables: str) -> dict[str, str]:
    return {**os.environ, **variables, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def run(command: list[str], directory: Path, text: str, **variables: str) -> None:
    """Run it to a good end; where it takes too long, it ends with all that it has started."""
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=directory,
        env=environment(**variables),
        start_new_session=True,
    ) as process:
        try:
            said, _ = process.communicate(text, timeout=100)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, said


@pytest.mark.timeout(120)
@pytest.mark.parametrize("block", blocks("python"))
def test_python_block_runs(block: str, tmp_path: Path, nodes: str) -> None:
    """A Python block runs as it stands; those that start nodes take a few seconds."""
    run([sys.executable, "-W", "error", "-"], tmp_path, block, GEOKV_NODES=nodes)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("block", blocks("sh"))
def test_shell_block_runs(block: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """A block of geokv commands runs as it stands; the first with a lab takes some seconds, for nine nodes start."""
    in_lab = IN_LAB.match(block)
    assert in_lab or "geokv lab" not in block
    directory = request.getfixturevalue("lab") if in_lab else tmp_path
    run(["bash", "-eo", "pipefail"], directory, in_lab.group(1) if in_lab else block)


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
