"""The commands on a real node: what they print, byte for byte, and how they exit.

Most run in the tests' own process, from `main` on, for an interpreter of their own would take most of the time. What a process
matters to (signals, pipes, terminals, how long help takes) runs in one.
"""

import base64
import fcntl
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from geokv import errors
from geokv.cli import exits
from geokv.cli.main import main
from geokv.testing import Cluster

DONE, EXPECTATION_FAILED, USAGE, NOT_FOUND, UNAVAILABLE = range(5)
NOT_UTF8 = b"\xff\x00z"
HELP_S_MAX = 0.3
PAGE = Path(__file__).parents[2] / "docs" / "cli.md"

Run = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster() as running:
        yield running


@pytest.fixture
def geokv(cluster: Cluster, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Run:
    """Run `geokv ARGUMENTS` against the cluster."""
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*arguments: str, stdin: bytes = b"", nodes: str | None = None) -> subprocess.CompletedProcess[bytes]:
        monkeypatch.setenv("GEOKV_NODES", nodes or cluster.address)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        capfdbinary.readouterr()
        code = main(arguments)
        return subprocess.CompletedProcess(arguments, code, *capfdbinary.readouterr())

    return run


@pytest.fixture
def geokv_process(cluster: Cluster) -> Run:
    """The same in a process of its own."""

    def run(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        environment = {**os.environ, "GEOKV_NODES": cluster.address, "NO_COLOR": "1"}
        command = [sys.executable, "-m", "geokv", *arguments]
        return subprocess.run(command, input=stdin, env=environment, capture_output=True, timeout=30, check=False)

    return run


def one_line_of_error(done: subprocess.CompletedProcess[bytes]) -> str:
    """What was said on stderr, after a look that it is one line and no traceback."""
    text = done.stderr.decode()
    assert text.startswith("geokv: "), text
    assert text.count("\n") == 1, text
    return text


def test_get_writes_the_raw_value_and_nothing_else(geokv_process: Run) -> None:
    """What `put` read from standard input comes out of `get` byte for byte."""
    assert geokv_process("put", "default", "raw", "-", stdin=NOT_UTF8).returncode == DONE
    got = geokv_process("get", "default", "raw")
    assert (got.returncode, got.stdout, got.stderr) == (DONE, NOT_UTF8, b"")


def test_an_empty_value_is_not_an_absent_one(geokv: Run) -> None:
    """An empty value is found, with exit code 0; an absent key gives 3 and says so."""
    assert geokv("put", "default", "empty", "").returncode == DONE
    got = geokv("get", "default", "empty")
    assert (got.returncode, got.stdout) == (DONE, b"")
    absent = geokv("get", "default", "never-written")
    assert (absent.returncode, absent.stdout) == (NOT_FOUND, b"")
    assert "never-written" in one_line_of_error(absent)


def test_put_takes_a_file_and_a_text_that_begins_with_at(geokv: Run, tmp_path_factory: pytest.TempPathFactory) -> None:
    """@FILE is the content of the file, @@ a text with an @ in front."""
    path = tmp_path_factory.mktemp("put") / "value"
    path.write_bytes(NOT_UTF8)
    assert geokv("put", "default", "file", f"@{path}").returncode == DONE
    assert geokv("get", "default", "file").stdout == NOT_UTF8
    assert geokv("put", "default", "at", "@@home").returncode == DONE
    assert geokv("get", "default", "at").stdout == b"@home"
    missing = geokv("put", "default", "file", "@/no/such/file")
    assert missing.returncode == USAGE
    assert "/no/such/file" in one_line_of_error(missing)


def test_a_key_may_be_given_in_hexadecimal(geokv: Run) -> None:
    """--key-hex names the same key as its text; what is no hexadecimal is a usage error."""
    assert geokv("put", "default", "6865782d6b6579", "v", "--key-hex").returncode == DONE
    assert geokv("get", "default", "hex-key").stdout == b"v"
    wrong = geokv("get", "default", "xyz", "--key-hex")
    assert wrong.returncode == USAGE
    assert "hexadecimal" in one_line_of_error(wrong)


def test_json_has_text_where_it_is_text_and_base64_where_it_is_not(geokv: Run) -> None:
    """The document has `value` or `value_base64`, never both; versions are strings and agree between put and get."""
    put = json.loads(geokv("put", "default", "json", "-", "--json", stdin=NOT_UTF8).stdout)
    assert put["outcome"] == "APPLIED"
    got = json.loads(geokv("get", "default", "json", "--json").stdout)
    assert base64.b64decode(got["value_base64"]) == NOT_UTF8
    assert "value" not in got
    assert got["version"] == put["version"]
    assert isinstance(got["version"], str)
    assert got["achieved"] == {"level": "ALL", "replicas": 1, "dcs": 1}
    geokv("put", "default", "json", "grün")
    got = json.loads(geokv("get", "default", "json", "--json").stdout)
    assert got["value"] == "grün"
    assert "value_base64" not in got


def test_json_of_an_absent_key_says_so(geokv: Run) -> None:
    """`found` is false, value and version are null, and the exit code is 3."""
    got = geokv("get", "default", "never", "--json")
    assert got.returncode == NOT_FOUND
    tree = json.loads(got.stdout)
    assert (tree["found"], tree["value"], tree["version"]) == (False, None, None)


def test_delete_deletes(geokv: Run) -> None:
    """After `delete` the key is absent; deleting it again is no error."""
    geokv("put", "default", "gone", "v")
    assert geokv("delete", "default", "gone").returncode == DONE
    assert geokv("get", "default", "gone").returncode == NOT_FOUND
    assert geokv("delete", "default", "gone").returncode == DONE


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("get", "no-such-namespace", "k"), NOT_FOUND, "no-such-namespace"),
        (("put", "default", "", "v"), USAGE, "key"),
        (("put", "default", "k", "v", "--w", "3"), USAGE, "3"),
        (("get", "default", "k", "--consistency", "MOST"), USAGE, "QUORUM"),
        (("get", "default", "k", "--consistency", "EACH_QUORUM"), USAGE, "EACH_QUORUM"),
        (("get", "default"), USAGE, "--help"),
        (("fetch",), USAGE, "fetch"),
        (("namespace", "show", "nowhere"), NOT_FOUND, "nowhere"),
        (("namespace", "create", "default"), EXPECTATION_FAILED, "default"),
        (("namespace", "delete", "default", "--yes"), USAGE, "default"),
        (("serve", "--node", "x"), USAGE, "--topology"),
        (("namespace", "create", "default", "--ttl", "5"), EXPECTATION_FAILED, "default"),
        (("namespace", "create", "default"), EXPECTATION_FAILED, "--exist-ok"),
        (("namespace", "alter", "default"), USAGE, "--value-bytes-max, --ttl"),
        (("get", "default", "k", "--dc", "mars", "--timeout", "60"), USAGE, "there are: "),
        (("get", "default", "k", "--r", "1", "--consistency", "ONE"), USAGE, "give one of them"),
        (("lab", "status", "--directory", "/no/such/lab"), NOT_FOUND, "lab up"),
        (("lab", "demo", "--lose", "mars"), USAGE, "there are: eu-west"),
        (("lab", "up", "--topology", "/no/such/file"), USAGE, "/no/such/file"),
    ],
)
def test_each_mistake_has_its_exit_code_and_one_line(geokv: Run, arguments: tuple[str, ...], code: int, said: str) -> None:
    """A mistake gives the promised exit code and one line on stderr that names what is wrong."""
    done = geokv(*arguments)
    assert done.returncode == code, done
    assert said in one_line_of_error(done)
    assert done.stdout == b""


