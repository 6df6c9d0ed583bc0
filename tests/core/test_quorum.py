"""Levels and how many replicas each asks for."""

import pytest

from geokv.core.quorum import Consistency, needed
from geokv.errors import InvalidRequest

_TABLE = {
    # level: what it asks of 1, 2, 3, 4, 5 replicas; None where that cannot be
    Consistency.ONE: (1, 1, 1, 1, 1),
    Consistency.TWO: (None, 2, 2, 2, 2),
    Consistency.QUORUM: (1, 2, 2, 3, 3),
    Consistency.EACH_QUORUM: (1, 2, 2, 3, 3),
    Consistency.ALL: (1, 2, 3, 4, 5),
}


@pytest.mark.parametrize("level", _TABLE)
@pytest.mark.parametrize("replicas", range(1, 6))
def test_each_level_asks_for_its_number(level: Consistency, replicas: int) -> None:
    """The table of the guarantees, row by row; what cannot be met is refused with both numbers."""
    expected = _TABLE[level][replicas - 1]
    if expected is not None:
        assert needed(level, 0, replicas) == expected
        return
    with pytest.raises(InvalidRequest, match=f"level TWO needs 2 replicas, but this namespace has {replicas}"):
        needed(level, 0, replicas)


@pytest.mark.parametrize("replicas", range(1, 20))
def test_two_quorums_always_meet(replicas: int) -> None:
    """R + W > N at QUORUM, and one replica fewer would not do."""
    quorum = needed(Consistency.QUORUM, 0, replicas)
    assert 2 * quorum > replicas >= 2 * (quorum - 1)


def test_an_explicit_number_overrides_the_level() -> None:
    """r and w of a request count, whatever the level; more than there are is refused."""
    assert needed(Consistency.ALL, 1, 3) == 1 and needed(Consistency.ONE, 3, 3) == 3
    with pytest.raises(InvalidRequest, match="r/w = 4 needs 4 replicas, but this namespace has 3"):
        needed(Consistency.ONE, 4, 3)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("QUORUM", Consistency.QUORUM),
        ("quorum", Consistency.QUORUM),
        ("LOCAL_QUORUM", Consistency.QUORUM),
        ("local_one", Consistency.ONE),
        ("each_quorum", Consistency.EACH_QUORUM),
        (Consistency.TWO, Consistency.TWO),
        (4, Consistency.ALL),
        (0, Consistency.DEFAULT),
    ],
)
def test_a_level_is_found_by_name_number_or_synonym(given: str | int, expected: Consistency) -> None:
    """Names in any case, the two synonyms, the number on the wire, and a level itself."""
    assert Consistency.parse(given) is expected


@pytest.mark.parametrize("wrong", ["", "quorums", "LOCAL_ALL", 6, -1])
def test_an_unknown_level_is_refused_with_the_choices(wrong: str | int) -> None:
    """The error lists what there is, without the placeholder."""
    with pytest.raises(InvalidRequest, match=r"choose one of ONE, TWO, QUORUM, ALL, EACH_QUORUM$"):
        Consistency.parse(wrong)
