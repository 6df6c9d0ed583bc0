"""Every type against its specification, over random histories of three datacenters."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geokv.core.cells.policies import CELL_TYPES
from tests.conftest import Samples
from tests.core.cells.harness import TAPE_MAX, World, play, tape_of_seed
from tests.core.cells.operations import FIELD_TYPES
from tests.core.cells.specification import SPECIFICATIONS

TYPES = sorted(CELL_TYPES)
_TAPES = st.lists(st.integers(0, 1 << 16), max_size=TAPE_MAX)


def test_every_type_has_a_specification() -> None:
    """No type is in the table that the harness does not try, alone and (but for two) as a field."""
    assert set(CELL_TYPES) == set(SPECIFICATIONS)
    assert set(CELL_TYPES) - set(FIELD_TYPES) == {"siblings", "counter_bounded"}


@pytest.mark.parametrize("policy", TYPES)
@given(tape=_TAPES)
def test_a_shrinkable_history_agrees_with_the_specification(policy: str, tape: list[int]) -> None:
    """Deltas lost, doubled and reordered, restarts, old disks, collections: what is shown is what the history says."""
    play(policy, tape)


@pytest.mark.parametrize("policy", TYPES)
@pytest.mark.timeout(120)
def test_many_histories_agree_with_the_specification(policy: str, samples: Samples) -> None:
    """The same by seed, in numbers that Hypothesis does not reach."""
    count = samples.of(test=120, check=600, soak=100_000)
    events = collections = longest = 0
    for seed in range(count):
        world = _played(policy, seed)
        events += len(world.events)
        collections += world.collections
        longest = max(longest, len(world.events))
    assert events > 3 * count and longest > 12
    assert collections > count // 30 or policy == "counter_bounded"  # which has no tombstones


def _played(policy: str, seed: int) -> World:
    try:
        return play(policy, tape_of_seed(seed))
    except AssertionError as error:
        raise AssertionError(f"{policy}, seed {seed}: {error}") from error
