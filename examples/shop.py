"""A shop in two datacenters that are cut apart, go on selling, and find that nothing was lost when they meet again.

    carts       set_aw        both sides put things into the same carts, one side takes something out
    likes       counter_pn    both sides count
    presence    flag_ew       a customer who is here on one side is not gone because the other side saw them leave before
    addresses   lww           both sides change the same address: one of two values must lose, and the journal tells

    python examples/shop.py [--lab DIRECTORY] [--keep] [--json]

It uses the lab that runs in DIRECTORY, or brings one up and takes it down again (`--keep` leaves it, to look around with `geokv
explain`, `geokv conflicts` and `geokv wan`).
"""

from __future__ import annotations

import argparse
import json
import secrets
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from geokv import Client, GeokvError
from geokv.lab.state import LabDirectory
from geokv.lab.supervisor import bring_down, bring_up
from geokv.lab.wan.links import Links
from geokv.lab.wan.proxies import Proxies

POLICIES = {"shop-carts": "set_aw", "shop-likes": "counter_pn", "shop-presence": "flag_ew", "shop-addresses": "lww"}
CARTS, POSTS, CUSTOMERS, LIKES = 12, 5, 8, 40
CONVERGE_S_MAX = 60.0


class Shop:
    """The shop as one datacenter's servers see it."""

    def __init__(self, kv: Client, run: str) -> None:
        self.kv = kv
        self.run = run  # so that a second run in the same lab begins with empty shelves
        self.carts, self.likes = kv.sets("shop-carts"), kv.counters("shop-likes")
        self.presence, self.addresses = kv.flags("shop-presence"), kv.namespace("shop-addresses")

    def key(self, kind: str, number: int) -> str:
        return f"{self.run}:{kind}:{number}"

    def everything(self) -> dict[str, Any]:
        """All that is in the shop, as this datacenter has it."""
        return {
            "carts": [sorted(self.carts.value(self.key("cart", one))) for one in range(CARTS)],
            "likes": [self.likes.value(self.key("post", one)) for one in range(POSTS)],
            "presence": [self.presence.value(self.key("customer", one)) for one in range(CUSTOMERS)],
            "addresses": [self.addresses.get(self.key("customer", one)).value for one in range(CUSTOMERS)],
        }


def open_shop(kv: Client) -> None:
    for name, policy in POLICIES.items():
        kv.create_namespace(name, policy=policy, exist_ok=True)


def until(is_so: Callable[[], bool], what: str, seconds: float = CONVERGE_S_MAX) -> float:
    """Wait for something; returns how long it took."""
    began = time.monotonic()
    while not is_so():
        if time.monotonic() - began > seconds:
            raise SystemExit(f"shop: {what} did not happen within {seconds:g} s")
        time.sleep(0.05)
    return time.monotonic() - began


def knows_shop(kv: Client) -> bool:
    """Whether every node of the client's datacenter has heard of the shop's namespaces: it asks one after the other."""
    return all(set(POLICIES) <= {one["name"] for one in kv.namespaces()} for _ in range(8))


def before_the_cut(east: Shop, west: Shop) -> None:
    for one in range(CARTS):
        east.carts.add(east.key("cart", one), "milk")
    for one in range(CUSTOMERS):
        east.presence.enable(east.key("customer", one))
        east.addresses.put(east.key("customer", one), b"1 Old Street")
    until(lambda: east.everything() == west.everything(), "the first stock arriving in the other datacenter")


def while_cut_apart(east: Shop, west: Shop) -> None:
    """The same customers, on both sides of the cut."""
    for one in range(CARTS):
        east.carts.remove(east.key("cart", one), "milk")
        east.carts.add_many(east.key("cart", one), ["eggs", f"east {one}"])
        west.carts.add_many(west.key("cart", one), ["rum", f"west {one}"])
        if one % 2:
            west.carts.add(west.key("cart", one), "milk")  # a second one, which the removal has not seen
    for number in range(LIKES):
        east.likes.increment(east.key("post", number % POSTS))
        west.likes.increment(west.key("post", number % POSTS), 2)
    for one in range(CUSTOMERS):
        east.presence.disable(east.key("customer", one))
        if one % 2:
            west.presence.enable(west.key("customer", one))
        east.addresses.put(east.key("customer", one), f"{one} East Road".encode())
        west.addresses.put(west.key("customer", one), f"{one} West Road".encode())