def test_a_lab_that_was_named_and_does_not_run_gives_3(tmp_path: Path) -> None:
    """--lab with a place where none runs is not found; without it and without a cluster named it is a usage error."""
    environment = {name: value for name, value in os.environ.items() if name != "GEOKV_NODES"}
    for arguments, code in ((["--lab", "none"], NOT_FOUND), ([], USAGE)):
        command = [sys.executable, "-m", "geokv", "get", "default", "k", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=30, check=False)
        assert done.returncode == code
        assert "geokv lab up" in one_line_of_error(done)


def test_every_error_has_the_exit_code_that_the_page_says() -> None:
    """The table of docs/cli.md names errors; each leads to the code of its row, and no error of ours is missing."""
    rows = [line.split("|") for line in PAGE.read_text(encoding="utf-8").splitlines() if "| `" in line]
    said = {name: int(row[1]) for row in rows if len(row) == 5 and row[1].strip().isdecimal() for name in _names_in(row[2])}
    every = {kind.__name__: kind for kind in _tree(errors.GeokvError)}
    for name, code in said.items():
        assert exits.code_of(every[name]("why")) == code, name
    bases = {name for name, kind in every.items() if any(base.__name__ in said for base in kind.__mro__[1:])}
    within = (errors.ClientClosed, errors.WireError, errors.LabError)  # no command ends with them
    rest = {name for name in every.keys() - said.keys() - bases if not issubclass(every[name], within)}
    assert rest <= {"GeokvError"}


