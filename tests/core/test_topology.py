"""Topology files: what is read, what is refused and where, and that what is written can be read back."""

import contextlib
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geokv.core.topology import (
    OUTSIDE,
    Datacenter,
    Link,
    NodeSpec,
    Topology,
    clients_of,
    parse_topology,
    render_topology,
)
from geokv.errors import TopologyError

FOLDER = Path(__file__).resolve().parents[2] / "topology"

TWO = """\
cluster = "two"
partitions = 64

[[datacenter]]
name = "eu"
replicas = 2

[[datacenter.node]]
name = "eu-1"
rack = "a"
weight = 2.5
address = "127.0.0.1:7101"

[[datacenter.node]]
name = "eu-2"
rack = "b"
address = "127.0.0.1:7102"

[[datacenter]]
name = "us"
replicas = 1

[[datacenter.node]]
name = "us-1"
rack = "a"
address = "127.0.0.1:7201"
from = { eu = "127.0.0.1:7301", outside = "127.0.0.1:7302" }

[[link]]
from = "eu"
to = "us"
round_trip_ms = 84
jitter_ms = 1.5
bandwidth_kb_s = 9000
"""


def refused(text: str) -> TopologyError:
    with pytest.raises(TopologyError) as caught:
        parse_topology(text, "topology/x.toml")
    return caught.value


def test_values_are_read() -> None:
    """Every key of a file becomes a value; weight is 1 and jitter 0 where they are not given."""
    topology = parse_topology(TWO)
    assert (topology.cluster, topology.partitions, topology.dc_names) == ("two", 64, ("eu", "us"))
    assert topology.node("eu-1") == NodeSpec("eu-1", "eu", "a", 2.5, "127.0.0.1:7101")
    assert topology.node("eu-2").weight == 1
    assert topology.datacenter("eu").replicas == 2
    assert topology.links == (Link("eu", "us", 84, 1.5, 9000),)


def test_partitions_have_a_default() -> None:
    """Q is 256 where it is not given."""
    assert parse_topology(TWO.replace("partitions = 64\n", "")).partitions == 256


def test_link_stands_for_both_directions_unless_the_other_has_its_own() -> None:
    """A link is found from either end; an entry of its own wins."""
    assert parse_topology(TWO).link("us", "eu") == Link("us", "eu", 84, 1.5, 9000)
    both = TWO + '\n[[link]]\nfrom = "us"\nto = "eu"\nround_trip_ms = 90\n'
    assert parse_topology(both).link("us", "eu").round_trip_ms == 90
    assert parse_topology(both).link("eu", "us").round_trip_ms == 84


def test_address_depends_on_who_asks() -> None:
    """A viewpoint gets its own address, and never the direct one of a node that has proxies."""
    topology = parse_topology(TWO)
    assert topology.address("us-1", "us") == "127.0.0.1:7201"
    assert topology.address("us-1", "eu") == "127.0.0.1:7301"
    assert topology.address("us-1", OUTSIDE) == "127.0.0.1:7302"
    assert topology.address("us-1", clients_of("us")) == "127.0.0.1:7302"
    assert topology.address("eu-1", "us") == topology.address("eu-1", OUTSIDE) == "127.0.0.1:7101"
    with pytest.raises(KeyError, match="no viewpoint 'mars'"):
        topology.address("us-1", "mars")
    with pytest.raises(KeyError, match="no node 'us-9'"):
        topology.address("us-9", "us")


def test_resolved_addresses_replace_the_old_ones() -> None:
    """with_addresses changes addresses only, and the result can be written and read."""
    topology = parse_topology(TWO)
    direct = {node.name: f"127.0.0.1:{9000 + index}" for index, node in enumerate(topology.nodes)}
    views = {
        "eu-1": {"us": "127.0.0.1:9101", OUTSIDE: "127.0.0.1:9102"},
        "eu-2": {"us": "127.0.0.1:9103", OUTSIDE: "127.0.0.1:9104"},
        "us-1": {"eu": "127.0.0.1:9105", OUTSIDE: "127.0.0.1:9106"},
    }
    resolved = topology.with_addresses(direct, views)
    assert resolved.address("eu-2", "us") == "127.0.0.1:9103"
    assert resolved.address("eu-2", "eu") == "127.0.0.1:9001"
    assert (resolved.links, resolved.dc_names) == (topology.links, topology.dc_names)
    assert parse_topology(render_topology(resolved)) == resolved


