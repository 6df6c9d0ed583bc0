"""The policy of a namespace changed in two datacenters of real nodes that are cut apart, by the command line and the SDK."""

import json
import subprocess
import sys
import time

import pytest

from geokv import Client
from geokv.errors import GeokvError, InvalidRequest
from geokv.lab.lab import Lab

pytestmark = pytest.mark.timeout(180)  # real nodes, and a link that is cut and healed: ten seconds on an idle machine


def client_of(lab: Lab, dc: str) -> Client:
    return Client(lab.client_addresses(dc), dc=dc)


def geokv(lab: Lab, *arguments: str) -> subprocess.CompletedProcess[str]:
    address = lab.addresses("here")["here-1"]
    command = [sys.executable, "-m", "geokv", *arguments, "--node", address]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def values(client: Client, key: str) -> list[str]:
    """What there is of a key; nothing while a node that has not heard of the change cannot be read with one that has."""
    try:
        return sorted(bytes(one).decode() for one in client.namespace("docs").get(key).siblings)
    except GeokvError:
        return []


def policy_of(client: Client, namespace: str) -> str:
    """As one node knows it."""
    return str(next(one["policy"] for one in client.namespaces() if one["name"] == namespace))


def await_values(client: Client, key: str, wanted: list[str]) -> None:
    deadline_s, shown = time.monotonic() + 30, []
    while (shown := values(client, key)) != wanted:
        assert time.monotonic() < deadline_s, f"{key} shows {shown}, not {wanted}"
        time.sleep(0.05)


def test_a_change_while_cut_apart_loses_nothing_and_is_told(lab: Lab) -> None:
    """`there` writes on under lww until the link is back; then both show both values, and explain says why."""
    with client_of(lab, "here") as here, client_of(lab, "there") as there:
        here.create_namespace("docs")
        here.namespace("docs").put("k", b"old", replicated_to=2)
        lab.links.cut("here", "there")
        done = geokv(lab, "namespace", "alter", "docs", "--policy", "siblings")
        assert done.returncode == 0, done.stderr
        assert "changed from lww to siblings" in done.stderr and "a get may show several values" in done.stderr
        read = here.namespace("docs").get("k")
        here.namespace("docs").put("k", b"new", context=read.context)
        there.namespace("docs").put("k", b"there")
        lab.links.heal("here", "there")
        for client in (here, there):
            await_values(client, "k", ["new", "there"])
        refused = geokv(lab, "namespace", "alter", "docs", "--policy", "lww")
        assert refused.returncode != 0 and "would be discarded" in refused.stderr
        with pytest.raises(InvalidRequest, match=r"its policy was changed; before it was lww"):
            here.counters("docs").increment("k")
        told = json.loads(geokv(lab, "explain", "docs", "k", "--json").stdout)
        assert told["policy"] == "siblings" and told["earlier_policies"] == ["lww"]
        assert any("was changed to siblings; before it was lww" in line for line in told["words"])
        both = there.namespace("docs").get("k")
        there.namespace("docs").put("k", b"merged", context=both.context)
        for client in (here, there):
            await_values(client, "k", ["merged"])


def test_both_sides_change_it_while_cut_apart_and_end_alike(lab: Lab) -> None:
    """The later change stands; elements that were added under the other one are there."""
    with client_of(lab, "here") as here, client_of(lab, "there") as there:
        here.create_namespace("tags", policy="set_grow")
        here.sets("tags").add("k", "old", replicated_to=2)
        lab.links.cut("here", "there")
        here.alter_namespace("tags", policy="set_aw")
        here.sets("tags").add("k", "here")
        there.alter_namespace("tags", policy="set_rw")
        there.sets("tags").add("k", "there")
        there.sets("tags").remove("k", "old")
        lab.links.heal("here", "there")
        deadline_s, shown = time.monotonic() + 30, None
        while shown != [("set_rw", {b"here", b"there"})] * 2:
            assert time.monotonic() < deadline_s, f"they show {shown}"
            time.sleep(0.05)
            try:
                shown = [(policy_of(client, "tags"), client.sets("tags").value("k")) for client in (here, there)]
            except GeokvError:
                shown = None
