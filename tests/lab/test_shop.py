"""The example shop, run as its page says: two datacenters cut apart, written on both sides, healed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SHOP = Path(__file__).parents[2] / "examples" / "shop.py"


@pytest.mark.timeout(180)
def test_the_shop_loses_nothing_and_explains_its_conflicts(tmp_path: Path, small_topology: Path) -> None:
    """A lab of real processes, a cut and a heal: it takes ten seconds and more."""
    command = [sys.executable, str(SHOP), "--json", "--lab", str(tmp_path / "lab"), "--topology", str(small_topology)]
    environment = {**os.environ, "PYTHONPATH": str(SHOP.parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["converged"] is True and told["lost"] == 0 and told["restored"] is True
    assert told["conflicts"] >= 8
    assert "neither had seen the other" in told["explained"][0] and "Road' of" in told["explained"][0]
    assert any("'enable' of" in one and "won over a concurrent 'disable' of" in one for one in told["stayed"])
    assert "cut apart" in done.stderr
