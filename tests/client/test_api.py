"""The public face: names, signatures, arguments, results and errors, without any node."""

import inspect
import json
import pickle
import subprocess
import sys
from datetime import timedelta
from typing import Any

import pytest

import geokv
from geokv import (
    AsyncBatch,
    AsyncClient,
    AsyncNamespace,
    Batch,
    Client,
    Consistency,
    InvalidRequest,
    Namespace,
    Outcome,
)
from geokv.client import arguments
from geokv.client.results import CallFacts, FailedItem, GetResult, PutResult, Results
from geokv.errors import GeokvError, Overloaded, Unavailable

TWINS = [(Client, AsyncClient), (Namespace, AsyncNamespace), (Batch, AsyncBatch)]


def public(kind: type) -> dict[str, Any]:
    return {name: member for name, member in inspect.getmembers(kind) if not name.startswith("_") and callable(member)}


@pytest.mark.parametrize(("ours", "theirs"), TWINS, ids=lambda kind: kind.__name__)
def test_both_clients_have_the_same_methods_arguments_and_docstrings(ours: type, theirs: type) -> None:
    """Names, parameters with kinds and defaults, and documentation are equal; only `await` tells them
    apart.
    """
    mine, twins = public(ours), public(theirs)
    assert mine.keys() == twins.keys() and mine
    assert ours.__doc__ == theirs.__doc__ and ours.__doc__
    for name, method in mine.items():
        parameters = inspect.signature(method).parameters.values()
        expected = inspect.signature(twins[name]).parameters.values()
        assert [(one.name, one.kind, one.default) for one in parameters] == [
            (one.name, one.kind, one.default) for one in expected
        ], name
        assert method.__doc__ == twins[name].__doc__ and method.__doc__, name
        assert not inspect.iscoroutinefunction(method), name
    parameters = list(inspect.signature(ours).parameters.values())
    assert [one.name for one in parameters] == [one.name for one in inspect.signature(theirs).parameters.values()]