def missing(found: dict[str, Any]) -> list[str]:
    """What both sides were told is done, and is not there after they have met."""
    lost = []
    for one, cart in enumerate(found["carts"]):
        wanted = {b"eggs", b"rum", b"east %d" % one, b"west %d" % one} | ({b"milk"} if one % 2 else set())
        if set(cart) != wanted:
            lost.append(f"cart {one} has {cart}")
    for post, likes in enumerate(found["likes"]):
        if likes != 3 * len(range(post, LIKES, POSTS)):
            lost.append(f"post {post} has {likes} likes")
    for one, (is_here, address) in enumerate(zip(found["presence"], found["addresses"], strict=True)):
        if is_here != bool(one % 2):
            lost.append(f"customer {one} is {'here' if is_here else 'gone'}")
        if address not in (b"%d East Road" % one, b"%d West Road" % one):
            lost.append(f"customer {one} lives at {address!r}")
    return lost


def geokv(arguments: list[str], address: str) -> dict[str, Any]:
    """What a command of geokv prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "geokv", *arguments, "--json", "--node", address], capture_output=True, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def trade(directory: LabDirectory, say: Callable[[str], None]) -> dict[str, Any]:
    """The whole story in a lab that runs."""
    state = directory.read()
    assert state is not None
    topology = directory.topology()
    one, other = topology.dc_names[:2]
    links = Links(topology, Proxies(state.proxy_host, state.proxy_port))
    run = secrets.token_hex(3)
    with Client(directory.addresses(one), dc=one) as near, Client(directory.addresses(other), dc=other) as far:
        open_shop(near)
        until(lambda: knows_shop(near) and knows_shop(far), "the shop's opening in both datacenters")
        east, west = Shop(near, run), Shop(far, run)
        before_the_cut(east, west)
        say(f"{one} and {other} are cut apart, and go on selling")
        links.cut(one, other)
        try:
            while_cut_apart(east, west)
            say(f"while they were apart, {one} sold {east.everything()['carts'][1]}, {other} {west.everything()['carts'][1]}")
        finally:
            links.heal(one, other)
        seconds = until(lambda: east.everything() == west.everything(), "both datacenters having the same")
        found = west.everything()
    say(f"healed; both have the same after {seconds:.1f} s: {found['carts'][1]}")
    return found | told(directory.addresses(one)[0], run, found) | {"converge_ms": round(seconds * 1000)}


def told(address: str, run: str, found: dict[str, Any]) -> dict[str, Any]:
    """What the journal says of it, why a customer who left on one side is still here, and one loser brought back."""
    noted = [
        one
        for one in geokv(["conflicts", "tail", "shop-addresses", "--limit", "1000"], address)["conflicts"]
        if one["key"].startswith(f"{run}:")
    ]
    explained = geokv(["explain", "shop-addresses", f"{run}:customer:0"], address)
    loser = explained["decisions"][0]["loser"]["value"] if explained["decisions"] else None
    restored = None
    if loser is not None:
        geokv(["conflicts", "restore", explained["decisions"][0]["id"]], address)
        restored = geokv(["get", "shop-addresses", f"{run}:customer:0"], address)["value"] == loser
    stayed = geokv(["explain", "shop-presence", f"{run}:customer:1"], address)["words"]
    lost = missing(found)
    return {
        "converged": True,
        "lost": len(lost),
        "missing": lost,
        "conflicts": len(noted),
        "explained": explained["words"],
        "stayed": stayed,
        "restored": restored,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lab", default=".geokv-lab", metavar="DIRECTORY", help="the lab to use, or where to bring one up")
    parser.add_argument("--topology", help="of a lab that is brought up (a TOML file)")
    parser.add_argument("--keep", action="store_true", help="leave a lab that was brought up running")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    directory = LabDirectory(options.lab)

    def say(text: str) -> None:
        print(f"shop: {text}", file=sys.stderr, flush=True)

    is_ours = directory.read() is None
    try:
        if is_ours:
            say(f"bringing a lab up in {directory.path}")
            bring_up(directory, options.topology)
        report = trade(directory, say)
    except GeokvError as error:
        say(str(error))
        return 1
    finally:
        if is_ours and not options.keep:
            bring_down(directory)
    shown = {name: one for name, one in report.items() if name not in ("carts", "likes", "presence", "addresses")}
    if options.json:
        print(json.dumps(shown))
    else:
        print(f"lost: {shown['lost']}, conflicts: {shown['conflicts']}")
        print("\n".join(shown["explained"] + shown["stayed"]))
    return 0 if report["converged"] and not report["lost"] and report["conflicts"] and report["restored"] else 1


if __name__ == "__main__":
    sys.exit(main())
