"""The conflict journal: what is noted, once, by whom, and that it outlives a restart."""

from __future__ import annotations

from base64 import b64encode
from itertools import product
from typing import Any

import pytest

from geokv.core.cells.operation import Operation
from geokv.core.cells.wire import encode_operation
from geokv.core.limits import CONFLICTS_PER_NAMESPACE_MAX, LOSER_BYTES_MAX, RESTORED_MAX
from geokv.protocol.journal import Conflict, Party, unpacked
from geokv.protocol.messages import Replicate
from geokv.protocol.requests import Outcome
from tests.node.harness import MS, SECOND, Cluster


def two_dcs(policy: str = "lww") -> Cluster:
    return Cluster(datacenters=2).start().serving().create("ns", policy)


def noted(cluster: Cluster, names: list[str] | None = None, namespace: str = "ns") -> dict[str, dict[str, Any]]:
    """id -> conflict, as all these nodes tell them."""
    found: dict[str, dict[str, Any]] = {}
    for name in names or list(cluster.nodes):
        for one in cluster.admin(name, "conflicts", namespace=namespace).body["conflicts"]:  # type: ignore[attr-defined]
            found[one["id"]] = one
    return found


def value_of(party: dict[str, Any]) -> str | None:
    return party["value_base64"]


def base64(text: bytes) -> str:
    return b64encode(text).decode()


def test_two_datacenters_that_wrote_the_same_key_note_it_as_one_conflict() -> None:
    """Both note it, under one name: winner, loser, its value, and by how much they missed each other."""
    cluster = two_dcs()
    cluster.cut_apart()
    cluster.put("dc1-1", b"k", b"here", namespace="ns")
    cluster.run(500 * MS)
    cluster.put("dc2-1", b"k", b"there", namespace="ns")
    cluster.heal()
    cluster.run_until(lambda: all(noted(cluster, [f"dc{dc}-{n}" for n in (1, 2, 3)]) for dc in (1, 2)))
    (conflict,) = noted(cluster).values()
    assert (conflict["winner"]["dc"], conflict["loser"]["dc"]) == ("dc2", "dc1")
    assert (value_of(conflict["winner"]), value_of(conflict["loser"])) == (base64(b"there"), base64(b"here"))
    assert conflict["outcome"] == "discarded" and conflict["key_base64"] == base64(b"k")
    assert 400 <= conflict["apart_ms"] <= 700


@pytest.mark.parametrize(("here", "there"), [(1, 1), (1, 2), (3, 2)])
def test_each_datacenter_counts_a_conflict_once(here: int, there: int) -> None:
    """The node that takes the other write in does, whoever coordinated its own."""
    cluster = two_dcs()
    cluster.cut_apart()
    cluster.put(f"dc1-{here}", b"k", b"here", namespace="ns")
    cluster.put(f"dc2-{there}", b"k", b"there", namespace="ns")
    cluster.heal()
    cluster.run(3 * SECOND)
    counted = [node.context.counters.get("conflicts.ns.dc2.dc1.discarded", 0) for node in cluster.nodes.values()]
    assert (sum(counted[:3]), sum(counted[3:])) == (1, 1)


def test_a_write_that_saw_the_other_is_no_conflict() -> None:
    """Overwriting, from here and from elsewhere, and with a context of what was read elsewhere."""
    cluster = two_dcs()
    for at in range(4):
        cluster.put(f"dc{at % 2 + 1}-{at % 3 + 1}", b"k", b"v%d" % at, namespace="ns")
        cluster.run(SECOND)
    cluster.cut_apart()
    there = cluster.put("dc2-1", b"k", b"there", namespace="ns")
    cluster.put("dc1-1", b"k", b"saw it", namespace="ns", contexts=[there.versions[0].to_bytes(8, "big")])
    cluster.heal()
    cluster.run(3 * SECOND)
    assert noted(cluster) == {}


def test_a_put_that_replaces_what_its_context_had_not_seen_is_noted() -> None:
    """Two clients read one value and write: the second replaces what it never read. Without a context nobody can tell."""
    cluster = two_dcs()
    read = cluster.put("dc1-1", b"k", b"A", namespace="ns")
    second = cluster.put("dc1-2", b"k", b"B", namespace="ns", contexts=[read.versions[0].to_bytes(8, "big")])
    cluster.put("dc1-3", b"k", b"C", namespace="ns", contexts=[second.versions[0].to_bytes(8, "big")])
    cluster.put("dc1-3", b"k", b"D", namespace="ns")
    cluster.run(2 * SECOND)
    assert noted(cluster) == {}
    cluster.put("dc1-1", b"k", b"E", namespace="ns", contexts=[second.versions[0].to_bytes(8, "big")])
    cluster.run(2 * SECOND)
    (conflict,) = noted(cluster).values()
    assert (value_of(conflict["winner"]), value_of(conflict["loser"])) == (base64(b"E"), base64(b"D"))
    assert cluster.get("dc2-1", b"k", namespace="ns").values == [b"E"]


