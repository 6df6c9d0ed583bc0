"""Runs merge as their cells do, the newest whole cell first."""

from hypothesis import given
from hypothesis import strategies as st

from geokv.core.partial import Partial
from geokv.storage.lsm.merging import STRETCH_BYTES, in_stretches, merged, pairs_of, prefix_end, whole

_RUNS = st.lists(
    st.dictionaries(st.binary(max_size=2), st.binary(max_size=2) | st.binary(max_size=2).map(Partial)), min_size=1, max_size=5
)


@given(_RUNS, st.integers(1, 20))
def test_runs_merge_by_key(runs: list[dict[bytes, bytes]], most: int) -> None:
    """Every key once, in order: the newest whole cell with all newer Partial ones merged in; Partial where none is whole."""
    expected: dict[bytes, bytes] = {}
    for key in sorted({key for run in runs for key in run}):
        gathered: list[bytes] = []
        for cell in (run[key] for run in runs if key in run):
            gathered.append(bytes(cell))
            if type(cell) is bytes:
                expected[key] = max(gathered)
                break
        else:
            expected[key] = Partial(max(gathered))
    stretches = list(merged([in_stretches(sorted(run.items()), most) for run in runs], max))
    found = list(pairs_of(stretches))
    assert found == list(expected.items()) and all(keys for keys, _ in stretches)
    assert [type(cell) for _, cell in found] == [type(cell) for cell in expected.values()]
    finished = list(pairs_of(whole(stretches)))
    assert finished == found and all(type(cell) is bytes for _, cell in finished)


def test_stretches_are_bounded_in_bytes() -> None:
    """Of large cells few are held at once: one above the bound at most."""
    pairs = [(b"%03d" % index, bytes(index * 1000)) for index in range(100)]
    stretches = list(in_stretches(pairs, 1000))
    assert list(pairs_of(stretches)) == pairs
    assert all(sum(map(len, cells[:-1])) < STRETCH_BYTES for _, cells in stretches) and len(stretches) > 5


@given(st.binary(max_size=3), st.binary(max_size=5))
def test_a_prefix_ends_before_the_first_key_without_it(prefix: bytes, key: bytes) -> None:
    """A key is in the range exactly when it begins with the prefix."""
    end = prefix_end(prefix)
    assert (prefix <= key and (end is None or key < end)) == key.startswith(prefix)
