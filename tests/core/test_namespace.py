"""Namespaces: what a definition accepts, that catalogs merge in any order, and who keeps a name."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geokv.core import namespace
from geokv.core.limits import LMDB_KEY_BYTES_MAX
from geokv.core.namespace import BORN, Catalog, NamespaceDefinition, decode, define
from geokv.core.quorum import Consistency
from geokv.errors import InvalidRequest, RecordError

DCS = ["ap", "eu", "us"]


def made(number: int, name: str = "carts", hlc: int = 10, dc: str = "eu", **settings: Any) -> NamespaceDefinition:
    return define(number, name, settings, DCS, hlc, dc)


@st.composite
def definitions(draw: st.DrawFn) -> NamespaceDefinition:
    """Definitions of few ids and names, so that they meet, altered and deleted anywhere."""
    number = draw(st.integers(2, 6))
    dc = DCS[number % 2]
    one = made(number, ["a", "b"][number % 2], 10 + number % 3, dc)
    for _ in range(draw(st.integers(0, 2))):
        changes = {"ttl_ms": draw(st.integers(0, 3))}
        one = one.altered(changes, draw(st.integers(0, 30)), draw(st.sampled_from(DCS)))
    return one.deleted(draw(st.integers(0, 30)), draw(st.sampled_from(DCS))) if draw(st.booleans()) else one


@given(st.lists(definitions(), max_size=12), st.integers())
def test_the_order_of_merging_never_matters(some: list[NamespaceDefinition], seed: int) -> None:
    """Merged one by one, shuffled, doubled or by halves: the same catalog, names and conflicts."""
    shuffled = [*some, *some]
    random.Random(seed).shuffle(shuffled)
    step_by_step = Catalog()
    for one in shuffled:
        step_by_step = step_by_step.merged(one)
    half = len(some) // 2
    halves = Catalog(some[half:]).merged(*Catalog(some[:half]).by_id.values())
    whole = Catalog(some)
    assert whole == step_by_step == halves
    assert whole.names() == step_by_step.names() == halves.names()
    assert whole.conflicts() == step_by_step.conflicts() == halves.conflicts()
    living = {one.id for one in whole.by_id.values() if not one.is_deleted}
    found = [whole.resolve(name) for name in whole.names()]
    assert sorted(one.id for one in found if one) == sorted(living), "each living one is reached, by one name"
    assert not living & {one.id for one in some if one.is_deleted}, "a deletion wins over every alteration"


@given(definitions())
def test_encoding_gives_back_the_definition(one: NamespaceDefinition) -> None:
    """decode is the inverse of encode."""
    assert decode(one.encode()) == one


def test_fields_of_a_newer_version_are_kept() -> None:
    """An unknown field does not hurt, and survives an alteration made here."""
    tree = msgpack.unpackb(made(7).encode())
    newer = decode(msgpack.packb(tree | {"links": [["eu", "us", False]]}))
    again = msgpack.unpackb(newer.altered({"ttl_ms": 5}, 20, "us").encode())
    assert again["links"] == [["eu", "us", False]] and again["ttl_ms"] == 5


@pytest.mark.parametrize("wrong", [b"", b"\xc1", b"\x80", b"\x93\x01\x02\x03", made(7).encode()[:-1], bytes(70_000)])
def test_bytes_that_are_no_definition_are_refused(wrong: bytes) -> None:
    """RecordError, whatever comes."""
    with pytest.raises(RecordError):
        decode(wrong)


@pytest.mark.parametrize(("field", "value"), [("id", 0), ("id", "x"), ("name", "A B"), ("altered_hlc", -1), ("dcs", 5)])
def test_a_definition_with_a_senseless_field_is_refused(field: str, value: object) -> None:
    """What merging and naming rest on is checked when it is read."""
    tree = msgpack.unpackb(made(7).encode())
    with pytest.raises(RecordError):
        decode(msgpack.packb(tree | {field: value}))


def test_the_earlier_keeps_its_name() -> None:
    """The later is reached as name@dc, two of one datacenter with their id; conflicts() lists them."""
    first, second = made(70, hlc=10, dc="us"), made(9, hlc=11, dc="eu")
    catalog = Catalog([second, first])
    assert catalog.resolve("carts") == first and catalog.resolve("carts@eu") == second
    assert catalog.conflicts() == [("carts", "carts@eu")] and catalog.name_of(9) == "carts@eu"
    third = made(10, hlc=12, dc="eu")
    catalog = catalog.merged(third)
    assert catalog.names() == ["carts", "carts@eu#0000000000000009", "carts@eu#000000000000000a", "default"]
    catalog = catalog.merged(first.deleted(50, "us"))
    assert catalog.resolve("carts") == second and catalog.resolve("carts@eu") == third


def test_same_instant_is_decided_by_datacenter_then_id() -> None:
    """The order of names is total."""
    assert Catalog([made(5, dc="us"), made(6, dc="eu")]).resolve("carts") == made(6, dc="eu")
    assert Catalog([made(5), made(6)]).resolve("carts") == made(5)


def test_every_cluster_is_born_with_default() -> None:
    """Id 1, lww, everywhere; it can be altered, not deleted."""
    catalog = Catalog()
    assert catalog.resolve("default") == BORN and BORN.id == 1 and BORN.policy == "lww" and BORN.created_hlc == 0
    assert BORN.is_held_by("eu") and BORN.replicas_in("eu", 3) == 3
    altered = BORN.altered({"ttl_ms": 9}, 5, "eu")
    assert catalog.merged(altered).resolve("default") == altered and altered.version == 2
    with pytest.raises(InvalidRequest, match="cannot be deleted"):
        BORN.deleted(5, "eu")


def test_altering_moves_the_stamp_even_when_the_clock_is_behind() -> None:
    """What was altered later here is later everywhere."""
    one = made(5, hlc=100).altered({"read_level": "one"}, 7, "us")
    assert one.altered_hlc == 101 and one.read_level is Consistency.ONE and one.created_hlc == 100


def test_a_merge_that_changes_nothing_is_the_same_catalog() -> None:
    """So that a caller can tell by identity."""
    catalog = Catalog([made(5)])
    assert catalog.merged(made(5)) is catalog and catalog.merged(made(5).altered({"ttl_ms": 1}, 90, "us")) is not catalog


@pytest.mark.parametrize("name", ["", "A", "a b", "-a", "a" * 64, "a@eu", "a#1", "a/b", "é", 7])
def test_wrong_names_are_refused(name: Any) -> None:
    """The message says what a name looks like."""
    with pytest.raises(InvalidRequest, match="1 to 63 of a-z"):
        define(5, name, {}, DCS, 1, "eu")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"policy": "best"}, "choose one of .*lww"),
        ({"policy": "counter_bounded", "durability": "interval"}, 'needs durability "always"'),
        ({"dcs": ["mars"]}, "there are ap, eu, us"),
        ({"dcs": "eu"}, "give a list"),
        ({"replicas": {"us": 3}, "dcs": ["eu"]}, "does not hold"),
        ({"replicas": {"eu": 0}}, "from 1 to"),
        ({"replicas": 3}, "per datacenter"),
        ({"read_level": "EACH_QUORUM"}, "cannot be EACH_QUORUM"),
        ({"write_level": "most"}, "choose one of"),
        ({"write_level": 2.5}, "level's name"),
        ({"write_level": 0}, "cannot be DEFAULT"),
        ({"ttl_ms": -1}, "whole number"),
        ({"ttl_ms": True}, "whole number"),
        ({"value_bytes_max": 2 << 20}, "to 1048576"),
        ({"key_bytes_max": 2000}, "to 1024"),
        ({"durability": "never"}, "choose one of always, interval"),
        ({"interval_ms": 50}, "only for durability"),
        ({"colour": 1}, "unknown setting 'colour'"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, object], message: str) -> None:
    """Each with what to write instead."""
    with pytest.raises(InvalidRequest, match=message):
        define(5, "carts", settings, DCS, 1, "eu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "nothing to alter"),
        ({"durability": "interval"}, "durability of a namespace cannot be altered; alterable: policy, ttl_ms"),
        ({"dcs": ["eu"]}, "cannot be altered"),
        ({"replicas": {"eu": 3}}, "cannot be altered"),
        ({"colour": 1}, "unknown setting"),
        ({"interval_ms": 5}, "only for durability"),
    ],
)
def test_what_cannot_be_altered_is_refused(changes: dict[str, object], message: str) -> None:
    """Durability, replicas and datacenters stay; the message lists what can be changed."""
    with pytest.raises(InvalidRequest, match=message):
        made(5).altered(changes, 20, "us")


def test_settings_are_taken_and_shown() -> None:
    """Every setting arrives in the definition and comes back as plain values that define it again."""
    settings: dict[str, Any] = {
        "policy": "lww",
        "dcs": ["us", "eu"],
        "replicas": {"eu": 3, "us": 1},
        "write_level": "ALL",
        "read_level": "LOCAL_ONE",
        "ttl_ms": 60_000,
        "value_bytes_max": 100_000,
        "key_bytes_max": 100,
        "durability": "interval",
        "interval_ms": 20,
        "links_off": ["eu>us"],
        "engine": "memory",
        "memory_bytes_max": 2 << 20,
    }
    one = made(5, **settings)
    assert one.settings() == settings | {"dcs": ["eu", "us"], "read_level": "ONE"}
    assert define(5, "carts", one.settings(), DCS, 10, "eu") == one
    assert one.is_held_by("us") and not one.is_held_by("ap") and one.replicas_in("us", 3) == 1
    assert made(5, durability="interval").interval_ms == namespace.INTERVAL_MS_DEFAULT


def test_the_number_of_namespaces_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """check_room counts the living ones only."""
    monkeypatch.setattr(namespace, "NAMESPACES_MAX", 3)
    full = Catalog([made(5, "a"), made(6, "b")])
    with pytest.raises(InvalidRequest, match="at most 3"):
        full.check_room()
    full.merged(replace(made(6, "b"), is_deleted=True)).check_room()


def test_definitions_without_an_engine_of_their_own_are_encoded_as_before() -> None:
    """What version 0.1 encoded is equal to what is encoded now, so that the two never seem to differ."""
    tree = msgpack.unpackb(made(5).encode())
    assert "engine" not in tree and "memory_bytes_max" not in tree
    assert made(6, engine="lmdb").key_bytes_max == LMDB_KEY_BYTES_MAX
    assert decode(made(6, engine="rocksdb").encode()).engine == "rocksdb"
    cache = made(5, engine="memory")
    assert decode(cache.encode()) == cache and cache.memory_bytes_max == namespace.CACHE_BYTES_DEFAULT
    assert decode(made(5).encode()).engine == "lsm"
