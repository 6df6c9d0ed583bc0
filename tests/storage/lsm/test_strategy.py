"""Strategies choose what can be merged without changing what is newer than what, and come to rest."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geokv.storage.lsm.facts import TableFacts
from geokv.storage.lsm.strategy import Choice, Levelled, SizeTiered, Strategy, are_disjoint, everything, is_bottom, runs_of

_LEVELLED = Levelled(flushed_runs=3, flushed_runs_max=4, base_bytes=400, ratio=3)
_TIERED = SizeTiered(runs_min=3, runs_max=5)
_FLUSHES = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(1, 300)), min_size=1, max_size=40)


def _table(number: int, first: int, last: int, nbytes: int, level: int = 0, run: int = 0) -> TableFacts:
    keys = b"%04d" % min(first, last), b"%04d" % max(first, last)
    return TableFacts(number, 1, "lww", nbytes, 1, 0, 0, 0, 0, *keys, level, run)


def _apply(tables: list[TableFacts], choice: Choice, number: int) -> list[TableFacts]:
    """What the tables are after the choice was carried out; nothing was overwritten, so the bytes add up."""
    inputs = [one for run in choice.inputs for one in run]
    left = [one for one in tables if one not in inputs]
    if choice.is_move:
        return left + [one.at(choice.level, choice.run) for one in inputs]
    keys = sorted({key for one in inputs for key in (one.first_key, one.last_key)})
    size = sum(one.nbytes for one in inputs)
    made = [
        TableFacts(number + at, 1, "lww", size // len(keys), 1, 0, 0, 0, 0, key, key, choice.level, choice.run)
        for at, key in enumerate(keys)
    ]
    return left + made


@pytest.mark.parametrize("strategy", [_LEVELLED, _TIERED])
@given(flushes=_FLUSHES)
def test_choices_keep_the_order_of_age_and_come_to_rest(strategy: Strategy, flushes: list[tuple[int, int, int]]) -> None:
    """Inputs are neighbours in age where keys overlap, outputs overlap nothing at their level, and debt is worked off."""
    tables: list[TableFacts] = []
    for number, (first, last, size) in enumerate(flushes, 1):
        tables.append(_table(number << 16, first, last, size, 0, number))
        steps = 0
        while (choice := strategy.choose(tables)) is not None:
            _check_choice(choice, tables)
            tables = _apply(tables, choice, (number << 16) + (steps + 1) * 500)
            for run in runs_of(tables):
                assert are_disjoint(run), f"tables of one run overlap: {run}"
            steps += 1
            assert steps < 100, "it never comes to rest"
        assert strategy.debt_bytes(tables) == 0


def _check_choice(choice: Choice, tables: list[TableFacts]) -> None:
    inputs = [one for run in choice.inputs for one in run]
    assert list(choice.inputs) == runs_of(inputs), "newest first"
    assert len({one.number for one in inputs}) == len(inputs) and set(inputs) <= set(tables)
    age = {one.number: (one.level, -one.run) for one in tables}
    newest, oldest = min(age[one.number] for one in inputs), max(age[one.number] for one in inputs)
    for other in tables:
        if other not in inputs and any(other.overlaps(one.first_key, one.last_key) for one in inputs):
            assert not newest < age[other.number] < oldest, "a table between the inputs in age was left out"
            assert age[other.number] != (choice.level, -choice.run), "it stays where the output goes"
            older = age[other.number] >= oldest
            assert not (older and choice.is_bottom), "something older remains, so it is not the bottom"
    assert choice.score >= 1.0
    if choice.is_move:
        assert are_disjoint(inputs) and all(one.level < choice.level for one in inputs)


def test_levelled_waits_for_enough_runs() -> None:
    """Fewer flushed runs than its number: nothing is due."""
    tables = [_table(number, 0, 9, 10, 0, number) for number in (1, 2)]
    assert _LEVELLED.choose(tables) is None and _LEVELLED.debt_bytes(tables) == 0
    tables.append(_table(3, 0, 9, 10, 0, 3))
    choice = _LEVELLED.choose(tables)
    assert choice is not None and choice.level == 1 and len(choice.inputs) == 3 and choice.is_bottom
    assert _LEVELLED.debt_bytes(tables) == 30


def test_levelled_gathers_what_is_small_beside_level_1() -> None:
    """A namespace with a small part of the writes does not have all of level 1 written again for it each time."""
    below, written, number = 10_000, 0, 1
    tables = [_table(1, 0, 9, below, 1)]
    strategy = Levelled(base_bytes=2 * below)
    runs_max = 0
    for flushes in range(1, 201):
        number += 1
        tables.append(_table(number << 16, 0, 9, 50, 0, number))
        while (choice := strategy.choose(tables)) is not None:
            _check_choice(choice, tables)
            inputs = [one for run in choice.inputs for one in run]
            size = sum(one.nbytes for one in inputs)
            written += size
            number += 1
            kept = below if choice.level else size  # what comes again and again replaces what was there
            tables = [one for one in tables if one not in inputs]
            tables.append(_table(number << 16, 0, 9, kept, choice.level, choice.run))
        runs_max = max(runs_max, len(runs_of(tables)))
        assert strategy.debt_bytes(tables) == 0
        assert flushes < 100 or written < 12 * flushes * 50, "each byte was written too often"
    assert runs_max <= 8


def test_levelled_moves_what_overlaps_nothing() -> None:
    """Keys that come in order are never rewritten, only moved down in the manifest."""
    tables = [_table(number, 10 * number, 10 * number + 9, 10, 0, number) for number in (1, 2, 3)]
    choice = _LEVELLED.choose(tables)
    assert choice is not None and choice.is_move and choice.level == 1


def test_size_tiered_leaves_a_large_old_run_alone() -> None:
    """Small new runs are merged among themselves, the large one stays until they have grown."""
    tables = [_table(number, 0, 9, size, 0, number) for number, size in ((1, 5000), (2, 10), (3, 10), (4, 10))]
    choice = _TIERED.choose(tables)
    assert choice is not None and [run[0].number for run in choice.inputs] == [4, 3, 2]
    assert (choice.level, choice.run, choice.is_bottom) == (0, 4, False)


def test_everything_goes_into_one_run() -> None:
    """All tables, at the deepest level that there is."""
    tables = [_table(1, 0, 9, 10, 2), _table(2, 3, 5, 10, 1), _table(3, 0, 1, 10, 0, 3)]
    choice = everything(tables)
    assert choice is not None and (len(choice.inputs), choice.level, choice.run, choice.is_bottom) == (3, 2, 0, True)
    assert everything([]) is None and not is_bottom(((tables[1],),), tables)