def _names_in(cell: str) -> list[str]:
    return re.findall(r"`([A-Za-z]+)`", cell)


def _tree(kind: type[errors.GeokvError]) -> list[type[errors.GeokvError]]:
    return [kind, *(below for one in kind.__subclasses__() for below in _tree(one))]


def test_a_cluster_that_is_not_there_gives_4(geokv: Run) -> None:
    """Nobody listens: unavailable, within the time given."""
    done = geokv("put", "default", "k", "v", "--timeout", "1", nodes="127.0.0.1:1")
    assert done.returncode == UNAVAILABLE
    assert "127.0.0.1:1" in one_line_of_error(done)


def test_a_value_beyond_the_limit_says_how_to_raise_it(geokv: Run) -> None:
    """The message names the limit and the command that raises it, and that command does."""
    geokv("namespace", "create", "large")
    refused = geokv("put", "large", "k", "-", stdin=bytes(20_000))
    assert refused.returncode == USAGE
    assert "geokv namespace alter large --value-bytes-max" in one_line_of_error(refused)
    assert geokv("namespace", "alter", "large", "--value-bytes-max", "20000").returncode == DONE
    assert geokv("put", "large", "k", "-", stdin=bytes(20_000)).returncode == DONE


def test_a_namespace_lives_through_all_its_commands(geokv: Run) -> None:
    """create, list, show, alter and delete each show what the others did."""
    made = json.loads(geokv("namespace", "create", "carts", "--ttl", "60", "--json").stdout)["namespace"]
    assert (made["ttl_ms"], made["policy"]) == (60_000, "lww")
    listed = json.loads(geokv("namespace", "list", "--json").stdout)["namespaces"]
    assert {"default", "carts"} <= {one["name"] for one in listed}
    altered = json.loads(geokv("namespace", "alter", "carts", "--ttl", "0", "--read-level", "one", "--json").stdout)
    assert (altered["namespace"]["ttl_ms"], altered["namespace"]["read_level"]) == (0, "ONE")
    assert json.loads(geokv("namespace", "show", "carts", "--json").stdout) == altered
    refused = geokv("namespace", "alter", "carts", "--link-off", "here>nowhere")
    assert refused.returncode == USAGE
    assert "no datacenter" in one_line_of_error(refused)
    assert b"carts" in geokv("namespace", "list").stdout
    assert geokv("namespace", "delete", "carts", "--yes").returncode == DONE
    assert geokv("namespace", "show", "carts").returncode == NOT_FOUND


def test_a_ttl_takes_the_key_away(geokv: Run) -> None:
    """A key written with --ttl is absent after its time. (Takes over a second: expiry is real time.)"""
    assert geokv("put", "default", "short", "v", "--ttl", "1").returncode == DONE
    deadline_s = time.monotonic() + 10
    while geokv("get", "default", "short").returncode != NOT_FOUND:
        assert time.monotonic() < deadline_s


