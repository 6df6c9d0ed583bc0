"""Client, for threads, against nodes over real gRPC."""

import asyncio
import gc
import os
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from time import monotonic

import pytest

from geokv import Client, ClientClosed, Consistency, DeadlineExceeded, InvalidRequest, NamespaceExists, Outcome
from tests.client.conftest import ClusterThread


def test_what_was_put_is_got(cluster_thread: ClusterThread) -> None:
    """The tour of the documentation, word for word but the address."""
    address = cluster_thread.cluster.nodes["eu-1"].address
    with Client(address, dc="eu", failover=["us"]) as kv:
        carts = kv.namespace("carts")
        put = carts.put("user:1", b"...", consistency="QUORUM", ttl=3600)
        got = carts.get("user:1", consistency="ONE")
        assert (got.value, got.version) == (b"...", put.version)
        assert got.achieved.level is Consistency.QUORUM
        carts.delete("user:1")
        assert not carts.get("user:1").found


def test_every_method_works(cluster_thread: ClusterThread) -> None:
    """Lists, batches, namespaces, status and readiness."""
    with Client(cluster_thread.cluster.addresses("eu"), dc="eu") as kv:
        kv.wait_ready(5)
        assert kv.put_many({"a": b"1", "b": b"2"}).errors == {}
        assert [got.value for got in kv.get_many(["a", "b", "c"])] == [b"1", b"2", None]
        assert len(kv.delete_many(["a"]).raise_first()) == 1
        with kv.batch() as batch:
            batch.put("x", b"1")
            batch.get("b")
        assert batch.results is not None and batch.results[1].value == b"2"
        assert kv.create_namespace("carts", codec="json").name == "carts"
        with pytest.raises(NamespaceExists):
            kv.create_namespace("carts")
        assert [one["name"] for one in kv.namespaces()] == ["carts"]
        kv.alter_namespace("carts", ttl=1)
        kv.delete_namespace("carts")
        assert "node" in kv.status() and kv.telemetry()


def test_an_item_that_cannot_be_sent_stops_none_of_the_others(cluster_thread: ClusterThread) -> None:
    """As with asyncio: an empty key is one item's error, in lists and in batches."""
    with Client(cluster_thread.cluster.addresses("eu"), dc="eu") as kv:
        puts = kv.put_many({"a": b"1", "": b"2", "b": b"3"})
        assert set(puts.errors) == {1} and puts[2].outcome is Outcome.APPLIED
        assert set(kv.get_many(["", "a"]).errors) == set(kv.delete_many(["", "x"]).errors) == {0}
        with kv.batch() as batch:
            batch.put("", b"4")
            batch.put("c", b"5")
        assert batch.results is not None and set(batch.results.errors) == {0}
        assert [got.value for got in kv.get_many(["a", "b", "c"])] == [b"1", b"3", b"5"]


def test_threads_share_calls_and_wakes(cluster_thread: ClusterThread) -> None:
    """64 threads with 50 puts each: far fewer calls than puts, and every thread gets its own result."""
    with Client(cluster_thread.cluster.addresses("eu"), dc="eu") as kv, ThreadPoolExecutor(64) as pool:
        kv.wait_ready()

        def work(thread: int) -> None:
            for index in range(50):
                value = f"{thread}-{index}".encode()
                kv.put(f"t{thread}", value)
                assert kv.get(f"t{thread}").value == value

        list(pool.map(work, range(64)))
        batches = [batch for node in cluster_thread.cluster.nodes.values() for batch in node.batches]
        assert sum(len(batch.keys) for batch in batches) == 64 * 50 * 2
        assert len(batches) < 64 * 50 * 2 / 4


def test_a_thread_that_times_out_leaves_its_batch_mates_untouched(cluster_thread: ClusterThread) -> None:
    """Two threads in one call: the hasty one gets DeadlineExceeded in time, the patient one its result."""
    cluster = cluster_thread.cluster
    with Client(cluster.addresses("eu"), dc="eu") as kv, ThreadPoolExecutor(3) as pool:
        kv.wait_ready()
        owner = cluster.owners(b"k", "eu")[0]
        go_on = asyncio.Event()

        async def wait(_: object) -> None:
            await go_on.wait()

        owner.script = wait
        pool.submit(kv.put, "k", b"0", timeout=10)
        deadline = monotonic() + 5
        while not owner.batches:
            assert monotonic() < deadline
        patient = pool.submit(kv.put, "k", b"1", timeout=10)
        hasty = pool.submit(kv.put, "k", b"2", timeout=0.1)
        assert isinstance(hasty.exception(5), DeadlineExceeded)
        assert not patient.done()
        cluster_thread.do(go_on.set)
        assert patient.result(5).outcome is Outcome.APPLIED


