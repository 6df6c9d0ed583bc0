"""Changes of policy: which are compatible, what is shown after one, and that nothing is lost by it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geokv.core.cells.changed import COMPATIBLE
from tests.conftest import Samples
from tests.core.cells.changed_harness import play
from tests.core.cells.harness import tape_of_seed

PAIRS = [(old, new) for old, news in COMPATIBLE.items() for new in news]


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_histories_with_a_change_in_the_middle_are_as_specified(old: str, new: str, samples: Samples) -> None:
    """Every replica shows at any time what the specification says of the old and the new half; all become equal."""
    heard = waited = 0
    seeds = samples.of(test=40, check=120, soak=2000)
    for seed in range(seeds):
        world = play(old, new, tape_of_seed(seed))
        heard += world.heard
        waited += world.waited
    assert heard > seeds and waited > seeds // 3, "the tapes do not reach the change"


@pytest.mark.parametrize(("old", "new"), PAIRS)
@given(numbers=st.lists(st.integers(0, 1 << 16), max_size=120))
@settings(max_examples=15, deadline=None)
def test_drawn_histories_with_a_change_are_as_specified(old: str, new: str, numbers: list[int]) -> None:
    """As above, of tapes that Hypothesis draws, and shrinks where one is wrong."""
    play(old, new, numbers)
