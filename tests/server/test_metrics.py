"""What a scrape shows of a real node's counters."""

from prometheus_client.parser import text_string_to_metric_families

from geokv.lab.ask import ask
from geokv.server import metrics
from geokv.server.metrics import metric_name, render
from geokv.testing import Cluster


def test_every_metric_of_a_real_node_has_a_type_and_words_of_its_own() -> None:
    """Values, labels and types come out as a scraper reads them, and no name described here is dead.

    (Takes over a second: it starts a node.)
    """
    with Cluster() as cluster, cluster.client() as kv:
        kv.put("k", b"v")
        kv.get("k")
        counted = ask(cluster.address, "metrics")
    assert all(isinstance(value, int | float) for value in counted.values())
    assert {name for name in metrics._GAUGES | metrics._COUNTERS if not name.endswith(".")} <= counted.keys()
    families = {one.name: one for one in text_string_to_metric_families(render(lambda: counted, "n", "d").decode())}
    assert families.keys() == {metric_name(name) for name in counted} | {"geokv_conflicts"}
    for name, value in counted.items():
        family = families[metric_name(name)]
        (sample,) = family.samples
        assert (sample.value, sample.labels) == (float(value), {"node": "n", "dc": "d"})
        assert family.type in ("counter", "gauge") and family.documentation != name
    assert families["geokv_log_records"].type == "counter"
    assert families["geokv_storage_tables"].type == families["geokv_storage_unflushed_bytes"].type == "gauge"
    assert families["geokv_cells"].type == families["geokv_peers_live"].type == "gauge"


def test_conflicts_are_one_metric_with_the_names_in_its_labels() -> None:
    """Names that differ in what a metric's name cannot hold stay apart; that of a namespace may have dots."""
    counted = {"events.conflicts.a-b.eu-west.us.discarded": 2, "events.conflicts.a.b.eu-west.us.kept": 3}
    (family,) = text_string_to_metric_families(render(lambda: counted, "n", "eu-west").decode())
    assert (family.name, family.type) == ("geokv_conflicts", "counter")
    told = {(one.labels["namespace"], one.labels["outcome"]): one.value for one in family.samples}
    assert told == {("a-b", "discarded"): 2.0, ("a.b", "kept"): 3.0}
    assert all((one.labels["winner_dc"], one.labels["loser_dc"]) == ("eu-west", "us") for one in family.samples)