def test_an_error_is_raised_in_the_thread_that_asked(cluster_thread: ClusterThread) -> None:
    """Bad arguments raise before anything is sent, with the caller's own frame in the traceback."""
    with Client(cluster_thread.cluster.addresses("eu"), dc="nowhere") as kv:
        with pytest.raises(InvalidRequest, match="the key is empty"):
            kv.put("", b"v")
        with pytest.raises(InvalidRequest, match="unknown datacenter 'nowhere'"):
            kv.put("k", b"v")


def test_closing_ends_the_thread(cluster_thread: ClusterThread) -> None:
    """After close the background thread is gone; a second close does nothing; calls say ClientClosed."""
    kv = Client(cluster_thread.cluster.addresses("eu"))
    assert not [thread for thread in threading.enumerate() if thread.name == "geokv-client"]
    kv.put("k", b"v")
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "geokv-client"]
    kv.close()
    kv.close()
    assert not thread.is_alive()
    with pytest.raises(ClientClosed, match="new one"):
        kv.get("k")


def test_a_waiting_thread_is_told_when_another_closes(cluster_thread: ClusterThread) -> None:
    """close() from another thread ends a call that hangs, at once."""
    cluster = cluster_thread.cluster
    kv = Client(cluster.addresses("eu"), dc="eu")
    kv.wait_ready()
    cluster_thread.do(lambda: cluster.go_dark("eu"))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(kv.get, "k", timeout=30)
        deadline = monotonic() + 5
        while not any(node.batches for node in cluster.nodes.values()):
            assert monotonic() < deadline
        kv.close()
        assert isinstance(waiting.exception(5), ClientClosed)


def test_a_forgotten_client_warns_and_its_thread_ends(cluster_thread: ClusterThread) -> None:
    """A client that is dropped unclosed is collected (nothing of ours holds it), warns, and its thread
    ends.
    """
    kv = Client(cluster_thread.cluster.addresses("eu"))
    carts = kv.namespace("carts")
    carts.put("k", b"v")
    runner = kv._connection.runner
    assert runner is not None
    reference = weakref.ref(kv)
    del kv
    gc.collect()
    carts.put("k", b"v")  # a handle keeps its client
    carts.itself = carts  # type: ignore[attr-defined]  # a cycle, so that the collector decides when
    del carts
    with pytest.warns(ResourceWarning, match="unclosed Client"):
        gc.collect()
    assert reference() is None
    runner.thread.join(10)
    assert not runner.thread.is_alive()


_FORK = """
import os, sys, time
from geokv import Client, ClientClosed
connected = sys.argv[2] == "connected"
kv = Client(sys.argv[1])
if connected:
    kv.put("k", b"v")
child = os.fork()
if child == 0:
    began = time.monotonic()
    try:
        kv.put("k", b"v")
        os._exit(1)
    except ClientClosed as error:
        assert "make a new one" in str(error), error
    try:
        with Client(sys.argv[1]) as new:
            assert new.put("k", b"v").version
        assert not connected
    except ClientClosed as error:
        assert connected and "spawn" in str(error), error
    os._exit(0 if time.monotonic() - began < 5 else 2)
assert os.waitpid(child, 0)[1] == 0
kv.put("k", b"v")
kv.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("state", ["connected", "not connected"])
def test_a_forked_child_raises_and_does_not_hang(cluster_thread: ClusterThread, state: str) -> None:
    """In the child the parent's client raises ClientClosed; a new one works, or says at once that gRPC cannot
    live there.

    The parent's client goes on as before."""
    address = cluster_thread.cluster.nodes["eu-1"].address
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _FORK, address, state],
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    assert done.returncode == 0, done.stderr