def test_two_coordinators_of_one_datacenter_note_what_they_did_to_each_other() -> None:
    """Neither had the other's record when it stamped its own."""
    cluster = two_dcs()
    cluster.is_held = lambda s, r, m: isinstance(m, Replicate)
    for name in ("dc1-1", "dc1-2"):
        cluster.write(name, {b"k": name.encode()}, namespace="ns")
        cluster.run(5 * MS)
    cluster.release()
    cluster.run(2 * SECOND)
    assert len(noted(cluster)) == 1


def test_a_delete_that_lost_and_a_value_that_is_long_are_noted_as_such() -> None:
    """A loser without a value is a delete; of a long value the journal keeps the beginning, and says so."""
    cluster = two_dcs()
    cluster.cut_apart()
    cluster.put("dc1-1", b"gone", None, namespace="ns")
    cluster.put("dc1-1", b"long", bytes(5_000), namespace="ns")
    cluster.run(100 * MS)
    for key in (b"gone", b"long"):
        cluster.put("dc2-1", key, b"later", namespace="ns")
    cluster.heal()
    cluster.run_until(lambda: len(noted(cluster)) == 2)
    losers = {one["key_base64"]: one["loser"] for one in noted(cluster).values()}
    assert losers[base64(b"gone")]["is_delete"] and value_of(losers[base64(b"gone")]) is None
    assert losers[base64(b"long")]["value_bytes"] == 5_000
    assert value_of(losers[base64(b"long")]) == base64(bytes(LOSER_BYTES_MAX))


@pytest.mark.parametrize(
    ("policy", "here", "there", "outcome", "winner"),
    [
        ("siblings", b"here", b"there", "kept", None),
        ("register_mv", b"here", b"there", "kept", None),
        ("register_lww", b"here", b"there", "discarded", 1),
        ("set_rw", Operation("add", (b"x",)), Operation("remove", (b"x",)), "discarded", 1),
        ("flag_dw", Operation("disable"), Operation("enable"), "discarded", 0),
        ("sorted_set", Operation("add", (b"x", 2)), Operation("add", (b"x", 1.5)), "discarded", 0),
        ("map_rr", *[Operation("write", (b"v%d" % at,), ((b"f", "register_lww"),)) for at in (1, 2)], "discarded", 1),
        ("set_aw", Operation("add", (b"x",)), Operation("add", (b"x",)), "", None),
        ("counter_pn", Operation("increment", (1,)), Operation("increment", (2,)), "", None),
    ],
)
def test_each_policy_notes_what_it_decides(policy: str, here: Any, there: Any, outcome: str, winner: int | None) -> None:
    """Kept or hidden, with the value that is shown, or the operation that stands; nothing where nothing is decided."""
    cluster = two_dcs(policy)
    cluster.cut_apart()
    is_update = isinstance(here, Operation)
    values = [encode_operation(what) if is_update else what for what in (here, there)]
    for name, value in zip(("dc1-1", "dc2-1"), values, strict=True):
        assert cluster.put(name, b"k", value, namespace="ns", has_updates=is_update).outcomes == [Outcome.APPLIED]
        cluster.run(50 * MS)
    cluster.heal()
    cluster.run(3 * SECOND)
    conflicts = list(noted(cluster).values())
    assert [one["outcome"] for one in conflicts] == ([outcome] if outcome else [])
    if winner is not None:
        assert value_of(conflicts[0]["winner"]) == base64(values[winner])


