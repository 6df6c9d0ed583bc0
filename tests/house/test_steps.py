"""The table of steps with which scripts/check and scripts/soak close."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(script: str, cwd: Path = ROOT) -> tuple[int, str]:
    lines = f"set -euo pipefail\nsource '{ROOT}/scripts/steps.sh'\n{script}"
    ran = subprocess.run(["bash", "-c", lines], cwd=cwd, capture_output=True, text=True, check=False, timeout=30)
    return ran.returncode, ran.stdout


def test_steps_that_pass_close_with_a_dated_table() -> None:
    """Each step has its line with its seconds, and the run succeeds."""
    code, said = run('step "one" true\nstep "two" echo spoke\nprint_steps "run"')
    assert code == 0
    assert "spoke" in said
    assert re.search(r"=== run, \d{4}-\d\d-\d\d \d\d:\d\d UTC", said)
    assert re.search(r"^one +\d+s  ok$", said, re.MULTILINE)
    assert said.endswith("all steps passed\n")


def test_a_step_that_fails_is_named_last_and_fails_the_run() -> None:
    """The steps after it run all the same, and the end says which failed."""
    code, said = run('step "bad" sh -c "exit 7"\nstep "good" echo went on\nprint_steps "run"')
    assert code == 1
    assert "went on" in said
    assert re.search(r"^bad +\d+s  FAILED \(exit code 7\)$", said, re.MULTILINE)
    assert said.endswith("FAILED: bad\n")


def test_the_drawn_seeds_start_at_a_number_of_the_commit(tmp_path: Path) -> None:
    """A checkout without git has the number 0."""
    assert run("commit_number", tmp_path) == (0, "0\n")
    code, said = run("git() { echo 00ff00ffabcdef; }\ncommit_number")
    assert (code, said) == (0, f"{0x00FF00FF}\n")
