"""The option --samples: what runs at each level, and with how much of it."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SUITE = """
import pytest
from hypothesis import given, settings, strategies

drawn = 0

@given(strategies.integers())
def test_hypothesis(number):
    global drawn
    drawn += 1

def test_plain():
    print("plain ran")

def test_sampling(samples):
    print("sampled", samples.of(test=2, check=30, soak=400), "and drew", settings().max_examples)

@pytest.mark.parametrize("good", [1_000, 234])
def test_counting(tally, good):
    with tally.of("good ones") as count:
        count.add(good)

def test_falling_short(tally):
    with pytest.raises(AssertionError), tally.of("bad ones") as count:
        count.add()
        raise AssertionError

@pytest.mark.samples_from("check")
def test_slow():
    print("slow ran")
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "tests").mkdir()
    shutil.copy(ROOT / "tests" / "tally.py", tmp_path / "tests")
    (tmp_path / "test_suite.py").write_text(SUITE)
    return tmp_path


def run(suite: Path, *options: str) -> str:
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-s", "-p", "no:cacheprovider", "test_suite.py", *options],
        cwd=suite,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_by_default_the_samples_are_few_and_the_slow_tests_wait(suite: Path) -> None:
    """`make test` takes the smallest number everywhere, and says what it left out."""
    said = run(suite)
    assert "sampled 2 and drew 40" in said
    assert "slow ran" not in said
    assert "runs from --samples=check up" in said


def test_check_takes_more_samples_and_the_slow_tests(suite: Path) -> None:
    """Ranges, Hypothesis and marked tests follow the one option."""
    said = run(suite, "--samples=check")
    assert "sampled 30 and drew 150" in said
    assert "slow ran" in said


def test_larger_only_leaves_out_what_would_run_the_same(suite: Path) -> None:
    """CI does not run a plain test twice."""
    said = run(suite, "--samples=check", "--larger-only")
    assert "plain ran" not in said
    assert re.search(r"3 passed, 4 deselected", said), said


def test_a_tally_sums_up_what_was_tried_and_what_fell_short(suite: Path) -> None:
    """Every exhaustive test adds a line, also one that fails; the table has a row for each thing that was tried."""
    path = suite / "tally.jsonl"
    run(suite, "--tally", str(path))
    ran = subprocess.run(
        [sys.executable, "-m", "tests.tally", str(path)], cwd=suite, capture_output=True, text=True, check=True
    )
    assert ran.stdout.splitlines()[2:] == ["| good ones | 1,234 | 0 |", "| bad ones | 1 | 1 |"]