_TAGS = ((b"tags", "set_aw"),)
_OUTLIVED = [
    ("set_aw", Operation("add", (b"x",)), Operation("remove", (b"x",)), Operation("add", (b"x",))),
    ("set_aw", Operation("add", (b"x",)), Operation("delete"), Operation("add", (b"x",))),
    ("set_grow", Operation("add", (b"x",)), Operation("delete"), Operation("add", (b"x",))),
    ("set_rw", Operation("add", (b"x",)), Operation("delete"), Operation("add", (b"x",))),
    ("flag_ew", Operation("enable"), Operation("disable"), Operation("enable")),
    ("sorted_set", Operation("add", (b"x", 1)), Operation("remove", (b"x",)), Operation("add", (b"x", 2))),
    ("max", Operation("put", (5,)), Operation("delete"), Operation("put", (6,))),
    ("register_lww", Operation("write", (b"a",)), Operation("delete"), Operation("write", (b"b",))),
    ("register_mv", Operation("write", (b"a",)), Operation("delete"), Operation("write", (b"b",))),
    ("map_rr", *[Operation(name, (b"x",), _TAGS) for name in ("add", "remove", "add")]),
    ("map_rr", Operation("add", (b"x",), _TAGS), Operation("remove", (b"tags",)), Operation("add", (b"x",), _TAGS)),
    ("map_rr", *[Operation(name, (), ((b"on", "flag_ew"),)) for name in ("enable", "disable", "enable")]),
]


@pytest.mark.parametrize(("policy", "first", "takes", "stays"), _OUTLIVED)
@pytest.mark.parametrize("coordinator", [1, 2])
def test_a_removal_that_loses_is_noted_once_by_who_made_it(
    policy: str, first: Operation, takes: Operation, stays: Operation, coordinator: int
) -> None:
    """The update that had not seen it wins; the other datacenter, where nothing is left of the removal, notes nothing."""
    cluster = two_dcs(policy)
    seen = cluster.put("dc1-1", b"k", encode_operation(first), namespace="ns", has_updates=True)
    cluster.run(SECOND)
    cluster.cut_apart()
    for name, operation in ((f"dc1-{coordinator}", takes), ("dc2-1", stays)):
        cluster.put(name, b"k", encode_operation(operation), namespace="ns", has_updates=True)
        cluster.run(50 * MS)
    cluster.heal()
    cluster.run(3 * SECOND)
    assert seen.outcomes == [Outcome.APPLIED]
    (conflict,) = noted(cluster).values()
    assert noted(cluster, [f"dc1-{coordinator}"]) and not noted(cluster, ["dc2-1", "dc2-2", "dc2-3"])
    winner, loser = conflict["winner"], conflict["loser"]
    assert (winner["dc"], loser["dc"], conflict["outcome"], conflict["policy"]) == ("dc2", "dc1", "discarded", policy)
    if policy.startswith("register"):
        assert value_of(winner) == base64(b"b") and loser["is_delete"]
    else:
        assert (value_of(winner), value_of(loser)) == (base64(encode_operation(stays)), base64(encode_operation(takes)))
    assert 0 < conflict["apart_ms"] < 500
    counted = [node.context.counters.get("conflicts.ns.dc2.dc1.discarded", 0) for node in cluster.nodes.values()]
    assert sum(counted) == 1


@pytest.mark.parametrize("path", [(), ((b"likes", "counter_pn"),)])
def test_of_a_counter_that_is_reset_the_journal_tells_what_survived(path: tuple[tuple[bytes, str], ...]) -> None:
    """By what the other datacenter had counted on when it was reset, and once, however often that counts on."""
    cluster = two_dcs("map_rr" if path else "counter_pn")

    def do(node: str, name: str, *arguments: int) -> None:
        packed = encode_operation(Operation(name, arguments, path))
        assert cluster.put(node, b"k", packed, namespace="ns", has_updates=True).outcomes == [Outcome.APPLIED]

    do("dc2-1", "increment", 99)
    do("dc2-1", "increment", 1)
    cluster.run(SECOND)
    cluster.cut_apart()
    do("dc1-2", "reset")
    do("dc2-1", "increment", 3)
    do("dc2-1", "decrement", 1)
    cluster.heal()
    cluster.run(3 * SECOND)
    (conflict,) = noted(cluster).values()
    assert value_of(conflict["winner"]) == base64(encode_operation(Operation("increment", (3,), path)))
    assert value_of(conflict["loser"]) == base64(encode_operation(Operation("reset", (), path)))


def test_a_delete_of_siblings_that_loses_to_a_put_is_noted() -> None:
    """Of what it had read: the put that replaces the same stays."""
    cluster = two_dcs("siblings")
    first = cluster.put("dc1-1", b"k", b"A", namespace="ns")
    cluster.run(SECOND)
    cluster.cut_apart()
    cluster.put("dc1-1", b"k", None, namespace="ns", contexts=[first.contexts[0]])
    cluster.put("dc2-1", b"k", b"B", namespace="ns", contexts=[first.contexts[0]])
    cluster.heal()
    cluster.run(3 * SECOND)
    (conflict,) = noted(cluster).values()
    assert (value_of(conflict["winner"]), conflict["loser"]["is_delete"]) == (base64(b"B"), True)


