"""One suite that holds the embedded proxy server and the real Toxiproxy to the same behaviour.

Lower bounds on time are safe to assert, since a busy machine is only ever slower; of upper bounds there is
one, with a wide margin, where being slow is the fault looked for.
"""

import hashlib
import os
import random
import select
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from geokv.lab.wan.server import Kind
from tests.lab.wan.conftest import WAIT_S, Api, address_of, echo, read_exactly

Connect = Callable[[tuple[str, int]], socket.socket]
StartUpstream = Callable[[Callable[[socket.socket], None]], tuple[str, int]]
SLACK_S = 0.002  # clocks of two processes and timers of a millisecond
GONE = (ConnectionResetError, BrokenPipeError)


def round_trip_s(connection: socket.socket, payload: bytes = b"ping") -> float:
    started_s = time.monotonic()
    connection.sendall(payload)
    assert read_exactly(connection, len(payload)) == payload
    return time.monotonic() - started_s


def is_silent(connection: socket.socket, for_s: float = 0.3) -> bool:
    """Whether neither a byte nor an end comes for a while."""
    return not select.select([connection], [], [], for_s)[0]


def ends(connection: socket.socket) -> bool:
    """Whether the connection is closed or reset, before the test's deadline."""
    try:
        return connection.recv(1) == b""
    except GONE:
        return True


