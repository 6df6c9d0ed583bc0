"""How much every test samples: one option, `--samples=test|check|soak`, for seeds and Hypothesis alike.

    test    what `make test` runs: a few samples of everything, minutes in all
    check   what CI runs besides: more of them, and the tests marked `samples_from("check")`
    soak    what `make soak` runs: as many as are worth an hour or a night

A test that samples takes the fixture `samples` and asks it for its number. A test that is only worth its time
with more samples carries `@pytest.mark.samples_from("check")`. With `--larger-only` the tests that would run
exactly as under `--samples=test` are left out, so that CI does not run them twice. With `--tally FILE` the exhaustive
ones write down how much they tried (`tests.tally`).
"""

from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, is_hypothesis_test, settings

from tests.tally import Tally

LEVELS = ("test", "check", "soak")
HYPOTHESIS_EXAMPLES = {"test": 40, "check": 150, "soak": 4000}
TIMEOUT_FACTOR = {"test": 1, "check": 6, "soak": 60}


@dataclass(frozen=True, slots=True)
class Samples:
    """The level that this run was asked for."""

    level: str

    def of(self, *, test: int, check: int, soak: int) -> int:
        """Pick this test's number for the level."""
        return {"test": test, "check": check, "soak": soak}[self.level]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("geokv")
    group.addoption("--samples", choices=LEVELS, default="test", help="how much is sampled: test, check or soak")
    group.addoption(
        "--larger-only",
        action="store_true",
        help="leave out what runs just the same under --samples=test",
    )
    group.addoption("--tally", type=Path, help="append what the exhaustive tests tried to this file")


def pytest_configure(config: pytest.Config) -> None:
    for level, examples in HYPOTHESIS_EXAMPLES.items():
        settings.register_profile(
            level,
            max_examples=examples,
            # The machine may stand still for 100 ms at any time; the timeout of the test is the limit.
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
            print_blob=True,
        )
    settings.load_profile(config.getoption("samples"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    level = config.getoption("samples")
    for item in items:
        _skip_below_its_level(item, level)
        _stretch_timeout(item, level, config)
    if config.getoption("larger_only"):
        kept = [item for item in items if _grows_with_samples(item)]
        config.hook.pytest_deselected(items=[item for item in items if not _grows_with_samples(item)])
        items[:] = kept
    _put_long_files_first(items, config)


def _put_long_files_first(items: list[pytest.Item], config: pytest.Config) -> None:
    """No worker begins a long file when the others are about to end. How long a file is, is told by its timeouts."""
    longest: dict[Path, float] = {}
    for item in items:
        longest[item.path] = max(longest.get(item.path, 0.0), _timeout_s(item, config))
    items.sort(key=lambda item: -longest[item.path])


def _timeout_s(item: pytest.Item, config: pytest.Config) -> float:
    own = item.get_closest_marker("timeout")
    return own.args[0] if own is not None and own.args else float(config.getini("timeout"))


def _skip_below_its_level(item: pytest.Item, level: str) -> None:
    for mark in item.iter_markers("samples_from"):
        wanted = mark.args[0]
        if LEVELS.index(level) < LEVELS.index(wanted):
            item.add_marker(pytest.mark.skip(reason=f"runs from --samples={wanted} up"))


def _stretch_timeout(item: pytest.Item, level: str, config: pytest.Config) -> None:
    """Give a test that samples more the time for it, whatever it set itself for `--samples=test`."""
    factor = TIMEOUT_FACTOR[level]
    if factor == 1 or not _grows_with_samples(item):
        return
    item.add_marker(pytest.mark.timeout(_timeout_s(item, config) * factor), append=False)


def _grows_with_samples(item: pytest.Item) -> bool:
    return (
        "samples" in getattr(item, "fixturenames", ())
        or item.get_closest_marker("samples_from") is not None
        or is_hypothesis_test(getattr(item, "obj", None))
    )


@pytest.fixture(scope="session")
def samples(request: pytest.FixtureRequest) -> Samples:
    """Say how much to sample in this run."""
    return Samples(request.config.getoption("samples"))


@pytest.fixture(scope="session")
def tally(request: pytest.FixtureRequest) -> Tally:
    """Write down how much was tried."""
    return Tally(request.config.getoption("tally"))
