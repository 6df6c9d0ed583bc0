"""The engine in memory behaves as a sorted map that forgets nothing."""

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from geokv.storage.engine import MemoryEngine

_KEYS = st.binary(max_size=3)


class EngineAgainstModel(RuleBasedStateMachine):
    """Any mixture of puts, removals, scans and drops gives what a plain dictionary and sorted() give."""

    namespaces: Bundle[int] = Bundle("namespaces")

    def __init__(self) -> None:
        super().__init__()
        self.engine = MemoryEngine()
        self.model: dict[int, dict[bytes, bytes]] = {}

    @rule(target=namespaces, namespace=st.integers(0, 3))
    def create(self, namespace: int) -> int:
        assert self.engine.create(namespace) == self.model.setdefault(namespace, {})
        return namespace

    @rule(namespace=namespaces, keys=st.lists(_KEYS, min_size=1), cell=st.binary(max_size=3))
    def put(self, namespace: int, keys: list[bytes], cell: bytes) -> None:
        if namespace in self.model:
            table = self.engine.table(namespace)
            for key in keys:
                table[key] = self.model[namespace][key] = cell

    @rule(namespace=namespaces, key=_KEYS)
    def remove(self, namespace: int, key: bytes) -> None:
        self.engine.remove(namespace, key)
        self.model.get(namespace, {}).pop(key, None)

    @rule(namespace=namespaces)
    def drop(self, namespace: int) -> None:
        self.engine.drop(namespace)
        self.model.pop(namespace, None)

    @rule(namespace=namespaces, start=_KEYS, stop=st.none() | _KEYS)
    def scan(self, namespace: int, start: bytes, stop: bytes | None) -> None:
        expected = [
            (key, cell)
            for key, cell in sorted(self.model.get(namespace, {}).items())
            if start <= key and (stop is None or key < stop)
        ]
        assert list(self.engine.scan(namespace, start, stop)) == expected

    @rule(namespace=namespaces, key=_KEYS)
    def get(self, namespace: int, key: bytes) -> None:
        assert self.engine.get(namespace, key) == self.model.get(namespace, {}).get(key)

    @invariant()
    def agrees(self) -> None:
        assert self.engine.freeze() == self.model and set(self.engine.namespaces()) == set(self.model)
        assert len(self.engine) == sum(map(len, self.model.values()))
        pairs = [pair for table in self.model.values() for pair in table.items()]
        assert self.engine.total_bytes() == sum(len(key) + len(cell) for key, cell in pairs)


TestEngineAgainstModel = EngineAgainstModel.TestCase


def test_a_frozen_view_does_not_change() -> None:
    """What freeze returned stays as it was under later puts, removals and drops."""
    engine = MemoryEngine()
    table = engine.create(1)
    table[b"a"] = b"1"
    frozen = engine.freeze()
    table[b"a"] = b"2"
    table[b"b"] = b"3"
    engine.remove(1, b"a")
    engine.drop(1)
    assert frozen == {1: {b"a": b"1"}}


def test_a_scan_goes_on_while_keys_come_and_go() -> None:
    """Puts, removals and other scans during a scan: every key that stayed is seen once, in order."""
    engine = MemoryEngine()
    table = engine.create(1)
    for index in range(2000):
        table[b"%06d" % (index * 7919 % 2000)] = b"x"
    seen = []
    for count, (key, _) in enumerate(engine.scan(1)):
        seen.append(key)
        table[b"new%06d" % count] = b"y"
        if count % 100 == 0:
            engine.remove(1, key)
            assert next(engine.scan(1, b"000001"), None) is not None
        if count == 3000:
            break
    old = [key for key in seen if not key.startswith(b"new")]
    assert old == [b"%06d" % index for index in range(2000)] and seen == sorted(set(seen))