class TestInterface:
    def test_version_is_that_of_the_interface(self, api: Api) -> None:
        """GET /version answers 2.12.x, which is what a driver probes first."""
        assert api("GET", "/version").json["version"].startswith("2.12.")

    def test_created_proxy_has_all_fields_and_its_real_port(self, api: Api, upstream: StartUpstream) -> None:
        """A proxy made on port 0 tells the port that it got."""
        made = api("POST", "/proxies", {"name": "one", "listen": "127.0.0.1:0", "upstream": "127.0.0.1:9"})
        assert made.status == 201
        assert {"name", "listen", "upstream", "enabled", "toxics"} <= made.json.keys()
        assert made.json["enabled"] is True and made.json["toxics"] == []
        assert address_of(made.json["listen"])[1] > 0
        assert api("GET", "/proxies/one").json == made.json
        assert api("GET", "/proxies").json == {"one": made.json}

    def test_unknown_proxy_is_404(self, api: Api) -> None:
        """Every request on a proxy that is not there says so."""
        for method, path in (
            ("GET", "/proxies/none"),
            ("POST", "/proxies/none"),
            ("PATCH", "/proxies/none"),
            ("DELETE", "/proxies/none"),
            ("GET", "/proxies/none/toxics"),
            ("POST", "/proxies/none/toxics"),
            ("GET", "/proxies/none/toxics/x"),
        ):
            answer = api(method, path, {})
            assert answer.status == 404
            assert answer.json == {"error": "proxy not found", "status": 404}

    def test_duplicate_proxy_is_409(self, api: Api) -> None:
        """A name is taken once."""
        api.proxy("one", ("127.0.0.1", 9))
        again = api("POST", "/proxies", {"name": "one", "upstream": "127.0.0.1:9"})
        assert again.status == 409
        assert again.json == {"error": "proxy already exists", "status": 409}

    @pytest.mark.parametrize(
        ("body", "message"),
        [
            ("", "bad request body: EOF"),
            ("nonsense", "bad request body: "),
            ("[1]", "bad request body: "),
            ({"name": 5}, "bad request body: "),
            ({"name": "x"}, "missing required field: upstream"),
            ({"upstream": "127.0.0.1:9"}, "missing required field: name"),
        ],
    )
    def test_bad_proxy_is_400(self, api: Api, body: object, message: str) -> None:
        """A body that is no proxy is refused with the reason."""
        answer = api("POST", "/proxies", body)
        assert answer.status == 400
        assert answer.json["status"] == 400
        assert answer.json["error"].startswith(message)

    def test_taken_port_is_500(self, api: Api, upstream: StartUpstream) -> None:
        """A proxy that cannot listen is not made."""
        host, port = upstream(echo)
        answer = api("POST", "/proxies", {"name": "one", "listen": f"{host}:{port}", "upstream": "127.0.0.1:9"})
        assert answer.status == 500
        assert answer.json["error"] == f"listen tcp {host}:{port}: bind: address already in use"
        assert api("GET", "/proxies").json == {}

    @pytest.mark.parametrize("listen", ["nonsense", "127.0.0.1:70000"])
    def test_bad_listen_address_is_500(self, api: Api, listen: str) -> None:
        """An address that is none is refused."""
        answer = api("POST", "/proxies", {"name": "one", "listen": listen, "upstream": "127.0.0.1:9"})
        assert answer.status == 500
        assert answer.json["error"].startswith("listen tcp: address ")

    def test_toxic_has_defaults_and_is_shown(self, api: Api) -> None:
        """Stream, name and toxicity have defaults; attributes that are not given are 0."""
        api.proxy("one", ("127.0.0.1", 9))
        made = api("POST", "/proxies/one/toxics", {"type": "latency", "attributes": {"latency": 5}})
        wanted = {
            "attributes": {"latency": 5, "jitter": 0},
            "name": "latency_downstream",
            "type": "latency",
            "stream": "downstream",
            "toxicity": 1,
        }
        assert (made.status, made.json) == (200, wanted)
        assert api("GET", "/proxies/one/toxics").json == [wanted]
        assert api("GET", "/proxies/one/toxics/latency_downstream").json == wanted
        assert api("GET", "/proxies/one").json["toxics"] == [wanted]

    def test_upstream_toxics_are_listed_first(self, api: Api) -> None:
        """The order of the list is direction, then age."""
        api.proxy("one", ("127.0.0.1", 9))
        api.toxic("one", "timeout", "downstream")
        api.toxic("one", "latency", "upstream")
        api.toxic("one", "bandwidth", "upstream", rate=1)
        names = [toxic["name"] for toxic in api("GET", "/proxies/one/toxics").json]
        assert names == ["latency_upstream", "bandwidth_upstream", "timeout_downstream"]

    def test_toxic_is_updated_in_part(self, api: Api) -> None:
        """POST and PATCH change what they name and leave the rest."""
        api.proxy("one", ("127.0.0.1", 9))
        api.toxic("one", "latency", latency=5, jitter=2)
        path = "/proxies/one/toxics/latency_downstream"
        assert api("POST", path, {"attributes": {"latency": 7}}).json["attributes"] == {
            "latency": 7,
            "jitter": 2,
        }
        changed = api("PATCH", path, {"toxicity": 0.5}).json
        assert (changed["toxicity"], changed["attributes"]) == (0.5, {"latency": 7, "jitter": 2})

    def test_unknown_toxic_type_is_refused(self, api: Api) -> None:
        """What is no toxic anywhere is 400 with the same first words."""
        api.proxy("one", ("127.0.0.1", 9))
        answer = api("POST", "/proxies/one/toxics", {"type": "no_such_toxic"})
        assert answer.status == 400
        assert answer.json["error"].startswith("invalid toxic type")
        assert api("GET", "/proxies/one/toxics").json == []

    def test_toxic_of_toxiproxy_that_is_not_here_is_refused_by_name(self, api: Api, kind: Kind) -> None:
        """The embedded server names the toxic that it does not have, instead of doing nothing."""
        if kind == "real":
            pytest.skip("the real server has these toxics")
        api.proxy("one", ("127.0.0.1", 9))
        for name in ("slicer", "limit_data", "slow_close"):
            answer = api("POST", "/proxies/one/toxics", {"type": name})
            assert answer.status == 400
            assert name in answer.json["error"]

    @pytest.mark.parametrize(
        ("body", "status", "message"),
        [
            ({"type": "latency", "stream": "sideways"}, 400, "stream was invalid"),
            ({"type": "latency", "attributes": {"latency": "x"}}, 400, "bad request body: "),
            ({"type": "bandwidth", "attributes": {"rate": 1.5}}, 400, "bad request body: "),
            ("nonsense", 400, "bad request body: "),
            ({"type": "timeout", "name": "taken"}, 409, "toxic already exists"),
        ],
    )
    def test_bad_toxic_is_refused(self, api: Api, body: object, status: int, message: str) -> None:
        """A toxic that makes no sense changes nothing."""
        api.proxy("one", ("127.0.0.1", 9))
        assert api("POST", "/proxies/one/toxics", {"type": "latency", "name": "taken"}).status == 200
        answer = api("POST", "/proxies/one/toxics", body)
        assert (answer.status, answer.json["status"]) == (status, status)
        assert answer.json["error"].startswith(message)
        assert len(api("GET", "/proxies/one/toxics").json) == 1

    def test_unknown_toxic_is_404(self, api: Api) -> None:
        """GET, change and DELETE of a toxic that is not there say so."""
        api.proxy("one", ("127.0.0.1", 9))
        for method in ("GET", "POST", "PATCH", "DELETE"):
            answer = api(method, "/proxies/one/toxics/none", {})
            assert (answer.status, answer.json) == (404, {"error": "toxic not found", "status": 404})

    def test_unknown_path_is_404_and_wrong_method_is_405(self, api: Api) -> None:
        """What is not part of the interface is told from what is used wrongly."""
        assert api("GET", "/nothing").status == 404
        assert api("GET", "/proxies/").status == 404
        assert api("PUT", "/proxies").status == 405
        assert api("POST", "/version").status == 405
        assert api("GET", "/reset").status == 405

    def test_browser_is_refused(self, api: Api) -> None:
        """A web page cannot drive the lab."""
        assert api("GET", "/version", headers={"User-Agent": "Mozilla/5.0"}).status == 403

    def test_populate_makes_keeps_and_replaces(self, api: Api) -> None:
        """POST /populate makes what is missing, leaves what is equal, replaces what differs."""
        first = api(
            "POST",
            "/populate",
            [
                {"name": "one", "listen": "127.0.0.1:0", "upstream": "127.0.0.1:9"},
                {"name": "two", "listen": "127.0.0.1:0", "upstream": "127.0.0.1:9", "enabled": False},
            ],
        )
        assert first.status == 201
        one, two = first.json["proxies"]
        assert (one["name"], one["enabled"], two["name"], two["enabled"]) == ("one", True, "two", False)
        api.toxic("one", "latency", latency=5)
        same = {"name": "one", "listen": one["listen"], "upstream": "127.0.0.1:9"}
        kept = api("POST", "/populate", [same]).json["proxies"]
        assert len(kept[0]["toxics"]) == 1
        replaced = api("POST", "/populate", [{**same, "upstream": "127.0.0.1:10"}]).json["proxies"]
        assert (replaced[0]["upstream"], replaced[0]["toxics"]) == ("127.0.0.1:10", [])

    def test_populate_refuses_all_for_one_bad_proxy(self, api: Api) -> None:
        """A proxy without upstream is named by its place, and none of the list is made."""
        answer = api("POST", "/populate", [{"name": "one", "upstream": "127.0.0.1:9"}, {"name": "two"}])
        assert answer.status == 400
        assert answer.json["error"] == "missing required field: upstream at proxy 2"
        assert answer.json["proxies"] is None
        assert api("GET", "/proxies").json == {}

    def test_reset_enables_all_and_removes_toxics(self, api: Api, upstream: StartUpstream, connect: Connect) -> None:
        """POST /reset leaves every proxy enabled and clean."""
        address = api.proxy("one", upstream(echo), enabled=False, listen="127.0.0.1:0")
        api.toxic("one", "timeout")
        assert api("POST", "/reset").status == 204
        after = api("GET", "/proxies/one").json
        assert (after["enabled"], after["toxics"]) == (True, [])
        assert address[1] == 0  # a disabled proxy had no port yet
        round_trip_s(connect(address_of(after["listen"])))

    def test_deleted_proxy_is_gone(self, api: Api, upstream: StartUpstream, connect: Connect) -> None:
        """DELETE closes the listener and the connections."""
        address = api.proxy("one", upstream(echo))
        connection = connect(address)
        round_trip_s(connection)
        assert api("DELETE", "/proxies/one").status == 204
        assert ends(connection)
        with pytest.raises(ConnectionRefusedError):
            connect(address)