def test_example_of_the_issue_names_file_line_and_way_out() -> None:
    """The message for too many replicas says where, what, and what to do."""
    error = refused(TWO.replace("replicas = 2", "replicas = 5"))
    assert str(error) == ('topology/x.toml:6: replicas = 5, but datacenter "eu" has 2 nodes; lower replicas or add nodes')
    again = pickle.loads(pickle.dumps(error))
    assert (again.source, again.line, str(again)) == ("topology/x.toml", 6, str(error))


@pytest.mark.parametrize(
    ("old", "new", "line", "reason"),
    [
        ('cluster = "two"', "cluster = two", 1, "not TOML"),
        ('cluster = "two"', "", 1, '"cluster" is missing'),
        ('cluster = "two"', "cluster = 5", 1, "cluster must be text, not a number"),
        ('cluster = "two"', 'cluster = "Two"', 1, '"Two" is not a name'),
        ("partitions = 64", "partitions = 100", 2, "not a power of two"),
        ("partitions = 64", "partitions = 1073741824", 2, "must be between 1 and"),
        ("partitions = 64", "partitions = true", 2, "must be a whole number, not true/false"),
        ("partitions = 64", "particles = 64", 2, 'unknown key "particles" at the top'),
        ('name = "us"', 'name = "eu"', 20, 'datacenter "eu" stands twice, first in line 5'),
        ('name = "us"', 'name = "outside"', 20, "that is a viewpoint"),
        ("replicas = 1", "replicas = 0", 21, "must be between 1 and"),
        ("replicas = 1\n", "", 19, '"replicas" is missing'),
        ('name = "us-1"', 'name = "eu-1"', 24, 'node "eu-1" stands twice, first in line 9'),
        ('name = "us-1"', f'name = "{"a" * 32}"', 24, "is not a name"),
        ("weight = 2.5", 'weight = "2"', 11, "weight must be a number, not text"),
        ("weight = 2.5", "weight = -1", 11, "must be between 0 (owns nothing) and"),
        ("weight = 2.5", "weight = nan", 11, "not a finite number"),
        ("weight = 2.5", "weight = 0", 6, "1 node with a weight above 0"),
        ("weight = 2.5", "wait = 2.5", 11, 'unknown key "wait" in [[datacenter.node]]'),
        ("127.0.0.1:7102", "127.0.0.1", 17, "is not an address"),
        ("127.0.0.1:7102", "127.0.0.1:0", 17, "is not an address"),
        ("127.0.0.1:7102", "127.0.0.1:70000", 17, "is not an address"),
        ("127.0.0.1:7102", "127.0.0.1:7101", 17, 'already that of node "eu-1"'),
        ('address = "127.0.0.1:7102"\n', "", 14, '"address" is missing in node "eu-2"'),
        ('eu = "127.0.0.1:7301", ', "", 27, 'no address from "eu"; name all viewpoints or none'),
        ("{ eu =", "{ us =", 27, '"us" uses the address itself'),
        ("{ eu =", "{ asia =", 27, '"asia" is no datacenter'),
        ("from = { eu", 'from = "x"#', 27, "from must be a table"),
        ('to = "us"', 'to = "asia"', 31, 'link to "asia": no such datacenter'),
        ('to = "us"', 'to = "eu"', 31, 'from "eu" to itself'),
        ("round_trip_ms = 84", "round_trip_ms = -1", 32, "must be between 0 and"),
        ("round_trip_ms = 84\n", "", 29, '"round_trip_ms" is missing'),
        ("jitter_ms = 1.5", "jitter_ms = 99", 33, "more than round_trip_ms"),
        ("bandwidth_kb_s = 9000", "bandwidth_kb_s = 0", 34, "must be between 1 and"),
        ("[[link]]", "[link]", 29, "link must be written as [[link]]"),
    ],
)
def test_fault_is_found_at_its_line(old: str, new: str, line: int, reason: str) -> None:
    """Every fault is refused with the line where it stands."""
    assert old in TWO
    error = refused(TWO.replace(old, new))
    assert reason in str(error)
    assert str(error).startswith(f"topology/x.toml:{line}: ")


def test_missing_link_is_named() -> None:
    """Two datacenters without a link between them are refused."""
    error = refused(TWO[: TWO.index("[[link]]")])
    assert 'no [[link]] between "eu" and "us"' in str(error)


