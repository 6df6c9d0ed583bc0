"""The page about the SDK is true: each of its blocks runs, against real nodes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from geokv.testing import Cluster

PAGE = Path(__file__).parents[2] / "docs" / "sdk.md"


@pytest.mark.timeout(120)
def test_every_block_of_the_sdk_page_runs() -> None:
    """Each Python block, alone in a new interpreter, with warnings as errors. Real nodes take seconds to start."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) >= 4
    with Cluster(nodes=1) as cluster:
        environment = {**os.environ, "GEOKV_NODES": cluster.address}
        for block in blocks:
            done = subprocess.run(
                [sys.executable, "-W", "error", "-c", block],
                env=environment,
                capture_output=True,
                text=True,
                timeout=30,
                check=False,
            )
            assert done.returncode == 0, f"{block}\n{done.stderr}"