def test_a_removal_is_told_of_what_its_context_had_not_seen() -> None:
    """Its client had read the first addition, and the second is there: that one stays, and is noted where it is coordinated."""
    cluster = two_dcs("set_aw")
    for node, element in (("dc1-1", b"x"), ("dc1-1", b"y"), ("dc1-2", b"x")):
        cluster.put(node, b"k", encode_operation(Operation("add", (element,))), namespace="ns", has_updates=True)
        if element == b"y":
            cluster.run(SECOND)
            token = cluster.get("dc1-1", b"k", namespace="ns").contexts[0]
    cluster.run(SECOND)
    packed = encode_operation(Operation("remove", (b"x",)))
    cluster.put("dc1-3", b"k", packed, namespace="ns", has_updates=True, contexts=[token])
    (conflict,) = noted(cluster).values()
    assert (conflict["winner"]["node"], conflict["loser"]["node"]) == ("dc1-2", "dc1-3")
    packed = encode_operation(Operation("remove", (b"y",)))
    cluster.put("dc1-3", b"k", packed, namespace="ns", has_updates=True, contexts=[token])
    assert len(noted(cluster)) == 1


def test_two_coordinators_of_one_datacenter_of_which_one_takes_away() -> None:
    """Who took away notes what the other added in the same moment."""
    cluster = two_dcs("flag_ew")
    for _ in range(2):
        cluster.put("dc1-1", b"k", encode_operation(Operation("enable")), namespace="ns", has_updates=True)
    cluster.run(SECOND)
    cluster.is_held = lambda s, r, m: isinstance(m, Replicate)
    for name, what in (("dc1-1", "enable"), ("dc1-2", "disable")):
        cluster.write(name, {b"k": encode_operation(Operation(what))}, namespace="ns", has_updates=True)
        cluster.run(50 * MS)
    cluster.release()
    cluster.run(2 * SECOND)
    (conflict,) = noted(cluster).values()
    assert (conflict["winner"]["node"], conflict["loser"]["node"]) == ("dc1-1", "dc1-2")


@pytest.mark.parametrize("policy", ["set_aw", "flag_ew", "map_rr"])
def test_what_saw_a_removal_is_no_conflict_with_it(policy: str) -> None:
    """Adding again after it, here and there, also where it replaced something; and removing in turns."""
    adds, removes = {
        "set_aw": (Operation("add", (b"x",)), Operation("remove", (b"x",))),
        "flag_ew": (Operation("enable"), Operation("disable")),
        "map_rr": (Operation("add", (b"x",), _TAGS), Operation("remove", (b"tags",))),
    }[policy]
    cluster = two_dcs(policy)
    for at in range(4):
        for node, operation in ((f"dc{at % 2 + 1}-1", adds), ("dc2-2", adds), ("dc1-3", removes), ("dc2-3", adds)):
            cluster.put(node, b"k", encode_operation(operation), namespace="ns", has_updates=True)
            cluster.run(SECOND)
    assert noted(cluster) == {}


def test_a_put_beside_a_sibling_is_noted_where_it_is_coordinated() -> None:
    """Without a context it keeps what it did not see; with one that saw all there is no conflict."""
    cluster = two_dcs("siblings")
    first = cluster.put("dc1-1", b"k", b"A", namespace="ns")
    seen = cluster.put("dc1-1", b"k", b"B", namespace="ns", contexts=[first.contexts[0]])
    assert noted(cluster) == {}
    cluster.put("dc1-1", b"k", b"C", namespace="ns")
    (conflict,) = noted(cluster).values()
    assert {value_of(conflict["winner"]), value_of(conflict["loser"])} == {base64(b"B"), base64(b"C")}
    assert seen.outcomes == [Outcome.APPLIED]


@pytest.mark.parametrize("memtable_bytes", [1 << 30, 1])
def test_the_journal_outlives_a_restart_and_goes_with_its_namespace(memtable_bytes: int) -> None:
    """From the log, or from the state that a flush keeps."""
    cluster = Cluster(memtable_bytes=memtable_bytes).start().serving()
    cluster.admin("dc1-1", "namespace_create", name="ns", policy="siblings")
    cluster.run(SECOND)
    for at in range(3):
        cluster.put("dc1-1", b"k", b"v%d" % at, namespace="ns")
    before = noted(cluster, ["dc1-1"])
    assert len(before) == 3
    cluster.run(SECOND)
    cluster.restart("dc1-1")
    cluster.serving()
    assert noted(cluster, ["dc1-1"]) == before
    cluster.admin("dc1-1", "namespace_delete", name="ns")
    cluster.run(SECOND)
    assert not cluster.nodes["dc1-1"].context.journal.packed()