def test_importing_geokv_loads_neither_grpc_nor_server_nor_lab() -> None:
    """`import geokv` is light; using Client loads the client and still neither server, lab, node nor
    storage.
    """
    code = (
        "import sys, geokv\n"
        "heavy = [name for name in sys.modules if name.split('.')[0] in ('grpc', 'google', 'asyncio')]\n"
        "assert not heavy, heavy\n"
        "geokv.Consistency, geokv.Unavailable, geokv.Outcome\n"
        "assert 'grpc' not in sys.modules\n"
        "geokv.Client\n"
        "parts = {name.split('.')[1] for name in sys.modules if name.startswith('geokv.')}\n"
        "assert not parts & {'server', 'lab', 'node', 'storage', 'sim', 'cli'}, parts\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_there() -> None:
    """All of `__all__` can be had, and nothing else by accident."""
    for name in geokv.__all__:
        assert getattr(geokv, name) is not None
    assert set(geokv.__all__) <= set(dir(geokv))
    with pytest.raises(AttributeError, match="no attribute 'Server'"):
        _ = geokv.Server


@pytest.mark.parametrize("value", [{"a": 1}, "text", 5, None, bytearray(b"x"), [b"x"]])
def test_a_value_that_is_not_bytes_is_a_type_error_that_names_codec(value: object) -> None:
    """Nothing is guessed: the message says that codec= is the way."""
    with Client("127.0.0.1:1") as kv, pytest.raises(TypeError, match="codec="):
        kv.put("k", value)


@pytest.mark.parametrize("key", [5, None, ["k"], bytearray(b"k")])
def test_a_key_that_is_neither_str_nor_bytes_is_a_type_error(key: Any) -> None:
    """Keys are str or bytes."""
    with Client("127.0.0.1:1") as kv, pytest.raises(TypeError, match="a key is str or bytes"):
        kv.get(key)


@pytest.mark.parametrize("key", ["", b"", "k" * 1025, "ä" * 513])
def test_a_key_has_1_to_1024_bytes(key: str | bytes) -> None:
    """Empty and too long keys are refused before anything is sent; the length is that of UTF-8."""
    with Client("127.0.0.1:1") as kv, pytest.raises(InvalidRequest, match="1 to 1024 bytes"):
        kv.put(key, b"v")


@pytest.mark.parametrize(
    ("method", "fields", "kind", "message"),
    [
        ("put", {"timeout": 0}, InvalidRequest, "above 0"),
        ("put", {"timeout": float("inf")}, InvalidRequest, "up to 300"),
        ("put", {"timeout": float("nan")}, InvalidRequest, "up to 300"),
        ("put", {"timeout": "5"}, TypeError, "timedelta"),
        ("put", {"timeout": True}, TypeError, "timedelta"),
        ("put", {"ttl": 0}, InvalidRequest, "at least 0.001"),
        ("put", {"ttl": -1}, InvalidRequest, "at least 0.001"),
        ("put", {"ttl": "1h"}, TypeError, "timedelta"),
        ("put", {"consistency": "MOST"}, InvalidRequest, "QUORUM"),
        ("put", {"consistency": 3.5}, TypeError, "Consistency.QUORUM"),
        ("put", {"w": 0}, InvalidRequest, "1 to 255"),
        ("put", {"w": "2"}, TypeError, "whole number"),
        ("put", {"replicated_to": -1}, InvalidRequest, "1 to 255"),
        ("put", {"context": "abc"}, TypeError, "context"),
        ("get", {"consistency": "EACH_QUORUM"}, InvalidRequest, "for writes"),
        ("get", {"repair": "after"}, InvalidRequest, "before"),
        ("get", {"r": True}, TypeError, "whole number"),
        ("put", {"w": 2, "consistency": "ALL"}, InvalidRequest, "give one of them"),
        ("delete", {"w": 2, "consistency": "ONE"}, InvalidRequest, "give one of them"),
        ("get", {"r": 2, "consistency": "QUORUM"}, InvalidRequest, "give one of them"),
        ("put", {"ttl": float("nan")}, InvalidRequest, "at least 0.001"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_by_name(
    method: str, fields: dict[str, Any], kind: type[Exception], message: str
) -> None:
    """Each wrong argument has an error that says what to pass."""
    with Client("127.0.0.1:1") as kv:
        arguments = ("k", b"v") if method == "put" else ("k",)
        with pytest.raises(kind, match=message):
            getattr(kv, method)(*arguments, **fields)


def test_times_are_seconds_or_timedelta() -> None:
    """Floats, ints and timedeltas mean the same."""
    assert arguments.timeout_us(1.5) == arguments.timeout_us(timedelta(seconds=1.5)) == 1_500_000
    assert arguments.ttl_ms(3600) == arguments.ttl_ms(timedelta(hours=1)) == 3_600_000


def test_one_string_is_not_a_list_of_keys() -> None:
    """get_many("abc") would read a, b and c; it is a TypeError instead."""
    with Client("127.0.0.1:1") as kv:
        for call in (kv.get_many, kv.delete_many, kv.put_many):
            with pytest.raises(TypeError):
                call("abc")  # type: ignore[operator]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda kv: kv.put_many([1, 2]), "item 0 is no pair: int"),
        (lambda kv: kv.put_many([("a", b"1"), ("b", b"2", 3)]), "item 1 is no pair: 3 of them"),
        (lambda kv: kv.put_many(5), r"a mapping or \(key, value\) pairs, not int"),
        (lambda kv: kv.delete_many(None), "a list of keys is wanted, not NoneType"),
        (lambda kv: kv.get_many(5), "a list of keys is wanted, not int"),
        (lambda kv: Client(5), '"host:port", or a list of such, not int'),
        (lambda kv: Client("h:1", dc=5), "dc= wants the name of a datacenter, not int"),
        (lambda kv: Client("h:1", failover=5), "failover= wants names of datacenters, not int"),
    ],
)
def test_a_wrong_type_is_told_what_to_give(call: Any, message: str) -> None:
    """The TypeError names the argument's form, not a line inside of geokv."""
    with Client("127.0.0.1:1") as kv, pytest.raises(TypeError, match=message):
        call(kv)


@pytest.mark.parametrize(
    "call",
    [
        lambda kv: kv.put("a\ud800", b"v"),
        lambda kv: kv.get("a\ud800"),
        lambda kv: kv.delete("a\ud800"),
        lambda kv: kv.namespace("a\ud800"),
        lambda kv: Client("h:1", dc="a\ud800"),
        lambda kv: Client("h:1", failover=["a\ud800"]),
    ],
)
def test_half_a_character_is_refused_as_what_it_is(call: Any) -> None:
    """A lone surrogate has no UTF-8: InvalidRequest says so, wherever text is taken."""
    with Client("127.0.0.1:1") as kv, pytest.raises(InvalidRequest, match="lone surrogate"):
        call(kv)


@pytest.mark.parametrize(("name", "found"), [("", "is empty"), ("n" * 300, "has 300 bytes")])
def test_a_namespace_name_that_cannot_be_says_how_long_one_is(name: str, found: str) -> None:
    """The limit told is that of names: 63."""
    with Client("127.0.0.1:1") as kv, pytest.raises(InvalidRequest, match=f"{found}: a name is 1 to 63 of"):
        kv.namespace(name)


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, "\ud800"])
def test_what_a_codec_cannot_encode_is_an_error_of_ours(value: object) -> None:
    """The codec's own words stand in the message, and its error is the cause."""
    with Client("127.0.0.1:1") as kv, pytest.raises(InvalidRequest, match="codec cannot encode") as caught:
        kv.namespace("n", codec="json").put("k", value)
    assert isinstance(caught.value.__cause__, TypeError | ValueError)


@pytest.mark.parametrize("member", [*Outcome, *Consistency])
def test_outcomes_and_levels_print_as_their_names(member: Outcome | Consistency) -> None:
    """str() and f-strings have the name; as numbers, on the wire and in JSON, they are what they were."""
    assert str(member) == f"{member}" == member.name
    assert f"{member:d}" == json.dumps(member) == repr(int(member))


