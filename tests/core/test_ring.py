"""The ring: the same everywhere, fair by weight, across racks, and moving little when a node is added."""

import mmh3
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geokv.core.ring import (
    PARTITIONS_DEFAULT,
    PARTITIONS_MAX,
    Member,
    Ring,
    key_hash,
    moved_copies,
    partition_of,
    partition_shift,
)

_MEMBERS = st.lists(
    st.builds(
        Member,
        st.text("abcdef", min_size=1, max_size=4),
        st.sampled_from(["", "r1", "r2", "r3"]),
        st.just(1.0),
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda member: member.node,
)


def test_the_hash_is_murmur3_x64_128() -> None:
    """The hash function of the library is verified as its authors' own test does, over 256 keys and seeds."""
    hashes = b"".join(mmh3.hash_bytes(bytes(range(index)), 256 - index, x64arch=True) for index in range(256))
    assert mmh3.hash_bytes(hashes, 0, x64arch=True)[:4] == (0x6384BA69).to_bytes(4, "little")


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (b"", 0),
        (b"a", 0x85555565F6597889),
        (b"user:1", 0x54F09E266816C56E),
        (b"The quick brown fox jumps over the lazy dog", 0xE34BBC7BBC071B6C),
    ],
)
def test_a_key_keeps_its_hash_for_ever(key: bytes, expected: int) -> None:
    """The first 64 bits, unsigned: another value would send every stored key to another partition."""
    assert key_hash(key) == expected
    assert [partition_of(key, count) for count in (1, 2, 256, PARTITIONS_MAX)] == [
        0,
        expected >> 63,
        expected >> 56,
        expected >> 50,
    ]


@given(key=st.binary(), bits=st.integers(0, 14))
def test_every_key_has_a_partition(key: bytes, bits: int) -> None:
    """Whatever the key, its partition is below their number."""
    assert 0 <= partition_of(key, 1 << bits) < 1 << bits


def test_keys_spread_over_all_partitions() -> None:
    """Among 100,000 keys that look alike no partition has more than 1.5 times its share."""
    counts = [0] * PARTITIONS_DEFAULT
    for index in range(100_000):
        counts[partition_of(b"user:%d" % index, PARTITIONS_DEFAULT)] += 1
    assert min(counts) > 0.5 * 100_000 / PARTITIONS_DEFAULT
    assert max(counts) < 1.5 * 100_000 / PARTITIONS_DEFAULT


@pytest.mark.parametrize("partitions", [0, -1, 3, 100, 2 * PARTITIONS_MAX])
def test_a_wrong_number_of_partitions_is_refused(partitions: int) -> None:
    """Only powers of two up to the limit cut the hash space into equal slices."""
    with pytest.raises(ValueError, match="must be a power of two"):
        partition_shift(partitions)


@given(members=_MEMBERS, seed=st.randoms(use_true_random=False))
def test_the_ring_does_not_depend_on_the_order_of_its_members(members: list[Member], seed) -> None:
    """Every node and client computes the same owners, however it learned of the members."""
    shuffled = list(members)
    seed.shuffle(shuffled)
    one, other = Ring(32, members), Ring(32, shuffled)
    assert [one.owners(p, 3) for p in range(32)] == [other.owners(p, 3) for p in range(32)]


@given(members=_MEMBERS)
def test_owners_are_distinct_and_fewer_replicas_are_a_prefix(members: list[Member]) -> None:
    """No node owns a partition twice; raising the number of replicas only adds owners."""
    ring = Ring(32, members)
    for partition in range(32):
        most = ring.owners(partition, len(members) + 1)
        assert sorted(most) == sorted(member.node for member in members)
        for replicas in range(len(members)):
            assert ring.owners(partition, replicas) == most[:replicas]


@given(members=_MEMBERS, replicas=st.integers(1, 5))
def test_owners_stand_in_as_many_racks_as_there_are(members: list[Member], replicas: int) -> None:
    """Copies share a rack only when there are fewer racks than copies."""
    rack = {member.node: member.rack for member in members}
    ring = Ring(32, members)
    for partition in range(32):
        owners = ring.owners(partition, replicas)
        assert len({rack[owner] for owner in owners}) == min(len(owners), len(set(rack.values())))


def test_a_key_goes_to_the_owners_of_its_partition() -> None:
    """owners_of_key and the way over the partition agree."""
    ring = Ring(64, [Member(f"n{index}") for index in range(5)])
    for index in range(200):
        key = b"k%d" % index
        assert ring.owners_of_key(key, 3) == ring.owners(partition_of(key, 64), 3)


def test_a_weight_is_a_share() -> None:
    """A node of weight 2 owns about twice as much as one of weight 1, one of weight 0 nothing."""
    members = [Member(f"n{index}") for index in range(6)] + [
        Member("big", weight=2.0),
        Member("none", weight=0),
    ]
    ring = Ring(4096, members)
    firsts = [ring.owners(partition, 1)[0] for partition in range(4096)]
    ones = sum(firsts.count(f"n{index}") for index in range(6)) / 6
    assert 1.5 < firsts.count("big") / ones < 2.6
    assert all("none" not in ring.owners(partition, 8) for partition in range(4096))


def test_a_ring_without_weight_owns_nothing() -> None:
    """Nobody to own is an empty list of owners, not an error."""
    assert Ring(8, []).owners(3, 3) == () == Ring(8, [Member("a", weight=0)]).owners(3, 3)


def _racks(count: int) -> list[Member]:
    return [Member(f"node-{index}", f"rack-{index % 3}") for index in range(count)]


def _no_racks(count: int) -> list[Member]:
    return [Member(f"node-{index}") for index in range(count)]


def _weighted(count: int) -> list[Member]:
    return [Member(f"node-{index}", f"rack-{index % 3}", (0.5, 1.0, 2.0)[index // 3 % 3]) for index in range(count)]


def _weighted_no_racks(count: int) -> list[Member]:
    return [Member(f"node-{index}", "", (0.5, 1.0, 2.0)[index % 3]) for index in range(count)]


@pytest.mark.parametrize("layout", [_racks, _no_racks, _weighted, _weighted_no_racks])
@pytest.mark.parametrize("count", range(3, 25))
def test_adding_a_node_moves_little(count: int, layout) -> None:
    """A new node beside n, with racks or without, moves at most 1/(n+1) + 5 points of the copies.

    Where weights differ, the fair share is the new node's part of the weight, if that is more.
    """
    members = layout(count + 1)
    before, after = Ring(PARTITIONS_DEFAULT, members[:-1]), Ring(PARTITIONS_DEFAULT, members)
    share = max(1 / (count + 1), members[-1].weight / sum(member.weight for member in members))
    for replicas in (1, 2, 3):
        moved = moved_copies(before, after, replicas)
        assert moved <= share + 0.05, f"{moved:.3f} of the copies moved, {share:.3f} is fair"
        assert moved > 0


def test_moved_copies_counts_owners_that_are_new() -> None:
    """The same ring moves nothing, a wholly other one everything, an empty one nothing."""
    ring = Ring(16, _no_racks(4))
    assert moved_copies(ring, ring, 3) == 0.0
    assert moved_copies(ring, Ring(16, [Member("x"), Member("y")]), 2) == 1.0
    assert moved_copies(ring, Ring(16, []), 2) == 0.0