def test_double_link_is_refused() -> None:
    """A direction has one entry."""
    error = refused(TWO + TWO[TWO.index("[[link]]") :])
    assert 'link "eu -> us" stands twice, first in line 29' in str(error)


def test_client_viewpoints_are_all_or_none() -> None:
    """A node that names one kind of clients names them all."""
    text = TWO.replace("from = { eu", 'from = { "clients.eu" = "127.0.0.1:7303", eu')
    assert 'no address from "clients.us"' in str(refused(text))


@pytest.mark.parametrize("text", ["", "[[datacenter]]", "datacenter = []", "cluster = 1\ncluster = 2", "a" * 100])
def test_what_is_no_topology_is_refused(text: str) -> None:
    """Empty, cut off and doubled text end in a TopologyError, nothing else."""
    assert str(refused(text)).startswith("topology/x.toml:")


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    """No text makes the reader fail in another way."""
    with contextlib.suppress(TopologyError):
        parse_topology(text)


def test_few_racks_are_a_warning() -> None:
    """Replicas that share a rack are allowed and said."""
    assert parse_topology(TWO).warnings() == ()
    (warning,) = parse_topology(TWO.replace('rack = "b"', 'rack = "a"')).warnings()
    assert 'datacenter "eu" has 1 rack(s) for 2 replicas' in warning


NAMES = st.from_regex(r"\A[a-z0-9][a-z0-9-]{0,8}\Z").filter(lambda name: name != OUTSIDE)


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    dc_names = draw(st.lists(NAMES, min_size=1, max_size=3, unique=True))
    port = iter(range(1, 65_536))
    datacenters = []
    for dc in dc_names:
        views = [*(other for other in dc_names if other != dc), OUTSIDE]
        views += draw(st.sampled_from([[], [clients_of(name) for name in dc_names]]))
        has_views = draw(st.booleans())
        nodes = tuple(
            NodeSpec(
                f"{dc}-{number}-n",
                dc,
                draw(NAMES),
                draw(st.integers(1, 10) | st.floats(1e-3, 1000)),
                f"host-{number}:{next(port)}",
                tuple(sorted((view, f"[::1]:{next(port)}") for view in views)) if has_views else (),
            )
            for number in range(draw(st.integers(1, 3)))
        )
        datacenters.append(Datacenter(dc, draw(st.integers(1, len(nodes))), nodes))
    links = tuple(
        Link(
            one,
            other,
            draw(st.floats(1, 500)),
            draw(st.floats(0, 1)),
            draw(st.none() | st.integers(1, 10**6)),
        )
        for index, one in enumerate(dc_names)
        for other in dc_names[index + 1 :]
    )
    return Topology(draw(NAMES), 2 ** draw(st.integers(0, 12)), tuple(datacenters), links)


@given(topologies())
def test_what_is_written_is_read_back(topology: Topology) -> None:
    """render and parse are a round trip for every topology."""
    try:
        again = parse_topology(render_topology(topology))
    except TopologyError as error:
        if "stands twice" in str(error):  # two datacenters can spell the same node name
            return
        raise
    assert again == topology


@pytest.mark.parametrize(("name", "dcs", "nodes"), [("three-dc", 3, 9), ("one-dc", 1, 3), ("single", 1, 1)])
def test_shipped_files_are_sound(name: str, dcs: int, nodes: int) -> None:
    """The files in topology/ are read without a warning."""
    path = FOLDER / f"{name}.toml"
    topology = parse_topology(path.read_text(encoding="utf-8"), str(path))
    assert (topology.cluster, len(topology.datacenters), len(topology.nodes)) == (name, dcs, nodes)
    assert topology.warnings() == ()


def test_figures_in_links_md_are_those_of_the_file() -> None:
    """The table of sources and the topology say the same."""
    topology = parse_topology((FOLDER / "three-dc.toml").read_text(encoding="utf-8"))
    table = (FOLDER / "links.md").read_text(encoding="utf-8")
    for link in topology.links:
        assert f"| {link.from_dc}, {link.to_dc} |" in table
        (row,) = [line for line in table.splitlines() if line.startswith(f"| {link.from_dc}, {link.to_dc} |")]
        assert f"| {link.round_trip_ms} ms |" in row