@pytest.mark.parametrize("kind", [PutResult, GetResult, Outcome])
def test_every_property_of_a_result_says_what_it_is(kind: type) -> None:
    """help() has something to show for each."""
    found = {name: member for name, member in vars(kind).items() if isinstance(member, property)}
    assert found and all(member.__doc__ for member in found.values())


@pytest.mark.parametrize("level", [6, -1, True, False])
def test_a_number_that_is_no_level_is_refused(level: int) -> None:
    """Consistency.parse takes a member's number, and nothing that Python merely takes for one."""
    with pytest.raises(InvalidRequest, match="choose one of ONE"):
        Consistency.parse(level)
    assert Consistency.parse(5) is Consistency.EACH_QUORUM


def test_addresses_come_from_one_string_a_list_or_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """One, several, with commas, GEOKV_NODES; duplicates once; nonsense refused with an example."""
    assert arguments.addresses_of("h:1") == ("h:1",)
    assert arguments.addresses_of(["h:1", "g:2", "h:1"]) == ("h:1", "g:2")
    monkeypatch.setenv("GEOKV_NODES", "h:1, g:2")
    assert arguments.addresses_of(None) == ("h:1", "g:2")
    monkeypatch.delenv("GEOKV_NODES")
    for wrong in (None, "host", "host:", "host:x", "host:70000", []):
        with pytest.raises(InvalidRequest):
            arguments.addresses_of(wrong)
    with pytest.raises(TypeError):
        arguments.addresses_of([5])  # type: ignore[list-item]


def test_an_unknown_codec_is_refused_by_name() -> None:
    """A codec is "json" or an object with encode and decode."""
    with Client("127.0.0.1:1") as kv:
        with pytest.raises(TypeError, match="json"):
            kv.namespace("n", codec="yaml")
        with pytest.raises(TypeError, match="encode"):
            kv.namespace("n", codec=5)  # type: ignore[arg-type]


def test_a_codec_that_gives_no_bytes_is_told_so() -> None:
    """The fault is the codec's, and the message says so."""

    class Broken:
        def encode(self, value: object) -> str:
            return "text"

        def decode(self, payload: bytes) -> object:
            return payload

    with Client("127.0.0.1:1") as kv, pytest.raises(TypeError, match="encode\\(\\) must return bytes"):
        kv.namespace("n", codec=Broken()).put("k", 1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("replicas", "of", "level"),
    [(3, 3, "ALL"), (2, 3, "QUORUM"), (1, 3, "ONE"), (2, 5, "TWO"), (1, 1, "ALL"), (0, 3, "DEFAULT")],
)
def test_the_achieved_level_is_what_the_copies_amount_to(replicas: int, of: int, level: str) -> None:
    """Not what was asked for: what was reached."""
    facts = CallFacts("n1", "eu", of, Consistency.DEFAULT)
    assert PutResult(0, 1, replicas, 1, facts, 5).achieved.level.name == level
    assert GetResult(b"", True, 1, replicas, facts, 5).achieved.level.name == level


def test_each_quorum_is_achieved_only_when_it_is_not_pending() -> None:
    """PENDING says what was reached here; APPLIED says EACH_QUORUM."""
    facts = CallFacts("n1", "eu", 3, Consistency.EACH_QUORUM)
    assert PutResult(0, 1, 2, 3, facts, 5).achieved.level is Consistency.EACH_QUORUM
    assert PutResult(2, 1, 2, 1, facts, 5).achieved.level is Consistency.QUORUM


def test_results_never_show_values() -> None:
    """repr is for logs: sizes, no contents."""
    facts = CallFacts("n1", "eu", 3, Consistency.DEFAULT)
    assert "secret" not in repr(GetResult(b"secret", True, 1, 2, facts, 5))
    assert "secret" not in repr(Results([GetResult(b"secret", True, 1, 2, facts, 5)]))


def test_results_raise_the_first_error() -> None:
    """errors names them all by index; slices and iteration work."""
    first, second = Unavailable("one"), Overloaded("two")
    results = Results([FailedItem(first), FailedItem(second)])
    assert results.errors == {0: first, 1: second} and len(results[0:1]) == 1
    with pytest.raises(Unavailable, match="one"):
        results.raise_first()


def _errors() -> list[type[GeokvError]]:
    found, todo = [], [GeokvError]
    while todo:
        kind = todo.pop()
        found.append(kind)
        todo.extend(kind.__subclasses__())
    return found


@pytest.mark.parametrize("kind", _errors(), ids=lambda kind: kind.__name__)
def test_every_error_survives_pickle(kind: type[GeokvError]) -> None:
    """Class, message, attributes and retryable are the same on the other side."""
    error = kind("why", required=3, retry_after=1.5)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind and str(copy) == "why" and copy.retryable == error.retryable
    assert copy.required == 3 and copy.retry_after == 1.5


def test_a_client_cannot_be_pickled() -> None:
    """The message says what to do instead."""
    with Client("127.0.0.1:1") as kv, pytest.raises(TypeError, match="make one in each process"):
        pickle.dumps(kv)