def test_that_a_loser_was_brought_back_is_noted_once_and_kept() -> None:
    """By who noted the conflict, over a restart too; it is not counted as one, and what is not known is said to be so."""
    cluster = Cluster(nodes=1, replicas=1).start().serving()
    cluster.admin("dc1-1", "namespace_create", name="ns", policy="siblings")
    for value in (b"A", b"B"):
        cluster.put("dc1-1", b"k", value, namespace="ns")
    (name,) = noted(cluster)
    told = {"namespace": "ns", "id": name, "dc": "dc1", "node": "dc1-1"}
    for version in ("77", "77", "78"):
        assert cluster.admin("dc1-1", "conflict_restored", **told, version=version).body["is_known"]
    cluster.run(SECOND)
    restored = noted(cluster)[name]["restored"]
    assert [(one["version"], one["dc"], one["node"]) for one in restored] == [("77", "dc1", "dc1-1"), ("78", "dc1", "dc1-1")]
    assert cluster.admin("dc1-1", "metrics").body["events.conflicts.ns.dc1.dc1.kept"] == 1
    assert not cluster.admin("dc1-1", "conflict_restored", **(told | {"id": "0123"}), version="1").body["is_known"]
    long = {"version": "1", "node": "n" * 5_000_000}
    for wrong in ({"version": "x"}, {"version": "1", "namespace": "nowhere"}, {}, long, {"version": "1", "dc": "no name"}):
        assert cluster.admin("dc1-1", "conflict_restored", **(told | wrong)).outcome in (Outcome.INVALID, Outcome.NOT_FOUND)
    for at in range(RESTORED_MAX):
        cluster.admin("dc1-1", "conflict_restored", **told, version=f"{at + 100}")
    cluster.run(SECOND)
    cluster.restart("dc1-1")
    cluster.serving()
    versions = [one["version"] for one in noted(cluster)[name]["restored"]]
    assert versions == [str(at + 100) for at in range(RESTORED_MAX)]


def test_an_entry_that_an_older_node_noted_is_read() -> None:
    """It has nothing of what was brought back."""
    conflict = Conflict("x", 1, b"k", "lww", Party(b"o", 1, 2, b"v", 1), Party(b"p", 3, 4, None, 0), False, 5)
    assert unpacked(conflict.packed()[:-1]) == unpacked(conflict.packed()) == conflict


def test_the_journal_is_bounded_and_counts_what_it_drops() -> None:
    """The oldest go first."""
    cluster = Cluster(nodes=1, replicas=1).start().serving()
    cluster.admin("dc1-1", "namespace_create", name="ns", policy="siblings")
    for at in range(CONFLICTS_PER_NAMESPACE_MAX + 10):
        for value in (b"A", b"B"):
            cluster.put("dc1-1", b"k%d" % at, value, namespace="ns")
    body = cluster.admin("dc1-1", "conflicts", namespace="ns").body
    keys = [one["key_base64"] for one in body["conflicts"]]  # type: ignore[attr-defined]
    assert len(keys) == CONFLICTS_PER_NAMESPACE_MAX and body["dropped"] == 10
    assert base64(b"k0") not in keys and base64(b"k%d" % (CONFLICTS_PER_NAMESPACE_MAX + 9)) in keys
    metrics = cluster.admin("dc1-1", "metrics").body
    assert metrics["events.conflicts.ns.dc1.dc1.kept"] == CONFLICTS_PER_NAMESPACE_MAX + 10


def test_the_question_has_limits() -> None:
    """A key alone, a number, and words for what is wrong."""
    cluster = Cluster(nodes=1, replicas=1).start().serving()
    cluster.admin("dc1-1", "namespace_create", name="ns", policy="siblings")
    for key, value in product((b"a", b"b"), (b"1", b"2")):
        cluster.put("dc1-1", key, value, namespace="ns")
    one = cluster.admin("dc1-1", "conflicts", namespace="ns", key_base64=base64(b"a")).body["conflicts"]
    assert [found["key_base64"] for found in one] == [base64(b"a")]  # type: ignore[attr-defined]
    assert len(cluster.admin("dc1-1", "conflicts", limit=1).body["conflicts"]) == 1  # type: ignore[arg-type]
    for arguments in ({"limit": 0}, {"key_base64": "%"}, {"namespace": ""}):
        assert cluster.admin("dc1-1", "conflicts", **arguments).outcome in (Outcome.INVALID, Outcome.NOT_FOUND)