class TestTraffic:
    def test_bytes_pass_both_ways(self, api: Api, upstream: StartUpstream, connect: Connect) -> None:
        """Without toxics a proxy is a wire."""
        connection = connect(api.proxy("one", upstream(echo)))
        round_trip_s(connection, os.urandom(100_000))

    def test_end_of_client_reaches_upstream(self, api: Api, upstream: StartUpstream, connect: Connect) -> None:
        """A client that closes is closed at the upstream, behind its last byte."""
        got: list[bytes] = []
        ended = threading.Event()

        def collect(connection: socket.socket) -> None:
            while piece := connection.recv(65_536):
                got.append(piece)
            ended.set()

        address = api.proxy("one", upstream(collect))
        api.toxic("one", "latency", "upstream", latency=50)
        connection = connect(address)
        connection.sendall(b"x" * 200_000)
        connection.close()
        assert ended.wait(WAIT_S)
        assert len(b"".join(got)) == 200_000

    def test_end_of_upstream_reaches_client_behind_the_last_byte(
        self, api: Api, upstream: StartUpstream, connect: Connect
    ) -> None:
        """An upstream that answers and closes is heard to the end, through a latency too."""
        payload = os.urandom(1_000_000)
        address = api.proxy("one", upstream(lambda connection: connection.sendall(payload)))
        api.toxic("one", "latency", latency=50)
        connection = connect(address)
        assert read_exactly(connection, len(payload) + 1) == payload

    def test_dead_upstream_hangs_up(self, api: Api, connect: Connect) -> None:
        """Where nothing listens behind a proxy, the connection is accepted and closed."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            nobody = listener.getsockname()
        assert ends(connect(api.proxy("one", nobody)))

    @pytest.mark.parametrize("stream", ["upstream", "downstream"])
    def test_latency_delays_its_direction(self, api: Api, upstream: StartUpstream, connect: Connect, stream: str) -> None:
        """A round trip takes at least the latency of the one direction that has it."""
        connection = connect(api.proxy("one", upstream(echo)))
        api.toxic("one", "latency", stream, latency=60)
        assert min(round_trip_s(connection) for _ in range(3)) >= 0.060 - SLACK_S

    def test_latency_of_both_directions_adds_up(self, api: Api, upstream: StartUpstream, connect: Connect) -> None:
        """Half the round trip on each direction is a whole one."""
        address = api.proxy("one", upstream(echo))
        api.toxic("one", "latency", "upstream", latency=40)
        api.toxic("one", "latency", "downstream", latency=40)
        connection = connect(address)
        assert min(round_trip_s(connection) for _ in range(3)) >= 0.080 - SLACK_S

    def test_two_latencies_on_one_direction_add_up(self, api: Api, upstream: StartUpstream, connect: Connect) -> None:
        """Toxics form a chain."""
        address = api.proxy("one", upstream(echo))
        for name in ("first", "second"):
            body = {"type": "latency", "name": name, "attributes": {"latency": 40}}
            assert api("POST", "/proxies/one/toxics", body).status == 200
        assert round_trip_s(connect(address)) >= 0.080 - SLACK_S

    def test_jitter_stays_in_its_bounds_and_varies(self, api: Api, upstream: StartUpstream, connect: Connect) -> None:
        """No round trip is faster than latency - jitter, and they differ. Half a second of round trips."""
        address = api.proxy("one", upstream(echo))
        api.toxic("one", "latency", latency=25, jitter=20)
        connection = connect(address)
        times_s = [round_trip_s(connection) for _ in range(25)]
        assert min(times_s) >= 0.005 - SLACK_S
        assert max(times_s) - min(times_s) > 0.005

    def test_latency_is_a_delay_line(self, api: Api, upstream: StartUpstream, connect: Connect) -> None:
        """100 messages at once wait 100 ms together, not 100 ms each (a third of that is asserted)."""
        address = api.proxy("one", upstream(echo))
        api.toxic("one", "latency", latency=100)
        connection = connect(address)
        sender = threading.Thread(target=_send_apart, args=(connection, 100, 0.001))
        started_s = time.monotonic()
        sender.start()
        assert len(read_exactly(connection, 400)) == 400
        sender.join()
        assert time.monotonic() - started_s < 100 * 0.100 / 3

    def test_big_transfer_keeps_its_bytes_under_latency(self, api: Api, upstream: StartUpstream, connect: Connect) -> None:
        """20 MB through latency with jitter, both ways, arrive unchanged and in order."""
        address = api.proxy("one", upstream(echo))
        api.toxic("one", "latency", "upstream", latency=10, jitter=5)
        api.toxic("one", "latency", "downstream", latency=10, jitter=5)
        connection = connect(address)
        payload = random.Random(1).randbytes(20_000_000)
        sender = threading.Thread(target=connection.sendall, args=(payload,))
        sender.start()
        back = read_exactly(connection, len(payload))
        sender.join()
        assert hashlib.sha256(back).digest() == hashlib.sha256(payload).digest()

    def test_reader_that_waits_loses_nothing(self, api: Api, upstream: StartUpstream, connect: Connect) -> None:
        """A client that does not read holds the sender up (bounded buffers) and later gets every byte."""
        payload = random.Random(2).randbytes(60_000_000)
        sent = threading.Event()

        def send(connection: socket.socket) -> None:
            connection.sendall(payload)
            sent.set()
            connection.recv(1)

        connection = connect(api.proxy("one", upstream(send)))
        assert not sent.wait(0.5)
        assert hashlib.sha256(read_exactly(connection, len(payload))).digest() == hashlib.sha256(payload).digest()
        assert sent.wait(WAIT_S)

    @pytest.mark.parametrize("stream", ["upstream", "downstream"])
    def test_bandwidth_limits(self, api: Api, upstream: StartUpstream, connect: Connect, stream: str) -> None:
        """100 KB at 200 KB/s take at least half a second (less the burst of a tenth)."""
        address = api.proxy("one", upstream(echo))
        api.toxic("one", "bandwidth", stream, rate=200)
        assert round_trip_s(connect(address), b"x" * 100_000) >= 0.4

    def test_bandwidth_zero_lets_nothing_through(self, api: Api, upstream: StartUpstream, connect: Connect) -> None:
        """Rate 0 holds everything, and what it held flows when the rate is raised."""
        address = api.proxy("one", upstream(echo))
        api.toxic("one", "bandwidth", rate=0)
        connection = connect(address)
        connection.sendall(b"ping")
        assert is_silent(connection)
        assert api("POST", "/proxies/one/toxics/bandwidth_downstream", {"attributes": {"rate": 100}}).status == 200
        assert read_exactly(connection, 4) == b"ping"

    def test_toxic_changes_while_connections_stand(self, api: Api, upstream: StartUpstream, connect: Connect) -> None:
        """A latency that is raised, lowered and removed acts on the same connection."""
        connection = connect(api.proxy("one", upstream(echo)))
        api.toxic("one", "latency", latency=1)
        path = "/proxies/one/toxics/latency_downstream"
        round_trip_s(connection)
        assert api("POST", path, {"attributes": {"latency": 150}}).status == 200
        assert round_trip_s(connection) >= 0.150 - SLACK_S
        assert api("PATCH", path, {"attributes": {"latency": 20_000}}).status == 200
        connection.sendall(b"late")
        assert is_silent(connection, 0.1)
        assert api("DELETE", path).status == 204
        assert read_exactly(connection, 4) == b"late"
        round_trip_s(connection)

    def test_toxicity_zero_touches_nobody(self, api: Api, upstream: StartUpstream, connect: Connect) -> None:
        """A toxic with toxicity 0 is shown and does nothing."""
        address = api.proxy("one", upstream(echo))
        body = {"type": "timeout", "toxicity": 0, "attributes": {"timeout": 0}}
        assert api("POST", "/proxies/one/toxics", body).json["toxicity"] == 0
        round_trip_s(connect(address))

    def test_toxicity_touches_some(self, api: Api, upstream: StartUpstream, connect: Connect) -> None:
        """With toxicity 0.5 some of 40 connections are cut and some are not."""
        address = api.proxy("one", upstream(echo))
        body = {"type": "timeout", "toxicity": 0.5, "attributes": {"timeout": 0}}
        assert api("POST", "/proxies/one/toxics", body).status == 200
        connections = [connect(address) for _ in range(40)]
        for connection in connections:
            connection.sendall(b"ping")
        deadline_s, answered = time.monotonic() + 1.0, set()
        while time.monotonic() < deadline_s:
            answered |= set(select.select(connections, [], [], 0.1)[0])
        assert 0 < len(answered) < 40

    def test_two_hundred_connections_at_once(self, api: Api, upstream: StartUpstream, connect: Connect) -> None:
        """Each of 200 connections gets its own bytes back."""
        address = api.proxy("one", upstream(echo))
        api.toxic("one", "latency", latency=5)

        def talk(number: int) -> bool:
            with socket.create_connection(address, timeout=WAIT_S) as connection:
                connection.settimeout(WAIT_S)
                payload = number.to_bytes(4, "big") * 2_000
                connection.sendall(payload)
                barrier.wait(WAIT_S)  # all stand at the same time
                return read_exactly(connection, len(payload)) == payload

        barrier = threading.Barrier(200)
        with ThreadPoolExecutor(200) as threads:
            assert all(threads.map(talk, range(200)))


class TestFaults:
    def test_black_hole_is_silent_and_healing_closes(self, api: Api, upstream: StartUpstream, connect: Connect) -> None:
        """timeout 0 swallows; connections stand until it is removed, then they close, and new ones work."""
        address = api.proxy("one", upstream(echo))
        connection = connect(address)
        round_trip_s(connection)
        for stream in ("upstream", "downstream"):
            api.toxic("one", "timeout", stream, timeout=0)
        connection.sendall(b"lost")
        assert is_silent(connection)
        fresh = connect(address)  # the handshake is the proxy's own
        fresh.sendall(b"lost")
        assert is_silent(fresh)
        for stream in ("upstream", "downstream"):
            assert api("DELETE", f"/proxies/one/toxics/timeout_{stream}").status == 204
        assert ends(connection) and ends(fresh)
        assert round_trip_s(connect(address)) > 0

    def test_black_hole_lets_the_end_through(self, api: Api, upstream: StartUpstream, connect: Connect) -> None:
        """What is swallowed is bytes: a client that closes is still closed at the upstream."""
        ended = threading.Event()

        def wait_for_end(connection: socket.socket) -> None:
            assert connection.recv(10) == b""
            ended.set()

        address = api.proxy("one", upstream(wait_for_end))
        api.toxic("one", "timeout", "upstream", timeout=0)
        connection = connect(address)
        connection.sendall(b"swallowed")
        connection.close()
        assert ended.wait(WAIT_S)

    def test_timeout_closes_after_silence(self, api: Api, upstream: StartUpstream, connect: Connect) -> None:
        """A timeout above 0 closes the connection, and not before its time."""
        address = api.proxy("one", upstream(echo))
        api.toxic("one", "timeout", timeout=200)
        started_s = time.monotonic()
        connection = connect(address)
        connection.sendall(b"swallowed")
        assert ends(connection)
        assert time.monotonic() - started_s >= 0.200 - SLACK_S

    def test_reset_peer_resets(self, api: Api, upstream: StartUpstream, connect: Connect) -> None:
        """reset_peer answers the first byte with a TCP reset."""
        address = api.proxy("one", upstream(echo))
        api.toxic("one", "reset_peer", timeout=0)
        connection = connect(address)
        connection.sendall(b"ping")
        with pytest.raises(ConnectionResetError):
            connection.recv(4)

    def test_reset_peer_waits_its_timeout(self, api: Api, upstream: StartUpstream, connect: Connect) -> None:
        """The reset comes `timeout` ms after the first byte."""
        address = api.proxy("one", upstream(echo))
        api.toxic("one", "reset_peer", "upstream", timeout=200)
        connection = connect(address)
        started_s = time.monotonic()
        connection.sendall(b"ping")
        with pytest.raises(ConnectionResetError):
            connection.recv(4)
        assert time.monotonic() - started_s >= 0.200 - SLACK_S

    def test_disabled_refuses_and_enabled_has_the_same_port(self, api: Api, upstream: StartUpstream, connect: Connect) -> None:
        """Disabling closes and refuses connections; enabling brings back address and toxics."""
        address = api.proxy("one", upstream(echo))
        api.toxic("one", "latency", latency=50)
        connection = connect(address)
        round_trip_s(connection)
        for _ in range(3):
            assert api("POST", "/proxies/one", {"enabled": False}).json["enabled"] is False
            assert ends(connection)
            with pytest.raises(ConnectionRefusedError):
                connect(address)
            enabled = api("PATCH", "/proxies/one", {"enabled": True}).json
            assert (enabled["enabled"], address_of(enabled["listen"])) == (True, address)
            connection = connect(address)
            assert round_trip_s(connection) >= 0.050 - SLACK_S

    def test_enabling_twice_and_disabling_twice_changes_nothing(self, api: Api) -> None:
        """A wish that is fulfilled already is fine."""
        api.proxy("one", ("127.0.0.1", 9))
        for wanted in (True, True, False, False):
            answer = api("POST", "/proxies/one", {"enabled": wanted})
            assert (answer.status, answer.json["enabled"]) == (200, wanted)

    def test_enabling_on_a_taken_port_is_500(self, api: Api) -> None:
        """A port that somebody took meanwhile is an error, and the proxy stays disabled."""
        address = api.proxy("one", ("127.0.0.1", 9))
        api("POST", "/proxies/one", {"enabled": False})
        with socket.create_server(address):
            assert api("POST", "/proxies/one", {"enabled": True}).status == 500
            assert api("GET", "/proxies/one").json["enabled"] is False
        assert api("POST", "/proxies/one", {"enabled": True}).status == 200

    def test_new_upstream_closes_the_old_connections(self, api: Api, upstream: StartUpstream, connect: Connect) -> None:
        """Leading a proxy elsewhere drops who was led to the old place."""
        address = api.proxy("one", upstream(echo))
        connection = connect(address)
        round_trip_s(connection)
        host, port = upstream(lambda connection: connection.sendall(b"other"))
        changed = api("POST", "/proxies/one", {"upstream": f"{host}:{port}"}).json
        assert (changed["enabled"], changed["upstream"]) == (True, f"{host}:{port}")
        assert ends(connection)
        assert read_exactly(connect(address_of(changed["listen"])), 5) == b"other"

    def test_toxics_before_enabling_hold_from_the_first_byte(self, api: Api, upstream: StartUpstream, connect: Connect) -> None:
        """A proxy made disabled, given toxics, then enabled lets nothing through without them."""
        api.proxy("one", upstream(echo), enabled=False)
        api.toxic("one", "timeout")
        address = address_of(api("POST", "/proxies/one", {"enabled": True}).json["listen"])
        connection = connect(address)
        connection.sendall(b"ping")
        assert is_silent(connection)


def _send_apart(connection: socket.socket, times: int, pause_s: float) -> None:
    """Send small messages a moment apart, so that they are chunks of their own."""
    pause = threading.Event()
    for _ in range(times):
        connection.sendall(b"ping")
        pause.wait(pause_s)