def test_status_shows_every_node_for_people_and_programs(geokv: Run, cluster: Cluster) -> None:
    """The node is there with its address and state; --metrics has counters of every node."""
    tree = json.loads(geokv("status", "--json").stdout)
    (node,) = tree["nodes"]
    assert (node["node"], node["state"], node["address"]) == ("node-1", "serving", cluster.address)
    assert tree["partitions"] == 256
    assert node["ring_share"] == 1.0
    shown = geokv("status")
    assert shown.returncode == DONE
    assert b"node-1" in shown.stdout and b"serving" in shown.stdout
    before = json.loads(geokv("status", "--metrics", "--json").stdout)["metrics"]["node-1"]["log.records"]
    geokv("put", "default", "counted", "v")
    after = json.loads(geokv("status", "--metrics", "--json").stdout)["metrics"]["node-1"]["log.records"]
    assert after > before


def test_metrics_for_people_have_every_counter_as_a_number(geokv: Run) -> None:
    """The table has a row for each name that --json has, and no cell is anything but a number."""
    names = json.loads(geokv("status", "--metrics", "--json").stdout)["metrics"]["node-1"]
    assert {"log.records", "calls.admin", "transport.queued_bytes"} <= names.keys()
    assert all(isinstance(value, int | float) for value in names.values())
    head, *rows = geokv("status", "--metrics").stdout.decode().splitlines()
    assert head.split()[1:] == ["node-1"]
    shown = dict(row.split() for row in rows if row)
    assert names.keys() <= shown.keys()
    for value in shown.values():
        float(value.replace(",", ""))


def test_nothing_is_folded_in_80_columns(cluster: Cluster) -> None:
    """On a terminal of 80 columns each node stands in one line with its whole address."""
    reading, writing = pty.openpty()
    fcntl.ioctl(writing, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
    command = [sys.executable, "-m", "geokv", "status", "--node", cluster.address]
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    with subprocess.Popen(command, stdout=writing, stdin=writing, env={**environment, "NO_COLOR": "1"}) as process:
        os.close(writing)
        shown = _read_all(reading)
    assert process.returncode == DONE
    lines = shown.splitlines()
    assert max(map(len, lines)) <= 80
    (line,) = [line for line in lines if cluster.address in line]
    assert line.split()[0] == "node-1" and line.split()[-1] == "serving"


def _read_all(descriptor: int) -> str:
    """What a process wrote to a terminal before it ended."""
    found = b""
    try:
        while chunk := os.read(descriptor, 65_536):
            found += chunk
    except OSError:  # Linux says so where the other end is closed
        pass
    os.close(descriptor)
    return re.sub(r"\x1b\[[0-9;]*m", "", found.decode())  # NO_COLOR leaves bold


def test_bench_measures_what_it_did(geokv: Run) -> None:
    """Reads and writes are counted and timed, and its keys are there afterwards."""
    done = geokv("bench", "--seconds", "0.5", "--callers", "8", "--keys", "1", "--json")
    tree = json.loads(done.stdout)
    for kind in ("writes", "reads"):
        assert tree[kind]["done"] > 0
        assert 0 < tree[kind]["p50_ms"] <= tree[kind]["p99_ms"]
        assert tree[kind]["failed"] == 0
    assert len(geokv("get", "default", "bench/00000000").stdout) == 256


def test_output_without_a_terminal_has_no_colour_and_no_progress(geokv: Run) -> None:
    """No escape sequence in anything that is piped."""
    for arguments in (("status",), ("namespace", "list"), ("sim", "soak", "--fixed", "0"), ("--help",)):
        done = geokv(*arguments)
        assert b"\x1b" not in done.stdout + done.stderr


def test_a_reader_that_has_enough_is_no_error(cluster: Cluster) -> None:
    """Where nobody reads the output any more (`geokv … | head`), the command ends with 0 and says nothing."""
    command = [sys.executable, "-m", "geokv", "status", "--metrics", "--node", cluster.address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == DONE


def test_help_is_quick() -> None:
    """`geokv --help` takes less than 0.3 s: the quickest of five, so that a busy machine does not decide."""
    took = []
    for _ in range(5):
        began_s = time.monotonic()
        subprocess.run([sys.executable, "-m", "geokv", "--help"], check=True, capture_output=True)
        took.append(time.monotonic() - began_s)
    assert min(took) < HELP_S_MAX


def test_help_loads_neither_grpc_nor_rich() -> None:
    """What makes help slow is not imported for it."""
    code = "import sys; from geokv.cli.main import main; main(['--help']); print('grpc' in sys.modules, 'rich' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False False"


def test_every_command_in_the_list_has_help_that_begins_as_the_list_says() -> None:
    """No row of the table of commands is dead, and its summary is the command's own."""
    from geokv.cli.main import COMMANDS, geokv

    for name, row in COMMANDS.items():
        command = geokv.get_command(None, name)  # type: ignore[arg-type]
        assert command is not None
        assert command.get_short_help_str(200).rstrip(".") == row.summary.rstrip("."), name


def test_serve_lists_every_setting() -> None:
    """Flag and environment variable of every setting stand in `geokv serve --help`."""
    from geokv.server.config import SETTINGS

    done = subprocess.run([sys.executable, "-m", "geokv", "serve", "--help"], check=True, capture_output=True, text=True)
    for setting in SETTINGS:
        assert setting.flag in done.stdout
        assert setting.variable in done.stdout


def test_version_is_the_package_s() -> None:
    """`geokv --version` says what the package says."""
    from geokv import __version__

    done = subprocess.run([sys.executable, "-m", "geokv", "--version"], check=True, capture_output=True, text=True)
    assert done.stdout == f"geokv {__version__}\n"


def test_sim_run_prints_the_keys_that_scripts_rely_on() -> None:
    """`sim run --json` has seed, digest, operations, both times and the checkers, and ends with 0 where all are ok."""
    done = subprocess.run(
        [sys.executable, "-m", "geokv", "sim", "run", "--seed", "7", "--json"], capture_output=True, text=True, check=False
    )
    tree = json.loads(done.stdout)
    assert {"seed", "digest", "operations", "virtual_seconds", "real_seconds", "checkers"} <= tree.keys()
    assert tree["seed"] == 7
    is_ok = all(verdict == "ok" for verdict in tree["checkers"].values())
    assert (done.returncode == 0) is is_ok


def test_updates_of_a_type_and_what_it_shows(geokv: Run) -> None:
    """Counters, sets and fields of maps from the command line; wrong operations are one line of error."""
    for name in ("counter_pn", "set_aw", "map_rr", "siblings"):
        assert geokv("namespace", "create", name, "--policy", name).returncode == DONE
    assert geokv("update", "counter_pn", "c", "increment", "5").returncode == DONE
    assert geokv("update", "counter_pn", "c", "increment").returncode == DONE
    assert geokv("get", "counter_pn", "c").stdout == b"6\n"
    assert geokv("update", "set_aw", "s", "add", "red").returncode == DONE
    assert json.loads(geokv("get", "set_aw", "s", "--json").stdout)["value"] == ["red"]
    assert geokv("update", "map_rr", "m", "add", "x", "--in", "inner:map_rr", "--in", "tags:set_aw").returncode == DONE
    assert json.loads(geokv("get", "map_rr", "m").stdout) == {"inner:map_rr": {"tags:set_aw": ["x"]}}
    wrong = geokv("update", "counter_pn", "c", "add", "x")
    assert wrong.returncode == USAGE and "has no operation 'add'" in one_line_of_error(wrong)
    assert geokv("update", "counter_pn", "c", "increment", "many").returncode == USAGE


def test_siblings_are_shown_and_replaced_with_their_context(geokv: Run) -> None:
    """get --json shows all values; put --context takes what it read."""
    geokv("namespace", "create", "documents", "--policy", "siblings", "--exist-ok")
    geokv("put", "documents", "k", "A")
    geokv("put", "documents", "k", "B")
    torn = geokv("get", "documents", "k")
    assert torn.returncode != DONE and "2 concurrent values: get --json shows them" in one_line_of_error(torn)
    shown = json.loads(geokv("get", "documents", "k", "--json").stdout)
    assert sorted(shown["siblings"]) == ["A", "B"] and shown["policy"] == "siblings"
    assert geokv("put", "documents", "k", "C", "--context", shown["context"]).returncode == DONE
    assert geokv("get", "documents", "k").stdout == b"C"
    assert geokv("put", "documents", "k", "D", "--context", "no base64!").returncode == USAGE


def test_a_node_gives_its_rights_away_and_says_what_is_left(geokv: Run, cluster: Cluster) -> None:
    """Of one node there is nobody to give to: it says so, and has what it had."""
    geokv("namespace", "create", "tickets", "--policy", "counter_bounded", "--exist-ok")
    geokv("update", "tickets", "last", "increment", "3")
    drained = geokv("rights", "drain", "--address", cluster.address, "--json")
    (told,) = json.loads(drained.stdout)["nodes"]
    assert drained.returncode == EXPECTATION_FAILED and (told["is_done"], told["rights"], told["left"]) == (True, 0, 3)
    assert json.loads(geokv("get", "tickets", "last", "--json").stdout)["value"] == 3
    assert geokv("rights", "drain").returncode == USAGE


def test_explain_and_conflicts_tell_what_met(geokv: Run) -> None:
    """In words and as JSON; a loser is written again with the context of what is there."""
    geokv("namespace", "create", "torn", "--policy", "siblings")
    geokv("put", "torn", "k", "A")
    geokv("put", "torn", "k", "B")
    told = geokv("explain", "torn", "k").stdout.decode()
    assert "neither had seen the other" in told and "Now it has 2 values: 'A', 'B'" in told
    shown = json.loads(geokv("explain", "torn", "k", "--json").stdout)
    (decision,) = shown["decisions"]
    assert decision["outcome"] == "kept" and shown["values"] == ["A", "B"] and decision["words"] in shown["words"]
    (newest,) = json.loads(geokv("conflicts", "tail", "torn", "--json").stdout)["conflicts"]
    (key,) = json.loads(geokv("conflicts", "top", "torn", "--json").stdout)["keys"]
    (row,) = json.loads(geokv("conflicts", "stats", "torn", "--json").stdout)["stats"]
    assert {"kind": "conflict", **newest} == decision and key == {"namespace": "torn", "key": "k", "conflicts": 1}
    assert (row["policy"], row["outcome"], row["conflicts"]) == ("siblings", "kept", 1)
    replayed = json.loads(geokv("conflicts", "whatif", "torn", "--policy", "register_mv", "--json").stdout)
    assert (replayed["conflicts"], replayed["lost_then"]) == (1, 0)
    assert "values that were put" in one_line_of_error(geokv("conflicts", "whatif", "torn", "--policy", "set_aw"))
    assert geokv("conflicts", "restore", decision["id"]).returncode == DONE
    after = json.loads(geokv("explain", "torn", "k", "--json").stdout)
    assert after["values"] == [decision["loser"]["value"]]
    met, back = after["decisions"]
    assert (met["kind"], back["kind"], back["id"], back["value"]) == ("conflict", "restore", decision["id"], after["values"][0])
    assert "was brought back by a new write of dc1" in back["words"] and after["words"][1] == back["words"]
    again = geokv("conflicts", "restore", decision["id"])
    assert again.returncode == DONE and "It had been restored already" in again.stdout.decode()
    third = json.loads(geokv("conflicts", "restore", decision["id"], "--json").stdout)
    assert len(third["restored_before"]) == 2
    assert geokv("conflicts", "restore", "0123").returncode == NOT_FOUND
    assert geokv("explain", "torn", "never").returncode == NOT_FOUND
    assert geokv("conflicts", "tail", "nowhere").returncode != DONE
    assert b"torn" in geokv("conflicts", "tail").stdout and b"torn" in geokv("conflicts", "top").stdout
